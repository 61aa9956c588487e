"""What scoring all pairs found: the scores that later figures need, and the figures, over pairs and over people."""

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from attfc.evaluation.rates import far_name

__all__ = ["AllPairs", "HardPairs"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HardPairs:
    """The pairs that fooled the model most, worst first: rows of the embeddings, and the cosine."""

    first: Ints
    second: Ints
    scores: Floats


@dataclass(frozen=True, eq=False)
class AllPairs:
    """Scores over all pairs of N images; a pair counts once, no image is paired with itself.

    Attributes:
        genuine_scores: (G,) float32, all of them, by identity.
        genuine_labels: (G,) the identity of each, numbered from 0 in the order of the sorted labels.
        top_impostors: (K,) float32, the highest impostor scores, falling; as many as the largest stated FAR needs.
        top_labels: (K, 2) the two identities of each. top_codes: (K,) int64 which pair it is, by the place of its rows in `embeddings`.
        identities: how many there are, those with one image included. identity_images: (identities,) images of each.
        impostor_pairs: how many impostor pairs were scored.
        tar_at_far: over pairs; None for a FAR that cannot be stated; `notes` says why.
        threshold_at_far: a pair is accepted when its score is *above* this; None as above.
        hardest_genuine: the lowest genuine scores. hardest_impostor: the highest impostor scores.
        precision: what the products were computed in. verified: impostor pairs scored again exactly.
    """

    images: int
    genuine_scores: npt.NDArray[np.float32]
    genuine_labels: Ints
    top_impostors: npt.NDArray[np.float32]
    top_labels: Ints
    top_codes: Ints
    identities: int
    identity_images: Ints
    impostor_pairs: int
    tar_at_far: dict[float, float | None]
    threshold_at_far: dict[float, float | None]
    hardest_genuine: HardPairs
    hardest_impostor: HardPairs
    precision: str
    verified: int
    notes: tuple[str, ...] = field(default=())

    @property
    def carriers(self) -> int:
        """How many identities have a genuine pair."""
        return int((self.identity_images > 1).sum())

    @functools.cached_property
    def person_balanced_tar_at_far(self) -> dict[float, float | None]:
        """TAR with each identity weighing alike: the mean, over those with a genuine pair, of the share of their pairs accepted.

        An identity of m images has m (m - 1) / 2 pairs, so that in `tar_at_far` a person weighs by the square of their images. The thresholds are
        the same.
        """
        pairs_I = self.identity_images * (self.identity_images - 1) // 2
        starts_C, pairs_C = (np.cumsum(pairs_I) - pairs_I)[pairs_I > 0], pairs_I[pairs_I > 0]
        found: dict[float, float | None] = {}
        for far, tar in self.tar_at_far.items():
            found[far], threshold = tar, self.threshold_at_far[far]
            if threshold is not None and tar != 1.0:
                accepted_C = np.add.reduceat(self.genuine_scores > threshold, starts_C, dtype=np.int64)
                found[far] = float(np.mean(accepted_C / pairs_C))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the figures in the form of a run folder; counts of unordered pairs, of ordered ones beside them."""
        return {
            "images": self.images,
            "identities": self.identities,
            "genuine_pairs": len(self.genuine_scores),
            "impostor_pairs": self.impostor_pairs,
            "ordered_genuine_pairs": 2 * len(self.genuine_scores),
            "ordered_impostor_pairs": 2 * self.impostor_pairs,
            "tar_at_far": {far_name(far): tar for far, tar in self.tar_at_far.items()},
            "person_balanced_tar_at_far": {far_name(far): tar for far, tar in self.person_balanced_tar_at_far.items()},
            "threshold_at_far": {far_name(far): threshold for far, threshold in self.threshold_at_far.items()},
            "precision": self.precision,
            "notes": list(self.notes),
        }

    def curve(self, points: int = 200) -> tuple[Floats, Floats]:
        """Return (FAR, TAR) for plotting: numbers of false accepts spread evenly over the logarithm, each exact."""
        most = len(self.top_impostors) - 1 if len(self.top_impostors) < self.impostor_pairs else self.impostor_pairs
        if most < 1:
            return np.zeros(0), np.zeros(0)
        accepts = np.unique(np.geomspace(1, most, points).astype(np.int64))
        genuine = np.sort(self.genuine_scores)
        barred = np.append(self.top_impostors, np.float32(-2.0))[accepts]  # the first impostor that stays out
        tar = (len(genuine) - np.searchsorted(genuine, barred, side="right")) / len(genuine)
        return accepts / self.impostor_pairs, tar
