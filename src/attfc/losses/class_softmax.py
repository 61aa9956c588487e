"""Cross entropy over all class centers of a fully connected head, with a gradient for the centers.

Three matrix products where the logits, B x N, fit in `KEPT_MIB`: forward makes them and the query's gradient, backward turns them into
probabilities and makes the rows' gradient. Where they do not fit, blocks of them are streamed as `container_softmax` does, and backward makes
them again: four products, with `block_mib` and a few (B, D) beside the weight and its gradient. Products are written where they are needed,
and lengths are divided out of the logits (B x N), never of the rows (N x D).

The rows are normalized inside, so a row's gradient is tangent to it: d_w = (d_row - row (row . d_row)) / |w|. The target is not
one of the negatives: it gets the margin, and lse of the others must not come from a subtraction.

Rows in shards over ranks: every rank streams its rows for the queries of all (gathered), and the three sums are reduced; the rank that has the
target row says its cosine. Forward moves B x 2D numbers, backward B (the gradients of all losses).

Source: ArcFace (1801.07698), eq. 3. Shapes: B queries, D dimensions, N classes, R rows of one block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attfc.distributed import ALONE, Ranks
from attfc.losses.container_softmax import softplus
from attfc.losses.margins import Margin
from attfc.losses.numbers import check_numbers
from attfc.losses.streaming_pass import NOTHING, NegativeSum, Streaming, refuse_empty, row_blocks
from attfc.precision import without_autocast

__all__ = ["KEPT_MIB", "class_softmax", "class_softmax_and_cosine"]

KEPT_MIB = 512
"""Logits up to this size are kept from forward to backward: those of 1,048,576 classes at a batch of 128."""

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
        UserError: no query; a label without a row, seen on the CPU, where looking is free, and with one process.

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
    refuse_empty(query_BD)
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
        # A label of another rank is no row of ours; below 0 it could be taken for one.
        own_labels = labels if here is None else torch.where(here, labels, weight_ND.shape[0])
        rows = _Rows(query * margin.scale, own_labels, margin.scale, streaming)
        size = (len(query), len(weight_ND))
        keeps = ctx.needs_input_grad[1] and size[0] * size[1] * query.element_size() <= KEPT_MIB << 20
        kept_BN = query.new_empty(size) if keeps else None
        part = rows.sum_of_negatives(weight_ND, inverse_N, kept_BN, weighted=ctx.needs_input_grad[0])
        negatives = part.reduce(ranks)
        lse = negatives.log_sum_exp()
        distance_B = lse - margin.scale * adjusted_B
        ctx.options = margin.scale, streaming, ranks, query_BD.dtype
        mean = None
        if ctx.needs_input_grad[0]:
            mean = ranks.sum_own(negatives.mean_row() - slope_B[:, None] * target_BD)
        ctx.save_for_backward(
            query, weight_ND, labels, own_labels, here, inverse_N, kept_BN, lse, distance_B, slope_B, cosine_B, mean
        )
        own_distance_B, own_cosine_B = ranks.own(distance_B), ranks.own(cosine_B).clone()
        ctx.mark_non_differentiable(own_cosine_B)
        return softplus(own_distance_B), own_cosine_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_B: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        (
            query,
            weight_ND,
            labels_B,
            own_labels_B,
            here_B,
            inverse_N,
            kept_BN,
            lse_B,
            distance_B,
            slope_B,
            cosine_B,
            mean_BD,
        ) = ctx.saved_tensors
        scale, streaming, ranks, query_dtype = ctx.options
        pull_B = ranks.gather(gradient_B) * scale * distance_B.sigmoid()
        query_gradient = None if mean_BD is None else (ranks.own(pull_B)[:, None] * mean_BD).to(query_dtype)
        if not ctx.needs_input_grad[1]:
            return query_gradient, *[None] * 7
        if ranks.size > 1:
            pull_B = pull_B / ranks.size
        with without_autocast(query):
            rows = _Rows(query * scale, own_labels_B, scale, streaming)
            weight_gradient = rows.gradient(weight_ND, inverse_N, kept_BN, lse_B, query * pull_B[:, None])
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


@dataclass(frozen=True)
class _Rows:
    """The logits of all queries with the classes of one rank, a block of classes at a time, and the sums over them.

    Left out (-inf) are each query's own class, and negatives with a cosine above `filtering_threshold`.
    """

    scaled_BD: Tensor
    labels_B: Tensor
    scale: float
    streaming: Streaming

    def _blocks(
        self, weight_ND: Tensor, inverse_N: Tensor, kept_BN: Tensor | None, *, made: bool
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor | None]]:
        """Yield a block of classes, its rows, its logits, a buffer as large, and which logits are filtered; `made`: the kept ones are there."""
        (B, D), wide = self.scaled_BD.shape, self.scaled_BD.dtype
        threshold = self.streaming.get("filtering_threshold")
        bytes_a_row = self.scaled_BD.element_size() * (2 * B + (0 if weight_ND.dtype == wide else 2 * D))
        cached = self.scaled_BD.device.type == "cpu"
        buffer = self.scaled_BD.new_empty(0)
        for block in row_blocks(len(weight_ND), bytes_a_row, self.streaming.get("block_mib", 32.0), cached=cached):
            shape = (B, block.stop - block.start)
            if buffer.shape != shape:
                buffer = buffer.new_empty(shape)
            rows_RD = weight_ND[block].to(wide)
            logits_BR = buffer if kept_BN is None else kept_BN[:, block]
            filtered_BR = None
            if not made:
                torch.mm(self.scaled_BD, rows_RD.T, out=logits_BR).mul_(inverse_N[block])
                _leave_out_own(logits_BR, self.labels_B - block.start)
                if threshold is not None:
                    filtered_BR = logits_BR > self.scale * threshold
                    logits_BR.masked_fill_(filtered_BR, float("-inf"))
            yield block, rows_RD, logits_BR, buffer, filtered_BR

    def sum_of_negatives(
        self, weight_ND: Tensor, inverse_N: Tensor, kept_BN: Tensor | None, *, weighted: bool
    ) -> NegativeSum:
        """Sum exp(logit), and exp(logit) row if `weighted`, over the negatives; fill `kept_BN` with the logits."""
        B, D = self.scaled_BD.shape
        total = NegativeSum(
            self.scaled_BD.new_full((B,), NOTHING),
            self.scaled_BD.new_zeros(B),
            self.scaled_BD.new_zeros(B, D if weighted else 0),
        )
        zeros_B = self.scaled_BD.new_zeros(B)
        for block, rows_RD, logits_BR, buffer, filtered_BR in self._blocks(weight_ND, inverse_N, kept_BN, made=False):
            maximum_B = torch.maximum(total.maximum_B, logits_BR.amax(1))
            weights_BR = torch.sub(logits_BR, maximum_B[:, None], out=buffer).exp_()
            total = total.under(maximum_B)
            total.denominator_B.add_(weights_BR.sum(1))
            if weighted:
                total.weighted_sum_BD.addmm_(weights_BR.mul_(inverse_N[block]), rows_RD)
            if filtered_BR is not None:
                zeros_B += filtered_BR.sum(1)
        if self.streaming.get("filtering", "drop") == "zero":  # they count with cosine 0, and pull nothing
            maximum_B = torch.where(zeros_B > 0, 0.0, NOTHING)
            total = total.merge(NegativeSum(maximum_B, zeros_B, torch.zeros_like(total.weighted_sum_BD)))
        return total

    def gradient(
        self, weight_ND: Tensor, inverse_N: Tensor, kept_BN: Tensor | None, lse_B: Tensor, pulled_BD: Tensor
    ) -> Tensor:
        """Return the negatives' part of the rows' gradient: sum_b p_bn pulled_b without its part along the row, over the row's length."""
        gradient_ND = torch.empty_like(weight_ND)
        less_lse_B1 = -lse_B[:, None].clamp_min(NOTHING)
        for block, rows_RD, logits_BR, buffer, _ in self._blocks(
            weight_ND, inverse_N, kept_BN, made=kept_BN is not None
        ):
            p_BR = torch.add(logits_BR, less_lse_B1, out=buffer).exp_()
            place = gradient_ND[block] if weight_ND.dtype == rows_RD.dtype else torch.empty_like(rows_RD)
            inverse_R1 = inverse_N[block, None]
            gradient_RD = torch.mm(p_BR.T, pulled_BD, out=place).mul_(inverse_R1)
            radial_R1 = torch.linalg.vecdot(gradient_RD, rows_RD)[:, None] * inverse_R1.square()
            gradient_RD.addcmul_(rows_RD, radial_R1, value=-1)
            if place.dtype != weight_ND.dtype:
                gradient_ND[block] = gradient_RD
        return gradient_ND


def _leave_out_own(logits_BR: Tensor, column_B: Tensor) -> None:
    """Set each query's logit with its own class to -inf, where it is one of these; without waiting for the device."""
    place_B1 = column_B.clamp(0, logits_BR.shape[1] - 1)[:, None]
    own_B1 = place_B1 == column_B[:, None]
    logits_BR.scatter_(1, place_B1, logits_BR.gather(1, place_B1).masked_fill_(own_B1, float("-inf")))


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
