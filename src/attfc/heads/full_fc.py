"""The full FC: one trained class center for every identity, the reference that every other head is measured against.

A step is a softmax over all N identities with a margin on the right one. The rows are streamed forward and backward a
block at a time (`class_softmax`), so no B x N matrix is ever held; time is four matrix products of B x N x D. Memory:
N x D x 4 B three times (weight, gradient, momentum): 61 GB at 10 million identities and D = 512.
Several ranks: data parallel, every rank has all rows and the gradients are averaged (the trainer's DistributedDataParallel; moves N x D numbers a
step); or model parallel, each rank has a block of the rows and their momentum, and B x 2D numbers move (`ranks`).
Source: ArcFace (arXiv 1801.07698); arcface_torch at sample rate 1.
"""

import torch
from torch import Tensor, nn

from attfc.distributed import ALONE, Ranks, RowShard
from attfc.errors import UserError
from attfc.heads.banks.row_store import draw_rows
from attfc.heads.head import Head, unit_length
from attfc.losses.class_softmax import class_softmax_and_cosine
from attfc.losses.container_softmax import Filtering
from attfc.losses.margins import Margin

__all__ = ["FullFC"]


class FullFC(Head):
    """Fully connected classifier on unit embeddings and unit class centers, with a margin.

    Args:
        embedding_size: D.
        identities: N; labels are 0 to N - 1.
        margin: margin on the right identity's cosine; owns the scale s.
        interclass_filtering_threshold: other identities with a cosine above it are taken for label noise; None: off.
        filtering: what becomes of those, `drop` (out of the softmax) or `zero` (cosine 0, as in arcface_torch).
        block_mib: temporary memory of the streaming passes, MiB.
        ranks: the processes that share the rows; `weight` is then the block `shard` of them. Each rank calls `forward` with its share of the
            batch, all of equal size, and gets the mean loss of that share; the rows' gradient is that of the mean over all ranks.

    `weight` (N, D) float32 is a parameter, normal with standard deviation 0.01 as in arcface_torch; not normalized in
    storage, so weight decay shortens its rows and that raises their effective learning rate.

    >>> head = FullFC(embedding_size=8, identities=100, margin=Margin(scale=16.0))
    >>> head(torch.randn(4, 8), torch.tensor([3, 1, 4, 1])).shape
    torch.Size([])
    """

    def __init__(
        self,
        embedding_size: int,
        identities: int,
        margin: Margin,
        *,
        interclass_filtering_threshold: float | None = None,
        filtering: Filtering = "drop",
        block_mib: float = 32.0,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(embedding_size, keys_per_query=0)
        if identities < 1:
            raise UserError(f"identities is {identities}: a classifier needs at least 1 identity")
        if identities < ranks.size:
            raise UserError(
                f"{identities} identities are fewer than the {ranks.size} ranks that share their rows: start fewer processes, or replicate the "
                f"rows (distributed.rows=replicated)"
            )
        self.identities = identities
        self.ranks = ranks
        self.shard = ranks.shard(identities)
        self.margin = margin
        self.interclass_filtering_threshold = interclass_filtering_threshold
        self.filtering: Filtering = filtering
        self.block_mib = block_mib
        self.weight = nn.Parameter(torch.empty(len(self.shard), embedding_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight anew from torch's global generator: the same for any number of ranks."""
        draw_rows(self.weight, self.shard)

    def forward(self, embeddings_BD: Tensor, labels_B: Tensor, keys_BKD: Tensor | None = None) -> Tensor:
        """Return the mean loss of the batch; gradient to the embeddings and to `weight`.

        Args:
            embeddings_BD: (B, D) float of any dtype and length; computed in float32 (float64 stays).
            labels_B: (B,) int64, 0 <= label < identities; not modified.
            keys_BKD: ignored; the trainer passes (B, 0, D) or nothing.

        Raises:
            UserError: wrong shapes or types; a label out of range (seen on the CPU, where looking is free).
        """
        self._check_batch(embeddings_BD, labels_B)
        if labels_B.device.type == "cpu":
            self._check_labels_below(self.ranks.gather(labels_B), self.identities, self.ranks)
        query_BD, norms_B = unit_length(embeddings_BD)
        loss_B, cosine_B = class_softmax_and_cosine(
            query_BD,
            self.weight,
            labels_B,
            self.margin,
            norms_B=norms_B,
            block_mib=self.block_mib,
            filtering_threshold=self.interclass_filtering_threshold,
            filtering=self.filtering,
            ranks=self.ranks,
            first_class=self.shard.start,
        )
        self._last_step = {"positive_cosine": cosine_B.mean()}
        return loss_B.mean()

    def row_shards(self) -> dict[str, RowShard]:
        """The weight, if ranks share it."""
        return {"weight": self.shard} if self.ranks.size > 1 else {}

    def extra_repr(self) -> str:
        return f"embedding_size={self.embedding_size}, identities={self.identities}"
