"""The full FC: one trained class center for every identity, the reference that every other head is measured against.

A step is a softmax over all N identities with a margin on the right one (`class_softmax`): three matrix products of B x N x D where the
logits, B x N, fit in 512 MiB; four, a block at a time, where they do not. Memory: N x D x 4 B three times (weight, gradient, momentum): 61 GB
at 10 million identities and D = 512.
Several ranks: data parallel, every rank has all rows and the gradients are averaged (the trainer's DistributedDataParallel; moves N x D numbers a
step); or model parallel, each rank has a block of the rows and their momentum, and B x 2D numbers move (`ranks`).
Source: ArcFace (arXiv 1801.07698); arcface_torch at sample rate 1. `subcenters`: Sub-center ArcFace (ECCV 2020). `past`: BroadFace
(`past_embeddings`).
"""

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from attfc.config.option import Option
from attfc.distributed import Ranks
from attfc.errors import UserError
from attfc.heads.banks.row_store import RowStore, draw_rows
from attfc.heads.banks.rows_ahead import Ahead
from attfc.heads.banks.sharded_rows import ShardedRows
from attfc.heads.checked import checked
from attfc.heads.head import Head, unit_length
from attfc.heads.memory import HeadMemory, class_softmax_bytes
from attfc.heads.options import BlockMib, FilterAbove, FilterGap, Filtering
from attfc.heads.past_embeddings import PastEmbeddings
from attfc.losses.class_softmax import class_softmax_and_cosines
from attfc.losses.kept_memory import KeptMemory
from attfc.losses.margins import Margin

__all__ = ["FullFC", "TrainedRows"]


class TrainedRows(Head):
    """Base of the heads with one trained class center for every identity, whose loss is a softmax over those of a step.

    Args:
        identities: N; labels are 0 to N - 1.
        store: where the rows live.
        subcenters: K rows per identity, one after the other in its row of `weight`.

    Attribute `shard`: the block of the rows that is this rank's `weight`.
    """

    identities: int
    instead_of_sharing = ""

    def __init__(
        self, embedding_size: int, identities: int, margin: Margin, store: RowStore, subcenters: int = 1, **options: Any
    ) -> None:
        super().__init__(embedding_size, margin, **options)
        if not 1 <= identities < 1 << 31:
            raise UserError(f"identities is {identities}: a classifier needs at least 1 identity and fewer than 2**31")
        if identities < self.ranks.size:
            raise UserError(
                f"{identities} identities are fewer than the {self.ranks.size} ranks that share their rows: start fewer processes"
                f"{self.instead_of_sharing}"
            )
        self.identities = identities
        self.shard = ShardedRows.of(identities, self.ranks)
        self.rows = store
        self.subcenters = subcenters
        self._gradient_memory = KeptMemory()
        self.weight = nn.Parameter(store.zeros(len(self.shard), subcenters * embedding_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight anew from torch's global generator: the same for any number of ranks."""
        draw_rows(self.weight, self.shard)

    def forward(
        self,
        embeddings_BD: Tensor,
        labels_B: Tensor,
        keys_BKD: Tensor | None = None,
        ahead: dict[str, Ahead] | None = None,
    ) -> Tensor:
        """Return the mean loss of the batch over the classes of the step; gradient to the embeddings, and to their rows of `weight`.

        Args:
            embeddings_BD: (B, D) float of any dtype and length; computed in float32 (float64 stays).
            labels_B: (B,) int64, 0 <= label < identities; not modified.
            keys_BKD: ignored; the trainer passes (B, 0, D) or nothing.
            ahead: what `bring` gave for these labels; None: rows are read now, and from host memory waited for.

        Raises:
            UserError: wrong shapes or types; a label out of range (seen on the CPU, where looking is free).
        """
        self._check_batch(embeddings_BD, labels_B)
        return self._loss(*unit_length(embeddings_BD), labels_B, ahead)

    def _loss(self, query_BD: Tensor, norms_B: Tensor, labels_B: Tensor, ahead: dict[str, Ahead] | None) -> Tensor:
        """Return the loss of queries of unit length, whose embeddings had these norms."""
        weight_ND, rows_S, places_B, first = self._rows_of_step(labels_B, ahead)
        loss_B, cosine_B, nearest_B = class_softmax_and_cosines(
            query_BD,
            weight_ND,
            places_B,
            self.margin,
            norms_B=norms_B,
            rows_N=rows_S,
            subcenters=self.subcenters,
            ranks=self.ranks,
            first_class=first,
            memory=self._gradient_memory,
            **self.streaming,
        )
        self._last_step = {"positive_cosine": cosine_B.mean()}
        if self.set_aside is not None:
            loss_B, _ = self.set_aside(loss_B, cosine_B, nearest_B, self._last_step)
        return loss_B.mean()

    def _rows_of_step(
        self, labels_B: Tensor, ahead: dict[str, Ahead] | None
    ) -> tuple[Tensor, Tensor | None, Tensor, int]:
        """Return a weight, which rows of it are this rank's of the step (None: all), the place of each label among those of all ranks, and
        that of this rank's first.
        """
        raise NotImplementedError

    def row_shards(self) -> dict[str, ShardedRows]:
        """The weight, if ranks share it."""
        return {"weight": self.shard} if self.ranks.size > 1 else {}

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        saved = self.shard.take_block(state_dict, prefix + "weight")
        if saved is not None:
            state_dict[prefix + "weight"] = saved
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"embedding_size={self.embedding_size}, identities={self.identities}, rows={self.rows.place}"


class FullFC(TrainedRows):
    """Fully connected classifier on unit embeddings and unit class centers, with a margin.

    Args:
        embedding_size: D.
        identities: N; labels are 0 to N - 1.
        margin: margin on the right identity's cosine; owns the scale s.
        subcenters: K trained rows per identity, of which the most similar to a query counts (Sub-center ArcFace, for wrong labels): K times the
            memory and time.
        past: M embeddings of past steps that train the rows too (BroadFace); in one process, with one row per identity. 0: none.
        filter_above, filtering, filter_gap, images, block_mib: as every head (`Head`).
        ranks: as every head; `weight` is then the block `shard` of the rows. Its gradient is divided by the number of ranks already: that of the
            mean over all of them. A loop of your own averages the gradient of the network alone (`keep_apart`).

    `weight` (N, K D) float32 is a parameter, normal with standard deviation 0.01 as in arcface_torch. It is not normalized in
    storage, so weight decay shortens its rows, which raises their effective learning rate.

    >>> import torch
    >>> head = FullFC(embedding_size=8, identities=100, margin=Margin(scale=16.0))
    >>> head(torch.randn(4, 8), torch.tensor([3, 1, 4, 1])).shape
    torch.Size([])
    """

    instead_of_sharing = ", or replicate the rows (distributed.rows=replicated)"

    @checked(interclass_filtering_threshold="filter_above=...")
    def __init__(
        self,
        embedding_size: int,
        identities: int,
        margin: Margin,
        *,
        subcenters: Annotated[
            int, Option("trained centers per person, of which the most similar to an image counts", ge=1)
        ] = 1,
        past: Annotated[
            int,
            Option("embeddings of past steps that train the centers as the batch does (BroadFace); 0: none", ge=0),
        ] = 0,
        filter_above: FilterAbove = None,
        filtering: Filtering = "drop",
        filter_gap: FilterGap = None,
        images: int | None = None,
        block_mib: BlockMib = 32.0,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(
            embedding_size,
            identities,
            margin,
            RowStore(),
            subcenters,
            filter_above=filter_above,
            filtering=filtering,
            filter_gap=filter_gap,
            images=images,
            block_mib=block_mib,
            ranks=ranks,
        )
        if past and (self.ranks.size > 1 or subcenters > 1 or filter_gap is not None):
            other = f"subcenters={subcenters}" if subcenters > 1 else f"{self.ranks.size} processes"
            other = other if filter_gap is None else f"filter_gap={filter_gap:g}"
            raise UserError(f"FullFC: past={past} goes with one process and one center per person, not with {other}")
        self.past = PastEmbeddings(past, embedding_size) if past else None

    def _loss(self, query_BD: Tensor, norms_B: Tensor, labels_B: Tensor, ahead: dict[str, Ahead] | None) -> Tensor:
        """As `TrainedRows`; with `past`, the gradient to `weight` is that of the mean over past embeddings too."""
        if self.past is None:
            return super()._loss(query_BD, norms_B, labels_B, ahead)
        weight_ND = self._rows_of_step(labels_B, ahead)[0]
        past_PD, past_labels_P, past_norms_P = self.past.recalled(weight_ND)
        batch, everyone = len(labels_B), len(labels_B) + len(past_labels_P)
        # The mean over everyone is taken once, and the network's share of it multiplied up to the mean over its batch.
        still_BD = query_BD.detach()
        drawn_BD = still_BD + everyone / batch * (query_BD - still_BD)
        loss_X, cosine_X, _ = class_softmax_and_cosines(
            torch.cat([past_PD.to(query_BD.dtype), drawn_BD]),
            weight_ND,
            torch.cat([past_labels_P, labels_B]),
            self.margin,
            norms_B=torch.cat([past_norms_P.to(norms_B.dtype), norms_B]),
            memory=self._gradient_memory,
            **self.streaming,
        )
        self._last_step = {"positive_cosine": cosine_X[-batch:].mean()}
        if self.training:
            self.past.keep(still_BD, labels_B, norms_B.detach(), weight_ND)
        loss = loss_X.mean()
        return loss + (loss_X[-batch:].mean() - loss).detach()

    def footprint(self, batch: int, *, cached: bool = True) -> HeadMemory:
        """Rows and their gradient; past embeddings, and three copies of them in a step."""
        rows, size, past = len(self.shard) * self.subcenters, self.weight.nbytes, self.past.count if self.past else 0
        everyone = batch * self.ranks.size + past
        working = class_softmax_bytes(rows, everyone, self.streaming["block_mib"], cached)
        working += past * 4.0 * (4 * self.embedding_size + 4)
        return HeadMemory(size, size, working, 0, round(rows * (batch + past) / batch), "dense")

    def _rows_of_step(
        self, labels_B: Tensor, ahead: dict[str, Ahead] | None
    ) -> tuple[Tensor, Tensor | None, Tensor, int]:
        if labels_B.device.type == "cpu":
            self._check_labels_below(self.ranks.gather(labels_B))
        weight_ND = self.weight if self.subcenters == 1 else self.weight.view(-1, self.embedding_size)
        return weight_ND, None, labels_B, self.shard.start
