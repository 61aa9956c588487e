"""What calibration needs of all pairs of a set: the highest nonmated scores, all mated ones, a sample of nonmated ones; with their people.

Cost: that of all pairs, kept to ten times the asked FMR; where a few people hold most images, deeper.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attfc.errors import UserError
from attfc.evaluation.exact_scores import pair_scores
from attfc.evaluation.operating_point.nonmated import NonmatedTail
from attfc.evaluation.protocols.all_pairs_scores import score_all_pairs
from attfc.evaluation.unit_rows import unit_tensor
from attfc.typing import Array, Float64, Int64

__all__ = ["SAMPLED", "Scores", "scores_of_people"]

SAMPLED = 10_000  # nonmated pairs drawn for P(same person)
_DEPTH = 10  # times the asked FMR: how far down nonmated scores are kept


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of pairs with the people behind them.

    Attributes:
        tail: the highest nonmated scores.
        mated, mated_person: (G,) scores of two images of one person, and who.
        images_I: images of each person, failed ones included where they count.
        sampled: (S,) nonmated scores of pairs drawn evenly over people. sampled_people: (2, S) who.
    """

    tail: NonmatedTail
    mated: Float64
    mated_person: Int64
    images_I: Int64
    sampled: Float64
    sampled_people: Int64

    @property
    def people(self) -> int:
        """How many there are."""
        return len(self.images_I)

    @property
    def mated_pairs(self) -> Int64:
        """Mated pairs of each person."""
        return self.images_I * (self.images_I - 1) // 2

    def rejected(self, threshold: float) -> Float64:
        """Return the share of each person's mated pairs at or below a threshold; NaN for people of one image."""
        accepted = np.bincount(self.mated_person[self.mated > threshold], minlength=self.people)
        with np.errstate(invalid="ignore", divide="ignore"):
            share: Float64 = 1.0 - accepted / self.mated_pairs
        return share


def scores_of_people(
    vectors_ND: Array | Tensor,
    labels_N: Int64,
    fmr: float,
    images_of: dict[int, int] | None = None,
    seed: int = 0,
    **options: Any,
) -> Scores:
    """Score all pairs of images as `calibrate_scores` takes them.

    Args:
        vectors_ND: embeddings of the usable images, any length but 0. labels_N: whose they are.
        fmr: that will be asked for.
        images_of: label -> images, failed ones included, of all people that count; None: the usable ones.
        options: of `score_all_pairs`.

    Raises:
        UserError: the budget has no room for the scores that the FMR needs; as `score_all_pairs`.
    """
    usable, usable_I = np.unique(labels_N, return_counts=True)
    counted = images_of if images_of is not None else dict(zip(usable.tolist(), usable_I.tolist(), strict=True))
    labels = np.array(sorted(counted), dtype=np.int64)
    images_I = np.array([counted[label] for label in labels.tolist()], dtype=np.int64)
    person_of, depth = np.searchsorted(labels, usable), min(1.0, _DEPTH * fmr)
    wanted = fmr * math.comb(len(labels), 2)
    while True:
        pairs = score_all_pairs(vectors_ND, labels_N, fars=(depth,), **options)
        tail = NonmatedTail.of(pairs, person_of, images_I)
        kept = float(tail.weights.sum())
        if depth >= 1 or kept >= _DEPTH / 2 * wanted or not pairs.stated:
            break
        depth = min(1.0, 4 * depth)  # people of many images hold most of the pairs
    if kept < min(_DEPTH / 2 * wanted, math.comb(len(labels), 2)) and not pairs.stated:
        raise UserError(
            f"the budget holds the highest {len(tail.scores):,} scores of two people, too few for FMR {fmr:g}: {pairs.notes[0]}"
        )
    mated = pairs.genuine_scores.astype(np.float64)
    sampled, people = _sampled_nonmated(vectors_ND, np.searchsorted(labels, labels_N), seed)
    return Scores(tail, mated, person_of[pairs.genuine_labels], images_I, sampled, people)


def _sampled_nonmated(vectors_ND: Array | Tensor, person_N: Int64, seed: int) -> tuple[Float64, Int64]:
    """Return scores of pairs of images of two people, every pair of people as likely, and who they are."""
    draw = np.random.default_rng([seed, 3])
    present, counts = np.unique(person_N, return_counts=True)
    order, starts = np.argsort(person_N, kind="stable"), np.cumsum(counts) - counts
    first = draw.integers(len(present), size=SAMPLED)
    second = (first + draw.integers(1, len(present), size=SAMPLED)) % len(present)
    rows = [order[starts[side] + (draw.random(SAMPLED) * counts[side]).astype(np.int64)] for side in (first, second)]
    used, places = np.unique(np.stack(rows), return_inverse=True)
    one, other = torch.from_numpy(places.reshape(2, -1))
    scores = pair_scores(unit_tensor(vectors_ND, "cpu", used), one, other)
    return scores.numpy().astype(np.float64), np.stack([present[first], present[second]])
