"""Trained rows for the identities with the most images, beside the centers of all others, which are made of embeddings: one softmax over both.

A row learns from each image of its identity and from all others that it is confused with. Who has a hundred images trains a row well, and a
mean of embeddings is not as discriminative; who has three does not, and a mean is better. All rows take part in every step.
Cost: T x D x 4 B three times (weight, gradient, momentum), 8 B per row for whose it is, and two or three matrix products of B x T x D.
Several ranks: each holds a block of the rows and their momentum, and a step sums up B x D numbers more, the rows of the batch, and their gradient.
Not taken: rows drawn for a step as in Partial FC (with a tenth of them the gain is gone); membership that is earned and lost in training.
Source: our own; rows as in ArcFace (arXiv 1801.07698).
"""

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from attfc.distributed import Ranks
from attfc.heads.banks.bank import Trained, find_sorted
from attfc.heads.banks.row_store import draw_rows
from attfc.heads.banks.sharded_rows import ShardedRows

__all__ = ["FrequentRows"]


class FrequentRows(nn.Module):
    """A trained row for each of the `count` identities with the most images, ties by label; fewer where there are fewer.

    Args:
        count: T.
        image_counts: (N,) whole numbers, the images of each identity.
        embedding_size: D.
        ranks: the processes that share the rows.

    Parameter `weight` (T, D) float32, of which this rank has the block `shard`, drawn as that of `FullFC`. Buffer `labels` (T,) int64, ascending:
    whose they are.

    >>> FrequentRows(2, [3, 9, 1, 9], embedding_size=8, ranks=Ranks()).labels
    tensor([1, 3])
    """

    labels: Tensor

    def __init__(self, count: int, image_counts: npt.ArrayLike, embedding_size: int, ranks: Ranks) -> None:
        super().__init__()
        most_T = torch.as_tensor(image_counts).argsort(descending=True, stable=True)[:count]
        self.ranks = ranks
        self.shard = ShardedRows.of(len(most_T), ranks)
        self.weight = nn.Parameter(torch.zeros(len(self.shard), embedding_size))
        self.register_buffer("labels", most_T.sort().values.to(self.weight.device))
        draw_rows(self.weight, self.shard)

    def among(self, labels_B: Tensor) -> Tensor:
        """Return who of these has a trained row, on any rank: (B,) bool."""
        return find_sorted(self.labels, labels_B)[1]

    def read(self, labels_B: Tensor) -> Tensor:
        """Return rows as they are, (B, D), with gradient; zeros for who has none, and for those of another rank."""
        place_B, found_B = find_sorted(self.labels, labels_B)
        rows_TD = self._weight()
        read_BD = self.shard.read(rows_TD, torch.where(found_B, place_B, -1))
        # A rank without rows has its part in backward too: a gradient that it sums up with the others.
        return read_BD if len(self.shard) else read_BD + rows_TD.sum()

    def all(self) -> Trained:
        """Return this rank's rows at unit length, with gradient."""
        return Trained(normalize(self._weight(), dim=1), self.labels[self.shard.block], self.labels)

    def _weight(self) -> Tensor:
        """Return the rows; several ranks: with the gradient of the mean over all of them."""
        rows_TD = self.weight.view_as(self.weight)
        if self.ranks.size > 1 and rows_TD.requires_grad:
            rows_TD.register_hook(lambda gradient: gradient / self.ranks.size)  # type: ignore[no-untyped-call]
        return rows_TD
