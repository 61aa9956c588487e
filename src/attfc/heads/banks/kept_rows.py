"""What the table of centers and the memory of images have in common: rows that live where a `RowStore` says, and draws of identities."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attfc.errors import UserError
from attfc.heads.banks.bank import Bank, Negatives
from attfc.heads.banks.draw import draw_classes
from attfc.heads.banks.row_store import DrawnRows, RowPlace, RowStore
from attfc.heads.banks.rows_ahead import Ahead, Arriving, to_device, to_host
from attfc.heads.banks.sharded_rows import ShardedRows
from attfc.heads.memory import block_bytes

__all__ = ["KeptRows"]


class KeptRows(DrawnRows, Bank):
    """Base of banks that keep all identities, whose buffers, all of them, live in `place`, and from whose identities each step draws `size`.

    Args:
        place, folder: of `RowStore`.
        seed: names the draws.

    A kind says what a step reads and writes, where the rows live: `read_stored`, `read_drawn`, `write`. In host memory or a file all three may be
    under way in a thread: then `settle` before the buffers are looked at (`state_dict` does).
    """

    identities: int

    def __init__(
        self, share: float | None, count: int | None, place: RowPlace, folder: str | Path | None, seed: int
    ) -> None:
        super().__init__(share, count)
        self.store = RowStore(place, folder)
        self.place = place
        self.seed = seed
        self.ahead: Ahead = {}

    def _take_memory(self, identities: int | None, images: int | None) -> None:
        if identities is None:
            raise UserError(f"{type(self).__name__} keeps a row per identity: give the head identities=N")
        self.identities = identities
        self.shard = ShardedRows.of(identities, self.ranks)

    def read_stored(self, device: torch.device, labels_B: Tensor, positions_B: Tensor | None) -> tuple[Tensor, ...]:
        """Return what is kept of these samples, on the device of their numbers, where the rows live; to be taken to `device`."""
        raise NotImplementedError

    def read_drawn(self, device: torch.device, labels_B: Tensor, number: int) -> tuple[Tensor, ...]:
        """Return the rows of draw `number` beside a batch with these labels, and their labels; as `read_stored`."""
        raise NotImplementedError

    def write(self, *kept: Tensor) -> None:
        """Keep what a step has made, where the rows live."""
        raise NotImplementedError

    def bring(
        self, labels_B: Tensor, positions_B: Tensor | None, device: torch.device, stored: bool, drawn: bool
    ) -> Ahead:
        """Start to bring what the batch with these labels and positions, known to the host, will ask for; nothing where rows are on the device."""
        if self.place == "device":
            return {}
        number = self.draws
        ahead: Ahead = {}
        if stored:
            ahead["stored"] = self.store.ahead(
                lambda: to_device(self.read_stored(device, labels_B, positions_B), device), device
            )
        if drawn:
            ahead["drawn"] = self.store.ahead(
                lambda: to_device(self.read_drawn(device, labels_B, number), device), device
            )
        return ahead

    @torch.no_grad()
    def negatives(self, every_label_B: Tensor) -> Negatives:
        """Return the rows of the batch's identities and of random others; who was not seen yet has the label -1.

        Several ranks: of those drawn, the same on all ranks, the ones of this rank's block.
        """
        return Negatives(*self._drawn(every_label_B))

    def settle(self) -> None:
        """Wait until everything is written that was to be kept."""
        self.store.thread.settle()

    def _stored(self, labels_B: Tensor, positions_B: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return `read_stored` on the device of the labels: as brought, or read now."""

        def read(home_B: Tensor) -> tuple[Tensor, ...]:
            home_positions_B = None if positions_B is None else positions_B.to(home_B.device)
            return self.read_stored(labels_B.device, home_B, home_positions_B)

        return self._rows("stored", labels_B, read)

    def _drawn(self, labels_B: Tensor) -> tuple[Tensor, ...]:
        """Return `read_drawn` on the device of the labels: as brought, or read now."""
        return self._rows("drawn", labels_B, lambda home_B: self.read_drawn(labels_B.device, home_B, self.draws))

    def _rows(self, name: str, labels_B: Tensor, read: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return what was brought, or read it now, after the last writes, by labels where the rows live; on the device of the labels."""
        if name in self.ahead:
            sent: Arriving = self.ahead.pop(name).result()
        else:
            self.settle()
            sent = to_device(read(labels_B.to(next(self.buffers()).device)), labels_B.device)
        return sent.here()

    def _apart(self, labels_B: Tensor) -> bool:
        """Whether the rows live on another device."""
        return labels_B.device != next(self.buffers()).device

    def _keep(self, labels_B: Tensor, *kept: Tensor) -> None:
        """End the step: `write` now, or where the rows are not on the device, when a copy has come."""
        self.draws += 1
        if self._apart(labels_B):
            copy = to_host((labels_B, *kept))
            self.store.thread.later(lambda: self._write_copy(copy))
        else:
            self.settle()
            self.write(labels_B, *kept)

    def _write_copy(self, copy: Arriving) -> None:
        with torch.no_grad():
            self.write(*copy.landed())

    def _draw(self, labels_B: Tensor, number: int) -> Tensor:
        """Return the identities of a draw, int64 (S,), ascending: the batch's and random others, of this rank's block.

        Over all ranks B + `size` of them: `size` others, and one more for each sample that repeats an identity of the batch.
        """
        count = min(self.size + len(labels_B), self.identities)
        return self.shard.select(draw_classes(labels_B, self.identities, count, self.seed, number))

    def __getstate__(self) -> dict[str, Any]:
        """For copies: without what is under way."""
        self.settle()
        return {**self.__dict__, "ahead": {}}

    def _save_to_state_dict(self, *args: Any) -> None:
        self.settle()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args: Any) -> None:
        self.settle()
        super()._load_from_state_dict(*args)

    def footprint(self, everyone: int, block_mib: float, cached: bool) -> tuple[float, float, int]:
        """All rows, where they count; the rows drawn and what finds them are there for the step alone."""
        drawn = -(-self.size // self.ranks.size) + -(-everyone // self.ranks.size)
        working = block_bytes(drawn, everyone * 8.0 + 4 * self.embedding_size, block_mib, cached)
        working += drawn * 2 * self.embedding_size + self.size * 40
        return self.memory_bytes() if self.store.counts(cached) else 0, working, drawn
