"""Template protocols (IJB-B, IJB-C): faces pooled into templates, 1:1 over the list of pairs, 1:N over the galleries.

Pooling and scoring are in `template_pooling`; every figure is a count. Templates without a usable face make no score: their pairs and probes are
left out, counted and noted.

Cost at IJB-C's size (469,375 faces, 23,124 templates, 15.7 million pairs): see docs/benchmarks.md.

Sources: Whitelam et al. 2017 (IJB-B), Maze et al. 2018 (IJB-C); weights and pooling as in InsightFace's IJB scripts. Differs from them: see
docs/evaluation.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from attfc.data.attributes import common_value, read_attributes
from attfc.errors import UserError
from attfc.evaluation.bootstrap import FigurePath, Samples
from attfc.evaluation.embed import BrokenImage, Embedder, check_broken_limit
from attfc.evaluation.embedding_cache import FaceEmbeddings, default_cache
from attfc.evaluation.people import few_people
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
from attfc.evaluation.protocols.search import rate_columns, search_sample
from attfc.evaluation.protocols.template_faces import embed_faces
from attfc.evaluation.protocols.template_lists import (
    TemplateLists,
    read_template_lists,
)
from attfc.evaluation.protocols.template_pooling import TemplateMode, pool_templates
from attfc.evaluation.protocols.template_scores import (
    FPIRS,
    RANKS,
    TEMPLATE_FARS,
    TemplateSearch,
    TemplateVerification,
    search_templates,
    verify_templates,
)
from attfc.evaluation.rates import Figures, far_name
from attfc.evaluation.tail_sample import TailSample
from attfc.typing import Bools, Int64, Json, Progress, Texts

__all__ = [
    "PROTOCOL",
    "TemplateEvaluation",
    "evaluate_templates",
]


SET_NAMES = {"ijbb": "IJB-B", "ijbc": "IJB-C"}


@dataclass(frozen=True, eq=False)
class TemplateEvaluation(Figures):
    """What `evaluate_templates` found in one mode.

    Attributes:
        lists, embeddings: what was evaluated. mode: N1D1F1.
        templates: how many have a face of use. empty: ids of those that have faces but none of use.
        verification: 1:1, None without a list of pairs. search: 1:N, None without galleries.
    """

    lists: TemplateLists
    embeddings: FaceEmbeddings
    mode: TemplateMode
    templates: int
    empty: Int64
    verification: TemplateVerification | None
    search: TemplateSearch | None

    STATED: ClassVar = ("verification", "search", "templates")

    @property
    def broken(self) -> tuple[BrokenImage, ...]:
        """(face, name, reason) of those that could not be used."""
        names = self.lists.faces.names
        return tuple((face, names[face], reason) for face, reason in sorted(self.embeddings.broken.items()))

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures should know."""
        notes = [*([] if self.search is None else few_people(self.search.people)), *self.lists.notes]
        if broken := self.broken:
            faces = len(self.lists.faces)
            notes.append(
                f"{len(broken):,} of {faces:,} faces were left out; the first is {broken[0][1]}: {broken[0][2]}"
            )
        if self.embeddings.remarked:
            notes.append(f"{len(self.embeddings.remarked):,} faces have a landmark outside their crop: used")
        if len(self.empty):
            notes.append(f"{len(self.empty):,} templates have no usable face, the first is {self.empty[0]}")
        return [*notes, *(note for part in (self.verification, self.search) if part is not None for note in part.notes)]

    def figures(self) -> Json:
        """Return the figures as plain JSON types, rates as text, unknown figures as None."""
        return {
            "mode": str(self.mode),
            **super().figures(),
            "faces": len(self.lists.faces),
            "templates_without_face": len(self.empty),
            "broken": len(self.embeddings.broken),
            "faces_with_landmarks_outside": len(self.embeddings.remarked),
            "list_faults": self.lists.counts,
            "embedding_seconds": self.embeddings.seconds,
            "embeddings_reused": self.embeddings.reused,
            "notes": self.notes,
        }

    def slice_of(self, chosen_P: Bools) -> TailSample | None:
        """Return the sample of some of the pairs scored; None: they are of one kind."""
        one, pairs = self.verification, self.lists.pairs
        if one is None or pairs is None or len(np.unique(one.same[chosen_P])) < 2:
            return None
        places = np.flatnonzero(one.scored)[chosen_P]
        first, second = (self.lists.subjects_of(side[places]) for side in (pairs.first, pairs.second))
        scores, same, fars = one.scores[chosen_P], one.same[chosen_P], tuple(one.tar_at_far)
        return TailSample.of_list(scores, same, first, second, codes=places, fars=fars)

    def samples(self) -> Samples:
        """Return the scores behind the 1:1 and 1:N figures, by where these stand in `figures()`, for intervals by subject."""
        found: Samples = {}
        if self.verification is not None and (every := self.slice_of(np.ones(self.verification.pairs, np.bool_))):
            found["verification",] = [every]
        if self.search is not None:
            found["search",] = [search_sample(list(self.search.galleries.values()))]
        return found


@dataclass(frozen=True)
class _Faces:
    """The faces of a folder by name, as `read_attributes` wants images."""

    name: str
    names: Sequence[str]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.names)

    def where(self, position: int) -> str:
        """Return the name of one."""
        return self.names[position]


def value_of_pairs(value_F: Texts, template_F: Int64, sides: tuple[Int64, Int64]) -> Texts:
    """Return the value that all faces of both templates of a pair have, "" if they differ or one is not known.

    >>> faces, templates = np.array(["phone", "phone", "gate", ""]), np.array([5, 5, 7, 7])
    >>> value_of_pairs(faces, templates, (np.array([5, 5]), np.array([5, 7]))).tolist()
    ['phone', '']
    """
    values, code_F = np.unique(value_F, return_inverse=True)
    order = np.argsort(template_F, kind="stable")
    ids, starts = np.unique(template_F[order], return_index=True)
    least, most = (way.reduceat(code_F[order], starts) for way in (np.minimum, np.maximum))
    value_T = np.where(least == most, values[least], "")
    first_P, second_P = (value_T[np.searchsorted(ids, side)] for side in sides)
    return common_value(first_P, second_P)


def evaluate_templates(
    model: nn.Module | Embedder,
    lists: TemplateLists,
    cache: Path,
    modes: Sequence[TemplateMode] = (TemplateMode(),),
    *,
    fars: Sequence[float] = TEMPLATE_FARS,
    ranks: Sequence[int] = RANKS,
    fpirs: Sequence[float] = FPIRS,
    broken_limit: float = 0.01,
    model_key: str | None = None,
    progress: Progress | None = None,
) -> tuple[TemplateEvaluation, ...]:
    """Evaluate a backbone on a template protocol: one result a mode, all from the same embeddings.

    Args:
        model: the backbone, with `image_size` and `embedding_size`, or an `Embedder` that says how it embeds.
        lists: from `read_template_lists`.
        cache: folder of the embeddings, see `embedding_cache`.
        modes: N, D, F; see `TemplateMode`.
        fars, ranks, fpirs: what to state.
        broken_limit: the largest share of unusable faces that is counted; a larger one is an error.
        model_key, progress: see `embed_faces`.

    Raises:
        UserError: too many unusable faces, nothing to score, or what `embed_faces` raises.
    """
    check_broken_limit(broken_limit)
    faces = lists.faces
    _refuse_unusable(lists, faces.unusable, broken_limit)  # before the hours of embedding
    crops = lists.folder / "loose_crop"
    embeddings = embed_faces(Embedder.of(model), crops, faces, cache, model_key=model_key, progress=progress)
    _refuse_unusable(lists, embeddings.broken, broken_limit)
    usable = np.ones(len(faces), dtype=np.bool_)
    usable[list(embeddings.broken)] = False
    results = []
    for mode in modes:
        pooled = pool_templates(
            embeddings.image,
            faces.templates,
            faces.medias,
            mirror=embeddings.mirror if mode.flip else None,
            weights=faces.detector_scores if mode.detector_score else None,
            usable=usable,
            normalize=not mode.norm,
        )
        one = None if lists.pairs is None else verify_templates(pooled, lists.pairs, fars)
        search = None if lists.probes is None else search_templates(pooled, lists.galleries, lists.probes, ranks, fpirs)
        results.append(TemplateEvaluation(lists, embeddings, mode, len(pooled.ids), pooled.empty, one, search))
    return tuple(results)


def _refuse_unusable(lists: TemplateLists, unusable: dict[int, str], limit: float) -> None:
    if len(unusable) > limit * len(lists.faces):
        face = min(unusable)
        raise UserError(
            f"{lists.folder}: {len(unusable):,} of {len(lists.faces):,} faces cannot be used, more than the limit of {limit:g}; the first is "
            f"{lists.faces.names[face]}: {unusable[face]}: complete the folder, or raise --broken-limit"
        )


def _run(
    subject: Subject,
    name: str,
    paths: Sequence[str],
    mode: str,
    embeddings: Path | None,
    attributes: Path | None,
    keep_scores: bool,
    **options: Any,
) -> Outcome:
    modes = TemplateMode.all() if mode.lower() == "all" else tuple(map(TemplateMode.parse, mode.split(",")))
    with subject.progress("pairs") as progress:
        lists = read_template_lists(one_path(name, paths, "the folder with loose_crop and meta"), name, progress)
    images, image_F = np.unique(lists.faces.names, return_inverse=True)  # one may be in several templates
    known = read_attributes(attributes, _Faces(name, images.tolist()))
    cache = embeddings or default_cache()
    with subject.progress("faces") as progress:
        results = evaluate_templates(
            subject.embedder,
            lists,
            cache,
            tuple(dict.fromkeys(modes)),
            model_key=subject.digest(),
            progress=progress,
            **options,
        )
    samples = {
        ("modes", str(result.mode), *place): several
        for result in results
        for place, several in (result.samples() if keep_scores else {}).items()
    }
    first = results[0]
    figures = {
        "modes": {str(result.mode): result.figures() for result in results},
        "embeddings": str(first.embeddings.folder),
    }
    shown: list[str | Table] = [
        f"{name}: {len(lists.faces):,} faces, {first.templates:,} templates; {first.embeddings.reused:,} embeddings were there, "
        f"all are in {first.embeddings.folder}"
    ]
    if first.verification is not None:
        shown += _verification_table(list(figures["modes"]), first.verification)
    if first.search is not None:
        shown.append(_search_table(list(figures["modes"]), first.search))
    notes = dict.fromkeys(note for result in results for note in result.notes)
    outcome = Outcome(figures, samples, [*shown, *noted([*notes, *(known.notes if known else ())])])
    pairs, one = lists.pairs, first.verification
    if known is None or pairs is None or one is None:
        return outcome
    sides = (pairs.first[one.scored], pairs.second[one.scored])
    columns = {
        column: value_of_pairs(of[image_F], lists.faces.templates, sides) for column, of in known.columns.items()
    }
    fars = sorted(one.tar_at_far)[::2]
    cells = {f"TAR@{far:.0e} %".replace("e-0", "e-"): Cell(("tar_at_far", far_name(far))) for far in fars}
    for result in results:
        place = ("modes", str(result.mode), "verification")
        outcome = with_slices(outcome, place, columns, result.slice_of, {**cells, "EER %": Cell(("eer",))})
    return outcome


def _verification_table(modes: Sequence[str], one: TemplateVerification) -> list[str | Table]:
    rows: list[list[str | Cell]] = []
    for mode in modes:
        at = ("modes", mode, "verification")
        for title, metric in ((mode, "tar_at_far"), ("  nearest FAR *", "tar_at_nearest_far")):
            rows.append([title, *(Cell((*at, metric, far_name(far))) for far in one.tar_at_far)])
        rows[-2] += [Cell((*at, "auc"), "share"), Cell((*at, "eer"))]
    header = (f"{far:.0e}".replace("e-0", "e-") for far in one.tar_at_far)
    return [
        Table(("1:1 TAR % at FAR", *header, "AUC", "EER %"), rows),
        f"over {one.genuine_pairs:,} mated and {one.impostor_pairs:,} non-mated pairs; * at the point of the curve whose FAR is nearest, "
        "as the published scripts print it",
    ]


def _search_table(modes: Sequence[str], one: TemplateSearch) -> Table:
    rows: list[tuple[str, FigurePath]] = []
    for mode in modes:
        at = ("modes", mode, "search")
        rows += [(f"{mode} mean", at), *((f"  {name}", (*at, "galleries", name)) for name in one.galleries)]
        if one.published is not None:
            rows.append(("  joined, as published", (*at, "published")))
    return Table.of("1:N, %", rate_columns(one), rows)


def _board(protocol: str, data: str, place: FigurePath) -> Board:
    name = SET_NAMES[protocol]
    shown = f"{name}, {place[1]}"
    if place[2] == "verification":
        fars = (("1E-4", "0.0001"), ("1E-5", "1e-05"))
        columns = tuple((f"{name}({title})", ("tar_at_far", far)) for title, far in fars)
        return Board((protocol, *place), f"{shown}: 1:1", columns)
    return Board((protocol, *place), f"{shown}: 1:N", ((f"{name} rank 1", ("rank", "1")),))


PROTOCOL = Protocol(
    tuple(SET_NAMES),
    _run,
    ("mode", "embeddings", "attributes", "broken_limit", "keep_scores"),
    _board,
    without_pairs="brings its own pairs: leave out --pairs",
)
