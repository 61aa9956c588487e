"""Whatever the batches: the container equals a Python deque or an OrderedDict, and its index a linear scan."""

from collections import OrderedDict, deque

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attfc.heads.banks.bank import EMPTY
from attfc.heads.banks.recent import RecentCenters

batches_of_labels = st.integers(1, 9).flatmap(
    lambda slots: st.tuples(
        st.just(slots),
        st.lists(st.lists(st.integers(0, 14), min_size=1, max_size=slots), min_size=1, max_size=12),
    )
)
quick = settings(max_examples=60, deadline=None, derandomize=True)


def numbered_rows(start: int, count: int) -> torch.Tensor:
    """Rows that tell which sample they came from: (number, 1)."""
    return torch.stack([torch.arange(start, start + count, dtype=torch.float32), torch.ones(count)], dim=1)


def check_index_against_linear_scan(container: RecentCenters) -> None:
    everybody = torch.arange(16)
    found, rows = container.lookup(everybody)
    for label in everybody.tolist():
        slots = [slot for slot, stored in enumerate(container.labels.tolist()) if stored == label]
        assert bool(found[label]) == bool(slots)
        if slots:
            newest = max(slots, key=lambda slot: int(container.stamps[slot]))
            assert torch.equal(rows[label], container.rows[newest])


@quick
@given(batches_of_labels)
def test_fifo_is_a_ring(case: tuple[int, list[list[int]]]) -> None:
    slots, batches = case
    container = RecentCenters(count=slots).bind(2, None)
    ring: deque[tuple[int, float]] = deque(maxlen=slots)
    count = 0
    for batch in batches:
        container.enqueue(numbered_rows(count, len(batch)), torch.tensor(batch))
        ring.extend((label, float(count + i)) for i, label in enumerate(batch))
        count += len(batch)
        filled = (container.labels != EMPTY).nonzero().flatten().tolist()
        assert int(container.fill) == len(filled) == len(ring) == min(slots, count)
        assert int(container.pointer) == count % slots
        oldest_first = filled[int(container.pointer) :] + filled[: int(container.pointer)] if count >= slots else filled
        held = [(int(container.labels[slot]), float(container.rows[slot, 0])) for slot in oldest_first]
        assert held == list(ring)
        check_index_against_linear_scan(container)


@quick
@given(batches_of_labels)
def test_unique_is_a_least_recently_refreshed_dictionary(case: tuple[int, list[list[int]]]) -> None:
    slots, batches = case
    container = RecentCenters(count=slots, policy="unique").bind(2, None)
    table_size = container.memory_bytes()
    newest_last: OrderedDict[int, None] = OrderedDict()
    slot_of: dict[int, int] = {}
    for batch in batches:
        container.enqueue(numbered_rows(0, len(batch)), torch.tensor(batch))
        for label in batch:  # stored identities are refreshed first, then newcomers enter
            if label in newest_last:
                newest_last.move_to_end(label)
        before = set(newest_last)
        for label in batch:
            newest_last[label] = None
            newest_last.move_to_end(label)
        while len(newest_last) > slots:
            evicted, _ = newest_last.popitem(last=False)
            assert evicted not in batch
        stored = [label for label in container.labels.tolist() if label != EMPTY]
        assert len(stored) == len(set(stored)) == int(container.fill) <= slots
        assert set(stored) == set(newest_last)
        order = sorted(stored, key=lambda label: int(container.stamps[container.labels.tolist().index(label)]))
        assert order == list(newest_last)
        for label in before & set(newest_last):  # refreshed in place: nobody moves
            assert container.labels.tolist().index(label) == slot_of[label]
        slot_of = {label: container.labels.tolist().index(label) for label in newest_last}
        check_index_against_linear_scan(container)
    assert container.memory_bytes() == table_size


@quick
@given(st.lists(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=40), min_size=1, max_size=4))
def test_any_label_is_found_again(batches: list[list[int]]) -> None:
    container = RecentCenters(count=200, policy="unique").bind(2, None)
    for batch in batches:
        container.enqueue(numbered_rows(0, len(batch)), torch.tensor(batch))
    seen = sorted({label for batch in batches for label in batch})
    assert container.lookup(torch.tensor(seen))[0].all()
    assert int(container.fill) == len(seen)
