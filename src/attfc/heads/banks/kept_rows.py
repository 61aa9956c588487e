"""What the table of centers and the memory of images have in common: rows that live where a `RowStore` says, and draws of identities."""

from pathlib import Path

import torch
from torch import Tensor

from attfc.errors import UserError
from attfc.heads.banks.bank import Bank
from attfc.heads.banks.draw import draw_classes
from attfc.heads.banks.row_store import DrawnRows, RowPlace, RowStore
from attfc.heads.banks.sharded_rows import ShardedRows
from attfc.heads.memory import block_bytes

__all__ = ["KeptRows"]


class KeptRows(DrawnRows, Bank):
    """Base of banks that keep all identities, whose buffers, all of them, live in `place`, and from whose identities each step draws `size`.

    Args:
        place, folder: of `RowStore`.
        seed: names the draws.
    """

    identities: int

    def __init__(
        self, share: float | None, count: int | None, place: RowPlace, folder: str | Path | None, seed: int
    ) -> None:
        super().__init__(share, count)
        self.store = RowStore(place, folder)
        self.place = place
        self.seed = seed

    def _take_memory(self, identities: int | None, images: int | None) -> None:
        if identities is None:
            raise UserError(f"{type(self).__name__} keeps a row per identity: give the head identities=N")
        self.identities = identities
        self.shard = ShardedRows.of(identities, self.ranks)

    def _drawn(self, every_label_B: Tensor, device: torch.device) -> Tensor:
        """Return the identities of this step's draw, int64 (S,) on that device, ascending: the batch's and random others, of this rank's block.

        Over all ranks B + `size` of them: `size` others, and one more for each sample that repeats an identity of the batch.
        """
        count = min(self.size + len(every_label_B), self.identities)
        return self.shard.select(draw_classes(every_label_B.to(device), self.identities, count, self.seed, self.draws))

    def footprint(self, everyone: int, block_mib: float, cached: bool) -> tuple[float, float, int]:
        """All rows, where they count; the rows drawn and what finds them are there for the step alone."""
        drawn = -(-self.size // self.ranks.size) + -(-everyone // self.ranks.size)
        working = block_bytes(drawn, everyone * 8.0 + 4 * self.embedding_size, block_mib, cached)
        working += drawn * 2 * self.embedding_size + self.size * 40
        return self.memory_bytes() if self.store.counts(cached) else 0, working, drawn
