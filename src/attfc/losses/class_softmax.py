"""Cross entropy over all class centers of a fully connected head, with a gradient for the centers.

Three matrix products where the logits, B x N, fit in `KEPT_MIB`: forward makes them and the query's gradient, backward turns them into
probabilities and makes the rows' gradient. Where they do not fit, blocks of them are streamed as `container_softmax` does, and backward makes
them again: four products, with `block_mib` and a few (B, D) beside the weight and its gradient. Products are written where they are needed,
and lengths are divided out of the logits (B x N), never of the rows (N x D).

The rows are normalized inside, so a row's gradient is tangent to it: d_w = (d_row - row (row . d_row)) / |w|. The target is not
one of the negatives: it gets the margin, and lse of the others must not come from a subtraction.

Rows in shards over ranks: every rank streams its rows for the queries of all (gathered), and the three sums are reduced; the rank that has the
target row says its cosine. Forward moves B x 2D numbers, backward B (the gradients of all losses).

Over some rows of a weight (`rows_N`): a block of them is gathered at a time, forward and backward, into one buffer that the products find in the
cache; `block_mib` does not count it. Not taken: a copy of them all (N x D more memory, and slower on a processor, whose system has to find its
pages).

Several rows per class (`subcenters`): the largest cosine of a query with them is that of the class; the others are left out of the sums.

Source: ArcFace (1801.07698), eq. 3; Sub-center ArcFace (ECCV 2020). Shapes: B queries, D dimensions, N classes, R rows of one block, K per class.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attfc.distributed import ALONE, Ranks
from attfc.losses.container_softmax import softplus
from attfc.losses.kept_memory import KeptMemory
from attfc.losses.margins import Margin
from attfc.losses.numbers import check_numbers
from attfc.losses.streaming_pass import NOTHING, NegativeSum, Streaming, refuse_empty, row_blocks
from attfc.precision import without_autocast

__all__ = ["KEPT_MIB", "class_softmax", "class_softmax_and_cosines", "gradient_of_rows"]

KEPT_MIB = 512
"""Logits up to this size are kept from forward to backward: those of 1,048,576 classes at a batch of 128."""

CACHED_ROWS = 256
SHORTEST = 1e-12  # a row of zeros has no direction: as in torch.nn.functional.normalize


def class_softmax(
    query_BD: Tensor,
    weight_ND: Tensor,
    labels_B: Tensor,
    margin: Margin,
    *,
    norms_B: Tensor | None = None,
    rows_N: Tensor | None = None,
    subcenters: int = 1,
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
        rows_N: (N,) int64, ascending and all different: which rows of a larger weight, (..., D), the classes have. Its gradient is then
            sparse, of these rows. None: all, and a dense gradient.
        subcenters: K rows in a row are of one class, of which the most similar counts for each query; there are K N rows then.
        ranks: where there are several, `weight_ND` is this rank's shard of the rows, in which row j is of class `first_class` + j.
            Queries, labels and norms are its share of the batch, all shares of equal size. The loss is that over the rows of all ranks.
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
        classes = len(weight_ND if rows_N is None else rows_N)
        each = "one" if subcenters == 1 else subcenters
        fix = f"weight_ND has {classes} rows, {each} per class; pass labels that it has rows for"
        check_numbers(labels_B, classes // subcenters, "label", fix)
    rest: dict[str, Any] = {"norms_B": norms_B, "rows_N": rows_N, "ranks": ranks, "first_class": first_class}
    rest["subcenters"] = subcenters
    return class_softmax_and_cosines(query_BD, weight_ND, labels_B, margin, **rest, **streaming)[0]


def class_softmax_and_cosines(
    query_BD: Tensor,
    weight_ND: Tensor,
    labels_B: Tensor,
    margin: Margin,
    *,
    norms_B: Tensor | None = None,
    rows_N: Tensor | None = None,
    subcenters: int = 1,
    ranks: Ranks = ALONE,
    first_class: int = 0,
    memory: KeptMemory | None = None,
    **streaming: Unpack[Streaming],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of `class_softmax` and, without gradient, each query's cosines with its own class, before the margin, and with the nearest
    other; all (B,).

    Args:
        memory: where the rows' gradient is made; None: in new memory.
    """
    refuse_empty(query_BD)
    with without_autocast(query_BD):
        loss_B, cosine_B, nearest_B = _ClassSoftmax.apply(
            query_BD, weight_ND, labels_B, margin, norms_B, rows_N, streaming, ranks, first_class, subcenters, memory
        )
    return loss_B, cosine_B, nearest_B


def gradient_of_rows(rows_S: Tensor, values_SD: Tensor, shape: torch.Size) -> Tensor:
    """Return the sparse gradient of a weight that has one for these rows alone: int64, ascending and all different."""
    return torch.sparse_coo_tensor(rows_S.unsqueeze(0), values_SD, shape, is_coalesced=True, check_invariants=False)


class _ClassSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_BD: Tensor,
        weight_ND: Tensor,
        labels_B: Tensor,
        margin: Margin,
        norms_B: Tensor | None,
        rows_N: Tensor | None,
        streaming: Streaming,
        ranks: Ranks,
        first_class: int,
        subcenters: int,
        memory: KeptMemory | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(query_BD.dtype, torch.float32)
        query = ranks.gather(query_BD.detach().to(wide))
        labels = (ranks.gather(labels_B) - first_class) * subcenters  # the first row of each
        norms = None if norms_B is None else ranks.gather(norms_B.detach())
        classes = _Classes(weight_ND, rows_N)
        here = None if ranks.size == 1 else (labels >= 0) & (labels < len(classes))  # None: all have their row here
        # A label of another rank is no row of ours; below 0 it could be taken for one.
        own_labels = labels if here is None else torch.where(here, labels, len(classes))
        if subcenters > 1:
            rows_of_each = (_target_rows(classes, labels + number, here, wide) for number in range(subcenters))
            cosines_BK = ranks.sum(torch.stack([(query * rows_BD).sum(1) for rows_BD in rows_of_each], dim=1))
            labels = labels + cosines_BK.argmax(1)  # its nearest
        target_BD = _target_rows(classes, labels, here, wide)
        cosine_B = ranks.sum((query * target_BD).sum(1))
        with torch.enable_grad():
            leaf_B = cosine_B.detach().requires_grad_()
            adjusted_B = margin(leaf_B, norms)
            (slope_B,) = torch.autograd.grad(adjusted_B.sum(), leaf_B)
        adjusted_B = adjusted_B.detach().to(wide)

        rows = _Rows(query * margin.scale, own_labels, margin.scale, streaming, classes, subcenters)
        size = (len(query), len(classes))
        keeps = ctx.needs_input_grad[1] and size[0] * size[1] * query.element_size() <= KEPT_MIB << 20
        kept_BN = query.new_empty(size) if keeps else None
        inverse_N = query.new_empty(len(classes))
        part = rows.sum_of_negatives(inverse_N, kept_BN, weighted=ctx.needs_input_grad[0])
        negatives = part.reduce(ranks)
        lse = negatives.log_sum_exp()
        distance_B = lse - margin.scale * adjusted_B
        ctx.options = margin.scale, streaming, ranks, query_BD.dtype, subcenters, memory
        mean = None
        if ctx.needs_input_grad[0]:
            mean = ranks.sum_own(negatives.mean_row() - slope_B[:, None] * target_BD)
        ctx.save_for_backward(
            query, weight_ND, rows_N, labels, own_labels, here, inverse_N, kept_BN, lse, distance_B, slope_B, cosine_B,
            mean,
        )  # fmt: skip
        own_cosine_B, nearest_B = ranks.own(cosine_B).clone(), ranks.own(negatives.maximum_B) / margin.scale
        ctx.mark_non_differentiable(own_cosine_B, nearest_B)
        return softplus(ranks.own(distance_B)), own_cosine_B, nearest_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_B: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        (
            query,
            weight_ND,
            rows_N,
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
        scale, streaming, ranks, query_dtype, subcenters, memory = ctx.options
        pull_B = ranks.gather(gradient_B) * scale * distance_B.sigmoid()
        query_gradient = None if mean_BD is None else (ranks.own(pull_B)[:, None] * mean_BD).to(query_dtype)
        if not ctx.needs_input_grad[1]:
            return query_gradient, *[None] * 10
        if ranks.size > 1:
            pull_B = pull_B / ranks.size
        with without_autocast(query):
            classes = _Classes(weight_ND, rows_N)
            rows = _Rows(query * scale, own_labels_B, scale, streaming, classes, subcenters)
            shape = (len(classes), query.shape[1])
            gradient_ND = weight_ND.new_empty(shape) if memory is None else memory.empty(shape, weight_ND)
            rows.write_gradient(gradient_ND, inverse_N, kept_BN, lse_B, query * pull_B[:, None])
            if len(classes):
                place_B = labels_B if here_B is None else torch.where(here_B, labels_B, 0)
                inverse_B = inverse_N[place_B]
                rows_B = classes.at(place_B).to(query.dtype) * inverse_B[:, None]
                push_B = -pull_B * slope_B
                if here_B is not None:
                    push_B = torch.where(here_B, push_B, 0.0)
                target = (push_B * inverse_B)[:, None] * (query - cosine_B[:, None] * rows_B)
                gradient_ND.index_add_(0, place_B, target.to(gradient_ND.dtype))
        if rows_N is not None:
            gradient_ND = gradient_of_rows(rows_N, gradient_ND, weight_ND.shape)
        return query_gradient, gradient_ND, *[None] * 9


@dataclass(frozen=True)
class _Classes:
    """The rows of the softmax's classes: all of a weight, or those that `rows_N` names."""

    weight_ND: Tensor
    rows_N: Tensor | None

    def __len__(self) -> int:
        return len(self.weight_ND if self.rows_N is None else self.rows_N)

    def at(self, places_B: Tensor) -> Tensor:
        return self.weight_ND[places_B if self.rows_N is None else self.rows_N[places_B]]


@dataclass(frozen=True)
class _Rows:
    """The logits of all queries with the classes of one rank, a block of classes at a time, and the sums over them.

    Left out (-inf) are each query's own class, rows of a class that are not its nearest to the query, and negatives with a cosine above
    `filtering_threshold`. `labels_B`: the first row of each query's class.
    """

    scaled_BD: Tensor
    labels_B: Tensor
    scale: float
    streaming: Streaming
    classes: _Classes
    subcenters: int

    def _blocks(
        self, inverse_N: Tensor, kept_BN: Tensor | None, *, forward: bool
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor | None]]:
        """Yield a block of classes, its rows, its logits, a buffer as large, and which logits are filtered.

        `forward` writes `inverse_N` and the logits that are kept; later they are there.
        """
        (B, D), wide, K = self.scaled_BD.shape, self.scaled_BD.dtype, self.subcenters
        weight_ND, rows_N = self.classes.weight_ND, self.classes.rows_N
        threshold = self.streaming.get("filtering_threshold")
        bytes_a_row = self.scaled_BD.element_size() * (2 * B + (0 if weight_ND.dtype == wide else 2 * D))
        cached = self.scaled_BD.device.type == "cpu"
        buffer, own_RD = self.scaled_BD.new_empty(0), weight_ND.new_empty(0)
        block_mib = self.streaming.get("block_mib", 32.0)
        for part in row_blocks(len(inverse_N) // K, K * bytes_a_row, block_mib, cached=cached):
            block = slice(K * part.start, K * part.stop)
            shape = (B, block.stop - block.start)
            if buffer.shape != shape:
                buffer, own_RD = buffer.new_empty(shape), own_RD.new_empty(0)
            if rows_N is None:
                own_RD = weight_ND[block]
            else:
                torch.index_select(weight_ND, 0, rows_N[block], out=own_RD)
            rows_RD = own_RD.to(wide)
            if forward:
                length_R = torch.linalg.vector_norm(rows_RD, dim=1, out=inverse_N[block])
                length_R.clamp_min_(SHORTEST).reciprocal_()
            logits_BR = buffer if kept_BN is None else kept_BN[:, block]
            filtered_BR = None
            if forward or kept_BN is None:
                torch.mm(self.scaled_BD, rows_RD.T, out=logits_BR).mul_(inverse_N[block])
                for number in range(K):
                    _leave_out_own(logits_BR, self.labels_B + number - block.start)
                if K > 1:
                    of_class_BNK = logits_BR.view(B, -1, K)
                    of_class_BNK.masked_fill_(of_class_BNK < of_class_BNK.amax(dim=2, keepdim=True), float("-inf"))
                if threshold is not None:
                    filtered_BR = logits_BR > self.scale * threshold
                    logits_BR.masked_fill_(filtered_BR, float("-inf"))
            yield block, rows_RD, logits_BR, buffer, filtered_BR

    def sum_of_negatives(self, inverse_N: Tensor, kept_BN: Tensor | None, *, weighted: bool) -> NegativeSum:
        """Sum exp(logit), and exp(logit) row if `weighted`, over the negatives; fill `inverse_N`, 1 / |row|, and `kept_BN`, the logits."""
        B, D = self.scaled_BD.shape
        total = NegativeSum(
            self.scaled_BD.new_full((B,), NOTHING),
            self.scaled_BD.new_zeros(B),
            self.scaled_BD.new_zeros(B, D if weighted else 0),
        )
        zeros_B = self.scaled_BD.new_zeros(B)
        for block, rows_RD, logits_BR, buffer, filtered_BR in self._blocks(inverse_N, kept_BN, forward=True):
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

    def write_gradient(
        self, gradient_ND: Tensor, inverse_N: Tensor, kept_BN: Tensor | None, lse_B: Tensor, pulled_BD: Tensor
    ) -> None:
        """Write the negatives' part of the rows' gradient: sum_b p_bn pulled_b without its part along the row, over the row's length."""
        less_lse_B1 = -lse_B[:, None].clamp_min(NOTHING)
        for block, rows_RD, logits_BR, buffer, _ in self._blocks(inverse_N, kept_BN, forward=False):
            p_BR = torch.add(logits_BR, less_lse_B1, out=buffer).exp_()
            place = gradient_ND[block] if gradient_ND.dtype == rows_RD.dtype else torch.empty_like(rows_RD)
            gradient_RD = torch.mm(p_BR.T, pulled_BD, out=place)
            # vecdot makes its products first: on a processor for as many rows as a core's cache holds.
            rows_a_part = CACHED_ROWS if gradient_RD.device.type == "cpu" else len(rows_RD)
            parts = (torch.split(rest, rows_a_part) for rest in (gradient_RD, rows_RD, inverse_N[block, None]))
            for gradient_XD, rows_XD, inverse_X1 in zip(*parts, strict=True):
                gradient_XD.mul_(inverse_X1)
                radial_X1 = torch.linalg.vecdot(gradient_XD, rows_XD)[:, None] * inverse_X1.square()
                gradient_XD.addcmul_(rows_XD, radial_X1, value=-1)
            if place.dtype != gradient_ND.dtype:
                gradient_ND[block] = gradient_RD


def _leave_out_own(logits_BR: Tensor, column_B: Tensor) -> None:
    """Set each query's logit with its own class to -inf, where it is one of these; without waiting for the device."""
    place_B1 = column_B.clamp(0, logits_BR.shape[1] - 1)[:, None]
    own_B1 = place_B1 == column_B[:, None]
    logits_BR.scatter_(1, place_B1, logits_BR.gather(1, place_B1).masked_fill_(own_B1, float("-inf")))


def _target_rows(classes: _Classes, labels_B: Tensor, here_B: Tensor | None, wide: torch.dtype) -> Tensor:
    """Return the targets' unit rows, (B, D); zeros where another rank has them."""
    if not len(classes):
        return classes.weight_ND.new_zeros(len(labels_B), classes.weight_ND.shape[1], dtype=wide)
    rows_BD = classes.at(labels_B if here_B is None else torch.where(here_B, labels_B, 0)).to(wide)
    rows_BD = rows_BD / torch.linalg.vector_norm(rows_BD, dim=1).clamp_min(SHORTEST)[:, None]
    return rows_BD if here_B is None else torch.where(here_B[:, None], rows_BD, 0.0)
