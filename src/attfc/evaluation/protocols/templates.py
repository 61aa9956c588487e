"""Template protocols (IJB-B, IJB-C): faces pooled into templates, 1:1 over the list of pairs, 1:N over the galleries.

A template's vector is sum over its medias of (mean over the media's faces of weight x embedding), at unit length; the embedding is image + mirror
image and the weight the detector score, unless the mode says otherwise (`TemplateMode`). Pooling reads the embeddings once, a block at a time,
sorted by template and media, and adds up segments: no loop over templates. Scores are the exact cosines of `exact_scores`, so equal templates tie
and every figure is a count. Templates without a usable face make no score: their pairs and probes are left out, counted and noted.

Cost at IJB-C's size (469,375 faces, 23,124 templates, 15.7 million pairs): see docs/benchmarks.md.

Sources: Whitelam et al. 2017 (IJB-B), Maze et al. 2018 (IJB-C); weights and pooling as in InsightFace's IJB scripts. Differs from them: see
docs/evaluation.md.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from attfc.errors import UserError
from attfc.evaluation.bootstrap import Path as FigurePath
from attfc.evaluation.bootstrap import Sample, linked_identities
from attfc.evaluation.embed import check_broken_limit
from attfc.evaluation.embedding_cache import FaceEmbeddings
from attfc.evaluation.exact_scores import block_scores, unit_tensor
from attfc.evaluation.metrics import (
    area_under_roc,
    equal_error_rate,
    far_name,
    pairs_needed,
    tar_at_nearest_far,
    tar_of_kinds,
)
from attfc.evaluation.protocols.identification import Identification, identify
from attfc.evaluation.protocols.template_faces import embed_faces
from attfc.evaluation.protocols.template_lists import SubjectList, TemplateLists, TemplatePairs
from attfc.evaluation.samples import SearchSample, TailSample

__all__ = [
    "TEMPLATE_FARS",
    "TemplateEvaluation",
    "TemplateMode",
    "TemplateSearch",
    "TemplateVerification",
    "Templates",
    "evaluate_templates",
    "pool_templates",
    "score_template_pairs",
    "search_templates",
    "subjects_of_templates",
    "template_samples",
    "verify_templates",
]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

TEMPLATE_FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
RANKS, FPIRS = (1, 5, 10), (0.01, 0.1)

_POOL_ROWS = 8192  # rows of a block: 32 MiB at 512 numbers in float64
_BLOCK_SCORES = 2**22  # scores computed at a time
_SPARSE = 200  # cells per pair: beyond, rows are gathered for each first template instead, which costs so many times as much a score


@dataclass(frozen=True)
class TemplateMode:
    """The three switches of the published script, by its names; the default is N1D1F1.

    Attributes:
        norm: N1, embeddings keep their length, which the pooling then uses as a weight; N0, each is brought to unit length first.
            (InsightFace's ijb_11.py and arcface_torch mean this by N1; its ijb_evals.py means the opposite.)
        detector_score: D1, each face weighs as much as its detector score.
        flip: F1, the embedding is image + mirror image.
    """

    norm: bool = True
    detector_score: bool = True
    flip: bool = True

    @staticmethod
    def parse(text: str) -> "TemplateMode":
        """Return the mode of "N1D1F1"; switches that are not named are on.

        >>> str(TemplateMode.parse("d0"))
        'N1D0F1'
        """
        if not re.fullmatch(r"(?i:(N[01])?(D[01])?(F[01])?)", text) or not text:
            raise UserError(f"mode {text!r} is unknown: use N, D and F with 0 or 1, as in N1D1F1, or all")
        on = {text[k].upper(): text[k + 1] == "1" for k in range(0, len(text), 2)}
        return TemplateMode(on.get("N", True), on.get("D", True), on.get("F", True))

    @staticmethod
    def all() -> tuple["TemplateMode", ...]:
        """Return the eight modes, the default first."""
        return tuple(TemplateMode(*on) for on in itertools.product((True, False), repeat=3))

    def __str__(self) -> str:
        """Return the script's name: N1D1F1."""
        return f"N{int(self.norm)}D{int(self.detector_score)}F{int(self.flip)}"


@dataclass(frozen=True, eq=False)
class Templates:
    """T templates that have a face.

    Attributes:
        ids: (T,) int64 rising, numbers as the lists have them.
        vectors: (T, D) float32 unit rows.
        faces: (T,) int64 usable faces of each.
        empty: (E,) int64 ids of templates that have faces but none of use, or whose faces cancel out.
    """

    ids: Ints
    vectors: Tensor
    faces: Ints
    empty: Ints

    def rows(self, ids: Ints) -> Ints:
        """Return the row of each id, -1 where the template has no face."""
        if not len(self.ids):
            return np.full(len(ids), -1, dtype=np.int64)
        places = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[places] == ids, places, -1)


def pool_templates(
    image_ND: npt.NDArray[Any],
    templates: npt.ArrayLike,
    medias: npt.ArrayLike,
    *,
    mirror: npt.NDArray[Any] | None = None,
    weights: npt.ArrayLike | None = None,
    usable: npt.ArrayLike | None = None,
    normalize: bool = False,
) -> Templates:
    """Pool faces into templates.

    v_t = normalize( sum over medias m of t of  1/n_tm  sum over faces i of (t, m) of  w_i e_i ),  e_i = image_i + mirror_i

    Args:
        image_ND: (N, D) embeddings of any length but 0; memory-mapped arrays are read once.
        templates, medias: (N,) int64; a media belongs to its template, equal numbers in two templates are two medias.
        mirror: (N, D) embeddings of the mirrored images, None = none are added.
        weights: (N,) >= 0, e.g. detector scores; None = 1.
        usable: (N,) false for faces to leave out; they do not count in n_tm either.
        normalize: bring e_i to unit length first.

    Raises:
        UserError: sizes that do not match; NaN, infinity or length 0 in the embedding of a usable face; no usable face at all.
    """
    template_N, media_N = np.asarray(templates, dtype=np.int64), np.asarray(medias, dtype=np.int64)
    weight_N = np.ones(len(template_N)) if weights is None else np.asarray(weights, dtype=np.float64)
    usable_N = np.ones(len(template_N), np.bool_) if usable is None else np.asarray(usable, dtype=np.bool_)
    for name, array in (
        ("medias", media_N),
        ("embeddings", image_ND),
        ("mirror", mirror),
        ("weights", weight_N),
        ("usable", usable_N),
    ):
        if array is not None and len(array) != len(template_N):
            raise UserError(f"{len(array)} {name} for {len(template_N)} faces: pass one of each a face")
    ids = np.unique(template_N)
    order = np.lexsort((media_N, template_N))
    order = order[usable_N[order]]
    if not order.size:
        raise UserError(f"none of {len(template_N)} faces is usable: there is nothing to pool")
    template_S, media_S = template_N[order], media_N[order]
    new_template = np.append(True, template_S[1:] != template_S[:-1])
    new_media = new_template | np.append(True, media_S[1:] != media_S[:-1])
    faces_of_media = np.diff(np.append(np.flatnonzero(new_media), len(order)))
    factor_S = weight_N[order] / np.repeat(faces_of_media, faces_of_media)
    starts = np.flatnonzero(new_template)
    sums_TD = np.empty((len(starts), image_ND.shape[1]), dtype=np.float64)
    for first, last in _blocks_of_segments(starts, len(order), _POOL_ROWS):
        begin, end = int(starts[first]), int(starts[last]) if last < len(starts) else len(order)
        rows = order[begin:end]
        rows_BD = np.asarray(image_ND[rows], dtype=np.float64)
        if mirror is not None:
            rows_BD += mirror[rows]
        norms_B = np.sqrt(np.einsum("nd,nd->n", rows_BD, rows_BD))
        bad = np.flatnonzero(~(np.isfinite(norms_B) & (norms_B > 0)))
        if bad.size:
            what = "length 0" if norms_B[bad[0]] == 0 else "NaN or infinity"
            raise UserError(
                f"the embedding of face {rows[bad[0]]} (template {template_N[rows[bad[0]]]}) has {what}: the model has diverged, or the face should "
                "be left out"
            )
        rows_BD *= (factor_S[begin:end] / norms_B if normalize else factor_S[begin:end])[:, None]
        np.add.reduceat(rows_BD, starts[first:last] - begin, axis=0, out=sums_TD[first:last])
    length_T = np.linalg.norm(sums_TD, axis=1)
    sound_T = length_T > 0
    found = template_S[starts][sound_T]
    faces = np.diff(np.append(starts, len(order)))[sound_T]
    if not sound_T.any():
        raise UserError(f"all {len(sound_T)} templates add up to length 0: are all weights 0?")
    return Templates(found, unit_tensor(sums_TD[sound_T]), faces, np.setdiff1d(ids, found))


def _blocks_of_segments(starts: Ints, total: int, rows: int) -> list[tuple[int, int]]:
    """Ranges of segments that hold about `rows` rows each; a larger segment is a block of its own."""
    blocks, first = [], 0
    while first < len(starts):
        last = max(int(np.searchsorted(starts, starts[first] + rows, side="right")) - 1, first + 1)
        if total - starts[first] <= rows:
            last = len(starts)
        blocks.append((first, last))
        first = last
    return blocks


def score_template_pairs(vectors_TD: Tensor, first_P: Ints, second_P: Ints) -> npt.NDArray[np.float32]:
    """Return the exact cosine of each pair of rows, (P,) float32, multiples of 2^-24 (see `exact_scores`).

    IJB compares few templates with many, so the matrix of all scores between them holds only a few times the pairs asked for: it is
    computed a block of rows at a time, and the block's pairs are picked from it. Sparser lists are taken by first template.

    Args:
        vectors_TD: float32 unit rows.
        first_P, second_P: row numbers.
    """
    scores = np.empty(len(first_P), dtype=np.float32)
    left, left_P = _dense(first_P, len(vectors_TD))
    right, right_P = _dense(second_P, len(vectors_TD))
    sparse = len(left) * len(right) > _SPARSE * len(first_P)
    order = np.argsort(left_P, kind="stable")  # a radix sort where the numbers have 16 bits, as in IJB
    step = 1 if sparse else max(1, _BLOCK_SCORES // max(len(right), 1))
    starts = np.arange(0, len(left), step)
    bounds = np.searchsorted(left_P[order], np.append(starts, len(left)))
    right_MD = vectors_TD[torch.from_numpy(right)].double()
    for start, begin, end in zip(starts.tolist(), bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        pairs = order[begin:end]
        columns = right_P[pairs].astype(np.int64)
        left_BD = vectors_TD[torch.from_numpy(left[start : start + step])].double()
        if sparse:
            scores[pairs] = block_scores(left_BD, right_MD[torch.from_numpy(columns)])[0].float().numpy()
        else:
            block_BM = block_scores(left_BD, right_MD).float().numpy()
            scores[pairs] = block_BM[left_P[pairs].astype(np.int64) - start, columns]
    return scores


def _dense(rows_P: Ints, total: int) -> tuple[Ints, npt.NDArray[Any]]:
    """Return the rows that occur, rising, and for each of `rows_P` its place among them, in as few bits as it takes."""
    present = np.zeros(total, dtype=np.bool_)
    present[rows_P] = True
    found: Ints = np.flatnonzero(present).astype(np.int64)
    place: npt.NDArray[Any] = np.zeros(total, dtype=np.uint16 if len(found) < 2**16 else np.int64)
    place[found] = np.arange(len(found))
    return found, place[rows_P]


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

    def curve(self, points: int = 400) -> tuple[Floats, Floats]:
        """Return (FAR, TAR) for plotting: numbers of false accepts spread evenly over the logarithm, each exact."""
        genuine = np.sort(self.scores[self.same])
        impostor = np.sort(self.scores[~self.same])[::-1]
        accepts = np.unique(np.geomspace(1, len(impostor), points).astype(np.int64))
        barred = np.append(impostor, np.float32(-2.0))[accepts]
        return accepts / len(impostor), 1.0 - np.searchsorted(genuine, barred, side="right") / len(genuine)


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
    tars = tar_of_kinds(scores[same], scores[~same], fars)
    notes += [
        f"TAR at FAR {far_name(far)} is not stated: {impostors:,} impostor pairs, at least {pairs_needed(far):,} needed"
        for far, tar in tars.items()
        if tar is None
    ]
    return TemplateVerification(
        tar_at_far=tars,
        tar_at_nearest_far=tar_at_nearest_far(scores, same, fars),
        auc=area_under_roc(scores, same),
        eer=equal_error_rate(scores, same),
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
    broken: tuple[tuple[int, str, str], ...]
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

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return what a report draws; none needs pickle.

        far, tar: points of the ROC of 1:1. GALLERY_*: `Identification.arrays` of each gallery. broken_*: the faces that could not be used.
        """
        far, tar = (np.zeros(0), np.zeros(0)) if self.verification is None else self.verification.curve()
        arrays: dict[str, npt.NDArray[Any]] = {"far": far, "tar": tar}
        if self.search is not None:
            for name, found in self.search.galleries.items():
                arrays.update({f"{name}_{key}": value for key, value in found.arrays().items()})
        return {
            **arrays,
            "broken_faces": np.array([face for face, _, _ in self.broken], dtype=np.int64),
            "broken_names": np.array([name for _, name, _ in self.broken], dtype=np.str_),
            "broken_reasons": np.array([reason for _, _, reason in self.broken], dtype=np.str_),
        }


def evaluate_templates(
    model: nn.Module,
    lists: TemplateLists,
    cache: Path,
    modes: Sequence[TemplateMode] = (TemplateMode(),),
    *,
    fars: Sequence[float] = TEMPLATE_FARS,
    ranks: Sequence[int] = RANKS,
    fpirs: Sequence[float] = FPIRS,
    broken_limit: float = 0.01,
    model_key: str | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    workers: int = 0,
    autocast_dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[TemplateEvaluation, ...]:
    """Evaluate a backbone on a template protocol: one result a mode, all from the same embeddings.

    Args:
        model: (B, 3, S, S) float32 RGB in [-1, 1] -> (B, D), with `image_size` and `embedding_size`.
        lists: from `read_template_lists`.
        cache: folder of the embeddings, see `embedding_cache`.
        modes: N, D, F; see `TemplateMode`.
        fars, ranks, fpirs: what to state.
        broken_limit: the largest share of unusable faces that is counted; a larger one is an error.
        model_key, batch_size, device, workers, autocast_dtype, progress: see `embed_faces`.

    Raises:
        UserError: too many unusable faces, nothing to score, or what `embed_faces` raises.
    """
    check_broken_limit(broken_limit)
    faces = lists.faces
    if len(faces.unusable) > broken_limit * len(faces):  # before the hours of embedding
        raise _too_many(lists, faces.unusable, broken_limit)
    embeddings = embed_faces(
        model,
        lists.folder / "loose_crop",
        faces,
        cache,
        model_key=model_key,
        batch_size=batch_size,
        device=device,
        workers=workers,
        autocast_dtype=autocast_dtype,
        progress=progress,
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
        found["search",] = [SearchSample.of(list(result.search.galleries.values()))]
    return found


def _too_many(lists: TemplateLists, broken: dict[int, str], limit: float) -> UserError:
    face = min(broken)
    return UserError(
        f"{lists.folder}: {len(broken):,} of {len(lists.faces):,} faces cannot be used, more than the limit of {limit:g}; the first is "
        f"{lists.faces.names[face]}: {broken[face]}: complete the folder, or raise --broken-limit"
    )
