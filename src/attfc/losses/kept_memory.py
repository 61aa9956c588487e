"""Memory of a large tensor that is made anew in every step, kept from one to the next on a processor.

glibc gives a block of 32 MiB and more back to the system when it is freed; the next step gets new pages, each of which is a page fault when it is
first touched: a tenth of a step of full FC, which makes a gradient as large as its rows. torch's allocator keeps freed memory on an accelerator, so
nothing is done there. A block is free for the next tensor when the storage of the last one ends: views and sparse tensors of it count.
"""

import weakref

import torch
from torch import Tensor

__all__ = ["KeptMemory"]

KEPT_BYTES = 32 << 20
"""Tensors below are ordinary: glibc keeps what they leave."""


class KeptMemory:
    """Makes tensors of which at most one outlives its user, as memory for the next of the same shape and type.

    >>> KeptMemory().empty((2, 3), torch.zeros(5)).shape
    torch.Size([2, 3])
    """

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Copy nothing: a copy has memory of its own."""
        return KeptMemory, ()

    def empty(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return a tensor with any numbers, of the type and on the device of `like`."""
        if like.device.type != "cpu" or torch.Size(shape).numel() * like.element_size() < KEPT_BYTES:
            return like.new_empty(shape)
        memory = self._kept.pop() if self._kept else like.new_empty(0)
        if memory.shape != shape or memory.dtype != like.dtype:
            memory = like.new_empty(shape)
        lent = memory.view(torch.uint8).numpy()
        weakref.finalize(lent, self._keep, memory).atexit = False
        return torch.from_numpy(lent).view(like.dtype)  # the storage holds `lent` itself

    def _keep(self, memory: Tensor) -> None:
        self._kept[:] = [memory]
