"""Embeddings at unit length, and plain cosines and distances of pairs of them; `exact_scores` has scores that are the same everywhere."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from attfc.errors import UserError
from attfc.typing import Array, Float64, Int64

__all__ = ["cosine_of_pairs", "fault_of", "squared_distances_of_pairs", "unit_rows", "unit_tensor", "unusable_rows"]

_CHUNK = 16_384  # rows at a time
_PAIRS = 65_536  # pairs at a time


def unit_rows(vectors: Array | Tensor) -> Float64:
    """Return the rows at length 1, in float64 on the CPU.

    Raises:
        UserError: a row holds NaN or infinity, or has length 0; the message names the first such row and counts them.
    """
    rows = _float64(vectors)
    if rows.ndim != 2:
        raise UserError(f"embeddings have shape {rows.shape}: pass one row per image, (N, D)")
    # Scaled by the largest element first: a row of tiny or huge numbers has a direction too, but its squares overflow.
    peak = np.abs(rows).max(axis=1, initial=0.0, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(peak) & (peak > 0)))
    if bad.size:
        raise UserError(
            f"embedding {bad[0]} has {fault_of(peak[bad[0], 0])} ({bad.size} of {len(rows)} embeddings are unusable): "
            "check the model for divergence, lower the learning rate or take an earlier checkpoint"
        )
    scaled = rows / peak
    return np.asarray(scaled / np.linalg.norm(scaled, axis=1, keepdims=True), dtype=np.float64)


def fault_of(length: float | Tensor) -> str:
    """Return what is wrong with an embedding of a length that is not usable."""
    return "length 0" if length == 0 else "NaN or infinity"


def _float64(vectors: Array | Tensor) -> Float64:
    if isinstance(vectors, Tensor):
        vectors = vectors.detach().to("cpu", torch.float64).numpy()
    return np.asarray(vectors, dtype=np.float64)


def unusable_rows(embeddings: Array | Tensor) -> Int64:
    """Return the rows that have no direction: NaN, infinity or all zeros. (N, D) -> rising row numbers."""
    usable_N = np.empty(len(embeddings), dtype=np.bool_)
    for start in range(0, len(embeddings), _CHUNK):
        peak = np.abs(_float64(embeddings[start : start + _CHUNK])).max(axis=1, initial=0.0)
        usable_N[start : start + _CHUNK] = np.isfinite(peak) & (peak > 0)
    return np.flatnonzero(~usable_N)


def unit_tensor(
    embeddings: Array | Tensor,
    device: torch.device | str | None = None,
    order: Int64 | None = None,
) -> Tensor:
    """Return (N, D) float32 unit rows on a device; None = where the tensor is, the CPU for an array.

    Normalized in float64, 16,384 rows at a time: memory-mapped arrays of any size are read once.

    Args:
        embeddings: (N, D) any length but 0.
        device: where to put the rows.
        order: (M,) which rows, in which order; None = all, as they stand.

    Raises:
        UserError: rows of no direction, or not (N, D); the message names the first and counts them.
    """
    where = device if device is not None else embeddings.device if isinstance(embeddings, Tensor) else "cpu"
    if order is None and (embeddings.ndim != 2 or len(embeddings) <= _CHUNK):
        return torch.from_numpy(unit_rows(embeddings)).float().to(where)
    if embeddings.ndim != 2:
        raise UserError(f"embeddings have shape {tuple(embeddings.shape)}: pass one row per image, (N, D)")
    order = np.arange(len(embeddings)) if order is None else order
    rows_MD = torch.empty((len(order), embeddings.shape[1]), dtype=torch.float32, device=where)
    for start in range(0, len(order), _CHUNK):
        try:
            unit = unit_rows(embeddings[order[start : start + _CHUNK]])
        except UserError:
            bad = unusable_rows(embeddings)
            raise UserError(
                f"embedding {bad[0]} has length 0, NaN or infinity ({bad.size} of {len(embeddings)} embeddings are unusable): "
                "check the model for divergence, or leave these rows out"
            ) from None
        rows_MD[start : start + len(unit)] = torch.from_numpy(unit).float()
    return rows_MD


def cosine_of_pairs(unit_ND: Array, first_P: Int64, second_P: Int64) -> Float64:
    """Return the cosines of pairs of unit rows, (P,) float64, 65,536 pairs at a time."""
    return _of_pairs(unit_ND, first_P, second_P, lambda left, right: np.einsum("pd,pd->p", left, right))


def squared_distances_of_pairs(unit_ND: Array, first_P: Int64, second_P: Int64) -> Float64:
    """Return |a - b|^2 of pairs of rows, (P,) float64, from the differences as the published scripts do, not as 2 - 2 cos."""
    return _of_pairs(unit_ND, first_P, second_P, lambda left, right: np.sum(np.square(left - right), axis=1))


def _of_pairs(
    unit_ND: Array, first_P: Int64, second_P: Int64, measure: Callable[[Float64, Float64], Float64]
) -> Float64:
    found = np.empty(len(first_P), dtype=np.float64)
    for start in range(0, len(first_P), _PAIRS):
        part = slice(start, start + _PAIRS)
        found[part] = measure(unit_ND[first_P[part]].astype(np.float64), unit_ND[second_P[part]].astype(np.float64))
    return found
