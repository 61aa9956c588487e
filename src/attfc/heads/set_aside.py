"""Images that seem to carry somebody else's name: which of a step do, and leave it.

An image is suspect where the nearest negative is above a cosine and nearer than the image's own center by more than a gap: it does not fit its name,
and fits another. Set aside, it counts 0 in the loss, and what is stored of it and its identity stays. Nobody is set aside in the first epoch, because
an untrained network finds most images nearer to another center than to their own; nor while fewer than a tenth of the images are suspect: then
labels are good, and these images hard. From then on half the gap is enough where the own center is made of embeddings: a mean of a few is nearer to
everybody than a trained row, which is pushed away from other people's images.

The nearest negative falls out of the softmax, so the cost is a few numbers per image, and over ranks one. Not taken: to keep the image and leave out
the one negative that fits it; the image goes on pulling its center, and the network, towards the wrong person (docs/decisions.md).
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from attfc.distributed import Ranks
from attfc.heads.banks.bank import Batch, Recalled

__all__ = ["SUSPECT_SHARE", "SetAside"]

SUSPECT_SHARE = 0.1
"""Of images that are suspect, from which on they are set aside."""
OF_AN_EPOCH = 0.25  # over which the share is averaged
OF_MADE = 0.5  # of the gap, where the own center is made of embeddings


class SetAside(nn.Module):
    """Decides for each image of a step whether it is set aside: `losses, aside = rule(loss_B, cosine_B, nearest_B, figures)`.

    Args:
        above: cosine of the nearest negative, at least.
        gap: by how much it is nearer than the image's own center, if that is trained; half of it, if it is made of embeddings.
        images: of an epoch; 0: it begins at once, with the share of the step before.
        ranks: the processes that have a part of the batch each.
    """

    seen: Tensor
    share: Tensor

    def __init__(self, above: float, gap: float, images: int, ranks: Ranks) -> None:
        super().__init__()
        self.above, self.gap, self.images, self.ranks = above, gap, images, ranks
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("share", torch.zeros((), dtype=torch.float32))

    def forward(
        self,
        loss_B: Tensor,
        cosine_B: Tensor,
        nearest_B: Tensor,
        figures: dict[str, Tensor],
        trained_B: Tensor | bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Return the losses, 0 for those that are set aside, and which these are, (B,) bool.

        Args:
            cosine_B, nearest_B: (B,) of the image with its own center, before the margin, and with the nearest negative.
            figures: of the step; the share of the images that are set aside joins them.
            trained_B: whose own center is trained, (B,) bool, or all of them, or none.
        """
        cosine_B, gap_of_each = cosine_B.detach(), self.gap * (OF_MADE + (1 - OF_MADE) * trained_B)
        suspect_B = nearest_B > (cosine_B + self.gap).clamp_min(self.above)
        begun = self.seen >= self.images
        aside_B = (nearest_B > (cosine_B + gap_of_each).clamp_min(self.above)) & begun & (self.share >= SUSPECT_SHARE)
        figures["set_aside_share"] = aside_B.float().mean()
        if self.training:
            everyone = len(loss_B) * self.ranks.size
            step = min(1.0, everyone / (OF_AN_EPOCH * max(self.images, 1)))
            share = self.ranks.sum(suspect_B.sum()) / everyone
            self.share = torch.where(begun, self.share + step * (share - self.share), self.share)
            self.seen = self.seen + everyone
        return torch.where(aside_B, 0.0, loss_B), aside_B

    def kept(self, aside_B: Tensor, batch: Batch, new_BD: Tensor, recalled: Recalled) -> tuple[Batch, Tensor]:
        """Return the batch and the new centers (B, D) as banks are to keep them: of what is set aside, that which is stored stays."""
        stays_B1 = (aside_B & recalled.found_B).unsqueeze(1)
        new_BD = torch.where(stays_B1, recalled.center_BD.to(new_BD.dtype), new_BD)
        if recalled.last_BD is not None:
            kept_BD = torch.where(aside_B.unsqueeze(1), recalled.last_BD, batch.query_BD.detach())
            batch = replace(batch, query_BD=kept_BD)
        return batch, new_BD

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        for name, own in self.named_buffers():  # a checkpoint made before images were set aside: its first epoch is now
            state_dict.setdefault(prefix + name, own)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"above={self.above:g}, gap={self.gap:g}, images={self.images}"
