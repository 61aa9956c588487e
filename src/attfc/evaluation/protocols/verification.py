"""Pair protocols: LFW, CFP-FP, AgeDB-30, CALFW, CPLFW and any list of pairs, one model.

Every image is embedded once however many pairs use it: image and mirror image, summed, normalized. A pair that uses a broken image is
left out, counted and named; its neighbours keep their folds. More broken images than `broken_limit` is an error: the figure would be that of
another set.

Sources: LFW protocol (Huang et al. 2007); the `.bin` sets of InsightFace.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from attfc.data.stores.store import Images
from attfc.data.stores.verification_sets import VerificationSet
from attfc.errors import UserError, nearest
from attfc.evaluation.bootstrap import linked_identities
from attfc.evaluation.embed import broken_images, check_broken_limit, embed_store
from attfc.evaluation.metrics import (
    FARS,
    PairScores,
    Thresholds,
    cosine_of_pairs,
    evaluate_scores,
    fold_numbers,
    squared_distances_of_pairs,
    unit_rows,
)
from attfc.evaluation.people import few_people
from attfc.evaluation.protocols.pairs import Pairs
from attfc.evaluation.samples import PairListSample

__all__ = ["KNOWN_SETS", "PairEvaluation", "evaluate_pair_list", "find_sets", "identities_of_set", "pairs_of_set"]

Ints = npt.NDArray[np.int64]

KNOWN_SETS = ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw")
"""The sets of the field's tables, in their order; `NAME.bin` in a folder."""


class ImageSource(Protocol):
    """What pairs need of a Store or a VerificationSet."""

    @property
    def name(self) -> str:
        """Short name for messages."""

    def __len__(self) -> int:
        """Return the number of images."""

    def where(self, position: int) -> str:
        """Return which image this is, for messages."""

    def images(self, positions: npt.ArrayLike, size: int, out: npt.NDArray[np.uint8] | None = None) -> Images:
        """Return decoded RGB images; broken ones black and named."""


@dataclass(frozen=True, eq=False)
class PairEvaluation:
    """What `evaluate_pair_list` found.

    Attributes:
        name: of the set.
        scores: the figures, with the cosines of the pairs scored.
        pairs: the pairs scored, without those that use a broken image.
        skipped_pairs: how many those were.
        images: how many were embedded.
        broken: (position, where, reason) of the images that could not be used.
        seconds: wall time of embedding.
        notes: what a reader of the figures should know.
        sample: the pairs scored with the identities behind them, for intervals; None if these are unknown.
    """

    name: str
    scores: PairScores
    pairs: Pairs
    skipped_pairs: int
    images: int
    broken: tuple[tuple[int, str, str], ...]
    seconds: float
    notes: tuple[str, ...]
    sample: PairListSample | None = None

    def figures(self) -> dict[str, Any]:
        """Return the figures as plain JSON types, FARs as text, unknown figures as None."""
        return {
            **self.scores.to_dict(),
            "pair_source": self.pairs.source,
            "skipped_pairs": self.skipped_pairs,
            "images": self.images,
            "broken": len(self.broken),
            "embedding_seconds": self.seconds,
            "notes": list(self.notes),
        }

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return what a report draws; none needs pickle.

        scores, same, first, second, fold: (P,) the pairs scored. broken_*: the images that could not be used.
        """
        return {
            "scores": self.scores.scores,
            "same": self.scores.same,
            "first": self.pairs.first,
            "second": self.pairs.second,
            "fold": self.pairs.fold,
            "broken_positions": np.array([position for position, _, _ in self.broken], dtype=np.int64),
            "broken_where": np.array([where for _, where, _ in self.broken], dtype=np.str_),
            "broken_reasons": np.array([reason for _, _, reason in self.broken], dtype=np.str_),
        }


def find_sets(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Return the `.bin` files of a folder: the named ones in that order, or all, those of the field's tables first.

    Raises:
        UserError: no such folder, a named set is not there, or no set at all.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is no folder: pass the one that holds {', '.join(names or KNOWN_SETS)} as .bin files"
        )
    there = {path.name.removesuffix(".bin"): path for path in sorted(folder.glob("*.bin")) if path.is_file()}
    for name in names:
        if name not in there:
            has = f"it has {', '.join(there)}" if there else "it has no .bin file"
            raise UserError(f"{folder} has no {name}.bin{nearest(name, there)}: {has}")
    if not there:
        raise UserError(
            f"{folder} has no .bin file: pass the folder that holds {', '.join(KNOWN_SETS)}, or --pairs FILE with a folder of images"
        )
    ordered = names or [
        *(name for name in KNOWN_SETS if name in there),
        *(name for name in there if name not in KNOWN_SETS),
    ]
    return [there[name] for name in ordered]


def pairs_of_set(verification_set: VerificationSet, folds: int = 10) -> Pairs:
    """Return the pairs of a `.bin` set: images 2i and 2i + 1, contiguous folds in the order of the file; one fold per pair if these are fewer.

    Raises:
        UserError: a single pair.
    """
    pairs, source = len(verification_set.same), f"{verification_set.name}.bin"
    if pairs < 2:
        raise UserError(
            f"{source}: 1 pair is not enough: the threshold of a fold comes from the others, so at least 2 are needed"
        )
    first = np.arange(0, 2 * pairs, 2, dtype=np.int64)
    notes = (f"{source} has only {pairs} pairs: {pairs} folds instead of {folds}",) if pairs < folds else ()
    return Pairs(first, first + 1, verification_set.same, fold_numbers(pairs, min(folds, pairs)), source, notes)


def identities_of_set(verification_set: VerificationSet) -> Ints:
    """Return who each image of a `.bin` set shows, as far as the set says: (2 P,) int64.

    The files name nobody. Images of a genuine pair show one person, and so do images of equal bytes; one person may remain several
    identities where no pair joins them. Intervals by these identities are then too narrow, less so than intervals by pairs.
    """
    digests = [hashlib.blake2b(encoded, digest_size=16).digest() for encoded in verification_set.encoded]
    number_of = {digest: number for number, digest in enumerate(dict.fromkeys(digests))}
    picture = np.array([number_of[digest] for digest in digests], dtype=np.int64)
    genuine = np.flatnonzero(verification_set.same)
    linked = linked_identities(len(number_of), picture[2 * genuine], picture[2 * genuine + 1])
    return linked[picture]


def evaluate_pair_list(
    model: nn.Module,
    source: ImageSource,
    pairs: Pairs,
    *,
    identities: Callable[[Ints], Ints] | None = None,
    thresholds: Thresholds = "grid",
    fars: Sequence[float] = FARS,
    broken_limit: float = 0.01,
    flip: bool = True,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    workers: int = 0,
    autocast_dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PairEvaluation:
    """Verify a list of pairs with a backbone.

    Args:
        model: (B, 3, S, S) float32 RGB in [-1, 1] -> (B, D), with an `image_size`; its mode is left as it was.
        source: the images: a store, or a verification set.
        pairs: positions in `source`, from `pairs_of_set`, `read_pairs` or `generate_pairs`.
        identities: gives the identity of each position: `store.labels`, or `identities_of_set(...).take`; None: the result has no sample.
        thresholds: "grid", the published scripts' 400 squared distances, or "exact"; see `evaluate_scores`.
        fars: false accept rates for TAR at FAR.
        broken_limit: the largest share of broken images that is counted; a larger one is an error.
        flip, batch_size, device, workers, autocast_dtype, progress: see `embed_store`.

    Raises:
        UserError: too many broken images, pairs of one kind only, or a model that gives NaN or zeros.
    """
    check_broken_limit(broken_limit)
    embeddings = embed_store(
        model,
        source,  # type: ignore[arg-type]  # of a Store it uses what ImageSource has
        pairs.positions(),
        batch_size=batch_size,
        flip=flip,
        device=device,
        workers=workers,
        autocast_dtype=autocast_dtype,
        progress=progress,
    )
    positions_N = embeddings.positions
    broken = broken_images(embeddings, source.name, source.where, broken_limit, pairs.missing)
    first_P, second_P = np.searchsorted(positions_N, pairs.first), np.searchsorted(positions_N, pairs.second)
    usable_P = embeddings.valid[first_P] & embeddings.valid[second_P]
    kept, first_P, second_P = pairs.keep(usable_P), first_P[usable_P], second_P[usable_P]
    skipped = len(pairs) - len(kept)
    notes = (*pairs.notes,)
    if skipped:
        notes = (
            *notes,
            f"{skipped:,} of {len(pairs):,} pairs were skipped: they use one of {len(broken):,} broken images; "
            f"the first is {broken[0][1]}: {broken[0][2]}",
        )
    vectors = embeddings.vectors
    unit_ND = np.zeros(vectors.shape, dtype=np.float64)
    unit_ND[embeddings.valid] = unit_rows(vectors[embeddings.valid])
    distances_P = squared_distances_of_pairs(unit_ND, first_P, second_P) if thresholds == "grid" else None
    scores = evaluate_scores(
        cosine_of_pairs(unit_ND, first_P, second_P),
        kept.same,
        kept.fold,
        thresholds=thresholds,
        fars=fars,
        squared_distances=distances_P,
    )
    sample = None
    if identities is not None:
        sample = PairListSample.of(
            scores.scores,
            kept.same,
            kept.fold,
            identities(kept.first),
            identities(kept.second),
            thresholds=thresholds,
            distances=distances_P,
            fars=fars,
        )
    people = () if sample is None else (*few_people(sample.carriers), *sample.notes())
    return PairEvaluation(
        name=source.name,
        scores=scores,
        pairs=kept,
        skipped_pairs=skipped + pairs.skipped,
        images=len(positions_N),
        broken=broken,
        seconds=embeddings.seconds,
        notes=(*people, *notes, *scores.notes),
        sample=sample,
    )
