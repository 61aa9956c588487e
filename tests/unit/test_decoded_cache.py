"""The decoded cache gives the store's own pixels, decodes each image once, and is shared by workers."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from test_attention_loader import COUNTS, TinyStore, same, take

from attfc.data.loader import AttentionLoader
from attfc.data.loading.decoded_cache import DecodedCache
from attfc.data.stores.store import Images
from attfc.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # Python 3.12


class CountingStore(TinyStore):
    """Remembers what it was asked for."""

    def __init__(self, counts: list[int], broken: tuple[int, ...] = ()) -> None:
        super().__init__(counts, broken)
        self.asked: list[int] = []

    def images(self, positions: npt.ArrayLike, size: int, out=None) -> Images:
        self.asked.extend(np.asarray(positions).tolist())
        return super().images(positions, size)


def test_each_image_is_decoded_once_and_broken_ones_are_named_each_time() -> None:
    store = CountingStore([6], broken=(4,))
    cache = DecodedCache(store, 3, budget_mib=1)
    for asked in ([1, 4, 2], [2, 1, 0, 4], [0, 1, 1, 4]):
        found, expected = cache.images(asked, 3), TinyStore([6], broken=(4,)).images(asked, 3)
        assert np.array_equal(found.pixels, expected.pixels)
        assert found.broken == expected.broken
    assert store.asked == [1, 4, 2, 0, 4, 4]
    assert cache.filled == 3


def test_the_pixels_handed_out_are_copies() -> None:
    cache = DecodedCache(TinyStore([6]), 3, budget_mib=1)
    for _ in range(2):
        cache.images([5], 3).pixels[:] = 99
    assert np.array_equal(cache.images([5], 3).pixels, TinyStore([6]).images([5], 3).pixels)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_same_batches_from_the_cache(workers: int) -> None:
    plain = take(AttentionLoader(TinyStore(COUNTS, broken=(3,)), 8, 2, image_size=4, broken_limit=1.0), 12)
    store = TinyStore(COUNTS, broken=(3,))
    cache = DecodedCache(store, 4, budget_mib=1)
    for _ in range(2):
        loader = AttentionLoader(store, 8, 2, image_size=4, broken_limit=1.0, decoded_cache=cache, workers=workers)
        assert same(plain, take(loader, 12))
        assert cache.filled == 48  # filled by the workers, seen here


@pytest.mark.slow  # a spawned worker imports torch anew: several seconds
def test_spawned_workers_fill_the_same_memory() -> None:
    store = TinyStore(COUNTS)
    cache = DecodedCache(store, 4, budget_mib=1)
    take(AttentionLoader(store, 8, 2, image_size=4, decoded_cache=cache, workers=1, start_method="spawn"), 12)
    assert cache.filled == 49


def test_memory_is_taken_as_images_arrive() -> None:
    store = TinyStore([200_000])
    cache = DecodedCache(store, 112, budget_mib=8000)  # 7.5 GB if all came
    assert cache.images([199_999], 112).pixels.shape == (1, 112, 112, 3)
    assert cache.filled == 1


def test_a_budget_too_small_names_the_need() -> None:
    with pytest.raises(
        UserError, match=r"1000 images of 112 x 112 need 36 MiB and the budget is 35 MiB: raise it to at least 36"
    ):
        DecodedCache(TinyStore([1000]), 112, budget_mib=35)
    DecodedCache(TinyStore([1000]), 112, budget_mib=36)


def test_another_store_or_size_is_refused() -> None:
    store = TinyStore([6])
    cache = DecodedCache(store, 3, budget_mib=1)
    with pytest.raises(UserError, match="decoded cache holds images of 3 pixels, not 4"):
        cache.images([0], 4)
    with pytest.raises(UserError, match="decoded cache holds tiny at 3 pixels, not tiny at 4"):
        AttentionLoader(store, 2, 1, image_size=4, decoded_cache=cache)
    with pytest.raises(UserError, match="make one for it"):
        AttentionLoader(TinyStore([6]), 2, 1, image_size=3, decoded_cache=cache)
    assert torch.equal(
        take(AttentionLoader(store, 2, 1, image_size=3, decoded_cache=cache), 1)[0].queries,
        take(AttentionLoader(store, 2, 1, image_size=3), 1)[0].queries,
    )
