"""container_softmax against the formulation everybody writes: all logits in float64, masks, cross entropy, autograd."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from attfc.errors import UserError
from attfc.losses import ArcFace, NegativeSum, container_softmax, stream_negatives


def dense(query_BD, positive_B, rows_CD, row_labels_C, labels_B, scale, threshold=None, filtering="drop"):
    """Losses, gradient to the query, gradient to the positive, float64."""
    query_BD = query_BD.detach().double().requires_grad_()
    positive_B = positive_B.detach().double().requires_grad_()
    cosine_BC = query_BD @ rows_CD.double().T
    if threshold is not None:
        noisy_BC = cosine_BC > threshold
        cosine_BC = cosine_BC.masked_fill(noisy_BC, 0.0 if filtering == "zero" else -math.inf)
    left_out_BC = (row_labels_C == labels_B[:, None]) | (row_labels_C == -1)
    logits = scale * torch.cat([positive_B[:, None], cosine_BC.masked_fill(left_out_BC, -math.inf)], 1)
    loss_B = cross_entropy(logits, torch.zeros(len(query_BD), dtype=torch.int64), reduction="none")
    return loss_B.detach(), *torch.autograd.grad(loss_B.sum(), (query_BD, positive_B))


def streamed(query_BD, positive_B, *arguments, **options):
    query_BD, positive_B = query_BD.detach().clone().requires_grad_(), positive_B.detach().clone().requires_grad_()
    loss_B = container_softmax(query_BD, positive_B, *arguments, **options)
    return loss_B.detach(), *torch.autograd.grad(loss_B.sum(), (query_BD, positive_B))


def relative_error(mine: torch.Tensor, reference: torch.Tensor) -> float:
    return ((mine.double() - reference).norm() / reference.norm()).item()


def case(B=24, D=512, C=3000, identities=400, pull=0.0, seed=0):
    """Unit rows; the first of other identities is drawn towards the queries by `pull`, so that single rows can dominate."""
    draw = torch.Generator().manual_seed(seed)
    query_BD = normalize(torch.randn(B, D, generator=draw))
    rows_CD = normalize(torch.randn(C, D, generator=draw))
    spots_B = torch.randperm(C, generator=draw)[:B]
    rows_CD[spots_B] = normalize(rows_CD[spots_B] + pull * query_BD)
    row_labels_C = torch.randint(0, identities, (C,), generator=draw)
    row_labels_C[torch.randperm(C, generator=draw)[: C // 10]] = -1
    labels_B = torch.randint(0, identities, (B,), generator=draw)
    positive_B = torch.empty(B).uniform_(-0.2, 0.9, generator=draw)
    return query_BD, positive_B, rows_CD, row_labels_C, labels_B


def quantized(rows_CD):
    row_scales_C = rows_CD.abs().amax(1) / 127
    return (rows_CD / row_scales_C[:, None]).round().to(torch.int8), row_scales_C


@pytest.mark.parametrize("pull", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("block_mib", [0.2, 1.0, 32.0])
@pytest.mark.parametrize(("kind", "bound"), [("float32", 1e-5), ("bfloat16", 2e-2), ("int8", 2e-2)])
def test_loss_and_gradients_against_dense(kind, bound, block_mib, pull):
    query_BD, positive_B, rows_CD, row_labels_C, labels_B = case(pull=pull)
    stored_CD, row_scales_C = rows_CD, None
    if kind == "bfloat16":
        stored_CD = rows_CD.bfloat16()
        rows_CD = stored_CD.double()
    if kind == "int8":
        stored_CD, row_scales_C = quantized(rows_CD)
        rows_CD = stored_CD.double() * row_scales_C.double()[:, None]
    expected = dense(query_BD, positive_B, rows_CD, row_labels_C, labels_B, 64.0)
    mine = streamed(
        query_BD, positive_B, stored_CD, row_labels_C, labels_B, 64.0, row_scales_C=row_scales_C, block_mib=block_mib
    )
    assert [relative_error(m, e) <= bound for m, e in zip(mine, expected, strict=True)] == [True] * 3
    assert mine[0].dtype == torch.float32


def test_every_single_loss_is_accurate_where_a_late_row_dominates_in_bfloat16():
    # cosine 0.95 in the last row, all else near 0: a logit of 61, which bfloat16 knows to 0.125
    query_BD, _, rows_CD, row_labels_C, labels_B = case(B=8)
    row_labels_C[-8:] = 10_000
    rows_CD[-8:] = normalize(query_BD + 0.33 * normalize(rows_CD[-8:]))
    positive_B = torch.full((8,), 0.9)
    rows_CD = rows_CD.bfloat16()
    expected = dense(query_BD, positive_B, rows_CD, row_labels_C, labels_B, 64.0)
    mine = streamed(query_BD, positive_B, rows_CD, row_labels_C, labels_B, 64.0, block_mib=0.2)
    assert ((mine[0] - expected[0]).abs() <= 2e-2 * expected[0]).all()
    assert ((mine[1] - expected[1]).norm(dim=1) <= 2e-2 * expected[1].norm(dim=1)).all()


def test_tiny_losses_keep_their_relative_accuracy():
    query_BD, _, rows_CD, row_labels_C, labels_B = case()
    positive_B = torch.full((24,), 0.95)  # loss about exp(-50)
    expected = dense(query_BD, positive_B, rows_CD, row_labels_C, labels_B, 64.0)
    distance_B = (
        torch.logsumexp(
            (64.0 * query_BD.double() @ rows_CD.double().T).masked_fill(
                (row_labels_C == labels_B[:, None]) | (row_labels_C == -1), -math.inf
            ),
            1,
        )
        - 64.0 * positive_B.double()
    )
    mine = streamed(query_BD, positive_B, rows_CD, row_labels_C, labels_B, 64.0)
    assert distance_B.max() < -30
    torch.testing.assert_close(mine[0].double(), distance_B.exp().log1p(), rtol=5e-5, atol=0)
    assert relative_error(mine[1], expected[1]) < 5e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("filtering", ["drop", "zero"])
def test_interclass_filtering(filtering, dtype):
    query_BD, positive_B, rows_CD, row_labels_C, labels_B = case(D=128, pull=2.0)
    cosines = query_BD @ rows_CD.T
    threshold = 0.5
    assert (cosines > threshold).any()
    assert ((cosines - threshold).abs() > 2e-3).all()  # no row near enough for rounding to decide
    rows_CD = rows_CD.to(dtype)
    expected = dense(query_BD, positive_B, rows_CD, row_labels_C, labels_B, 64.0, threshold, filtering)
    unfiltered = dense(query_BD, positive_B, rows_CD, row_labels_C, labels_B, 64.0)
    mine = streamed(
        query_BD.to(torch.float64 if dtype == torch.float64 else torch.float32),
        positive_B,
        rows_CD,
        row_labels_C,
        labels_B,
        64.0,
        filtering_threshold=threshold,
        filtering=filtering,
        block_mib=0.5,
    )
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert relative_error(mine[0], expected[0]) < bound
    assert relative_error(mine[1], expected[1]) < bound
    assert relative_error(mine[0], unfiltered[0]) > 0.05


def test_gradient_check_in_float64_through_the_margin():
    query_BD, _, rows_CD, row_labels_C, labels_B = case(B=4, D=6, C=300, identities=8)
    own_BD = normalize(query_BD + 0.3 * rows_CD[:4]).double()
    margin = ArcFace(scale=16.0)

    def loss(raw_BD):
        unit_BD = normalize(raw_BD)
        positive_B = margin((unit_BD * own_BD).sum(1))
        extra = {"extra_rows_ED": own_BD, "extra_labels_E": labels_B}
        return container_softmax(
            unit_BD, positive_B, rows_CD.double(), row_labels_C, labels_B, 16.0, block_mib=0.01, **extra
        )

    assert torch.autograd.gradcheck(loss, (query_BD.double().requires_grad_(),))


@pytest.mark.parametrize("rows", [0, 1, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_empty_container_has_zero_loss_and_zero_gradient(rows, dtype):
    query_BD, positive_B, rows_CD, _, labels_B = case()
    loss_B, *gradients = streamed(
        query_BD, positive_B, rows_CD[:rows].to(dtype), torch.full((rows,), -1), labels_B, 64.0
    )
    assert torch.equal(loss_B, torch.zeros(24))
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_own_rows_is_as_good_as_empty(dtype):
    query_BD, positive_B, rows_CD, *_ = case()
    labels = torch.zeros(24, dtype=torch.int64)
    loss_B, gradient_BD, _ = streamed(
        query_BD, positive_B, rows_CD.to(dtype), torch.zeros(3000, dtype=torch.int64), labels, 64.0
    )
    assert torch.equal(loss_B, torch.zeros(24))
    assert torch.equal(gradient_BD, torch.zeros_like(gradient_BD))


@pytest.mark.parametrize("filled", [1, 300, 2999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_partially_filled_equals_the_filled_part_alone(filled, dtype):
    query_BD, positive_B, rows_CD, row_labels_C, labels_B = case(seed=filled)
    row_labels_C[filled:] = -1
    whole = streamed(query_BD, positive_B, rows_CD.to(dtype), row_labels_C, labels_B, 64.0, block_mib=1.0)
    part = dense(query_BD, positive_B, rows_CD[:filled].to(dtype), row_labels_C[:filled], labels_B, 64.0)
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    assert relative_error(whole[0], part[0]) <= bound
    assert relative_error(whole[1], part[1]) <= bound


def test_other_negative_labels_are_negatives_of_everybody():
    query_BD, positive_B, rows_CD, _, labels_B = case()
    strangers = container_softmax(query_BD, positive_B, rows_CD, torch.full((3000,), -2), labels_B, 64.0)
    expected = dense(query_BD, positive_B, rows_CD, torch.full((3000,), 10**12), labels_B, 64.0)
    assert relative_error(strangers, expected[0]) < 1e-5


def test_labels_beyond_the_precision_of_float32_stay_apart():
    query_BD, positive_B = torch.tensor([[1.0, 0.0]]), torch.tensor([1.0])
    near = torch.tensor([[1.0, 0.0]])
    own, other = torch.tensor([2**24 + 1]), torch.tensor([2**24])
    assert container_softmax(query_BD, positive_B, near, own, own, 64.0).item() == 0.0
    assert container_softmax(query_BD, positive_B, near, other, own, 64.0).item() == pytest.approx(math.log(2))


def test_extra_rows_are_rows():
    query_BD, positive_B, rows_CD, row_labels_C, labels_B = case()
    both = streamed(query_BD, positive_B, rows_CD, row_labels_C, labels_B, 64.0)
    parts = streamed(
        query_BD,
        positive_B,
        rows_CD[100:],
        row_labels_C[100:],
        labels_B,
        64.0,
        extra_rows_ED=rows_CD[:100],
        extra_labels_E=row_labels_C[:100],
    )
    for one, other in zip(both, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("threshold", "filtering"), [(None, "drop"), (0.1, "drop"), (0.1, "zero")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_extra_rows_get_their_gradient(dtype, threshold, filtering):
    query_BD, positive_B, rows_CD, row_labels_C, labels_B = case(D=16, C=60, identities=12)
    weights_B = torch.rand(24, generator=torch.Generator().manual_seed(1)).double()
    query_BD, positive_B, rows_CD = (tensor.to(dtype).requires_grad_() for tensor in (query_BD, positive_B, rows_CD))
    inputs = (query_BD, positive_B, rows_CD)
    options = {"filtering_threshold": threshold, "filtering": filtering}
    loss_B = container_softmax(
        query_BD,
        positive_B,
        rows_CD.detach()[20:],
        row_labels_C[20:],
        labels_B,
        16.0,
        extra_rows_ED=rows_CD[:20],
        extra_labels_E=row_labels_C[:20],
        **options,
    )
    mine = torch.autograd.grad((weights_B * loss_B).sum(), inputs)
    cosine_BC = query_BD.double() @ rows_CD.double().T
    if threshold is not None:
        cosine_BC = cosine_BC.masked_fill(cosine_BC > threshold, 0.0 if filtering == "zero" else -math.inf)
    left_out_BC = (row_labels_C == labels_B[:, None]) | (row_labels_C == -1)
    logits = 16.0 * torch.cat([positive_B.double()[:, None], cosine_BC.masked_fill(left_out_BC, -math.inf)], 1)
    reference_B = cross_entropy(logits, torch.zeros(24, dtype=torch.int64), reduction="none")
    expected = list(torch.autograd.grad((weights_B * reference_B).sum(), inputs))
    expected[2][20:] = 0.0  # the container's rows are given, whatever they ask for
    for one, other in zip(mine, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert mine[2][:20].abs().sum() > 0


def test_extra_rows_without_any_negative_get_no_gradient():
    query_BD, labels_B = normalize(torch.randn(3, 4, dtype=torch.float64)), torch.tensor([5, 5, 5])
    extra_BD = query_BD.clone().requires_grad_()
    no_rows = torch.empty(0, 4), torch.empty(0, dtype=torch.int64)
    loss_B = container_softmax(
        query_BD, torch.rand(3).double(), *no_rows, labels_B, 16.0, extra_rows_ED=extra_BD, extra_labels_E=labels_B
    )
    loss_B.sum().backward()
    assert torch.equal(extra_BD.grad, torch.zeros(3, 4, dtype=torch.float64))


def test_shards_merge_to_the_whole_in_any_order_and_with_empty_ones():
    query_BD, _, rows_CD, row_labels_C, labels_B = case()
    query_BD, rows_CD = query_BD.double(), rows_CD.double()
    whole = stream_negatives(query_BD, rows_CD, row_labels_C, labels_B, 64.0)
    cuts = [slice(0, 5), slice(5, 5), slice(5, 1700), slice(1700, 3000)]
    shards = [stream_negatives(query_BD, rows_CD[cut], row_labels_C[cut], labels_B, 64.0) for cut in cuts]
    for order in ([0, 1, 2, 3], [1, 3, 0, 2]):
        merged: NegativeSum = shards[order[0]]
        for i in order[1:]:
            merged = merged.merge(shards[i])
        torch.testing.assert_close(merged.log_sum_exp(), whole.log_sum_exp())
        torch.testing.assert_close(merged.mean_row(), whole.mean_row())


def test_rows_longer_than_one_are_safe():
    query_BD, positive_B, rows_CD, row_labels_C, labels_B = case(pull=3.0)
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        rows = (rows_CD * 5).to(dtype)  # logits to 300: exp would overflow without the running maximum
        expected = dense(query_BD, positive_B, rows, row_labels_C, labels_B, 64.0)
        mine = streamed(query_BD, positive_B, rows, row_labels_C, labels_B, 64.0)
        assert relative_error(mine[0], expected[0]) <= bound


def test_autocast_changes_nothing_and_half_queries_get_half_gradients():
    query_BD, positive_B, rows_CD, row_labels_C, labels_B = case()
    plain = streamed(query_BD, positive_B, rows_CD, row_labels_C, labels_B, 64.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = streamed(query_BD, positive_B, rows_CD, row_labels_C, labels_B, 64.0)
    assert all(torch.equal(one, other) for one, other in zip(plain, inside, strict=True))
    loss_B, gradient_BD, _ = streamed(query_BD.bfloat16(), positive_B, rows_CD, row_labels_C, labels_B, 64.0)
    assert loss_B.dtype == torch.float32
    assert gradient_BD.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_meta_device(dtype):
    if dtype != torch.float32 and torch.__version__ < (2, 10):
        pytest.skip("torch 2.9 has no products with out_dtype on the meta device")
    query_BD = torch.empty(4, 512, device="meta", requires_grad=True)
    rows_CD = torch.empty(9000, 512, device="meta", dtype=dtype)
    row_labels_C = torch.empty(9000, device="meta", dtype=torch.int64)
    loss_B = container_softmax(
        query_BD,
        torch.empty(4, device="meta"),
        rows_CD,
        row_labels_C,
        row_labels_C[:4],
        64.0,
        row_scales_C=torch.empty(9000, device="meta") if dtype == torch.int8 else None,
    )
    loss_B.sum().backward()
    assert loss_B.shape == (4,)
    assert query_BD.grad is not None
    assert query_BD.grad.shape == (4, 512)


def test_inputs_are_left_alone():
    arguments = case()
    copies = [argument.clone() for argument in arguments]
    streamed(*arguments, 64.0)
    assert all(torch.equal(one, other) for one, other in zip(arguments, copies, strict=True))


def test_errors_name_the_fix():
    query_BD, positive_B, rows_CD, row_labels_C, labels_B = case()
    with pytest.raises(UserError, match="int8 without row_scales_C"):
        container_softmax(query_BD, positive_B, rows_CD.to(torch.int8), row_labels_C, labels_B, 64.0)
    with pytest.raises(UserError, match="belong together"):
        container_softmax(query_BD, positive_B, rows_CD, row_labels_C, labels_B, 64.0, extra_rows_ED=rows_CD)
    with pytest.raises(UserError, match="filtering is 'keep'"):
        container_softmax(query_BD, positive_B, rows_CD, row_labels_C, labels_B, 64.0, filtering="keep")  # type: ignore[arg-type]
