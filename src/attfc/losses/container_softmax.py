"""Cross entropy against a container of class centers: one streaming pass forward, one multiply backward.

The rows carry no gradient, so the loss needs only lse_i = logsumexp_j(s q_i.w_j) and its gradient only s sum_j p_ij w_j: attention of
the queries over the container, with the container as keys and values. A block of rows at a time, with a running maximum,
a running denominator and a running weighted sum (online softmax, as in FlashAttention, 2205.14135). Time: two matrix products.
Memory beside the container: `block_mib` and a few (B, D); nothing of size B x C. Not taken: a positive among the rows
(lse of the negatives by subtraction cancels at s = 64); a fixed maximum of s in place of the running one (saves a
few per cent, but trusts every row to be of unit length).

Source: DESIGN section 3. Shapes: B queries, D dimensions, C rows (slots), E extra rows, R rows of one block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["NegativeSum", "container_softmax", "row_blocks", "stream_negatives"]

Filtering = Literal["drop", "zero"]
EMPTY = -1
NOTHING = -1e30  # the maximum over no rows; finite, because (-inf) - (-inf) is not a number


@dataclass(frozen=True)
class NegativeSum:
    """What a softmax needs of its negatives: sums of exp(logit - maximum), over any part of the rows.

    Attributes:
        maximum_B: (B,) the largest logit, or -1e30 over no rows.
        denominator_B: (B,) sum_j exp(logit_ij - maximum_i); 0 over no rows.
        weighted_sum_BD: (B, D) sum_j exp(logit_ij - maximum_i) row_j; None if it was not asked for.
    """

    maximum_B: Tensor
    denominator_B: Tensor
    weighted_sum_BD: Tensor | None

    def merge(self, other: "NegativeSum") -> "NegativeSum":
        """Return the sum over both parts of the rows; the order of merging changes rounding only."""
        maximum_B = torch.maximum(self.maximum_B, other.maximum_B)
        mine_B, theirs_B = (self.maximum_B - maximum_B).exp(), (other.maximum_B - maximum_B).exp()
        weighted_sum_BD = None
        if self.weighted_sum_BD is not None and other.weighted_sum_BD is not None:
            weighted_sum_BD = self.weighted_sum_BD * mine_B[:, None] + other.weighted_sum_BD * theirs_B[:, None]
        return NegativeSum(maximum_B, self.denominator_B * mine_B + other.denominator_B * theirs_B, weighted_sum_BD)

    def log_sum_exp(self) -> Tensor:
        """Return log sum_j exp(logit_ij), (B,); -inf over no rows."""
        return self.maximum_B + self.denominator_B.log()

    def mean_row(self) -> Tensor:
        """Return sum_j p_ij row_j, (B, D), with p the softmax over the negatives; zeros over no rows."""
        assert self.weighted_sum_BD is not None
        denominator_B = torch.where(self.denominator_B > 0, self.denominator_B, 1.0)
        return self.weighted_sum_BD / denominator_B[:, None]


def container_softmax(
    query_BD: Tensor,
    positive_B: Tensor,
    rows_CD: Tensor,
    row_labels_C: Tensor,
    labels_B: Tensor,
    scale: float,
    *,
    row_scales_C: Tensor | None = None,
    extra_rows_ED: Tensor | None = None,
    extra_labels_E: Tensor | None = None,
    block_mib: float = 32.0,
    filtering_threshold: float | None = None,
    filtering: Filtering = "drop",
) -> Tensor:
    """Cross entropy of each query's positive against the container's rows of other identities."""
    with torch.autocast(query_BD.device.type, enabled=False):
        loss_B: Tensor = _ContainerSoftmax.apply(
            query_BD,
            positive_B,
            rows_CD,
            row_labels_C,
            labels_B,
            scale,
            row_scales_C,
            extra_rows_ED,
            extra_labels_E,
            block_mib,
            filtering_threshold,
            filtering,
        )
    return loss_B


class _ContainerSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_BD,
        positive_B,
        rows_CD,
        row_labels_C,
        labels_B,
        scale,
        row_scales_C,
        extra_rows_ED,
        extra_labels_E,
        block_mib,
        filtering_threshold,
        filtering,
    ) -> Tensor:
        options = {
            "weighted_sum": ctx.needs_input_grad[0],
            "block_mib": block_mib,
            "filtering_threshold": filtering_threshold,
            "filtering": filtering,
        }
        negatives = stream_negatives(
            query_BD, rows_CD, row_labels_C, labels_B, scale, row_scales_C=row_scales_C, **options
        )
        if extra_rows_ED is not None:
            negatives = negatives.merge(
                stream_negatives(query_BD, extra_rows_ED, extra_labels_E, labels_B, scale, **options)
            )
        positive = positive_B.to(negatives.maximum_B.dtype)
        distance_B = negatives.log_sum_exp() - scale * positive
        ctx.scale = scale
        p = distance_B.sigmoid()
        ctx.dtypes = query_BD.dtype, positive_B.dtype
        ctx.save_for_backward(p, negatives.mean_row() if ctx.needs_input_grad[0] else None)
        return F.softplus(distance_B)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_B: Tensor):
        p, mean = ctx.saved_tensors
        pull_B = gradient_B * ctx.scale * p
        query_gradient = None if mean is None else (pull_B[:, None] * mean).to(ctx.dtypes[0])
        positive_gradient = (-pull_B).to(ctx.dtypes[1]) if ctx.needs_input_grad[1] else None
        return query_gradient, positive_gradient, *[None] * 10


@torch.no_grad()
def stream_negatives(
    query_BD: Tensor,
    rows_CD: Tensor,
    row_labels_C: Tensor,
    labels_B: Tensor,
    scale: float,
    *,
    row_scales_C: Tensor | None = None,
    weighted_sum: bool = True,
    block_mib: float = 32.0,
    filtering_threshold: float | None = None,
    filtering: Filtering = "drop",
) -> NegativeSum:
    """Sum exp(scale q.w) and exp(scale q.w) w over the rows of other identities, a block at a time."""
    dtype = torch.float64 if query_BD.dtype == torch.float64 else torch.float32
    query = query_BD.to(dtype) * scale
    B, D = query.shape
    maximum = query.new_full((B,), NOTHING)
    denominator = query.new_zeros(B)
    total = query.new_zeros(B, D) if weighted_sum else None
    for block in row_blocks(rows_CD.shape[0], B, D, query.element_size(), block_mib):
        start, size = block.start, block.stop - block.start
        rows = rows_CD[start : start + size].to(dtype)
        if row_scales_C is not None:
            rows = rows * row_scales_C[start : start + size, None].to(dtype)
        row_labels = row_labels_C[start : start + size]
        logits = query @ rows.T
        dirty = None
        if filtering_threshold is not None:
            dirty = logits > scale * filtering_threshold
            logits.masked_fill_(dirty, 0.0 if filtering == "zero" else float("-inf"))
        logits.masked_fill_((row_labels == labels_B[:, None]) | (row_labels == EMPTY), float("-inf"))
        new_maximum = torch.maximum(maximum, logits.amax(1))
        shrink = (maximum - new_maximum).exp_()
        weights = logits.sub_(new_maximum[:, None]).exp_()
        denominator = denominator * shrink + weights.sum(1)
        if total is not None:
            if dirty is not None:
                weights.masked_fill_(dirty, 0.0)
            total = (total * shrink[:, None]).addmm_(weights, rows)
        maximum = new_maximum
    return NegativeSum(maximum, denominator, total)


def row_blocks(rows: int, queries: int, dimensions: int, element_bytes: int, block_mib: float) -> Iterator[slice]:
    """Yield slices that cut the rows into blocks whose logits and working rows fit `block_mib`."""
    size = max(256, int(block_mib * 2**20 / (element_bytes * (2 * queries + dimensions))))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
