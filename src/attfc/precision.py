"""Where mixed precision begins and ends; devices without autocast (meta) simply have none."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["autocast", "without_autocast"]


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return a context of mixed precision in `dtype` on `device`; None leaves everything as it is."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which autocast is off on the device of `tensor`: for code that chooses its own precision."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
