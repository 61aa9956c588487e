"""Margins: make the target harder by moving the cosine of the positive, and of nothing else.

A margin is a function of B cosines: it costs nothing beside the softmax that follows. All are one formula,
phi(theta) = cos(m1 theta + m2) - m3: ArcFace (1801.07698, eq. 3) sets m2, CosFace (1801.09414, eq. 4) m3, SphereFace m1, and
AdaFace (2204.00964, eq. 11-12) an m2 and an m3 per sample from the length of its embedding.

Two choices are ours to name, because implementations differ:

- `gradient`: "exact" is the derivative of phi, m1 sin(m1 theta + m2) / sin(theta), finite at cosine = +-1. "straight_through" keeps
  the value and uses the derivative of the plain cosine, 1, as arcface_torch and the published AttFC code do.
- `beyond_pi`: cos(theta + m) turns upwards again once theta + m > pi. "linear" continues with cos(theta) - m sin(m), as
  the first ArcFace code did: monotone, derivative 1. "wrap" takes the cosine as it comes, as arcface_torch does.

Shapes: B samples.
"""

import math
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from attfc.config.option import Option
from attfc.errors import UserError, nearest

__all__ = ["AdaFace", "ArcFace", "CombinedMargin", "CosFace", "Margin"]

Gradient = Literal["exact", "straight_through"]
BeyondPi = Literal["linear", "wrap", "clip"]

Scale = Annotated[float, Option("factor of all cosines before the softmax; 32 suits a few thousand identities", gt=0)]
Size = Annotated[float, Option("size of the margin: radians for arcface, cosine for cosface and adaface")]
Derivative = Annotated[
    Gradient,
    Option("derivative of the margin: the exact one, or 1 everywhere (straight_through, as the published code)"),
]
Beyond = Annotated[
    Literal["linear", "wrap"],
    Option(
        "where angle and margin together exceed pi: continue in a straight line, or let the cosine turn back (wrap)"
    ),
]


class Margin(nn.Module):
    """A margin on the cosine of the positive; `scale` multiplies all logits, later and elsewhere.

    Call it with cosine_B (B,) and, for AdaFace, norms_B (B,), the lengths of the embeddings before normalization. It returns the
    adjusted cosine (B,), float32 (float64 for float64), not yet multiplied by `scale`. The base class adjusts nothing.
    """

    def __init__(self, scale: float = 64.0, *, gradient: Gradient = "exact") -> None:
        super().__init__()
        if not scale > 0:
            raise UserError(f"margin scale is {scale}, but it must be above 0: the usual value is 64")
        if gradient not in ("exact", "straight_through"):
            close = nearest(str(gradient), ["exact", "straight_through"])
            raise UserError(f"margin gradient is {gradient!r}, but it must be 'exact' or 'straight_through'{close}")
        self.scale = float(scale)
        self.gradient: Gradient = gradient

    def forward(self, cosine_B: Tensor, norms_B: Tensor | None = None) -> Tensor:
        """Return the adjusted cosine (B,) of the positives."""
        return _at_least_float32(cosine_B)

    def extra_repr(self) -> str:
        """Show what was chosen."""
        return f"scale={self.scale:g}, gradient={self.gradient!r}"


class CombinedMargin(Margin):
    """cos(m1 theta + m2) - m3.

    Args:
        scale: multiplies all logits.
        m1: factor on the angle (SphereFace); above 0, 1 leaves it out.
        m2: added to the angle (ArcFace), radians, 0 <= m2 < pi.
        m3: taken from the cosine (CosFace), cosine units.
        gradient: "exact" | "straight_through" (module docstring).
        beyond_pi: "linear" | "wrap": what follows where m1 theta + m2 > pi (module docstring). For m1 != 1 the linear piece is
            cos(theta) - max(e sin(e), 1 - cos(e)) - m3 with e = pi - (pi - m2) / m1, which is ArcFace's for m1 = 1.

    >>> adjusted = CombinedMargin(scale=64.0, m1=1.0, m2=math.pi / 6, m3=0.1)(torch.tensor([0.5]))  # cos(60 + 30 degrees) - 0.1
    >>> [round(value, 4) for value in adjusted.tolist()]
    [-0.1]
    """

    def __init__(
        self,
        scale: Scale = 64.0,
        m1: Annotated[float, Option("factor of the angle", gt=0)] = 1.0,
        m2: Annotated[float, Option("angle that is added", unit="radians")] = 0.5,
        m3: Annotated[float, Option("cosine that is subtracted", unit="cosine")] = 0.0,
        *,
        gradient: Derivative = "exact",
        beyond_pi: Beyond = "linear",
    ) -> None:
        super().__init__(scale, gradient=gradient)
        if not m1 > 0:
            raise UserError(f"margin m1 is {m1}, but it must be above 0: 1 leaves the angle as it is")
        if not 0 <= m2 < math.pi:
            raise UserError(f"margin m2 is {m2}, but it must lie in [0, pi): it is an angle in radians, usually 0.5")
        if beyond_pi not in ("linear", "wrap"):
            raise UserError(f"margin beyond_pi is {beyond_pi!r}, but it must be 'linear' or 'wrap'")
        self.m1, self.m2, self.m3 = float(m1), float(m2), float(m3)
        self.beyond_pi: BeyondPi = beyond_pi

    def forward(self, cosine_B: Tensor, norms_B: Tensor | None = None) -> Tensor:
        """Return cos(m1 theta + m2) - m3, (B,)."""
        if self.m1 == 1.0 and self.m2 == 0.0:
            return _at_least_float32(cosine_B) - self.m3
        return _apply(cosine_B, self.m1, self.m2, self.m3, self.beyond_pi, self.gradient)

    def extra_repr(self) -> str:
        """Show what was chosen."""
        return f"{super().extra_repr()}, m1={self.m1:g}, m2={self.m2:g}, m3={self.m3:g}, beyond_pi={self.beyond_pi!r}"


class ArcFace(CombinedMargin):
    """Additive angular margin: cos(theta + margin), margin in radians."""

    def __init__(
        self,
        scale: Scale = 64.0,
        margin: Size = 0.5,
        gradient: Derivative = "exact",
        *,
        beyond_pi: Beyond = "linear",
    ) -> None:
        super().__init__(scale, 1.0, margin, 0.0, gradient=gradient, beyond_pi=beyond_pi)


class CosFace(CombinedMargin):
    """Additive cosine margin: cos(theta) - margin, margin in cosine units; both gradient modes are the same."""

    def __init__(self, scale: Scale = 64.0, margin: Size = 0.4, gradient: Derivative = "exact") -> None:
        super().__init__(scale, 1.0, 0.0, margin, gradient=gradient)


class AdaFace(Margin):
    """Margin by image quality, with the length of the embedding as its measure.

    z = clip(h (norm - mean) / std, -1, 1);  phi = cos(clip(theta - margin z, 0, pi)) - margin (1 + z)

    Mean and std are running averages over the training batches, in the buffers `norm_mean` and `norm_std`, saved with the state.
    They start at 20 and 100 as in the authors' code and move in training mode only.

    Args:
        scale: multiplies all logits.
        margin: m of the paper, radians in the angle and cosine units beside it.
        h: concentration; 0.333 puts about 68 % of the samples between -0.333 and 0.333.
        averaging: share of the newest batch in the running averages, per step; 0.01 is the paper's momentum 0.99.
        gradient: "exact" | "straight_through" (module docstring).

    Source: AdaFace (arXiv 2204.00964), eq. 11-14. Differs: a batch of one moves the mean but not the std, which it does not have.
    """

    norm_mean: Tensor
    norm_std: Tensor

    def __init__(
        self,
        scale: Scale = 64.0,
        margin: Size = 0.4,
        h: Annotated[float, Option("how strongly the margin follows the embedding's length", gt=0)] = 0.333,
        *,
        averaging: float = 0.01,
        gradient: Derivative = "exact",
    ) -> None:
        super().__init__(scale, gradient=gradient)
        if not 0 <= averaging <= 1:
            raise UserError(f"AdaFace averaging is {averaging}, but it must lie in [0, 1]: the usual value is 0.01")
        self.margin, self.h, self.averaging = float(margin), float(h), float(averaging)
        self.register_buffer("norm_mean", torch.tensor(20.0))
        self.register_buffer("norm_std", torch.tensor(100.0))

    def forward(self, cosine_B: Tensor, norms_B: Tensor | None = None) -> Tensor:
        """Return the adjusted cosine (B,); in training mode, first take the batch's norms into the running figures."""
        if norms_B is None:
            raise ValueError("AdaFace needs norms_B, the lengths of the embeddings before normalization: got None")
        norms_B = norms_B.detach().to(self.norm_mean.dtype).clamp(0.001, 100.0)
        if self.training:
            self.norm_mean.lerp_(norms_B.mean(), self.averaging)
            if norms_B.numel() > 1:
                self.norm_std.lerp_(norms_B.std(), self.averaging)
        quality_B = (self.h * (norms_B - self.norm_mean) / (self.norm_std + 1e-3)).clamp(-1.0, 1.0)
        return _apply(cosine_B, 1.0, -self.margin * quality_B, self.margin * (1.0 + quality_B), "clip", self.gradient)

    def extra_repr(self) -> str:
        """Show what was chosen."""
        return f"{super().extra_repr()}, margin={self.margin:g}, h={self.h:g}, averaging={self.averaging:g}"


def _at_least_float32(cosine_B: Tensor) -> Tensor:
    return cosine_B if cosine_B.dtype == torch.float64 else cosine_B.float()


def _apply(
    cosine_B: Tensor, m1: float, m2: float | Tensor, m3: float | Tensor, beyond_pi: BeyondPi, gradient: Gradient
) -> Tensor:
    """Return phi with its derivative, formed together: that of acos and of cos(acos) is infinite at +-1, their product need not be."""
    cosine_B = _at_least_float32(cosine_B)
    with torch.no_grad():
        angle_B = cosine_B.clamp(-1.0, 1.0).acos()
        moved_B = m1 * angle_B + m2
        if beyond_pi == "clip":
            moved_B = moved_B.clamp(0.0, math.pi)
        adjusted_B = moved_B.cos()

        # A cosine in float32 is known to about its epsilon, so an angle near 0 or pi to about the root of it: closer, the
        # derivative of ArcFace (1 / sin(angle)) is noise. Towards the embedding it is multiplied by sin(angle) again.
        nearest_angle = math.sqrt(torch.finfo(cosine_B.dtype).eps)
        safe_angle_B = angle_B.clamp(nearest_angle, math.pi - nearest_angle)
        if gradient == "exact":
            slope_B = m1 * (m1 * safe_angle_B + m2).sin() / safe_angle_B.sin()
            if beyond_pi == "clip":
                slope_B = torch.where((moved_B > 0.0) & (moved_B < math.pi), slope_B, 0.0)
        else:
            slope_B = torch.ones_like(cosine_B)

        if beyond_pi == "linear" and isinstance(m2, float) and m1 * math.pi + m2 > math.pi:
            last_angle = (math.pi - m2) / m1
            gap = math.pi - last_angle
            beyond_B = angle_B > last_angle
            step = max(gap * math.sin(gap), 1.0 - math.cos(gap))
            adjusted_B = torch.where(beyond_B, cosine_B - step, adjusted_B)
            slope_B = torch.where(beyond_B, 1.0, slope_B)
        adjusted_B = adjusted_B - m3
    with_slope_B: Tensor = _WithSlope.apply(cosine_B, adjusted_B, slope_B)
    return with_slope_B


class _WithSlope(torch.autograd.Function):
    """Values, as a function of cosines with this derivative."""

    @staticmethod
    def forward(ctx: Any, cosine_B: Tensor, value_B: Tensor, slope_B: Tensor) -> Tensor:
        ctx.save_for_backward(slope_B)
        return value_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_B: Tensor) -> tuple[Tensor, None, None]:
        return gradient_B * ctx.saved_tensors[0], None, None
