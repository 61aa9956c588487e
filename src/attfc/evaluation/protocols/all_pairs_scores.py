"""Every image against every other: exact TAR at FARs that a list of a few thousand pairs cannot state.

The 1,624,305 images of MFR-ALL are 1.3e12 pairs (2.6e12 if (a, b) and (b, a) count as two; every rate is the same), of which
FAR 1e-6 accepts 1.3 million non-mated pairs. Blocked matrix products over the upper triangle; every mated score is kept, and of
the non-mated pairs only those that can still be among the highest, above a threshold that rises as they come in. No histogram,
never the pair matrix.

Exact means: the figures are those of the exact scores (`exact_scores`), with ties as ties, whatever the products were computed in. A product
in float32 or bfloat16 is off by at most `error` (a proven bound, below), so a pair is thrown away only when even
product + error stays below the n-th highest lower bound found so far; all others are scored again exactly. Tiles in which
many pairs pass (the first ones; a collapsed model) are computed in float64 at once.

Bounds, of unit rows x, y and their roundings x', y' to bfloat16: |x.y - x'.y'| <= d (2 + d) with d the greatest |x - x'| of this very
list (about 0.0017); plus the accumulation's D 2^-24 / (1 - D 2^-24), four times that for tensor cores, which cut off
instead of rounding; plus 2^-8 where the product comes out in bfloat16. Float32: the accumulation alone (3e-5 at D = 512).
Each pair scored again is a check of the bound; a violation ends the evaluation.

Time: N^2 D / 2 multiplications, then about 3 us per mated pair and kept non-mated pair. Memory: N x D x 4 bytes, 24 bytes per
mated pair, 96 bytes x FAR per non-mated pair; never more than `budget`.

Source: the protocol of MFR-ALL (InsightFace challenge), which scores all pairs of its test images; error bounds as in
`exact_scores`.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attfc.errors import UserError
from attfc.evaluation.exact_scores import pair_scores
from attfc.evaluation.people import dominant_person
from attfc.evaluation.protocols.highest_impostors import COLUMNS, ROWS, highest_impostors
from attfc.evaluation.rates import (
    FARS,
    Figures,
    allowed_weight,
    check_rates,
    far_name,
    not_stated,
    pairs_needed,
    tar_of_kinds,
)
from attfc.evaluation.tail_sample import EXACT_IMPOSTORS, TailSample, tail_of
from attfc.evaluation.unit_rows import unit_tensor
from attfc.precision import fast_bfloat16, float32_products, without_autocast
from attfc.typing import Array, Float32, Float64, Int64, Progress

__all__ = [
    "ALL_PAIRS_FARS",
    "SPARE_FOR_INTERVALS",
    "AllPairs",
    "HardPairs",
    "bytes_needed",
    "check_budget",
    "score_all_pairs",
    "score_groups",
]

Precision = Literal["auto", "float32", "bfloat16", "float64"]

ALL_PAIRS_FARS: tuple[float, ...] = (1e-4, 1e-5, 1e-6)
SPARE_FOR_INTERVALS = 2.0
"""Impostor scores to keep, times those that the largest FAR needs: a resample's threshold may lie lower."""
_FLOAT64_FROM = 1 / 200  # share of impostors kept from which all tiles are computed in float64
_BYTES_KEPT = 96  # score and pair number (12), up to twice as many as asked for, and three times as much while sorting
_GENUINE_PAIRS = 100_000  # scored at a time
_BYTES_SCRATCH = 2**27  # pairs being scored again, a tile in float64


@dataclass(frozen=True, eq=False)
class HardPairs:
    """The pairs that fooled the model most, worst first: rows of the embeddings, and the cosine."""

    first: Int64
    second: Int64
    scores: Float64


@dataclass(frozen=True, eq=False)
class AllPairs(Figures):
    """Scores over all pairs of N images; a pair counts once, no image is paired with itself.

    Attributes:
        identity_images: (identities,) images of each, identities in the order of the sorted labels.
        genuine_scores: (G,) float32, all of them, by identity.
        top_impostors: (K,) float32, the highest non-mated scores, falling; as many as the largest stated FAR needs.
        top_labels: (K, 2) the two identities of each. top_codes: (K,) int64 which pair it is, by the place of its rows in `embeddings`.
        tar_at_far: over pairs; None for a FAR that cannot be stated; `notes` says why.
        hardest_genuine: the lowest mated scores. hardest_impostor: the highest non-mated scores.
        precision: what the products were computed in. verified: non-mated pairs scored again exactly.
    """

    identity_images: Int64
    genuine_scores: Float32
    top_impostors: Float32
    top_labels: Int64
    top_codes: Int64
    tar_at_far: dict[float, float | None]
    hardest_genuine: HardPairs
    hardest_impostor: HardPairs
    precision: str
    verified: int
    notes: tuple[str, ...] = ()

    STATED: ClassVar = (
        *("images", "identities", "genuine_pairs", "impostor_pairs", "ordered_genuine_pairs", "ordered_impostor_pairs"),
        *("tar_at_far", "person_balanced_tar_at_far", "threshold_at_far", "precision", "notes"),
    )

    @property
    def images(self) -> int:
        """N."""
        return int(self.identity_images.sum())

    @property
    def identities(self) -> int:
        """How many there are, those with one image included."""
        return len(self.identity_images)

    @property
    def genuine_pairs(self) -> int:
        """How many were scored."""
        return len(self.genuine_scores)

    @property
    def impostor_pairs(self) -> int:
        """How many were scored."""
        return _PairCounts(self.identity_images).impostors

    @property
    def ordered_genuine_pairs(self) -> int:
        """As many again the other way round."""
        return 2 * self.genuine_pairs

    @property
    def ordered_impostor_pairs(self) -> int:
        """As many again the other way round."""
        return 2 * self.impostor_pairs

    @property
    def stated(self) -> tuple[float, ...]:
        """The FARs whose TAR could be stated."""
        return tuple(far for far, tar in self.tar_at_far.items() if tar is not None)

    @property
    def genuine_labels(self) -> Int64:
        """(G,) the identity of each mated pair."""
        return np.repeat(np.arange(self.identities), _PairCounts(self.identity_images).genuine_I)

    @property
    def threshold_at_far(self) -> dict[float, float | None]:
        """A pair is accepted when its score is *above* this; None for a FAR that cannot be stated."""
        falling = np.append(self.top_impostors, np.float32(-1.0))  # all are accepted
        places = {far: min(allowed_weight(far, self.impostor_pairs), len(falling) - 1) for far in self.stated}
        return {far: float(falling[places[far]]) if far in places else None for far in self.tar_at_far}

    @property
    def carriers(self) -> int:
        """How many identities have a mated pair."""
        return int((self.identity_images > 1).sum())

    @functools.cached_property
    def person_balanced_tar_at_far(self) -> dict[float, float | None]:
        """TAR with each identity weighing alike: the mean, over those with a mated pair, of the share of their pairs accepted.

        An identity of m images has m (m - 1) / 2 pairs, so that in `tar_at_far` a person weighs by the square of their images. The thresholds are
        the same.
        """
        found, pairs_C = dict(self.tar_at_far), np.diff(self._genuine_starts)
        for far, threshold in self.threshold_at_far.items():
            if threshold is not None and found[far] != 1.0:
                found[far] = float(np.mean(self.accepted_pairs(threshold) / pairs_C))
        return found

    def accepted_pairs(self, threshold: float) -> Int64:
        """Return how many mated pairs score above a threshold, of each identity that has any: (carriers,)."""
        return np.add.reduceat(self.genuine_scores > threshold, self._genuine_starts[:-1], dtype=np.int64)

    @functools.cached_property
    def _genuine_starts(self) -> Int64:
        """Where in `genuine_scores` those of each identity that has any begin, and where the last ends: (carriers + 1,)."""
        pairs_I = _PairCounts(self.identity_images).genuine_I
        return np.append(0, np.cumsum(pairs_I[pairs_I > 0]))

    def sample(self, exact: int = EXACT_IMPOSTORS) -> TailSample:
        """Return the scores for intervals; the `spare` that they were scored with says how far below the largest FAR's threshold these look."""
        images = self.identity_images.astype(np.float64)
        return tail_of(
            (self.genuine_scores, self.genuine_labels),
            (self.top_impostors, self.top_labels[:, 0], self.top_labels[:, 1], self.top_codes),
            exact,
            impostor_pairs=self.impostor_pairs,
            identity_pairs=images * (images.sum() - images),
            identity_images=images,
            fars=self.stated,
        )

    def curve(self, points: int = 200) -> tuple[Float64, Float64]:
        """Return (FAR, TAR) for plotting: numbers of false accepts spread evenly over the logarithm, each exact."""
        most = len(self.top_impostors) - 1 if len(self.top_impostors) < self.impostor_pairs else self.impostor_pairs
        if most < 1:
            return np.zeros(0), np.zeros(0)
        accepts = np.unique(np.geomspace(1, most, points).astype(np.int64))
        genuine = np.sort(self.genuine_scores)
        barred = np.append(self.top_impostors, np.float32(-2.0))[accepts]  # the first impostor that stays out
        tar = (len(genuine) - np.searchsorted(genuine, barred, side="right")) / len(genuine)
        return accepts / self.impostor_pairs, tar


class _PairCounts:
    """The pairs that images of identities make."""

    def __init__(self, images_I: Int64) -> None:
        self.images, self.genuine_I = int(images_I.sum()), images_I * (images_I - 1) // 2
        self.genuine = int(self.genuine_I.sum())
        self.impostors = self.images * (self.images - 1) // 2 - self.genuine

    def wanted(self, far: float) -> int:
        """Return how many of the highest non-mated scores a FAR needs: with the threshold, and one for rounding."""
        return min(self.impostors, math.floor(far * self.impostors) + 2)


def bytes_needed(images: int, dimension: int, genuine_pairs: int, kept: int, device: str = "cpu") -> int:
    """Return the least `budget` for a list, in bytes; `kept` is the number of non-mated scores to keep, FAR x non-mated pairs + 2."""
    rows = 4 * images * dimension + 48 * images
    tile = 4 * min(ROWS[device], images) * min(COLUMNS[device], images)
    return rows + 24 * genuine_pairs + 3 * tile + _BYTES_SCRATCH + _BYTES_KEPT * kept


def check_budget(
    budget: int, dimension: int, counts: npt.ArrayLike, device: torch.device | str | None = None, hardest: int = 12
) -> int:
    """Return how many non-mated scores a budget has room for; refuse one that has none, before anything is embedded.

    Args:
        budget: bytes. dimension: of the embeddings.
        counts: images of each identity.
        device, hardest: see `score_all_pairs`.

    Raises:
        UserError: too small.
    """
    made, least = _PairCounts(np.asarray(counts, dtype=np.int64)), max(2, hardest)
    fixed = bytes_needed(made.images, dimension, made.genuine, 0, _kind(device))
    room = (budget - fixed) // _BYTES_KEPT
    if room < least:
        raise UserError(
            f"budget={budget:,} bytes is too small for {made.images:,} embeddings of {dimension} numbers and "
            f"{made.genuine:,} mated pairs: at least {fixed + _BYTES_KEPT * least:,} are needed"
        )
    return room


def _kind(device: torch.device | str | None) -> str:
    kind = torch.device("cpu" if device is None else device).type
    return kind if kind in ROWS else "cpu"


def score_all_pairs(
    embeddings: Array | Tensor,
    labels: npt.ArrayLike,
    *,
    fars: Sequence[float] = FARS,
    hardest: int = 12,
    block: int | None = None,
    budget: int = 4 * 2**30,
    spare: float = 1.0,
    precision: Precision = "auto",
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> AllPairs:
    """Score all pairs of images and return exact TAR at FAR.

    Of I non-mated pairs floor(FAR x I) may be accepted. A mated pair is accepted when it scores above the next non-mated pair.
    Equal scores are accepted or rejected together (`tar_at_far`).

    Args:
        embeddings: (N, D) any length but 0; memory-mapped arrays are read once.
        labels: (N,) integers or text, any.
        fars: false accept rates; one that `budget` has no room for is not stated.
        hardest: how many of the worst mated and non-mated pairs to name.
        block: rows of a tile; None = 1,024 on the CPU, 4,096 elsewhere.
        budget: bytes, for a copy of the embeddings, the tiles and all scores kept.
        spare: keep so many times the non-mated scores that the largest FAR needs: intervals look below its threshold.
        precision: of the products; "auto" is float64 where more than 1 in 200 non-mated pairs are kept, else bfloat16 where the device gains
            by it (`precision.fast_bfloat16`), else float32. The figures are the same.
        device: where to multiply; None = where the embeddings are.
        progress: called as (pairs done, pairs).

    Raises:
        UserError: no mated or no non-mated pair; embeddings that are not finite or have length 0. A FAR that is not a rate; a
            budget that does not hold the embeddings.
    """
    images, dimension = len(embeddings), embeddings.shape[1]
    dense_N, images_I = _identities(labels, images)
    check_rates(fars)
    if spare < 1:
        raise UserError(f"spare={spare}: 1 keeps the non-mated scores that the largest FAR needs; use at least 1")
    where = device if device is not None else embeddings.device if isinstance(embeddings, Tensor) else "cpu"
    kind, made = _kind(where), _PairCounts(images_I)
    room = check_budget(budget, dimension, images_I, where, hardest)
    stated = max((want for want in map(made.wanted, fars) if want <= room), default=0)
    keep = min(made.impostors, room, max(hardest, 2, math.ceil(spare * stated) if stated else room))
    order = np.argsort(dense_N, kind="stable")
    rows_ND = unit_tensor(embeddings, where, order)
    chosen = _choose(precision, rows_ND, keep / made.impostors)
    starts = np.append(0, np.cumsum(images_I))
    # A process may have allowed TF32 or bfloat16 for products in float32, to which the bound does not apply.
    with torch.no_grad(), without_autocast(rows_ND), float32_products("highest"):
        genuine_pairs = _GenuinePairs(starts)
        genuine = genuine_pairs.scores(rows_ND)
        top, codes, verified = highest_impostors(
            rows_ND, dense_N[order], starts, keep, chosen, block or ROWS[kind], COLUMNS[kind], progress
        )
    tars = tar_of_kinds(genuine, top, fars, made.impostors)
    first_K, second_K = order[codes // images], order[codes % images]
    worst = np.argpartition(genuine, max(min(hardest, len(genuine)) - 1, 0))[:hardest]
    worst = worst[np.lexsort((worst, genuine[worst]))]
    first_H, second_H = genuine_pairs.rows(worst)
    return AllPairs(
        identity_images=images_I,
        genuine_scores=genuine,
        top_impostors=top,
        top_labels=np.stack([dense_N[first_K], dense_N[second_K]], axis=1),
        top_codes=np.minimum(first_K, second_K) * images + np.maximum(first_K, second_K),
        tar_at_far=tars,
        hardest_genuine=_hard_pairs(order[first_H], order[second_H], genuine[worst]),
        hardest_impostor=_hard_pairs(first_K[:hardest], second_K[:hardest], top[:hardest]),
        precision=chosen,
        verified=verified,
        notes=tuple(_notes(tars, made, dimension, kind, budget)),
    )


def _identities(labels: npt.ArrayLike, images: int) -> tuple[Int64, Int64]:
    """Return the identity of each image, numbered from 0, and the images of each identity."""
    label_N = np.asarray(labels)
    if label_N.shape != (images,):
        raise UserError(f"{label_N.size} labels for {images} embeddings: pass one label per row")
    _, dense_N, images_I = np.unique(label_N, return_inverse=True, return_counts=True)
    made = _PairCounts(images_I)
    if made.genuine == 0 or made.impostors == 0:
        raise UserError(
            f"{images} images of {len(images_I)} identities make {made.genuine} mated and "
            f"{made.impostors} non-mated pairs: all-pairs metrics need both kinds"
        )
    return dense_N, images_I.astype(np.int64)


def _notes(tars: dict[float, float | None], made: _PairCounts, dimension: int, kind: str, budget: int) -> list[str]:
    notes: list[str] = []
    for far, tar in tars.items():
        if made.impostors < pairs_needed(far):
            notes += not_stated({far: tar}, made.impostors, "all pairs: TAR at FAR")
        elif tar is None:
            needed = bytes_needed(made.images, dimension, made.genuine, made.wanted(far), kind)
            notes.append(
                f"all pairs: TAR at FAR {far_name(far)} is not stated: it takes a budget of {needed:,} bytes, budget is {budget:,}"
            )
    return notes + dominant_person(made.genuine_I, "all pairs")


def score_groups(
    embeddings: Array | Tensor, labels: npt.ArrayLike, groups: npt.ArrayLike, **options: Any
) -> tuple[dict[str, AllPairs], tuple[str, ...]]:
    """Score all pairs within each group of images (children, a race), as MFR reports them.

    Pairs of two groups belong to none: FAR within a group is the rate at which its own people are confused.

    Args:
        embeddings, labels: see `score_all_pairs`.
        groups: (N,) text; "" = in no group.
        **options: of `score_all_pairs`.

    Returns:
        Group -> its figures, by name; and notes: groups without mated or non-mated pairs, images in no group, identities in several groups.
    """
    group_N, label_N = np.asarray(groups, dtype=np.str_), np.asarray(labels)
    if group_N.shape != (len(embeddings),):
        raise UserError(f"{group_N.size} groups for {len(embeddings)} embeddings: pass one per row, '' for none")
    notes: list[str] = []
    found: dict[str, AllPairs] = {}
    for name in np.unique(group_N[group_N != ""]).tolist():
        rows = np.flatnonzero(group_N == name)
        part = embeddings[torch.from_numpy(rows)] if isinstance(embeddings, Tensor) else embeddings[rows]
        try:
            found[name] = score_all_pairs(part, label_N[rows], **options)
        except UserError as error:
            if "need both kinds" not in str(error):
                raise
            notes.append(f"group {name} is left out: {error}")
        else:
            notes += [f"group {name}: {note}" for note in found[name].notes]
    without = int((group_N == "").sum())
    if without:
        notes.append(f"{without:,} of {len(group_N):,} images are in no group")
    codes = (np.unique(of, return_inverse=True)[1] for of in (label_N, group_N))
    labels_in_groups = np.unique(np.stack(list(codes)), axis=1)[0]
    several = int((np.bincount(labels_in_groups) > 1).sum())
    if several:
        notes.append(f"{several:,} identities have images in several groups; pairs across groups are in none")
    return found, tuple(notes)


def _choose(precision: Precision, rows_ND: Tensor, share_kept: float) -> str:
    if precision not in ("auto", "float32", "bfloat16", "float64"):
        raise UserError(f"precision={precision!r} is unknown: use auto, float32, bfloat16 or float64")
    if precision != "auto":
        return precision
    if share_kept > _FLOAT64_FROM and rows_ND.device.type != "mps":
        return "float64"
    return "bfloat16" if fast_bfloat16(rows_ND.device) else "float32"


class _GenuinePairs:
    """All pairs within an identity by their numbers, identity by identity, (0, 1), (0, 2) ... (1, 2) ... of its rows."""

    def __init__(self, starts: Int64) -> None:
        self.later = np.repeat(starts[1:], np.diff(starts)) - np.arange(starts[-1]) - 1  # how many with each row first
        self.upto = np.cumsum(self.later)

    def rows(self, numbers: Int64) -> tuple[Int64, Int64]:
        """Both rows of pairs by their numbers."""
        first = np.searchsorted(self.upto, numbers, side="right")
        return first, first + 1 + numbers - (self.upto - self.later)[first]

    def scores(self, rows_ND: Tensor) -> Float32:
        """Scores of all of them."""
        scores = np.empty(self.upto[-1], dtype=np.float32)
        for start in range(0, len(scores), _GENUINE_PAIRS):
            numbers = np.arange(start, min(start + _GENUINE_PAIRS, len(scores)))
            sides = (torch.from_numpy(side).to(rows_ND.device) for side in self.rows(numbers))
            scores[numbers] = pair_scores(rows_ND, *sides).cpu().numpy()
        return scores


def _hard_pairs(first: Int64, second: Int64, scores: Float32) -> HardPairs:
    return HardPairs(np.minimum(first, second), np.maximum(first, second), scores.astype(np.float64))
