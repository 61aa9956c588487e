"""How a batch is decoded: what the loader's workers run, what they send, and what stands in for a broken image.

Workers decode JPEG to uint8 into shared memory that is used again and again (`batch_ring`); the numbers of a batch (labels,
positions, seeds) travel beside it. A batch is a function of its first stream number. Cost: decoding, 1 + K images per sample; a
batch in flight is B (1 + K) S^2 3 bytes.
"""

import multiprocessing.util
import os
import signal
import sys
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from attfc.data.loading.batch_ring import BatchRing
from attfc.data.loading.decoded_cache import DecodedCache
from attfc.data.sampling.query_stream import QueryStream, Samples, mirror_seeds
from attfc.data.stores.store import Images, Store
from attfc.errors import UserError
from attfc.typing import Int64, UInt8

__all__ = ["Batch", "Batches", "Broken", "Decoded", "Failure", "is_worker_death", "prepare_worker"]

Broken = tuple[int, str, str]

_SUBSTITUTES = 32  # tries before a query, or a key, is given up
GRACE_SECONDS = 20  # how long a worker outlives a SIGTERM


@dataclass
class Batch:
    """One training batch.

    Attributes:
        queries: uint8 (B, 3, S, S) RGB, channels-last memory.
        keys: uint8 (B, K, 3, S, S) RGB, each image channels-last; `keys.flatten(0, 1)` is a view.
        labels: int64 (B,).
        positions: int64 (B,) store positions of the queries.
        key_positions: int64 (B, K) store positions of the keys.
        seeds: int64 (B, 1 + K) augmentation seeds for `Augment`, the query's first.
        broken: (position, where, reason) of each image that could not be decoded and was replaced in this batch.
    """

    queries: Tensor
    keys: Tensor
    labels: Tensor
    positions: Tensor
    key_positions: Tensor
    seeds: Tensor
    broken: tuple[Broken, ...] = ()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Return the batch with its tensors on a device; `positions` and `key_positions` stay, they are for messages."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=non_blocking)
            for name in ("queries", "keys", "labels", "seeds")
        }
        return replace(self, **moved)


@dataclass
class Decoded:
    """What a worker sends.

    Attributes:
        pixels: uint8 (B + B K, S, S, 3), the queries, then the keys of each; or their slot in the ring.
        numbers: the fields of `Samples`.
        broken: of the batch.
        images: images decoded or tried.
    """

    pixels: "Tensor | _Slot"
    numbers: "dict[str, Int64] | dict[str, Tensor]"
    broken: tuple[Broken, ...]
    images: int

    def _here(self) -> Tensor:
        return self.pixels if isinstance(self.pixels, Tensor) else self.pixels.pixels()

    def pin_memory(self) -> "Decoded":
        """Return the same in page-locked memory: called by DataLoader's pinning thread."""
        numbers = {name: torch.as_tensor(values).pin_memory() for name, values in self.numbers.items()}
        return replace(self, pixels=self._here().pin_memory(), numbers=numbers)

    def batch(self) -> Batch:
        """Return views, no copy."""
        pixels = self._here()
        numbers = {name: torch.as_tensor(values) for name, values in self.numbers.items()}
        count, keys = numbers["key_positions"].shape
        return Batch(
            queries=pixels[:count].permute(0, 3, 1, 2),
            keys=pixels[count:].view(count, keys, *pixels.shape[1:]).permute(0, 1, 4, 2, 3),
            broken=self.broken,
            **numbers,
        )


@dataclass
class Failure:
    """A user-fault error on its way out of a worker: DataLoader would wrap the exception in a traceback's text."""

    message: str


@dataclass(frozen=True)
class _Slot:
    """Where in the ring a batch's pixels are."""

    ring: int
    worker: int
    slot: int
    shape: tuple[int, int, int, int]

    def pixels(self) -> Tensor:
        ring = BatchRing.of_number(self.ring)
        assert ring is not None, "the ring lives as long as its iterator"
        return ring.hand_out(self.worker, self.slot).view(self.shape)


class Batches(Dataset[Decoded | Failure]):
    """Decoded batches by their first stream number: what runs in the workers."""

    def __init__(
        self, store: Store, stream: QueryStream, batch_size: int, image_size: int, cache: DecodedCache | None
    ) -> None:
        self.store, self.stream, self.cache = store, stream, cache
        self.batch_size = batch_size
        self.shape = (batch_size * (1 + stream.keys_per_query), image_size, image_size, 3)
        self.ring: BatchRing | None = None

    def __getitem__(self, start: int) -> Decoded | Failure:
        """Decode the batch of the stream numbers from `start`."""
        try:
            return self._decoded(np.arange(start, start + self.batch_size, dtype=np.int64))
        except (UserError, OSError) as error:
            return Failure(str(error))

    def _decoded(self, numbers: Int64) -> Decoded:
        samples = self.stream.samples(numbers)
        images = _Images(self.store, self.cache or self.store, self.shape[1])
        pixels, slot = self._room()
        found = images.decode(np.concatenate([samples.positions, samples.key_positions.ravel()]), pixels.numpy())
        if found.broken:
            _replace_broken(samples, found, numbers, self.stream, images)
        return Decoded(pixels if slot is None else slot, vars(samples), images.broken(), images.tried)

    def _room(self) -> tuple[Tensor, _Slot | None]:
        """Room for the decoded images of a batch, and its slot in the ring if it lies there."""
        worker = get_worker_info()
        claimed = self.ring.claim(worker.id) if worker is not None and self.ring is not None else None
        if self.ring is None or worker is None or claimed is None:
            return torch.empty(self.shape, dtype=torch.uint8), None
        slot, memory = claimed
        return torch.from_numpy(memory).view(self.shape), _Slot(self.ring.number, worker.id, slot, self.shape)


class _Images:
    """Decodes images of one batch and remembers which were broken."""

    def __init__(self, store: Store, source: Store | DecodedCache, size: int) -> None:
        self._store, self._source, self._size = store, source, size
        self._broken: dict[int, str] = {}
        self._tried: set[int] = set()

    @property
    def tried(self) -> int:
        """Different images asked for."""
        return len(self._tried)

    def decode(self, positions: Int64, out: UInt8 | None = None) -> Images:
        """Decode; uint8 (N, S, S, 3), broken rows black and named."""
        images = self._source.images(positions, self._size, out)
        if out is not None and images.pixels is not out:  # somebody's store that takes no hint
            out[...] = images.pixels
            images.pixels = out
        self._tried.update(positions.tolist())
        self._broken.update((int(positions[row]), reason) for row, reason in sorted(images.broken.items()))
        return images

    def broken(self) -> tuple[Broken, ...]:
        """(position, where, reason) of every broken image met, in the order of meeting."""
        return tuple((position, self._store.where(position), reason) for position, reason in self._broken.items())


def _replace_broken(samples: Samples, found: Images, numbers: Int64, stream: QueryStream, images: _Images) -> None:
    """Put substitutes in the place of broken images: a function of the stream number, as everything else. In place.

    A query: another sample of the stream with its own keys. A key: an unused other image of the identity, else another
    of the sample's keys, else the query, mirrored. A loop over the broken rows: they are few or the run stops.
    """
    batch_size, keys = samples.key_positions.shape
    broken = set(found.broken)
    attempts = {}
    for row in sorted(row for row in broken if row < batch_size):
        for attempt in range(1, _SUBSTITUTES + 1):
            other = stream.samples(numbers[row : row + 1], attempt)
            decoded = images.decode(np.concatenate([other.positions, other.key_positions[0]]))
            if 0 not in decoded.broken:
                break
        else:
            listed = "; ".join(f"{where}: {reason}" for _, where, reason in images.broken()[:3])
            raise UserError(f"a query and its {_SUBSTITUTES} substitutes are broken ({listed}): check the data")
        attempts[row] = attempt
        for name, values in vars(other).items():
            getattr(samples, name)[row] = values[0]
        first = batch_size + row * keys
        found.pixels[row], found.pixels[first : first + keys] = decoded.pixels[0], decoded.pixels[1:]
        broken -= {row, *range(first, first + keys)}
        broken |= {first + place - 1 for place in decoded.broken}
    for row in sorted({(place - batch_size) // keys for place in broken}):
        first = batch_size + row * keys
        good = [column for column in range(keys) if first + column not in broken]
        spares = iter(stream.spare_keys(int(numbers[row]), attempts.get(row, 0), _SUBSTITUTES).tolist())
        for column in (column for column in range(keys) if first + column in broken):
            for position in spares:
                decoded = images.decode(np.array([position], dtype=np.int64))
                if not decoded.broken:
                    samples.key_positions[row, column] = position
                    found.pixels[first + column] = decoded.pixels[0]
                    break
            else:
                if good:
                    samples.key_positions[row, column] = samples.key_positions[row, good[0]]
                    found.pixels[first + column] = found.pixels[first + good[0]]
                else:
                    samples.key_positions[row, column] = samples.positions[row]
                    samples.seeds[row, column + 1] = mirror_seeds(samples.seeds[row, column + 1], samples.seeds[row, 0])
                    found.pixels[first + column] = found.pixels[row]


def prepare_worker(_: int) -> None:
    """Make a process that has just started a quiet worker, which a signal to all does not end at once."""
    torch.set_num_threads(1)
    # Ctrl-C reaches the whole process group: the main process alone decides, and stops the workers quietly.
    # SIGTERM often does too (a scheduler that ends a job): the worker goes on for a while, so that the main process can save.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_later)
    # A spawned worker that shuts its interpreter down while the queue's thread copies a batch is aborted by the C++ runtime
    # (seen with torch 2.15); leave as forked workers do, after multiprocessing's own clean-up.
    multiprocessing.util.Finalize(None, _leave, exitpriority=-1000)


def _leave_later(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(GRACE_SECONDS)  # its default action ends the process


def _leave() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed: attfc train ... >&-
            stream.flush()
    os._exit(0)


def is_worker_death(error: BaseException) -> bool:
    """Whether what DataLoader raised says that a worker is gone."""
    text = str(error)
    if text.startswith("Caught "):  # an exception inside a living worker
        return False
    return not isinstance(error, RuntimeError) or "DataLoader worker" in text
