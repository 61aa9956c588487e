"""All pairs of a store's images, the protocol of MFR-ALL: TAR at FAR 1e-4, 1e-5 and 1e-6, of all people, within groups of them and slices of images.

Every image is embedded once (image and mirror), then scored against every other (`all_pairs_scores`). Broken images are left out and counted.
The list of groups is read in one pass; only identities of the store take memory.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from attfc.data.attributes import Attributes, read_attributes
from attfc.data.stores.store import Store
from attfc.data.text_lines import lines_in_utf8
from attfc.errors import UserError
from attfc.evaluation.bootstrap import FigurePath, Samples, in_words
from attfc.evaluation.embed import Embedder, ImageEvaluation
from attfc.evaluation.people import few_people
from attfc.evaluation.protocols.all_pairs_scores import (
    ALL_PAIRS_FARS,
    SPARE_FOR_INTERVALS,
    AllPairs,
    check_budget,
    score_all_pairs,
    score_groups,
)
from attfc.evaluation.protocols.protocol import Board, Cell, Outcome, Protocol, Subject, Table, noted
from attfc.evaluation.rates import far_name
from attfc.evaluation.samples import ShareSample
from attfc.evaluation.tail_sample import EXACT_IMPOSTORS
from attfc.typing import Array, Int64, Json, Progress, Texts

__all__ = [
    "PROTOCOL",
    "AllPairsEvaluation",
    "Groups",
    "Slices",
    "evaluate_all_pairs",
    "rates_at_common_threshold",
    "read_groups",
    "score_slices",
]


@dataclass(frozen=True, eq=False)
class Groups:
    """The group of each identity of a store.

    Attributes:
        of_label: (identities,) text, "" = in no group.
        source: the file's name.
        notes: what a reader of the figures should know.
    """

    of_label: Texts
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Slices:
    """All pairs of images that have a value of an attribute in common.

    Attributes:
        found: column -> value -> its pairs. thresholds: everyone's, by FAR.
        notes: what a reader of the figures should know.
    """

    found: Mapping[str, Mapping[str, AllPairs]]
    thresholds: Mapping[float, float]
    notes: tuple[str, ...]

    def figures(self) -> Json:
        """Return column -> value -> figures, with TAR and FAR at everyone's thresholds; a FAR beyond the scores kept is None."""
        return {
            column: {value: self._slice(of) for value, of in values.items()} for column, values in self.found.items()
        }

    def _slice(self, of: AllPairs) -> Json:
        common = {}
        for far, threshold in self.thresholds.items():
            accepted, kept = int((of.top_impostors > threshold).sum()), len(of.top_impostors)
            known = accepted < kept or kept == of.impostor_pairs
            tar = float(np.mean(of.genuine_scores > threshold))
            common[far_name(far)] = {"tar": tar, "far": accepted / of.impostor_pairs if known else None}
        return {**of.figures(), "at_common_threshold": common}

    def samples(self, exact: int = EXACT_IMPOSTORS) -> Samples:
        """Return the scores behind the figures, by where these stand in those of the evaluation."""
        samples: Samples = {}
        for column, values in self.found.items():
            for value, of in values.items():
                place, carriers = ("slices", column, value), np.unique(of.genuine_labels, return_inverse=True)[1]
                if of.stated:
                    samples[place] = [of.sample(exact)]
                for far, threshold in self.thresholds.items():
                    accepted = ShareSample("tar", of.genuine_scores > threshold, carriers)
                    samples[*place, "at_common_threshold", far_name(far)] = [accepted]
        return samples

    def tables(self) -> list[Table]:
        """Return a table for each column, a line for each value, at the lowest FAR that everyone's pairs state."""
        columns = {"people": Cell(("identities",), "count"), "mated pairs": Cell(("genuine_pairs",), "count")}
        columns["non-mated pairs"] = Cell(("impostor_pairs",), "count")
        for far in map(far_name, sorted(self.thresholds)[:1]):
            columns[f"TAR % at FAR {far}"] = Cell(("tar_at_far", far))
            columns["at everyone's threshold"] = Cell(("at_common_threshold", far, "tar"))
            columns["FAR at it"] = Cell(("at_common_threshold", far, "far"), "share")
        places = {column: [(value, ("slices", column, value)) for value in of] for column, of in self.found.items()}
        return [Table.of(column, columns, each) for column, each in places.items() if each]


def score_slices(
    embeddings: Array | Tensor,
    labels: npt.ArrayLike,
    everyone: AllPairs,
    attributes: Attributes | None,
    images: Int64,
    **options: Any,
) -> Slices | None:
    """Score the pairs within each value of each attribute; None without attributes.

    Args:
        embeddings, labels, everyone, options: see `score_all_pairs`, and what it found.
        attributes: of the store. images: (N,) int64, the position of each embedding in it.
    """
    if attributes is None:
        return None
    found: dict[str, dict[str, AllPairs]] = {}
    notes = [*attributes.notes]
    for column, values in attributes.columns.items():
        found[column], more = score_groups(embeddings, labels, values[images], **options)
        small = (f"group {value} {note}" for value, of in found[column].items() for note in few_people(of.carriers))
        notes += [f"{column}: {note}" for note in (*more, *small)]
    thresholds = {far: threshold for far, threshold in everyone.threshold_at_far.items() if threshold is not None}
    return Slices(found, thresholds, tuple(notes))


@dataclass(frozen=True, eq=False)
class AllPairsEvaluation(ImageEvaluation):
    """What `evaluate_all_pairs` found.

    Attributes:
        everyone: over all pairs of usable images.
        groups: over the pairs within each group, by name; empty without groups.
        at_common_threshold: group -> FAR -> (TAR, FAR within the group) at the threshold that gives *everyone* this FAR.
        scoring_seconds: wall time.
        slices: over the pairs within each value of each attribute; None without attributes.
    """

    everyone: AllPairs
    groups: Mapping[str, AllPairs]
    at_common_threshold: Mapping[str, Mapping[float, tuple[float, float]]]
    scoring_seconds: float
    slices: Slices | None = None

    STATED: ClassVar = ("scoring_seconds",)

    def figures(self) -> Json:
        """Return the figures as plain JSON types, FARs as text, unknown figures as None."""
        groups = {name: found.figures() for name, found in self.groups.items()}
        for name, rates in self.at_common_threshold.items():
            common = {far_name(far): {"tar": tar, "far": within} for far, (tar, within) in rates.items()}
            groups[name]["at_common_threshold"] = common
        slices = {} if self.slices is None else {"slices": self.slices.figures()}
        return {"all_pairs": self.everyone.figures(), "groups": groups, **slices, **super().figures()}

    def samples(self) -> Samples:
        """Return the scores behind the figures, by where these stand in `figures()`, for intervals by identity."""
        holders: dict[FigurePath, AllPairs] = {("all_pairs",): self.everyone}
        holders.update({("groups", name): found for name, found in self.groups.items()})
        found: Samples = {path: [of.sample()] for path, of in holders.items() if of.stated}
        return found if self.slices is None else {**found, **self.slices.samples()}


def rates_at_common_threshold(
    everyone: AllPairs, group_of_identity: Texts, groups: Mapping[str, AllPairs]
) -> dict[str, dict[float, tuple[float, float]]]:
    """Return, for each group and FAR, TAR and FAR within the group at the threshold that gives everyone this FAR.

    A system has one threshold: this says whom it serves worse. A group's own threshold (`score_groups`) hides it.

    Args:
        everyone: all pairs.
        group_of_identity: (identities,) text, in the order of `everyone`'s labels; "" = in no group.
        groups: the groups to give, with their numbers of pairs.
    """
    genuine_group = group_of_identity[everyone.genuine_labels]
    top_group = group_of_identity[everyone.top_labels]
    found: dict[str, dict[float, tuple[float, float]]] = {}
    for name, within in groups.items():
        genuine = everyone.genuine_scores[genuine_group == name]
        impostors = everyone.top_impostors[(top_group == name).all(axis=1)]
        found[name] = {
            far: (float(np.mean(genuine > threshold)), int(np.sum(impostors > threshold)) / within.impostor_pairs)
            for far, threshold in everyone.threshold_at_far.items()
            if threshold is not None
        }
    return found


def read_groups(path: str | Path, store: Store) -> Groups:
    """Read a list of groups: a line per identity with its name in the store, a tab, the group's name.

    Blank lines and lines that begin with `#` are skipped. Identities that the store lacks are counted in a note, as are those of the store
    that the file lacks: these are in no group.

    Raises:
        UserError: no such file; a line of another form, not UTF-8, or that puts an identity into a second group; no line that names an
            identity of the store.
    """
    file = Path(path)
    names = [store.identity_name(label) for label in range(len(store.identities))]
    group_of = dict.fromkeys(names, "")
    strange, first_strange = 0, ""
    for number, line in lines_in_utf8(file, "groups"):
        identity, _, group = (field.strip() for field in line.partition("\t"))
        if not identity or not group or "\t" in group:
            raise UserError(
                f"{file} line {number}: {line[:80]!r} is not an identity, a tab and a group: write name<TAB>group"
            )
        if identity not in group_of:
            strange, first_strange = strange + 1, first_strange or identity
        elif group_of[identity] not in ("", group):
            raise UserError(
                f"{file} line {number}: {identity!r} is in group {group!r} and in {group_of[identity]!r}: an identity has one group"
            )
        else:
            group_of[identity] = group
    without = sum(not group for group in group_of.values())
    if without == len(group_of):
        example = f"it has {first_strange!r}, " if strange else "it is empty, "
        raise UserError(
            f"{file} names no identity of {store.name}: {example}the store has {min(names)!r}: write name<TAB>group, names as in the store"
        )
    notes = []
    if strange:
        notes.append(
            f"{file.name}: {strange:,} lines name identities that {store.name} lacks; the first is {first_strange!r}"
        )
    if without:
        notes.append(f"{file.name}: {without:,} of {len(group_of):,} identities are in no group")
    return Groups(np.array([group_of[name] for name in names], dtype=np.str_), file.name, tuple(notes))


def evaluate_all_pairs(
    model: nn.Module | Embedder,
    store: Store,
    *,
    groups: Groups | None = None,
    attributes: Attributes | None = None,
    fars: Sequence[float] = ALL_PAIRS_FARS,
    budget: int = 4 * 2**30,
    spare: float = 1.0,
    broken_limit: float = 0.01,
    progress: Progress | None = None,
) -> AllPairsEvaluation:
    """Embed a store of unseen identities and score all pairs of its images.

    Args:
        model: the backbone, or an `Embedder` that says how it embeds.
        store: the images.
        groups: from `read_groups`: also score the pairs within each group.
        attributes: from `read_attributes`: also score the pairs within each value of each.
        fars, budget, spare: see `score_all_pairs`; a FAR that cannot be stated is None, and a note says why.
        broken_limit: the largest share of broken images that is left out and counted; a larger one is an error.
        progress: called as (images done, images), then as (pairs done, pairs) of everyone's pairs.

    Raises:
        UserError: too many broken images; no mated or no non-mated pair; a model that gives NaN or zeros. A budget too small for the
            embeddings; where the model has an `embedding_size`, before anything is embedded.
    """
    embedder = Embedder.of(model)
    size = getattr(embedder.model, "embedding_size", None)
    if isinstance(size, int):
        check_budget(budget, size, store.identities.counts(), embedder.device)
    embeddings = embedder.embed_within(store, None, broken_limit, progress=progress)
    positions_N, valid_N = embeddings.positions, embeddings.valid
    notes: list[str] = []
    vectors = embeddings.vectors
    if embeddings.broken:
        counts = f"{len(embeddings.broken):,} of {len(positions_N):,} images"
        notes.append(f"{counts} are broken and left out; {embeddings.first_left_out}")
        vectors = vectors[valid_N]
    start = time.perf_counter()
    labels = store.labels(positions_N[valid_N])
    options: dict[str, Any] = {"fars": fars, "budget": budget, "spare": spare, "device": embedder.device}
    everyone = score_all_pairs(vectors, labels, progress=progress, **options)
    notes = [*few_people(everyone.carriers), *notes, *everyone.notes]
    within: dict[str, AllPairs] = {}
    common: dict[str, dict[float, tuple[float, float]]] = {}
    if groups is not None:
        within, more = score_groups(vectors, labels, groups.of_label[labels], **options)
        small = (f"group {name} {note}" for name, found in within.items() for note in few_people(found.carriers))
        notes += [*groups.notes, *more, *small]
        common = rates_at_common_threshold(everyone, groups.of_label[np.unique(labels)], within)
    slices = score_slices(vectors, labels, everyone, attributes, positions_N[valid_N], **options)
    notes += slices.notes if slices is not None else ()
    return AllPairsEvaluation(
        name=store.name,
        embeddings=embeddings,
        notes=tuple(notes),
        everyone=everyone,
        groups=within,
        at_common_threshold=common,
        scoring_seconds=time.perf_counter() - start,
        slices=slices,
    )


def _run(
    subject: Subject,
    name: str,
    paths: Sequence[str],
    groups: Path | None,
    attributes: Path | None,
    fars: Sequence[float],
    budget_gib: float,
    broken_limit: float,
    keep_scores: bool,
) -> Outcome:
    path, store, shared = subject.open_store(name, paths)
    listed = read_groups(groups, store) if groups is not None else None
    known = read_attributes(attributes, store)
    with subject.progress("faces, then pairs") as progress:
        result = evaluate_all_pairs(
            subject.embedder,
            store,
            groups=listed,
            attributes=known,
            fars=fars or ALL_PAIRS_FARS,
            budget=int(budget_gib * 2**30),
            spare=SPARE_FOR_INTERVALS if keep_scores else 1.0,
            broken_limit=broken_limit,
            progress=progress,
        )
    figures = {"store": path, "groups_file": str(groups) if groups else None, **result.figures()}
    return Outcome(figures, result.samples(), [*_tables(result), *noted(result.notes)], shared)


def _tables(result: AllPairsEvaluation) -> list[Table]:
    """A line for everyone and one for each group; rates of few pairs say so by their counts."""
    fars = sorted(result.everyone.tar_at_far)
    counts = ("images", "identities", "genuine_pairs", "impostor_pairs")
    rows: list[list[str | Cell]] = []
    lines: list[tuple[str, FigurePath]] = [(result.name, ("all_pairs",))]
    for name, place in (*lines, *((f"  {name}", ("groups", name)) for name in result.groups)):
        for title, metric in ((name, "tar_at_far"), ("  each person alike", "person_balanced_tar_at_far")):
            rows.append([title, *(Cell((*place, metric, far_name(far))) for far in fars)])
        rows[-2] += [Cell((*place, count), "count") for count in counts]
    header = ("TAR % at FAR", *map(far_name, fars), *(in_words((count,)) for count in counts))
    tables = [Table(header, rows)]
    stated = [far for far in fars if result.everyone.threshold_at_far[far] is not None]
    if result.groups and stated:
        header = ("at everyone's threshold", *(f"TAR %, FAR at {far_name(far)}" for far in stated))
        common = [
            [f"  {name}", *(f"{100 * rates[far][0]:.2f}, {rates[far][1]:.2g}" for far in stated)]
            for name, rates in result.at_common_threshold.items()
        ]
        tables.append(Table(header, common))
    return tables if result.slices is None else [*tables, *result.slices.tables()]


def _board(protocol: str, data: str, place: FigurePath) -> Board:
    name = "MFR-ALL" if "mfr" in data.lower() else f"{data}(1E-6)"
    return Board((protocol, data, *place), f"{data}: all pairs", ((name, ("tar_at_far", "1e-06")),))


PROTOCOL = Protocol(
    ("all-pairs",),
    _run,
    ("groups", "attributes", "fars", "budget_gib", "broken_limit", "keep_scores"),
    _board,
    without_pairs="scores every pair of images: leave out --pairs",
)
