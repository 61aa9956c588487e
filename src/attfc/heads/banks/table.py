"""One class center for every identity, outside the device: so that a small container loses no positive, and negatives may be anybody.

The container answers two questions: what pushes a query away (negatives), and where its own identity was seen before (the stored center). With
fewer slots than identities most queries find no stored center, and the negatives are those who came last: where some people have many more
images than others, always the same ones. The table keeps the latest center of everybody. It answers the second question at any container ratio, and
`draw` gives negatives as Partial FC samples its classes: those of the batch and a random share of all others, new in each step.

Cost: N x 2D bytes (bfloat16), 1 KB per identity at D = 512: 1 GB per million. A step reads and writes the rows of its batch, B x 2D bytes each way,
and brings those drawn, S x 2D bytes; where the rows are not on the device the host waits for it. A row of zeros: not seen yet.
Source: our own; the draw is that of Partial FC (arXiv 2203.15565), without gradient and momentum.
"""

import torch
from torch import Tensor

from attfc.distributed import ALONE, Ranks
from attfc.errors import UserError
from attfc.heads.banks.kept_rows import KeptRows
from attfc.heads.banks.recent import EMPTY, last_occurrence, merge_centers, write_rows
from attfc.heads.banks.row_store import RowStore

__all__ = ["CenterTable"]


class CenterTable(KeptRows):
    """The latest center of each of N identities; everything it holds is in its `state_dict`.

    Args:
        identities: N; labels are 0 ... N - 1.
        embedding_size: D.
        place: where the rows live; `device`: they move with the module.
        dtype: of the rows. bfloat16 rounds a number by up to 0.4 %, less than one image moves a center.
        seed: names the draws.
        ranks: those that share the rows: `rows` then holds the block `shard`, and all calls take the whole batch, the same on every rank.

    Buffer: `rows` (N, D), this rank's block of it. Attribute `draws`: steps so far, the number of the next draw; saved too.

    Raises:
        UserError: no identity, or fewer than ranks.

    >>> table = CenterTable(identities=3, embedding_size=2)
    >>> table.store(torch.tensor([[0.0, 1.0]]), torch.tensor([2]))
    >>> table.lookup(torch.tensor([2, 0]))
    tensor([[0., 1.],
            [0., 0.]])
    """

    rows: Tensor

    def __init__(
        self,
        identities: int,
        embedding_size: int,
        *,
        place: RowStore | None = None,
        dtype: torch.dtype = torch.bfloat16,
        seed: int = 0,
        ranks: Ranks = ALONE,
    ) -> None:
        if identities < ranks.size:
            raise UserError(
                f"the table of centers has {identities} identities, fewer than the {ranks.size} ranks that share its rows: "
                "it needs at least one identity a rank, start fewer processes"
            )
        super().__init__(identities, place, seed, ranks)
        self.register_buffer("rows", self.place.zeros(len(self.shard), embedding_size, dtype=dtype))

    def lookup(self, labels_B: Tensor) -> Tensor:
        """Return the centers, float32 (B, D), zeros for who was not seen yet; several ranks: zeros for rows of another rank, the sum has them all.

        Args:
            labels_B: (B,) int64, 0 <= label < N.
        """
        here_B, own_B = self._own(labels_B)
        if len(self.shard) == 0:
            return torch.zeros(labels_B.shape[0], self.rows.shape[1], device=labels_B.device)
        found_BD = self.rows.index_select(0, here_B).to(labels_B.device).float()
        return found_BD if own_B is None else torch.where(own_B.to(labels_B.device).unsqueeze(1), found_BD, 0.0)

    @torch.no_grad()
    def draw(self, labels_B: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the centers of the batch's identities and of random others, as stored (S, D), and their labels, int64 (S,).

        The label is -1 for who was not seen yet. Several ranks: of those drawn, the same on all ranks, the ones of this rank's block.

        Args:
            labels_B: (B,) int64, 0 <= label < N; of all ranks.
            count: S, at least B and at most N of them are taken.
        """
        drawn_S = self.drawn(labels_B.to(self.rows.device), count)
        rows_SD = self.rows.index_select(0, drawn_S - self.shard.start)
        labels_S = torch.where(rows_SD.any(dim=1), drawn_S, EMPTY)
        return rows_SD.to(labels_B.device), labels_S.to(labels_B.device)

    @torch.no_grad()
    def store(self, centers_BD: Tensor, labels_B: Tensor) -> None:
        """Keep the centers of a batch, and end the step: the next draw is another. Several samples of one identity: the renormalized mean of theirs.

        Args:
            centers_BD: (B, D) float, unit length.
            labels_B: (B,) int64, 0 <= label < N.
        """
        here_B, own_B = self._own(labels_B)
        self.draws += 1
        if len(self.shard) == 0:
            return
        centers_BD = merge_centers(
            centers_BD, last_occurrence(labels_B)
        )  # equal rows for equal labels: write order does not matter
        write_rows(self.rows, here_B, centers_BD.to(self.rows.device, self.rows.dtype), own_B)

    def _own(self, labels_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return places in `rows`, 0 for those of another rank, and which are our own (None: all)."""
        labels_B = labels_B.to(self.rows.device)
        self.check_labels(labels_B)
        if self.ranks.size == 1:
            return labels_B, None
        own_B = (labels_B >= self.shard.start) & (labels_B < self.shard.stop)
        return torch.where(own_B, labels_B - self.shard.start, 0), own_B

    def memory_bytes(self) -> int:
        """Return the bytes of this rank's rows."""
        return self.rows.nbytes

    def extra_repr(self) -> str:
        return f"identities={self.identities}, embedding_size={self.rows.shape[1]}, place={self.place.place}"

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        whole = state_dict.get(prefix + "rows")
        if whole is not None and self.ranks.size > 1 and whole.shape[0] == self.identities:
            state_dict[prefix + "rows"] = whole = whole[self.shard.block]
        if whole is not None and (whole.shape, whole.dtype) != (self.rows.shape, self.rows.dtype):
            raise UserError(
                f"the checkpoint's table of centers holds {whole.shape[0]} identities of {whole.shape[1]} numbers ({whole.dtype}), this one "
                f"{self.rows.shape[0]} of {self.rows.shape[1]} ({self.rows.dtype}): build the head with the checkpoint's identities and size"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
