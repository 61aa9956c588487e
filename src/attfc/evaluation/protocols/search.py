"""Searching embeddings: whose face is it (closed set), and is it anybody's we know (open set)?

`identify` searches probes in a gallery: rank-k rates over the probes whose person is enrolled, TPIR at FPIR with the probes whose person is not.
`rank_one` is the leave-one-out figure of a held-out store. Blocked matrix products on the device of your choice: O(probes x gallery x D) time,
memory within a budget in bytes.

Sources: Grother, Ngan, Hanaoka, NIST FRVT part 2 (FNIR and FPIR; TPIR = 1 - FNIR); Maze et al. 2018 (IJB-C 1:N);
Phillips et al. 2011 (detection and identification rate).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attfc.errors import UserError
from attfc.evaluation.exact_scores import block_scores
from attfc.evaluation.protocols.protocol import Cell
from attfc.evaluation.rates import Figures, far_name, not_stated, tar_of_kinds
from attfc.evaluation.samples import SearchSample, ShareSample
from attfc.evaluation.unit_rows import unit_tensor
from attfc.typing import Array, Bools, Float64, Int64

__all__ = ["Identification", "RankOne", "identify", "rank_one", "rate_columns", "search_sample"]

Strangers = Literal["absent", "mate_removed"]

_STRANGERS = "searches of people who are not enrolled"
_TIE = 1e-6  # cosines of float32 products are rounded by about this much; equal images must count as equal
_BYTES_A_SCORE = 48  # of a block: float64 product, two float64 results of rounding, masks, the maximum an identity


@dataclass(frozen=True, eq=False)
class Identification(Figures):
    """What `identify` found. M mated probes (their person is in the gallery), S searches of strangers.

    Attributes:
        gallery_identities: enrolled identities. gallery_rows: enrolled embeddings.
        rank: rank -> share of mated probes of that rank or a better one; None above the size of the gallery.
        tpir_at_fpir: FPIR -> TPIR; None where the strangers are too few to state it; `notes` says so.
        probe_ranks: (M,) int64. mate_scores: (M,) best score with the own identity. probe_labels: (M,) as given.
        stranger_scores: (S,) best score with anybody. stranger_labels: (S,) as given.
    """

    gallery_identities: int
    gallery_rows: int
    rank: dict[int, float | None]
    tpir_at_fpir: dict[float, float | None]
    probe_ranks: Int64
    mate_scores: Float64
    probe_labels: Array
    stranger_scores: Float64
    stranger_labels: Array
    notes: tuple[str, ...]

    STATED: ClassVar = (
        "gallery_identities",
        "gallery_rows",
        "mated_probes",
        "stranger_searches",
        "rank",
        "tpir_at_fpir",
        "notes",
    )

    @property
    def mated_probes(self) -> int:
        """M."""
        return len(self.probe_ranks)

    @property
    def stranger_searches(self) -> int:
        """S."""
        return len(self.stranger_scores)


@dataclass(frozen=True)
class RankOne:
    """Share of probes whose nearest other image shows the same person, with the counts behind it; hits, labels: (probes,)."""

    rate: float
    probes: int
    gallery: int
    hits: Bools = field(default_factory=lambda: np.zeros(0, np.bool_), repr=False, compare=False)
    labels: Int64 = field(default_factory=lambda: np.zeros(0, np.int64), repr=False, compare=False)

    def sample(self) -> ShareSample:
        """Return the probes with the identities behind them, for intervals."""
        return ShareSample("rank_one", self.hits, np.unique(self.labels, return_inverse=True)[1].astype(np.int64))


def search_sample(searches: Sequence[Identification]) -> SearchSample:
    """Return the sample of searches of the same probes in one or several galleries, for intervals."""
    probes = [one.probe_labels for one in searches]
    strangers = [one.stranger_labels for one in searches]
    labels, number = np.unique(np.concatenate([*probes, *strangers]), return_inverse=True)
    mated = sum(map(len, probes))

    def numbered(parts: list[Array]) -> Int64:
        return np.repeat(np.arange(len(parts)), [len(part) for part in parts])

    def stated(rates: list[Mapping[Any, float | None]]) -> tuple[Any, ...]:
        return tuple(key for key in rates[0] if all(one[key] is not None for one in rates))

    return SearchSample(
        ranks=np.concatenate([one.probe_ranks for one in searches]),
        mates=np.concatenate([one.mate_scores for one in searches]),
        probe_identities=number[:mated].astype(np.int64),
        probe_gallery=numbered(probes),
        strangers=np.concatenate([one.stranger_scores for one in searches]),
        stranger_identities=number[mated:].astype(np.int64),
        stranger_gallery=numbered(strangers),
        rank_limits=stated([one.rank for one in searches]),
        fpirs=stated([one.tpir_at_fpir for one in searches]),
        searched=len(labels),
    )


def rate_columns(found: Any) -> dict[str, Cell]:
    """Return the columns of a table of rank rates and TPIRs, those that figures have (`Identification`, or means of several)."""
    ranks = {f"rank {rank}": Cell(("rank", str(rank))) for rank in found.rank}
    return ranks | {f"TPIR@{far_name(fpir)}": Cell(("tpir_at_fpir", far_name(fpir))) for fpir in found.tpir_at_fpir}


def identify(
    gallery_ND: Array | Tensor,
    gallery_labels: npt.ArrayLike,
    probe_MD: Array | Tensor,
    probe_labels: npt.ArrayLike,
    ranks: Sequence[int] = (1, 5, 10),
    fpirs: Sequence[float] = (0.01, 0.1),
    *,
    strangers: Strangers = "absent",
    within_rank: int | None = 1,
    device: torch.device | str | None = None,
    budget: int = 2**30,
) -> Identification:
    """Search every probe in the gallery.

    The score of a probe and an enrolled identity is the best exact score (`exact_scores`) with one of its rows.
    The rank of a mated probe is 1 + the number of *other* identities that score at least as high as its own. Ties count
    against the model, so a collapsed one finds nobody. Of S non-mated searches floor(FPIR x S) may be accepted: the threshold is
    the best score of the next one. A mated probe is found when its rank is at most `within_rank` and its own identity
    scores *above* that threshold. Equal scores are accepted or rejected together.

    Args:
        gallery_ND: (N, D) any length but 0; one row or several an identity (best of them), one template in IJB.
        gallery_labels: (N,) integers or text.
        probe_MD: (M, D).
        probe_labels: (M,) of the same kind. A probe whose label is not in the gallery has no rank, and is non-mated in the open-set metrics.
        ranks: >= 1. fpirs: false positive identification rates, in (0, 1].
        strangers: the non-mated searches. "absent": those of the probes without a mate. "mate_removed": also a second search of every
            mated probe, with its own identity taken out of the gallery. So does the published IJB 1:N script, where all probes have mates.
        within_rank: rank that a true positive must reach; None = the score alone decides, as in that script.
        device: where to multiply; None = where the probes are.
        budget: bytes for copies and blocks.

    Returns:
        Identification. Without non-mated searches, or with fewer than 1 / FPIR, the TPIR is None and `notes` says so.

    Raises:
        UserError: no mated probe; rows with NaN or of length 0; sizes that do not match; a budget that does not suffice.

    >>> rows = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> found = identify(rows, [7, 8], np.array([[0.9, 0.1], [0.6, 0.7], [-1.0, 0.1]]), [7, 7, 9], ranks=(1, 2), fpirs=(1.0,))
    >>> found.rank, found.tpir_at_fpir, len(found.stranger_scores)
    ({1: 0.5, 2: 1.0}, {1.0: 0.5}, 1)
    """
    if strangers not in ("absent", "mate_removed"):
        raise UserError(f"strangers={strangers!r} is unknown: use 'absent' or 'mate_removed'")
    if min(ranks, default=1) < 1 or (within_rank is not None and within_rank < 1):
        raise UserError(f"ranks={tuple(ranks)}, within_rank={within_rank}: the best rank is 1")
    where = device if device is not None else probe_MD.device if isinstance(probe_MD, Tensor) else "cpu"
    gallery_32, probe_32 = unit_tensor(gallery_ND, where), unit_tensor(probe_MD, where)
    identities, column_N, label_M, own_M = _mates(gallery_32, gallery_labels, probe_32, probe_labels)
    mate_M, ahead_M, other_M = _search(gallery_32, column_N, identities, probe_32, own_M, budget)

    mated_M = own_M >= 0
    stranger_M = np.ones_like(mated_M) if strangers == "mate_removed" and identities > 1 else ~mated_M
    probe_ranks, stranger_scores = 1 + ahead_M[mated_M], other_M[stranger_M]
    rates = {rank: float(np.mean(probe_ranks <= rank)) if rank <= identities else None for rank in ranks}
    notes = [
        f"rank {k} is not stated: the gallery has only {identities:,} identities" for k in ranks if rates[k] is None
    ]
    # A true positive that fails by rank can never be accepted: its score sinks below every threshold.
    in_rank = probe_ranks <= (identities if within_rank is None else within_rank)
    tpirs: dict[float, float | None] = dict.fromkeys(fpirs)
    if stranger_scores.size:
        tpirs = tar_of_kinds(np.where(in_rank, mate_M[mated_M], -np.inf), stranger_scores, fpirs)
        if 1.0 in tpirs:  # everybody is accepted, but a wrong rank stays wrong
            tpirs[1.0] = float(np.mean(in_rank))
    return Identification(
        gallery_identities=identities,
        gallery_rows=len(gallery_32),
        rank=rates,
        tpir_at_fpir=tpirs,
        probe_ranks=probe_ranks,
        mate_scores=mate_M[mated_M],
        probe_labels=label_M[mated_M],
        stranger_scores=stranger_scores,
        stranger_labels=label_M[stranger_M],
        notes=(*notes, *not_stated(tpirs, stranger_scores.size, "TPIR at FPIR", _STRANGERS)),
    )


def _mates(
    gallery_ND: Tensor, gallery_labels: npt.ArrayLike, probe_MD: Tensor, probe_labels: npt.ArrayLike
) -> tuple[int, Int64, Array, Int64]:
    """Return how many identities are enrolled, that of each gallery row, the probes' labels, and the identity of each, -1 for none."""
    if gallery_ND.shape[1] != probe_MD.shape[1]:
        raise UserError(
            f"the gallery has {gallery_ND.shape[1]} numbers per embedding, the probes {probe_MD.shape[1]}: embed both with one model"
        )
    enrolled_N, label_M = np.asarray(gallery_labels), np.asarray(probe_labels)
    for name, labels, rows in (("gallery", enrolled_N, gallery_ND), ("probe", label_M, probe_MD)):
        if labels.shape != (len(rows),):
            raise UserError(f"{labels.shape} {name} labels for {len(rows)} embeddings: pass one label per row")
    identities, column_N = np.unique(enrolled_N, return_inverse=True)
    own_M = np.minimum(np.searchsorted(identities, label_M), len(identities) - 1)
    own_M[identities[own_M] != label_M] = -1
    if not (own_M >= 0).any():
        raise UserError(
            f"none of {len(label_M):,} probes shows one of the {len(identities):,} enrolled identities: "
            "rank rates need a probe with a mate; check that gallery and probes use the same labels"
        )
    return len(identities), column_N, label_M, own_M


def _search(
    gallery_ND: Tensor, column_N: Int64, identities: int, probe_MD: Tensor, own_M: Int64, budget: int
) -> tuple[Float64, Int64, Float64]:
    """For each probe: score of its own identity (-inf without), others scoring as high, best score of the others (-inf if none)."""
    on = probe_MD.device
    gallery_64, columns = gallery_ND.double(), torch.from_numpy(column_N).to(on)
    fixed, each = 2 * gallery_64.nbytes + probe_MD.nbytes, _BYTES_A_SCORE * len(gallery_ND)
    block = min(4096, (budget - fixed) // each)
    if block < 1:
        raise UserError(
            f"budget={budget:,} bytes is too small for a gallery of {len(gallery_ND):,} rows: at least {fixed + each:,} are needed"
        )
    mate_M, other_M, ahead_M = np.empty(len(own_M)), np.empty(len(own_M)), np.empty(len(own_M), dtype=np.int64)
    for start in range(0, len(own_M), block):
        part = slice(start, start + block)
        scores_BG = block_scores(probe_MD[part].double(), gallery_64)
        if identities < len(gallery_ND):
            best_BI = torch.full((len(scores_BG), identities), -torch.inf, dtype=torch.float64, device=on)
            scores_BG = best_BI.scatter_reduce_(1, columns.expand_as(scores_BG), scores_BG, "amax")
        else:
            scores_BG = scores_BG[:, torch.argsort(columns)]
        own_B = torch.from_numpy(own_M[part]).to(on)
        has_B = own_B >= 0
        mate_B = torch.where(has_B, scores_BG.gather(1, own_B.clamp_min(0)[:, None])[:, 0], torch.inf)
        rows_B = torch.nonzero(has_B).ravel()
        scores_BG[rows_B, own_B[rows_B]] = -torch.inf
        ahead_M[part] = (scores_BG >= mate_B[:, None]).sum(dim=1).cpu().numpy()
        other_M[part] = scores_BG.amax(dim=1).cpu().numpy()
        mate_M[part] = torch.where(has_B, mate_B, -torch.inf).cpu().numpy()
    return mate_M, ahead_M, other_M


def rank_one(
    embeddings: Array | Tensor,
    labels: npt.ArrayLike,
    *,
    block: int = 1024,
    device: torch.device | str | None = None,
) -> RankOne:
    """Return the rank-one identification rate, leaving one out.

    Every image of an identity with at least two images is a probe, all other images (also those of identities with a
    single image) are its gallery. A probe counts as found when its best score with an image of the same person is above
    its best score with anybody else's by more than 1e-6. Ties are misses, so a collapsed model scores 0, whatever the sorting does.

    Args:
        embeddings: (N, D) any length but 0.
        labels: (N,) integers, any.
        block: probes at a time; block x N scores are held.
        device: where to multiply; None = where the embeddings are.

    Raises:
        UserError: no identity with two images, or no second identity; embeddings that are not finite or have length 0.

    >>> rank_one(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), [0, 0, 1])
    RankOne(rate=1.0, probes=2, gallery=2)
    """
    rows_ND = unit_tensor(embeddings, device)
    _, dense, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    if len(dense) != len(rows_ND):
        raise UserError(f"{len(dense)} labels for {len(rows_ND)} embeddings: pass one label per row")
    probes = np.flatnonzero(counts[dense] >= 2)
    if probes.size == 0 or len(counts) < 2:
        raise UserError(
            f"{len(rows_ND)} images of {len(counts)} identities: rank-one identification needs "
            "an identity with two images and a second identity"
        )
    labels_N = torch.from_numpy(dense).to(rows_ND.device)
    found: list[Bools] = []
    for start in range(0, len(probes), block):
        probe_B = torch.from_numpy(probes[start : start + block]).to(rows_ND.device)
        scores_BN = rows_ND[probe_B] @ rows_ND.T
        same_BN = labels_N[probe_B, None] == labels_N
        impostor_B = scores_BN.masked_fill(same_BN, -2.0).amax(dim=1)
        same_BN[torch.arange(len(probe_B), device=probe_B.device), probe_B] = False  # not the probe itself
        genuine_B = scores_BN.masked_fill(~same_BN, -2.0).amax(dim=1)
        found.append((genuine_B > impostor_B + _TIE).cpu().numpy())
    hits = np.concatenate(found)
    return RankOne(int(hits.sum()) / len(probes), len(probes), len(rows_ND) - 1, hits, dense[probes].astype(np.int64))
