"""Rank-one identification: is the nearest other image one of the same person?

Leave one out: every image of an identity with at least two images is a probe, all other images (also those of
identities with a single image) are its gallery. Blocked matrix products: O(N^2 D) time, O(block x N) memory, on the
device of the tensor given.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attfc.errors import UserError
from attfc.evaluation.metrics import unit_rows

__all__ = ["RankOne", "rank_one", "unit_tensor"]

_TIE = 1e-6  # cosines of float32 products are rounded by about this much; equal images must count as equal


@dataclass(frozen=True)
class RankOne:
    """Share of probes whose nearest other image shows the same person, with the counts behind it."""

    rate: float
    probes: int
    gallery: int


def unit_tensor(embeddings: npt.NDArray[Any] | Tensor, device: torch.device | str | None = None) -> Tensor:
    """Return (N, D) float32 unit rows on a device; None = where the tensor is, the CPU for an array."""
    where = device if device is not None else embeddings.device if isinstance(embeddings, Tensor) else "cpu"
    return torch.from_numpy(unit_rows(embeddings)).float().to(where)


def rank_one(
    embeddings: npt.NDArray[Any] | Tensor,
    labels: npt.ArrayLike,
    *,
    block: int = 1024,
    device: torch.device | str | None = None,
) -> RankOne:
    """Return the rank-one identification rate.

    A probe counts as found when its best score with an image of the same person is above its best score with anybody
    else's by more than 1e-6: ties are misses, so a collapsed model scores 0 instead of whatever the sorting does.

    Args:
        embeddings: (N, D) any length but 0.
        labels: (N,) integers, any.
        block: probes at a time; block x N scores are held.
        device: where to multiply; None = where the embeddings are.

    Raises:
        UserError: no identity with two images, or no second identity; embeddings that are not finite or have length 0.

    >>> rank_one(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), [0, 0, 1])
    RankOne(rate=1.0, probes=2, gallery=2)
    """
    rows_ND = unit_tensor(embeddings, device)
    _, dense, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    if len(dense) != len(rows_ND):
        raise UserError(f"{len(dense)} labels for {len(rows_ND)} embeddings: pass one label a row")
    probes = np.flatnonzero(counts[dense] >= 2)
    if probes.size == 0 or len(counts) < 2:
        raise UserError(
            f"{len(rows_ND)} images of {len(counts)} identities: rank-one identification needs "
            "an identity with two images and a second identity"
        )
    labels_N = torch.from_numpy(dense).to(rows_ND.device)
    found = 0
    for start in range(0, len(probes), block):
        probe_B = torch.from_numpy(probes[start : start + block]).to(rows_ND.device)
        scores_BN = rows_ND[probe_B] @ rows_ND.T
        same_BN = labels_N[probe_B, None] == labels_N
        impostor_B = scores_BN.masked_fill(same_BN, -2.0).amax(dim=1)
        same_BN[torch.arange(len(probe_B), device=probe_B.device), probe_B] = False  # not the probe itself
        genuine_B = scores_BN.masked_fill(~same_BN, -2.0).amax(dim=1)
        found += int((genuine_B > impostor_B + _TIE).sum())
    return RankOne(found / len(probes), len(probes), len(rows_ND) - 1)
