"""Label -> slot in O(1), vectorized over the batch, without a host synchronization.

An open-addressing hash table on the device. A label owns a *window* of `PROBES` = 32 table positions (double hashing:
a start and an odd stride, both from a 64-bit mix of the label). Its entry may stand anywhere in the window and a lookup
reads all of it: one (B, 32) gather. So a deletion leaves no tombstone, there is nothing to rebuild, and the work of
every call is fixed. The labels themselves are not stored again: an entry is a slot number, checked against the slot's
label. Memory: 16 to 32 B per slot for the table (int32, at least 4 x slots positions) and 4 B for the way back.

A new label claims the first free position of its window; if two of one batch claim the same, the higher slot wins and
the other tries its next one, `ROUNDS` = 8 times. `insert` says who found no place, and the container then does not keep
that row: the index never disagrees with the slots. At 1/4 full, a window has no free position once in
4**32 = 2e19 insertions. Not taken: a sorted copy of the labels (O(log C) to look up, O(C) per step to maintain).
"""

import torch
from torch import Tensor, nn

from attfc.random_streams import scramble_tensor

__all__ = ["LabelIndex"]

PROBES = 32
ROUNDS = 8
FREE = -1


class LabelIndex(nn.Module):
    """Where each label stands among `slots` slots; the labels of the slots are kept by the caller.

    Buffers: `table` int32 (positions + 1), slot number or -1; `position_of_slot` int32 (slots + 1), the slot's place in
    the table. The last entry of each is a bin that takes the writes of samples that have nothing to write.
    """

    table: Tensor
    position_of_slot: Tensor

    def __init__(self, slots: int, probes: int = PROBES, rounds: int = ROUNDS) -> None:
        super().__init__()
        self.slots = slots
        self.probes = probes
        self.rounds = rounds
        self.positions = max(64, 1 << (4 * slots - 1).bit_length())  # a power of two: an odd stride visits them all
        self.register_buffer("table", torch.full((self.positions + 1,), FREE, dtype=torch.int32))
        self.register_buffer("position_of_slot", torch.full((slots + 1,), self.positions, dtype=torch.int32))

    def clear(self) -> None:
        """Forget every label."""
        self.table.fill_(FREE)
        self.position_of_slot.fill_(self.positions)

    def _window(self, labels_B: Tensor) -> Tensor:
        mixed_B = scramble_tensor(labels_B)
        stride_B = (mixed_B >> 32) | 1
        probe_P = torch.arange(self.probes, device=labels_B.device)
        return (mixed_B.unsqueeze(1) + stride_B.unsqueeze(1) * probe_P) & (self.positions - 1)

    def lookup(self, labels_B: Tensor, labels_C: Tensor) -> Tensor:
        """Return the slot of each label, int64 (B,), -1 where it is not stored."""
        slots_BP = self.table[self._window(labels_B)].long()
        match_BP = (slots_BP >= 0) & (labels_C[slots_BP.clamp_min(0)] == labels_B.unsqueeze(1))
        return torch.where(match_BP, slots_BP, FREE).amax(dim=1)

    def remove(self, slots_B: Tensor, wanted_B: Tensor) -> None:
        """Take the wanted slots out of the index, where they are in it."""
        slots_B = torch.where(wanted_B, slots_B, self.slots)
        self.table[self.position_of_slot[slots_B].long()] = FREE
        self.position_of_slot[slots_B] = self.positions

    def move(self, old_slots_B: Tensor, new_slots_B: Tensor, wanted_B: Tensor) -> None:
        """Let the entries of the wanted old slots point to the new slots instead; labels stay where they are."""
        old_slots_B = torch.where(wanted_B, old_slots_B, self.slots)
        new_slots_B = torch.where(wanted_B, new_slots_B, self.slots)
        positions_B = self.position_of_slot[old_slots_B]
        self.position_of_slot[old_slots_B] = self.positions
        self.position_of_slot[new_slots_B] = positions_B
        self.table[positions_B.long()] = new_slots_B.int()
        self._empty_bins()

    def insert(self, labels_B: Tensor, slots_B: Tensor, wanted_B: Tensor) -> Tensor:
        """Enter the wanted labels (absent so far, distinct, with distinct slots); return who found a place, bool (B,)."""
        window_BP = self._window(labels_B)
        probe_P = torch.arange(self.probes, device=labels_B.device)
        place_B = torch.full_like(slots_B, self.positions)
        pending_B = wanted_B
        for _ in range(self.rounds):
            if labels_B.device.type == "cpu" and not pending_B.any():
                break  # mostly after the first round; elsewhere looking would wait for the device
            first_B = torch.where(self.table[window_BP] == FREE, probe_P, self.probes).amin(dim=1)
            claim_B = window_BP.gather(1, first_B.clamp_max(self.probes - 1).unsqueeze(1)).squeeze(1)
            claims_B = pending_B & (first_B < self.probes)
            claim_B = torch.where(claims_B, claim_B, self.positions)
            self.table.scatter_reduce_(0, claim_B, torch.where(claims_B, slots_B, FREE).int(), "amax")
            won_B = claims_B & (self.table[claim_B] == slots_B)
            place_B = torch.where(won_B, claim_B, place_B)
            pending_B = pending_B & ~won_B
        self.position_of_slot[torch.where(wanted_B, slots_B, self.slots)] = place_B.int()
        self._empty_bins()
        return wanted_B & ~pending_B

    def _empty_bins(self) -> None:
        self.table[-1] = FREE
        self.position_of_slot[-1] = self.positions
