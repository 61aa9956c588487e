"""The highest non-mated scores of all pairs of images, exactly: tiles of the matrix of products, of which few scores are kept.

A product in float32 or bfloat16 is off by at most `error` (a proven bound, see `all_pairs_scores`), so a pair is thrown away only when even
product + error stays below the n-th highest lower bound found so far; all others are scored again exactly. Tiles in which many pairs pass (the
first ones; a collapsed model) are computed in float64 at once.
"""

import math

import numpy as np
import torch
from torch import Tensor

from attfc.evaluation.exact_scores import STEP, block_scores, pair_scores, product_error
from attfc.typing import Float32, Int64, Progress

__all__ = ["COLUMNS", "ROWS", "highest_impostors"]


COLUMNS = {"cpu": 4096, "cuda": 32_768}
"""Columns of a tile: 16 MiB on the CPU, so that the passes after the product find it in the cache."""
ROWS = {"cpu": 1024, "cuda": 4096}
_DENSE = 1 / 32  # share of a tile from which float64 for all of it is cheaper than pair by pair


def highest_impostors(
    rows_ND: Tensor,
    labels: Int64,
    starts: Int64,
    keep: int,
    precision: str,
    height: int,
    width: int,
    progress: Progress | None,
) -> tuple[Float32, Int64, int]:
    """The `keep` highest non-mated scores, falling, their pair numbers (row x N + column), and how many were scored again."""
    images, on = len(rows_ND), rows_ND.device
    product = _Product(rows_ND, precision, height, width)
    kept = _Highest(keep, rows_ND, product.error)
    labels_N, columns_N = torch.from_numpy(labels).to(on), torch.arange(images, device=on)
    for start in range(0, images - 1, height):
        stop = min(start + height, images)
        # From here on all columns are other people, and later ones.
        mixed = max(stop, int(starts[labels[stop - 1] + 1]))
        for left in range(start, images, width):
            right = min(left + width, images)
            barred = None
            if left < mixed:
                barred = labels_N[start:stop, None] == labels_N[left:right]
                barred |= columns_N[start:stop, None] >= columns_N[left:right]
            product.tile(start, stop, left, right, barred, kept)
        if progress is not None:
            rest = images - stop
            total = images * (images - 1) // 2
            progress(total - rest * (rest - 1) // 2, total)
    top, codes = kept.falling()
    return top.cpu().numpy(), codes.cpu().numpy(), kept.verified


class _Product:
    """Scores tiles and hands on what may be among the highest."""

    def __init__(self, rows_ND: Tensor, precision: str, height: int, width: int) -> None:
        self.rows_ND, self.precision = rows_ND, precision
        dimension = rows_ND.shape[1]
        self.operand, self.error = rows_ND, product_error(dimension, torch.float32) + STEP / 2
        self.float32_output = True
        if precision == "bfloat16":
            self.operand = rows_ND.bfloat16()
            # The residual of a row is exact in float32; its length is summed in float64, in parts.
            d = max(
                float((a.double() - b.double()).norm(dim=1).max())
                for a, b in zip(torch.split(rows_ND, 16_384), torch.split(self.operand, 16_384), strict=True)
            )
            self.float32_output = rows_ND.device.type == "cuda"
            rounded = 0.0 if self.float32_output else 2.0**-8 * (1 + d) ** 2
            self.error = d * (2 + d) + 4 * product_error(dimension, torch.float32) * (1 + d) ** 2 + rounded + STEP / 2
        elif precision == "float64":
            self.error = 0.0
        height, width = min(height, len(rows_ND)), min(width, len(rows_ND))
        output = torch.float32 if self.float32_output else torch.bfloat16
        self.buffer = torch.empty(height * width if precision != "float64" else 0, dtype=output, device=rows_ND.device)

    def tile(self, start: int, stop: int, left: int, right: int, barred: Tensor | None, kept: "_Highest") -> None:
        images = len(self.rows_ND)
        floor = kept.floor()
        if self.precision != "float64" and floor > -math.inf:
            shape = (stop - start, right - left)
            scores_BM = self.buffer[: shape[0] * shape[1]].view(shape)
            if self.precision == "bfloat16" and self.float32_output:
                torch.mm(self.operand[start:stop], self.operand[left:right].T, out_dtype=torch.float32, out=scores_BM)
            else:
                torch.mm(self.operand[start:stop], self.operand[left:right].T, out=scores_BM)
            if barred is not None:
                scores_BM.masked_fill_(barred, -2.0)
            scores_BM = scores_BM.float()  # the floor is a float32, which bfloat16 would round
            places = _above(scores_BM, floor, int(_DENSE * shape[0] * shape[1]))
            if places is not None:
                codes = (start + places // shape[1]) * images + left + places % shape[1]
                kept.add(scores_BM.view(-1)[places], codes, exact=False)
                return
        for begin in range(start, stop, 256):  # float64 and its rounding hold several times the memory of float32
            end = min(begin + 256, stop)
            scores_BM = block_scores(self.rows_ND[begin:end].double(), self.rows_ND[left:right].double())
            if barred is not None:
                scores_BM.masked_fill_(barred[begin - start : end - start], -2.0)
            places = _above(scores_BM, max(kept.lowest, -1.9), scores_BM.numel())
            assert places is not None
            codes = (begin + places // (right - left)) * images + left + places % (right - left)
            kept.add(scores_BM.view(-1)[places].float(), codes)


def _above(scores_BM: Tensor, floor: float, most: int) -> Tensor | None:
    """The places of a contiguous tile above the floor, row by row: (P,) int64; None where they are more than `most`."""
    if scores_BM.device.type == "cpu":  # 2 ms a tile; torch.nonzero alone takes ten times as long
        passed = scores_BM.numpy() > floor
        return None if np.count_nonzero(passed) > most else torch.from_numpy(np.flatnonzero(passed))
    places = torch.nonzero((scores_BM > floor).view(-1)).ravel()
    return None if len(places) > most else places


class _Highest:
    """The k highest of a stream of scores, exactly, with their pair numbers.

    A product is known to within `error`, an exact score has none. `lowest` is at most the k-th highest score of the whole
    stream: the k-th highest of what is certain so far. Anything that cannot exceed it changes nothing.
    """

    def __init__(self, k: int, rows_ND: Tensor, error: float) -> None:
        self.k, self.rows_ND, self.error = k, rows_ND, error
        self.lowest, self.held, self.verified = -math.inf, 0, 0
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self.add(torch.zeros(0, device=rows_ND.device), torch.zeros(0, dtype=torch.int64, device=rows_ND.device))

    def floor(self) -> float:
        """Products that are not above this cannot belong to the highest; rounded down to float32, in which they are compared."""
        if self.lowest == -math.inf:
            return -math.inf
        return float(np.nextafter(np.float32(self.lowest - self.error), np.float32(-np.inf)))

    def add(self, values: Tensor, codes: Tensor, exact: bool = True) -> None:
        """Take scores, or products, of pairs of these numbers: (P,) float32, (P,) int64."""
        self.parts.append((values, codes, torch.full_like(codes, not exact, dtype=torch.bool)))
        self.held += len(codes)
        if self.held > 2 * self.k or (self.lowest == -math.inf and self.held >= self.k):
            self._shrink()
            if self.held > 2 * self.k:  # too many products within the error of the k-th highest
                self._verify()

    def _joined(self) -> tuple[Tensor, Tensor, Tensor]:
        values, codes, doubtful = (torch.cat(column) for column in zip(*self.parts, strict=True))
        self.parts = [(values, codes, doubtful)]
        return self.parts[0]

    def _shrink(self) -> None:
        values, codes, doubtful = self._joined()
        bounds = values.double()
        bounds[doubtful] -= self.error
        certain = torch.topk(bounds, min(self.k, self.held), sorted=False)
        if self.held >= self.k:
            self.lowest = max(self.lowest, float(certain.values.min()))
        bounds[doubtful] += 2 * self.error
        stays = bounds > self.lowest
        stays[certain.indices] = True
        self.parts = [(values[stays], codes[stays], doubtful[stays])]
        self.held = int(stays.sum())

    def _verify(self) -> None:
        values, codes, doubtful = self._joined()
        images = len(self.rows_ND)
        numbers, products = codes[doubtful], values[doubtful]
        scores = pair_scores(self.rows_ND, numbers // images, numbers % images)
        self.verified += len(scores)
        off = float((scores.double() - products.double()).abs().max()) if len(scores) else 0.0
        if not off <= self.error:
            raise RuntimeError(
                f"a product differs from its exact score by {off:.3g}, more than the proven {self.error:.3g}: this device does not "
                "compute as it should; use precision='float64' and report it"
            )
        values[doubtful] = scores
        doubtful[:] = False
        self._shrink()

    def falling(self) -> tuple[Tensor, Tensor]:
        """Return the k highest scores, equal ones by their pair numbers, and these numbers."""
        self._shrink()
        self._verify()
        values, codes, _ = self._joined()
        by_pair = torch.argsort(codes)
        order = by_pair[torch.argsort(values[by_pair], descending=True, stable=True)][: self.k]
        return values[order], codes[order]
