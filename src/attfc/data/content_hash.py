"""Which images are the same file: a 64-bit hash of each image's encoded bytes, read once, by several processes.

BLAKE2b, 8 bytes per image, some 24 more for the moment of sorting. Two different files of a whole set of 42 million share a
hash with a chance of 5e-5 (of a billion: 3 %), and then one image is taken for another's copy. The same photograph in another
encoding is not found: that takes embeddings.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import numpy as np

from attfc.data.index import run_starts
from attfc.data.loading.workers import in_workers
from attfc.data.stores.store import Store
from attfc.typing import Bools, Int64, UInt64

__all__ = ["content_hash", "equal_groups", "examine_chunks"]

Found = TypeVar("Found")


def content_hash(encoded: bytes) -> int:
    """Return the hash of an image's bytes, 0 ... 2^64 - 1, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


def equal_groups(hashes: UInt64, usable: Bools | None = None) -> tuple[Int64, Int64, Int64]:
    """Find the hashes that occur more than once.

    Args:
        hashes: (N,).
        usable: (N,) false for images without a hash.

    Returns:
        (order, starts, lengths): group g is the positions `order[starts[g] : starts[g] + lengths[g]]`, rising.

    >>> order, starts, lengths = equal_groups(np.array([5, 7, 5, 9], np.uint64))
    >>> order[starts[0] : starts[0] + lengths[0]].tolist()
    [0, 2]
    """
    order = np.arange(len(hashes)) if usable is None else np.flatnonzero(usable)
    order = order[np.argsort(hashes[order], kind="stable")]
    ordered = hashes[order]
    starts = run_starts(ordered)
    lengths = np.diff(starts, append=len(ordered))
    repeated = lengths > 1
    return order, starts[repeated], lengths[repeated]


def examine_chunks(
    store: Store, examine: Callable[[Store, range], Found], *, chunk: int, workers: int
) -> Iterator[Found]:
    """Yield `examine(store, positions)` for chunks of all positions, in order, a few ahead of the reader.

    Args:
        store: any store.
        examine: a module-level function (it goes to the worker processes).
        chunk: positions a call.
        workers: processes; 0: this one.

    Raises:
        BrokenProcessPool: a worker was killed, e.g. for its memory.
    """
    total = len(store)
    chunks = (range(start, min(start + chunk, total)) for start in range(0, total, chunk))
    start = partial(partial, examine, store)  # once in each process: the store is not sent with every chunk
    return map(start(), chunks) if workers < 1 else in_workers(start, chunks, workers)
