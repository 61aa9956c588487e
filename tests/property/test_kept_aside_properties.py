"""Keeping people aside: whatever the sizes, no image is lost or doubled, and names alone decide."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from attfc.data.people.kept_aside import kept_aside_labels, split
from attfc.data.stores.edits import EditedStore, Edits
from attfc.data.stores.synthetic import SyntheticFaces

counts = st.lists(st.integers(0, 6), min_size=1, max_size=90)


def people_of(counts: list[int]) -> EditedStore:
    """Synthetic people, counts[i] images of the i-th; those with none are no identities."""
    faces = SyntheticFaces(len(counts), 7)
    out = np.concatenate([np.arange(label * 7 + count, label * 7 + 7) for label, count in enumerate(counts)])
    return EditedStore(faces, Edits(len(faces), len(counts), out, np.full(len(out), -1)))


@settings(deadline=None, max_examples=80)
@given(counts.filter(any), st.floats(0, 1))
def test_every_image_is_on_one_side_and_nobody_on_both(counts: list[int], share: float) -> None:
    store = people_of(counts)
    training, kept = split(store, share)
    both = [training] if kept is None else [training, kept]
    seen = [part.where(position) for part in both for position in range(len(part))]
    assert sorted(seen) == sorted(store.where(position) for position in range(len(store)))
    names = [{part.identity_name(label) for label in range(len(part.identities))} for part in both]
    assert sum(map(len, names)) == len(set.union(*names)) == len(store.identities)
    if kept is not None:
        assert len(kept) * 5 <= len(store)
        assert kept.identities.counts().min() >= 2
        assert sum(count >= 2 for count in counts) >= 20


class Reordered:
    """The people of a store in another order."""

    def __init__(self, store: EditedStore, order: list[int]) -> None:
        self.store, self.order = store, order
        own = store.identities.counts()[order]
        self.identities = SizesOnly(own)

    def __len__(self) -> int:
        return len(self.store)

    def identity_name(self, label: int) -> str:
        return self.store.identity_name(self.order[label])


class SizesOnly:
    def __init__(self, sizes: np.ndarray) -> None:
        self.sizes = sizes

    def counts(self) -> np.ndarray:
        return self.sizes


@settings(deadline=None, max_examples=80)
@given(counts.filter(any), st.randoms(), st.floats(0.01, 0.3))
def test_the_order_of_people_changes_nothing(counts: list[int], random, share: float) -> None:
    store = people_of(counts)
    order = list(range(len(store.identities)))
    random.shuffle(order)
    other = Reordered(store, order)
    one = {store.identity_name(label) for label in kept_aside_labels(store, share).tolist()}
    assert one == {other.identity_name(label) for label in kept_aside_labels(other, share).tolist()}
