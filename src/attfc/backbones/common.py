"""What every backbone shares: the float32 end, activation checkpointing, and the checks of sizes.

The last linear layer reads up to 25,088 numbers and its output is what the margin is measured on, so it and the BatchNorm
after it run in float32 even inside autocast (arcface_torch leaves its autocast region at the same place). It costs under 1 %
of the multiplications.

Checkpointing runs a block a second time in backward: about a third more compute for about the square root of the memory. Plain
`torch.utils.checkpoint` would also update every BatchNorm's running statistics a second time; here the second run leaves them
alone, so that a checkpointed network trains to the same bits as a plain one.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from attfc.errors import UserError

__all__ = ["check_fraction", "check_image_size", "checkpointed"]


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


def checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """Return ``block(x)``, keeping only `x` for backward and computing the rest again there."""
    if not torch.is_grad_enabled():
        return cast(Tensor, block(x))
    contexts: Callable[[], tuple[AbstractContextManager[object], AbstractContextManager[object]]]
    contexts = lambda: (nullcontext(), _statistics_kept(block))  # noqa: E731
    return cast(Tensor, checkpoint(block, x, use_reentrant=False, context_fn=contexts))


def check_image_size(name: str, image_size: int, multiple: int) -> None:
    """Raise UserError unless `image_size` (pixels, square) is a positive multiple of `multiple`."""
    if image_size <= 0 or image_size % multiple:
        lower = max(image_size // multiple, 1) * multiple
        raise UserError(
            f"image_size {image_size} does not fit backbone {name}: use a multiple of {multiple}, such as {lower} or {lower + multiple}"
        )


def check_fraction(name: str, option: str, value: float) -> None:
    """Raise UserError unless 0 <= value < 1."""
    if not 0.0 <= value < 1.0:
        raise UserError(f"{option} of backbone {name} is {value}: use a number from 0 to below 1")
