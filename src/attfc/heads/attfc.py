"""AttFC: class centers generated from a few images of each identity, and a container of recent ones as negatives.

A step costs one streaming pass over the filled slots (two matrix products forward, a multiply of B x D backward) and
O(B K D) for the centers; memory is the container, whatever the number of identities. There are no parameters: the
gradient flows into the embeddings alone, where `in_batch_gradient` asks for it through the batch's own centers too.
Not taken: a B x C matrix of logits, as in the published code.
Several ranks share the rows of the container. A step gathers labels, queries and new centers, fetches the stored rows of the own samples (where
an option uses them) and reduces three sums a query; backward needs nobody, because the rows carry no gradient. With `in_batch_gradient` it gathers
two numbers per query and adds up the gradients of the batch's centers.

The eight steps (the backbones' are the trainer's): 1 queries of unit length; 2 the key encoder follows the query
encoder; 3 keys embedded; 4 attention of the query over its keys; 5 the generative class center (GCC); 6 logits against
the container as the steps before left it; 7 mean cross entropy; 8 enqueue. Here are 1 and 4 to 8.
Source: AttFC (arXiv 2503.06839). Differences and the options that restore each: docs/heads.md.
"""

import inspect
from typing import Literal, Unpack, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from attfc.distributed import ALONE, Ranks, RowShard
from attfc.errors import UserError, nearest
from attfc.heads.banks.images import ImageMemory
from attfc.heads.banks.recent import (
    EMPTY,
    Container,
    ContainerPolicy,
    Initial,
    RowDtype,
    last_occurrence,
    merge_centers,
)
from attfc.heads.banks.table import CenterTable
from attfc.heads.class_center import attend
from attfc.heads.default_method import Changes, default_arguments
from attfc.heads.head import Head, margin_of_all, unit_length
from attfc.losses.container_softmax import Filtering, container_softmax
from attfc.losses.margins import CosFace, Margin

__all__ = ["AttFC", "CenterSource"]

CenterSource = Literal["keys", "query", "batch", "others"]
Negatives = Literal["container", "table"]


class AttFC(Head):
    """The AttFC head: attention-generated positives, a dynamic class container of negatives.

    `AttFC.default` builds the recommended method and `AttFC.published` that of the paper; all else is for experiments.

    Args:
        embedding_size: D.
        slots: C, the container's size (container ratio x identities); at least the batch size. With `negatives="table"` any number >= 1.
        margin: margin on the positive; owns the scale s.
        keys_per_query: K that the loader should deliver; any K >= 1 works in `forward`. Ignored with
            `center_source="query"`, which takes no keys.
        temperature: tau of step 4, > 0, in units of cosine.
        include_stored_center: step 4; the identity's stored row joins its keys as one more candidate.
        center_blend: step 5; share of the stored row in the new center, 0 <= share < 1; 0: no blending. An identity
            that is not stored takes its new center alone.
        policy: step 8; `fifo` (published) or `unique`, one slot an identity.
        dtype: storage of the container's rows; all arithmetic is float32.
        in_batch_negatives: step 6; the batch's new centers of other identities join the negatives. With `unique` they
            stand in for those identities' stored rows, each identity once; with `fifo` they come on top.
        in_batch_gradient: step 6; those new centers pass their gradient on to the embeddings that they are made of, which are thereby pushed from
            the queries of other identities as a trained row would be. Of the query's own center nothing flows, nor of what is stored. Not with
            `center_source="keys"`: keys carry no gradient.
        initial: `empty`, or `random` unit rows as negatives until they are overwritten (published code).
        center_source: `keys`, or `query`: no key encoder; the positive is the stored center, and the query's own
            embedding, blended with it, is enqueued. A sample whose identity is not stored has no positive but itself,
            which teaches nothing: it counts 0 in the mean (the divisor stays B). `batch`: no key encoder either; queries 2i and 2i + 1 show
            one identity, and the embedding of each is the other's only key. A query whose neighbour is of another identity (a broken image was
            replaced) is treated as with `query`. `others`: no key encoder; the positive is the mean of what `memory` holds of the identity's
            other images, their embeddings of at most an epoch ago; of an image without others its own. An image whose identity was not seen
            yet teaches nothing.
        interclass_filtering_threshold: negatives with a cosine above it are taken for mislabelled images of the
            same identity; None: no filtering.
        filtering: what becomes of those, `drop` (out of the softmax) or `zero` (cosine 0, as in arcface_torch).
        block_mib: temporary memory of the streaming pass, MiB.
        table: keeps the latest center of every identity, also of those that the container has no slot for; the stored centers are then
            those of the table. None: stored centers are the container's.
        memory: with `center_source="others"`: the last embedding of every image; `forward` then takes the images' positions.
        negatives: `container`: the most recent centers; `table`: of the table (or of `memory`), those of the batch and `slots` random others, drawn
            anew in each step (a few more where the batch repeats identities). There is then no container, and `policy`, `dtype` and `initial` say
            nothing.
        ranks: the processes that share the container; each calls `forward` with its share of the batch, all of equal size, and gets the
            mean loss of that share. The mean of these over ranks is the loss that one process has for the whole batch.

    In `eval()` the loss is computed and nothing is enqueued.

    >>> head = AttFC(embedding_size=4, slots=8, margin=Margin(scale=16.0), keys_per_query=1, in_batch_negatives=False)
    >>> embeddings = torch.eye(4)[:2].requires_grad_()
    >>> head(embeddings, torch.tensor([0, 1]), torch.eye(4)[:2].unsqueeze(1)).item()  # no negatives yet
    0.0
    >>> head.statistics()["fill"]
    0.25
    """

    def __init__(
        self,
        embedding_size: int,
        slots: int,
        margin: Margin,
        *,
        keys_per_query: int = 2,
        temperature: float = 1.0,
        include_stored_center: bool = False,
        center_blend: float = 0.8,
        policy: ContainerPolicy = "unique",
        dtype: RowDtype = "float32",
        in_batch_negatives: bool = True,
        in_batch_gradient: bool = False,
        initial: Initial = "empty",
        center_source: CenterSource = "keys",
        interclass_filtering_threshold: float | None = None,
        filtering: Filtering = "drop",
        block_mib: float = 32.0,
        table: CenterTable | None = None,
        memory: ImageMemory | None = None,
        negatives: Negatives = "container",
        ranks: Ranks = ALONE,
    ) -> None:
        if center_source not in get_args(CenterSource):
            hint = nearest(str(center_source), get_args(CenterSource))
            raise UserError(f"center_source is {center_source!r}: choose keys, query, batch or others{hint}")
        if (center_source == "others") != (memory is not None):
            raise UserError(
                f'center_source is "{center_source}" {"with" if memory else "without"} a memory of images: "others" needs '
                "memory=ImageMemory(...), and nothing else uses it"
            )
        if memory is not None and table is not None:
            raise UserError("a memory of images holds the centers of all identities itself: leave the table out")
        if center_source == "keys" and keys_per_query < 1:
            raise UserError(
                f"keys_per_query is {keys_per_query}: AttFC generates centers from keys and needs keys_per_query >= 1, "
                f'or center_source="query"'
            )
        if center_source != "keys" and include_stored_center:
            raise UserError(
                f'include_stored_center is set with center_source="{center_source}", which has no attention: '
                "leave it off and set center_blend"
            )
        if in_batch_gradient and (center_source == "keys" or not in_batch_negatives):
            raise UserError(
                f'in_batch_gradient is set with center_source="{center_source}" and in_batch_negatives={in_batch_negatives}: it is about negatives '
                'made of the batch\'s own embeddings, so set in_batch_negatives=True and center_source="query", "batch" or "others"'
            )
        super().__init__(embedding_size, keys_per_query if center_source == "keys" else 0)
        if not temperature > 0:
            raise UserError(f"temperature is {temperature}: it divides cosines and must be above 0 (published: 1)")
        if not 0 <= center_blend < 1:
            raise UserError(
                f"center_blend is {center_blend}: the stored row's share must lie in 0 <= share < 1 "
                f"(at 1 no center would ever change)"
            )
        self.margin = margin
        self.temperature = temperature
        self.include_stored_center = include_stored_center
        self.center_blend = center_blend
        self.in_batch_negatives = in_batch_negatives
        self.in_batch_gradient = in_batch_gradient
        self.center_source = center_source
        self.interclass_filtering_threshold = interclass_filtering_threshold
        self.filtering: Filtering = filtering
        self.block_mib = block_mib
        self.ranks = ranks
        if negatives not in get_args(Negatives):
            hint = nearest(str(negatives), get_args(Negatives))
            raise UserError(f"negatives is {negatives!r}: choose container or table{hint}")
        if negatives == "table" and table is None and memory is None:
            raise UserError('negatives="table" needs a table of centers to draw them from: pass table=CenterTable(...)')
        self.slots = slots
        self.container = None
        if negatives == "container":
            self.container = Container(slots, embedding_size, policy=policy, dtype=dtype, initial=initial, ranks=ranks)
        self.uses_stored = memory is None and (include_stored_center or center_blend > 0 or center_source == "query")
        if table is not None and not self.uses_stored:
            raise UserError(
                "a table of centers is given and no option uses stored centers: set center_blend, include_stored_center or "
                'center_source="query", or leave the table out'
            )
        self.table = table
        self.memory = memory
        self.takes_positions = memory is not None

    @classmethod
    def default(cls, embedding_size: int, identities: int, **changes: Unpack[Changes]) -> "AttFC":
        """Build the method that `attfc train` uses by default; train it with `loss = head(embeddings, labels)`, without keys.

        A table keeps the latest center of every identity, 2 bytes per number. The stored center of its identity is a query's positive, then
        the query's embedding is blended into it. Negatives are centers drawn from the table, anew in each step, and the batch's own new centers.
        The first image of an identity finds no center and counts 0 in the loss: the first losses are 0, `positive_share` in `statistics` says why.

        Args:
            embedding_size: D, that of the backbone.
            identities: N >= 2; labels are 0 to N - 1. The batch may be larger, and may repeat identities.
            margin: default `CosFace` 0.4, scale 32 below 50,000 identities, else 64.
            negatives: centers drawn from the table in a step; default N / 10, at least 1,000, at most 20,000, never above N.
            center_blend: share of the stored center in the new one, 0 <= share < 1; default 0.6.
            in_batch_negatives: whether the batch's own centers are negatives too; default True.
            in_batch_gradient: whether these pass their gradient on to their embeddings; default True. Switch it off where people have two or
                three images.
            interclass_filtering_threshold, filtering: see the class; default: no filtering.
            rows: where the table lives, `RowStore("device")`, `RowStore("host")` (default) or `RowStore("file", folder)`.
            block_mib, ranks: see the class.
            seed: names the draws; default 0.

        Raises:
            UserError: fewer than two identities, an unknown option (names the nearest), or a value out of its range.

        >>> head = AttFC.default(embedding_size=4, identities=10)
        >>> labels = torch.tensor([0, 1])
        >>> [(head(torch.eye(4)[:2], labels).item(), head.statistics()["positive_share"]) for step in range(2)][0]
        (0.0, 0.0)
        >>> head.statistics()["positive_share"]  # of the second step: both identities have a center now
        1.0
        """
        known = tuple(inspect.signature(cls).parameters)
        return cls(embedding_size, **default_arguments(embedding_size, identities, changes, known))

    @classmethod
    def published(
        cls, embedding_size: int, slots: int, *, margin: Margin | None = None, ranks: Ranks = ALONE
    ) -> "AttFC":
        """Build the head of the paper (arXiv 2503.06839); train it with `loss = head(embeddings, labels, keys)`.

        Two keys per query, a first-in first-out container of float32 rows, no blending, no negatives from the batch itself. What else
        `profile=published` sets lives elsewhere: `MomentumPair(backbone, 0.999, batch_norm="batch")` embeds the keys, and
        `AttentionLoader(store, B, keys_per_query=2, distinct_keys=False)` draws them with replacement.

        Args:
            embedding_size: D, that of the backbone.
            slots: C, the container's size; at least the batch size, more slots than identities are no fault.
            margin: default `CosFace` 0.4 at scale 64. The published code takes a margin's derivative as 1: for another margin pass
                `gradient="straight_through"`, for `ArcFace` also `beyond_pi="wrap"`.
            ranks: see the class.
        """
        return cls(
            embedding_size,
            slots,
            margin or CosFace(64.0, 0.4, gradient="straight_through"),
            keys_per_query=2,
            center_blend=0.0,
            policy="fifo",
            dtype="float32",
            in_batch_negatives=False,
            ranks=ranks,
        )

    def forward(
        self,
        embeddings_BD: Tensor,
        labels_B: Tensor,
        keys_BKD: Tensor | None = None,
        positions_B: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss of the batch and enqueue its centers.

        Args:
            embeddings_BD: (B, D) float of any dtype and length, with gradient; computed in float32 (float64 stays).
            labels_B: (B,) int64 >= 0; not modified.
            keys_BKD: (B, K, D) float from the key encoder, not normalized; no gradient flows into it.
            positions_B: (B,) int64, where the images stand in the data set; with a memory of images only.

        Raises:
            UserError: wrong shapes or types, no keys, no positions, a batch larger than the container, a label or position without a row.
        """
        self._check_batch(embeddings_BD, labels_B)
        if self.container is not None:
            self.container.check_room(labels_B.shape[0] * self.ranks.size)
        query_BD, norms_B = unit_length(embeddings_BD)
        every_label_B = self.ranks.gather(labels_B)
        if self.table is not None:
            self._check_labels_below(every_label_B, self.table.identities, self.ranks)
        every_stored_B, stored_BD = self._stored(every_label_B)
        stored_B = self.ranks.own(every_stored_B)
        has_positive_B = stored_B
        # The queries as parts of new centers: as negatives these may push back on them, as positives and in storage they never do.
        present_BD = query_BD if self.in_batch_gradient else query_BD.detach()
        if self.memory is not None:
            every_position_B = self._positions(positions_B, labels_B)
            self._check_labels_below(every_label_B, self.memory.identities, self.ranks)
            last_BD, others_BD, center_BD, stored_B, has_positive_B = self._others(
                self.memory, every_label_B, every_position_B, query_BD.dtype
            )
            new_BD = normalize(others_BD + present_BD, dim=1)
        elif self.center_source == "query":
            center_BD = stored_BD.to(query_BD.dtype)
            new_BD = self._blend(present_BD, stored_BD, stored_B)
        elif self.center_source == "batch":
            paired_B, partner_BD = self._partners(present_BD, labels_B)
            new_BD = self._blend(partner_BD, stored_BD, stored_B)
            center_BD = torch.where(paired_B.unsqueeze(1), new_BD.detach(), stored_BD.to(new_BD.dtype))
            has_positive_B = stored_B | paired_B
        else:
            center_BD = new_BD = self._generate(query_BD, keys_BKD, stored_BD, stored_B)

        cosine_B = (query_BD * center_BD).sum(dim=1)
        positive_B = margin_of_all(self.margin, cosine_B, norms_B, self.ranks)
        every_new_BD = self.ranks.gather(new_BD)
        loss_B = self._loss(query_BD, positive_B, labels_B, every_new_BD, every_label_B)
        if self.center_source != "keys":
            loss_B = torch.where(has_positive_B, loss_B, 0.0)
        self._note(cosine_B, stored_B, has_positive_B)
        if self.training:
            if self.container is not None:
                self.container.enqueue(every_new_BD, every_label_B)
            if self.table is not None:
                self.table.store(every_new_BD, every_label_B)
            if self.memory is not None:
                every_query_BD = self.ranks.gather(query_BD.detach())
                self.memory.store(every_query_BD, self.ranks.gather(last_BD), every_label_B, every_position_B)
        return loss_B.mean()

    def _positions(self, positions_B: Tensor | None, labels_B: Tensor) -> Tensor:
        """Return the positions of all ranks' images."""
        if positions_B is None or positions_B.shape != labels_B.shape or positions_B.dtype != torch.int64:
            given = "none" if positions_B is None else f"{positions_B.dtype} of shape {tuple(positions_B.shape)}"
            raise UserError(
                f'center_source="others" needs the images\' positions in the data set, int64 of shape {tuple(labels_B.shape)}, and got {given}: '
                "pass head(embeddings, labels, positions_B=batch.positions)"
            )
        return self.ranks.gather(positions_B.to(labels_B.device))

    @torch.no_grad()
    def _others(
        self, memory: ImageMemory, every_label_B: Tensor, every_position_B: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return our samples' last embeddings, sums of the others, positives, who has others, and who has a positive."""
        last_BD, sums_BX = (self.ranks.sum_own(each) for each in memory.recall(every_label_B, every_position_B))
        others_BD, others_B = memory.others(last_BD, sums_BX)
        others_BD = others_BD.to(dtype)
        alone_BD = normalize(last_BD, dim=1).to(dtype)
        center_BD = torch.where(others_B.unsqueeze(1), normalize(others_BD, dim=1), alone_BD)
        return last_BD, others_BD, center_BD, others_B, others_B | last_BD.any(dim=1)

    def _stored(self, every_label_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return who of all samples is stored and our samples' rows at unit length; nobody where no option asks for it."""
        if self.table is not None:
            stored_BD = self.ranks.sum_own(self.table.lookup(every_label_B))
            return self.ranks.gather(stored_BD.any(dim=1)), normalize(stored_BD, dim=1)
        if self.uses_stored and self.container is not None:
            stored_B, stored_BD = self.container.lookup(every_label_B)
            return stored_B, normalize(self.ranks.sum_own(stored_BD), dim=1)
        nobody_B = torch.zeros_like(every_label_B, dtype=torch.bool)
        own = nobody_B.shape[0] // self.ranks.size
        return nobody_B, torch.zeros((), device=nobody_B.device).expand(own, self.embedding_size)

    @torch.no_grad()
    def _generate(self, query_BD: Tensor, keys_BKD: Tensor | None, stored_BD: Tensor, stored_B: Tensor) -> Tensor:
        """Steps 4 and 5, with the stored center where the options want it."""
        if keys_BKD is None:
            raise UserError(
                "AttFC got no keys: pass head(embeddings, labels, keys) with the key encoder's (B, K, D), "
                'or build it with center_source="query"'
            )
        candidates = (stored_BD, stored_B) if self.include_stored_center else (None, None)
        center_BD, weights_BK = attend(query_BD, keys_BKD, self.temperature, *candidates)
        self._last_step = {"attention_entropy": -torch.xlogy(weights_BK, weights_BK).sum(dim=1).mean()}
        return self._blend(center_BD, stored_BD, stored_B)

    def _partners(self, query_BD: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return whose neighbour is of the same identity, and the neighbours' embeddings; one's own where it is not."""
        if labels_B.shape[0] % 2:
            raise UserError(
                f'center_source="batch" got {labels_B.shape[0]} queries: 2i and 2i + 1 are each other\'s key, pass an even number'
            )
        paired_B = labels_B == labels_B.view(-1, 2).flip(1).flatten()
        partner_BD = query_BD.view(-1, 2, query_BD.shape[1]).flip(1).flatten(0, 1)
        return paired_B, torch.where(paired_B.unsqueeze(1), partner_BD, query_BD)

    def _blend(self, center_BD: Tensor, stored_BD: Tensor, stored_B: Tensor) -> Tensor:
        if self.center_blend == 0:
            return center_BD
        share = self.center_blend
        blended_BD = normalize(share * stored_BD.to(center_BD.dtype) + (1 - share) * center_BD, dim=1)
        return torch.where(stored_B.unsqueeze(1), blended_BD, center_BD)

    def _loss(
        self, query_BD: Tensor, positive_B: Tensor, labels_B: Tensor, every_new_BD: Tensor, every_label_B: Tensor
    ) -> Tensor:
        """Steps 6 and 7 for each sample: the container, or the table, before this batch is kept."""
        rows_CD, labels_C, scales_C = self._rows(every_label_B)
        extra_BD = extra_labels_B = None
        if self.in_batch_negatives:
            extra_BD, extra_labels_B = every_new_BD, every_label_B
            if self.container is None or self.container.policy == "unique":
                last_B = last_occurrence(every_label_B)
                places_B = torch.arange(every_label_B.shape[0], device=every_label_B.device)
                extra_BD = merge_centers(every_new_BD, last_B)
                extra_labels_B = torch.where(last_B == places_B, every_label_B, EMPTY)
                # The new centers stand in for the stored ones of the batch.
                if self.container is not None:
                    labels_C = self.container.labels_without(every_label_B)
                else:
                    sorted_B = every_label_B.sort().values
                    place_C = torch.searchsorted(sorted_B, labels_C).clamp_max_(len(sorted_B) - 1)
                    labels_C = torch.where(sorted_B[place_C] == labels_C, EMPTY, labels_C)
            extra_BD, extra_labels_B = self.ranks.own(extra_BD), self.ranks.own(extra_labels_B)
        return container_softmax(
            query_BD,
            positive_B,
            rows_CD,
            labels_C,
            labels_B,
            self.margin.scale,
            row_scales_C=scales_C,
            extra_rows_ED=extra_BD,
            extra_labels_E=extra_labels_B,
            block_mib=self.block_mib,
            filtering_threshold=self.interclass_filtering_threshold,
            filtering=self.filtering,
            ranks=self.ranks,
        )

    def _rows(self, every_label_B: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return rows, labels and scales of this rank's negatives."""
        if self.container is not None:
            return self.container.negatives()
        centers = self.table if self.memory is None else self.memory
        assert centers is not None
        rows_CD, labels_C = centers.draw(every_label_B, self.slots + every_label_B.shape[0])
        return rows_CD, labels_C, None

    @torch.no_grad()
    def _note(self, cosine_B: Tensor, stored_B: Tensor, has_positive_B: Tensor) -> None:
        """Keep a few scalars of the step on the device; `statistics` turns them into numbers."""
        cosine_B = cosine_B.detach()
        if self.center_source != "keys":
            # Of all ranks' samples that have a positive, as the mean over ranks of what each notes.
            total = self.ranks.size * torch.where(has_positive_B, cosine_B, 0.0).sum()
            self._last_step = {
                "positive_cosine": total / self.ranks.gather(has_positive_B).sum().clamp_min(1),
                "positive_share": has_positive_B.float().mean(),
            }
        else:
            self._last_step["positive_cosine"] = cosine_B.mean()
        if self.uses_stored or self.memory is not None:
            self._last_step["stored_share"] = stored_B.float().mean()

    def row_shards(self) -> dict[str, RowShard]:
        """The container's rows and their scales and those of the table, if ranks share them."""
        if self.ranks.size == 1:
            return {}
        shards = {} if self.table is None else {"table.rows": self.table.shard}
        if self.memory is not None:
            shards |= {f"memory.{name}": shard for name, shard in self.memory.row_shards().items()}
        if self.container is not None:
            names = [name for name in ("rows", "row_scales") if getattr(self.container, name) is not None]
            shards |= {f"container.{name}": self.container.shard for name in names}
        return shards

    def statistics(self) -> dict[str, float]:
        """Return, of the last step: `positive_cosine`, mean before the margin; `attention_entropy`, nats (log K:
        all keys weigh the same); `positive_share`, of the samples, those that had a positive (the others count 0 in the loss; left out with
        `center_source="keys"`, where all have one); `stored_share`, those with a stored center; of the container: `fill` share, `center_age`, steps.
        """
        figures = super().statistics()
        if self.container is not None and self.container.fill.device.type != "meta":
            figures["fill"] = float(self.container.fill) / self.container.slots
            figures["center_age"] = float(self.container.mean_age())
        return figures
