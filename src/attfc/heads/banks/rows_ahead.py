"""Rows between host memory and the device while both work: what a step needs is under way before it is asked for.

The draw of a step is a function of (seed, step), and the loader knows the labels before the device does. So a thread gathers the rows while the
backbone runs, into page-locked memory, which torch's own allocator uses again and again, and copies them on a stream of their own; the loss's stream
waits for that copy, the host does not wait for the device. What a step writes goes back in the same way: the thread waits for the copy, and since it
works in the order of its calls, it gathers for the next step what this one wrote. So nothing differs from a plain read and write, bit for bit.
Trained rows (Partial FC) are the optimizer's to write; their gradient goes back in the same way (`row_store`).
On a processor the same path runs, with ordinary memory, without streams, and for rows in memory without the thread: it would only take cores
from the backbone. The path of a GPU is written without one at hand.
Not taken: a ring of buffers of our own (the allocator is one), and gathering a step earlier, when rows that are about to change would need mending on
the device; what the thread waits for is a step's loss, and the whole backward pass follows that.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

__all__ = ["Ahead", "Arriving", "RowThread", "gathered", "to_device", "to_host"]

T = TypeVar("T")


class Arriving(NamedTuple):
    """Tensors on their way to a device, and the event of their arrival, if anybody has to wait for it."""

    tensors: tuple[Tensor, ...]
    event: torch.cuda.Event | None = None

    def here(self) -> tuple[Tensor, ...]:
        """Return the tensors; the current stream, not the host, waits for them."""
        if self.event is not None:
            stream = torch.cuda.current_stream(self.tensors[0].device)
            stream.wait_event(self.event)
            for tensor in self.tensors:
                tensor.record_stream(stream)
        return self.tensors

    def landed(self) -> tuple[Tensor, ...]:
        """Return the tensors; the host waits for them."""
        if self.event is not None:
            self.event.synchronize()
        return self.tensors


Ahead = dict[str, Future[Any]]
"""What is under way for one bank, by what it is for."""


def gathered(rows_NX: Tensor, places_S: Tensor, device: torch.device) -> Tensor:
    """Return rows, in memory that is page-locked where `device` can take them from there without a wait."""
    lock = device.type == "cuda" and rows_NX.device.type == "cpu"
    if not lock:
        return rows_NX.index_select(0, places_S)
    block_SX = torch.empty(len(places_S), *rows_NX.shape[1:], dtype=rows_NX.dtype, pin_memory=True)
    return torch.index_select(rows_NX, 0, places_S, out=block_SX)


def to_device(tensors: tuple[Tensor, ...], device: torch.device) -> Arriving:
    """Start to copy tensors of the host, on a stream beside the current one; those of a device are where they should be."""
    if device.type != "cuda" or tensors[0].is_cuda:
        return Arriving(tuple(tensor.to(device) for tensor in tensors))
    with torch.cuda.stream(_side_stream(device)):
        locked = [tensor if tensor.is_pinned() else tensor.pin_memory() for tensor in tensors]
        moved = tuple(tensor.to(device, non_blocking=True) for tensor in locked)
        return Arriving(moved, torch.cuda.current_stream(device).record_event())


def to_host(tensors: tuple[Tensor, ...]) -> Arriving:
    """Start to copy tensors to the host, on a stream beside the current one; they may be read when they have `landed`."""
    device = tensors[0].device
    if device.type != "cuda":
        return Arriving(tuple(tensor.cpu() for tensor in tensors))
    blocks = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    side = _side_stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for block, tensor in zip(blocks, tensors, strict=True):
            block.copy_(tensor, non_blocking=True)
            tensor.record_stream(side)
        return Arriving(tuple(blocks), side.record_event())


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class RowThread:
    """One thread that does what it is asked in that order; it starts with the first call."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._last: Future[Any] | None = None

    def later(self, task: Callable[[], T], *, at_once: bool = False) -> Future[T]:
        """Ask for something; what failed since the last call is raised here. `at_once`: the caller does it, after all that was asked for."""
        if at_once:
            self.settle()
            done: Future[T] = Future()
            done.set_result(task())
            return done
        if self._last is not None and self._last.done():
            self._last.result()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._last = future = self._pool.submit(task)
        return future

    def settle(self) -> None:
        """Wait until all is done that was asked for."""
        last, self._last = self._last, None
        if last is not None:
            last.result()
