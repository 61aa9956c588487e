"""The ring of batch memory: slots are claimed by workers and freed by whatever happens to the last view of a batch."""

import gc

import numpy as np
import pytest

from attfc.data.loader import AttentionLoader
from attfc.data.loading.batch_ring import BatchRing
from attfc.data.stores.store import EncodedStore
from attfc.data.stores.synthetic import SyntheticFaces


def test_a_slot_is_free_again_when_the_last_view_of_its_batch_is_gone() -> None:
    ring = BatchRing(workers=2, slots=2, batch_bytes=6)
    first, second = ring.claim(1), ring.claim(1)
    assert first is not None
    assert second is not None
    assert (first[0], second[0]) == (0, 1)
    assert ring.claim(1) is None
    other = ring.claim(0)
    assert other is not None
    first[1][:] = np.arange(6)
    other[1][:] = 99  # the slots of two workers do not overlap
    batch = ring.hand_out(1, 0)
    view = batch.view(2, 3)[1:]
    assert batch.tolist() == [0, 1, 2, 3, 4, 5]
    del batch
    gc.collect()
    assert ring.claim(1) is None, "a view still holds the batch"
    assert view.tolist() == [[3, 4, 5]]
    del view
    gc.collect()
    again = ring.claim(1)
    assert again is not None
    assert again[0] == 0


def test_a_batch_outlives_its_ring() -> None:
    ring = BatchRing(workers=1, slots=1, batch_bytes=3)
    claimed = ring.claim(0)
    assert claimed is not None
    claimed[1][:] = 7
    batch, number = ring.hand_out(0, 0), ring.number
    assert BatchRing.of_number(number) is ring
    del ring, claimed
    gc.collect()
    assert BatchRing.of_number(number) is None
    assert batch.tolist() == [7, 7, 7]


@pytest.mark.parametrize("keep", [1, 9])
def test_batches_that_are_kept_are_not_overwritten(keep: int) -> None:
    """With 9 kept, the 4 slots of the worker do not suffice: it takes other memory."""
    store = SyntheticFaces(6, 3)
    with AttentionLoader(store, 3, 1, image_size=16, workers=1) as loader:
        held = []
        for batch in loader.batches(12):
            held = [*held[-keep + 1 :], batch] if keep > 1 else [batch]
            for each in held:
                expected = store.images(each.positions, 16).pixels
                assert (each.queries.permute(0, 2, 3, 1).numpy() == expected).all()


def test_a_store_that_ignores_out_is_good_enough() -> None:
    class Own(SyntheticFaces):
        def images(self, positions, size, out=None):
            return EncodedStore.images(self, positions, size)

    store = Own(4, 2)
    with AttentionLoader(store, 2, 1, image_size=16, workers=1) as loader:
        for batch in loader.batches(3):
            expected = store.images(batch.positions, 16).pixels
            assert (batch.queries.permute(0, 2, 3, 1).numpy() == expected).all()
