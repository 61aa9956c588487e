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
import math
import weakref
import zlib
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
import torch.multiprocessing
from torch.utils.data import DataLoader

from attfc.data.loading.batch_ring import BatchRing
from attfc.data.loading.decode import Batch, Batches, Broken, Decoded, Failure, is_worker_death, prepare_worker
from attfc.data.loading.decoded_cache import DecodedCache
from attfc.data.sampling.identity_mix import IdentityMix
from attfc.data.sampling.query_stream import QueryStream, queries_of
from attfc.data.stores.combined import CombinedStore
from attfc.data.stores.store import Store
from attfc.errors import UserError, one_line

__all__ = ["AttentionLoader", "Batch"]

_JUDGED_AFTER = 20  # broken images that the limit must allow before the share means something: 2,000 images at 1 %


class AttentionLoader:
    """Endless batches of queries, keys and labels.

    `for batch in loader` goes to the end of the current epoch, and the next `for` continues; `loader.batches(until_step)` goes on
    across epochs. Workers live until `close()` or the loader's end, across epochs. Batches at the end of an epoch run into
    the next one: they are always full.

    Args:
        store: the images (`attfc.open_store`).
        batch_size: B, samples per batch on this rank, >= 1.
        keys_per_query: K >= 0, the head's `keys_per_query`; 0, for heads that take no keys, gives keys of shape (B, 0, 3, S, S).
        seed: names the stream: order, keys and augmentation seeds.
        image_size: S in pixels.
        workers: decoding processes; 0 decodes in the caller.
        rank, ranks: this process's share of the stream.
        distinct_keys: see `QueryStream`. With True, all keys of an identity with two images are the other image. One with a single
            image gets it as every key, mirrored against the query and otherwise augmented on its own.
        sampling: "each_once" | "with_replacement".
        identity_share: share of each batch, from the start of that of all ranks, whose queries are drawn by identity (`IdentityMix`, F2C's
            loader); 0: all by image. The parts are counted in batches: a resumed loader keeps the batch of all ranks then.
        paired: queries come in pairs of one identity (`PairedQueries`), or in groups of `group`; a batch is then a multiple of it. Not with an
            `identity_share`, source weights or "with_replacement".
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
        group: int = 2,
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
        queries = queries_of(
            store.identities,
            seed,
            batch_size,
            ranks,
            sampling=sampling,
            identity_share=identity_share,
            group=group if paired else 1,
            sources=store if isinstance(store, CombinedStore) else None,
        )
        stream = QueryStream(
            store.identities, keys_per_query, seed, distinct_keys=distinct_keys, sampling=sampling, queries=queries
        )
        self.store = store
        self.batch_size = batch_size
        self.keys_per_query = keys_per_query
        self.seed = seed
        self.image_size = image_size
        self.workers = workers
        self.broken_limit = broken_limit
        self._rank, self._ranks = rank, ranks
        mix = queries if isinstance(queries, IdentityMix) else None
        self._mixed = {"mixed_batch": mix.batch if mix else 0, "by_identity": mix.by_identity if mix else 0}
        self._pin_memory, self._start_method, self._prefetch = pin_memory, start_method, prefetch
        self._batches = Batches(store, stream, batch_size, image_size, decoded_cache)
        self._iterator: Iterator[Decoded | Failure] | None = None
        self._closes_at_exit = False
        self._counts_crc32: int | None = None
        self._samples_seen = self._steps = self._images_seen = 0
        # Positions, in the order seen: an image that is drawn often is still one broken image.
        self._broken_seen: dict[int, None] = {}
        self._examples: list[Broken] = []

    def __len__(self) -> int:
        """Return the batches an epoch needs on this rank, rounded up; one `for` may take one less."""
        return -(-self.epoch_length // (self.batch_size * self._ranks))

    @property
    def epoch_length(self) -> int:
        """Queries in an epoch, over all ranks: the number of images in the store.

        With weighted sources: the visits that the weights ask for. With an `identity_share`: as many as the part drawn by image needs to
        pass over the images once.
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

    def group(self, count: int) -> list[Batch]:
        """Return the next batches, across epochs. If one of them fails, the place is before all of them, so what is saved then can go on.

        Raises:
            UserError: the data end it: too many broken images, or workers that died.
        """
        place, broken = (self._samples_seen, self._steps, self._images_seen), len(self._broken_seen)
        try:
            return [self._next() for _ in range(count)]
        except UserError:
            self._samples_seen, self._steps, self._images_seen = place
            self._broken_seen = dict.fromkeys(list(self._broken_seen)[:broken])
            raise

    def state_dict(self) -> dict[str, Any]:
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
            "broken": sorted(self._broken_seen),
            "images": self.store.identities.images,
            "images_per_identity_crc32": self._counts_crc32,
            "epoch_length": self.epoch_length,
            "seed": self.seed,
            **self._mixed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
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
        self._images_seen = int(state["images_seen"])
        self._broken_seen = dict.fromkeys(map(int, state.get("broken", ())))

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

    def _start(self) -> Iterator[Decoded | Failure]:
        first = self._samples_seen + self._rank * self.batch_size
        if self.workers:
            # Prefetched, one in the hands of the training step and one that it has not let go of yet.
            self._batches.ring = BatchRing(self.workers, self._prefetch + 2, math.prod(self._batches.shape))
        loader = DataLoader(
            self._batches,
            batch_size=None,
            sampler=itertools.count(first, self.batch_size * self._ranks),
            num_workers=self.workers,
            pin_memory=self._pin_memory,
            worker_init_fn=prepare_worker,
            multiprocessing_context=self._start_method if self.workers else None,
            prefetch_factor=self._prefetch if self.workers else None,
            generator=torch.Generator(),  # without it DataLoader draws from the global one and shifts the training
        )
        return cast(Iterator[Decoded | Failure], iter(loader))

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
            if self.workers and is_worker_death(error):
                raise UserError(
                    f"a loader worker died ({one_line(error)}), most often for lack of "
                    f"memory: lower workers ({self.workers}) or batch_size ({self.batch_size}), or give /dev/shm more room"
                ) from error
            raise
        except BaseException:
            self.close()
            raise
        if isinstance(decoded, Failure):
            self.close()
            raise UserError(decoded.message)
        self._samples_seen += self.batch_size * self._ranks
        self._steps += 1
        self._images_seen += decoded.images
        self._broken_seen |= dict.fromkeys(position for position, _, _ in decoded.broken)
        self._judge(decoded.broken)
        return decoded.batch()

    def _judge(self, broken: tuple[Broken, ...]) -> None:
        """Stop when more than `broken_limit` of the images seen are broken; each counts once, however often it was drawn."""
        if not broken:
            return
        self._examples = [*self._examples, *broken][:3]
        enough = min(self.store.identities.images, _JUDGED_AFTER / max(self.broken_limit, 1e-9))
        if self.broken_limit > 0 and self._images_seen < enough:
            return
        seen = min(self._images_seen, self.store.identities.images)
        if len(self._broken_seen) > self.broken_limit * seen:
            self.close()
            listed = "; ".join(dict.fromkeys(f"{where}: {reason}" for _, where, reason in self._examples))
            raise UserError(
                f"{self.store.name}: {len(self._broken_seen)} of {seen} images seen are broken, more than broken_limit = "
                f"{self.broken_limit:g} ({listed}): repair or remove them, or raise data.broken_limit"
            )


def _close_at_exit(loader: "weakref.ref[AttentionLoader]") -> None:
    """Stop the workers before multiprocessing's own exit, which would send SIGTERM and wait."""
    living = loader()
    if living is not None:
        living.close()
