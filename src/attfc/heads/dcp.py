"""Dynamic Class Pool: the C identities seen most recently, each with its two latest key embeddings as its classifiers.

A sample whose identity is in the pool is classified against the pool, once with the newest embeddings as class centers and once with the
previous ones. A sample whose identity is absent has no center to go to: it only pushes away its hardest slots. With keys k_i, for both slots
w in (newest, previous) of the pool, P the samples present and A those absent:

    softmax_i = log(exp(s phi_i) + sum_j exp(s q_i.w_j)) - s phi_i,   phi_i = margin(q_i.w_own),  j over the other identities
    push_i    = sum of the h largest max(q_i.w_j, 0) / h,             h = min(max(floor(0.0002 C), 3), 10)
    loss      = mean over both slots of (mean over P of softmax_i + hardest_weight * mean over A of push_i)

The mean over an empty set is 0. The step: 1 the keys of the first `enter_first` of the batch enter the pool, so that those samples are all present;
2 the loss; 3 the other keys enter, too late to help their own samples. An identity that enters has its one embedding in both slots;
one that comes back moves newest to previous. Eviction: the identity that came the longest ago.

Cost per step: two passes of the container softmax and two of the hardest rows, 6 products of B x C x D; one key pass of the backbone.
Memory: two containers, 2 C x (4D | 2D | D + 4) B for float32 | bfloat16 | int8 rows, and 72 to 104 B per slot for labels, stamps and indices, which
both keep. Nothing of size B x C. Every sample runs through both losses and a mask chooses: to split the batch would wait for the device.

Several ranks share the rows of the pool, in the same blocks for both slots: so a rank that holds an identity's newest row holds its previous
one, and moves it without asking anybody. "The first of the batch" are the first of all ranks' samples together, in the order of one
process. A step gathers labels, keys and queries, fetches the own samples' two rows, and reduces as AttFC does, twice; h cosines per query and rank
say which rows are the hardest of all. Not taken: the whole pool on every rank, with nothing to fetch: it would not grow with the ranks.

Source: F2C (arXiv 2105.10375) and its code (tiandunx/FFC). There two thirds of a batch are identity-based (an identity drawn, then two
images of it) and the rest instance-based (an image drawn, without a second one of its identity): all gallery images enter the pool before the loss,
but those of the instance-based part are other samples' images. Here every sample has a key of its own identity, so the keys of that part
wait until the loss is done. Differs, besides:
- both slot losses are averaged, there summed; there the images also change roles in a second pass whose pool is rolled back, and
  both are summed. So the loss here is a quarter of theirs, one backbone pass and one key pass in place of two each.
- previous embeddings count wherever there are any; there only for identities that came in this step, the others have one slot twice.
- several keys of one identity in a batch: their renormalized mean enters; there they fill both slots in turn, the last ones stay.
- slots are empty at first; there random (`initial="random"`), with all numbers positive. Empty slots count as cosine 0 in push_i.
- the state (order of use, slots) is saved whole and bit for bit; labels are int64.
Left open by the paper, and chosen here after the code: h, its clip at 0, the weight 1, two separate means, the order of a step.
Chosen by us: 2 / 3 as the default of `enter_first`, whatever the loader draws; the margin, as everywhere, is whatever is passed (theirs:
ArcFace 0.5 at scale 32).
"""

import math
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from attfc.config.option import Option
from attfc.distributed import Ranks
from attfc.errors import UserError
from attfc.heads.banks.recent import RecentCenters
from attfc.heads.checked import checked
from attfc.heads.head import Head, margin_of_all, unit_length
from attfc.heads.memory import HeadMemory
from attfc.heads.options import BlockMib, FilterAbove, Filtering, InitialRows, RowType, SlotCount, SlotShare
from attfc.losses.container_softmax import container_softmax
from attfc.losses.hardest import mean_hardest_cosine
from attfc.losses.margins import Margin

__all__ = ["DCP"]


class DCP(Head):
    """The DCP head; `loss = head(embeddings, labels, keys)` with one key per sample.

    Args:
        embedding_size: D.
        margin: margin on the positive; owns the scale s.
        identities: N; labels are 0 to N - 1. None: any label, with a `count`.
        share, count: C, identities in the pool; at least the batch size.
        enter_first: share of the batch, from its start, whose keys enter the pool before the loss: samples i < share * B. At 1 nobody is ever
            absent, at 0 whoever the steps before have not stored.
        hardest_weight: factor of the absent samples' term.
        dtype, initial: as `RecentCenters`.
        filter_above, filtering: as every head (`Head`); negatives above it are never among the hardest.
        block_mib, ranks: as every head.

    Raises:
        UserError: an option out of its range; as `RecentCenters`.

    In `eval()` nothing enters: the loss is that against the pool as it stands.

    >>> head = DCP(4, Margin(scale=16.0), count=8, enter_first=0.5)
    >>> loss = head(torch.eye(4)[:2].requires_grad_(), torch.tensor([0, 1]), torch.eye(4)[:2].unsqueeze(1))
    >>> head.statistics()["present_share"], head.newest.fill
    (0.5, tensor(2))
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
        enter_first: Annotated[
            float, Option("share of the batch, from its start, whose keys enter the pool before the loss", ge=0, le=1)
        ] = 0.6666666666666666,
        hardest_weight: Annotated[
            float, Option("weight of the loss of samples whose identity is not in the pool", ge=0, lt=float("inf"))
        ] = 1.0,
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
            keys_per_query=1,
            filter_above=filter_above,
            filtering=filtering,
            block_mib=block_mib,
            ranks=ranks,
        )
        self.identities = identities
        self.enter_first = enter_first
        self.hardest_weight = hardest_weight
        # Both take the same labels in the same order: the same identities stand in the same slots.
        self.newest, self.previous = (
            RecentCenters(share, count, "unique", dtype, initial).bind(embedding_size, identities, self.ranks)
            for _ in range(2)
        )
        self.hardest = min(max(int(0.0002 * self.newest.slots), 3), 10)

    def forward(self, embeddings_BD: Tensor, labels_B: Tensor, keys_BKD: Tensor | None = None) -> Tensor:
        """Return the loss of the batch; its keys enter the pool.

        Args:
            embeddings_BD: (B, D) float of any dtype and length, with gradient; computed in float32 (float64 stays).
            labels_B: (B,) int64 >= 0; not modified.
            keys_BKD: (B, 1, D) float from the key encoder, not normalized; no gradient flows into it.

        Raises:
            UserError: another number of keys than one, wrong shapes or types, a batch larger than the pool.
        """
        query_BD, norms_B, every_label_B = self._seen(embeddings_BD, labels_B)
        batch = len(labels_B)
        if keys_BKD is None or keys_BKD.shape != (batch, 1, self.embedding_size):
            shape = None if keys_BKD is None else tuple(keys_BKD.shape)
            raise UserError(
                f"DCP got keys of shape {shape}: it takes one key per query, shape ({batch}, 1, {self.embedding_size})"
            )
        self.newest.check_room(len(every_label_B))
        every_key_BD = self.ranks.gather(unit_length(keys_BKD[:, 0].detach())[0])
        first = math.ceil(self.enter_first * batch * self.ranks.size)
        if self.training:
            self._enter(every_key_BD[:first], every_label_B[:first])
        loss = self._loss(query_BD, norms_B, labels_B, every_label_B)
        if self.training:
            self._enter(every_key_BD[first:], every_label_B[first:])
        return loss

    @torch.no_grad()
    def _enter(self, key_BD: Tensor, labels_B: Tensor) -> None:
        """Make these keys their identities' newest embeddings, and those that were, the previous ones."""
        if labels_B.shape[0] == 0:
            return
        # Zeros stand for rows of other ranks. They are not stored here: a stored identity keeps its slot, in both containers.
        stored_B, stored_BD = self.newest.lookup(labels_B)
        self.previous.enqueue(torch.where(stored_B.unsqueeze(1), stored_BD.to(key_BD.dtype), key_BD), labels_B)
        self.newest.enqueue(key_BD, labels_B)

    def _loss(self, query_BD: Tensor, norms_B: Tensor, labels_B: Tensor, every_label_B: Tensor) -> Tensor:
        every_present_B, newest_BD = self.newest.lookup(every_label_B)
        _, previous_BD = self.previous.lookup(every_label_B)
        present_B = self.ranks.own(every_present_B)
        own_B2D = self.ranks.sum_own(torch.stack([newest_BD, previous_BD], dim=1))
        own_2BD = normalize(own_B2D.transpose(0, 1).to(query_BD.dtype), dim=2)
        cosine_2B = (query_BD * own_2BD).sum(dim=2)
        # Both slots at once: a margin may keep figures of the batch (AdaFace).
        positive_2B = margin_of_all(self.margin, cosine_2B, norms_B, self.ranks)
        softmax, push = [], []
        for slot, positive_B in zip((self.newest, self.previous), positive_2B, strict=True):
            rows_CD, row_labels_C, scales_C = slot.negatives()
            options: dict[str, Any] = {"row_scales_C": scales_C, "ranks": self.ranks, **self.streaming}
            scale = self.margin.scale
            softmax.append(container_softmax(query_BD, positive_B, rows_CD, row_labels_C, labels_B, scale, **options))
            push.append(mean_hardest_cosine(query_BD, rows_CD, row_labels_C, labels_B, self.hardest, **options))
        softmax_B, push_B = torch.stack(softmax).mean(dim=0), torch.stack(push).mean(dim=0)

        # Two means over the samples of all ranks: each rank returns its own sums, so that the mean over ranks of these is theirs.
        size = self.ranks.size
        present, absent = every_present_B.sum().clamp_min(1), (~every_present_B).sum().clamp_min(1)
        present_loss = size * torch.where(present_B, softmax_B, 0.0).sum() / present
        absent_loss = size * torch.where(present_B, 0.0, push_B).sum() / absent
        with torch.no_grad():
            self._last_step = {
                "positive_cosine": size * torch.where(present_B, cosine_2B[0], 0.0).sum() / present,
                "present_share": present_B.float().mean(),
                "hardest_cosine": absent_loss.detach(),
            }
        return present_loss + self.hardest_weight * absent_loss

    def footprint(self, batch: int, *, cached: bool = True) -> HeadMemory:
        """Both slots, a pass over one, and both slots' hardest rows, kept for backward. Nothing is trained."""
        everyone = batch * self.ranks.size
        held, working, streamed = self.newest.footprint(everyone, self.streaming["block_mib"], cached)
        working += everyone * self.embedding_size * 4 * (7 + 2 * (self.hardest + 6))
        return HeadMemory(2 * held, 0.0, working, 1, streamed, "pool")

    def statistics(self) -> dict[str, float]:
        """Return of the last step: `positive_cosine`, of the samples present with their newest slot, before the margin; `present_share`
        of the samples; `hardest_cosine`, the mean over the absent samples. Of the pool: `fill` share, and `center_age` in steps.
        """
        figures = super().statistics()
        if "center_age" in figures and self.enter_first not in (0, 1):
            figures["center_age"] /= 2  # a step enters in two parts, and the container counts parts
        return figures
