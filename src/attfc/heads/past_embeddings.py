"""Past embeddings as further samples for the trained centers, corrected for how far the centers have moved since (BroadFace).

A batch shows a classifier few of its identities. Embeddings of past steps show it more, but the network has changed since they were made. How it
changed is read from the centers, which follow it: an embedding x kept when its center was w becomes x + |x| / |w| (w' - w) under the center w' of
today. The centers learn from these and from the batch; the network from its batch alone. Kept is x / |x| - w / |w|, with |w|: the direction asked for
is that of its sum with w' / |w|.
Cost: M (4 D + 16) B for M embeddings, and the products of a batch that is larger by M. One process: nothing is exchanged.
Source: BroadFace (arXiv 2008.06674, ECCV 2020), section 3, and its published code (kakaoenterprise/BroadFace). Differs: half the memory, as said.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from attfc.errors import UserError

__all__ = ["PastEmbeddings"]


class PastEmbeddings(nn.Module):
    """The last `count` embeddings, first in, first out; all that it holds is in its `state_dict`.

    Args:
        count: M.
        embedding_size: D.

    Buffers: `rows` (M, D) float32, `lengths` (M,) of the centers and `norms` (M,) of the embeddings at their time, `labels` int64 (M,).
    Attribute `seen`: embeddings kept so far; saved too.
    """

    rows: Tensor
    lengths: Tensor
    norms: Tensor
    labels: Tensor

    def __init__(self, count: int, embedding_size: int) -> None:
        super().__init__()
        self.count = count
        self.seen = 0
        self.register_buffer("rows", torch.zeros(count, embedding_size))
        self.register_buffer("lengths", torch.zeros(count))
        self.register_buffer("norms", torch.zeros(count))
        self.register_buffer("labels", torch.zeros(count, dtype=torch.int64))

    @torch.no_grad()
    def recalled(self, weight_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is kept: embeddings of unit length under the centers of today (P, D), labels int64 (P,), norms (P,)."""
        filled = slice(min(self.seen, self.count))
        labels_P = self.labels[filled]
        rows_PD = self.rows[filled] + weight_ND[labels_P].to(self.rows.dtype) / self.lengths[filled, None]
        return normalize(rows_PD, dim=1), labels_P, self.norms[filled]

    @torch.no_grad()
    def keep(self, query_BD: Tensor, labels_B: Tensor, norms_B: Tensor, weight_ND: Tensor) -> None:
        """Keep a batch of unit embeddings, in place of the oldest.

        Raises:
            UserError: the batch is larger than M.
        """
        batch = len(labels_B)
        if batch > self.count:
            raise UserError(
                f"head.past={self.count} is smaller than the batch ({batch}): raise it to {batch} or more, or set it to 0"
            )
        places_B = (self.seen + torch.arange(batch, device=labels_B.device)) % self.count
        center_BD = weight_ND[labels_B].to(query_BD.dtype)
        lengths_B = center_BD.norm(dim=1).clamp_min(1e-12)
        query_BD = query_BD - center_BD / lengths_B[:, None]
        for kept, new_B in (
            (self.rows, query_BD),
            (self.lengths, lengths_B),
            (self.norms, norms_B),
            (self.labels, labels_B),
        ):
            kept[places_B] = new_B.to(kept.dtype)
        self.seen += batch

    def get_extra_state(self) -> Tensor:
        """Return how many were kept so far."""
        return torch.tensor(self.seen, dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take up a saved number."""
        self.seen = int(state)
