"""Dynamic Class Queue: the class center of a sample is the key encoder's embedding of one other image; a queue of recent ones is the rest.

That is AttFC without its additions, and older than it: one key (so there is nothing to attend to), a first-in first-out queue that
holds an identity as often as it came, rows of the sample's own identity masked out, the batch's own centers not among the negatives.
So the head is an AttFC with these values, under its own name, with the options that DCQ has. Cost: as AttFC with K = 1: one
pass over the queue, one key pass of the backbone; C D 4 B of queue.
Source: Dynamic Class Queue (arXiv 2105.11113) and its code. Differs: the queue starts empty and not with random rows
(`initial="random"`); labels are int64 and not float32; the key batch is not shuffled between devices before its BatchNorm (that is the
key encoder's, see `MomentumPair`); the queue's size need not be a multiple of the batch; its margin is CosFace 0.3 at scale 50,
here it is whatever is passed.
"""

from torch import Tensor

from attfc.distributed import ALONE, Ranks, RowShard
from attfc.errors import UserError
from attfc.heads.attfc import AttFC
from attfc.heads.banks.recent import Container, Initial, RowDtype
from attfc.heads.head import Head
from attfc.losses.container_softmax import Filtering
from attfc.losses.margins import Margin

__all__ = ["DCQ"]


class DCQ(Head):
    """The DCQ head; `loss = head(embeddings, labels, keys)` with one key a sample.

    Args:
        embedding_size: D.
        slots: C, the queue's length; at least the batch size.
        margin: margin on the positive; owns the scale s.
        dtype: storage of the rows; all arithmetic is float32.
        initial: `empty`, or `random` unit rows as negatives until they are overwritten (published code).
        interclass_filtering_threshold: negatives with a cosine above it are taken for label noise; None: no filtering.
        filtering: what becomes of those, `drop` or `zero`.
        block_mib: temporary memory of the streaming pass, MiB.
        ranks: the processes that share the queue, as in AttFC.

    In `eval()` the loss is computed and nothing is enqueued.
    """

    def __init__(
        self,
        embedding_size: int,
        slots: int,
        margin: Margin,
        *,
        dtype: RowDtype = "float32",
        initial: Initial = "empty",
        interclass_filtering_threshold: float | None = None,
        filtering: Filtering = "drop",
        block_mib: float = 32.0,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(embedding_size, keys_per_query=1)
        self.attfc = AttFC(
            embedding_size,
            slots,
            margin,
            keys_per_query=1,
            center_blend=0.0,
            policy="fifo",
            dtype=dtype,
            in_batch_negatives=False,
            initial=initial,
            interclass_filtering_threshold=interclass_filtering_threshold,
            filtering=filtering,
            block_mib=block_mib,
            ranks=ranks,
        )

    @property
    def container(self) -> Container:
        """The queue."""
        assert self.attfc.container is not None
        return self.attfc.container

    def forward(self, embeddings_BD: Tensor, labels_B: Tensor, keys_BKD: Tensor | None = None) -> Tensor:
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
                f"DCQ got keys of shape {shape}: it takes one key a query, shape (B, 1, {self.embedding_size})"
            )
        loss: Tensor = self.attfc(embeddings_BD, labels_B, keys_BKD)
        return loss

    def row_shards(self) -> dict[str, RowShard]:
        """The queue's rows, if ranks share them."""
        return {f"attfc.{name}": shard for name, shard in self.attfc.row_shards().items()}

    def statistics(self) -> dict[str, float]:
        """Return, of the last step: `positive_cosine`, mean before the margin; of the queue: `fill` share, `center_age`, steps."""
        figures = self.attfc.statistics()
        figures.pop("attention_entropy", None)  # of one key
        return figures
