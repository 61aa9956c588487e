"""DCP against a loop over an ordered dictionary, its hardest rows against a sort, and both at the edges."""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from attfc.errors import UserError
from attfc.heads import DCP
from attfc.losses import AdaFace, ArcFace, CosFace, Margin
from attfc.losses.hardest import hardest_rows

SIZE, SLOTS, SCALE = 6, 12, 10.0
Pool = OrderedDict[int, tuple[Tensor, Tensor]]  # identity -> newest, previous; the one that came the longest ago first


def batch(seed: int, count: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, SIZE, generator=draw).requires_grad_(),
        torch.randint(0, 20, (count,), generator=draw),
        3 * torch.randn(count, 1, SIZE, generator=draw),
    )


def enter(pool: Pool, labels: list[int], keys: list[Tensor], slots: int) -> None:
    """Let keys of unit length into the pool, one identity after the other."""
    last = sorted(set(labels), key=lambda label: len(labels) - labels[::-1].index(label))
    for label in last:
        if label in pool:
            pool.move_to_end(label)
    for label in last:
        own = [key for other, key in zip(labels, keys, strict=True) if other == label]
        newest = normalize(torch.stack(own).sum(0), dim=0)
        if label not in pool and len(pool) == slots:
            pool.popitem(last=False)
        pool[label] = (newest, pool[label][0] if label in pool else newest)
    for label in last:
        pool.move_to_end(label)


def slow_loss(
    pool: Pool,
    queries: list[Tensor],
    labels: list[int],
    phi: Callable[[Tensor], Tensor],
    threshold: float | None,
    filtering: str,
) -> Tensor:
    """The loss of dcp.py's first lines at h = 3, hardest_weight = 0.7."""
    total = torch.zeros((), dtype=torch.float64)
    for slot in (0, 1):
        softmaxes, pushes = [], []
        for query, label in zip(queries, labels, strict=True):
            cosines = [query @ rows[slot] for other, rows in pool.items() if other != label]
            kept = [cosine for cosine in cosines if threshold is None or cosine <= threshold]
            if label in pool:
                positive = SCALE * phi(query @ pool[label][slot])
                zeros = [torch.zeros_like(positive)] * (len(cosines) - len(kept)) if filtering == "zero" else []
                logits = [positive, *[SCALE * cosine for cosine in kept], *zeros]
                softmaxes.append(torch.logsumexp(torch.stack(logits), 0) - positive)
            else:
                hardest = sorted(kept, key=lambda cosine: float(cosine.detach()), reverse=True)[:3]
                pushes.append(sum((cosine.clamp_min(0) for cosine in hardest), torch.zeros_like(total)) / 3)
        total = total + (torch.stack(softmaxes).mean() if softmaxes else 0.0)
        total = total + 0.7 * (torch.stack(pushes).mean() if pushes else 0.0)
    return total / 2


MARGINS: dict[str, tuple[Margin, Callable[[Tensor], Tensor]]] = {
    "cosface": (CosFace(scale=SCALE, margin=0.2), lambda cosine: cosine - 0.2),
    "arcface": (ArcFace(scale=SCALE, margin=0.3, beyond_pi="wrap"), lambda cosine: torch.cos(torch.acos(cosine) + 0.3)),
}


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize(("threshold", "filtering"), [(None, "drop"), (0.3, "drop"), (0.3, "zero")])
@pytest.mark.parametrize("enter_first", [0.0, 0.5, 1.0])
def test_dcp_equals_a_loop_over_an_ordered_dictionary(
    margin: str, threshold: float | None, filtering: Any, enter_first: float
) -> None:
    adjust, phi = MARGINS[margin]
    head = DCP(
        SIZE, adjust, count=SLOTS, enter_first=enter_first, hardest_weight=0.7, filter_above=threshold,
        filtering=filtering,
    )  # fmt: skip
    pool: Pool = OrderedDict()
    shares = []
    for step in range(12):
        embeddings, labels, keys = batch(step)
        slow = embeddings.detach().double().requires_grad_()
        unit_keys = list(normalize(keys[:, 0].double()))
        first = {0.0: 0, 0.5: 3, 1.0: 5}[enter_first]
        enter(pool, labels.tolist()[:first], unit_keys[:first], SLOTS)
        expected = slow_loss(pool, list(normalize(slow)), labels.tolist(), phi, threshold, filtering)
        shares.append(sum(label in pool for label in labels.tolist()) / 5)
        enter(pool, labels.tolist()[first:], unit_keys[first:], SLOTS)

        loss = head(embeddings, labels, keys)
        torch.testing.assert_close(loss.double(), expected, rtol=2e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(loss, embeddings)
        if expected.requires_grad:
            (expected_gradient,) = torch.autograd.grad(expected, slow, allow_unused=True)
            torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=2e-6)
        assert head.statistics()["present_share"] == pytest.approx(shares[-1])
    assert len(set(shares)) > 1 or enter_first == 1.0  # both losses took part


def test_an_absent_sample_pushes_away_what_is_near_and_nothing_else() -> None:
    head = DCP(2, CosFace(scale=SCALE), count=8, enter_first=0.0)
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    head(rows, torch.tensor([1, 2]), rows.unsqueeze(1))
    sixty = torch.tensor([[0.5, math.sqrt(0.75)]]).requires_grad_()
    loss = head.eval()(sixty, torch.tensor([9]), torch.ones(1, 1, 2))
    assert loss.item() == pytest.approx(
        0.5 / 3
    )  # one of the three hardest at 60 degrees; the others are behind or empty
    (gradient,) = torch.autograd.grad(loss, sixty)
    torch.testing.assert_close(gradient, torch.tensor([[0.75, -math.sqrt(0.1875)]]) / 3)  # (w - cos q) / 3
    assert head.statistics()["present_share"] == 0.0


numbered_batches = st.integers(2, 9).flatmap(
    lambda slots: st.tuples(
        st.just(slots),
        st.sampled_from([0.0, 0.5, 1.0]),
        st.lists(st.lists(st.integers(0, 14), min_size=1, max_size=slots), min_size=1, max_size=10),
    )
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(numbered_batches)
def test_the_pool_is_a_least_recently_used_dictionary_of_pairs(case: tuple[int, float, list[list[int]]]) -> None:
    slots, enter_first, batches = case
    head = DCP(4, CosFace(scale=SCALE), count=slots, enter_first=enter_first)
    pool: Pool = OrderedDict()
    draw = torch.Generator().manual_seed(0)
    for labels in batches:
        keys = normalize(torch.randn(len(labels), 4, generator=draw), dim=1)
        head(keys, torch.tensor(labels), keys.unsqueeze(1))
        first = -(-len(labels) // 2) if enter_first == 0.5 else int(enter_first) * len(labels)
        enter(pool, labels[:first], list(keys[:first]), slots)
        enter(pool, labels[first:], list(keys[first:]), slots)
        assert torch.equal(head.newest.labels, head.previous.labels)
        assert torch.equal(head.newest.stamps, head.previous.stamps)
        found, newest = head.newest.lookup(torch.arange(16))
        found_too, previous = head.previous.lookup(torch.arange(16))
        assert found.nonzero().flatten().tolist() == found_too.nonzero().flatten().tolist() == sorted(pool)
        for label, rows in pool.items():
            torch.testing.assert_close(newest[label], rows[0], atol=1e-6, rtol=0)
            torch.testing.assert_close(previous[label], rows[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_storage_types_keep_the_previous_rows_as_they_were_and_the_loss_near(dtype: Any) -> None:
    exact, head = (DCP(SIZE, CosFace(scale=SCALE), count=SLOTS, dtype=kind) for kind in ("float32", dtype))
    for step in range(8):
        embeddings, labels, keys = batch(step)
        before, rows = head.newest.lookup(labels)
        torch.testing.assert_close(head(embeddings, labels, keys), exact(embeddings, labels, keys), atol=0.05, rtol=0)
        _, moved = head.previous.lookup(labels)
        alone = before & ((labels[:, None] == labels).sum(1) == 1)
        # Stored before and once in the batch: what was its newest row is its previous one, rounded no second time.
        torch.testing.assert_close(moved[alone], rows[alone], atol=1e-6 if dtype == "int8" else 0, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_save_in_between_changes_nothing(dtype: Any) -> None:
    whole, cut, resumed = (DCP(SIZE, AdaFace(scale=SCALE), count=SLOTS, dtype=dtype) for _ in range(3))
    losses = [whole(*batch(step)) for step in range(9)]
    for step in range(5):
        cut(*batch(step))
    resumed.load_state_dict(copy.deepcopy(cut.state_dict()))
    assert [torch.equal(resumed(*batch(step)), losses[step]) for step in range(5, 9)] == [True] * 4
    assert resumed.statistics() == whole.statistics()
    with pytest.raises(UserError, match="the checkpoint's container has 12 slots of 6 numbers, this one 13 of 6"):
        DCP(SIZE, AdaFace(scale=SCALE), count=SLOTS + 1, dtype=dtype).load_state_dict(cut.state_dict())


def test_a_margin_with_figures_of_the_batch_sees_each_sample_once() -> None:
    margin, alone = AdaFace(scale=SCALE, averaging=0.5), AdaFace(scale=SCALE, averaging=0.5)
    embeddings, labels, keys = batch(0)
    DCP(SIZE, margin, count=SLOTS)(embeddings, labels, keys)
    alone(torch.zeros(5), embeddings.norm(dim=1))
    torch.testing.assert_close([margin.norm_mean, margin.norm_std], [alone.norm_mean, alone.norm_std])


def test_evaluation_leaves_the_pool_alone_and_random_rows_push_from_the_start() -> None:
    head = DCP(SIZE, CosFace(scale=SCALE), count=SLOTS, initial="random").eval()
    before = copy.deepcopy(head.state_dict())
    assert head(*batch(0)).item() > 0.0
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    assert DCP(SIZE, CosFace(scale=SCALE), count=SLOTS).eval()(*batch(0)).item() == 0.0  # empty: nobody to push


def test_statistics_and_the_number_of_hardest_slots() -> None:
    head = DCP(SIZE, CosFace(scale=SCALE), count=200, enter_first=1.0)
    for step in range(3):
        head(*batch(step))
    figures = head.statistics()
    assert figures["present_share"] == 1.0
    assert figures["hardest_cosine"] == 0.0
    assert figures["fill"] == len({int(label) for step in range(3) for label in batch(step)[1]}) / 200
    assert 0.0 < figures["center_age"] < 2.0
    assert [DCP(1, CosFace(), count=slots).hardest for slots in (10, 20_000, 30_000, 1_000_000)] == [3, 4, 6, 10]


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_runs_on_the_meta_device(dtype: Any) -> None:
    with torch.device("meta"):
        head = DCP(SIZE, CosFace(scale=SCALE), count=SLOTS, dtype=dtype)
        for _ in range(2):
            embeddings = torch.zeros(5, SIZE, requires_grad=True)
            loss = head(embeddings, torch.zeros(5, dtype=torch.int64), torch.zeros(5, 1, SIZE))
    loss.backward()
    assert (loss.shape, loss.device.type, embeddings.grad is not None) == ((), "meta", True)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: DCP(4, CosFace(), count=8, enter_first=1.5),
            "DCP: enter_first is 1.5, and must be at least 0 and at most 1: share of the batch",
        ),
        (
            lambda: DCP(4, CosFace(), count=8, hardest_weight=-1),
            "DCP: hardest_weight is -1, and must be at least 0 and below inf: weight of the loss",
        ),
        (
            lambda: DCP(SIZE, CosFace(), count=4)(*batch(0)),
            r"container has 4 slots, which is smaller than the batch \(5\)",
        ),
        (
            lambda: DCP(SIZE, CosFace(), count=8)(*batch(0)[:2]),
            r"DCP got keys of shape None: it takes one key per query, shape \(5, 1, 6\)",
        ),
        (
            lambda: DCP(SIZE, CosFace(), count=8)(*batch(0)[:2], torch.ones(5, 2, SIZE)),
            r"DCP got keys of shape \(5, 2, 6\)",
        ),
        (
            lambda: hardest_rows(torch.ones(1, 2), torch.ones(3, 2), torch.arange(3), torch.tensor([0]), 0),
            "count is 0: at least 1",
        ),
        (
            lambda: hardest_rows(torch.ones(1, 2), torch.ones(3, 2).char(), torch.arange(3), torch.tensor([0]), 1),
            "rows_CD is int8 without row_scales_C",
        ),
    ],
)
def test_faults_are_named(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("threshold", [None, 0.1])
@pytest.mark.parametrize("rows", [0, 2, 16, 150])
def test_hardest_rows_are_those_of_a_sort(kind: torch.dtype, threshold: float | None, rows: int) -> None:
    draw = torch.Generator().manual_seed(rows)
    queries = normalize(torch.randn(7, 16, generator=draw, dtype=torch.float64), dim=1)
    stored = normalize(torch.randn(rows, 16, generator=draw, dtype=torch.float64), dim=1)
    scales = None
    if kind == torch.int8:
        scales = (stored.abs().amax(1) / 127).float()
        stored = (stored / scales[:, None]).round()
    stored = stored.to(kind)
    labels, row_labels = torch.arange(7), torch.randint(-1, 12, (rows,), generator=draw)
    if kind != torch.float64:
        queries = queries.float()
    cosines, numbers = hardest_rows(
        queries, stored, row_labels, labels, 4, row_scales_C=scales, filtering_threshold=threshold, block_mib=1e-6
    )  # blocks of 16 rows
    assert cosines.dtype == queries.dtype
    for query, label, found, places in zip(queries, labels.tolist(), cosines, numbers, strict=True):
        exact = (stored.double() * (1.0 if scales is None else scales.double()[:, None])) @ query.double()
        left = [
            row
            for row in exact.argsort(descending=True).tolist()
            if row_labels[row] not in (-1, label) and (threshold is None or exact[row] <= threshold)
        ][:4]
        assert places.tolist() == left + [0] * (4 - len(left))
        torch.testing.assert_close(found[: len(left)].double(), exact[left], atol=1e-6, rtol=0)
        assert found[len(left) :].tolist() == [-math.inf] * (4 - len(left))
