"""Pair protocols: LFW, CFP-FP, AgeDB-30, CALFW, CPLFW and any list of pairs, one model.

Every image is embedded once however many pairs use it: image and mirror image, summed, normalized. A pair that uses a broken image is
left out, counted and named; its neighbours keep their folds. More broken images than `broken_limit` is an error: the figure would be that of
another set.

Sources: LFW protocol (Huang et al. 2007); the `.bin` sets of InsightFace.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from attfc.data.attributes import Attributes, common_value, read_attributes
from attfc.data.stores.verification_sets import VerificationSet, read_verification_set
from attfc.errors import UserError, nearest
from attfc.evaluation.bootstrap import FigurePath, linked_identities
from attfc.evaluation.embed import Embedder, ImageEvaluation, ImageSource
from attfc.evaluation.metrics import PairScores, Thresholds, evaluate_scores, fold_numbers
from attfc.evaluation.people import few_people
from attfc.evaluation.protocols.pair_lists import Pairs, read_pairs
from attfc.evaluation.protocols.protocol import (
    Board,
    Cell,
    Outcome,
    Protocol,
    Subject,
    Table,
    noted,
    one_path,
    with_slices,
)
from attfc.evaluation.rates import FARS
from attfc.evaluation.samples import PairListSample
from attfc.evaluation.tail_sample import TailSample
from attfc.evaluation.unit_rows import cosine_of_pairs, squared_distances_of_pairs, unit_rows
from attfc.evaluation.unseen import SharedPeople
from attfc.typing import Bools, Int64, Json, Progress

__all__ = [
    "KNOWN_SETS",
    "NAMED_SETS",
    "PROTOCOL",
    "PairEvaluation",
    "evaluate_pair_list",
    "find_sets",
    "identities_of_set",
    "pairs_of_set",
]


KNOWN_SETS = {"lfw": "LFW", "cfp_fp": "CFP-FP", "agedb_30": "AgeDB-30", "calfw": "CALFW", "cplfw": "CPLFW"}
"""The sets of the field's tables, in their order, with the names they have there; `NAME.bin` in a folder."""


@dataclass(frozen=True, eq=False)
class PairEvaluation(ImageEvaluation):
    """What `evaluate_pair_list` found.

    Attributes:
        scores: the figures, with the cosines of the pairs scored.
        pairs: the pairs scored, without those that use a broken image.
        skipped_pairs: how many those were.
        sample: the pairs scored with the identities behind them, for intervals; None if these are unknown.
    """

    scores: PairScores
    pairs: Pairs
    skipped_pairs: int
    sample: PairListSample | None

    STATED: ClassVar = ("skipped_pairs",)

    def slice_of(self, chosen_P: Bools) -> TailSample | None:
        """Return the sample of some of the pairs; None: they are of one kind, or their people are not known."""
        of = self.sample
        if of is None or len(np.unique(of.same[chosen_P])) < 2:
            return None
        return TailSample.of_list(
            of.scores[chosen_P],
            of.same[chosen_P],
            of.first[chosen_P],
            of.second[chosen_P],
            codes=np.flatnonzero(chosen_P),
            fars=of.fars,
        )

    def figures(self) -> Json:
        """Return the figures as plain JSON types, FARs as text, unknown figures as None."""
        return {**self.scores.figures(), "pair_source": self.pairs.source, **super().figures()}


def find_sets(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Return the `.bin` files of a folder: the named ones in that order, or all, those of the field's tables first.

    Raises:
        UserError: no such folder, a named set is not there, or no set at all.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder: pass the one that holds {', '.join(names or KNOWN_SETS)} as .bin files"
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
    return [there[name] for name in names or {**KNOWN_SETS, **there} if name in there]


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


def identities_of_set(verification_set: VerificationSet) -> Int64:
    """Return who each image of a `.bin` set shows, as far as the set says: (2 P,) int64.

    The files name nobody. Images of a mated pair show one person, and so do images of equal bytes; one person may remain several
    identities where no pair joins them. Intervals by these identities are then too narrow, less so than intervals by pairs.
    """
    digests = [hashlib.blake2b(encoded, digest_size=16).digest() for encoded in verification_set.encoded]
    number_of = {digest: number for number, digest in enumerate(dict.fromkeys(digests))}
    picture = np.array([number_of[digest] for digest in digests], dtype=np.int64)
    genuine = np.flatnonzero(verification_set.same)
    linked = linked_identities(len(number_of), picture[2 * genuine], picture[2 * genuine + 1])
    return linked[picture]


def evaluate_pair_list(
    model: nn.Module | Embedder,
    source: ImageSource,
    pairs: Pairs,
    *,
    identities: Callable[[Int64], Int64] | None = None,
    thresholds: Thresholds = "grid",
    fars: Sequence[float] = FARS,
    broken_limit: float = 0.01,
    progress: Progress | None = None,
) -> PairEvaluation:
    """Verify a list of pairs with a backbone.

    Args:
        model: the backbone, or an `Embedder` that says how it embeds.
        source: the images: a store, or a verification set.
        pairs: positions in `source`, from `pairs_of_set`, `read_pairs` or `generate_pairs`.
        identities: gives the identity of each position: `store.labels`, or `identities_of_set(...).take`; None: the result has no sample.
        thresholds: "grid", the published scripts' 400 squared distances, or "exact"; see `evaluate_scores`.
        fars: false accept rates for TAR at FAR.
        broken_limit: the largest share of broken images that is counted; a larger one is an error.
        progress: called as (images done, images).

    Raises:
        UserError: too many broken images, pairs of one kind only, or a model that gives NaN or zeros.
    """
    embeddings = Embedder.of(model).embed_within(
        source, pairs.positions(), broken_limit, missing=pairs.missing, progress=progress
    )
    kept, *sides = pairs.with_rows(embeddings)
    skipped, notes = len(pairs) - len(kept), list(pairs.notes)
    if skipped:
        notes.append(
            f"{skipped:,} of {len(pairs):,} pairs were skipped: they use one of {len(embeddings.broken):,} broken images; "
            f"{embeddings.first_left_out}"
        )
    unit_ND = np.zeros(embeddings.vectors.shape, dtype=np.float64)
    unit_ND[embeddings.valid] = unit_rows(embeddings.vectors[embeddings.valid])
    scores = evaluate_scores(
        cosine_of_pairs(unit_ND, *sides),
        kept.same,
        kept.fold,
        thresholds=thresholds,
        fars=fars,
        squared_distances=squared_distances_of_pairs(unit_ND, *sides) if thresholds == "grid" else None,
    )
    sample, people = None, []
    if identities is not None:
        sample = PairListSample.of(scores, identities(kept.first), identities(kept.second))
        people = [*few_people(sample.carriers), *sample.notes(kept.title)]
    return PairEvaluation(
        name=source.name,
        embeddings=embeddings,
        notes=(*people, *notes, *scores.notes),
        scores=scores,
        pairs=kept,
        skipped_pairs=skipped + pairs.skipped,
        sample=sample,
    )


Listed = tuple[ImageSource, Pairs, Callable[[Int64], Int64]]
"""Images, pairs of them, and the identity of each position."""


def _sets(files: Iterable[Path]) -> Iterator[Listed]:
    names = set()
    for file in files:
        found = read_verification_set(file)
        if found.name in names:
            raise UserError(f"{file}: a second set named {found.name}: evaluate it in a run of its own")
        names.add(found.name)
        yield found, pairs_of_set(found), identities_of_set(found).take


def _files(paths: Sequence[str]) -> Iterator[Path]:
    for path in map(Path, paths):
        if path.is_dir():
            yield from find_sets(path)
        elif path.suffix == ".bin":
            yield path
        else:
            raise UserError(f"{path} is no .bin file and no folder of them: for a store of images add --pairs FILE")


def _run(
    subject: Subject, name: str, paths: Sequence[str], pairs: Path | None, attributes: Path | None, **options: Any
) -> Outcome:
    """Evaluate a store with a list of pairs, or sets of pairs: files and folders of them."""
    if pairs is None:
        if attributes is not None:
            raise UserError(
                "--attributes names images, and those of a .bin file have no names: give a store and --pairs"
            )
        return _evaluate(subject, _sets(list(_files(paths))), **options)
    _, store, shared = subject.open_store(name, paths)
    listed = read_pairs(pairs, store, broken_limit=options["broken_limit"])
    known = read_attributes(attributes, store)
    return _evaluate(subject, [(store, listed, store.labels)], str(pairs), shared, known, **options)


def _run_named_sets(subject: Subject, name: str, paths: Sequence[str], **options: Any) -> Outcome:
    folder = Path(one_path(name, paths, "the folder that holds NAME.bin"))
    return _evaluate(subject, _sets(find_sets(folder, name.split(","))), **options)


def _evaluate(
    subject: Subject,
    lists: Iterable[Listed],
    pairs_file: str | None = None,
    shared: SharedPeople | None = None,
    attributes: Attributes | None = None,
    *,
    thresholds: Thresholds | None,
    broken_limit: float,
) -> Outcome:
    thresholds = thresholds or "grid"
    results: list[PairEvaluation] = []
    for source, pairs, identities in lists:
        with subject.progress(source.name) as progress:
            results.append(
                evaluate_pair_list(
                    subject.embedder,
                    source,
                    pairs,
                    identities=identities,
                    thresholds=thresholds,
                    broken_limit=broken_limit,
                    progress=progress,
                )
            )
    concerned: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            concerned.setdefault(note, []).append(result.name)
    sets = {result.name: result.figures() for result in results}
    table = Table.of("set", _COLUMNS, [(name, ("sets", name)) for name in sets])
    outcome = Outcome(
        {"thresholds": thresholds, "pairs_file": pairs_file, "sets": sets},
        {("sets", result.name): [result.sample] for result in results if result.sample is not None},
        # Notes below: a figure with skipped pairs is not that of the whole set.
        [table, *(f"{', '.join(of)}: {note}" for note, of in concerned.items())],
        shared,
    )
    if attributes is None:
        return outcome
    (result,) = results
    outcome = dataclasses.replace(outcome, shown=[*outcome.shown, *noted(attributes.notes)])
    sides = (result.pairs.first, result.pairs.second)
    columns = {name: common_value(*(values[side] for side in sides)) for name, values in attributes.columns.items()}
    return with_slices(outcome, ("sets", result.name), columns, result.slice_of, _OF_SLICES)


_COLUMNS = {
    "pairs": Cell(("pairs",), "count"),
    "accuracy %": Cell(("accuracy",)),
    "± std": Cell(("accuracy_std",)),
    "AUC": Cell(("auc",), "share"),
    "EER %": Cell(("eer",)),
    "TAR@1e-3 %": Cell(("tar_at_far", "0.001")),
    "TAR@1e-2 %": Cell(("tar_at_far", "0.01")),
    "skipped": Cell(("skipped_pairs",), "count"),
}
_OF_SLICES = {name: _COLUMNS[name] for name in ("TAR@1e-3 %", "TAR@1e-2 %", "AUC", "EER %")}


def board_of_pairs(protocol: str, data: str, place: FigurePath) -> Board:
    """Return where a list of pairs stands in a report."""
    name = KNOWN_SETS.get(place[1], place[1])
    return Board(("sets", place[1]), f"{name}: pairs", ((name, ("accuracy",)),))


PROTOCOL = Protocol(
    ("pairs",), _run, ("pairs", "attributes", "thresholds", "broken_limit"), board_of_pairs, family="pairs"
)
NAMED_SETS = Protocol(
    tuple(KNOWN_SETS),
    _run_named_sets,
    ("thresholds", "broken_limit"),
    board_of_pairs,
    family="pairs",
    without_pairs="brings its own pairs: leave out --pairs, or use the protocol pairs",
    joined=True,
)
