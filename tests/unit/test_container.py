"""The container: what is kept, what is evicted, what a save preserves; each case small enough to check by eye."""

import copy

import pytest
import torch
from torch.nn.functional import normalize

from attfc.errors import UserError
from attfc.heads.banks.bank import EMPTY, last_occurrence, merge_centers
from attfc.heads.banks.label_index import LabelIndex
from attfc.heads.banks.recent import NOBODY, RecentCenters

POLICIES = ["fifo", "unique"]
DTYPES = ["float32", "bfloat16", "int8"]


def container_of(slots: int, size: int, **options: object) -> RecentCenters:
    return RecentCenters(count=slots, **options).bind(size, None)  # type: ignore[arg-type]


def unit_rows(*degrees: float) -> torch.Tensor:
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def labels(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def test_fifo_overwrites_the_oldest_rows_and_wraps_around() -> None:
    container = container_of(5, 2)
    container.enqueue(unit_rows(0, 10, 20), labels(0, 1, 2))
    container.enqueue(unit_rows(30, 40, 50), labels(3, 4, 5))
    assert container.labels.tolist() == [5, 1, 2, 3, 4]
    assert int(container.pointer) == 1
    assert int(container.fill) == 5
    assert torch.equal(container.rows, unit_rows(50, 10, 20, 30, 40))


def test_fifo_takes_a_batch_as_large_as_the_container_at_any_pointer() -> None:
    container = container_of(3, 2)
    container.enqueue(unit_rows(0, 1), labels(0, 1))
    container.enqueue(unit_rows(2, 3, 4), labels(2, 3, 4))
    assert container.labels.tolist() == [3, 4, 2]
    assert int(container.fill) == 3


def test_fifo_looks_up_the_most_recent_row_of_a_label_until_the_last_one_is_overwritten() -> None:
    container = container_of(4, 2)
    container.enqueue(unit_rows(0, 10, 20), labels(7, 8, 7))
    found, rows = container.lookup(labels(7, 8, 9))
    assert found.tolist() == [True, True, False]
    assert torch.equal(rows[:2], unit_rows(20, 10))
    assert rows[2].tolist() == [0, 0]
    container.enqueue(
        unit_rows(30, 40), labels(1, 2)
    )  # overwrites slots 3 and 0: the old row of 7 goes, the new one stays
    assert container.lookup(labels(7))[0].tolist() == [True]
    container.enqueue(unit_rows(50, 60), labels(3, 4))
    assert container.lookup(labels(7, 8))[0].tolist() == [False, False]


def test_unique_refreshes_in_place_and_evicts_the_least_recently_refreshed() -> None:
    container = container_of(3, 2, policy="unique")
    container.enqueue(unit_rows(0, 10, 20), labels(10, 11, 12))
    container.enqueue(unit_rows(5), labels(10))  # 10 keeps its slot; 11 is now the oldest
    assert container.labels.tolist() == [10, 11, 12]
    assert torch.equal(container.rows[0], unit_rows(5)[0])
    container.enqueue(unit_rows(30), labels(13))
    assert container.labels.tolist() == [10, 13, 12]
    container.enqueue(unit_rows(40), labels(14))
    assert container.labels.tolist() == [10, 13, 14]
    assert int(container.fill) == 3


def test_unique_never_evicts_an_identity_of_the_same_batch() -> None:
    container = container_of(3, 2, policy="unique")
    container.enqueue(unit_rows(0, 10, 20), labels(10, 11, 12))
    container.enqueue(unit_rows(30, 1), labels(13, 10))  # 10 is the oldest, but comes again in this batch
    assert container.labels.tolist() == [10, 13, 12]


def test_unique_stores_the_renormalized_mean_of_an_identity_seen_several_times_in_a_batch() -> None:
    container = container_of(4, 2, policy="unique")
    container.enqueue(unit_rows(0, 45, 90), labels(3, 4, 3))
    assert int(container.fill) == 2
    found, rows = container.lookup(labels(3, 4))
    assert found.all()
    torch.testing.assert_close(rows, unit_rows(45, 45), atol=1e-6, rtol=0)
    assert torch.equal(rows[1], unit_rows(45)[0])  # alone in the batch: bit for bit


def test_unique_orders_recency_within_a_batch_by_the_last_sample() -> None:
    container = container_of(3, 2, policy="unique")
    container.enqueue(unit_rows(0, 10, 20), labels(5, 6, 5))
    container.enqueue(unit_rows(30), labels(7))
    container.enqueue(unit_rows(40), labels(8))  # full: 6 was last seen before 5
    assert sorted(container.labels.tolist()) == [5, 7, 8]


def test_last_occurrence_and_merge() -> None:
    given = labels(4, 9, 4, 1, 4)
    assert last_occurrence(given).tolist() == [4, 1, 4, 3, 4]
    centers = unit_rows(0, 10, 20, 30, 40)
    merged = merge_centers(centers, last_occurrence(given))
    torch.testing.assert_close(merged, unit_rows(20, 10, 20, 30, 20), atol=1e-6, rtol=0)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_larger_than_the_container_is_refused_with_both_values(policy: str) -> None:
    container = container_of(1000, 2, policy=policy)
    with pytest.raises(UserError) as error:
        container.enqueue(torch.zeros(1024, 2), torch.arange(1024))
    assert str(error.value) == (
        "container has 1000 slots, which is smaller than the batch (1024): "
        "raise count to at least 1024 (it may exceed the identities), or lower the batch to 1000"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "RecentCenters: count is 0, and must be at least 1: slots: how many centers it holds"),
        (
            {"policy": "fifa"},
            "RecentCenters: policy is 'fifa': choose one of fifo, unique; did you mean 'fifo'?",
        ),
        (
            {"dtype": "float16"},
            "RecentCenters: dtype is 'float16': choose one of float32, bfloat16, int8; did you mean 'bfloat16'?",
        ),
        ({"initial": "zeros"}, "RecentCenters: initial is 'zeros': choose one of empty, random"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        container_of(**({"slots": 4, "size": 2} | options))
    assert str(error.value) == message


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("bfloat16", 2**-8), ("int8", 0.5 / 127)])
def test_storage_types_return_rows_to_their_precision(dtype: str, tolerance: float) -> None:
    torch.manual_seed(0)
    container = container_of(64, 32, dtype=dtype)
    rows = normalize(torch.randn(64, 32), dim=1)
    container.enqueue(rows, torch.arange(64))
    found, stored = container.lookup(torch.arange(64))
    assert found.all()
    assert float((stored - rows).abs().max()) <= tolerance * float(rows.abs().max())
    expected_bytes = {"float32": 128, "bfloat16": 64, "int8": 32 + 4}[dtype]
    per_slot = container.memory_bytes() / 64 - expected_bytes
    assert 36 <= per_slot <= 54  # the formula of the file header, and the bins and counters of a small container


def test_random_rows_are_negatives_for_everybody_and_are_evicted_first() -> None:
    torch.manual_seed(0)
    for policy in POLICIES:
        container = container_of(4, 8, policy=policy, initial="random")
        rows, row_labels, _ = container.negatives()
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))
        assert row_labels.tolist() == [NOBODY] * 4
        assert int(container.fill) == 4
        container.enqueue(rows[:2].clone(), labels(0, 1))
        container.enqueue(rows[:2].clone(), labels(2, 3))
        assert container.labels.tolist() == [0, 1, 2, 3]
        assert int(container.fill) == 4


def test_only_slots_that_may_be_filled_are_offered_as_negatives() -> None:
    container = container_of(10, 2, policy="unique")
    assert container.negatives()[0].shape == (0, 2)
    container.enqueue(unit_rows(0, 1, 2), labels(0, 1, 0))
    rows, row_labels, _ = container.negatives()
    assert rows.shape == (3, 2)
    assert sorted(row_labels.tolist()) == [EMPTY, 0, 1]
    assert rows.data_ptr() == container.rows.data_ptr()  # a view


def test_negatives_without_some_identities_mark_their_rows() -> None:
    container = container_of(4, 2, policy="unique")
    container.enqueue(unit_rows(0, 1, 2), labels(0, 1, 2))
    assert container.negatives().without(labels(1, 5, 1)).labels_S.tolist() == [0, EMPTY, 2]
    assert container.labels.tolist() == [0, 1, 2, EMPTY]


def test_mean_age_counts_steps_since_the_last_refresh() -> None:
    container = container_of(4, 2, policy="unique")
    container.enqueue(unit_rows(0, 1), labels(0, 1))
    assert float(container.mean_age()) == 0
    container.enqueue(unit_rows(0), labels(0))
    container.enqueue(unit_rows(0), labels(2))
    assert float(container.mean_age()) == (1 + 2 + 0) / 3


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_save_and_load_continue_as_if_nothing_had_happened(policy: str, dtype: str) -> None:
    torch.manual_seed(0)
    batches = [(normalize(torch.randn(6, 8), dim=1), torch.randint(0, 30, (6,))) for _ in range(20)]
    straight = container_of(13, 8, policy=policy, dtype=dtype)
    for batch in batches[:9]:
        straight.enqueue(*batch)
    resumed = container_of(13, 8, policy=policy, dtype=dtype)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    for batch in batches[9:]:
        straight.enqueue(*batch)
        resumed.enqueue(*batch)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert all(torch.equal(a, b) for a, b in zip(straight.negatives()[:2], resumed.negatives()[:2], strict=True))


def test_loading_restores_how_far_the_slots_are_filled() -> None:
    container = container_of(9, 2)
    container.enqueue(unit_rows(0, 1, 2), labels(0, 1, 2))
    other = container_of(9, 2)
    other.load_state_dict(container.state_dict())
    assert other.negatives()[0].shape == (3, 2)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"slots": 9},
            "the checkpoint's container has 8 slots of 2 numbers, this one 9 of 2: "
            "build the head with the checkpoint's slots and embedding_size",
        ),
        (
            {"dtype": "int8"},
            "the checkpoint's container holds float32 rows, this one int8: "
            "build the head with the checkpoint's container dtype",
        ),
        (
            {"policy": "unique"},
            "the checkpoint's container has the policy fifo, this one unique: "
            "build the head with the checkpoint's container policy",
        ),
    ],
)
def test_a_checkpoint_of_another_container_is_refused(other: dict, message: str) -> None:
    state = container_of(8, 2).state_dict()
    with pytest.raises(UserError) as error:
        container_of(**({"slots": 8, "size": 2} | other)).load_state_dict(state)
    assert str(error.value) == message


@pytest.mark.parametrize("policy", POLICIES)
def test_a_row_that_finds_no_place_in_the_index_is_not_kept(policy: str) -> None:
    """Forced: with one probe, labels collide all the time. The index must still agree with the slots."""
    torch.manual_seed(0)
    container = container_of(40, 4, policy=policy)
    container.index = LabelIndex(40, probes=1, rounds=1)
    for _ in range(30):
        given = torch.randint(0, 60, (20,))
        container.enqueue(normalize(torch.randn(20, 4), dim=1), given)
        stored = container.labels[container.labels >= 0]
        assert int(container.fill) == len(stored)
        everybody = torch.arange(60)
        assert torch.equal(container.lookup(everybody)[0], torch.isin(everybody, stored))
        if policy == "unique":
            assert len(stored) == len(stored.unique())
    assert len(stored) < 40  # the case did occur


def test_the_index_holds_a_full_container_at_its_tightest() -> None:
    slots = 2048  # a power of two: the table is exactly 4 x slots, the fullest it can be
    container = container_of(slots, 2, policy="unique")
    torch.manual_seed(0)
    for start in range(0, 6 * slots, 512):
        container.enqueue(torch.zeros(512, 2), torch.randperm(512) * 1_000_003 + start)
    assert int(container.fill) == slots


def test_large_labels_do_not_collide() -> None:
    container = container_of(4, 2, policy="unique")
    container.enqueue(unit_rows(0, 1), labels(2**24, 2**24 + 1))  # equal as float32
    container.enqueue(unit_rows(2), labels(2**62))
    assert container.lookup(labels(2**24, 2**24 + 1, 2**24 + 2, 2**62))[0].tolist() == [True, True, False, True]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_runs_on_the_meta_device(policy: str, dtype: str) -> None:
    with torch.device("meta"):
        container = container_of(10, 4, policy=policy, dtype=dtype, initial="random")
        container.enqueue(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))
        found, rows = container.lookup(torch.zeros(3, dtype=torch.int64))
    assert found.shape == (3,)
    assert rows.shape == (3, 4)
    container.to_empty(device="cpu")
    container.reset()
    container.enqueue(torch.eye(4)[:3], labels(0, 1, 2))
    assert container.lookup(labels(0, 1, 2))[0].all()


def test_arguments_are_not_modified() -> None:
    for policy in POLICIES:
        container = container_of(4, 2, policy=policy)
        centers, given = unit_rows(0, 1, 2), labels(1, 2, 1)
        container.enqueue(centers, given)
        assert torch.equal(centers, unit_rows(0, 1, 2))
        assert given.tolist() == [1, 2, 1]
