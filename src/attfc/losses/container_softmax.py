"""Cross entropy against a container of class centers: one streaming pass forward, one multiply backward.

The rows of the container carry no gradient. So the loss needs only lse_i = logsumexp_j(s q_i.w_j), and its gradient only s sum_j p_ij w_j: attention
of the queries over the container, the container being keys and values (`streaming_pass`). Time: two matrix products and a little. Memory beside
the container: at most `block_mib` and a few (B, D); nothing of size B x C.

Not taken: one softmax over positive and negatives, then a subtraction (cancels at s = 64); torch's own CPU attention (2.5 times slower on a 512-d
head; no mask by label without a B x C bias).

Shapes: B queries, D dimensions, C rows (slots), E extra rows.
"""

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attfc.distributed import ALONE, Ranks
from attfc.errors import UserError
from attfc.losses.streaming_pass import Streaming, nobodys_negative, stream_negatives
from attfc.precision import without_autocast

__all__ = ["container_softmax", "container_softmax_and_nearest", "softplus"]


class _ContainerSoftmax(torch.autograd.Function):
    """loss = softplus(lse - s positive): with lse over the negatives alone, nothing cancels."""

    @staticmethod
    def forward(
        ctx: Any,
        query_BD: Tensor,
        positive_B: Tensor,
        extra_rows_ED: Tensor | None,
        container: tuple[Tensor, Tensor, Tensor | None],
        extra_labels_E: Tensor | None,
        labels_B: Tensor,
        scale: float,
        streaming: Streaming,
        ranks: Ranks,
    ) -> tuple[Tensor, Tensor]:
        rows_CD, row_labels_C, row_scales_C = container
        query, labels = ranks.gather(query_BD.detach()), ranks.gather(labels_B)  # of all ranks
        asked: dict[str, Any] = {**streaming, "weighted_sum": ctx.needs_input_grad[0]}
        negatives = stream_negatives(query, rows_CD, row_labels_C, labels, scale, row_scales_C=row_scales_C, **asked)
        if extra_rows_ED is not None and extra_labels_E is not None:
            negatives = negatives.merge(stream_negatives(query, extra_rows_ED, extra_labels_E, labels, scale, **asked))
        negatives = negatives.reduce(ranks).own(ranks)

        distance_B = negatives.log_sum_exp() - scale * positive_B.to(negatives.maximum_B.dtype)
        pull_B = distance_B.sigmoid() * scale
        mean_row_BD = negatives.mean_row() if ctx.needs_input_grad[0] else None
        of_extra: tuple[Tensor | None, ...] = ()
        if ctx.needs_input_grad[2]:
            of_extra = query, labels, negatives.log_sum_exp(), extra_rows_ED, extra_labels_E
        ctx.save_for_backward(pull_B, mean_row_BD, *of_extra)
        ctx.dtypes = query_BD.dtype, positive_B.dtype
        ctx.scale, ctx.threshold, ctx.ranks = scale, streaming.get("filtering_threshold"), ranks
        nearest_B = negatives.maximum_B / scale
        ctx.mark_non_differentiable(nearest_B)
        return softplus(distance_B), nearest_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_B: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        pull_B, mean_row_BD, *of_extra = ctx.saved_tensors
        query_dtype, positive_dtype = ctx.dtypes
        pull_B = pull_B * gradient_B
        query_gradient_BD = (pull_B[:, None] * mean_row_BD).to(query_dtype) if ctx.needs_input_grad[0] else None
        positive_gradient_B = (-pull_B).to(positive_dtype) if ctx.needs_input_grad[1] else None
        extra_gradient_ED = None
        if ctx.needs_input_grad[2]:  # sum_i pull_i p_ij q_i for each extra row j, over the queries of all ranks
            query_BD, labels_B, log_sum_B, rows_ED, labels_E = of_extra
            pull_B, log_sum_B = ctx.ranks.gather(torch.stack([pull_B, log_sum_B], dim=1)).unbind(1)
            with without_autocast(pull_B):
                query_BD = query_BD.to(pull_B.dtype)
                cosine_BE = query_BD @ rows_ED.to(pull_B.dtype).T
                weights_BE = (ctx.scale * cosine_BE - log_sum_B[:, None]).exp_().mul_(pull_B[:, None])
                left_out_BE = nobodys_negative(labels_E, labels_B)
                if ctx.threshold is not None:
                    left_out_BE |= cosine_BE > ctx.threshold
                extra_gradient_ED = (weights_BE.masked_fill_(left_out_BE, 0.0).T @ query_BD).to(rows_ED.dtype)
        return query_gradient_BD, positive_gradient_B, extra_gradient_ED, *[None] * 6


def softplus(distance_B: Tensor) -> Tensor:
    """Return log(1 + exp(distance)); torch's own is not exact above 20."""
    return torch.logaddexp(distance_B, torch.zeros_like(distance_B))


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
    ranks: Ranks = ALONE,
    **streaming: Unpack[Streaming],
) -> Tensor:
    """Cross entropy of each query's positive against the container's rows of other identities.

    loss_i = log(exp(s positive_i) + sum_j exp(s q_i.w_j)) - s positive_i,  j over filled slots with label_j != label_i

    Args:
        query_BD: (B, D) float, unit length. float64 is computed in float64; all else accumulates in float32.
        positive_B: (B,) cosine with the own center, margin included, not multiplied by the scale.
        rows_CD: (C, D) float32, bfloat16, or int8 with `row_scales_C`; about unit length, finite (empty slots too).
        row_labels_C: (C,) int64; -1 marks an empty slot, which is nobody's negative; rows with any other label that
            no query has (-2 say) are everybody's.
        labels_B: (B,) int64.
        scale: s, multiplies all cosines.
        row_scales_C: (C,) float32: row = int8 * scale.
        extra_rows_ED: (E, D) float, more negatives, such as the batch's own centers; with `extra_labels_E` (E,) int64. Unlike the
            container's rows they may ask for a gradient; it costs a product of B x E x D and B x E numbers, no blocks.
        ranks: where there are several, the rows and the extra rows are this rank's shard of them. Queries, positives and labels are its
            share of the batch, all shares of equal size. The loss is that over the rows of all ranks. Forward gathers the queries and
            labels and reduces (maximum, denominator, weighted sum). Backward exchanges nothing, except that the gradient of the extra
            rows gathers two numbers per query.
        streaming: `Streaming`.

    Returns:
        (B,) float32 (float64 for float64), loss per sample, gradient to query_BD, positive_B and extra_rows_ED, differentiable
        once. With no negative at all the loss and its gradient are 0.

    Raises:
        UserError: no query; int8 rows without scales; extra rows without labels; an unknown filtering.

    >>> query, positive = torch.tensor([[1.0, 0.0]]), torch.tensor([0.5])
    >>> rows, row_labels = torch.tensor([[0.5, 0.8660254], [1.0, 0.0]]), torch.tensor([7, 3])
    >>> container_softmax(query, positive, rows, row_labels, torch.tensor([3]), 64.0)  # one rival, just as near: log 2
    tensor([0.6931])
    """
    extra: dict[str, Any] = {"extra_rows_ED": extra_rows_ED, "extra_labels_E": extra_labels_E}
    rows = rows_CD, row_labels_C, row_scales_C
    return container_softmax_and_nearest(
        query_BD, positive_B, rows, labels_B, scale, **extra, ranks=ranks, **streaming
    )[0]


def container_softmax_and_nearest(
    query_BD: Tensor,
    positive_B: Tensor,
    rows: tuple[Tensor, Tensor, Tensor | None],
    labels_B: Tensor,
    scale: float,
    *,
    extra_rows_ED: Tensor | None = None,
    extra_labels_E: Tensor | None = None,
    ranks: Ranks = ALONE,
    **streaming: Unpack[Streaming],
) -> tuple[Tensor, Tensor]:
    """Return the loss of `container_softmax` and, without gradient, the cosine of each query's nearest negative; both (B,).

    Args:
        rows: the container's rows, their labels and their scales.

    Where there is no negative at all the second is far below -1; negatives that were filtered are none.
    """
    if (extra_rows_ED is None) != (extra_labels_E is None):
        raise UserError("extra_rows_ED and extra_labels_E belong together: got one of them")
    with without_autocast(query_BD):
        loss_B, nearest_B = _ContainerSoftmax.apply(
            query_BD, positive_B, extra_rows_ED, rows, extra_labels_E, labels_B, scale, streaming, ranks
        )
    return loss_B, nearest_B
