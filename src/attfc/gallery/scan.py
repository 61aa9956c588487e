"""The nearest templates of a query, exactly: an int8 scan says which slots can be nearest, and those are compared in float32.

With x = s c + d (int8 numbers c, scale s, rounding d) and a query q rounded alike, |x . q - s c . s' c'| <= |d| + (1 + |d|) |d'| by Cauchy and
Schwarz, |x| = |q| = 1. So each slot has a highest cosine that it can have. Compared in float32 are the slots whose highest reaches the k-th best
exact cosine; a slot that was left out cannot be among the best k. Nothing is approximate, and how many are compared follows from the data.

Cost: one byte per number and template is read; some 4 bytes per template and query are held. Queries go through in batches of 64.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attfc.errors import UserError
from attfc.gallery.vectors import GROUP, Rows, VectorFiles, rounded
from attfc.typing import Float32, Int64

__all__ = ["nearest"]

QUERIES = 64  # at once
STEP = 65_536  # slots at a time, for a batch an eighth: products stay near the processor, and threads seldom wait for each other
GATHERED = 65_536  # rows compared in float32 at once: 128 MiB at 512 numbers
UNIT = 1e-3  # how far from 1 a squared length may be
FREE = -4.0  # below every cosine, with every error


@dataclass(frozen=True)
class _Highest:
    """What slots can have at most with one query: cosine_N + error_N, and how much the query's own rounding adds.

    Attributes:
        cosine_N: float32 cosines of the rounded vectors, in units of the query's `scale`.
        error_N: float32, FREE where a slot is free.
        of_group: (N / GROUP,) the highest of each group.
        scale, slack: of the query.
    """

    cosine_N: Tensor
    error_N: Tensor
    of_group: Tensor
    scale: float
    slack: float

    def above(self, limit: float) -> Int64:
        """Return the slots whose highest is at least `limit`, rising."""
        groups = torch.nonzero(self.of_group >= limit).ravel()
        highest = self.cosine_N.view(-1, GROUP)[groups] * self.scale + self.error_N.view(-1, GROUP)[groups]
        rows, columns = torch.nonzero(highest >= limit, as_tuple=True)
        return (groups[rows] * GROUP + columns).numpy()


def nearest(
    files: VectorFiles,
    slots: int,
    query_QD: Float32,
    top: int,
    names_of: Callable[[Int64], dict[int, str]],
) -> list[list[tuple[str, float, int]]]:
    """Search unit vectors.

    Args:
        files: of the templates.
        slots: how many of its slots are in use or were.
        query_QD: (Q, D) float32, unit length.
        top: how many names at most.
        names_of: the names of slots, of those that have one.

    Returns:
        For each query the best `top` names as (name, cosine, slot of its best template), best first.
    """
    rows = files.rows(slots)
    found = []
    for start in range(0, len(query_QD), QUERIES):
        batch_QD = query_QD[start : start + QUERIES]
        for query_D, highest in zip(batch_QD, _highest(files, rows, batch_QD), strict=True):
            found.append(_best(files, query_D, highest, top, names_of))
    return found


def _highest(files: VectorFiles, rows: Rows, query_QD: Float32) -> Iterator[_Highest]:
    query = rounded(query_QD)
    coarse_QD = torch.from_numpy(query.coarse_ND)
    coarse_ND, scales_N2 = torch.from_numpy(rows.coarse_ND), torch.from_numpy(rows.scales_N2)
    scale_N, error_N = scales_N2[:, 0].contiguous(), scales_N2[:, 1]
    largest = float(error_N.max()) if len(error_N) else 0.0
    if not largest < 1:
        raise UserError(f"{files.paths[2]} is damaged: an error in it is {largest:g}; {files.REMEDY}")
    error_N = torch.where(scale_N > 0, error_N, FREE)
    count, slots = len(query_QD), len(coarse_ND)
    cosine_QN = torch.from_numpy(np.empty((count, slots), np.float32))  # numpy asks for large pages, torch does not
    group_QG = torch.empty((count, slots // GROUP))
    step = STEP if count < 8 else STEP // 8
    product_QB = torch.empty((count, step), dtype=torch.int32)
    for start in range(0, slots, step):
        part = slice(start, start + step)
        out = product_QB if start + step <= slots else torch.empty((count, slots - start), dtype=torch.int32)
        torch._int_mm(coarse_QD, coarse_ND[part].T, out=out)
        torch.mul(out, scale_N[part], out=(cosine_QB := cosine_QN[:, part]))
        group_QG[:, start // GROUP : (start + step) // GROUP] = cosine_QB.reshape(count, -1, GROUP).amax(2)
    error_G = error_N.view(-1, GROUP).amax(1)
    for row, (scale, error) in enumerate(query.scales_N2.tolist()):
        yield _Highest(cosine_QN[row], error_N, group_QG[row] * scale + error_G, scale, (1 + largest) * error)


def _best(
    files: VectorFiles, query_D: Float32, highest: _Highest, top: int, names_of: Callable[[Int64], dict[int, str]]
) -> list[tuple[str, float, int]]:
    wanted = 4 * top
    while True:
        few = wanted < len(highest.of_group)
        limit = float(torch.topk(highest.of_group, wanted).values[-1]) if few else FREE / 2
        best = _named(files, query_D, highest.above(limit), top, names_of)
        if len(best) == top:
            # What is left out has at most limit + slack; what reaches the last of the best has to be looked at.
            reach = best[-1][1] - highest.slack
            return best if reach >= limit else _named(files, query_D, highest.above(reach), top, names_of)
        if not few:
            return best
        wanted *= 8


def _named(
    files: VectorFiles, query_D: Float32, slots_N: Int64, top: int, names_of: Callable[[Int64], dict[int, str]]
) -> list[tuple[str, float, int]]:
    """Return the best names among slots."""
    cosine_N = np.empty(len(slots_N), np.float32)
    for start in range(0, len(slots_N), GATHERED):
        gathered = slice(start, start + GATHERED)
        exact_BD = files.exact(slots_N[gathered])
        cosine_N[gathered] = exact_BD @ query_D
        odd_B = ~(np.abs(np.einsum("bd,bd->b", exact_BD, exact_BD) - 1) < UNIT)  # NaN is odd too
        if odd_B.any() and (
            people := names_of(slots_N[gathered][odd_B])
        ):  # a slot that is being written has no name yet
            raise UserError(
                f"{files.paths[0]} is damaged: the template of {min(people.values())!r} has not length 1; {files.REMEDY}"
            )
    order = np.argsort(-cosine_N, kind="stable")
    best: dict[str, tuple[str, float, int]] = {}
    step = 16 * top
    for start in range(0, len(order), step):
        part = order[start : start + step]
        names = names_of(slots_N[part])
        for row in part.tolist():
            name = names.get(int(slots_N[row]))
            if name is not None:
                best.setdefault(name, (name, float(cosine_N[row]), int(slots_N[row])))
        if len(best) >= top:
            break
        step *= 2
    return list(best.values())[:top]
