"""The center of each identity's embeddings, robust against wrong labels, and every image's cosine to its own center.

A wrong image drags the center towards itself and hides. So each cosine leaves its own image out, and the center is that of
a majority: start from all images, keep the closest half (n // 2 + 1 of n) and take their center, twice (the concentration
steps of least trimmed squares: up to half of an identity may be wrong); then take the center of all images that reach the
threshold, twice. Identities of which no majority reaches the threshold are not `clear`: two images that differ, two people in
equal parts; nobody can tell from them alone which label is wrong.

A few identities at a time: O(N D) time, every row read once (some six passes over it in the cache of the block), memory
3 x block_rows x D x 4 bytes beside 16 bytes per image; an identity of more than block_rows images is streamed, its rows read
once a pass. Embeddings may be a float16 or float32 memory map; rows of length 0 (broken images) count as absent.

Cosines to a center of many images are higher than cosines of pairs: with a cosine r between images of one person it
is about sqrt(r), but r itself where only one other image is left (https://arxiv.org/abs/1801.07698 compares with centers too). A fixed
threshold is therefore stricter for small identities; how far a wrong image reaches depends little on the size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attfc.data.index import run_starts
from attfc.errors import UserError
from attfc.typing import Array, Bools, Float32, Int64, Progress

__all__ = ["CenterBlock", "center_blocks", "identity_centers", "unit_rows"]

BLOCK_ROWS = 65_536
_CONCENTRATIONS, _REWEIGHTINGS = 2, 2
_GATHER = 4_096  # rows whose centers are gathered at once
_NOTHING = 1e-4  # length of a sum of unit vectors that has no direction


@dataclass(frozen=True, eq=False)
class CenterBlock:
    """Some identities with all their images.

    Attributes:
        labels: (I,) int64, rising.
        offsets: (I + 1,) int64: images offsets[i] ... offsets[i + 1] - 1 of this block are identity i's.
        rows: (n,) int64 rows of the embeddings.
        cosines: (n,) float32 cosine of each image to its identity's center without the image itself; NaN if there is no other
            image to compare with or the row has length 0.
        centers: (I, D) float32 unit length; zeros if every row has length 0.
        clear: (I,) a majority of the images (more than half, at least two) reaches the threshold.
    """

    labels: Int64
    offsets: Int64
    rows: Int64
    cosines: Float32
    centers: Float32
    clear: Bools


def center_blocks(
    embeddings: Array,
    labels: npt.ArrayLike,
    threshold: float,
    *,
    block_rows: int = BLOCK_ROWS,
    progress: Progress | None = None,
) -> Iterator[CenterBlock]:
    """Yield the identities block by block, in order of their labels.

    Args:
        embeddings: (N, D) floats of any length, array or memory map.
        labels: (N,) integers; negative: not part of it.
        threshold: cosine from which an image counts as its identity's.
        block_rows: images at a time.
        progress: called as (images done, images).

    Raises:
        UserError: shapes that do not fit, or a row that is not finite.
    """
    label_of = np.asarray(labels)
    if embeddings.ndim != 2 or embeddings.shape[0] != len(label_of) or label_of.ndim != 1:
        raise UserError(
            f"embeddings of shape {embeddings.shape} for {label_of.size:,} labels: one row for each image is needed, in order"
        )
    if embeddings.dtype.kind != "f":
        raise UserError(f"embeddings are {embeddings.dtype}: float16 or float32 rows are needed")
    rows = np.flatnonzero(label_of >= 0)
    ordered = label_of[rows].astype(np.int64, copy=False)
    if len(ordered) and (ordered[1:] < ordered[:-1]).any():
        order = np.argsort(ordered, kind="stable")
        rows, ordered = rows[order], ordered[order]
    starts = run_starts(ordered)
    names, ends = ordered[starts], np.append(starts[1:], len(ordered))
    first = 0
    while first < len(names):
        # As many whole identities as fit, at least one.
        stop = max(first + 1, int(np.searchsorted(ends, starts[first] + block_rows, side="right")))
        span = slice(int(starts[first]), int(ends[stop - 1]))
        offsets = np.append(starts[first:stop], ends[stop - 1]) - span.start
        block = _Block(embeddings, rows[span], offsets, block_rows)
        cosines, centers, clear = block.solve(threshold)
        yield CenterBlock(names[first:stop], offsets, rows[span], cosines, centers, clear)
        if progress is not None:
            progress(span.stop, len(rows))
        first = stop


def identity_centers(
    embeddings: Array,
    labels: npt.ArrayLike,
    identities: int,
    threshold: float,
    *,
    dtype: npt.DTypeLike = np.float32,
) -> Array:
    """Return the center of every identity: (identities, D), unit length, zeros for one without a usable image.

    Args:
        embeddings, labels, threshold: of `center_blocks`; labels 0 ... identities - 1 or negative.
        dtype: of the result; float16 halves the 4 GB of 2 million identities.

    >>> identity_centers(np.array([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]]), [0, 0, 2], 3, 0.5).tolist()
    [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]
    """
    highest = int(np.max(np.asarray(labels), initial=-1))
    if highest >= identities:
        raise UserError(f"label {highest} is beyond the last of {identities} identities")
    centers = np.zeros((identities, embeddings.shape[1] if embeddings.ndim == 2 else 0), dtype)
    for block in center_blocks(embeddings, labels, threshold):
        centers[block.labels] = block.centers
    return centers


class _Block:
    """The arithmetic on one block; `offsets` has no empty identity."""

    def __init__(self, embeddings: Array, rows: Int64, offsets: Int64, chunk: int) -> None:
        self.embeddings, self.rows, self.offsets, self.chunk = embeddings, rows, offsets, chunk
        self.counts = np.diff(offsets)
        self.identity = np.repeat(np.arange(len(self.counts)), self.counts)
        self.cached: Float32 | None = None
        if len(rows) <= chunk:
            self.cached = unit_rows(embeddings, rows)
        self.valid = np.concatenate([np.any(unit != 0, axis=1) for _, unit in self._chunks()])

    def _chunks(self) -> Iterator[tuple[slice, Float32]]:
        if self.cached is not None:
            yield slice(0, len(self.rows)), self.cached
            return
        for start in range(0, len(self.rows), self.chunk):
            yield slice(start, start + self.chunk), unit_rows(self.embeddings, self.rows[start : start + self.chunk])

    def solve(self, threshold: float) -> tuple[Float32, Float32, Bools]:
        """Return (cosines, centers, clear)."""
        present = self._count(self.valid)
        kept = self.valid
        cosines, sums = self._leave_one_out(kept)
        for _ in range(_CONCENTRATIONS):
            kept = self._closest(cosines, present // 2 + 1)
            cosines, sums = self._leave_one_out(kept)
        for _ in range(_REWEIGHTINGS):
            reaching = cosines >= threshold  # NaN does not
            majority = 2 * self._count(reaching) > present
            kept = np.where(majority[self.identity], reaching, kept)
            cosines, sums = self._leave_one_out(kept)
        clear = 2 * self._count(cosines >= threshold) > present
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        return cosines, np.where(lengths > _NOTHING, sums / np.maximum(lengths, _NOTHING), 0), clear

    def _count(self, flags: Bools) -> Int64:
        return np.add.reduceat(flags.astype(np.int64), self.offsets[:-1])

    def _closest(self, cosines: Float32, number: Int64) -> Bools:
        """Flag the `number` images of each identity with the highest cosines; ties go to the first."""
        keys = np.where(np.isnan(cosines), np.where(self.valid, 0, np.inf), -cosines)
        order = np.lexsort((keys, self.identity))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - np.repeat(self.offsets[:-1], self.counts)
        closest: Bools = (rank < number[self.identity]) & self.valid
        return closest

    def _leave_one_out(self, kept: Bools) -> tuple[Float32, Float32]:
        """Return each image's cosine to the sum of the other kept images of its identity, and the sums (I, D)."""
        sums_ID = np.zeros((len(self.counts), self.embeddings.shape[1]), np.float32)
        for span, unit_ND in self._chunks():
            chosen = np.flatnonzero(kept[span])
            if len(chosen):
                owner = self.identity[span][chosen]
                starts = run_starts(owner)
                sums_ID[owner[starts]] += np.add.reduceat(unit_ND[chosen], starts, axis=0)
        squares_I = np.einsum("id,id->i", sums_ID, sums_ID)
        cosines = np.empty(len(self.rows), np.float32)
        for span, unit_ND in self._chunks():
            owner = self.identity[span]
            for start in range(0, len(owner), _GATHER):
                part = slice(start, min(start + _GATHER, len(owner)))
                along = np.einsum("nd,nd->n", unit_ND[part], sums_ID[owner[part]])
                own = kept[span][part].astype(np.float32)
                # |sum - x|^2 = |sum|^2 - 2 x.sum + 1 for a unit x: no vector is subtracted.
                square = squares_I[owner[part]] - 2 * own * along + own
                cosine = (along - own) / np.sqrt(np.maximum(square, _NOTHING**2))
                cosines[span.start + part.start : span.start + part.stop] = np.clip(cosine, -1, 1)
        others = self._count(kept)[self.identity] - kept
        cosines[(others == 0) | ~self.valid] = np.nan
        return cosines, sums_ID


def unit_rows(embeddings: Array, rows: Int64) -> Float32:
    """Return rows as float32 of length 1, or 0 where they have none."""
    contiguous = len(rows) > 0 and int(rows[-1]) - int(rows[0]) == len(rows) - 1 and bool((np.diff(rows) == 1).all())
    taken = embeddings[int(rows[0]) : int(rows[-1]) + 1] if contiguous else embeddings[rows]
    unit_ND = np.array(taken, dtype=np.float32)  # always a copy: it is divided in place
    lengths = np.sqrt(np.einsum("nd,nd->n", unit_ND, unit_ND))
    if not np.isfinite(lengths).all():
        row = int(rows[int(np.isfinite(lengths).argmin())])
        raise UserError(f"the embedding in row {row} is not finite: embed again with an earlier or a float32 model")
    unit_ND /= np.maximum(lengths, np.finfo(np.float32).tiny)[:, None]
    return unit_ND
