"""One number for a pair of images, whichever way it was computed: the exact cosine, rounded to 24 binary places.

A matrix product gives the same pair another last bit in another block, on another processor or with other threads; equal
images then score unequal, and a figure taken at a threshold is that of the moment. So the score of a pair is *defined*: both
embeddings at unit length in float32; the exact sum of their products (math.fsum does it) rounded to float64; that, rounded
to the nearest multiple of 2^-24 = 6e-8, half to even. The unit rows themselves are no better than that, every such
number is a float32, and equal pairs tie.

Any float64 product gives it but for one pair in half a million, those whose value is within the product's rounding error of
the middle between two multiples; these few are summed exactly. Cost: one float64 product and four passes over its result.

Source of the error bound: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1: whatever the order of summation,
|computed - exact| <= n u / (1 - n u) x sum |x_i y_i|, with u = 2^-53 for float64 and 2^-24 for float32.
"""

import math

import torch
from torch import Tensor

__all__ = ["STEP", "block_scores", "pair_scores", "product_error"]

STEP = 2.0**-24  # distance of neighbouring scores, in units of cosine
_ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}
_PAIRS = 4096  # pairs at a time: 3 x 16 MiB at 512 dimensions


def product_error(dimension: int, dtype: torch.dtype) -> float:
    """Return the most by which the product of two unit rows computed in `dtype` differs from the exact one.

    Holds for any order of summation and with fused multiply-add; the rows are those of `dtype`, unit length to within 1e-6.
    """
    error = dimension * _ROUNDOFF[dtype]
    return error / (1 - error) * 1.00001


def pair_scores(rows_ND: Tensor, first_P: Tensor, second_P: Tensor) -> Tensor:
    """Return the scores of pairs of rows: (P,) float32, multiples of 2^-24.

    Args:
        rows_ND: float32 unit rows, from `unit_rows.unit_tensor`.
        first_P, second_P: (P,) int64 row numbers on the same device.
    """
    scores_P = torch.empty(len(first_P), dtype=torch.float32, device=rows_ND.device)
    for start in range(0, len(first_P), _PAIRS):
        first, second = first_P[start : start + _PAIRS], second_P[start : start + _PAIRS]
        products = (rows_ND[first].double() * rows_ND[second].double()).sum(dim=1)
        rounded, doubtful = _to_grid(products, product_error(rows_ND.shape[1], torch.float64))
        for place in torch.nonzero(doubtful).ravel().tolist():
            rounded[place] = _exact(rows_ND[first[place]], rows_ND[second[place]])
        scores_P[start : start + len(first)] = rounded.float()
    return scores_P


def block_scores(left_BD: Tensor, right_MD: Tensor) -> Tensor:
    """Return the scores of all pairs of left and right rows: (B, M) float64, multiples of 2^-24.

    Args:
        left_BD, right_MD: unit rows of float32 value in float64, on one device.
    """
    rounded_BM, doubtful_BM = _to_grid(left_BD @ right_MD.T, product_error(left_BD.shape[1], torch.float64))
    for row, column in torch.nonzero(doubtful_BM).tolist():
        rounded_BM[row, column] = _exact(left_BD[row], right_MD[column])
    return rounded_BM


def _to_grid(products: Tensor, error: float) -> tuple[Tensor, Tensor]:
    """Round float64 values to multiples of STEP; also flag those that the error could put on either side of a middle."""
    scaled = products / STEP
    nearest = scaled.round()
    doubtful = (scaled - nearest).abs_() > 0.5 - error / STEP
    return nearest.mul_(STEP), doubtful


def _exact(left_D: Tensor, right_D: Tensor) -> float:
    # Products of two float32 numbers are exact in float64.
    return round(math.fsum((left_D.double() * right_D.double()).tolist()) / STEP) * STEP
