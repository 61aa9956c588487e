"""The nearest templates of a query, exactly: an int8 scan says which slots can be nearest, and those are compared in float32.

With x = s c + d (int8 numbers c, scale s, rounding d) and a query q rounded alike, |x . q - s c . s' c'| <= |d| + (1 + |d|) |d'| by Cauchy and
Schwarz, |x| = |q| = 1. So each slot has a highest cosine that it can have. Compared in float32 are the slots whose highest reaches the k-th best
exact cosine; a slot that was left out cannot be among the best k. Nothing is approximate, and how many are compared follows from the data.

Cost: one byte per number and template is read; some 4 bytes per template and query are held. Queries go through in batches of 64.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attfc.gallery.vectors import BLOCK, VectorFile, rounded
from attfc.typing import Float32, Int64

__all__ = ["nearest"]

QUERIES = 64  # at once
GROUP = 256  # slots whose highest is kept, to find candidates without looking at all
GATHERED = 65_536  # rows compared in float32 at once: 128 MiB at 512 numbers
FREE = -4.0  # below every cosine, with every error


@dataclass(frozen=True)
class _Highest:
    """What N slots can have at most with one query, of one batch: `upper_N`, `of_group` (N / GROUP,), and how far the query's own rounding adds."""

    upper_N: Tensor
    of_group: Tensor
    slack: float

    def above(self, limit: float) -> Int64:
        """Return the slots whose highest is at least `limit`, rising."""
        groups = torch.nonzero(self.of_group >= limit).ravel()
        rows, columns = torch.nonzero(self.upper_N.view(-1, GROUP)[groups] >= limit, as_tuple=True)
        return (groups[rows] * GROUP + columns).numpy()


def nearest(
    file: VectorFile,
    slots: int,
    query_QD: Float32,
    top: int,
    names_of: Callable[[Int64], dict[int, str]],
) -> list[list[tuple[str, float, int]]]:
    """Search unit vectors.

    Args:
        file: of the templates.
        slots: how many of its slots are in use or were.
        query_QD: (Q, D) float32, unit length.
        top: how many names at most.
        names_of: the names of slots, of those that have one.

    Returns:
        For each query the best `top` names as (name, cosine, slot of its best template), best first.
    """
    blocks = file.blocks(slots)
    found = []
    for start in range(0, len(query_QD), QUERIES):
        batch_QD = query_QD[start : start + QUERIES]
        for query_D, highest in zip(batch_QD, _highest(blocks, batch_QD), strict=True):
            found.append(_best(file, query_D, highest, top, names_of))
    return found


def _highest(blocks: np.ndarray[Any, Any], query_QD: Float32) -> Iterator[_Highest]:
    fields = rounded(query_QD)
    coarse_QD, scale_Q = torch.from_numpy(fields["coarse"]), torch.from_numpy(fields["scale"])
    upper_QN = torch.empty((len(query_QD), len(blocks) * BLOCK))
    largest = 0.0
    for number in range(len(blocks)):
        block = blocks[number]
        scale_B, error_B = torch.from_numpy(block["scale"]), torch.from_numpy(block["error"])
        product_QB = torch._int_mm(coarse_QD, torch.from_numpy(block["coarse"]).T)
        upper_QB = upper_QN[:, number * BLOCK : (number + 1) * BLOCK]
        torch.mul(product_QB, scale_B, out=upper_QB)
        upper_QB.mul_(scale_Q[:, None]).add_(torch.where(scale_B > 0, error_B, FREE))
        largest = max(largest, float(error_B.max()))
    groups_QG = upper_QN.view(len(query_QD), -1, GROUP).amax(2)
    for row, error in enumerate(fields["error"].tolist()):
        yield _Highest(upper_QN[row], groups_QG[row], (1 + largest) * error)


def _best(
    file: VectorFile, query_D: Float32, highest: _Highest, top: int, names_of: Callable[[Int64], dict[int, str]]
) -> list[tuple[str, float, int]]:
    wanted = 4 * top
    while True:
        few = wanted < len(highest.of_group)
        limit = float(torch.topk(highest.of_group, wanted).values[-1]) if few else FREE / 2
        best = _named(file, query_D, highest.above(limit), top, names_of)
        if len(best) == top:
            # What is left out has at most limit + slack; what reaches the last of the best has to be looked at.
            reach = best[-1][1] - highest.slack
            return best if reach >= limit else _named(file, query_D, highest.above(reach), top, names_of)
        if not few:
            return best
        wanted *= 8


def _named(
    file: VectorFile, query_D: Float32, slots_N: Int64, top: int, names_of: Callable[[Int64], dict[int, str]]
) -> list[tuple[str, float, int]]:
    """Return the best names among slots."""
    cosine_N = np.concatenate(
        [file.exact(slots_N[k : k + GATHERED]) @ query_D for k in range(0, len(slots_N), GATHERED)] or [np.empty(0)]
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
