"""Rows that ranks share: this rank's block of them, read and written by their numbers among all rows.

Every rank asks for the same numbers. A read gives zeros for the rows of other ranks, so that the sum over ranks has them all; a write leaves them
out without waiting for the device. Cost: the rows asked for, wherever the block lives.

Blocks are those of torch's `Shard(0)`: rank r has rows [r n, (r + 1) n) with n = ceil(rows / ranks), the last ranks fewer or none. So a block is a
DTensor for a checkpoint, which any other number of ranks can read.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attfc.distributed import Ranks

__all__ = ["ShardedRows"]


@dataclass(frozen=True)
class ShardedRows:
    """The rows [start, stop) of `rows` that this rank holds, and how to use a tensor that is this block of them.

    >>> block = torch.tensor([[1.0], [2.0]])
    >>> ShardedRows(4, 2, 4).read(block, torch.tensor([3, 0]))  # row 0 is another rank's
    tensor([[2.],
            [0.]])
    """

    rows: int
    start: int
    stop: int

    @classmethod
    def of(cls, rows: int, ranks: Ranks) -> "ShardedRows":
        """Return this rank's share of `rows` rows."""
        each = -(-rows // ranks.size)
        return cls(rows, min(ranks.rank * each, rows), min((ranks.rank + 1) * each, rows))

    def __len__(self) -> int:
        """Return how many rows this rank holds."""
        return self.stop - self.start

    @property
    def block(self) -> slice:
        """The own rows, to index all of them."""
        return slice(self.start, self.stop)

    def locate(self, numbers_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the places in the block, 0 for rows that are not in it, and which are; a number below 0 is no row."""
        ours_B = (numbers_B >= self.start) & (numbers_B < self.stop)
        return torch.where(ours_B, numbers_B - self.start, 0), ours_B

    def select(self, numbers_X: Tensor) -> Tensor:
        """Return those of the numbers whose rows are in this block; several ranks: waits for the device."""
        if len(self) == self.rows:
            return numbers_X
        return numbers_X[(numbers_X >= self.start) & (numbers_X < self.stop)]

    def read(self, block_NX: Tensor, numbers_B: Tensor) -> Tensor:
        """Return rows as float32 (float64 stays) on the device of the numbers, (B, X); zeros for those that are not in this block."""
        wide = torch.promote_types(block_NX.dtype, torch.float32)
        if len(self) == 0:
            return torch.zeros(numbers_B.shape[0], block_NX.shape[1], dtype=wide, device=numbers_B.device)
        place_B, ours_B = self.locate(numbers_B)
        found_BX = block_NX.index_select(0, place_B.to(block_NX.device)).to(numbers_B.device, wide)
        return torch.where(ours_B.unsqueeze(1), found_BX, 0.0)

    def write(self, block_NX: Tensor, numbers_B: Tensor, new_BX: Tensor) -> None:
        """Write those of the rows that are in this block, without waiting for the device; equal numbers have equal rows, and all numbers are rows.

        To leave out the others would wait for it to count them. So their writes repeat one that is ours, and if none is, they write back what
        is there.
        """
        if len(self) == 0:
            return
        place_B, ours_B = self.locate(numbers_B.to(block_NX.device))
        new_BX = new_BX.to(block_NX)
        if len(self) < self.rows:
            # An index of one element: one without dimensions is read by the host.
            first, any_ours = ours_B.int().argmax().view(1), ours_B.any()
            place = torch.where(any_ours, place_B[first], 0)
            place_B = torch.where(ours_B, place_B, place)
            wide_B = ours_B.view(-1, *[1] * (new_BX.dim() - 1))
            new_BX = torch.where(wide_B, new_BX, torch.where(any_ours, new_BX[first], block_NX[place]))
        block_NX[place_B] = new_BX

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
