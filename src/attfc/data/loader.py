"""The attention loader: per sample one query, K other images of its identity as keys, and the label.

One endless stream of samples (`query_stream`): batch t on rank r holds stream numbers [(t * ranks + r) * B, + B), so batches
are always full, every image is query once per epoch whatever the number of ranks (sources with sampling weights:
`weighted_epochs`; batches with a part drawn by identity: `identity_mix`), and the position in the data is one integer. A batch
is a function of its first stream number: equal with 0 or 8 workers and after a resume in mid-epoch. Workers decode JPEG to uint8
into shared memory that is used again and again (`batch_ring`); everything else happens on the device (`transforms`). Cost:
decoding, 1 + K images per sample; the choices take about 3 us per sample, a batch in flight B (1 + K) S^2 3 bytes, and 2 are in
flight per worker. Not taken: a per-sample dataset with a collate function, whose Python calls and copies per image cost as much
as decoding small images.
Source: AttFC (arXiv 2503.06839). Differences and the options that undo them: `query_stream`.
"""

import atexit
import itertools
import multiprocessing.util
import os
import signal
import sys
import weakref
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
import torch.multiprocessing
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from attfc.data.batch_ring import BatchRing
from attfc.data.decoded_cache import DecodedCache
from attfc.data.sampling.identity_mix import IdentityMix
from attfc.data.sampling.paired_queries import PairedQueries
from attfc.data.sampling.query_stream import QueryStream, Samples, mirror_seeds
from attfc.data.stores.combined import CombinedStore
from attfc.data.stores.store import Images, Store
from attfc.errors import UserError

__all__ = ["AttentionLoader", "Batch"]

Int64 = NDArray[np.int64]
Broken = tuple[int, str, str]

_SUBSTITUTES = 32  # tries before a query, or a key, is given up
_JUDGED_AFTER = 20  # broken images that the limit must allow before the share means something: 2,000 images at 1 %
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


class AttentionLoader:
    """Endless batches of queries, keys and labels.

    `for batch in loader` goes to the end of the current epoch, and the next `for` continues; `loader.batches(until_step)` goes on
    across epochs. Workers live until `close()` or the loader's end, across epochs. Batches at the end of an epoch run into
    the next one: they are always full.

    Args:
        store: the images (`attfc.open_store`).
        batch_size: B, samples a batch on this rank, >= 1.
        keys_per_query: K >= 0, the head's `keys_per_query`; 0, for heads that take no keys, gives keys of shape (B, 0, 3, S, S).
        seed: names the stream: order, keys and augmentation seeds.
        image_size: S in pixels.
        workers: decoding processes; 0 decodes in the caller.
        rank, ranks: this process's share of the stream.
        distinct_keys: see `QueryStream`. With True an identity with one image gets it as every key, mirrored against the
            query and otherwise augmented on its own; with two images all keys are the other one.
        sampling: "each_once" | "with_replacement".
        identity_share: share of each batch, from the start of that of all ranks, whose queries are drawn by identity (`IdentityMix`, F2C's
            loader); 0: all by image. The parts are counted in batches: a resumed loader keeps the batch of all ranks then.
        paired: queries come in pairs of one identity (`PairedQueries`); a batch is then an even number. Not with an `identity_share`, source
            weights or "with_replacement".
        broken_limit: largest share (0 ... 1) of broken images; judged once 20 / broken_limit images, or as many as the store
            holds, were seen on this rank.
        decoded_cache: a `DecodedCache` of the same store and size, asked instead of the store.
        pin_memory: hand out page-locked tensors, for asynchronous copies to an accelerator that has them.
        start_method: "fork" | "spawn" | "forkserver" for the workers; None: the platform's default.
        prefetch: batches a worker prepares ahead, >= 1.

    Raises:
        UserError: an option out of range, a store without images; while iterating: too many broken images, a worker that died.

    Source: AttFC (arXiv 2503.06839), attention loader; see `query_stream` for the differences.
    """

    def __init__(
        self,
        store: Store,
        batch_size: int,
        keys_per_query: int = 0,
        seed: int = 0,
        *,
        image_size: int = 112,
        workers: int = 0,
        rank: int = 0,
        ranks: int = 1,
        distinct_keys: bool = True,
        sampling: str = "each_once",
        identity_share: float = 0.0,
        paired: bool = False,
        broken_limit: float = 0.01,
        decoded_cache: DecodedCache | None = None,
        pin_memory: bool = False,
        start_method: str | None = None,
        prefetch: int = 2,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("image_size", image_size, 1),
            ("workers", workers, 0),
            ("ranks", ranks, 1),
            ("prefetch", prefetch, 1),
        ):
            if value < least:
                raise UserError(f"loader {name} = {value}: set it to {least} or more")
        if not 0 <= rank < ranks:
            raise UserError(f"loader rank = {rank} of {ranks} ranks: ranks count from 0 to {ranks - 1}")
        if not 0.0 <= broken_limit <= 1.0:
            raise UserError(f"loader broken_limit = {broken_limit} is a share: set it to 0 ... 1")
        if store.identities.images == 0:
            raise UserError(f"{store.name}: holds no image: a loader needs at least one")
        methods = torch.multiprocessing.get_all_start_methods()
        if start_method is not None and start_method not in methods:
            raise UserError(f"loader start_method = {start_method!r}: this system knows {', '.join(methods)}")
        if decoded_cache is not None:
            decoded_cache.check(store, image_size)
        weighted = store.weighted_epochs(seed) if isinstance(store, CombinedStore) and store.has_weights else None
        mix, pairs = None, None
        if paired:
            for clash, name in (
                (identity_share != 0, f"identity_share = {identity_share:g}"),
                (weighted is not None, "weights of sources"),
                (sampling != "each_once", f"sampling = {sampling!r}"),
            ):
                if clash:
                    raise UserError(
                        f"queries in pairs do not go with {name}: each says on its own which image comes next, take one of them"
                    )
            if batch_size % 2:
                raise UserError(
                    f"queries in pairs need an even batch_size, and it is {batch_size} a rank: take {batch_size + 1}"
                )
            pairs = PairedQueries(store.identities, seed)
        if identity_share != 0:
            if isinstance(store, CombinedStore) and 0 in store.weights:
                raise UserError(
                    f"{store.name}: a source has weight 0 and identity_share = {identity_share:g} draws identities of all sources: "
                    "leave the source out"
                )
            mix = IdentityMix(store.identities, identity_share, batch_size * ranks, seed, images=weighted)
        stream = QueryStream(
            store.identities,
            keys_per_query,
            seed,
            distinct_keys=distinct_keys,
            sampling=sampling,
            queries=pairs or mix or weighted,
        )
        self.store = store
        self.batch_size = batch_size
        self.keys_per_query = keys_per_query
        self.seed = seed
        self.image_size = image_size
        self.workers = workers
        self.broken_limit = broken_limit
        self._rank, self._ranks = rank, ranks
        self._mixed = {"mixed_batch": 0, "by_identity": 0}
        if mix is not None:
            self._mixed = {"mixed_batch": mix.batch, "by_identity": mix.by_identity}
        self._pin_memory, self._start_method, self._prefetch = pin_memory, start_method, prefetch
        self._batches = _Batches(store, stream, batch_size, image_size, decoded_cache)
        self._iterator: Iterator[_Decoded | _Failure] | None = None
        self._closes_at_exit = False
        self._counts_crc32: int | None = None
        self._samples_seen = self._steps = self._images_seen = self._broken_seen = 0
        self._examples: list[Broken] = []

    def __len__(self) -> int:
        """Return the batches an epoch needs on this rank, rounded up; one `for` may take one less."""
        return -(-self.epoch_length // (self.batch_size * self._ranks))

    @property
    def epoch_length(self) -> int:
        """Queries in an epoch, over all ranks: the store's images; with weighted sources the visits that the weights call
        for, with an `identity_share` those in which the part drawn by image passes over them once.
        """
        return self._batches.stream.epoch_length

    @property
    def epoch(self) -> int:
        """Whole epochs handed out so far: the number of the current one."""
        return self._samples_seen // self.epoch_length

    @property
    def step(self) -> int:
        """Batches handed out so far, those before a resume included."""
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the current epoch."""
        end = (self.epoch + 1) * self.epoch_length
        while self._samples_seen < end:
            yield self._next()

    def batches(self, until_step: int) -> Iterator[Batch]:
        """Yield batches across epochs until `step` reaches `until_step`."""
        while self._steps < until_step:
            yield self._next()

    def state_dict(self) -> dict[str, int]:
        """Return the position: it counts batches that were yielded, not those that workers hold ready.

        `samples_seen` counts over all ranks, so the state of any rank resumes any number of ranks. The counts of images are
        this rank's; they serve `broken_limit` only.
        """
        if self._counts_crc32 is None:
            self._counts_crc32 = zlib.crc32(np.ascontiguousarray(self.store.identities.offsets).data)
        return {
            "samples_seen": self._samples_seen,
            "steps": self._steps,
            "images_seen": self._images_seen,
            "broken_seen": self._broken_seen,
            "images": self.store.identities.images,
            "images_per_identity_crc32": self._counts_crc32,
            "epoch_length": self.epoch_length,
            "seed": self.seed,
            **self._mixed,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state_dict` was taken; batch size, ranks, workers and keys may differ; with an `identity_share` not the batch of
        all ranks.

        Raises:
            UserError: the state belongs to other data or another seed: its numbers would name other images.
        """
        own = self.state_dict()
        data = "the data the run began with"
        for name, fix in (
            ("images", data),
            ("images_per_identity_crc32", data),
            ("mixed_batch", "the batch size and the share of it by identity that the run began with"),
            ("by_identity", "the share of a batch by identity that the run began with"),
            ("epoch_length", "the sampling weights the run began with"),
            ("seed", "the seed the run began with"),
        ):
            if state.get(name, own[name]) != own[name]:
                raise UserError(
                    f"loader state has {name} = {state[name]} but {self.store.name} has {own[name]}: resume with {fix}"
                )
        self.close()
        self._samples_seen, self._steps = int(state["samples_seen"]), int(state["steps"])
        self._images_seen, self._broken_seen = int(state["images_seen"]), int(state["broken_seen"])

    def close(self) -> None:
        """Stop the workers; iterating again starts new ones at the same place."""
        iterator, self._iterator = self._iterator, None
        self._batches.ring = None
        # Dropping the iterator would do the same, but the traceback of an error may hold it for long.
        shutdown = getattr(iterator, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()

    def __enter__(self) -> "AttentionLoader":
        """Return the loader; leaving the block stops its workers."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the workers."""
        self.close()

    def _start(self) -> "Iterator[_Decoded | _Failure]":
        stride = self.batch_size * self._ranks
        starts = _Starts(self._samples_seen + self._rank * self.batch_size, stride)
        if self.workers:
            # Prefetched, one in the hands of the training step and one that it has not let go of yet.
            batch_bytes = self._batches.images * self.image_size**2 * 3
            self._batches.ring = BatchRing(self.workers, self._prefetch + 2, batch_bytes)
        loader = DataLoader(
            self._batches,
            batch_size=None,
            sampler=starts,
            num_workers=self.workers,
            pin_memory=self._pin_memory,
            worker_init_fn=_prepare_worker,
            multiprocessing_context=self._start_method if self.workers else None,
            prefetch_factor=self._prefetch if self.workers else None,
            generator=torch.Generator(),  # without it DataLoader draws from the global one and shifts the training
        )
        return cast(Iterator[_Decoded | _Failure], iter(loader))

    def _next(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._start()
            if self.workers and not self._closes_at_exit:
                atexit.register(_close_at_exit, weakref.ref(self))
                self._closes_at_exit = True
        try:
            decoded = next(self._iterator)
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            self.close()
            if self.workers and _is_worker_death(error):
                raise UserError(
                    f"a loader worker died ({' '.join(str(error).split()) or type(error).__name__}), most often for lack of "
                    f"memory: lower workers ({self.workers}) or batch_size ({self.batch_size}), or give /dev/shm more room"
                ) from error
            raise
        except BaseException:
            self.close()
            raise
        if isinstance(decoded, _Failure):
            self.close()
            raise UserError(decoded.message)
        self._samples_seen += self.batch_size * self._ranks
        self._steps += 1
        self._images_seen += decoded.images
        self._broken_seen += len(decoded.broken)
        self._judge(decoded.broken)
        return decoded.batch(self.batch_size, self.keys_per_query)

    def _judge(self, broken: tuple[Broken, ...]) -> None:
        """Stop when more than `broken_limit` of the images seen were broken."""
        if not broken:
            return
        self._examples = [*self._examples, *broken][:3]
        enough = min(self.store.identities.images, _JUDGED_AFTER / max(self.broken_limit, 1e-9))
        if self.broken_limit > 0 and self._images_seen < enough:
            return
        if self._broken_seen > self.broken_limit * self._images_seen:
            self.close()
            listed = "; ".join(f"{where}: {reason}" for _, where, reason in self._examples)
            raise UserError(
                f"{self.store.name}: {self._broken_seen} of {self._images_seen} images seen are broken, more than broken_limit = "
                f"{self.broken_limit:g} ({listed}): repair or remove them, or raise broken_limit"
            )


@dataclass
class _Decoded:
    """What a worker sends: pixels by their slot in the ring (or a tensor, through shared memory) and the small rest."""

    pixels: "Tensor | _Slot"  # uint8 (B + B K, S, S, 3): the queries, then the keys of each
    integers: Tensor  # int64 (B (3 + 2 K),): labels, positions, key positions, seeds
    broken: tuple[Broken, ...]
    images: int  # images decoded or tried

    def pin_memory(self) -> "_Decoded":
        """Called by DataLoader's pinning thread."""
        pixels = self.pixels if isinstance(self.pixels, Tensor) else self.pixels.pixels()
        return replace(self, pixels=pixels.pin_memory(), integers=self.integers.pin_memory())

    def batch(self, batch_size: int, keys_per_query: int) -> Batch:
        """Return views of the two tensors, no copy."""
        pixels = self.pixels if isinstance(self.pixels, Tensor) else self.pixels.pixels()
        size = pixels.shape[1]
        queries = pixels[:batch_size].permute(0, 3, 1, 2)
        keys = pixels[batch_size:].view(batch_size, keys_per_query, size, size, 3).permute(0, 1, 4, 2, 3)
        integers = self.integers.view(3 + 2 * keys_per_query, batch_size)
        return Batch(
            queries,
            keys,
            labels=integers[0],
            positions=integers[1],
            key_positions=integers[2 : 2 + keys_per_query].reshape(batch_size, keys_per_query),
            seeds=integers[2 + keys_per_query :].reshape(batch_size, 1 + keys_per_query),
            broken=self.broken,
        )


@dataclass
class _Failure:
    """A user-fault error on its way out of a worker: DataLoader would wrap the exception in a traceback's text."""

    message: str


class _Starts(Sampler[int]):
    """First stream numbers of this rank's batches, without end."""

    def __init__(self, first: int, stride: int) -> None:
        self.first, self.stride = first, stride

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first, self.stride)


class _Batches(Dataset["_Decoded | _Failure"]):
    """Decoded batches by their first stream number: what runs in the workers."""

    def __init__(
        self, store: Store, stream: QueryStream, batch_size: int, image_size: int, cache: DecodedCache | None
    ) -> None:
        self.store, self.stream, self.cache = store, stream, cache
        self.batch_size, self.image_size = batch_size, image_size
        self.images = batch_size * (1 + stream.keys_per_query)
        self.ring: BatchRing | None = None

    def __getitem__(self, start: int) -> "_Decoded | _Failure":
        try:
            return self._decoded(np.arange(start, start + self.batch_size, dtype=np.int64))
        except (UserError, OSError) as error:
            return _Failure(str(error))

    def _decoded(self, numbers: Int64) -> _Decoded:
        samples = self.stream.samples(numbers)
        repair = _Repair(self.store, self.cache or self.store, self.image_size)
        positions = np.concatenate([samples.positions, samples.key_positions.ravel()])
        pixels, slot = self._room()
        images = repair.images(positions, pixels.numpy())
        if images.broken:
            _replace_broken(samples, images, numbers, self.stream, repair)
        integers = np.concatenate(
            [samples.labels, samples.positions, samples.key_positions.ravel(), samples.seeds.ravel()]
        )
        return _Decoded(pixels if slot is None else slot, torch.from_numpy(integers), repair.broken(), repair.tried)

    def _room(self) -> tuple[Tensor, "_Slot | None"]:
        """Room for the decoded images of a batch, uint8 (images, S, S, 3), and its slot in the ring if it lies there."""
        shape = (self.images, self.image_size, self.image_size, 3)
        worker = get_worker_info()
        claimed = self.ring.claim(worker.id) if worker is not None and self.ring is not None else None
        if self.ring is None or worker is None or claimed is None:
            return torch.empty(shape, dtype=torch.uint8), None
        slot, memory = claimed
        return torch.from_numpy(memory).view(shape), _Slot(self.ring.number, worker.id, slot, shape)


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


class _Repair:
    """Decodes images of one batch and remembers which were broken."""

    def __init__(self, store: Store, source: Store | DecodedCache, size: int) -> None:
        self._store, self._source, self._size = store, source, size
        self._broken: dict[int, str] = {}
        self._tried: set[int] = set()

    @property
    def tried(self) -> int:
        """Different images asked for."""
        return len(self._tried)

    def images(self, positions: Int64, out: NDArray[np.uint8] | None = None) -> Images:
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


def _replace_broken(samples: Samples, images: Images, numbers: Int64, stream: QueryStream, repair: _Repair) -> None:
    """Put substitutes in the place of broken images: a function of the stream number, as everything else. In place.

    A query: another sample of the stream with its own keys. A key: an unused other image of the identity, else another
    of the sample's keys, else the query, mirrored. A loop over the broken rows: they are few or the run stops.
    """
    batch_size, keys_per_query = samples.key_positions.shape
    broken = set(images.broken)
    attempts = {}
    for row in sorted(row for row in broken if row < batch_size):
        for attempt in range(1, _SUBSTITUTES + 1):
            other = stream.samples(numbers[row : row + 1], attempt)
            found = repair.images(np.concatenate([other.positions, other.key_positions[0]]))
            if 0 not in found.broken:
                break
        else:
            listed = "; ".join(f"{where}: {reason}" for _, where, reason in repair.broken()[:3])
            raise UserError(f"a query and its {_SUBSTITUTES} substitutes are broken ({listed}): check the data")
        attempts[row] = attempt
        samples.labels[row], samples.positions[row] = other.labels[0], other.positions[0]
        samples.key_positions[row], samples.seeds[row] = other.key_positions[0], other.seeds[0]
        first = batch_size + row * keys_per_query
        images.pixels[row] = found.pixels[0]
        images.pixels[first : first + keys_per_query] = found.pixels[1:]
        broken -= {row, *range(first, first + keys_per_query)}
        broken |= {first + place - 1 for place in found.broken}
    for row in sorted({(place - batch_size) // keys_per_query for place in broken}):
        places = range(batch_size + row * keys_per_query, batch_size + (row + 1) * keys_per_query)
        good = [place for place in places if place not in broken]
        spares = stream.spare_keys(int(numbers[row]), attempts.get(row, 0), _SUBSTITUTES).tolist()
        for place in (place for place in places if place in broken):
            column = place - places.start
            while spares:
                position = spares.pop(0)
                found = repair.images(np.array([position], dtype=np.int64))
                if not found.broken:
                    samples.key_positions[row, column] = position
                    images.pixels[place] = found.pixels[0]
                    break
            else:
                if good:
                    samples.key_positions[row, column] = samples.key_positions[row, good[0] - places.start]
                    images.pixels[place] = images.pixels[good[0]]
                else:
                    samples.key_positions[row, column] = samples.positions[row]
                    samples.seeds[row, column + 1] = mirror_seeds(samples.seeds[row, column + 1], samples.seeds[row, 0])
                    images.pixels[place] = images.pixels[row]


def _prepare_worker(_: int) -> None:
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


def _close_at_exit(loader: "weakref.ref[AttentionLoader]") -> None:
    """Stop the workers before multiprocessing's own exit, which would send SIGTERM and wait."""
    living = loader()
    if living is not None:
        living.close()


def _leave() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed: attfc train ... >&-
            stream.flush()
    os._exit(0)


def _is_worker_death(error: BaseException) -> bool:
    text = str(error)
    if text.startswith("Caught "):  # an exception inside a living worker
        return False
    return not isinstance(error, RuntimeError) or "DataLoader worker" in text
