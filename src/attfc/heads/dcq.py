"""Dynamic Class Queue: the class center of a sample is the key encoder's embedding of one other image; a queue of recent ones is the rest.

That is AttFC without its additions, and older than it: one key (so there is nothing to attend to), a first-in first-out queue that
holds an identity as often as it came, rows of the sample's own identity masked out, the batch's own centers not among the negatives.
So the head is an AttFC of these parts, under its own name, with the options that DCQ has. Cost: as AttFC with K = 1: one
pass over the queue, one key pass of the backbone; C D 4 B of queue.
Source: Dynamic Class Queue (arXiv 2105.11113) and its code. Differs: the queue starts empty and not with random rows
(`initial="random"`); labels are int64 and not float32; the key batch is not shuffled between devices before its BatchNorm (that is the
key encoder's, see `MomentumPair`); the queue's size need not be a multiple of the batch; its margin is CosFace 0.3 at scale 50,
here it is whatever is passed.
"""

from torch import Tensor

from attfc.distributed import Ranks
from attfc.errors import UserError
from attfc.heads.attfc import AttFC
from attfc.heads.banks.recent import RecentCenters
from attfc.heads.banks.rows_ahead import Ahead
from attfc.heads.centers import KeyAttention
from attfc.heads.checked import checked
from attfc.heads.options import BlockMib, FilterAbove, Filtering, InitialRows, RowType, SlotCount, SlotShare
from attfc.losses.margins import Margin

__all__ = ["DCQ"]


class DCQ(AttFC):
    """The DCQ head; `loss = head(embeddings, labels, keys)` with one key per sample.

    Args:
        embedding_size: D.
        margin: margin on the positive; owns the scale s.
        identities: N; labels are 0 to N - 1. None: any label, with a `count`.
        share, count, dtype, initial: of the queue, as `RecentCenters`; at least the batch size.
        filter_above, filtering, block_mib, ranks: as every head (`Head`).

    In `eval()` the loss is computed and nothing is enqueued.
    """

    @checked(slots="count=...", interclass_filtering_threshold="filter_above=...")
    def __init__(
        self,
        embedding_size: int,
        margin: Margin,
        *,
        identities: int | None = None,
        share: SlotShare = None,
        count: SlotCount = None,
        dtype: RowType = "float32",
        initial: InitialRows = "empty",
        filter_above: FilterAbove = None,
        filtering: Filtering = "drop",
        block_mib: BlockMib = 32.0,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(
            embedding_size,
            margin,
            identities=identities,
            center=KeyAttention(keys=1),
            negatives=RecentCenters(share, count, "fifo", dtype, initial),
            in_batch="none",
            filter_above=filter_above,
            filtering=filtering,
            block_mib=block_mib,
            ranks=ranks,
        )

    def forward(
        self,
        embeddings_BD: Tensor,
        labels_B: Tensor,
        keys_BKD: Tensor | None = None,
        positions_B: Tensor | None = None,
        ahead: dict[str, Ahead] | None = None,
    ) -> Tensor:
        """Return the mean loss of the batch and enqueue its class centers.

        Args:
            embeddings_BD: (B, D) float of any dtype and length, with gradient; computed in float32 (float64 stays).
            labels_B: (B,) int64 >= 0; not modified.
            keys_BKD: (B, 1, D) float from the key encoder, not normalized; no gradient flows into it.

        Raises:
            UserError: another number of keys than one, wrong shapes or types, a batch larger than the queue.
        """
        if keys_BKD is None or keys_BKD.dim() != 3 or keys_BKD.shape[1] != 1:
            shape = None if keys_BKD is None else tuple(keys_BKD.shape)
            raise UserError(
                f"DCQ got keys of shape {shape}: it takes one key per query, shape (B, 1, {self.embedding_size})"
            )
        return super().forward(embeddings_BD, labels_B, keys_BKD)

    def statistics(self) -> dict[str, float]:
        """Return, of the last step: `positive_cosine`, mean before the margin; of the queue: `fill` share, `center_age`, steps."""
        figures = super().statistics()
        figures.pop("attention_entropy", None)  # of one key
        return figures

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        for name in [name for name in state_dict if name.startswith(f"{prefix}attfc.")]:  # saved before version 0.2
            state_dict[prefix + name.removeprefix(f"{prefix}attfc.")] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)
