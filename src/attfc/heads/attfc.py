"""AttFC: class centers made of embeddings, not trained, and a bank of them as negatives.

The head is put together from three choices: a center rule (`centers`: who is the positive, and what is kept), a bank of negatives (`banks`), and what
the batch's own centers do. A step costs one streaming pass over the bank's rows (two matrix products forward, a multiply of B x D backward) and what
the rule costs; memory is the bank. There are no parameters, but for the rows that a table trains for frequent identities: the gradient flows into the
embeddings alone, with in_batch="push" through the batch's own centers too. Not taken: a B x C matrix of logits, as in the published code.
Several ranks share the rows of the banks. A step gathers labels, queries and new centers, fetches the stored rows of the own samples (where
the rule uses them) and reduces three sums per query; backward needs nobody, but with "push": two numbers per query, and the centers' gradients.

The eight steps (the backbones' are the trainer's): 1 queries of unit length; 2 the key encoder follows the query
encoder; 3 keys embedded; 4 attention of the query over its keys; 5 the generative class center (GCC); 6 logits against
the bank as the steps before left it; 7 mean cross entropy; 8 the centers are kept. Here are 1 and 4 to 8.
Source: AttFC (arXiv 2503.06839). Differences and the options that restore each: docs/heads.md.
"""

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from attfc.config.option import Option
from attfc.config.profiles import usual_scale
from attfc.distributed import Ranks
from attfc.errors import UserError
from attfc.heads.banks.bank import Bank, Batch, Negatives, Recalled, find_sorted, last_occurrence, merge_centers
from attfc.heads.banks.images import ImageMemory
from attfc.heads.banks.kept_rows import KeptRows
from attfc.heads.banks.recent import RecentCenters
from attfc.heads.banks.rows_ahead import Ahead
from attfc.heads.banks.table import CenterTable
from attfc.heads.centers import CenterRule, HeldCenter, KeyAttention, OtherImages, OwnEmbedding, Proposal
from attfc.heads.checked import checked
from attfc.heads.head import Head, margin_of_all
from attfc.heads.memory import HeadMemory
from attfc.heads.options import BlockMib, FilterAbove, FilterGap, Filtering
from attfc.losses.container_softmax import container_softmax_and_nearest
from attfc.losses.margins import CosFace, Margin
from attfc.losses.streaming_pass import EMPTY

__all__ = ["AttFC", "default_margin"]

DISAGREES_BELOW = 0.1  # cosine of an image to the center of its label


def default_margin(identities: int) -> Margin:
    """Return CosFace 0.4 at scale 32, or 64 from 50,000 identities on."""
    return CosFace(usual_scale(identities), 0.4)


class AttFC(Head):
    """The AttFC head, put together from a center rule, a bank of negatives and what the batch's own centers do.

    `AttFC.default` builds the recommended method and `AttFC.published` that of the paper; all else is for experiments.

    Args:
        embedding_size: D.
        margin: margin on the positive; owns the scale s.
        identities: N; labels are 0 to N - 1. None: any label, for a bank whose size is a count and that keeps no row per identity.
        center: the rule: `OwnEmbedding` (default), `KeyAttention`, `Pairs` or `OtherImages`.
        negatives: the bank: `CenterTable` (default), `RecentCenters`, or `ImageMemory`, the default with `OtherImages` alone.
        stored: another bank that answers what is stored of an identity; default: the negatives.
        in_batch: "none": the batch's new centers of other identities are not negatives. "fixed": they are. "push": they are, and pass their
            gradient on to the embeddings that they are made of. So queries of other identities push these embeddings away, as they would
            push a trained row. These centers replace those identities' stored rows, each identity once; with a fifo bank they come on
            top. The query's own center and stored centers pass no gradient on.
        filter_above, filtering, filter_gap, images, block_mib, ranks: as every head (`Head`). With `OtherImages` an image that is set aside is
            remembered all the same.

    In `eval()` the loss is computed and nothing is kept.

    `statistics()` gives of the last step: `positive_cosine`, mean before the margin, and `attention_entropy`, nats (log K: all keys weigh the
    same). `positive_share` is the share of samples that had a positive; the others count 0 in the loss. It is left out with `KeyAttention`,
    where all have one. `stored_share`: those with a stored center. `disagreeing_share`: of those since the last call, how many lie at a cosine
    below 0.1 to it, as images with a wrong label do. `set_aside_share`: see `filter_gap`. Of a container: `fill` share, and `center_age` in steps.

    Raises:
        UserError: parts that do not go together; an option out of its range.

    >>> head = AttFC(4, Margin(scale=16.0), identities=80, center=KeyAttention(keys=1), negatives=RecentCenters(count=8), in_batch="none")
    >>> embeddings = torch.eye(4)[:2].requires_grad_()
    >>> head(embeddings, torch.tensor([0, 1]), torch.eye(4)[:2].unsqueeze(1)).item()  # no negatives yet
    0.0
    >>> head.statistics()["fill"]
    0.25
    """

    @checked(
        slots="negatives=RecentCenters(count=...) or CenterTable(count=...)",
        keys_per_query="center=KeyAttention(keys=...)",
        temperature="center=KeyAttention(temperature=...)",
        include_stored_center="center=KeyAttention(include_stored=...)",
        center_blend="center=OwnEmbedding(share=...), or the share of another rule",
        center_source="center=KeyAttention(), OwnEmbedding(), Pairs() or OtherImages(images=M)",
        policy="negatives=RecentCenters(policy=...)",
        dtype="negatives=RecentCenters(dtype=...)",
        initial="negatives=RecentCenters(initial=...)",
        in_batch_negatives='in_batch="fixed", or "none"',
        in_batch_gradient='in_batch="push", or "fixed"',
        interclass_filtering_threshold="filter_above=...",
        table="negatives=CenterTable(), or stored=CenterTable() beside other negatives",
        memory="center=OtherImages(images=M)",
        rows="negatives=CenterTable(place=...)",
        seed="negatives=CenterTable(seed=...)",
    )
    def __init__(
        self,
        embedding_size: int,
        margin: Margin,
        *,
        identities: int | None,
        center: CenterRule | None = None,
        negatives: Bank | None = None,
        stored: Bank | None = None,
        in_batch: Annotated[
            Literal["push", "fixed", "none"],
            Option(
                "centers of other people in the batch as negatives. fixed: without a gradient; push: with one, which moves the embeddings that "
                "they are made of away from other people"
            ),
        ] = "push",
        filter_above: FilterAbove = None,
        filtering: Filtering = "drop",
        filter_gap: FilterGap = None,
        images: int | None = None,
        block_mib: BlockMib = 32.0,
        ranks: Ranks | None = None,
    ) -> None:
        center = OwnEmbedding() if center is None else center
        _refuse_strangers(center, negatives, stored)
        super().__init__(
            embedding_size,
            margin,
            keys_per_query=center.keys_per_query,
            filter_above=filter_above,
            filtering=filtering,
            filter_gap=filter_gap,
            images=images,
            block_mib=block_mib,
            ranks=ranks,
        )
        remembers = isinstance(center, OtherImages)
        if negatives is None:
            negatives = ImageMemory() if remembers else CenterTable()
        if remembers and stored is None and isinstance(negatives, RecentCenters):
            stored = ImageMemory()
        stored = None if stored is negatives else stored
        _refuse_misfits(center, negatives, stored, in_batch, identities)
        self.identities = identities
        self.center = center
        self.in_batch = in_batch
        self.takes_positions = remembers
        for bank in [negatives] if stored is None else [negatives, stored]:
            self.add_module(bank.state_name, bank.bind(embedding_size, identities, self.ranks, center.images))
        self._looked_at: Tensor | None = None

    @property
    def negatives(self) -> Bank:
        """The bank whose rows are the negatives."""
        return self.banks[0]

    @property
    def stored(self) -> Bank:
        """The bank that says what is stored of an identity."""
        return self.banks[-1]

    @property
    def banks(self) -> list[Bank]:
        """The bank of negatives, and that of the stored centers if it is another."""
        return [*self._named_banks.values()]

    @classmethod
    def default(cls, embedding_size: int, identities: int, **changes: Any) -> "AttFC":
        """Build the method that `attfc train` uses by default; train it with `loss = head(embeddings, labels)`, without keys.

        A table keeps the latest center of every identity, 2 bytes per number. The stored center of its identity is a query's positive, then
        the query's embedding is blended into it. Negatives are centers drawn from the table, anew in each step, and the batch's own new centers.
        The first image of an identity finds no center and counts 0 in the loss: the first losses are 0, `positive_share` in `statistics` says why.

        Args:
            embedding_size: D, that of the backbone.
            identities: N >= 2; labels are 0 to N - 1. The batch may be larger, and may repeat identities.
            changes: arguments of the class that are to be others. `margin`: default `CosFace` 0.4, scale 32 below 50,000 identities, else 64.
                `negatives=CenterTable(count=..., place=...)`: how many centers a step draws, and where the table lives. `in_batch="fixed"` where
                people have two or three images. `center=OwnEmbedding(share=...)`.

        Raises:
            UserError: fewer than two identities, or a value out of its range.
            TypeError: an unknown option.

        >>> head = AttFC.default(embedding_size=4, identities=10)
        >>> labels = torch.tensor([0, 1])
        >>> [(head(torch.eye(4)[:2], labels).item(), head.statistics()["positive_share"]) for step in range(2)][0]
        (0.0, 0.0)
        >>> head.statistics()["positive_share"]  # of the second step: both identities have a center now
        1.0
        """
        if identities < 2:
            raise UserError(f"identities is {identities}: training tells identities apart, so it needs at least 2")
        margin = changes.pop("margin", None) or default_margin(identities)
        return cls(embedding_size, margin, identities=identities, **changes)

    @classmethod
    def published(
        cls, embedding_size: int, slots: int, *, margin: Margin | None = None, ranks: Ranks | None = None
    ) -> "AttFC":
        """Build the head of the paper (arXiv 2503.06839); train it with `loss = head(embeddings, labels, keys)`.

        Two keys per query, a first-in first-out container of float32 rows, no blending, no negatives from the batch itself. What else
        `profile=published` sets lives elsewhere: `MomentumPair(backbone, 0.999, batch_norm="batch")` embeds the keys, and
        `AttentionLoader(store, B, keys_per_query=2, distinct_keys=False)` draws them with replacement.

        Args:
            embedding_size: D, that of the backbone.
            slots: C, the container's size; at least the batch size, and it may exceed the number of identities.
            margin: default `CosFace` 0.4 at scale 64. The published code takes a margin's derivative as 1: for another margin pass
                `gradient="straight_through"`, for `ArcFace` also `beyond_pi="wrap"`.
            ranks: see the class.
        """
        return cls(
            embedding_size,
            margin or CosFace(64.0, 0.4, gradient="straight_through"),
            identities=None,
            center=KeyAttention(keys=2),
            negatives=RecentCenters(count=slots, policy="fifo"),
            in_batch="none",
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
        """Return the mean loss of the batch and keep its centers.

        Args:
            embeddings_BD: (B, D) float of any dtype and length, with gradient; computed in float32 (float64 stays).
            labels_B: (B,) int64 >= 0; not modified.
            keys_BKD: (B, K, D) float from the key encoder, not normalized; no gradient flows into it.
            positions_B: (B,) int64, where the images stand in the data set; with `OtherImages` only.
            ahead: what `bring` gave for these labels and positions; None: stored rows are fetched now, and from host memory waited for.

        Raises:
            UserError: wrong shapes or types, no keys, no positions, a batch larger than the container, a label or position without a row.
        """
        query_BD, norms_B, every_label_B = self._seen(embeddings_BD, labels_B)
        self.negatives.check_room(len(every_label_B))
        every_position_B = self.center.positions(positions_B, labels_B, self.ranks)
        batch = Batch(query_BD, labels_B, every_label_B, keys_BKD, every_position_B)
        for name, bank in self._named_banks.items():
            bank.ahead = (ahead or {}).get(name, {})
        recalled = self._recall(batch)
        # The queries as parts of new centers: as negatives these may push back on them, as positives and in storage they never do.
        present_BD = query_BD if self.in_batch == "push" else query_BD.detach()
        proposal = self.center(batch, present_BD, recalled)
        cosine_B = (query_BD * proposal.positive_BD).sum(dim=1)
        every_new_BD = self.ranks.gather(proposal.new_BD)
        negatives, extra_BD, extra_labels_B = self._negatives(batch, every_new_BD)
        loss_B, nearest_B = container_softmax_and_nearest(
            query_BD,
            margin_of_all(self.margin, cosine_B, norms_B, self.ranks),
            (negatives.rows_SD, negatives.labels_S, negatives.scales_S),
            labels_B,
            self.margin.scale,
            extra_rows_ED=extra_BD,
            extra_labels_E=extra_labels_B,
            ranks=self.ranks,
            **self.streaming,
        )
        if (has_positive_B := proposal.has_positive_B) is not None:
            loss_B = torch.where(has_positive_B, loss_B, 0.0)
            nearest_B = torch.where(has_positive_B, nearest_B, -1.0)
        self._note(query_BD, cosine_B, recalled, proposal)
        if self.set_aside is not None:
            trained_B = False if recalled.trained_B is None else recalled.trained_B
            loss_B, aside_B = self.set_aside(loss_B, cosine_B, nearest_B, self._last_step, trained_B)
            batch, new_BD = self.set_aside.kept(aside_B, batch, proposal.new_BD.detach(), recalled)
            every_new_BD = self.ranks.gather(new_BD)
        if self.training:
            for bank in self.banks:
                bank.update(batch, every_new_BD, recalled)
        return loss_B.mean()

    def hold_centers(self) -> CenterTable:
        """Take the stored centers as positives and as the batch's own centers, and change none."""
        table = self.negatives
        if not isinstance(table, CenterTable) or len(self.banks) > 1 or not isinstance(self.center, OwnEmbedding):
            return super().hold_centers()
        if table.frequent is not None:
            raise UserError(
                "teacher.centers=fixed gives every identity the center that a teacher has for it, and negatives.trained="
                f"{table.trained_count} trains some: set negatives.trained=0"
            )
        self.center, table.held = HeldCenter(), True
        return table

    def bring(self, labels_B: Tensor, positions_B: Tensor | None, device: torch.device) -> dict[str, Ahead]:
        """Start to bring the rows of banks in host memory or in a file."""
        banks = {name: bank for name, bank in self._named_banks.items() if isinstance(bank, KeptRows)}
        outside = any(bank.place != "device" for bank in banks.values())
        every_label_B, every_position_B = self._known_labels(labels_B) if outside else None, None
        if every_label_B is None:
            return {}
        if self.takes_positions:
            every_position_B = self.center.positions(positions_B, labels_B, self.ranks)
        known = every_label_B, every_position_B, device
        return {
            name: bank.bring(
                *known, stored=bank is self.stored and self.center.uses_stored, drawn=bank is self.negatives
            )
            for name, bank in banks.items()
        }

    def _recall(self, batch: Batch) -> Recalled:
        """Return what is stored of our samples; nothing where the rule does not ask."""
        if self.center.uses_stored:
            return self.stored.recall(batch)
        nobody_B = torch.zeros_like(batch.labels_B, dtype=torch.bool)
        return Recalled(nobody_B, torch.zeros((), device=nobody_B.device).expand(batch.query_BD.shape))

    def _negatives(self, batch: Batch, every_new_BD: Tensor) -> tuple[Negatives, Tensor | None, Tensor | None]:
        """Return this rank's rows before the batch is kept, and its part of the batch's new centers, if they join, with their labels."""
        every_label_B = batch.every_label_B
        negatives = self.negatives.negatives(every_label_B)
        trained = self.negatives.trained()
        if self.in_batch == "none":
            return negatives, *((None, None) if trained is None else trained[:2])
        new_BD, new_labels_B = every_new_BD, every_label_B
        if self.negatives.one_per_identity:
            last_B = last_occurrence(every_label_B)
            places_B = torch.arange(every_label_B.shape[0], device=every_label_B.device)
            new_BD = merge_centers(every_new_BD, last_B)
            new_labels_B = torch.where(last_B == places_B, every_label_B, EMPTY)
            negatives = negatives.without(every_label_B)  # the new centers stand in for the stored ones of the batch
        new_BD, new_labels_B = self.ranks.own(new_BD), self.ranks.own(new_labels_B)
        if trained is not None:
            stays_out_B = find_sorted(trained.every_label_T, new_labels_B)[1]
            new_BD = torch.cat([new_BD, trained.rows_TD])
            new_labels_B = torch.cat([torch.where(stays_out_B, EMPTY, new_labels_B), trained.labels_T])
        return negatives, new_BD, new_labels_B

    @torch.no_grad()
    def _note(self, query_BD: Tensor, cosine_B: Tensor, recalled: Recalled, proposal: Proposal) -> None:
        """Keep a few scalars of the step on the device; `statistics` turns them into numbers."""
        cosine_B, has_positive_B, trained_B = cosine_B.detach(), proposal.has_positive_B, recalled.trained_B
        self._last_step = dict(proposal.figures)
        made_B = recalled.found_B if trained_B is None else recalled.found_B & ~trained_B
        counted = [made_B if each_B is None else each_B for each_B in (has_positive_B, made_B, trained_B)]
        # Sums over the samples of all ranks: what a rank notes is its part, and the mean over ranks is the figure of all.
        size, counts = self.ranks.size, torch.stack([each_B.sum() for each_B in counted])
        positives, made, trained = (
            self.ranks.sum(counts) if self.center.uses_stored or has_positive_B is not None else counts
        )
        if has_positive_B is None:
            self._last_step["positive_cosine"] = cosine_B.mean()
        else:
            self._last_step["positive_cosine"] = (
                size * torch.where(has_positive_B, cosine_B, 0.0).sum() / positives.clamp_min(1)
            )
            self._last_step["positive_share"] = has_positive_B.float().mean()
        if self.center.uses_stored:
            self._last_step["stored_share"] = recalled.found_B.float().mean()
            far_B = made_B & ((query_BD * recalled.center_BD).sum(dim=1) < DISAGREES_BELOW)
            looked_at = torch.stack([size * far_B.sum(), made]).to(query_BD.dtype)
            self._looked_at = looked_at if self._looked_at is None else self._looked_at + looked_at
            self._last_step["disagreeing_share"] = self._looked_at[0] / self._looked_at[1].clamp_min(1)
        if trained_B is not None:
            self._last_step["trained_share"] = trained_B.float().mean()
            self._last_step["trained_cosine"] = (
                size * torch.where(trained_B, cosine_B, 0.0).sum() / trained.clamp_min(1)
            )

    def statistics(self) -> dict[str, float]:
        """As every head; `disagreeing_share` begins anew."""
        self._looked_at = None
        return super().statistics()

    def footprint(self, batch: int, *, cached: bool = True) -> HeadMemory:
        """The banks, a pass over the negatives, what a step makes of queries, keys and groups, and the rows that a bank trains."""
        everyone, block_mib = batch * self.ranks.size, self.streaming["block_mib"]
        held = sum(bank.footprint(everyone, block_mib, cached)[0] for bank in self.banks)
        held += sum(buffer.nbytes for buffer in self.center.buffers())
        _, working, streamed = self.negatives.footprint(everyone, block_mib, cached)
        working += everyone * self.embedding_size * 4 * (self.keys_per_query + getattr(self.center, "group", 0) + 6)
        trained = sum(rows.nbytes for rows in self.parameters())
        dense = trained // (4 * self.embedding_size)
        # Backward: rows of unit length, and three gradients on the way to theirs; before it cosines, weights, and which count.
        working += max(4 * trained, trained + 13.0 * everyone * dense)
        return HeadMemory(held + trained, trained, working, self.keys_per_query, streamed, "container", dense)


def _refuse_strangers(center: CenterRule, negatives: Bank | None, stored: Bank | None) -> None:
    """Refuse what is not a part at all."""
    for name, part, kind, example in (
        ("center", center, CenterRule, "a center rule, such as OwnEmbedding(share=...)"),
        ("negatives", negatives, Bank, "a bank, such as CenterTable(count=...)"),
        ("stored", stored, Bank, "a bank, such as CenterTable()"),
    ):
        if part is not None and not isinstance(part, kind):
            raise UserError(f"AttFC: {name} is {part!r}: give {example}")


def _refuse_misfits(
    center: CenterRule, negatives: Bank, stored: Bank | None, in_batch: str, identities: int | None
) -> None:
    """Refuse parts that do not go together."""
    counts = center.image_counts if isinstance(center, OwnEmbedding) else None
    if counts is not None and identities not in (None, len(counts)):
        raise UserError(
            f"OwnEmbedding(image_counts=...) has the images of {len(counts)} identities, and the head {identities} identities: "
            "pass the number of images of each"
        )
    rule, bank, other = (type(part).__name__ for part in (center, negatives, stored))
    if in_batch == "push" and isinstance(center, KeyAttention):
        raise UserError(
            f'in_batch="push" does not go with center={rule}: keys carry no gradient; take in_batch="fixed" or "none", or '
            "center=OwnEmbedding(), Pairs() or OtherImages(...)"
        )
    if isinstance(center, OtherImages):
        if not isinstance(negatives, ImageMemory | RecentCenters):
            raise UserError(
                f"negatives={bank} does not go with center={rule}, which holds the centers of all identities itself: leave negatives out, "
                "or take ImageMemory() or RecentCenters(...)"
            )
        if stored is not None and not isinstance(stored, ImageMemory):
            raise UserError(
                f"stored={other} does not go with center={rule}, which recalls single images: leave stored out, or take ImageMemory()"
            )
    elif isinstance(negatives, ImageMemory) or isinstance(stored, ImageMemory):
        raise UserError(
            f"ImageMemory does not go with center={rule}, which remembers no images: take center=OtherImages(images=M), or CenterTable()"
        )
    trains = max(getattr(each, "trained_count", 0) for each in (negatives, stored))
    if trains and (stored is not None or not isinstance(center, OwnEmbedding)):
        beside = f"center={rule}" if stored is None else f"stored={other}"
        raise UserError(
            f"negatives.trained={trains} does not go with {beside}: a trained row is its identity's center; take "
            "center=OwnEmbedding() without another bank, or negatives.trained=0"
        )
    if stored is not None and type(stored) is type(negatives):
        raise UserError(f"stored={other} beside negatives={bank}: one answers for both, leave stored out")
    if stored is not None and not center.uses_stored:
        raise UserError(
            f"stored={other} is given and center={rule} uses no stored centers: set its share"
            + " or include_stored" * isinstance(center, KeyAttention)
            + ", or leave stored out"
        )
