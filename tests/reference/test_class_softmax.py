"""class_softmax against dense autograd: all B x N logits in float64, cross entropy, gradients to queries and weight."""

import math
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from attfc.errors import UserError
from attfc.losses import AdaFace, ArcFace, CombinedMargin, CosFace, Margin, class_softmax, container_softmax

MODULE = sys.modules["attfc.losses.class_softmax"]  # the package has a function of this name


@pytest.fixture(params=["logits kept", "logits made again"], autouse=True)
def ways(request, monkeypatch):
    if request.param == "logits made again":
        monkeypatch.setattr(MODULE, "KEPT_MIB", 0)


def dense(query_BD, weight_ND, labels_B, margin, norms_B=None, threshold=None, filtering="drop", subcenters=1):
    query_BD, weight_ND = query_BD.detach().double().requires_grad_(), weight_ND.detach().double().requires_grad_()
    cosine_BN = (query_BD @ normalize(weight_ND).T).view(len(query_BD), -1, subcenters).amax(dim=2)
    own_BN = torch.nn.functional.one_hot(labels_B, cosine_BN.shape[1]).bool()
    logits_BN = cosine_BN
    if threshold is not None:
        noisy_BN = (cosine_BN > threshold) & ~own_BN
        logits_BN = logits_BN.masked_fill(noisy_BN, 0.0 if filtering == "zero" else -math.inf)
    adjusted_B = margin(cosine_BN[own_BN], norms_B)
    logits_BN = torch.where(own_BN, adjusted_B[:, None], logits_BN)
    loss_B = cross_entropy(margin.scale * logits_BN, labels_B, reduction="none")
    return loss_B.detach(), *torch.autograd.grad(loss_B.mean(), (query_BD, weight_ND))


def streamed(query_BD, weight_ND, labels_B, margin, **options):
    query_BD, weight_ND = query_BD.detach().clone().requires_grad_(), weight_ND.detach().clone().requires_grad_()
    loss_B = class_softmax(query_BD, weight_ND, labels_B, margin, **options)
    return loss_B.detach(), *torch.autograd.grad(loss_B.mean(), (query_BD, weight_ND))


def relative_error(mine: torch.Tensor, reference: torch.Tensor) -> float:
    return ((mine.double() - reference).norm() / reference.norm()).item()


def case(B=24, D=64, N=900):
    draw = torch.Generator().manual_seed(0)
    weight_ND = torch.randn(N, D, generator=draw) * torch.empty(N, 1).uniform_(0.01, 3.0, generator=draw)
    labels_B = torch.randint(0, N, (B,), generator=draw)
    labels_B[1] = labels_B[0]  # two samples of one class
    query_BD = normalize(0.5 * normalize(weight_ND[labels_B]) + torch.randn(B, D, generator=draw) / math.sqrt(D))
    return query_BD, weight_ND, labels_B


MARGINS = [
    Margin(),
    ArcFace(),
    ArcFace(gradient="straight_through"),
    CosFace(),
    CombinedMargin(m1=1.1, m2=0.3, m3=0.1),
    AdaFace().eval(),
]


@pytest.mark.parametrize("margin", MARGINS, ids=str)
@pytest.mark.parametrize("block_mib", [0.05, 32.0])
def test_loss_and_gradients_against_dense(margin, block_mib):
    query_BD, weight_ND, labels_B = case()
    norms_B = torch.linspace(1, 80, 24)
    expected = dense(query_BD, weight_ND, labels_B, margin, norms_B)
    mine = streamed(query_BD, weight_ND, labels_B, margin, norms_B=norms_B, block_mib=block_mib)
    assert [relative_error(m, e) <= 1e-5 for m, e in zip(mine, expected, strict=True)] == [True] * 3


@pytest.mark.parametrize("filtering", ["drop", "zero"])
def test_interclass_filtering(filtering):
    query_BD, weight_ND, labels_B = case()
    expected = dense(query_BD, weight_ND, labels_B, ArcFace(), None, 0.25, filtering)
    mine = streamed(
        query_BD.double(),
        weight_ND.double(),
        labels_B,
        ArcFace(),
        filtering_threshold=0.25,
        filtering=filtering,
        block_mib=0.1,
    )
    assert [relative_error(m, e) <= 1e-12 for m, e in zip(mine, expected, strict=True)] == [True] * 3
    assert relative_error(mine[0], dense(query_BD, weight_ND, labels_B, ArcFace())[0]) > 1e-3


@pytest.mark.parametrize("margin", [ArcFace(scale=8.0), AdaFace(scale=8.0).eval()], ids=str)
def test_gradient_check_in_float64(margin):
    query_BD, weight_ND, labels_B = case(B=3, D=3, N=18)
    norms_B = torch.linspace(1, 80, 3)
    weight_ND = weight_ND.double().requires_grad_()

    def loss(raw_BD, weight):
        return class_softmax(normalize(raw_BD), weight, labels_B % 18, margin, norms_B=norms_B, block_mib=0.001)

    assert torch.autograd.gradcheck(loss, (query_BD.double().requires_grad_(), weight_ND))


@pytest.mark.parametrize("filtering", [None, "drop", "zero"])
@pytest.mark.parametrize("block_mib", [0.05, 32.0])
def test_of_several_rows_of_a_class_the_nearest_counts(block_mib, filtering):
    query_BD, weight_ND, labels_B = case()
    labels_B, threshold = labels_B // 3, None if filtering is None else 0.25
    expected = dense(query_BD, weight_ND, labels_B, ArcFace(), None, threshold, filtering, subcenters=3)
    options = {} if filtering is None else {"filtering_threshold": threshold, "filtering": filtering}
    mine = streamed(
        query_BD.double(), weight_ND.double(), labels_B, ArcFace(), subcenters=3, block_mib=block_mib, **options
    )
    assert [relative_error(m, e) <= 1e-12 for m, e in zip(mine, expected, strict=True)] == [True] * 3
    with pytest.raises(UserError, match="is outside 0 to 299: weight_ND has 900 rows, 3 per class"):
        class_softmax(query_BD, weight_ND, labels_B + 300, ArcFace(), subcenters=3)


def test_gradient_to_a_row_is_tangent_to_it():
    query_BD, weight_ND, labels_B = case()
    _, _, gradient_ND = streamed(query_BD.double(), weight_ND.double(), labels_B, ArcFace())
    radial_N = (gradient_ND * normalize(weight_ND.double())).sum(1).abs()
    assert (radial_N <= 1e-12 * gradient_ND.norm(dim=1) + 1e-15).all()


def test_one_class_and_a_row_of_zeros_stay_finite():
    query_BD, weight_ND, labels_B = case()
    loss_B, *gradients = streamed(query_BD, weight_ND[:1], torch.zeros_like(labels_B), ArcFace())
    assert torch.equal(loss_B, torch.zeros(24))
    assert all(gradient.abs().max() == 0 for gradient in gradients)
    weight_ND[5] = 0.0
    for result in streamed(query_BD, weight_ND, labels_B, ArcFace()):
        assert result.isfinite().all()


def test_adaface_moves_its_figures_once_a_step():
    margin, once = AdaFace(averaging=0.5), AdaFace(averaging=0.5)
    query_BD, weight_ND, labels_B = case()
    norms_B = torch.linspace(1, 80, 24)
    streamed(query_BD, weight_ND, labels_B, margin, norms_B=norms_B)
    once(torch.zeros(24), norms_B)
    assert margin.norm_mean == once.norm_mean


def test_only_the_gradients_asked_for():
    query_BD, weight_ND, labels_B = case()
    both = streamed(query_BD, weight_ND, labels_B, ArcFace())
    leaf = weight_ND.clone().requires_grad_()
    class_softmax(query_BD, leaf, labels_B, ArcFace()).mean().backward()
    assert torch.equal(leaf.grad, both[2])
    leaf = query_BD.clone().requires_grad_()
    class_softmax(leaf, weight_ND, labels_B, ArcFace()).mean().backward()
    assert torch.equal(leaf.grad, both[1])


def test_autocast_bfloat16_weight_and_meta():
    query_BD, weight_ND, labels_B = case(D=128)
    plain = streamed(query_BD, weight_ND, labels_B, ArcFace())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = streamed(query_BD, weight_ND, labels_B, ArcFace())
    assert all(torch.equal(one, other) for one, other in zip(plain, inside, strict=True))

    narrow_ND = weight_ND.bfloat16()
    expected = dense(query_BD, narrow_ND, labels_B, ArcFace())
    mine = streamed(query_BD, narrow_ND, labels_B, ArcFace())
    assert relative_error(mine[0], expected[0]) < 1e-5  # computed in float32 whatever the storage
    assert mine[2].dtype == torch.bfloat16

    weight_ND = torch.empty(90_000, 128, device="meta", requires_grad=True)
    loss_B = class_softmax(
        torch.empty(4, 128, device="meta"), weight_ND, torch.empty(4, device="meta", dtype=torch.int64), ArcFace()
    )
    loss_B.sum().backward()
    assert weight_ND.grad.shape == weight_ND.shape


def test_logits_are_kept_where_they_fit_and_let_go_after_backward(monkeypatch):
    query_BD, weight_ND, labels_B = case()
    for kept_mib, expected in ((1, True), (0, False)):
        monkeypatch.setattr(MODULE, "KEPT_MIB", kept_mib)
        weight = weight_ND.clone().requires_grad_()
        loss = class_softmax(query_BD, weight, labels_B, CosFace()).mean()
        node = loss.grad_fn.next_functions[0][0]
        kept = [saved for saved in node.saved_tensors if saved is not None and saved.shape == (24, 900)]
        assert bool(kept) == expected
        loss.backward(retain_graph=True)
        once = weight.grad.clone()
        loss.backward()
        torch.testing.assert_close(weight.grad, 2 * once)  # backward leaves what it uses as it was
        with pytest.raises(RuntimeError, match="freed"):
            node.saved_tensors  # noqa: B018


def test_a_batch_without_queries_is_refused():
    query_BD, weight_ND, labels_B = case()
    message = r"query_BD is empty, \(0, 64\): a loss needs at least 1 query"
    with pytest.raises(UserError, match=message):
        class_softmax(query_BD[:0], weight_ND, labels_B[:0], CosFace())
    with pytest.raises(UserError, match=message):
        container_softmax(query_BD[:0], torch.zeros(0), weight_ND, torch.arange(900), labels_B[:0], 16.0)


@pytest.mark.parametrize("block_mib", [0.05, 32.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_some_rows_of_a_weight_are_a_weight_of_their_own_and_its_gradient_is_sparse(block_mib, dtype):
    query_BD, weight_ND, labels_B = case()
    weight_ND = weight_ND.to(dtype)
    drawn_S = torch.cat([torch.arange(0, 900, 7), labels_B]).unique()
    places_B = torch.searchsorted(drawn_S, labels_B)
    options = {"block_mib": block_mib, "filtering_threshold": 0.3}
    query, weight = query_BD.clone().requires_grad_(), weight_ND.clone().requires_grad_()
    loss_B = class_softmax(query, weight, places_B, ArcFace(), rows_N=drawn_S, **options)
    loss_B.mean().backward()
    expected = streamed(query_BD, weight_ND[drawn_S], places_B, ArcFace(), **options)
    assert weight.grad.is_sparse
    assert torch.equal(weight.grad._indices()[0], drawn_S)
    for found, wanted in zip((loss_B.detach(), query.grad, weight.grad._values()), expected, strict=True):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)
    with pytest.raises(UserError, match=f"weight_ND has {len(drawn_S)} rows, one per class"):
        class_softmax(query_BD, weight_ND, labels_B + 900, ArcFace(), rows_N=drawn_S)
