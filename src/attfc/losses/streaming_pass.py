"""One pass over rows that carry no gradient: sums of exp(s q.w) and exp(s q.w) w for each query, a block of rows at a time.

The rows pass with a running maximum, denominator and weighted sum (online softmax). Time: two matrix products and a little. Memory beside the
rows: at most `block_mib` and a few (B, D); nothing of size B x C. Sums are float32 (float64 for float64 queries) whatever the rows are stored as.

Not taken: a fixed maximum s in place of the running one (saves two passes over a block in cache, 3 % of the time; then a row longer than 1
overflows in silence).

Source: online softmax (arXiv 1805.02867) over the rows as keys and values.
Shapes: B queries, D dimensions, C rows, R rows of one block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

import torch
from torch import Tensor

from attfc.distributed import Ranks
from attfc.errors import UserError
from attfc.precision import fast_bfloat16, without_autocast

__all__ = [
    "EMPTY",
    "Filtering",
    "NegativeSum",
    "Streaming",
    "nobodys_negative",
    "refuse_empty",
    "row_blocks",
    "stream_negatives",
]

Filtering = Literal["drop", "zero"]

EMPTY = -1  # label of a row that holds nothing: never a negative
NOTHING = -1e30  # the maximum over no rows; finite, because (-inf) - (-inf) is not a number
FIRST_ROWS, LEAD, FARTHEST = 256, 2.0, 4.0  # rows, logits, logits: see _Pass
LARGEST_BLOCK = (
    8192  # rows; 4,096 is as fast on a quiet machine, but meets more often between threads; 32,768 is 5 to 30 % slower
)


class Streaming(TypedDict, total=False):
    """How a pass is made.

    Attributes:
        block_mib: memory for one block's work, MiB (32); the block is smaller where it would leave the cache.
        filtering_threshold: negatives with a cosine above it are presumed wrong labels; None: none are.
        filtering: what becomes of those: left out of the softmax ("drop"), or taken with cosine 0 and no gradient ("zero", as arcface_torch).
    """

    block_mib: float
    filtering_threshold: float | None
    filtering: Filtering


@dataclass(frozen=True)
class NegativeSum:
    """What a softmax needs of its negatives: sums of exp(logit - maximum) over some part of the rows.

    Attributes:
        maximum_B: (B,) the largest logit, or -1e30 over no rows.
        denominator_B: (B,) sum_j exp(logit_ij - maximum_i); 0 over no rows.
        weighted_sum_BD: (B, D) sum_j exp(logit_ij - maximum_i) row_j; (B, 0) where it was not asked for.
    """

    maximum_B: Tensor
    denominator_B: Tensor
    weighted_sum_BD: Tensor

    def under(self, maximum_B: Tensor) -> "NegativeSum":
        """Return the same sums with another maximum."""
        shrink_B = (self.maximum_B - maximum_B).exp()
        return NegativeSum(maximum_B, self.denominator_B * shrink_B, self.weighted_sum_BD * shrink_B[:, None])

    def merge(self, other: "NegativeSum") -> "NegativeSum":
        """Return the sum over both parts of the rows; the order of merging changes the rounding only."""
        maximum_B = torch.maximum(self.maximum_B, other.maximum_B)
        mine, theirs = self.under(maximum_B), other.under(maximum_B)
        weighted_sum_BD = mine.weighted_sum_BD + theirs.weighted_sum_BD
        return NegativeSum(maximum_B, mine.denominator_B + theirs.denominator_B, weighted_sum_BD)

    def reduce(self, ranks: Ranks) -> "NegativeSum":
        """Return maximum and denominator over the shards of all ranks, for all queries, and this rank's part of the weighted sum.

        The parts add up to the whole: what is linear in them can be formed first and summed last.
        """
        if ranks.size == 1:
            return self
        part = self.under(ranks.maximum(self.maximum_B))
        return NegativeSum(part.maximum_B, ranks.sum(part.denominator_B), part.weighted_sum_BD)

    def own(self, ranks: Ranks) -> "NegativeSum":
        """Return the whole sums of this rank's own queries: (ranks x B, ...) -> (B, ...); of what `reduce` returned."""
        take = ranks.sum_own if self.weighted_sum_BD.numel() else ranks.own
        return NegativeSum(ranks.own(self.maximum_B), ranks.own(self.denominator_B), take(self.weighted_sum_BD))

    def log_sum_exp(self) -> Tensor:
        """Return log sum_j exp(logit_ij), (B,); -inf over no rows."""
        return self.maximum_B + self.denominator_B.log()

    def mean_row(self) -> Tensor:
        """Return sum_j p_ij row_j, (B, D), with p the softmax over these negatives; zeros over no rows."""
        assert self.weighted_sum_BD.numel(), "streamed without weighted_sum"
        return self.weighted_sum_BD / torch.where(self.denominator_B > 0, self.denominator_B, 1.0)[:, None]


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
    """Sum exp(s q.w) and exp(s q.w) w over the rows of other identities, a block of rows at a time, without gradient.

    Args:
        query_BD: (B, D) float, unit length.
        rows_CD: (C, D) float, or int8 with `row_scales_C`; finite, empty slots too. The products are float32 (float64 for float64 queries),
            or bfloat16 with float32 logits and sums for bfloat16 and int8 rows where the processor multiplies them fast.
        row_labels_C: (C,) int64; -1 marks an empty slot.
        labels_B: (B,) int64.
        scale: s.
        row_scales_C: (C,) float: row = stored row * scale, for any type of rows.
        block_mib, filtering_threshold, filtering: `Streaming`.
        weighted_sum: False leaves out the second matrix product.

    Returns:
        NegativeSum; those of the shards of a container `merge` to that of the whole.
    """
    refuse_empty(query_BD)
    if rows_CD.dtype == torch.int8 and row_scales_C is None:
        raise UserError("rows_CD is int8 without row_scales_C: give the (C,) float32 scales, row = int8 * scale")
    if filtering not in get_args(Filtering):
        raise UserError(f"filtering is {filtering!r}, but it must be 'drop' or 'zero'")
    wide = torch.promote_types(query_BD.dtype, torch.float32)
    products = wide if wide == torch.float64 else _fast_products(rows_CD)
    with torch.no_grad(), without_autocast(query_BD):
        pass_ = _Pass(query_BD.detach().to(wide) * scale, products)
        B, D = query_BD.shape
        maximum_B, denominator_B = pass_.query_BD.new_full((B,), NOTHING), pass_.query_BD.new_zeros(B)
        total_BD = pass_.query_BD.new_zeros(B, D if weighted_sum else 0)
        sorted_labels_B = labels_B.sort().values

        bytes_a_row = pass_.bytes_a_row(rows_CD, row_scales_C)
        for block in row_blocks(rows_CD.shape[0], bytes_a_row, block_mib, first=pass_.first_rows, cached=pass_.on_cpu):
            row_labels_R = row_labels_C[block]
            left_out = _left_out(row_labels_R, labels_B, sorted_labels_B)
            if left_out == "all":
                continue
            row_scales_R = None if row_scales_C is None else row_scales_C[block]
            rows_RD, row_scales_R = pass_.prepare(rows_CD[block], row_scales_R)
            filtered_BR: Tensor | None = None
            while True:
                logits_BR = pass_.logits(rows_RD, row_scales_R)
                if filtering_threshold is not None:
                    filtered_BR = logits_BR > scale * filtering_threshold
                    logits_BR.masked_fill_(filtered_BR, 0.0 if filtering == "zero" else float("-inf"))
                if left_out is not None:
                    columns_H, mask_BH = left_out
                    if columns_H is None:
                        logits_BR.masked_fill_(mask_BH, float("-inf"))
                    else:
                        logits_BR[:, columns_H] = logits_BR[:, columns_H].masked_fill_(mask_BH, float("-inf"))
                new_maximum_B = torch.maximum(maximum_B, logits_BR.amax(1))
                if pass_.accurate(new_maximum_B):
                    break

            shrink_B = (maximum_B - new_maximum_B).exp_()
            weights_BR = logits_BR.sub_(new_maximum_B[:, None]).exp_()
            denominator_B.mul_(shrink_B).add_(weights_BR.sum(1))
            if weighted_sum:
                if filtered_BR is not None and filtering == "zero":
                    weights_BR.masked_fill_(filtered_BR, 0.0)
                if row_scales_R is not None:
                    weights_BR.mul_(row_scales_R)
                pass_.add_weighted_rows(total_BD.mul_(shrink_B[:, None]), weights_BR, rows_RD)
            maximum_B = new_maximum_B
    return NegativeSum(maximum_B, denominator_B, total_BD)


LeftOut = tuple[Tensor | None, Tensor] | Literal["all"] | None


def _left_out(row_labels_R: Tensor, labels_B: Tensor, sorted_labels_B: Tensor) -> LeftOut:
    """Find the rows that are empty or of a query's own identity: columns and a mask over them, (B, columns).

    On the CPU a search in the sorted labels finds the few columns concerned (B x R comparisons cost 8 % of a bfloat16 pass).
    Elsewhere it would have to wait for the device, so the mask covers all columns there (columns is None).
    """
    if row_labels_R.device.type != "cpu":
        return None, nobodys_negative(row_labels_R, labels_B)
    place_R = torch.searchsorted(sorted_labels_B, row_labels_R).clamp_max_(len(sorted_labels_B) - 1)
    empty_R = row_labels_R == EMPTY
    columns_H = ((sorted_labels_B[place_R] == row_labels_R) | empty_R).nonzero()[:, 0]
    if len(columns_H) == 0:
        return None
    if len(columns_H) == len(row_labels_R) and empty_R.all():
        return "all"
    return columns_H, (row_labels_R[columns_H] == labels_B[:, None]) | empty_R[columns_H]


def nobodys_negative(row_labels_R: Tensor, labels_B: Tensor) -> Tensor:
    """Return whose negative a row is not, (B, R) bool."""
    return (row_labels_R == labels_B[:, None]) | (row_labels_R == EMPTY)


def refuse_empty(query_BD: Tensor) -> None:
    """Refuse a batch without samples: UserError."""
    if len(query_BD) == 0:
        raise UserError(f"query_BD is empty, {tuple(query_BD.shape)}: a loss needs at least 1 query")


def row_blocks(rows: int, bytes_a_row: int, block_mib: float, *, first: int = 0, cached: bool) -> Iterator[slice]:
    """Yield slices that cut the rows into blocks whose work, `bytes_a_row`, fits in `block_mib`.

    Args:
        first: rows of the first block, if it is to be smaller; 0: as the others.
        cached: also keep blocks small enough for a processor's cache (accelerators rather want few and large ones).
    """
    size = max(16, int(block_mib * 2**20 / bytes_a_row))
    if cached:
        size = min(size, LARGEST_BLOCK)
    start = 0
    while start < rows:
        stop = min(start + (min(first, size) if start == 0 and first else size), rows)
        yield slice(start, stop)
        start = stop


class _Pass:
    """The two matrix products of one pass, in the precision chosen, with buffers that all blocks share.

    A bfloat16 product accumulates in float32, but on the CPU torch rounds its result to bfloat16: a logit of 60 becomes
    uncertain by 0.125, its weight by 13 %. So the CPU asks for logit - reference, with the reference a little (LEAD) above the
    running maximum: then the logits that matter are small numbers, with small errors. Where a block surpasses its reference by
    more than FARTHEST it is multiplied again with a better one (about one block per pass on random rows). The first few rows
    are done in float32, to begin with a good reference. Measured (s = 64, D = 512, rivals at cosine 0.8): worst loss off by 0.02
    in place of 0.13, worst gradient of a query by 1.7 % in place of 10 %; what is left is the rounding of the query itself.
    """

    def __init__(self, query_BD: Tensor, products: torch.dtype) -> None:
        self.query_BD = query_BD
        self.products = products
        self.on_cpu = query_BD.device.type == "cpu"
        self.relative = self.on_cpu and products != query_BD.dtype
        self.first_rows = FIRST_ROWS if self.relative else 0
        # Scales go to the rows (R x D, once) or to logits and weights (B x R, twice), whichever is less.
        self.scale_rows = query_BD.shape[1] < 2 * query_BD.shape[0]
        self.first = self.relative
        self.narrow_query_BD = query_BD.to(products)
        self.reference_B = torch.zeros_like(query_BD[:, 0])
        self.buffers: dict[str, Tensor] = {}

    def buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a contiguous piece of a buffer that is kept from block to block."""
        size = shape[0] * shape[1]
        kept = self.buffers.get(name)
        if kept is None or kept.numel() < size:
            kept = self.buffers[name] = self.query_BD.new_empty(size, dtype=dtype)
        return kept[:size].view(shape)

    def bytes_a_row(self, rows_CD: Tensor, row_scales_C: Tensor | None) -> int:
        """Return what one row takes of a block's memory: logit, weight, mask for each query, and its working copies."""
        wide = self.query_BD.element_size()
        copies = 0 if rows_CD.dtype == self.products else self.products.itemsize
        if row_scales_C is not None and self.products != self.query_BD.dtype:
            copies = wide + self.products.itemsize
        elif row_scales_C is not None and self.scale_rows:
            copies = wide
        return self.query_BD.shape[0] * (wide + 4) + rows_CD.shape[1] * copies

    def prepare(self, rows_RD: Tensor, row_scales_R: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the rows in the type of the products, and the scales that are still to be applied."""
        wide = self.query_BD.dtype
        if row_scales_R is not None and (self.scale_rows or self.products != wide):
            scaled_RD = self.buffer("scaled", rows_RD.shape, wide)
            if rows_RD.dtype != wide:  # a product of mixed types takes 1.5 times as long as a copy and a product
                rows_RD = scaled_RD.copy_(rows_RD)
            rows_RD, row_scales_R = torch.mul(rows_RD, row_scales_R[:, None], out=scaled_RD), None
        if rows_RD.dtype != self.products:
            rows_RD = self.buffer("rows", rows_RD.shape, self.products).copy_(rows_RD)
        return rows_RD, None if row_scales_R is None else row_scales_R.to(wide)

    def logits(self, rows_RD: Tensor, row_scales_R: Tensor | None) -> Tensor:
        """Return scale q.w, (B, R), in the accumulation type."""
        shape = (self.query_BD.shape[0], rows_RD.shape[0])
        if self.products == self.query_BD.dtype:
            logits_BR = torch.mm(self.query_BD, rows_RD.T, out=self.buffer("logits", shape, self.query_BD.dtype))
        elif not self.on_cpu:
            return torch.mm(self.narrow_query_BD, rows_RD.T, out_dtype=self.query_BD.dtype)
        elif self.first:
            return self.query_BD @ rows_RD.to(self.query_BD.dtype).T
        else:
            narrow_B = self.reference_B.to(self.products)
            narrow_BR = self.buffer("narrow", shape, self.products)
            torch.addmm(narrow_B[:, None], self.narrow_query_BD, rows_RD.T, beta=-1, out=narrow_BR)
            logits_BR = self.buffer("logits", shape, self.query_BD.dtype).copy_(narrow_BR)
            logits_BR.add_(narrow_B.to(self.query_BD.dtype)[:, None])
        return logits_BR if row_scales_R is None else logits_BR.mul_(row_scales_R)

    def accurate(self, maximum_B: Tensor) -> bool:
        """Take the new maximum as the next reference; False if this block deserved a better one than it had."""
        if not self.relative:
            return True
        good = self.first or not (maximum_B - self.reference_B > FARTHEST).any()
        self.first = False
        self.reference_B = torch.where(maximum_B > NOTHING / 2, maximum_B + LEAD, 0.0)
        return good

    def add_weighted_rows(self, total_BD: Tensor, weights_BR: Tensor, rows_RD: Tensor) -> None:
        """Add weights @ rows to the total, in place."""
        if self.products == self.query_BD.dtype:
            total_BD.addmm_(weights_BR, rows_RD)
            return
        narrow_BR = self.buffer("narrow", weights_BR.shape, self.products).copy_(weights_BR)
        if self.on_cpu:
            total_BD.add_(torch.mm(narrow_BR, rows_RD))
        else:
            total_BD.add_(torch.mm(narrow_BR, rows_RD, out_dtype=self.query_BD.dtype))


def _fast_products(rows_CD: Tensor) -> torch.dtype:
    """bfloat16 for narrow rows where the device multiplies it fast; the rounding of a query averages out over D only if D is large."""
    narrow = rows_CD.dtype in (torch.bfloat16, torch.int8) and rows_CD.shape[1] >= 128
    return torch.bfloat16 if narrow and fast_bfloat16(rows_CD.device) else torch.float32
