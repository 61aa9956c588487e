"""What the table of centers and the memory of images have in common: rows that live where a `RowStore` says, and draws of identities."""

import torch
from torch import Tensor, nn

from attfc.distributed import ALONE, Ranks
from attfc.heads.banks.draw import draw_classes
from attfc.heads.banks.row_store import RowStore
from attfc.losses.numbers import check_numbers

__all__ = ["KeptRows"]


class KeptRows(nn.Module):
    """Base of modules whose buffers, all of them, live in `place`, and from whose identities each step draws.

    Args:
        identities: N; labels are 0 ... N - 1.
        place: where the buffers live; `device`: they move with the module. None: in host memory.
        seed: names the draws.
        ranks: those that share the rows; `shard` is this rank's block of the identities.

    Attribute `draws`: steps so far, the number of the next draw; saved too.
    """

    def __init__(self, identities: int, place: RowStore | None = None, seed: int = 0, ranks: Ranks = ALONE) -> None:
        super().__init__()
        self.identities = identities
        self.place = RowStore("host") if place is None else place
        self.ranks = ranks
        self.shard = ranks.shard(identities)
        self.seed = seed
        self.draws = 0

    def drawn(self, labels_B: Tensor, count: int) -> Tensor:
        """Return the identities of this step's draw, int64 (S,) on the device of the labels: the batch's and random others, of this rank's block.

        Args:
            labels_B: (B,) int64, 0 <= label < N; of all ranks.
            count: S, at least B and at most N of them are taken, over all ranks.
        """
        self.check_labels(labels_B)
        count = min(max(count, labels_B.shape[0]), self.identities)
        drawn_S = draw_classes(labels_B, self.identities, count, self.seed, self.draws)
        if self.ranks.size > 1:
            drawn_S = drawn_S[(drawn_S >= self.shard.start) & (drawn_S < self.shard.stop)]
        return drawn_S

    def check_labels(self, labels_B: Tensor) -> None:
        """Refuse labels without a row, wherever looking at them is free (CPU)."""
        fix = f"build the {type(self).__name__} with identities = the data set's number of identities"
        check_numbers(labels_B, self.identities, "label", fix, self.ranks)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Rows in host memory or in a file stay there, in their type, when the head is moved or cast."""
        if self.place.place == "device":
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        kept, self._buffers = self._buffers, {}
        try:
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            self._buffers = kept

    def get_extra_state(self) -> Tensor:
        """Return the number of the next draw, so that a resumed run goes on with it."""
        return torch.tensor(self.draws, dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take up a saved number."""
        self.draws = int(state)
