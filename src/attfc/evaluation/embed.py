"""Embed the images of a store: image and mirror image, summed, then normalized.

The order (sum, then normalize) is that of the published `.bin` protocol. One or two forward passes per image, batched,
without gradient, in evaluation mode; the mode of every module and the state of torch's random generator are left as
they were. Images are RGB, the model's own size, (x - 127.5) / 127.5. A broken image never ends an evaluation: its row
is zero, flagged and named. Several ranks take turns at the batches of one process, so the embeddings are the same, and each ends with all
of them (N x D x 4 B).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from attfc.data.attributes import NamedImages
from attfc.data.conditions import Condition
from attfc.data.stores.store import Images
from attfc.distributed import ALONE, Ranks
from attfc.errors import UserError
from attfc.evaluation.embedding_cache import Batch, CacheKey, FaceEmbeddings, cached_embeddings
from attfc.evaluation.rates import Figures
from attfc.evaluation.unit_rows import fault_of
from attfc.precision import autocast
from attfc.typing import Bools, Float32, Int64, Json, Progress, UInt8

__all__ = [
    "BrokenImage",
    "Embedder",
    "Embeddings",
    "ImageEvaluation",
    "ImageSource",
    "Kept",
    "check_broken_limit",
    "device_of",
    "embed_store",
]


BrokenImage = tuple[int, str, str]
"""(position, where, reason) of an image that could not be used."""


class ImageSource(NamedImages, Protocol):
    """What embedding needs of a store or a verification set."""

    def images(self, positions: npt.ArrayLike, size: int, out: UInt8 | None = None) -> Images:
        """Return decoded RGB images; broken ones black and named."""


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Embeddings of N images of a store.

    Attributes:
        positions: (N,) int64, where the images stand in the store.
        vectors: (N, D) float32, unit length; zeros for broken images.
        norms: (N,) float32 length before normalizing, of the mean over image and mirror; a measure of quality; 0 if
            broken.
        broken: row -> reason. left_out: the same images as (position, where, reason), in the order of the rows.
        seconds: wall time, reading and decoding included.
    """

    positions: Int64
    vectors: Float32
    norms: Float32
    broken: dict[int, str]
    left_out: tuple[BrokenImage, ...]
    seconds: float

    @property
    def first_left_out(self) -> str:
        """Which broken image is the first, for messages."""
        return f"the first is {self.left_out[0][1]}: {self.left_out[0][2]}"

    @property
    def valid(self) -> Bools:
        """(N,) false for broken images."""
        mask = np.ones(len(self.positions), dtype=np.bool_)
        mask[list(self.broken)] = False
        return mask


@dataclass(frozen=True, eq=False)
class ImageEvaluation(Figures):
    """What a protocol found that embeds every image of a source once; the base of those.

    Attributes:
        name: of the source.
        embeddings: of every image embedded, the broken ones included.
        notes: what a reader of the figures should know.
    """

    name: str
    embeddings: Embeddings
    notes: tuple[str, ...]

    @property
    def broken(self) -> tuple[BrokenImage, ...]:
        """(position, where, reason) of the images that could not be used."""
        return self.embeddings.left_out

    def figures(self) -> Json:
        """Return the figures as plain JSON types, rates as text, unknown figures as None."""
        return {
            **super().figures(),
            "images": len(self.embeddings.positions),
            "broken": len(self.broken),
            "embedding_seconds": self.embeddings.seconds,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Kept:
    """Where embeddings are written as they come, so that an interrupted run goes on: one process, 8 bytes per number and image.

    Attributes:
        folder: of these embeddings alone; whoever is done with them deletes it.
        model_key: names the model's contents. Images are known by their places: one that is overwritten meanwhile goes unnoticed.
    """

    folder: Path
    model_key: str


class _Batches(Dataset[tuple[Tensor, dict[int, str]]]):
    """Decoded batches by number, a rank's own: of R ranks every R-th; what a loader worker runs."""

    def __init__(self, source: ImageSource, positions_N: Int64, batch_size: int, size: int, ranks: Ranks) -> None:
        self.source, self.positions_N, self.batch_size, self.size = source, positions_N, batch_size, size
        self.starts = range(ranks.rank * batch_size, len(positions_N), ranks.size * batch_size)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> tuple[Tensor, dict[int, str]]:
        start = self.starts[number]
        images = self.source.images(self.positions_N[start : start + self.batch_size], self.size)
        return torch.from_numpy(images.pixels), {start + row: reason for row, reason in images.broken.items()}


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode and give each its own mode back, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def device_of(model: nn.Module) -> torch.device:
    """Return where the module's first parameter or buffer is; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@dataclass(frozen=True)
class Embedder:
    """A backbone and how it embeds: what every protocol takes, so that it says nothing of batches and devices itself.

    Attributes:
        model: (B, 3, S, S) float32 RGB in [-1, 1] -> (B, D); its mode is left as it was, and it is not moved.
        batch_size: images per forward pass.
        flip: add the embedding of the mirror image before normalizing (a second pass).
        device: where to compute; None = where the model is.
        workers: processes that read and decode; 0 = this one.
        autocast_dtype: torch.bfloat16 or torch.float16 for mixed precision, None = the model's own precision.
        image_size: side in pixels; None = the model's `image_size` attribute.
        ranks: the processes that embed together; all call this alike, with equal models, and get all embeddings.
        conditions: what is done to the decoded images before, in this order.

    Raises:
        UserError: a batch size below 1.
    """

    model: nn.Module
    batch_size: int = 256
    flip: bool = True
    device: torch.device | str | None = None
    workers: int = 0
    autocast_dtype: torch.dtype | None = None
    image_size: int | None = None
    ranks: Ranks = ALONE
    conditions: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what embeds nothing."""
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size}: use at least 1")

    @staticmethod
    def of(model: "nn.Module | Embedder") -> "Embedder":
        """Return an embedder as it is, a backbone's with the defaults."""
        return model if isinstance(model, Embedder) else Embedder(model)

    @property
    def on(self) -> torch.device:
        """The device it computes on."""
        return device_of(self.model) if self.device is None else torch.device(self.device)

    @property
    def of_cache(self) -> dict[str, str]:
        """What embeddings depend on beside model, size and images, for their key in a cache; nothing where nothing is done to the images."""
        precision = {"precision": str(self.autocast_dtype)}
        return {**precision, "condition": ",".join(map(str, self.conditions))} if self.conditions else precision

    def passes(self, batches: Dataset[Any], mirror: bool) -> Iterator[tuple[Any, ...]]:
        """Yield (embeddings (B, D), those of the mirror images or None, whatever else the batch has) of each batch.

        Args:
            batches: items (uint8 (B, S, S, 3) RGB, ...) by number.
            mirror: whether the mirror images are embedded too.
        """
        # A loader draws a seed; from torch's global generator that would change the training after it.
        loader = DataLoader(batches, batch_size=None, num_workers=self.workers, generator=torch.Generator())
        with torch.no_grad(), _evaluation_mode(self.model), autocast(self.on, self.autocast_dtype):
            for pixels_BSSC, *rest in loader:
                pixels_BSSC = pixels_BSSC.to(self.on, non_blocking=True)
                for condition in self.conditions:
                    pixels_BSSC = condition(pixels_BSSC)
                # A view of (B, S, S, 3) memory: channels-last already, no copy.
                images_BCSS = (pixels_BSSC.permute(0, 3, 1, 2).float() - 127.5) / 127.5
                image_BD = self.model(images_BCSS).float()
                yield image_BD, self.model(images_BCSS.flip(3)).float() if mirror else None, *rest

    def embed(
        self,
        source: ImageSource,
        positions: npt.ArrayLike | None = None,
        progress: Progress | None = None,
        kept: Kept | None = None,
    ) -> Embeddings:
        """Embed images; see `embed_store`."""
        start = time.perf_counter()
        positions_N = np.arange(len(source)) if positions is None else np.asarray(positions, dtype=np.int64).ravel()
        if len(positions_N) == 0:
            raise UserError(f"{source.name}: no images to embed")
        size = getattr(self.model, "image_size", None) if self.image_size is None else self.image_size
        if not isinstance(size, int):
            raise UserError(
                f"{type(self.model).__name__} has no image_size attribute: set it to the side that the network takes, as in model.image_size = 112"
            )
        rows_of = self._rows_in_memory if kept is None else partial(self._rows_on_disk, kept)
        raw_ND, broken = rows_of(source, positions_N, size, progress)
        raw_ND[list(broken)] = 0.0
        norms_N = torch.linalg.vector_norm(raw_ND, dim=1)
        bad = [row for row in torch.nonzero(~usable_lengths(norms_N)).ravel().tolist() if row not in broken]
        if bad:
            raise UserError(
                f"{source.name}: the embedding of {source.where(int(positions_N[bad[0]]))} has {fault_of(norms_N[bad[0]])} "
                f"({len(bad)} of {len(positions_N)} images): the model has diverged; "
                "take an earlier checkpoint, lower the learning rate or evaluate without mixed precision"
            )
        vectors_ND = raw_ND / norms_N.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        places = {row: int(positions_N[row]) for row in sorted(broken)}
        left_out = tuple((place, source.where(place), broken[row]) for row, place in places.items())
        seconds = time.perf_counter() - start
        return Embeddings(positions_N, vectors_ND.numpy(), norms_N.numpy(), broken, left_out, seconds)

    def _rows_in_memory(
        self, source: ImageSource, positions_N: Int64, size: int, progress: Progress | None
    ) -> tuple[Tensor, dict[int, str]]:
        """Return (N, D) rows, not normalized, of all ranks, and why some images are broken."""
        ranks = self.ranks

        def rows_of_rank() -> tuple[list[Float32], dict[int, str]]:
            rows: list[Tensor] = []
            broken: dict[int, str] = {}
            batches = _Batches(source, positions_N, self.batch_size, size, ranks)
            for image_BD, mirror_BD, broken_rows in self.passes(batches, self.flip):
                rows.append(image_BD if mirror_BD is None else (image_BD + mirror_BD) / 2)
                broken.update(broken_rows)
                if progress is not None:
                    progress(min(len(rows) * ranks.size * self.batch_size, len(positions_N)), len(positions_N))
            return [row.cpu().numpy() for row in rows], broken

        parts = ranks.objects(ranks.together(rows_of_rank))
        broken = {row: reason for _, reasons in parts for row, reason in sorted(reasons.items())}
        rows = [part[turn] for turn in range(len(parts[0][0])) for part, _ in parts if turn < len(part)]
        return torch.from_numpy(np.concatenate(rows)), broken

    def _rows_on_disk(
        self, kept: Kept, source: ImageSource, positions_N: Int64, size: int, progress: Progress | None
    ) -> tuple[Tensor, dict[int, str]]:
        """Return the same of one process, from disk as far as they are there."""
        places = "\0".join(source.where(position) for position in positions_N.tolist())
        key = CacheKey(kept.model_key, image_size=size, flip=self.flip, **self.of_cache)
        key.add("images", places.encode("utf-8", "surrogateescape"))
        found = self.rows_kept(kept.folder, key, source, positions_N, size, progress)
        return torch.from_numpy((found.image + found.mirror) / 2), found.broken

    def rows_kept(
        self,
        place: Path,
        key: CacheKey,
        source: ImageSource,
        positions_N: Int64,
        size: int,
        progress: Progress | None = None,
    ) -> FaceEmbeddings:
        """Return embeddings of images as the model gives them, mapped from disk, where one process has written those that were missing.

        Args:
            place, key: see `cached_embeddings`; the key names model, images and options.
            size: side in pixels.
        """

        def embed(start: int) -> Iterator[Batch]:
            batches = _Batches(source, positions_N[start:], self.batch_size, size, ALONE)
            for image_BD, mirror_BD, broken_rows in self.passes(batches, self.flip):
                both = [part.cpu() for part in (image_BD, image_BD if mirror_BD is None else mirror_BD)]
                yield both[0], both[1], {start + row: reason for row, reason in broken_rows.items()}, ()

        numbers = int(self.model.embedding_size)  # type: ignore[arg-type]
        return cached_embeddings(place, key, len(positions_N), numbers, embed, progress)

    def embed_within(
        self,
        source: ImageSource,
        positions: npt.ArrayLike | None,
        broken_limit: float,
        *,
        missing: int = 0,
        progress: Progress | None = None,
        kept: Kept | None = None,
    ) -> Embeddings:
        """Embed images of which a share may be broken.

        Args:
            source, positions, progress: see `embed_store`.
            kept: write embeddings there as they come, and go on with those that are there; None: memory.
            broken_limit: the largest share of the images that may be broken or missing.
            missing: images that are asked for and not in the source; they have no row.

        Raises:
            UserError: more are; a figure without them would be that of another set.
        """
        check_broken_limit(broken_limit)
        found = self.embed(source, positions, progress, kept)
        images, lost = len(found.positions) + missing, len(found.broken) + missing
        if lost > broken_limit * images:
            raise UserError(
                f"{source.name}: {lost:,} of {images:,} images are broken{' or missing' if missing else ''}, "
                f"more than the limit of {broken_limit:g}{f'; {found.first_left_out}' if found.broken else ''}: "
                "repair the set, or raise --broken-limit (of a training run: data.broken_limit)"
            )
        return found


def embed_store(
    model: nn.Module,
    store: ImageSource,
    positions: npt.ArrayLike | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Embeddings:
    """Embed images of a store with a backbone.

    Args:
        model: (B, 3, S, S) float32 RGB in [-1, 1] -> (B, D).
        store: where the images are.
        positions: (N,) which images, None = all; each is embedded as often as it is named.
        progress: called as (images done, images).
        options: batch_size, flip, device, workers, autocast_dtype, image_size, ranks, conditions: see `Embedder`.

    Returns:
        Embeddings; broken images have zero rows and are named in `broken`.

    Raises:
        UserError: NaN, infinity or length 0 in an embedding of a sound image; no images; a model without `image_size`.
    """
    return Embedder(model, **options).embed(store, positions, progress)


def check_broken_limit(broken_limit: float) -> None:
    """Refuse a limit that is not a share, before anything is embedded."""
    if not 0 <= broken_limit <= 1:
        raise UserError(f"broken_limit={broken_limit} is not a share: use a number from 0 to 1")


def usable_lengths(norms_N: Tensor) -> Tensor:
    """Return (N,) true where an embedding of such a length has a direction."""
    return torch.isfinite(norms_N) & (norms_N > 0)
