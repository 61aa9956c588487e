"""Images that carry somebody else's name: which of a step seem to, and leave it.

An image is set aside where the nearest negative is above a cosine and nearer than the image's own center by more than a gap: it does not fit its
name, and fits another. It counts 0 in the loss, and its identity's center stays. In the first epoch nobody is set aside, because an untrained
network finds most images nearer to another center than to their own.

The nearest negative falls out of the softmax, so the cost is a few numbers per image. Not taken: to keep the image and leave out the one
negative that fits it; the image goes on pulling its center, and the network, towards the wrong person (docs/study.md, label noise).
"""

import torch
from torch import Tensor, nn

__all__ = ["SetAside"]


class SetAside(nn.Module):
    """Decides for each image of a step whether it is set aside: `counted, aside = rule(loss_B, cosine_B, nearest_B, everyone)`.

    Args:
        above: cosine of the nearest negative, at least.
        gap: by how much it is nearer than the image's own center.
        images: of an epoch, the first of which sets nobody aside; 0: it begins at once.
    """

    seen: Tensor

    def __init__(self, above: float, gap: float, images: int = 0) -> None:
        super().__init__()
        self.above, self.gap, self.images = above, gap, images
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, loss_B: Tensor, cosine_B: Tensor, nearest_B: Tensor, everyone: int) -> tuple[Tensor, Tensor]:
        """Return the losses, 0 for those that are set aside, and which these are, (B,) bool.

        Args:
            cosine_B, nearest_B: (B,) of the image with its own center, before the margin, and with the nearest negative.
            everyone: images of this step, of all ranks.
        """
        aside_B = nearest_B > (cosine_B.detach() + self.gap).clamp_min(self.above)
        aside_B &= self.seen >= self.images
        if self.training:
            self.seen += everyone
        return torch.where(aside_B, 0.0, loss_B), aside_B

    def extra_repr(self) -> str:
        return f"above={self.above:g}, gap={self.gap:g}, images={self.images}"
