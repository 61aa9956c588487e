"""Template protocols (IJB-B, IJB-C): faces pooled into templates, 1:1 over the list of pairs, 1:N over the galleries.

Pooling and scoring are in `template_pooling`; every figure is a count. Templates without a usable face make no score: their pairs and probes are
left out, counted and noted.

Cost at IJB-C's size (469,375 faces, 23,124 templates, 15.7 million pairs): see docs/benchmarks.md.

Sources: Whitelam et al. 2017 (IJB-B), Maze et al. 2018 (IJB-C); weights and pooling as in InsightFace's IJB scripts. Differs from them: see
docs/evaluation.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from attfc.errors import UserError
from attfc.evaluation.bootstrap import FigurePath, Sample, linked_identities
from attfc.evaluation.embed import BrokenImage, Embedder, Progress, check_broken_limit
from attfc.evaluation.embedding_cache import FaceEmbeddings, default_cache
from attfc.evaluation.metrics import ScoredPairs
from attfc.evaluation.protocols.protocol import Board, Cell, Outcome, Protocol, Subject, Table, noted, one_path
from attfc.evaluation.protocols.search import Identification, identify, search_sample
from attfc.evaluation.protocols.template_faces import embed_faces
from attfc.evaluation.protocols.template_lists import SubjectList, TemplateLists, TemplatePairs, read_template_lists
from attfc.evaluation.protocols.template_pooling import TemplateMode, Templates, pool_templates, score_template_pairs
from attfc.evaluation.rates import far_name, not_stated
from attfc.evaluation.tail_sample import TailSample

__all__ = [
    "PROTOCOL",
    "TEMPLATE_FARS",
    "TemplateEvaluation",
    "TemplateSearch",
    "TemplateVerification",
    "evaluate_templates",
    "search_templates",
    "subjects_of_templates",
    "template_samples",
    "verify_templates",
]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SET_NAMES = {"ijbb": "IJB-B", "ijbc": "IJB-C"}
TEMPLATE_FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
RANKS, FPIRS = (1, 5, 10), (0.01, 0.1)


@dataclass(frozen=True, eq=False)
class TemplateVerification:
    """The 1:1 protocol.

    Attributes:
        tar_at_far: TAR at a FAR that does not exceed the one asked for; None where the impostor pairs are too few to state it.
        tar_at_nearest_far: what the published scripts print, see `metrics.tar_at_nearest_far`.
        auc, eer: over all scored pairs.
        genuine, impostors: pairs scored.
        skipped_genuine, skipped_impostors: pairs with a template that has no usable face.
        scores, same: (P,) of the pairs scored, in the order of the list.
        scored: (P of the list,) which pairs those are.
    """

    tar_at_far: dict[float, float | None]
    tar_at_nearest_far: dict[float, float]
    auc: float
    eer: float
    genuine: int
    impostors: int
    skipped_genuine: int
    skipped_impostors: int
    notes: tuple[str, ...]
    scores: npt.NDArray[np.float32] = field(repr=False)
    same: Bools = field(repr=False)
    scored: Bools = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON types."""
        return {
            "pairs": self.genuine + self.impostors,
            "genuine_pairs": self.genuine,
            "impostor_pairs": self.impostors,
            "skipped_genuine_pairs": self.skipped_genuine,
            "skipped_impostor_pairs": self.skipped_impostors,
            "tar_at_far": {far_name(far): tar for far, tar in self.tar_at_far.items()},
            "tar_at_nearest_far": {far_name(far): tar for far, tar in self.tar_at_nearest_far.items()},
            "auc": self.auc,
            "eer": self.eer,
            "notes": list(self.notes),
        }


def verify_templates(
    templates: Templates, pairs: TemplatePairs, fars: Sequence[float] = TEMPLATE_FARS
) -> TemplateVerification:
    """Score a list of pairs of templates.

    Raises:
        UserError: of the pairs whose templates have faces, all are genuine or all impostors.
    """
    first, second = templates.rows(pairs.first), templates.rows(pairs.second)
    scored = (first >= 0) & (second >= 0)
    same = pairs.same[scored]
    notes: list[str] = []
    skipped = int((~scored).sum())
    if skipped:
        named = np.unique(np.concatenate([pairs.first[first < 0], pairs.second[second < 0]]))
        notes.append(
            f"{skipped:,} of {len(pairs):,} pairs were left out: they use one of {len(named):,} templates without a usable face "
            f"(the first is {named[0]})"
        )
    genuine, impostors = int(same.sum()), int((~same).sum())
    if not genuine or not impostors:
        raise UserError(
            f"{genuine:,} genuine and {impostors:,} impostor pairs have faces ({skipped:,} of {len(pairs):,} pairs have not): "
            "1:1 figures need both kinds"
        )
    scores = score_template_pairs(templates.vectors, first[scored], second[scored])
    accepts = ScoredPairs(scores, same).accepts()
    tars = accepts.tar_at_far(fars)
    notes += not_stated(tars, impostors, "TAR at FAR")
    return TemplateVerification(
        tar_at_far=tars,
        tar_at_nearest_far=accepts.tar_at_nearest_far(fars),
        auc=accepts.area,
        eer=accepts.equal_error_rate,
        genuine=genuine,
        impostors=impostors,
        skipped_genuine=int((pairs.same & ~scored).sum()),
        skipped_impostors=int((~pairs.same & ~scored).sum()),
        notes=tuple(notes),
        scores=scores,
        same=same,
        scored=scored,
    )


@dataclass(frozen=True, eq=False)
class TemplateSearch:
    """The 1:N protocol.

    Attributes:
        galleries: name -> what `identify` found; probes whose subject is in the other gallery are the strangers.
        mean: the mean over the galleries, of figures that every gallery states.
        published: galleries joined to one, so that all probes have mates, as InsightFace's ijb_1n.py does; None if a subject is in both.
        probes_without_face, enrolled_without_face: templates left out.
    """

    galleries: dict[str, Identification]
    mean: dict[str, dict[str, float | None]]
    published: Identification | None
    probes_without_face: int
    enrolled_without_face: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON types."""
        return {
            **self.mean,
            "galleries": {name: found.to_dict() for name, found in self.galleries.items()},
            "published": None if self.published is None else self.published.to_dict(),
            "probes_without_face": self.probes_without_face,
            "enrolled_without_face": self.enrolled_without_face,
            "notes": list(self.notes),
        }


def search_templates(
    templates: Templates,
    galleries: Sequence[SubjectList],
    probes: SubjectList,
    ranks: Sequence[int] = RANKS,
    fpirs: Sequence[float] = FPIRS,
) -> TemplateSearch:
    """Search every probe in every gallery; figures are means over the galleries.

    Raises:
        UserError: a gallery or the probes without a usable face, or none of the probes' subjects enrolled.
    """
    probe_rows = templates.rows(probes.templates)
    lost_probes = int((probe_rows < 0).sum())
    probe_vectors = templates.vectors[torch.from_numpy(probe_rows[probe_rows >= 0])]
    probe_subjects = probes.subjects[probe_rows >= 0]
    notes: list[str] = []
    if lost_probes:
        notes.append(f"{lost_probes:,} of {len(probe_rows):,} probes were left out: no usable face")
    found: dict[str, Identification] = {}
    enrolled: list[tuple[Tensor, Ints]] = []
    lost_enrolled = 0
    for gallery in galleries:
        rows = templates.rows(gallery.templates)
        lost = int((rows < 0).sum())
        if lost:
            notes.append(
                f"{lost:,} of {len(rows):,} templates of gallery {gallery.name} were left out: no usable face; their subjects count as strangers"
            )
        lost_enrolled += lost
        if not len(probe_vectors) or lost == len(rows):
            raise UserError(
                f"no {'probe' if not len(probe_vectors) else f'template of gallery {gallery.name}'} has a usable face"
            )
        enrolled.append((templates.vectors[torch.from_numpy(rows[rows >= 0])], gallery.subjects[rows >= 0]))
        found[gallery.name] = identify(*enrolled[-1], probe_vectors, probe_subjects, ranks, fpirs)
        notes += [f"gallery {gallery.name}: {note}" for note in found[gallery.name].notes]
    mean: dict[str, dict[str, float | None]] = {
        "rank": {str(rank): _mean([one.rank_rates[rank] for one in found.values()]) for rank in ranks},
        "tpir_at_fpir": {far_name(fpir): _mean([one.tpir_at_fpir[fpir] for one in found.values()]) for fpir in fpirs},
    }
    subjects = np.concatenate([subjects for _, subjects in enrolled])
    published = None
    if len(np.unique(subjects)) == len(subjects) and np.isin(probe_subjects, subjects).all():
        published = identify(
            torch.cat([vectors for vectors, _ in enrolled]),
            subjects,
            probe_vectors,
            probe_subjects,
            ranks,
            fpirs,
            strangers="mate_removed",
            within_rank=None,
        )
    return TemplateSearch(found, mean, published, lost_probes, lost_enrolled, tuple(notes))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if values and len(known) == len(values) else None


@dataclass(frozen=True, eq=False)
class TemplateEvaluation:
    """What `evaluate_templates` found in one mode.

    Attributes:
        name: "ijbc". mode: N1D1F1.
        verification: 1:1, None without a list of pairs. search: 1:N, None without galleries.
        faces, templates, empty_templates: how many.
        broken: (face, name, reason) of those that could not be used.
        outside: faces used with a landmark outside their crop.
        counts: faults of the lists that were counted.
        seconds: wall time of embedding, over all attempts. reused: embeddings that were in the cache.
        cache: where they lie.
    """

    name: str
    mode: TemplateMode
    verification: TemplateVerification | None
    search: TemplateSearch | None
    faces: int
    templates: int
    empty_templates: int
    broken: tuple[BrokenImage, ...]
    outside: int
    counts: dict[str, int]
    seconds: float
    reused: int
    cache: Path | None
    notes: tuple[str, ...]

    def figures(self) -> dict[str, Any]:
        """Return the figures as plain JSON types, rates as text, unknown figures as None."""
        return {
            "mode": str(self.mode),
            "verification": None if self.verification is None else self.verification.to_dict(),
            "search": None if self.search is None else self.search.to_dict(),
            "faces": self.faces,
            "templates": self.templates,
            "templates_without_face": self.empty_templates,
            "broken": len(self.broken),
            "faces_with_landmarks_outside": self.outside,
            "list_faults": dict(self.counts),
            "embedding_seconds": self.seconds,
            "embeddings_reused": self.reused,
            "notes": list(self.notes),
        }


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
    if len(faces.unusable) > broken_limit * len(faces):  # before the hours of embedding
        raise _too_many(lists, faces.unusable, broken_limit)
    embedder = Embedder.of(model)
    embeddings = embed_faces(
        embedder, lists.folder / "loose_crop", faces, cache, model_key=model_key, progress=progress
    )
    if len(embeddings.broken) > broken_limit * len(faces):
        raise _too_many(lists, embeddings.broken, broken_limit)
    return tuple(_evaluate_mode(lists, embeddings, mode, fars, ranks, fpirs) for mode in modes)


def _evaluate_mode(
    lists: TemplateLists,
    embeddings: FaceEmbeddings,
    mode: TemplateMode,
    fars: Sequence[float],
    ranks: Sequence[int],
    fpirs: Sequence[float],
) -> TemplateEvaluation:
    faces = lists.faces
    usable = np.ones(len(faces), dtype=np.bool_)
    usable[list(embeddings.broken)] = False
    templates = pool_templates(
        embeddings.image,
        faces.templates,
        faces.medias,
        mirror=embeddings.mirror if mode.flip else None,
        weights=faces.detector_scores if mode.detector_score else None,
        usable=usable,
        normalize=not mode.norm,
    )
    verification = None if lists.pairs is None else verify_templates(templates, lists.pairs, fars)
    search = None if lists.probes is None else search_templates(templates, lists.galleries, lists.probes, ranks, fpirs)
    broken = tuple((face, faces.names[face], reason) for face, reason in sorted(embeddings.broken.items()))
    notes = list(lists.notes)
    if broken:
        notes.append(
            f"{len(broken):,} of {len(faces):,} faces were left out; the first is {broken[0][1]}: {broken[0][2]}"
        )
    if embeddings.remarked:
        notes.append(f"{len(embeddings.remarked):,} faces have a landmark outside their crop: used")
    if len(templates.empty):
        notes.append(f"{len(templates.empty):,} templates have no usable face, the first is {templates.empty[0]}")
    return TemplateEvaluation(
        name=lists.name,
        mode=mode,
        verification=verification,
        search=search,
        faces=len(faces),
        templates=len(templates.ids),
        empty_templates=len(templates.empty),
        broken=broken,
        outside=len(embeddings.remarked),
        counts=lists.counts,
        seconds=embeddings.seconds,
        reused=embeddings.reused,
        cache=embeddings.folder,
        notes=(
            *notes,
            *(verification.notes if verification is not None else ()),
            *(search.notes if search is not None else ()),
        ),
    )


def subjects_of_templates(lists: TemplateLists) -> tuple[Ints, Ints]:
    """Return all template numbers, rising, and who each shows, numbered from 0, as far as the lists say.

    Galleries and probes name subjects; templates of a genuine pair show one.
    """
    pairs = lists.pairs
    named = [*lists.galleries, *(() if lists.probes is None else (lists.probes,))]
    ids = np.unique(
        np.concatenate(
            [
                lists.faces.templates,
                *(one.templates for one in named),
                *(() if pairs is None else (pairs.first, pairs.second)),
            ]
        )
    )
    subjects = np.unique(np.concatenate([np.zeros(0, np.int64), *(one.subjects for one in named)]))
    first = [np.searchsorted(ids, one.templates) for one in named]
    second = [len(ids) + np.searchsorted(subjects, one.subjects) for one in named]
    if pairs is not None:
        first.append(np.searchsorted(ids, pairs.first[pairs.same]))
        second.append(np.searchsorted(ids, pairs.second[pairs.same]))
    linked = linked_identities(len(ids) + len(subjects), np.concatenate(first), np.concatenate(second))
    return ids, np.unique(linked[: len(ids)], return_inverse=True)[1].astype(np.int64)


def template_samples(result: TemplateEvaluation, lists: TemplateLists) -> dict[FigurePath, list[Sample]]:
    """Return the samples of a result's 1:1 and 1:N figures, by where these stand in `figures()`, for intervals by subject."""
    found: dict[FigurePath, list[Sample]] = {}
    if result.verification is not None:
        one, pairs = result.verification, lists.pairs
        assert pairs is not None
        ids, subjects = subjects_of_templates(lists)
        found["verification",] = [
            TailSample.of_list(
                one.scores,
                one.same,
                subjects[np.searchsorted(ids, pairs.first[one.scored])],
                subjects[np.searchsorted(ids, pairs.second[one.scored])],
                codes=np.flatnonzero(one.scored),
                fars=tuple(one.tar_at_far),
            )
        ]
    if result.search is not None:
        found["search",] = [search_sample(list(result.search.galleries.values()))]
    return found


def _too_many(lists: TemplateLists, broken: dict[int, str], limit: float) -> UserError:
    face = min(broken)
    return UserError(
        f"{lists.folder}: {len(broken):,} of {len(lists.faces):,} faces cannot be used, more than the limit of {limit:g}; the first is "
        f"{lists.faces.names[face]}: {broken[face]}: complete the folder, or raise --broken-limit"
    )


def _run(
    subject: Subject,
    name: str,
    paths: Sequence[str],
    *,
    mode: str,
    embeddings: Path | None,
    broken_limit: float,
    keep_scores: bool,
) -> Outcome:
    modes = TemplateMode.all() if mode.lower() == "all" else tuple(map(TemplateMode.parse, mode.split(",")))
    with subject.progress("pairs") as progress:
        lists = read_template_lists(one_path(name, paths, "the folder with loose_crop and meta"), name, progress)
    with subject.progress("faces") as progress:
        results = evaluate_templates(
            subject.embedder,
            lists,
            embeddings or default_cache(),
            tuple(dict.fromkeys(modes)),
            broken_limit=broken_limit,
            model_key=subject.digest(),
            progress=progress,
        )
    samples = {
        ("modes", str(result.mode), *place): several
        for result in results
        for place, several in (template_samples(result, lists) if keep_scores else {}).items()
    }
    first = results[0]
    figures = {"modes": {str(result.mode): result.figures() for result in results}, "embeddings": str(first.cache)}
    shown: list[str | Table] = [
        f"{first.name}: {first.faces:,} faces, {first.templates:,} templates; {first.reused:,} embeddings were there, "
        f"all are in {first.cache}"
    ]
    if first.verification is not None:
        shown += _verification_table(list(figures["modes"]), first.verification)
    if first.search is not None:
        shown.append(_search_table(list(figures["modes"]), first.search))
    notes = dict.fromkeys(note for result in results for note in result.notes)
    return Outcome(figures, samples, [*shown, *noted(list(notes))])


def _verification_table(modes: Sequence[str], one: TemplateVerification) -> list[str | Table]:
    rows: list[list[str | Cell]] = []
    for mode in modes:
        at = ("modes", mode, "verification")
        fars = [far_name(far) for far in one.tar_at_far]
        tars = [Cell((*at, "tar_at_far", far)) for far in fars]
        rows.append([mode, *tars, Cell((*at, "auc"), "share"), Cell((*at, "eer"))])
        rows.append(["  nearest FAR *", *(Cell((*at, "tar_at_nearest_far", far)) for far in fars)])
    header = (f"{far:.0e}".replace("e-0", "e-") for far in one.tar_at_far)
    return [
        Table(("1:1 TAR % at FAR", *header, "AUC", "EER %"), rows),
        f"over {one.genuine:,} genuine and {one.impostors:,} impostor pairs; * at the point of the curve whose FAR is nearest, "
        "as the published scripts print it",
    ]


def _search_table(modes: Sequence[str], one: TemplateSearch) -> Table:
    rates = [(name, rate) for name, found in one.mean.items() for rate in found]
    rows: list[list[str | Cell]] = []
    for mode in modes:
        lines: dict[str, FigurePath] = {
            f"{mode} mean": (),
            **{f"  {name}": ("galleries", name) for name in one.galleries},
        }
        if one.published is not None:
            lines["  joined, as published"] = ("published",)
        for title, place in lines.items():
            rows.append([title, *(Cell(("modes", mode, "search", *place, *rate)) for rate in rates)])
    titles = (f"rank {rate}" if name == "rank" else f"TPIR@{rate}" for name, rate in rates)
    return Table(("1:N, %", *titles), rows)


def _board(protocol: str, data: str, place: FigurePath) -> Board:
    name = SET_NAMES[protocol]
    shown = f"{name}, {place[1]}"
    if place[2] == "verification":
        fars = (("1E-4", "0.0001"), ("1E-5", "1e-05"))
        columns = tuple((f"{name}({title})", ("tar_at_far", far)) for title, far in fars)
        return Board((protocol, *place), f"{shown}: 1:1", columns)
    return Board((protocol, *place), f"{shown}: 1:N", ((f"{name} rank 1", ("rank", "1")),))


PROTOCOL = Protocol(tuple(SET_NAMES), _run, _board, without_pairs="brings its own pairs: leave out --pairs")
