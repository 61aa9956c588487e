"""Rows that ranks share: this rank's block of them, read and written by their numbers among all rows.

Every rank asks for the same numbers. A read gives zeros for the rows of other ranks, so that the sum over ranks has them all; a write leaves them
out without waiting for the device. Cost: the rows asked for, wherever the block lives.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from attfc.distributed import Ranks, RowShard

__all__ = ["ShardedRows", "write_rows"]


class ShardedRows(RowShard):
    """The rows [start, stop) of `rows` that this rank holds, and how to use a tensor that is this block of them.

    >>> block = torch.tensor([[1.0], [2.0]])
    >>> ShardedRows(4, 2, 4).read(block, torch.tensor([3, 0]))  # row 0 is another rank's
    tensor([[2.],
            [0.]])
    """

    @classmethod
    def of(cls, rows: int, ranks: Ranks) -> "ShardedRows":
        """Return this rank's share of `rows` rows."""
        shard = ranks.shard(rows)
        return cls(shard.rows, shard.start, shard.stop)

    def locate(self, numbers_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the places in the block, 0 for rows that are not in it, and which are; a number below 0 is no row."""
        ours_B = (numbers_B >= self.start) & (numbers_B < self.stop)
        return torch.where(ours_B, numbers_B - self.start, 0), ours_B

    def read(self, block_NX: Tensor, numbers_B: Tensor) -> Tensor:
        """Return rows as float32 on the device of the numbers, (B, X); zeros for those that are not in this block."""
        if len(self) == 0:
            return torch.zeros(numbers_B.shape[0], block_NX.shape[1], device=numbers_B.device)
        place_B, ours_B = self.locate(numbers_B)
        found_BX = block_NX.index_select(0, place_B.to(block_NX.device)).to(numbers_B.device).float()
        return torch.where(ours_B.unsqueeze(1), found_BX, 0.0)

    def write(self, block_NX: Tensor, numbers_B: Tensor, new_BX: Tensor) -> None:
        """Write those of the rows that are in this block; equal numbers have equal rows, and all numbers are rows."""
        if len(self) == 0:
            return
        place_B, ours_B = self.locate(numbers_B.to(block_NX.device))
        write_rows(block_NX, place_B, new_BX.to(block_NX), None if len(self) == self.rows else ours_B)

    def gather(self, block_NX: Tensor, ranks: Ranks) -> Tensor:
        """Return all rows, on every rank; all ranks call it. Moves bytes, so any type of rows."""
        if ranks.size == 1:
            return block_NX
        missing = -(-self.rows // ranks.size) - len(block_NX)
        padded_NX = torch.cat([block_NX, block_NX.new_zeros(missing, *block_NX.shape[1:])])
        every_X = ranks.gather(padded_NX.detach().contiguous().view(torch.uint8))
        return every_X.view(block_NX.dtype)[: self.rows]

    def take_block(self, state: Mapping[str, Tensor], name: str) -> Tensor | None:
        """Return this rank's block of a saved tensor, which may be the block itself or all rows; None where it was not saved."""
        saved = state.get(name)
        return saved[self.block] if saved is not None and saved.dim() and len(saved) == self.rows else saved


def write_rows(rows_CX: Tensor, slots_B: Tensor, new_BX: Tensor, ours_B: Tensor | None = None) -> None:
    """Write rows in place, those of `ours_B` alone (None: all), without waiting for the device.

    To leave out the others would wait for it to count them. So their writes repeat one that is ours, and if none is, they write back what
    is there; `slots_B` may be anything where `ours_B` is false.
    """
    if ours_B is not None:
        # An index of one element: one without dimensions is read by the host.
        first, any_ours = ours_B.int().argmax().view(1), ours_B.any()
        slot = torch.where(any_ours, slots_B[first], 0)
        slots_B = torch.where(ours_B, slots_B, slot)
        wide_B = ours_B.view(-1, *[1] * (new_BX.dim() - 1))
        new_BX = torch.where(wide_B, new_BX, torch.where(any_ours, new_BX[first], rows_CX[slot]))
    rows_CX[slots_B] = new_BX
