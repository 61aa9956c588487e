"""The hardest negatives of each query: a streamed top-k over the rows of a container.

Rows pass a block at a time; of each block the `count` largest cosines of a query are merged with the best so far. Time: one matrix
product and a selection. Memory beside the container: `block_mib`, and a few (B, count); nothing of size B x C.
Everything is selected in float32 (float64 for float64 queries) from the rows as they are stored.
Not taken: one top-k over all cosines (B x C); the fast bfloat16 product of `stream_negatives`, which rounds cosines by 0.004 and so picks
other rows wherever the hardest are close together.

Rows in shards over ranks: every rank finds the hardest of its own rows for the queries of all, their cosines are gathered (ranks x B x H
numbers), and every rank sees which of its own are among the hardest of all. What the loss needs of them is their sum, B x D numbers.

Source: F2C (arXiv 2105.10375). Shapes: B queries, D dimensions, C rows (slots), R rows of one block, H hardest.
"""

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from attfc.distributed import ALONE, Ranks
from attfc.errors import UserError
from attfc.losses.streaming_pass import Streaming, nobodys_negative, row_blocks
from attfc.precision import without_autocast

__all__ = ["hardest_rows", "mean_hardest_cosine"]


@torch.no_grad()
def hardest_rows(
    query_BD: Tensor,
    rows_CD: Tensor,
    row_labels_C: Tensor,
    labels_B: Tensor,
    count: int,
    *,
    row_scales_C: Tensor | None = None,
    filtering_threshold: float | None = None,
    block_mib: float = 32.0,
) -> tuple[Tensor, Tensor]:
    """Find for each query the `count` rows of other identities with the largest cosines.

    Args:
        query_BD: (B, D) float, unit length; no gradient flows.
        rows_CD: (C, D) float32, bfloat16, or int8 with `row_scales_C`; about unit length, C >= 0.
        row_labels_C: (C,) int64; rows labelled -1 are empty, rows with the query's own label are not among its negatives.
        labels_B: (B,) int64.
        count: H >= 1; may exceed the number of rows.
        row_scales_C: (C,) float32: row = int8 * scale.
        filtering_threshold: rows with a cosine above it are presumed wrong labels and passed over.
        block_mib: memory for one block's work, MiB.

    Returns:
        Cosines (B, H), largest first, float32 (float64 for float64), -inf where there are no more rows; and the numbers of
        the rows, int64 (B, H), 0 where there are no more.

    Raises:
        UserError: count < 1; int8 rows without scales.

    >>> rows, labels = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), torch.tensor([3, 5, 7])
    >>> hardest_rows(torch.tensor([[1.0, 0.0]]), rows, labels, torch.tensor([3]), 2)
    (tensor([[0.8000, 0.0000]]), tensor([[1, 2]]))
    """
    if count < 1:
        raise UserError(f"count is {count}: at least 1 hardest row is needed")
    if rows_CD.dtype == torch.int8 and row_scales_C is None:
        raise UserError("rows_CD is int8 without row_scales_C: give the (C,) float32 scales, row = int8 * scale")
    wide = torch.promote_types(query_BD.dtype, torch.float32)
    with without_autocast(query_BD):
        query_BD = query_BD.detach().to(wide)
        batch, size = query_BD.shape
        best_BH = query_BD.new_full((batch, count), -math.inf)
        number_BH = torch.zeros_like(best_BH, dtype=torch.int64)
        # A cosine, its mask, what the selection copies of it; and the block in the type of the product.
        bytes_a_row = batch * (3 * wide.itemsize + 1) + (0 if rows_CD.dtype == wide else size * wide.itemsize)
        for block in row_blocks(rows_CD.shape[0], bytes_a_row, block_mib, cached=query_BD.device.type == "cpu"):
            cosine_BR = query_BD @ rows_CD[block].to(wide).T
            if row_scales_C is not None:
                cosine_BR.mul_(row_scales_C[block])
            left_out_BR = nobodys_negative(row_labels_C[block], labels_B)
            if filtering_threshold is not None:
                left_out_BR.logical_or_(cosine_BR > filtering_threshold)
            cosine_BR.masked_fill_(left_out_BR, -math.inf)
            block_BH, place_BH = cosine_BR.topk(min(count, cosine_BR.shape[1]), dim=1)
            best_BH, chosen_BH = torch.cat([best_BH, block_BH], dim=1).topk(count, dim=1)
            number_BH = torch.cat([number_BH, place_BH + block.start], dim=1).gather(1, chosen_BH)
        return best_BH, torch.where(best_BH > -math.inf, number_BH, 0)


def mean_hardest_cosine(
    query_BD: Tensor,
    rows_CD: Tensor,
    row_labels_C: Tensor,
    labels_B: Tensor,
    count: int,
    *,
    row_scales_C: Tensor | None = None,
    ranks: Ranks = ALONE,
    **streaming: Unpack[Streaming],
) -> Tensor:
    """Return for each query sum_j max(q.w_j, 0) / count over its `count` hardest rows of other identities; the push of DCP.

    Arguments as `hardest_rows`, and:

    Args:
        ranks: where there are several, the rows are this rank's shard (C may be 0), queries and labels its own share of the batch.
        streaming: `Streaming`; `filtering` says nothing: presumed wrong labels are never among the hardest.

    Returns:
        (B,) float32 (float64 for float64), with gradient to query_BD: (1 / count) sum_j w_j over those with a cosine above 0.

    >>> rows, labels = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, -1.0]]), torch.tensor([3, 5, 7])
    >>> mean_hardest_cosine(torch.tensor([[1.0, 0.0]]), rows, labels, torch.tensor([9]), 3)
    tensor([0.6000])
    """
    options: dict[str, Any] = {name: value for name, value in streaming.items() if name != "filtering"}
    with without_autocast(query_BD), torch.no_grad():
        every_query_BD = ranks.gather(query_BD.detach())
        cosine_BH, number_BH = hardest_rows(
            every_query_BD,
            rows_CD,
            row_labels_C,
            ranks.gather(labels_B),
            count,
            row_scales_C=row_scales_C,
            **options,
        )
        chosen_BH = cosine_BH > 0
        if ranks.size > 1:  # those among the hardest of all ranks; equal cosines: the same choice everywhere
            # Rank by rank below one another -> side by side: place r H + h is row h of rank r.
            every_RBH = ranks.gather(cosine_BH).view(ranks.size, *cosine_BH.shape)
            every_BX = every_RBH.transpose(0, 1).flatten(1)
            of_all_BX = torch.zeros_like(every_BX, dtype=torch.bool)
            of_all_BX.scatter_(1, every_BX.topk(count, dim=1).indices, True)
            chosen_BH &= of_all_BX[:, ranks.rank * count : (ranks.rank + 1) * count]
        total_BD = torch.zeros_like(every_query_BD, dtype=cosine_BH.dtype)
        if rows_CD.shape[0]:
            for number_B, chosen_B in zip(
                number_BH.unbind(1), chosen_BH.unbind(1), strict=True
            ):  # (B, H, D) is never held
                row_BD = rows_CD[number_B].to(total_BD.dtype)
                if row_scales_C is not None:
                    row_BD = row_BD * row_scales_C[number_B].unsqueeze(1)
                total_BD += torch.where(chosen_B.unsqueeze(1), row_BD, 0.0)
        total_BD = ranks.sum_own(total_BD)
    # q . sum_j w_j is the sum of the cosines, and its gradient theirs.
    return (query_BD * total_BD).sum(dim=1) / count
