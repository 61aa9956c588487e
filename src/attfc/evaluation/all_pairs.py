"""Every image against every other: exact TAR at FARs that a list of a few thousand pairs cannot state.

2,000 images are 2 million pairs, mostly impostors. Blocked matrix products over the upper triangle; every genuine
score is kept, and of the impostor scores only the highest that the largest FAR asks for, above a threshold that rises
as they come in. No histogram, never the pair matrix. O(N^2 D / 2) time; memory 4 bytes a genuine pair and up to 8
bytes x FAR an impostor pair.

Source: the protocol of MFR-ALL (InsightFace challenge), which scores all pairs of its test images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attfc.errors import UserError
from attfc.evaluation.identification import unit_tensor
from attfc.evaluation.metrics import FARS, far_name, pairs_needed, tar_at_far

__all__ = ["AllPairs", "HardPairs", "score_all_pairs"]


@dataclass(frozen=True, eq=False)
class HardPairs:
    """The pairs that fooled the model most, worst first: rows of the embeddings, and the cosine."""

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AllPairs:
    """Scores over all pairs of N images; a pair counts once, no image is paired with itself.

    Attributes:
        genuine_scores: (G,) float32, all of them.
        top_impostors: float32, the highest impostor scores, falling; as many as the largest stated FAR needs.
        impostor_pairs: how many impostor pairs were scored.
        tar_at_far: None for a FAR that cannot be stated; `notes` says why.
        hardest_genuine: the lowest genuine scores. hardest_impostor: the highest impostor scores.
    """

    images: int
    genuine_scores: npt.NDArray[np.float32]
    top_impostors: npt.NDArray[np.float32]
    impostor_pairs: int
    tar_at_far: dict[float, float | None]
    hardest_genuine: HardPairs
    hardest_impostor: HardPairs
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the figures in the form of a run folder."""
        return {
            "images": self.images,
            "genuine_pairs": len(self.genuine_scores),
            "impostor_pairs": self.impostor_pairs,
            "tar_at_far": {far_name(far): tar for far, tar in self.tar_at_far.items()},
            "notes": list(self.notes),
        }

    def curve(self, points: int = 200) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return (FAR, TAR) for plotting: numbers of false accepts spread evenly over the logarithm, each exact."""
        most = len(self.top_impostors) - 1 if len(self.top_impostors) < self.impostor_pairs else self.impostor_pairs
        if most < 1:
            return np.zeros(0), np.zeros(0)
        accepts = np.unique(np.geomspace(1, most, points).astype(np.int64))
        genuine = np.sort(self.genuine_scores)
        barred = np.append(self.top_impostors, np.float32(-2.0))[accepts]  # the first impostor that stays out
        tar = (len(genuine) - np.searchsorted(genuine, barred, side="right")) / len(genuine)
        return accepts / self.impostor_pairs, tar


def score_all_pairs(
    embeddings: npt.NDArray[Any] | Tensor,
    labels: npt.ArrayLike,
    *,
    fars: Sequence[float] = FARS,
    hardest: int = 12,
    block: int = 1024,
    keep_mib: float = 512.0,
    device: torch.device | str | None = None,
) -> AllPairs:
    """Score all pairs of images and return exact TAR at FAR.

    Args:
        embeddings: (N, D) any length but 0; cosines are products in float32.
        labels: (N,) integers, any.
        fars: false accept rates; one that would need more than `keep_mib` of impostor scores is not stated.
        hardest: how many of the worst genuine and impostor pairs to name.
        block: rows at a time; block x N scores are held a few times over.
        keep_mib: bound on the memory of the impostor scores kept.
        device: where to multiply; None = where the embeddings are.

    Raises:
        UserError: no genuine or no impostor pair; embeddings that are not finite or have length 0.
    """
    rows_ND = unit_tensor(embeddings, device)
    images = len(rows_ND)
    _, dense, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    if len(dense) != images:
        raise UserError(f"{len(dense)} labels for {images} embeddings: pass one label a row")
    genuine_pairs = int((counts * (counts - 1) // 2).sum())
    impostor_pairs = images * (images - 1) // 2 - genuine_pairs
    if genuine_pairs == 0 or impostor_pairs == 0:
        raise UserError(
            f"{images} images of {len(counts)} identities make {genuine_pairs} genuine and "
            f"{impostor_pairs} impostor pairs: all-pairs figures need both kinds"
        )
    room = int(keep_mib * 2**20 / 8)  # twice 4 bytes: the scores kept, and those that came in since
    wanted = max(math.floor(far * impostor_pairs) + 2 for far in fars)  # one more for the threshold, one for rounding
    keep = min(impostor_pairs, room, wanted)
    device_ = rows_ND.device
    labels_N, columns_N = torch.from_numpy(dense).to(device_), torch.arange(images, device=device_)
    kept = _Highest(keep)
    genuine_scores: list[Tensor] = []
    worst_genuine, worst_impostor = _Worst(hardest), _Worst(hardest)
    for start in range(0, images - 1, block):
        stop = min(start + block, images)
        scores_BM = rows_ND[start:stop] @ rows_ND[start:].T  # columns from `start` on: the rest was seen as rows
        later_BM = columns_N[start:] > columns_N[start:stop, None]
        same_BM = labels_N[start:stop, None] == labels_N[start:]
        genuine_BM, impostor_BM = same_BM & later_BM, ~same_BM & later_BM
        genuine_scores.append(scores_BM[genuine_BM].cpu())
        kept.add(scores_BM[impostor_BM])
        worst_genuine.add(scores_BM.masked_fill(~genuine_BM, torch.inf).neg(), start)
        worst_impostor.add(scores_BM.masked_fill(~impostor_BM, -torch.inf), start)
    genuine = torch.cat(genuine_scores).numpy()
    top = kept.falling().cpu().numpy()
    tars = tar_at_far(genuine, top, fars, impostor_pairs=impostor_pairs)
    notes = []
    for far, tar in tars.items():
        if tar is None and impostor_pairs < pairs_needed(far):
            notes.append(
                f"all pairs: TAR at FAR {far_name(far)} is not stated: {impostor_pairs:,} impostor pairs, "
                f"at least {pairs_needed(far):,} needed"
            )
        elif tar is None:
            notes.append(
                f"all pairs: TAR at FAR {far_name(far)} is not stated: "
                f"it takes {far * impostor_pairs * 8 / 2**20:,.0f} MiB of scores, keep_mib is {keep_mib:g}"
            )
    return AllPairs(
        images=images,
        genuine_scores=genuine,
        top_impostors=top,
        impostor_pairs=impostor_pairs,
        tar_at_far=tars,
        hardest_genuine=worst_genuine.pairs(sign=-1.0),
        hardest_impostor=worst_impostor.pairs(sign=1.0),
        notes=tuple(notes),
    )


class _Highest:
    """The k highest of a stream of scores, exactly."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.threshold = -math.inf
        self.parts: list[Tensor] = []
        self.held = 0

    def add(self, scores: Tensor) -> None:
        scores = scores[scores > self.threshold]  # a score equal to the k-th highest changes nothing
        self.parts.append(scores)
        self.held += len(scores)
        if self.held > 2 * self.k:
            self._shrink()

    def _shrink(self) -> None:
        highest = torch.topk(torch.cat(self.parts), self.k, sorted=False).values
        self.parts, self.held, self.threshold = [highest], self.k, float(highest.min())

    def falling(self) -> Tensor:
        if self.held > self.k:
            self._shrink()
        return torch.cat(self.parts).sort(descending=True).values


class _Worst:
    """The few pairs with the highest badness, with their rows."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.badness = torch.zeros(0)
        self.rows = torch.zeros(0, 2, dtype=torch.int64)

    def add(self, badness_BM: Tensor, start: int) -> None:
        values, places = torch.topk(badness_BM.flatten(), min(self.number, badness_BM.numel()))
        values, places = values.cpu(), places.cpu()
        width = badness_BM.shape[1]
        rows = torch.stack([start + places // width, start + places % width], dim=1)
        seen = torch.isfinite(values)
        values, rows = torch.cat([self.badness, values[seen]]), torch.cat([self.rows, rows[seen]])
        order = torch.argsort(values, descending=True, stable=True)[: self.number]
        self.badness, self.rows = values[order], rows[order]

    def pairs(self, sign: float) -> HardPairs:
        return HardPairs(self.rows[:, 0].numpy(), self.rows[:, 1].numpy(), (sign * self.badness).double().numpy())
