"""A bank: what it remembers of class centers, which of them are this step's negatives, and what a step changes in it.

A head binds a bank to its embedding size, identities and ranks; only then it takes memory. In a step the head asks it three things, each of the
samples of all ranks: `recall`, what is stored of their identities; `negatives`, the rows that the loss compares with; `update`, keep their centers.
What a bank costs says each kind, in numbers too (`memory`).
"""

from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from attfc.config.profiles import usual_negatives
from attfc.distributed import ALONE, Ranks
from attfc.errors import UserError
from attfc.heads.banks.rows_ahead import Ahead
from attfc.heads.banks.sharded_rows import ShardedRows
from attfc.losses.streaming_pass import EMPTY

__all__ = [
    "Bank",
    "Batch",
    "Negatives",
    "Recalled",
    "Trained",
    "find_sorted",
    "last_occurrence",
    "merge_centers",
]


@dataclass(frozen=True)
class Batch:
    """A step as center rules and banks see it: this rank's samples, and what all ranks have to know.

    Attributes:
        query_BD: (B, D) embeddings of unit length, with gradient.
        labels_B: (B,) int64; `every_label_B`: those of all ranks.
        keys_BKD: (B, K, D) as they came, if any.
        every_position_B: positions of all ranks' images in the data set, int64, for a rule that takes them.
    """

    query_BD: Tensor
    labels_B: Tensor
    every_label_B: Tensor
    keys_BKD: Tensor | None = None
    every_position_B: Tensor | None = None


class Recalled(NamedTuple):
    """What is stored of this rank's samples.

    Attributes:
        found_B: (B,) bool, who has a stored center.
        center_BD: (B, D) float, of unit length; zeros for the others.
        last_BD: of a memory of images: the last embedding of each sample's own image, zeros for one not seen yet.
        others_BD: of a memory of images: the sum of the last embeddings of the identity's other images; `center_BD` is its direction.
        trained_B: of a bank that trains rows: (B,) bool, whose center is one, with gradient.
    """

    found_B: Tensor
    center_BD: Tensor
    last_BD: Tensor | None = None
    others_BD: Tensor | None = None
    trained_B: Tensor | None = None


class Negatives(NamedTuple):
    """Rows (S, D) of this rank that a step compares with, their labels int64 (S,), -1 for none, and the scales of int8 rows (S,)."""

    rows_SD: Tensor
    labels_S: Tensor
    scales_S: Tensor | None = None

    def without(self, labels_B: Tensor) -> "Negatives":
        """Return the same rows, those of these identities labelled -1."""
        of_these_S = find_sorted(labels_B.sort().values, self.labels_S)[1]
        return self._replace(labels_S=torch.where(of_these_S, EMPTY, self.labels_S))


class Trained(NamedTuple):
    """Trained rows (T, D) of this rank, of unit length and with gradient, their labels int64 (T,), and those of all ranks, ascending."""

    rows_TD: Tensor
    labels_T: Tensor
    every_label_T: Tensor


def find_sorted(sorted_T: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each label would stand among sorted ones, T >= 1, and whether it is there, both (B,)."""
    place_B = torch.searchsorted(sorted_T, labels_B).clamp_max_(len(sorted_T) - 1)
    return place_B, sorted_T[place_B] == labels_B


def last_occurrence(labels_B: Tensor) -> Tensor:
    """Return for each sample the place in the batch of the last sample with its label, int64 (B,)."""
    sorted_B, order_B = torch.sort(labels_B, stable=True)
    return order_B[torch.searchsorted(sorted_B, labels_B, right=True) - 1]


def merge_centers(centers_BD: Tensor, last_B: Tensor) -> Tensor:
    """Give all samples of one identity the renormalized mean of their centers; single ones keep theirs bit for bit."""
    sums_BD = torch.zeros_like(centers_BD).index_add_(0, last_B, centers_BD)
    counts_B = torch.zeros_like(last_B).index_add_(0, last_B, torch.ones_like(last_B))
    return torch.where((counts_B[last_B] > 1).unsqueeze(1), normalize(sums_BD, dim=1)[last_B], centers_BD)


class Bank(nn.Module):
    """Base of the banks.

    Args:
        share: size as a share of the identities; `count`: absolute. At most one of them.

    Attributes:
        size: rows that it has or draws, once it is bound.
        one_per_identity: whether an identity has at most one row; then a new center of the batch stands in for the stored one.
        state_name: under this name a head registers it, so this is what its tensors are called in a checkpoint.
        shown: attributes that its `repr` shows, once it is bound.
        ahead: what `bring` has started, of the batch that a step is about.
    """

    state_name: str
    shown: tuple[str, ...] = ()
    one_per_identity = True
    size: int
    ahead: Ahead

    def __init__(self, share: float | None, count: int | None) -> None:
        super().__init__()
        if share is not None and count is not None:
            raise UserError(f"{type(self).__name__} got share={share:g} and count={count}: give one of them")
        self.share = share
        self.count = count

    def bind(
        self, embedding_size: int, identities: int | None, ranks: Ranks = ALONE, images: int | None = None
    ) -> Self:
        """Take the memory of this rank's rows, on torch's current default device; heads do this when they are built.

        Raises:
            UserError: bound before; sizes that cannot be.
        """
        if hasattr(self, "size"):
            raise UserError(f"this {type(self).__name__} belongs to a head already: give each head its own")
        self.size = self.size_of(identities)
        self.ranks = ranks
        self.embedding_size = embedding_size
        self._take_memory(identities, images)
        return self

    def size_of(self, identities: int | None) -> int:
        """Return the rows that it has, or draws in a step, with that many identities."""
        if self.count is not None:
            return self.count
        if identities is None:
            raise UserError(
                f"{type(self).__name__} has no count: give the head identities=N, of which it takes a share"
            )
        return self._usual(identities) if self.share is None else max(1, round(self.share * identities))

    def _usual(self, identities: int) -> int:
        return usual_negatives(identities)

    def _take_memory(self, identities: int | None, images: int | None) -> None:
        raise NotImplementedError

    def check_room(self, batch: int) -> None:
        """Refuse a batch of that many samples, of all ranks, if it cannot be kept."""

    def bring(
        self, labels_B: Tensor, positions_B: Tensor | None, device: torch.device, stored: bool, drawn: bool
    ) -> Ahead:
        """Start to bring to the device what the next batch will ask for; the default brings nothing.

        Args:
            labels_B, positions_B: (B,) int64 of all ranks, on the host; positions where the center rule takes them.
            stored, drawn: what will be asked for, by `recall` and by `negatives`.
        """
        return {}

    def recall(self, batch: Batch) -> Recalled:
        """Return what is stored of this rank's samples."""
        raise NotImplementedError

    def negatives(self, every_label_B: Tensor) -> Negatives:
        """Return this rank's rows of the step, before anything of the batch is kept.

        Args:
            every_label_B: (B,) int64, of all ranks.
        """
        raise NotImplementedError

    def trained(self) -> Trained | None:
        """Return the rows that a bank trains, negatives of every step; None: it trains none.

        The batch's new centers of these identities do not join; `recall` gives the trained ones as theirs.
        """
        return None

    def update(self, batch: Batch, every_new_BD: Tensor, recalled: Recalled) -> None:
        """Keep the new centers of all ranks' samples, (B, D) of unit length."""
        raise NotImplementedError

    def statistics(self) -> dict[str, float]:
        """Return figures of the bank for the log."""
        return {}

    def row_shards(self) -> dict[str, ShardedRows]:
        """Return this rank's blocks by the names of their buffers."""
        raise NotImplementedError

    def footprint(self, everyone: int, block_mib: float, cached: bool) -> tuple[float, float, int]:
        """Return the bytes that it holds on the device and that a step works with, and the rows that a step passes over; on one rank.

        Args:
            everyone: samples of all ranks.
            block_mib, cached: as `block_bytes`.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in self.shown) if hasattr(self, "size") else ""

    def memory_bytes(self) -> int:
        """Return the bytes of this rank's buffers."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        for name, shard in self.row_shards().items():
            own, saved = attrgetter(name)(self), shard.take_block(state_dict, prefix + name)
            if saved is not None and (saved.shape, saved.dtype) != (own.shape, own.dtype):
                raise UserError(self._misfit(name, saved, own))
            if saved is not None:
                state_dict[prefix + name] = saved
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _misfit(self, name: str, saved: Tensor, own: Tensor) -> str:
        raise NotImplementedError
