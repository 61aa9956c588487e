"""Margins at angles whose answer is geometry, in both gradient modes."""

import math

import pytest
import torch

from attfc.errors import UserError
from attfc.losses import AdaFace, ArcFace, CombinedMargin, CosFace, Margin

DEGREE = math.pi / 180


def cosines(*degrees: float) -> torch.Tensor:
    return torch.tensor([math.cos(angle * DEGREE) for angle in degrees], dtype=torch.float64)


def value_and_slope(margin: Margin, cosine_B: torch.Tensor, norms_B: torch.Tensor | None = None):
    leaf_B = cosine_B.clone().requires_grad_()
    adjusted_B = margin(leaf_B, norms_B)
    (slope_B,) = torch.autograd.grad(adjusted_B.sum(), leaf_B)
    return adjusted_B.detach(), slope_B


def test_arcface_adds_to_the_angle():
    adjusted_B, slope_B = value_and_slope(ArcFace(margin=30 * DEGREE), cosines(30, 60, 90, 120))
    torch.testing.assert_close(adjusted_B, cosines(60, 90, 120, 150))
    # d cos(t + m) / d cos(t) = sin(t + m) / sin(t)
    sines = [math.sin(a * DEGREE) for a in (30, 60, 90, 120, 150)]
    expected = torch.tensor([sines[i + 1] / sines[i] for i in range(4)], dtype=torch.float64)
    torch.testing.assert_close(slope_B, expected)


def test_straight_through_has_the_value_of_the_margin_and_the_slope_of_the_cosine():
    for exact, plain in [
        (ArcFace(), ArcFace(gradient="straight_through")),
        (CombinedMargin(m1=1.1, m2=0.3, m3=0.1), CombinedMargin(m1=1.1, m2=0.3, m3=0.1, gradient="straight_through")),
        (CosFace(), CosFace(gradient="straight_through")),
        (AdaFace().eval(), AdaFace(gradient="straight_through").eval()),
    ]:
        cosine_B = cosines(0, 10, 45, 100, 178, 180)
        norms_B = torch.tensor([1.0, 10, 20, 30, 90, 50])
        adjusted_B, slope_B = value_and_slope(plain, cosine_B, norms_B)
        assert torch.equal(adjusted_B, value_and_slope(exact, cosine_B, norms_B)[0])
        assert torch.equal(slope_B, torch.ones_like(slope_B))


def test_cosface_takes_from_the_cosine():
    adjusted_B, slope_B = value_and_slope(CosFace(margin=0.4), cosines(60, 90))
    torch.testing.assert_close(adjusted_B, torch.tensor([0.1, -0.4], dtype=torch.float64))
    assert torch.equal(slope_B, torch.ones_like(slope_B))


def test_combined_multiplies_then_adds_then_subtracts():
    adjusted_B, slope_B = value_and_slope(CombinedMargin(m1=2.0, m2=30 * DEGREE, m3=0.25), cosines(30, 60))
    torch.testing.assert_close(adjusted_B, cosines(90, 150) - 0.25)
    expected = [2 * math.sin(2 * a + 30 * DEGREE) / math.sin(a) for a in (30 * DEGREE, 60 * DEGREE)]
    torch.testing.assert_close(slope_B, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    "margin",
    [ArcFace(), ArcFace(margin=1.5), CosFace(), CombinedMargin(m1=1.3, m2=0.2, m3=0.2), CombinedMargin(m1=4.0, m2=0.0)],
    ids=str,
)
def test_value_falls_as_the_angle_grows_over_the_whole_half_turn(margin: Margin):
    adjusted = margin(torch.linspace(0, math.pi, 2001, dtype=torch.float64).cos())
    assert (adjusted.diff() <= 1e-12).all()


def test_beyond_pi_is_linear_or_wraps():
    cosine_B = cosines(170)
    linear_B, slope_B = value_and_slope(ArcFace(margin=0.5), cosine_B)
    torch.testing.assert_close(linear_B, cosine_B - 0.5 * math.sin(0.5))
    assert slope_B.item() == 1.0
    wrapped_B, _ = value_and_slope(ArcFace(margin=30 * DEGREE, beyond_pi="wrap"), cosine_B)
    torch.testing.assert_close(wrapped_B, cosines(200))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "margin",
    [Margin(), ArcFace(), CosFace(), CombinedMargin(m1=1.5, m2=0.1), AdaFace().eval()],
    ids=lambda m: type(m).__name__,
)
def test_value_and_slope_are_finite_at_both_ends_and_just_beyond(margin: Margin, dtype: torch.dtype):
    ends = torch.tensor([1.0, -1.0, 1.0 + 1e-6, -1.0 - 1e-6, 1.0 - 1e-7], dtype=dtype)
    adjusted_B, slope_B = value_and_slope(margin, ends, torch.full((5,), 3.0))
    assert adjusted_B.isfinite().all()
    assert slope_B.isfinite().all()
    assert (slope_B >= 0).all()


@pytest.mark.parametrize("margin", [ArcFace(), CombinedMargin(m1=1.2, m2=0.3, m3=0.1), AdaFace().eval()], ids=str)
def test_exact_slope_is_the_derivative_of_the_value(margin: Margin):
    cosine_B = torch.linspace(-0.98, 0.98, 31, dtype=torch.float64).requires_grad_()
    norms_B = torch.linspace(1, 90, 31)
    assert torch.autograd.gradcheck(lambda c: margin(c, norms_B), (cosine_B,))


def test_adaface_against_the_paper_in_a_slow_loop():
    margin = AdaFace(margin=0.4, h=0.333)
    margin.norm_mean.fill_(20.0)
    margin.norm_std.fill_(5.0)
    margin.eval()
    cosine_B, norms_B = cosines(40, 40, 40, 5), torch.tensor([20.0, 30.0, 0.01, 2.0])
    expected = []
    for cosine, norm in zip(cosine_B.tolist(), norms_B.tolist(), strict=True):
        z = max(-1.0, min(1.0, 0.333 * (norm - 20) / (5 + 1e-3)))
        angle = max(0.0, min(math.pi, math.acos(cosine) - 0.4 * z))
        expected.append(math.cos(angle) - 0.4 * (1 + z))
    torch.testing.assert_close(
        margin(cosine_B, norms_B), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7
    )


def test_adaface_averages_in_training_only_and_saves_its_figures():
    margin = AdaFace(averaging=0.5)
    norms_B = torch.tensor([10.0, 14.0])
    margin(cosines(40, 50), norms_B)
    assert margin.norm_mean.item() == pytest.approx(0.5 * 20 + 0.5 * 12)
    assert margin.norm_std.item() == pytest.approx(0.5 * 100 + 0.5 * math.sqrt(8))
    margin(cosines(40), norms_B[:1])  # one sample has no deviation
    assert margin.norm_std.item() == pytest.approx(0.5 * 100 + 0.5 * math.sqrt(8))

    copy = AdaFace()
    copy.load_state_dict(margin.state_dict())
    assert torch.equal(copy.eval()(cosines(40, 50), norms_B), margin.eval()(cosines(40, 50), norms_B))
    assert copy.norm_mean == margin.norm_mean


def test_half_precision_cosines_come_back_in_float32():
    for margin in (Margin(), ArcFace(), CosFace(), AdaFace()):
        assert margin(cosines(40, 50).bfloat16(), torch.ones(2)).dtype == torch.float32


def test_meta_device():
    assert ArcFace()(torch.empty(3, device="meta")).shape == (3,)
    assert AdaFace().to("meta")(torch.empty(3, device="meta"), torch.empty(3, device="meta")).shape == (3,)


def test_errors_name_the_value():
    with pytest.raises(UserError, match=r"margin gradient is 'straight'.*did you mean 'straight_through'"):
        ArcFace(gradient="straight")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="scale is 0"):
        ArcFace(scale=0)
    with pytest.raises(UserError, match=r"m2 is 28.6.*radians"):
        ArcFace(margin=28.6)
    with pytest.raises(ValueError, match="AdaFace needs norms_B"):
        AdaFace()(cosines(40))
