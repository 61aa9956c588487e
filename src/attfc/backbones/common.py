"""What every backbone shares: the float32 end, activation checkpointing, and the checks of sizes.

The last linear layer reads up to 25,088 numbers and its output is what the margin is measured on, so it and the BatchNorm
after it run in float32 even inside autocast (arcface_torch leaves its autocast region at the same place). It costs under 1 %
of the multiplications.

Checkpointing runs a block a second time in backward: about a third more compute for about the square root of the memory. Plain
`torch.utils.checkpoint` would also update every BatchNorm's running statistics a second time; here the second run leaves them
alone, so that a checkpointed network trains to the same bits as a plain one.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from attfc.errors import UserError
from attfc.precision import without_autocast

__all__ = ["Backbone", "in_float32", "normal_convolutions"]


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Run batch normalization on batch statistics without touching the running ones."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    saved = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            # Momentum 0 keeps the buffers' values, and, unlike track_running_stats = False, the list of tensors
            # saved for backward stays the one that checkpoint recorded in forward.
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, saved, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked


class Backbone(nn.Module):
    """Base of the networks.

    Args:
        name: for messages.
        embedding_size, image_size: of output and input; the image size a multiple of `multiple` pixels.
        checkpointing: `through` computes the blocks again in backward instead of keeping their activations.
        fractions: options that lie in [0, 1).

    Raises:
        UserError: a size or an option that does not fit.
    """

    def __init__(
        self,
        name: str,
        embedding_size: int,
        image_size: int,
        checkpointing: bool = False,
        multiple: int = 1,
        **fractions: float,
    ) -> None:
        super().__init__()
        if image_size <= 0 or image_size % multiple:
            lower = max(image_size // multiple, 1) * multiple
            raise UserError(
                f"image_size {image_size} does not fit backbone {name}: use a multiple of {multiple}, such as {lower} or {lower + multiple}"
            )
        for option, value in fractions.items():
            if not 0.0 <= value < 1.0:
                raise UserError(f"{option} of backbone {name} is {value}: use a number from 0 to below 1")
        self.name, self.embedding_size, self.image_size = name, embedding_size, image_size
        self.checkpointing = checkpointing

    def through(self, blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
        """Run the blocks one after the other."""
        again = self.checkpointing and self.training and torch.is_grad_enabled()
        for block in blocks:
            x = _checkpointed(block, x) if again else block(x)
        return x


def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """Return ``block(x)``, keeping only `x` for backward and computing the rest again there."""
    contexts: Callable[[], tuple[AbstractContextManager[object], AbstractContextManager[object]]]
    contexts = lambda: (nullcontext(), _statistics_kept(block))  # noqa: E731
    return cast(Tensor, checkpoint(block, x, use_reentrant=False, context_fn=contexts))


def in_float32(x: Tensor, *layers: nn.Module) -> Tensor:
    """Run the last layers of a network in float32, also inside autocast."""
    with without_autocast(x):
        x = x.float()
        for layer in layers:
            x = layer(x)
    return x


def normal_convolutions(network: nn.Module) -> None:
    """Draw the weights of all convolutions from N(0, 0.1), as arcface_torch does."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.1)
