"""The dynamic class container (DCC): the most recent class centers and their labels, in a fixed number of slots.

Two policies. `fifo` (as published): a ring; an identity may fill several slots; the oldest rows are overwritten.
`unique`: one slot per identity, refreshed in place; the least recently refreshed identities are evicted.
Both find an identity's slot in O(1) (`LabelIndex`), handle a batch without a loop over its samples and without a host
synchronization, and run on the meta device. Memory for C slots of D numbers: C x (4D | 2D | D + 4) bytes of rows
(float32 | bfloat16 | int8 with one float32 scale per row) and 36 to 52 bytes per slot for label, stamp and index; nothing
depends on the number of identities. Time per step: O(B) for `fifo`; `unique` adds one top-k over C stamps.
Several ranks: each holds a block of the rows; labels, stamps and index are kept by all (at D = 512 a fiftieth of the rows' memory),
so every rank decides alone, and alike, who goes where: the evictions are those of one process, and no step waits for a vote.
Source: AttFC (arXiv 2503.06839), DCC; `unique` is our own, near the class pool of F2C (arXiv 2105.10375).
"""

from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from attfc.config.option import Option
from attfc.config.profiles import USUAL_SHARE
from attfc.errors import UserError
from attfc.heads.banks.bank import Bank, Batch, Negatives, Recalled, last_occurrence, merge_centers
from attfc.heads.banks.label_index import LabelIndex
from attfc.heads.banks.sharded_rows import ShardedRows
from attfc.heads.checked import checked
from attfc.heads.memory import block_bytes
from attfc.heads.options import InitialRows, RowType, SlotCount, SlotShare
from attfc.losses.streaming_pass import EMPTY

__all__ = ["RecentCenters"]

NOBODY = -2  # label of the random rows of `initial="random"`: a negative for everybody
_POLICIES = ("fifo", "unique")
_ORDER_BITS = 24  # a stamp is (step << 24) + the sample's place in its batch


class RecentCenters(Bank):
    """Fixed-size store of class centers; everything it holds is in its `state_dict`.

    Args:
        share, count: slots, as a share of the identities or a number; default: a tenth of the identities. At least the batch size; there may
            be more slots than identities.
        policy: `fifo` or `unique`.
        dtype: storage of the rows; all arithmetic is float32. int8 keeps a float32 scale per row (row = int8 * scale).
        initial: `empty`: slots without a row are not negatives. `random` (published code): they hold random unit rows that match
            nobody until they are overwritten, drawn from torch's global generator.

    Raises:
        UserError: unknown option, fewer than 1 slot or than ranks; in `load_state_dict`: another number of slots, size, dtype or policy.

    Buffers: `rows` (C, D), and for int8 `row_scales` float32 (C,), of both this rank's block. `labels` int64 (C,) (-1 empty, -2 random row),
    `stamps` int64 (C,) last refresh. `pointer`, `fill`, `step`, `reach`, `policy_code` int64 scalars, and the index.
    `reach` bounds the slots that may be filled. It decides how a pass is cut into blocks and so how its sums round. It is saved, so that
    a resumed run equals the uninterrupted one bit for bit.
    """

    state_name = "container"
    shown = ("slots", "embedding_size", "policy", "dtype")
    rows: Tensor
    row_scales: Tensor | None
    labels: Tensor
    stamps: Tensor
    pointer: Tensor
    fill: Tensor
    step: Tensor
    reach: Tensor
    policy_code: Tensor

    @checked(slots="count=...", embedding_size="AttFC(D, ...)", ranks="AttFC(..., ranks=...)")
    def __init__(
        self,
        share: SlotShare = None,
        count: SlotCount = None,
        policy: Annotated[
            Literal["fifo", "unique"],
            Option(
                "what a new center replaces: the oldest one (fifo), or its identity's own, where that has a slot (unique)"
            ),
        ] = "fifo",
        dtype: RowType = "float32",
        initial: InitialRows = "empty",
    ) -> None:
        super().__init__(share, count)
        self.policy = policy
        self.dtype = dtype
        self.initial = initial
        self.one_per_identity = policy == "unique"

    def _usual(self, identities: int) -> int:
        return max(1, round(USUAL_SHARE * identities))

    def _take_memory(self, identities: int | None, images: int | None) -> None:
        slots = self.slots = self.size
        if slots >= 1 << 29:
            raise UserError(f"container has {slots} slots: the label index ends at {(1 << 29) - 1}, lower count")
        if slots < self.ranks.size:
            raise UserError(
                f"container has {slots} slots, fewer than the {self.ranks.size} ranks that share them: raise count or start fewer processes"
            )
        self.shard = ShardedRows.of(slots, self.ranks)
        held = len(self.shard)
        self.register_buffer("rows", torch.zeros(held, self.embedding_size, dtype=getattr(torch, self.dtype)))
        self.register_buffer("row_scales", torch.zeros(held) if self.dtype == "int8" else None)
        self.register_buffer("labels", torch.empty(slots, dtype=torch.int64))
        self.register_buffer("stamps", torch.empty(slots, dtype=torch.int64))
        for name in ("pointer", "fill", "step", "reach", "policy_code"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.index = LabelIndex(slots)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Return to the initial state (also after `to_empty` from the meta device)."""
        for buffer in self.buffers(recurse=False):
            buffer.zero_()
        self.labels.fill_(EMPTY)
        # Slots never refreshed are older than all others and ordered by number: no two stamps are ever equal.
        self.stamps.copy_(torch.arange(-self.slots, 0, device=self.stamps.device))
        self.policy_code.fill_(_POLICIES.index(self.policy))
        self.index.clear()
        self._set_reach(0)
        if self.initial == "random":
            block = 1 << 16  # bounds the float32 draft of a container stored in fewer bits
            for start in range(0, self.slots, block):
                part = torch.arange(start, min(start + block, self.slots), device=self.rows.device)
                draft = torch.randn(len(part), self.embedding_size, device=self.rows.device)
                self._store(part, normalize(draft, dim=1))  # all ranks draw all rows: one process has the same
            self.labels.fill_(NOBODY)
            self.fill.fill_(self.slots)
            self._set_reach(self.slots)

    def negatives(self, every_label_B: Tensor | None = None) -> Negatives:
        """Return rows, labels and row scales (int8 only) of all slots that may be filled: views, not copies.

        Slots fill up from number 0, so the tail that no step has reached yet is left out (known on the host). Several
        ranks: of this rank's block.
        """
        stop = min(max(self._high_water, self.shard.start), self.shard.stop)
        filled = ShardedRows(self.slots, self.shard.start, stop)
        scales = None if self.row_scales is None else self.row_scales[: len(filled)]
        return Negatives(self.rows[: len(filled)], self.labels[filled.block], scales)

    @torch.no_grad()
    def lookup(self, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return who is stored, bool (B,), and their rows, float32 (B, D), zero where not stored.

        Several ranks: zero too for rows of another rank; the sum over ranks has them all. With `fifo`, the most recent row of
        the label. Rows are as stored: bfloat16 and int8 ones are nearly unit length.
        """
        slots_B = self.index.lookup(labels_B, self.labels)
        rows_BD = self.shard.read(self.rows, slots_B)
        if self.row_scales is not None:
            rows_BD = rows_BD * self.shard.read(self.row_scales.unsqueeze(1), slots_B)
        return slots_B >= 0, rows_BD

    def recall(self, batch: Batch) -> Recalled:
        """Return the stored centers of this rank's samples; with `fifo` the most recent ones."""
        found_B, rows_BD = self.lookup(batch.every_label_B)
        return Recalled(self.ranks.own(found_B), normalize(self.ranks.sum_own(rows_BD), dim=1))

    def update(self, batch: Batch, every_new_BD: Tensor, recalled: Recalled) -> None:
        """Enqueue the new centers."""
        self.enqueue(every_new_BD, batch.every_label_B)

    def check_room(self, batch: int) -> None:
        """Raise the error of a batch that is larger than the container."""
        if batch > self.slots:
            raise UserError(
                f"container has {self.slots} slots, which is smaller than the batch ({batch}): raise count to at least {batch} (it may exceed the "
                f"identities), or lower the batch to {self.slots}"
            )

    @torch.no_grad()
    def enqueue(self, centers_BD: Tensor, labels_B: Tensor) -> None:
        """Store a batch of centers, as one event.

        `fifo`: sample i takes slot (pointer + i) mod C. `unique`: identities of the batch that are stored are refreshed
        first, so the batch never evicts one of its own. Then each new identity takes the slot that was refreshed the
        longest ago (empty ones first). Several samples of one identity: the renormalized mean of their centers. Within
        a batch, recency follows the last sample of each identity.

        Args:
            centers_BD: (B, D) float, unit length; B <= slots.
            labels_B: (B,) int64, >= 0; not modified.

        Raises:
            UserError: the batch is larger than the container.
        """
        batch = labels_B.shape[0]
        self.check_room(batch)
        place_B = torch.arange(batch, device=labels_B.device)
        last_B = last_occurrence(labels_B)
        is_last_B = last_B == place_B
        self.step += 1
        if self.policy == "unique":
            stamps_B = (self.step << _ORDER_BITS) + last_B
            old_slots_B = self.index.lookup(labels_B, self.labels)
            found_B = old_slots_B >= 0
            # Refresh before choosing whom to evict. "amax" with the lowest number leaves the absent samples' slot 0 alone.
            lowest = torch.iinfo(torch.int64).min
            self.stamps.scatter_reduce_(0, old_slots_B.clamp_min(0), torch.where(found_B, stamps_B, lowest), "amax")
            oldest_B = self.stamps.topk(batch, largest=False, sorted=True).indices
            new_B = is_last_B & ~found_B
            rank_B = (new_B.cumsum(0) - 1).clamp_min(0)
            slots_B = torch.where(found_B, old_slots_B, oldest_B[rank_B])[last_B]
            takes_B = is_last_B  # samples of one identity share its slot
            filled_B = self.labels[slots_B] != EMPTY
            self.index.remove(slots_B, new_B)
            centers_BD = merge_centers(centers_BD, last_B)
        else:
            stamps_B = (self.step << _ORDER_BITS) + place_B
            slots_B = (self.pointer + place_B) % self.slots
            takes_B = torch.ones_like(is_last_B)
            filled_B = self.labels[slots_B] != EMPTY
            self.index.remove(slots_B, takes_B)
            old_slots_B = self.index.lookup(labels_B, self.labels)
            found_B = old_slots_B >= 0
            self.index.move(old_slots_B, slots_B, found_B & is_last_B)
            new_B = is_last_B & ~found_B
            self.pointer.copy_((self.pointer + batch) % self.slots)
        placed_B = self.index.insert(labels_B, slots_B, new_B)
        kept_B = (found_B | placed_B)[last_B]  # all but those without a place in the index
        self._store(slots_B, centers_BD)
        self.labels[slots_B] = torch.where(kept_B, labels_B, EMPTY)
        self.stamps[slots_B] = torch.where(kept_B, stamps_B, slots_B - self.slots)
        self.fill += (kept_B & takes_B).sum() - (filled_B & takes_B).sum()
        self._set_reach(min(self.slots, self._high_water + batch))

    def _set_reach(self, reach: int) -> None:
        """Keep the bound on the host, where it shapes views without waiting for the device, and in the state."""
        self._high_water = reach
        self.reach.fill_(reach)

    def _store(self, slots_B: Tensor, rows_BD: Tensor) -> None:
        if self.row_scales is not None:
            scales_B = (rows_BD.abs().amax(dim=1) / 127).clamp_min(1e-12).float()
            rows_BD = (rows_BD / scales_B.unsqueeze(1)).round()
            self.shard.write(self.row_scales, slots_B, scales_B)
        self.shard.write(self.rows, slots_B, rows_BD)

    def mean_age(self) -> Tensor:
        """Return the mean number of steps since the filled slots' last refresh (0: the last batch); a scalar tensor."""
        real_C = self.labels >= 0
        ages_C = self.step - (self.stamps >> _ORDER_BITS)
        return torch.where(real_C, ages_C, 0).sum() / real_C.sum().clamp_min(1)

    def statistics(self) -> dict[str, float]:
        """Return `fill`, the share of the slots, and `center_age`, the mean age of the filled ones in batches."""
        if self.fill.device.type == "meta":
            return {}
        return {"fill": float(self.fill) / self.slots, "center_age": float(self.mean_age())}

    def footprint(self, everyone: int, block_mib: float, cached: bool) -> tuple[float, float, int]:
        """Rows, labels, stamps and index; of a step a block's logits, and its rows where they are not multiplied as they are stored."""
        row_bytes = everyone * 8.0 + (0 if self.dtype == "float32" else 4 * self.embedding_size)
        working = block_bytes(len(self.shard), row_bytes, block_mib, cached) + self.slots * 16
        return self.memory_bytes(), working, len(self.shard)

    def row_shards(self) -> dict[str, ShardedRows]:
        """This rank's block of the rows and of their scales."""
        return dict.fromkeys(["rows"] if self.row_scales is None else ["rows", "row_scales"], self.shard)

    def _misfit(self, name: str, saved: Tensor, own: Tensor) -> str:
        if saved.shape != own.shape:
            return (
                f"the checkpoint's container has {saved.shape[0]} slots of {saved.shape[1]} numbers, this one "
                f"{self.slots} of {self.embedding_size}: build the head with the checkpoint's slots and embedding_size"
            )
        return (
            f"the checkpoint's container holds {str(saved.dtype).removeprefix('torch.')} rows, this one {self.dtype}: "
            f"build the head with the checkpoint's container dtype"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        code = state_dict.get(prefix + "policy_code")
        if code is not None and code.device.type != "meta" and self.policy_code.device.type != "meta":
            saved = _POLICIES[int(code)]
            if saved != self.policy:
                raise UserError(
                    f"the checkpoint's container has the policy {saved}, this one {self.policy}: "
                    f"build the head with the checkpoint's container policy"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.labels.device.type != "meta":
            self._high_water = min(max(int(self.reach), 0), self.slots)  # a stranger wrote it
