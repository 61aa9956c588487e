"""Center rules: who is a query's positive, and which center of its identity is kept.

`KeyAttention` (published) makes the generative class center (GCC) from a few key embeddings, by attention; `OwnEmbedding` (default) blends the
query's own embedding into the stored center, `Pairs` that of the other queries of the identity in the batch; `OtherImages` takes the mean of what is
remembered of the identity's other images. A rule keeps nothing itself: what is stored comes from a bank. Cost: O(B D), of keys O(B K D).

Source: AttFC (arXiv 2503.06839), steps 4 and 5 of `attfc.heads.attfc`. Differs: softmax in float32. The other three are our own; `Pairs` in groups,
with the own embedding and a container, is Prototype Memory (arXiv 2105.02103; docs/heads.md says what differs).
"""

import math
from typing import Annotated, NamedTuple

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from attfc.config.option import Option
from attfc.distributed import Ranks
from attfc.errors import UserError
from attfc.heads.banks.bank import Batch, Recalled
from attfc.heads.checked import checked
from attfc.heads.head import unit_length
from attfc.heads.options import MemoryEpochs, StoredShare
from attfc.losses.numbers import check_numbers

__all__ = [
    "CenterRule",
    "HeldCenter",
    "KeyAttention",
    "OtherImages",
    "OwnEmbedding",
    "Pairs",
    "Proposal",
    "attend",
    "generative_class_center",
]


class Proposal(NamedTuple):
    """What a rule makes of a batch.

    Attributes:
        positive_BD: (B, D) the positives, of unit length where there is one.
        new_BD: (B, D) the identities' new centers, of unit length, with the gradient of the embeddings that were given with it.
        has_positive_B: (B,) bool; the others teach nothing. None: all have one.
        figures: scalars for the log.
    """

    positive_BD: Tensor
    new_BD: Tensor
    has_positive_B: Tensor | None = None
    figures: dict[str, Tensor] = {}  # noqa: RUF012


class CenterRule(nn.Module):
    """Base of the rules: `rule(batch, present_BD, recalled)`.

    Attributes:
        keys_per_query: keys that the loader should deliver.
        uses_stored: whether it looks at what is stored.
        images: of the data set, for a rule that remembers each of them.
    """

    keys_per_query = 0
    uses_stored = True
    images: int | None = None

    def forward(self, batch: Batch, present_BD: Tensor, recalled: Recalled) -> Proposal:
        """Return positives and new centers.

        Args:
            present_BD: (B, D) the queries as parts of new centers, with gradient only if new centers are to have one.
            recalled: what the bank knows of the samples.
        """
        raise NotImplementedError

    def positions(self, positions_B: Tensor | None, labels_B: Tensor, ranks: Ranks) -> Tensor | None:
        """Return the positions of all ranks' images, for a rule that takes them."""
        return None

    def _blend(self, center_BD: Tensor, recalled: Recalled, share: float | Tensor) -> Tensor:
        """Return the new centers, with that share (B, 1) of the stored ones; who is not stored takes the new one alone."""
        if not isinstance(share, Tensor) and share == 0:
            return center_BD
        stored_BD = recalled.center_BD.detach().to(center_BD.dtype)
        blended_BD = normalize(share * stored_BD + (1 - share) * center_BD, dim=1)
        return torch.where(recalled.found_B.unsqueeze(1), blended_BD, center_BD)


class KeyAttention(CenterRule):
    """The generative class center of K keys is the positive, and is kept (arXiv 2503.06839).

    Args:
        keys: K that the loader should deliver; any K >= 1 works.
        temperature: tau of the attention.
        include_stored: the identity's stored center joins its keys as one more candidate.
        share: of the stored center in the new one. An identity that is not stored takes its new center alone.
    """

    @checked(keys_per_query="keys=...", include_stored_center="include_stored=...", center_blend="share=...")
    def __init__(
        self,
        keys: Annotated[int, Option("keys per query: other images of its person", ge=1)] = 2,
        temperature: Annotated[
            float,
            Option("below 1, keys similar to the query weigh more; above 1, all weigh more alike", unit="cosine", gt=0),
        ] = 1.0,
        include_stored: Annotated[
            bool, Option("the identity's stored center joins the keys as one more candidate")
        ] = False,
        share: StoredShare = 0.0,
    ) -> None:
        super().__init__()
        self.keys_per_query = keys
        self.temperature = temperature
        self.include_stored = include_stored
        self.share = share
        self.uses_stored = include_stored or share > 0

    @torch.no_grad()
    def forward(self, batch: Batch, present_BD: Tensor, recalled: Recalled) -> Proposal:
        """Steps 4 and 5, with the stored center where the options want it.

        Raises:
            UserError: no keys.
        """
        if batch.keys_BKD is None:
            raise UserError(
                "AttFC got no keys: pass head(embeddings, labels, keys) with the key encoder's (B, K, D), "
                "or build it with center=OwnEmbedding()"
            )
        candidates = (recalled.center_BD, recalled.found_B) if self.include_stored else (None, None)
        center_BD, weights_BK = attend(batch.query_BD, batch.keys_BKD, self.temperature, *candidates)
        entropy = -torch.xlogy(weights_BK, weights_BK).sum(dim=1).mean()
        new_BD = self._blend(center_BD, recalled, self.share)
        return Proposal(new_BD, new_BD, None, {"attention_entropy": entropy})


class OwnEmbedding(CenterRule):
    """The stored center is the positive; the query's own embedding, blended with it, is kept. No key encoder.

    A sample whose identity is not stored has no positive but itself, which teaches nothing: it counts 0 in the mean (the divisor stays B).

    The stored center is a running mean of about 1 / (1 - share) images. An identity with n images gets the share 1 - 1 / (memory n) where that is
    larger: its center is less noisy, and no older than a part of an epoch.

    Args:
        share: of the stored center in the new one.
        memory: part of an epoch that the mean covers where an identity has many images; 0: one share for all. `attfc train PATH` takes 0.1.
        image_counts: (N,) images of each identity, `store.identities.counts()`; without it there is one share for all.
    """

    image_counts: Tensor | None

    @checked(center_blend="share=...")
    def __init__(
        self,
        share: StoredShare = 0.6,
        memory: MemoryEpochs = 0.0,
        image_counts: npt.ArrayLike | None = None,
    ) -> None:
        super().__init__()
        self.share, self.memory = share, memory
        counts = (
            None
            if not share or not memory or image_counts is None
            else torch.as_tensor(image_counts, dtype=torch.int32)
        )
        if counts is not None and counts.device.type != "meta" and memory * int(counts.max()) <= 1 / (1 - share):
            counts = None  # nobody has so many
        self.register_buffer("image_counts", counts, persistent=False)

    def forward(self, batch: Batch, present_BD: Tensor, recalled: Recalled) -> Proposal:
        """Return the stored centers as positives."""
        share: float | Tensor = self.share
        if self.image_counts is not None:
            images_B1 = self.image_counts.index_select(0, batch.labels_B).to(present_BD.dtype).unsqueeze(1)
            share = (1 - 1 / (self.memory * images_B1)).clamp_min(self.share)
        new_BD = self._blend(present_BD, recalled, share)
        return Proposal(recalled.center_BD.to(new_BD.dtype), new_BD, recalled.found_B)


class HeldCenter(CenterRule):
    """The stored center is the positive and stays as it is: for a table whose centers are given (`Head.hold_centers`)."""

    def forward(self, batch: Batch, present_BD: Tensor, recalled: Recalled) -> Proposal:
        """Return the stored centers, as positives and as the centers of the batch."""
        center_BD = recalled.center_BD.to(present_BD.dtype)
        return Proposal(center_BD, center_BD, recalled.found_B)


class Pairs(CenterRule):
    """Queries 2i and 2i + 1 show one identity, and the embedding of each is the other's only key. No key encoder.

    In groups of K, the mean of the K - 1 others is what the other is in a pair. A query whose neighbours are all of other identities (a broken
    image was replaced) is treated as with `OwnEmbedding`.

    Args:
        share: of the stored center in the new one.
        group: K queries in a row that show one identity.
        own: the query's own embedding is part of the mean: a group has one center, its positive and what is kept (Prototype Memory).
    """

    @checked(center_blend="share=...")
    def __init__(
        self,
        share: StoredShare = 0.6,
        group: Annotated[int, Option("queries in a row that show one person; the batch is a multiple of it", ge=2)] = 2,
        own: Annotated[
            bool, Option("the query's own embedding is part of its new center, not its neighbours' alone")
        ] = False,
    ) -> None:
        super().__init__()
        self.share = share
        self.group = group
        self.own = own
        self.uses_stored = share > 0

    def forward(self, batch: Batch, present_BD: Tensor, recalled: Recalled) -> Proposal:
        """Return centers of the neighbours.

        Raises:
            UserError: a number of queries that is not a multiple of the group.
        """
        labels_B, K = batch.labels_B, self.group
        if labels_B.shape[0] % K:
            raise UserError(
                f"center=Pairs got {labels_B.shape[0]} queries: {K}i {'and' if K == 2 else 'to'} {K}i + {K - 1} are each other's key, "
                f"pass a multiple of {K}"
            )
        labels_XK, present_XKD = labels_B.view(-1, K), present_BD.view(-1, K, present_BD.shape[1])
        itself_KK = torch.eye(K, dtype=torch.bool, device=labels_B.device)
        others_XKK = (labels_XK[:, :, None] == labels_XK[:, None, :]) & ~itself_KK
        count_B = others_XKK.sum(dim=2).flatten()
        # A sum of products, not a matmul: autocast may not round it.
        mean_BD = (others_XKK.to(present_BD.dtype).unsqueeze(3) * present_XKD.unsqueeze(1)).sum(dim=2).flatten(0, 1)
        if self.own:
            mean_BD, count_B = mean_BD + present_BD, count_B + 1
        mean_BD = torch.where((count_B > 1).unsqueeze(1), normalize(mean_BD, dim=1), mean_BD)
        paired_B = others_XKK.any(dim=2).flatten()
        new_BD = self._blend(torch.where(paired_B.unsqueeze(1), mean_BD, present_BD), recalled, self.share)
        positive_BD = torch.where(paired_B.unsqueeze(1), new_BD.detach(), recalled.center_BD.to(new_BD.dtype))
        return Proposal(positive_BD, new_BD, recalled.found_B | paired_B)


class OtherImages(CenterRule):
    """The mean of the remembered embeddings of the identity's other images is the positive. No key encoder; the head takes positions.

    Embeddings are at most an epoch old. An image that is its identity's only one uses its own last embedding as positive. An identity seen for
    the first time contributes no loss. What is kept for the negatives is the mean with the query's own.

    Args:
        images: M of the data set; positions are 0 to M - 1. An image stays with its identity.
    """

    @checked(memory="OtherImages(images=M) alone; place and folder are those of ImageMemory")
    def __init__(self, images: int) -> None:
        super().__init__()
        self.images = images

    def forward(self, batch: Batch, present_BD: Tensor, recalled: Recalled) -> Proposal:
        """Return centers of the other images."""
        assert recalled.last_BD is not None
        assert recalled.others_BD is not None
        dtype, found_B1 = batch.query_BD.dtype, recalled.found_B.unsqueeze(1)
        positive_BD = torch.where(found_B1, recalled.center_BD, normalize(recalled.last_BD, dim=1).to(dtype))
        new_BD = normalize(recalled.others_BD.to(dtype) + present_BD, dim=1)
        return Proposal(positive_BD, new_BD, recalled.found_B | recalled.last_BD.any(dim=1))

    def positions(self, positions_B: Tensor | None, labels_B: Tensor, ranks: Ranks) -> Tensor:
        """Check and gather the positions.

        Raises:
            UserError: none given, or wrong ones.
        """
        if positions_B is None or positions_B.shape != labels_B.shape or positions_B.dtype != torch.int64:
            given = "none" if positions_B is None else f"{positions_B.dtype} of shape {tuple(positions_B.shape)}"
            raise UserError(
                f"center=OtherImages needs the images' positions in the data set, int64 of shape {tuple(labels_B.shape)}, and got {given}: "
                "pass head(embeddings, labels, positions_B=batch.positions)"
            )
        every_position_B = ranks.gather(positions_B.to(labels_B.device))
        assert self.images is not None
        fix = "build OtherImages with images = the data set's number of images"
        check_numbers(every_position_B, self.images, "position", fix, ranks)
        return every_position_B


def generative_class_center(
    query_BD: Tensor,
    keys_BKD: Tensor,
    temperature: float = 1.0,
    *,
    stored_BD: Tensor | None = None,
    stored_B: Tensor | None = None,
) -> Tensor:
    """Blend K key embeddings of one identity into its unit-length class center.

    a = softmax_k(cos(query, key_k) / temperature);  center = normalize(sum_k a_k key_k)

    Args:
        query_BD: (B, D) float; any length; detached here, the weights carry no gradient.
        keys_BKD: (B, K, D) float on the same device; not normalized: longer keys weigh more.
        temperature: > 0, in units of cosine.
        stored_BD: (B, D) the identities' stored centers, one more candidate each, at the mean length of the sample's keys. At
            unit length it would vanish beside keys that are ten times as long.
        stored_B: (B,) bool, who has a stored center; the others attend over their keys alone.

    Returns:
        (B, D) float32 (float64 for float64 keys), unit length, no gradient.

    Raises:
        UserError: no keys, shapes that do not fit, temperature <= 0.

    Source: AttFC (arXiv 2503.06839), attention loader. Differs: softmax in float32.

    >>> keys = torch.tensor([[[2.0, 0.0], [2.0, 0.0]]])
    >>> generative_class_center(torch.tensor([[1.0, 0.0]]), keys)
    tensor([[1., 0.]])
    """
    return attend(query_BD, keys_BKD, temperature, stored_BD, stored_B)[0]


@torch.no_grad()
def attend(
    query_BD: Tensor, keys_BKD: Tensor, temperature: float, stored_BD: Tensor | None, stored_B: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the centers and the attention weights, (B, K) or (B, K + 1) with stored centers."""
    if keys_BKD.dim() != 3 or (keys_BKD.shape[0], keys_BKD.shape[2]) != tuple(query_BD.shape):
        batch, size = query_BD.shape
        raise UserError(
            f"keys have shape {tuple(keys_BKD.shape)}, the queries {tuple(query_BD.shape)}: "
            f"embed K images per query with the key encoder, shape ({batch}, K, {size})"
        )
    if keys_BKD.shape[1] == 0:
        raise UserError("keys_BKD holds no keys (K = 0): the attention loader needs keys_per_query >= 1")
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}: it divides cosines and must be above 0 (published: 1)")
    query_BD, _ = unit_length(query_BD)
    candidates_BKD = keys_BKD if keys_BKD.dtype == torch.float64 else keys_BKD.float()
    lengths_BK = candidates_BKD.norm(dim=2)
    if stored_BD is not None:
        stored_BD = normalize(stored_BD.to(candidates_BKD.dtype), dim=1) * lengths_BK.mean(dim=1, keepdim=True)
        candidates_BKD = torch.cat([candidates_BKD, stored_BD.unsqueeze(1)], dim=1)
        lengths_BK = candidates_BKD.norm(dim=2)
    # A product and a sum, not a matmul: neither autocast nor TF32 may round the cosines.
    cosines_BK = (query_BD.unsqueeze(1) * candidates_BKD).sum(dim=2) / lengths_BK.clamp_min(1e-12)
    logits_BK = cosines_BK / temperature
    if stored_BD is not None and stored_B is not None:
        logits_BK[:, -1].masked_fill_(~stored_B, -math.inf)
    weights_BK = logits_BK.softmax(dim=1)
    return normalize((weights_BK.unsqueeze(2) * candidates_BKD).sum(dim=1), dim=1), weights_BK
