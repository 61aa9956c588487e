"""Embed the images of a store: image and mirror image, summed, then normalized.

The order (sum, then normalize) is that of the published `.bin` protocol. One or two forward passes per image, batched,
without gradient, in evaluation mode; the mode of every module and the state of torch's random generator are left as
they were. Images are RGB, the model's own size, (x - 127.5) / 127.5. A broken image never ends an evaluation: its row
is zero, flagged and named. Several ranks take turns at the batches of one process, so the embeddings are the same, and each ends with all
of them (N x D x 4 B).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from attfc.data.stores.store import Images, Store
from attfc.distributed import ALONE, Ranks
from attfc.errors import UserError
from attfc.precision import autocast

__all__ = ["Embeddings", "broken_images", "check_broken_limit", "device_of", "embed_store", "evaluation_mode"]


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Embeddings of N images of a store.

    Attributes:
        positions: (N,) int64, where the images stand in the store.
        vectors: (N, D) float32, unit length; zeros for broken images.
        norms: (N,) float32 length before normalizing, of the mean over image and mirror; a measure of quality; 0 if
            broken.
        broken: row -> reason.
        seconds: wall time, reading and decoding included.
    """

    positions: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]
    norms: npt.NDArray[np.float32]
    broken: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """(N,) false for broken images."""
        mask = np.ones(len(self.positions), dtype=np.bool_)
        mask[list(self.broken)] = False
        return mask


class _Batches(Dataset[tuple[Tensor, dict[int, str]]]):
    """Decoded batches by number, a rank's own: of R ranks every R-th; what a loader worker runs."""

    def __init__(
        self, store: Store, positions_N: npt.NDArray[np.int64], batch_size: int, size: int, rank: int, ranks: int
    ) -> None:
        self.store, self.positions_N, self.batch_size, self.size = store, positions_N, batch_size, size
        self.starts = range(rank * batch_size, len(positions_N), ranks * batch_size)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> tuple[Tensor, dict[int, str]]:
        start = self.starts[number]
        images: Images = self.store.images(self.positions_N[start : start + self.batch_size], self.size)
        return torch.from_numpy(images.pixels), {start + row: reason for row, reason in images.broken.items()}


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
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


def embed_store(
    model: nn.Module,
    store: Store,
    positions: npt.ArrayLike | None = None,
    *,
    batch_size: int = 256,
    flip: bool = True,
    device: torch.device | str | None = None,
    workers: int = 0,
    autocast_dtype: torch.dtype | None = None,
    image_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> Embeddings:
    """Embed images of a store with a backbone.

    Args:
        model: (B, 3, S, S) float32 RGB in [-1, 1] -> (B, D).
        store: where the images are.
        positions: (N,) which images, None = all; each is embedded as often as it is named.
        batch_size: images per forward pass.
        flip: add the embedding of the mirror image before normalizing (a second pass).
        device: where to compute; None = where the model is. The model is not moved.
        workers: processes that read and decode; 0 = this one.
        autocast_dtype: torch.bfloat16 or torch.float16 for mixed precision, None = the model's own precision.
        image_size: side in pixels; None = the model's `image_size` attribute.
        progress: called as (images done, images).
        ranks: the processes that embed together; all call this alike, with equal models, and get all embeddings.

    Returns:
        Embeddings; broken images have zero rows and are named in `broken`.

    Raises:
        UserError: NaN, infinity or length 0 in an embedding of a sound image; no images; a model without `image_size`.
    """
    start = time.perf_counter()
    positions_N = np.arange(len(store)) if positions is None else np.asarray(positions, dtype=np.int64).ravel()
    if len(positions_N) == 0:
        raise UserError(f"{store.name}: no images to embed")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: use at least 1")
    size = getattr(model, "image_size", None) if image_size is None else image_size
    if not isinstance(size, int):
        raise UserError(f"{type(model).__name__} has no image_size attribute: pass image_size=112")
    on = device_of(model) if device is None else torch.device(device)
    loader = DataLoader(
        _Batches(store, positions_N, batch_size, size, ranks.rank, ranks.size),
        batch_size=None,
        num_workers=workers,
        # A loader draws a seed; from torch's global generator that would change the training after it.
        generator=torch.Generator(),
    )

    def embed() -> tuple[list[npt.NDArray[np.float32]], dict[int, str]]:
        rows: list[Tensor] = []
        broken: dict[int, str] = {}
        with torch.no_grad(), evaluation_mode(model), autocast(on, autocast_dtype):
            for pixels_BSSC, broken_rows in loader:
                # A view of (B, S, S, 3) memory: channels-last already, no copy.
                images_BCSS = (pixels_BSSC.to(on, non_blocking=True).permute(0, 3, 1, 2).float() - 127.5) / 127.5
                sum_BD = model(images_BCSS).float()
                if flip:
                    sum_BD = (sum_BD + model(images_BCSS.flip(3)).float()) / 2
                rows.append(sum_BD)
                broken.update(broken_rows)
                if progress is not None:
                    progress(min(len(rows) * ranks.size * batch_size, len(positions_N)), len(positions_N))
        return [row.cpu().numpy() for row in rows], broken

    parts = ranks.objects(ranks.together(embed))
    broken = {row: reason for _, reasons in parts for row, reason in sorted(reasons.items())}
    raw_ND = torch.from_numpy(
        np.concatenate([part[turn] for turn in range(len(parts[0][0])) for part, _ in parts if turn < len(part)])
    )
    raw_ND[list(broken)] = 0.0
    norms_N = torch.linalg.vector_norm(raw_ND, dim=1)
    bad = torch.nonzero(~(torch.isfinite(norms_N) & (norms_N > 0))).ravel()
    bad = bad[~torch.isin(bad, torch.tensor(list(broken), dtype=torch.int64))]
    if len(bad):
        first = int(bad[0])
        what = "length 0" if norms_N[first] == 0 else "NaN or infinity"
        raise UserError(
            f"{store.name}: the embedding of {store.where(int(positions_N[first]))} has {what} "
            f"({len(bad)} of {len(positions_N)} images): the model has diverged; "
            "take an earlier checkpoint, lower the learning rate or evaluate without mixed precision"
        )
    vectors_ND = raw_ND / norms_N.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    return Embeddings(positions_N, vectors_ND.numpy(), norms_N.numpy(), broken, time.perf_counter() - start)


def check_broken_limit(broken_limit: float) -> None:
    """Refuse a limit that is no share, before anything is embedded."""
    if not 0 <= broken_limit <= 1:
        raise UserError(f"broken_limit={broken_limit} is no share: use a number from 0 to 1")


def broken_images(
    embeddings: Embeddings, name: str, where: Callable[[int], str], broken_limit: float, missing: int = 0
) -> tuple[tuple[int, str, str], ...]:
    """Return (position, where, reason) of every broken image, in the order of the rows.

    Args:
        embeddings: of `embed_store`.
        name, where: of the source, for messages.
        broken_limit: the largest share of the images that may be broken or missing.
        missing: images that are asked for and not in the source; they have no row.

    Raises:
        UserError: more are; a figure without them would be that of another set.
    """
    positions_N = embeddings.positions
    broken = tuple(
        (int(positions_N[row]), where(int(positions_N[row])), reason)
        for row, reason in sorted(embeddings.broken.items())
    )
    if len(broken) + missing > broken_limit * (len(positions_N) + missing):
        first = f"; the first is {broken[0][1]}: {broken[0][2]}" if broken else ""
        raise UserError(
            f"{name}: {len(broken) + missing:,} of {len(positions_N) + missing:,} images are broken{' or missing' if missing else ''}, "
            f"more than the limit of {broken_limit:g}{first}: repair the set, or raise --broken-limit (of a training run: data.broken_limit)"
        )
    return broken
