"""The dynamic class container (DCC): the most recent class centers and their labels, in a fixed number of slots.

Two policies. `fifo` (as published): a ring; an identity may fill several slots; the oldest rows are overwritten.
`unique`: one slot an identity, refreshed in place; the least recently refreshed identities are evicted.
Both find an identity's slot in O(1) (`LabelIndex`), handle a batch without a loop over its samples and without a host
synchronization, and run on the meta device. Memory for C slots of D numbers: C x (4D | 2D | D + 4) bytes of rows
(float32 | bfloat16 | int8 with one float32 scale a row) and 36 to 52 bytes per slot for label, stamp and index; nothing
depends on the number of identities. Time a step: O(B) for `fifo`; `unique` adds one top-k over C stamps.
Several ranks: each holds a block of the rows; labels, stamps and index are kept by all (at D = 512 a fiftieth of the rows' memory),
so every rank decides alone, and alike, who goes where: the evictions are those of one process, and no step waits for a vote.
Source: AttFC (arXiv 2503.06839), DCC; `unique` is our own, near the class pool of F2C (arXiv 2105.10375).
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from attfc.distributed import ALONE, Ranks, RowShard
from attfc.errors import UserError, nearest
from attfc.heads.banks.label_index import LabelIndex

__all__ = ["Container", "ContainerPolicy", "Initial", "RowDtype", "last_occurrence", "merge_centers", "write_rows"]

ContainerPolicy = Literal["fifo", "unique"]
RowDtype = Literal["float32", "bfloat16", "int8"]
Initial = Literal["empty", "random"]

EMPTY = -1  # label of a slot that holds nothing: never a negative
NOBODY = -2  # label of the random rows of `initial="random"`: a negative for everybody
_ORDER_BITS = 24  # a stamp is (step << 24) + the sample's place in its batch
_STORAGE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


def last_occurrence(labels_B: Tensor) -> Tensor:
    """Return for each sample the place in the batch of the last sample with its label, int64 (B,)."""
    sorted_B, order_B = torch.sort(labels_B, stable=True)
    return order_B[torch.searchsorted(sorted_B, labels_B, right=True) - 1]


def merge_centers(centers_BD: Tensor, last_B: Tensor) -> Tensor:
    """Give all samples of one identity the renormalized mean of their centers; single ones keep theirs bit for bit."""
    sums_BD = torch.zeros_like(centers_BD).index_add_(0, last_B, centers_BD)
    counts_B = torch.zeros_like(last_B).index_add_(0, last_B, torch.ones_like(last_B))
    return torch.where((counts_B[last_B] > 1).unsqueeze(1), normalize(sums_BD, dim=1)[last_B], centers_BD)


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


class Container(nn.Module):
    """Fixed-size store of class centers; everything it holds is in its `state_dict`.

    Args:
        slots: C >= 1; a batch may not be larger.
        embedding_size: D.
        policy: `fifo` or `unique`.
        dtype: storage of the rows; int8 keeps a float32 scale a row (row = int8 * scale).
        initial: `empty`: slots without a row are no negatives; `random` (published code): random unit rows that match
            nobody stand in until they are overwritten, drawn from torch's global generator.
        ranks: the processes that share the rows: `rows` and `row_scales` then hold the block `shard` alone, and all calls
            take the whole batch, the same on every rank.

    Raises:
        UserError: unknown option, `slots` < 1 or fewer than ranks; in `load_state_dict`: another number of slots, size, dtype or policy.

    Buffers: `rows` (C, D), `row_scales` float32 (C,) for int8 only, `labels` int64 (C,) (-1 empty, -2 random row),
    `stamps` int64 (C,) last refresh, `pointer`, `fill`, `step`, `reach`, `policy_code` int64 scalars, and the index.
    `reach` bounds the slots that may be filled; it is saved, because it decides how a pass is cut into blocks and so how its
    sums round: without it a resumed run would not be the uninterrupted one bit for bit.
    """

    rows: Tensor
    row_scales: Tensor | None
    labels: Tensor
    stamps: Tensor
    pointer: Tensor
    fill: Tensor
    step: Tensor
    reach: Tensor
    policy_code: Tensor

    def __init__(
        self,
        slots: int,
        embedding_size: int,
        *,
        policy: ContainerPolicy = "fifo",
        dtype: RowDtype = "float32",
        initial: Initial = "empty",
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        if slots < 1:
            raise UserError(f"container has {slots} slots: slots must be at least the batch size")
        if slots >= 1 << 29:
            raise UserError(f"container has {slots} slots: the label index ends at {(1 << 29) - 1}, lower slots")
        if slots < ranks.size:
            raise UserError(
                f"container has {slots} slots, fewer than the {ranks.size} ranks that share them: raise slots or start fewer processes"
            )
        for name, value, choices in (
            ("policy", policy, get_args(ContainerPolicy)),
            ("dtype", dtype, get_args(RowDtype)),
            ("initial", initial, get_args(Initial)),
        ):
            if value not in choices:
                hint = nearest(str(value), choices)
                raise UserError(f"container {name} is {value!r}: choose one of {', '.join(choices)}{hint}")
        self.slots = slots
        self.embedding_size = embedding_size
        self.policy = policy
        self.dtype = dtype
        self.initial = initial
        self.ranks = ranks
        self.shard = ranks.shard(slots)
        held = len(self.shard)
        self.register_buffer("rows", torch.zeros(held, embedding_size, dtype=_STORAGE[dtype]))
        self.register_buffer("row_scales", torch.zeros(held) if dtype == "int8" else None)
        self.register_buffer("labels", torch.empty(slots, dtype=torch.int64))
        self.register_buffer("stamps", torch.empty(slots, dtype=torch.int64))
        for name in ("pointer", "fill", "step", "reach", "policy_code"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.index = LabelIndex(slots)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Return to the initial state (also after `to_empty` from the meta device)."""
        self.labels.fill_(EMPTY)
        # Slots never refreshed are older than all others and ordered by number: no two stamps are ever equal.
        self.stamps.copy_(torch.arange(-self.slots, 0, device=self.stamps.device))
        for counter in (self.pointer, self.fill, self.step):
            counter.zero_()
        self.policy_code.fill_(get_args(ContainerPolicy).index(self.policy))
        self.index.clear()
        self.rows.zero_()
        if self.row_scales is not None:
            self.row_scales.zero_()
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

    def extra_repr(self) -> str:
        return f"slots={self.slots}, embedding_size={self.embedding_size}, policy={self.policy}, dtype={self.dtype}"

    def memory_bytes(self) -> int:
        """Return the bytes of all buffers, the index included."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def negatives(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return rows, labels and row scales (int8 only) of all slots that may be filled: views, not copies.

        Slots fill up from number 0, so the tail that no step has reached yet is left out (known on the host). Several
        ranks: of this rank's block.
        """
        filled = self._filled()
        scales = None if self.row_scales is None else self.row_scales[: len(filled)]
        return self.rows[: len(filled)], self.labels[filled.block], scales

    def _filled(self) -> RowShard:
        """Return the part of this rank's block that may be filled."""
        stop = min(max(self._high_water, self.shard.start), self.shard.stop)
        return RowShard(self.slots, self.shard.start, stop)

    @torch.no_grad()
    def lookup(self, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return who is stored, bool (B,), and their rows, float32 (B, D), zero where not stored.

        Several ranks: zero too for rows of another rank; the sum over ranks has them all. With `fifo`, the most recent row of
        the label. Rows are as stored: bfloat16 and int8 ones are nearly unit length.
        """
        slots_B = self.index.lookup(labels_B, self.labels)
        found_B = slots_B >= 0
        if len(self.shard) == 0:
            return found_B, self.rows.new_zeros(labels_B.shape[0], self.embedding_size, dtype=torch.float32)
        held_B = found_B if self.ranks.size == 1 else found_B & self._holds(slots_B)
        rows_BD = self._decode(torch.where(held_B, slots_B - self.shard.start, 0))
        return found_B, torch.where(held_B.unsqueeze(1), rows_BD, 0.0)

    def _holds(self, slots_B: Tensor) -> Tensor:
        return (slots_B >= self.shard.start) & (slots_B < self.shard.stop)

    @torch.no_grad()
    def labels_without(self, labels_B: Tensor) -> Tensor:
        """Return the labels of `negatives()` with the slots of these identities marked empty (`fifo`: the most recent)."""
        slots_B = self.index.lookup(labels_B, self.labels)
        labels_C = torch.cat([self.labels, self.labels.new_empty(1)])  # one more, for the writes of absent identities
        labels_C[torch.where(slots_B >= 0, slots_B, self.slots)] = EMPTY
        return labels_C[self._filled().block]

    def check_room(self, batch: int) -> None:
        """Raise the error of a batch that is larger than the container."""
        if batch > self.slots:
            raise UserError(
                f"container has {self.slots} slots, which is smaller than the batch ({batch}): raise slots to at least {batch}, which may be more "
                f"than there are identities, or lower the batch to {self.slots}"
            )

    @torch.no_grad()
    def enqueue(self, centers_BD: Tensor, labels_B: Tensor) -> None:
        """Store a batch of centers, as one event.

        `fifo`: sample i takes slot (pointer + i) mod C. `unique`: identities of the batch that are stored are refreshed
        first, so the batch never evicts one of its own; then each new identity takes the slot that was refreshed the
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
            slots_B, kept_B, before_B = self._take_unique_slots(labels_B, last_B, is_last_B, stamps_B)
            centers_BD = merge_centers(centers_BD, last_B)
            gained = (kept_B & is_last_B).sum() - (before_B & is_last_B).sum()
        else:
            stamps_B = (self.step << _ORDER_BITS) + place_B
            slots_B, kept_B, before_B = self._take_ring_slots(labels_B, last_B, is_last_B, place_B)
            gained = kept_B.sum() - before_B.sum()
        self._store(slots_B, centers_BD)
        self.labels[slots_B] = torch.where(kept_B, labels_B, EMPTY)
        self.stamps[slots_B] = torch.where(kept_B, stamps_B, slots_B - self.slots)
        self.fill += gained
        self._set_reach(min(self.slots, self._high_water + batch))

    def _set_reach(self, reach: int) -> None:
        """Keep the bound on the host, where it shapes views without waiting for the device, and in the state."""
        self._high_water = reach
        self.reach.fill_(reach)

    def _take_ring_slots(
        self, labels_B: Tensor, last_B: Tensor, is_last_B: Tensor, place_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the slots, who is kept (all but those without a place in the index), and which slots were filled."""
        slots_B = (self.pointer + place_B) % self.slots
        before_B = self.labels[slots_B] != EMPTY
        self.index.remove(slots_B, torch.ones_like(is_last_B))
        old_slots_B = self.index.lookup(labels_B, self.labels)
        found_B = old_slots_B >= 0
        self.index.move(old_slots_B, slots_B, found_B & is_last_B)
        placed_B = self.index.insert(labels_B, slots_B, is_last_B & ~found_B)
        self.pointer.copy_((self.pointer + place_B.shape[0]) % self.slots)
        return slots_B, (found_B | placed_B)[last_B], before_B

    def _take_unique_slots(
        self, labels_B: Tensor, last_B: Tensor, is_last_B: Tensor, stamps_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same as `_take_ring_slots`; samples of one identity share its slot."""
        old_slots_B = self.index.lookup(labels_B, self.labels)
        found_B = old_slots_B >= 0
        # Refresh before choosing whom to evict. "amax" with the lowest number leaves the absent samples' slot 0 alone.
        lowest = torch.iinfo(torch.int64).min
        self.stamps.scatter_reduce_(0, old_slots_B.clamp_min(0), torch.where(found_B, stamps_B, lowest), "amax")
        oldest_B = self.stamps.topk(labels_B.shape[0], largest=False, sorted=True).indices
        new_B = is_last_B & ~found_B
        rank_B = (new_B.cumsum(0) - 1).clamp_min(0)
        slots_B = torch.where(found_B, old_slots_B, oldest_B[rank_B])[last_B]
        before_B = self.labels[slots_B] != EMPTY
        self.index.remove(slots_B, new_B)
        placed_B = self.index.insert(labels_B, slots_B, new_B)
        return slots_B, (found_B | placed_B)[last_B], before_B

    def _store(self, slots_B: Tensor, rows_BD: Tensor) -> None:
        if len(self.shard) == 0:
            return
        scales_B = None
        if self.row_scales is not None:
            scales_B = (rows_BD.abs().amax(dim=1) / 127).clamp_min(1e-12).float()
            rows_BD = (rows_BD / scales_B.unsqueeze(1)).round()
        rows_BD = rows_BD.to(self.rows.dtype)
        ours_B = None
        if self.ranks.size > 1:
            ours_B, slots_B = self._holds(slots_B), slots_B - self.shard.start
        write_rows(self.rows, slots_B, rows_BD, ours_B)
        if self.row_scales is not None and scales_B is not None:
            write_rows(self.row_scales, slots_B, scales_B, ours_B)

    def _decode(self, slots_B: Tensor) -> Tensor:
        rows_BD = self.rows[slots_B].float()
        return rows_BD if self.row_scales is None else rows_BD * self.row_scales[slots_B].unsqueeze(1)

    def mean_age(self) -> Tensor:
        """Return the mean number of steps since the filled slots' last refresh (0: the last batch); a scalar tensor."""
        real_C = self.labels >= 0
        ages_C = self.step - (self.stamps >> _ORDER_BITS)
        return torch.where(real_C, ages_C, 0).sum() / real_C.sum().clamp_min(1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("rows", "row_scales"):  # a state of the whole container: take our block
            whole = state_dict.get(prefix + name)
            if self.ranks.size > 1 and whole is not None and whole.shape[0] == self.slots:
                state_dict[prefix + name] = whole[self.shard.block]
        rows, code = state_dict.get(prefix + "rows"), state_dict.get(prefix + "policy_code")
        if rows is not None and rows.shape != self.rows.shape:
            raise UserError(
                f"the checkpoint's container has {rows.shape[0]} slots of {rows.shape[1]} numbers, this one "
                f"{self.slots} of {self.embedding_size}: build the head with the checkpoint's slots and embedding_size"
            )
        if rows is not None and rows.dtype != self.rows.dtype:
            saved = str(rows.dtype).removeprefix("torch.")
            raise UserError(
                f"the checkpoint's container holds {saved} rows, this one {self.dtype}: "
                f"build the head with the checkpoint's container dtype"
            )
        if code is not None and code.device.type != "meta" and self.policy_code.device.type != "meta":
            saved = get_args(ContainerPolicy)[int(code)]
            if saved != self.policy:
                raise UserError(
                    f"the checkpoint's container has the policy {saved}, this one {self.policy}: "
                    f"build the head with the checkpoint's container policy"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.labels.device.type != "meta":
            self._high_water = min(max(int(self.reach), 0), self.slots)  # a stranger wrote it
