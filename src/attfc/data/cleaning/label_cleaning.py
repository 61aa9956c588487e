"""Wrong labels: images far from the robust center of their identity (`identity_centers`).

The threshold depends on the model; docs/formats.md has measured ones. Own centers cost O(N D), the nearest other centers
O(outliers x identities x D) in blocked products on a device: never a matrix of all pairs.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from attfc.data.cleaning.identity_centers import BLOCK_ROWS, center_blocks
from attfc.errors import UserError
from attfc.typing import Array, Float32, Int64, Progress

__all__ = ["Mislabelled", "check_cosine", "closest_centers", "mislabelled"]


_QUERIES, _CENTERS = 4_096, 4_096  # rows of a block of cosines: 64 MiB


@dataclass(frozen=True, eq=False)
class Mislabelled:
    """Images whose label is doubtful.

    Attributes:
        positions: (n,) int64 rising: rows of the embeddings.
        labels: (n,) the label each has now.
        moved_to: (n,) the label to give it; -1: leave it out.
        cosines: (n,) float32 to the center of its own identity, without itself.
        nearest: (n,) the other identity whose center is closest, -1 if it was not looked for or there is none.
        nearest_cosines: (n,) float32, NaN likewise.
        unclear: labels of identities in which no majority agrees (two images that differ, two people in equal parts): left as they are.
        compared: images that had another one of their identity to be compared with.
        quantiles: share of the compared images -> cosine to their own center, for choosing a threshold.
    """

    positions: Int64
    labels: Int64
    moved_to: Int64
    cosines: Float32
    nearest: Int64
    nearest_cosines: Float32
    unclear: Int64
    compared: int
    quantiles: dict[float, float]


def mislabelled(
    embeddings: Array,
    labels: npt.ArrayLike,
    threshold: float = 0.3,
    *,
    margin: float | None = None,
    policy: Literal["drop", "move"] = "drop",
    move_threshold: float = 0.7,
    block_rows: int = BLOCK_ROWS,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Mislabelled:
    """Find images that are far from the center of their identity.

    Args:
        embeddings: (N, D) float16 or float32, any length, array or memory map; rows of length 0 are left alone.
        labels: (N,) integers; negative: not part of it.
        threshold: cosine to the own center below which an image is mislabelled; it depends on the model, `quantiles` help to choose.
        margin: if given, an image counts only if another identity's center is also closer than its own by this cosine. It spares
            poor photographs, which are far from everybody: with a weak model far fewer sound images are lost for the same number
            found. It keeps strangers, people of no identity of the set, whom a strong model puts far from every center.
        policy: "drop" leaves the images out; "move" gives those to another identity whose cosine to its center is at least
            `move_threshold` and `margin` (0.3 if None) above the one to their own center, and leaves out the rest.
        move_threshold: a wrong move costs more than a lost image.
        block_rows: images at a time (memory: `identity_centers`); margin and "move" hold 2 x D bytes per identity besides.
        device: where nearest centers are computed.
        progress: called as (images done, images).

    Raises:
        UserError: shapes that do not fit, a threshold that is not a cosine, a row that is not finite.
    """
    check_cosine("threshold", threshold)
    check_cosine("move_threshold", move_threshold)
    if margin is not None and not 0 <= margin <= 2:
        raise UserError(f"margin={margin}: a difference of two cosines from 0 to 2 is needed")
    if policy not in ("drop", "move"):
        raise UserError(f"policy={policy!r}: 'drop' or 'move'")
    label_of = np.asarray(labels, np.int64)
    elsewhere = policy == "move" or margin is not None
    far_N = np.full(len(label_of), np.nan, np.float32)  # cosines of the doubtful ones
    unclear = [np.zeros(0, np.int64)]
    targets: list[Int64] = []
    centers: list[Array] = []
    counted = np.zeros(_BINS, np.int64)
    for block in center_blocks(embeddings, label_of, threshold, block_rows=block_rows, progress=progress):
        measured = ~np.isnan(block.cosines)
        counted += np.bincount(_bin(block.cosines[measured]), minlength=_BINS)
        far = np.repeat(block.clear, np.diff(block.offsets)) & (block.cosines < threshold)  # NaN is not
        far_N[block.rows[far]] = block.cosines[far]
        comparable = np.add.reduceat(measured.astype(np.int64), block.offsets[:-1]) > 0
        unclear.append(block.labels[comparable & ~block.clear])
        if elsewhere:
            targets.append(block.labels[block.clear])
            centers.append(block.centers[block.clear].astype(np.float16))
    found = np.flatnonzero(~np.isnan(far_N))
    own, cosine = label_of[found], far_N[found]
    nearest, nearest_cosine = np.full(len(found), -1, np.int64), np.full(len(found), np.nan, np.float32)
    moved_to = nearest
    if centers and len(found):
        nearest, nearest_cosine = _nearest_other(
            embeddings, found, own, np.concatenate(centers), np.concatenate(targets), torch.device(device)
        )
    if policy == "move":
        closer = nearest_cosine >= cosine + (0.3 if margin is None else margin)
        moved_to = np.where(closer & (nearest_cosine >= move_threshold), nearest, -1)
    kept = np.ones(len(found), np.bool_) if margin is None else nearest_cosine >= cosine + margin
    return Mislabelled(
        found[kept],
        own[kept],
        moved_to[kept],
        cosine[kept],
        nearest[kept],
        nearest_cosine[kept],
        unclear=np.concatenate(unclear),
        compared=int(counted.sum()),
        quantiles=_quantiles(counted),
    )


_BINS = 2_001  # cosines -1 ... 1 in steps of 0.001
_SHARES = (0.01, 0.05, 0.1, 0.25, 0.5)


def _bin(cosines: Float32) -> Int64:
    return np.rint((cosines.astype(np.float64) + 1) * 1000).astype(np.int64)


def _quantiles(counted: Int64) -> dict[float, float]:
    total = int(counted.sum())
    if not total:
        return {}
    below = np.cumsum(counted)
    return {share: round(int(np.searchsorted(below, share * total)) / 1000 - 1, 3) for share in _SHARES}


def check_cosine(name: str, value: float) -> None:
    """Raise UserError where a value is not a cosine."""
    if not -1 <= value <= 1:
        raise UserError(f"{name}={value}: a cosine from -1 to 1 is needed")


def _unit_tensor(rows: Array, device: torch.device) -> torch.Tensor:
    tensor_BD = torch.from_numpy(np.array(rows, np.float32)).to(device)
    lengths_B1 = torch.linalg.vector_norm(tensor_BD, dim=1, keepdim=True)
    unit_BD: torch.Tensor = tensor_BD / lengths_B1.clamp_min(torch.finfo(torch.float32).tiny)
    return unit_BD


def _nearest_other(
    embeddings: Array,
    rows: Int64,
    own: Int64,
    centers_CD: npt.NDArray[np.float16],
    labels_C: Int64,
    device: torch.device,
) -> tuple[Int64, Float32]:
    """Return the label of the closest center that is not of the row's own label, and its cosine; -1, NaN if there is none."""
    # labels_C rises: the place of the own center, or -1 where that identity has none.
    place = np.minimum(np.searchsorted(labels_C, own), len(labels_C) - 1)
    best, (cosines,) = closest_centers(
        embeddings, rows, centers_CD, device, np.where(labels_C[place] == own, place, -1)
    )
    found = best >= 0
    return np.where(found, labels_C[best], -1), np.where(found, cosines, np.float32(np.nan))


def closest_centers(
    embeddings: Array,
    rows: Int64 | None,
    centers_CD: Array,
    device: torch.device | str,
    excluded: Int64 | None = None,
    progress: Progress | None = None,
    ranks: int = 1,
) -> tuple[Int64, Float32]:
    """Find the closest centers of some rows, 4,096 x 4,096 cosines at a time (64 MiB).

    Args:
        embeddings: (N, D) of any length. rows: which of them; None: all.
        centers_CD: (C, D); rows of length 0 are near nobody.
        excluded: the place of a center that does not count, for each of the rows; -1: none.
        ranks: how many cosines of each row to return.

    Returns:
        Place of the closest center, -1 if there is none; (ranks, rows) cosines, the highest first, -2 where there are fewer centers.
    """
    shapes = embeddings.shape, centers_CD.shape
    if any(len(shape) != 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise UserError(
            f"embeddings of shape {shapes[0]} and centers of shape {shapes[1]}: both must come from one model"
        )
    rows = np.arange(len(embeddings)) if rows is None else rows
    best, cosines = np.empty(len(rows), np.int64), np.empty((ranks, len(rows)), np.float32)
    for start in range(0, len(rows), _QUERIES):
        part = slice(start, start + _QUERIES)
        queries_BD = _unit_tensor(embeddings[rows[part]], torch.device(device))
        own = None if excluded is None else excluded[part]
        best[part], cosines[:, part] = _closest(queries_BD, centers_CD, own, ranks)
        if progress is not None:
            progress(min(start + _QUERIES, len(rows)), len(rows))
    return best, cosines


def _closest(queries_BD: torch.Tensor, centers_CD: Array, excluded: Int64 | None, ranks: int) -> tuple[Int64, Float32]:
    best_B = torch.full((len(queries_BD),), -1, dtype=torch.int64, device=queries_BD.device)
    highest_BR = torch.full((len(queries_BD), ranks), -2.0, device=queries_BD.device)
    for start in range(0, len(centers_CD), _CENTERS):
        block_CD = _unit_tensor(centers_CD[start : start + _CENTERS], queries_BD.device)
        scores_BC = queries_BD @ block_CD.T
        scores_BC.masked_fill_((block_CD == 0).all(dim=1), -2.0)
        if excluded is not None:
            hit = np.flatnonzero((excluded >= start) & (excluded < start + len(block_CD)))
            scores_BC[torch.from_numpy(hit), torch.from_numpy(excluded[hit] - start)] = -2.0
        if ranks == 1:  # several times faster than topk
            values_BR, places_BR = scores_BC.max(dim=1, keepdim=True)
        else:
            values_BR, places_BR = scores_BC.topk(min(ranks, len(block_CD)), dim=1)
        best_B = torch.where(values_BR[:, 0] > highest_BR[:, 0], places_BR[:, 0] + start, best_B)
        highest_BR = torch.cat([highest_BR, values_BR], dim=1).topk(ranks, dim=1).values
        del scores_BC  # else two blocks are held
    highest_BR[(queries_BD == 0).all(dim=1)] = -2.0
    return best_B.cpu().numpy(), highest_BR.T.cpu().numpy()
