"""Cross entropy over all class centers of a fully connected head, with a gradient for the centers, never B x N.

Forward streams blocks of rows as `container_softmax` does (logits, running maximum, denominator and weighted sum: two matrix
products) and is done with the query's gradient. Backward streams them once more for the rows' gradient (logits again, then
their transposed product with the queries: two more). The dense way needs three products and several B x N temporaries. Memory
beside the weight and its gradient: `block_mib` and a few (B, D).

The rows are normalized inside, so a row's gradient is tangent to it: d_w = (d_row - row (row . d_row)) / |w|. The target is not
one of the streamed rows: it gets the margin, and lse of the others must not come from a subtraction.

Rows in shards over ranks: every rank streams its rows for the queries of all (gathered), and the three sums are reduced; the rank that has the
target row says its cosine. Forward moves B x 2D numbers, backward B (the gradients of all losses).

Source: ArcFace (1801.07698), eq. 3. Shapes: B queries, D dimensions, N classes, R rows of one block.
"""

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attfc.distributed import ALONE, Ranks
from attfc.losses.container_softmax import softplus
from attfc.losses.margins import Margin
from attfc.losses.numbers import check_numbers
from attfc.losses.streaming_pass import Streaming, row_blocks, stream_negatives
from attfc.precision import without_autocast

__all__ = ["class_softmax", "class_softmax_and_cosine"]

SHORTEST = 1e-12  # a row of zeros has no direction: as in torch.nn.functional.normalize


def class_softmax(
    query_BD: Tensor,
    weight_ND: Tensor,
    labels_B: Tensor,
    margin: Margin,
    *,
    norms_B: Tensor | None = None,
    ranks: Ranks = ALONE,
    first_class: int = 0,
    **streaming: Unpack[Streaming],
) -> Tensor:
    """Cross entropy of each query's class against all others, the margin on its own class.

    Args:
        query_BD: (B, D) float, unit length. float64 is computed in float64, everything else in float32.
        weight_ND: (N, D) float, one row per class, any length above 0: normalized here.
        labels_B: (B,) int64 in [0, N).
        margin: adjusts the cosine of the target, elementwise; its `scale` multiplies all logits. Parameters of a margin get no
            gradient from here.
        norms_B: (B,) lengths of the embeddings before normalization, for margins that use them (AdaFace).
        ranks: where there are several, `weight_ND` is this rank's shard of the rows, in which row j is of class `first_class` + j;
            queries, labels and norms are its own share of the batch (all of equal size), and the loss is that over the rows of all ranks.
            The gradient of the shard is then divided by their number: that of the mean over ranks of their mean losses.
        first_class: see `ranks`.
        streaming: `Streaming`.

    Returns:
        (B,) float32 (float64 for float64), loss per sample, with gradient to query_BD and weight_ND.

    Raises:
        UserError: a label without a row; seen on the CPU, where looking is free, and with one process.

    Source: ArcFace (1801.07698), eq. 3, and arcface_torch's interclass filtering. Differentiable once.

    >>> query, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    >>> class_softmax(query, weight, torch.tensor([1]), Margin(scale=4.0))  # cosines 1 and 0: log(1 + exp(4))
    tensor([4.0181])
    """
    if ranks.size == 1:
        fix = f"weight_ND has {len(weight_ND)} rows, one per class; pass labels that it has rows for"
        check_numbers(labels_B, len(weight_ND), "label", fix)
    of_ranks: dict[str, Any] = {"norms_B": norms_B, "ranks": ranks, "first_class": first_class}
    return class_softmax_and_cosine(query_BD, weight_ND, labels_B, margin, **of_ranks, **streaming)[0]


def class_softmax_and_cosine(
    query_BD: Tensor,
    weight_ND: Tensor,
    labels_B: Tensor,
    margin: Margin,
    *,
    norms_B: Tensor | None = None,
    ranks: Ranks = ALONE,
    first_class: int = 0,
    **streaming: Unpack[Streaming],
) -> tuple[Tensor, Tensor]:
    """Return the loss of `class_softmax` and, without gradient, each query's cosine with its own class, before the margin; both (B,)."""
    with without_autocast(query_BD):
        loss_B, cosine_B = _ClassSoftmax.apply(
            query_BD, weight_ND, labels_B, margin, norms_B, streaming, ranks, first_class
        )
    return loss_B, cosine_B


class _ClassSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_BD: Tensor,
        weight_ND: Tensor,
        labels_B: Tensor,
        margin: Margin,
        norms_B: Tensor | None,
        streaming: Streaming,
        ranks: Ranks,
        first_class: int,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(query_BD.dtype, torch.float32)
        query = ranks.gather(query_BD.detach().to(wide))
        labels = ranks.gather(labels_B) - first_class
        norms = None if norms_B is None else ranks.gather(norms_B.detach())
        here = _here(labels, weight_ND, ranks)
        target_BD = _target_rows(weight_ND, labels, here, wide)
        cosine_B = ranks.sum((query * target_BD).sum(1))
        with torch.enable_grad():
            leaf_B = cosine_B.detach().requires_grad_()
            adjusted_B = margin(leaf_B, norms)
            (slope_B,) = torch.autograd.grad(adjusted_B.sum(), leaf_B)
        adjusted_B = adjusted_B.detach().to(wide)

        inverse_N = torch.linalg.vector_norm(weight_ND, dim=1, dtype=wide).clamp_min_(SHORTEST).reciprocal_()
        classes_N = torch.arange(weight_ND.shape[0], device=weight_ND.device)
        # A label of another rank is no row of ours; below 0 it could be taken for an empty one.
        own_labels = labels if here is None else torch.where(here, labels, weight_ND.shape[0])
        part = stream_negatives(
            query,
            weight_ND,
            classes_N,
            own_labels,
            margin.scale,
            row_scales_C=inverse_N,
            weighted_sum=ctx.needs_input_grad[0],
            products=wide,
            **streaming,
        )
        negatives = part.reduce(ranks)
        lse = negatives.log_sum_exp()
        distance_B = lse - margin.scale * adjusted_B
        ctx.options = margin.scale, streaming, ranks
        mean = None
        if ctx.needs_input_grad[0]:
            mean = ranks.sum_own(negatives.mean_row() - slope_B[:, None] * target_BD)
        ctx.save_for_backward(query, weight_ND, labels, here, inverse_N, lse, distance_B, slope_B, cosine_B, mean)
        ctx.query_dtype = query_BD.dtype
        own_distance_B, own_cosine_B = ranks.own(distance_B), ranks.own(cosine_B).clone()
        ctx.mark_non_differentiable(own_cosine_B)
        return softplus(own_distance_B), own_cosine_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_B: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        query, weight_ND, labels_B, here_B, inverse_N, lse_B, distance_B, slope_B, cosine_B, mean_BD = ctx.saved_tensors
        scale, streaming, ranks = ctx.options
        filtering_threshold, block_mib = streaming.get("filtering_threshold"), streaming.get("block_mib", 32.0)
        pull_B = ranks.gather(gradient_B) * scale * distance_B.sigmoid()
        query_gradient = None if mean_BD is None else (ranks.own(pull_B)[:, None] * mean_BD).to(ctx.query_dtype)
        if not ctx.needs_input_grad[1]:
            return query_gradient, *[None] * 7
        if ranks.size > 1:
            pull_B = pull_B / ranks.size
        with without_autocast(query):
            weight_gradient = torch.empty_like(weight_ND)
            bytes_a_row = query.element_size() * 3 * (query.shape[0] + query.shape[1])
            cached = query.device.type == "cpu"
            scaled_query, pulled_query = query * scale, query * pull_B[:, None]
            less_lse = -lse_B[:, None].clamp_min(-1e30)
            for block in row_blocks(weight_ND.shape[0], bytes_a_row, block_mib, cached=cached):
                inverse = inverse_N[block]
                rows = weight_ND[block].to(query.dtype) * inverse[:, None]
                if filtering_threshold is None:
                    p = torch.addmm(less_lse, scaled_query, rows.T).exp_()
                else:
                    p = scaled_query @ rows.T
                    filtered = p > scale * filtering_threshold
                    p.add_(less_lse).exp_().masked_fill_(filtered, 0.0)
                _forget_own(p, labels_B - block.start)
                gradient = p.T @ pulled_query
                radial = torch.linalg.vecdot(gradient, rows)
                gradient.addcmul_(rows, radial[:, None], value=-1).mul_(inverse[:, None])
                weight_gradient[block] = gradient.to(weight_gradient.dtype)
            if weight_ND.shape[0]:
                place_B = labels_B if here_B is None else torch.where(here_B, labels_B, 0)
                inverse_B = inverse_N[place_B]
                rows_B = weight_ND[place_B].to(query.dtype) * inverse_B[:, None]
                push_B = -pull_B * slope_B
                if here_B is not None:
                    push_B = torch.where(here_B, push_B, 0.0)
                target = (push_B * inverse_B)[:, None] * (query - cosine_B[:, None] * rows_B)
                weight_gradient.index_add_(0, place_B, target.to(weight_gradient.dtype))
        return query_gradient, weight_gradient, *[None] * 6


def _forget_own(p_BR: Tensor, column_B: Tensor) -> None:
    """Set each query's own column to 0, where it is one of these; without waiting for the device."""
    place_B1 = column_B.clamp(0, p_BR.shape[1] - 1)[:, None]
    p_BR.scatter_(1, place_B1, torch.where(place_B1 == column_B[:, None], 0.0, p_BR.gather(1, place_B1)))


def _here(labels_B: Tensor, weight_ND: Tensor, ranks: Ranks) -> Tensor | None:
    """Return whose target row this rank has; None: all have theirs here (one rank)."""
    return None if ranks.size == 1 else (labels_B >= 0) & (labels_B < weight_ND.shape[0])


def _target_rows(weight_ND: Tensor, labels_B: Tensor, here_B: Tensor | None, wide: torch.dtype) -> Tensor:
    """Return the targets' unit rows, (B, D); zeros where another rank has them."""
    if weight_ND.shape[0] == 0:
        return weight_ND.new_zeros(labels_B.shape[0], weight_ND.shape[1], dtype=wide)
    rows_BD = weight_ND[labels_B if here_B is None else torch.where(here_B, labels_B, 0)].to(wide)
    rows_BD = rows_BD / torch.linalg.vector_norm(rows_BD, dim=1).clamp_min(SHORTEST)[:, None]
    return rows_BD if here_B is None else torch.where(here_B[:, None], rows_BD, 0.0)
