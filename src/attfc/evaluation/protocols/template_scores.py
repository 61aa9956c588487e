"""Scores of templates: 1:1 over a list of pairs, 1:N in galleries.

Scores are the exact cosines of `exact_scores`, so equal templates tie and every figure is a count. Templates without a usable face make no score:
their pairs and probes are left out, counted and noted.

Sources: Whitelam et al. 2017 (IJB-B), Maze et al. 2018 (IJB-C). Differs from the published scripts: see docs/evaluation.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from attfc.errors import UserError
from attfc.evaluation.exact_scores import block_scores
from attfc.evaluation.metrics import Accepts
from attfc.evaluation.protocols.search import Identification, identify
from attfc.evaluation.protocols.template_lists import SubjectList, TemplatePairs
from attfc.evaluation.protocols.template_pooling import Templates
from attfc.evaluation.rates import Figures, not_stated
from attfc.typing import Array, Bools, Float32, Int64

__all__ = [
    "FPIRS",
    "RANKS",
    "TEMPLATE_FARS",
    "TemplateSearch",
    "TemplateVerification",
    "score_template_pairs",
    "search_templates",
    "verify_templates",
]

TEMPLATE_FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
RANKS, FPIRS = (1, 5, 10), (0.01, 0.1)

_BLOCK_SCORES = 2**22  # scores computed at a time
_SPARSE = 200  # cells per pair: beyond, rows are gathered for each first template instead, which costs so many times as much a score


def score_template_pairs(vectors_TD: Tensor, first_P: Int64, second_P: Int64) -> Float32:
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


def _dense(rows_P: Int64, total: int) -> tuple[Int64, Array]:
    """Return the rows that occur, rising, and for each of `rows_P` its place among them, in as few bits as it takes."""
    present = np.zeros(total, dtype=np.bool_)
    present[rows_P] = True
    found: Int64 = np.flatnonzero(present).astype(np.int64)
    place: Array = np.zeros(total, dtype=np.uint16 if len(found) < 2**16 else np.int64)
    place[found] = np.arange(len(found))
    return found, place[rows_P]


@dataclass(frozen=True, eq=False)
class TemplateVerification(Figures):
    """The 1:1 protocol.

    Attributes:
        pairs, genuine_pairs, impostor_pairs: scored.
        skipped_genuine_pairs, skipped_impostor_pairs: pairs with a template that has no usable face.
        tar_at_far: TAR at a FAR that does not exceed the one asked for; None where the non-mated pairs are too few to state it.
        tar_at_nearest_far: what the published scripts print, see `metrics.tar_at_nearest_far`.
        auc, eer: over all scored pairs.
        scores, same: (P,) of the pairs scored, in the order of the list.
        scored: (P of the list,) which pairs those are.
    """

    pairs: int
    genuine_pairs: int
    impostor_pairs: int
    skipped_genuine_pairs: int
    skipped_impostor_pairs: int
    tar_at_far: dict[float, float | None]
    tar_at_nearest_far: dict[float, float]
    auc: float
    eer: float
    notes: tuple[str, ...]
    scores: Float32 = field(repr=False)
    same: Bools = field(repr=False)
    scored: Bools = field(repr=False)


def verify_templates(
    templates: Templates, pairs: TemplatePairs, fars: Sequence[float] = TEMPLATE_FARS
) -> TemplateVerification:
    """Score a list of pairs of templates.

    Raises:
        UserError: of the pairs whose templates have faces, all are mated or all non-mated pairs.
    """
    first, second = templates.rows(pairs.first), templates.rows(pairs.second)
    scored = (first >= 0) & (second >= 0)
    same, skipped_same = pairs.same[scored], pairs.same[~scored]
    genuine, skipped = int(same.sum()), len(skipped_same)
    impostors = len(same) - genuine
    notes: list[str] = []
    if skipped:
        named = np.unique(np.concatenate([pairs.first[first < 0], pairs.second[second < 0]]))
        notes.append(
            f"{skipped:,} of {len(pairs):,} pairs were left out: they use one of {len(named):,} templates without a usable face "
            f"(the first is {named[0]})"
        )
    if not genuine or not impostors:
        raise UserError(
            f"{genuine:,} mated and {impostors:,} non-mated pairs have faces ({skipped:,} of {len(pairs):,} pairs have not): "
            "1:1 metrics need both kinds"
        )
    scores = score_template_pairs(templates.vectors, first[scored], second[scored])
    accepts = Accepts.of(scores, same)
    tars = accepts.tar_at_far(fars)
    return TemplateVerification(
        pairs=len(same),
        genuine_pairs=genuine,
        impostor_pairs=impostors,
        skipped_genuine_pairs=int(skipped_same.sum()),
        skipped_impostor_pairs=int((~skipped_same).sum()),
        tar_at_far=tars,
        tar_at_nearest_far=accepts.tar_at_nearest_far(fars),
        auc=accepts.area,
        eer=accepts.equal_error_rate,
        notes=(*notes, *not_stated(tars, impostors, "TAR at FAR")),
        scores=scores,
        same=same,
        scored=scored,
    )


@dataclass(frozen=True, eq=False)
class TemplateSearch(Figures):
    """The 1:N protocol.

    Attributes:
        rank, tpir_at_fpir: the means over the galleries, of figures that every gallery states.
        galleries: name -> what `identify` found; probes whose subject is in the other gallery are the strangers.
        published: galleries joined to one, so that all probes have mates, as InsightFace's ijb_1n.py does; None if a subject is in both.
        probes_without_face, enrolled_without_face: templates left out.
    """

    rank: dict[int, float | None]
    tpir_at_fpir: dict[float, float | None]
    galleries: dict[str, Identification]
    published: Identification | None
    probes_without_face: int
    enrolled_without_face: int
    notes: tuple[str, ...]

    @property
    def people(self) -> int:
        """How many subjects the figures rest on: those of the probes who are enrolled."""
        return len(np.unique(np.concatenate([found.probe_labels for found in self.galleries.values()])))


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
    notes: list[str] = []
    lost: list[int] = []

    def with_face(listed: SubjectList, what: str, note: str) -> tuple[Tensor, Int64]:
        rows = templates.rows(listed.templates)
        lost.append(int((rows < 0).sum()))
        if lost[-1]:
            notes.append(f"{lost[-1]:,} of {len(rows):,} {note}")
        if lost[-1] == len(rows):
            raise UserError(f"no {what} has a usable face")
        return templates.vectors[torch.from_numpy(rows[rows >= 0])], listed.subjects[rows >= 0]

    probe = with_face(probes, "probe", "probes were left out: no usable face")
    found: dict[str, Identification] = {}
    enrolled: list[tuple[Tensor, Int64]] = []
    for gallery in galleries:
        of = f"template of gallery {gallery.name}"
        note = f"templates of gallery {gallery.name} were left out: no usable face; searches for their subjects count as non-mated"
        enrolled.append(with_face(gallery, of, note))
        found[gallery.name] = identify(*enrolled[-1], *probe, ranks, fpirs)
        notes += [f"gallery {gallery.name}: {note}" for note in found[gallery.name].notes]
    vectors, subjects = torch.cat([rows for rows, _ in enrolled]), np.concatenate([who for _, who in enrolled])
    published = None
    if len(np.unique(subjects)) == len(subjects) and np.isin(probe[1], subjects).all():
        published = identify(vectors, subjects, *probe, ranks, fpirs, strangers="mate_removed", within_rank=None)
    return TemplateSearch(
        rank={rank: _mean([one.rank[rank] for one in found.values()]) for rank in ranks},
        tpir_at_fpir={fpir: _mean([one.tpir_at_fpir[fpir] for one in found.values()]) for fpir in fpirs},
        galleries=found,
        published=published,
        probes_without_face=lost[0],
        enrolled_without_face=sum(lost[1:]),
        notes=tuple(notes),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
