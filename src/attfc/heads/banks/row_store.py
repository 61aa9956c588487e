"""Where the rows of a classifier and their optimizer state live: on the device, in host memory, or in a file.

`device`: ordinary tensors. `host`: ordinary tensors on the CPU that stay there when the head moves; the sampled rows come to the
device ahead of their step, and their gradient goes back (`rows_ahead`). `file`: the
same, with memory mapped from a file, so that the rows may be larger than the memory: the operating system keeps the pages in use.
The file is working memory, not a save: it changes with every step, so after a crash it would be of no step at all. It has
no name (it is removed from the folder as soon as it is open, and its room is given back when the process ends, however it
ends), two runs never share it, and a checkpoint holds the rows as it holds everything.

The gradient. Its copy begins when the loss's backward has made it, on the thread that queues the device's work, which goes on with the network's.
The thread that called `backward` waits for the copy before anybody sees the gradient: accumulation, a scaler and any optimizer find an ordinary one.
So the device works through the network's backward while the host updates rows.
Pages. The next step's draw is known one step ahead (`draw`), the next batch's own classes are not. `file`: the
thread touches the pages of the next draw, of the rows and of their state, while the device is busy; this changes no value.
Cost of a step with S sampled rows of D numbers: S D 4 B to the device, S D 4 B of gradient back, and the update on the host; for a GPU two
page-locked blocks of S D 4 B. Not taken: the update on the device, which would move rows and momentum both ways, twice as much.
"""

import mmap
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from attfc.errors import UserError, nearest
from attfc.heads.banks.rows_ahead import Arriving, RowThread, to_host
from attfc.heads.banks.sharded_rows import ShardedRows
from attfc.losses.class_softmax import gradient_of_rows
from attfc.machine import available_memory

__all__ = ["DrawnRows", "RowPlace", "RowStore", "draw_rows", "sampled_rows"]

T = TypeVar("T")
RowPlace = Literal["device", "host", "file"]

_PAGE = 4096  # bytes; larger pages hold more rows, which does no harm
STD = 0.01  # of the rows of a classifier at the beginning
DRAWN_ROWS = 1 << 16  # at once, where a rank keeps its own of all rows; times D, a multiple of 16


class RowStore:
    """Makes the tensors of rows, and looks after those that do not live on the device.

    Args:
        place: `device` | `host` | `file`.
        folder: for `file`: a folder on a fast disk with room for the rows and their state; made if missing.

    Raises:
        UserError: unknown place; `file` without a folder, or a folder with another place.

    Attribute `thread`: reads ahead and writes later.
    """

    def __init__(self, place: RowPlace = "device", folder: str | Path | None = None) -> None:
        if place not in get_args(RowPlace):
            raise UserError(
                f"place is {place!r}: choose one of {', '.join(get_args(RowPlace))}{nearest(str(place), get_args(RowPlace))}"
            )
        if place == "file" and folder is None:
            raise UserError("place=file needs folder: a folder on a fast disk with room for the rows and their state")
        if place != "file" and folder is not None:
            raise UserError(f"folder is {folder}, but place={place} uses no file: set place=file or leave it out")
        self.place = place
        self.folder = None if folder is None else Path(folder).expanduser()
        self._mapped: list[Tensor] = []
        self.thread = RowThread()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy the kind; the tensors of the copy are its owner's business, and are ordinary memory."""
        return RowStore, (self.place, self.folder)

    def zeros(self, *shape: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
        """Return zeros in this place; `device` counts for `device` only.

        Raises:
            UserError: the file cannot be made or the disk has no room for it; more than the host memory that is free.
        """
        if self.place == "device":
            return torch.zeros(shape, dtype=dtype, device=device)
        if torch.empty(0).device.type == "meta":  # a head that is built to be asked for its sizes
            return torch.zeros(shape, dtype=dtype)
        if self.place == "host" or 0 in shape:
            _check_room(torch.Size(shape).numel() * dtype.itemsize)
            return torch.zeros(shape, dtype=dtype, device="cpu")
        tensor = self._map(torch.Size(shape), dtype)
        self._mapped.append(tensor)
        return tensor

    def counts(self, cached: bool) -> bool:
        """Whether the rows are in the memory of the device; `cached`: a processor, whose memory is the host's."""
        return self.place == "device" or (self.place == "host" and cached)

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor's memory is a file of this store."""
        return any(mapped.data_ptr() == tensor.data_ptr() for mapped in self._mapped)

    def ahead(self, read: Callable[[], T], device: torch.device) -> Future[T]:
        """Start to read for a step on `device`; at once where a thread would only take cores from that."""
        return self.thread.later(read, at_once=self.place == "host" and device.type == "cpu")

    def touch(self, rows: Tensor) -> int:
        """Bring the pages of these rows (int64, any order) into memory; return how many numbers were read: one per page of each, in every tensor."""
        read = 0
        for tensor in self._mapped:
            if tensor.dim() != 2:
                continue
            step = max(1, _PAGE // tensor.element_size())
            columns = {*range(0, tensor.shape[1], step), tensor.shape[1] - 1}
            for column in sorted(columns):
                read += len(tensor[:, column].index_select(0, rows))
        return read

    def _map(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        assert self.folder is not None
        size = shape.numel() * dtype.itemsize
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder, prefix="attfc-rows-") as file:
                # Room now, not a bus error in mid-run; holes would be found when the disk is full.
                _reserve(file.fileno(), size)
                memory = mmap.mmap(file.fileno(), size)  # the mapping outlives the file object
        except OSError as error:
            raise UserError(
                f"cannot make a file of {size / 2**30:.2f} GiB for rows in folder={self.folder}: "
                f"{error.strerror or error}; choose a folder with more room"
            ) from None
        return torch.frombuffer(memory, dtype=dtype).view(shape)


class DrawnRows(nn.Module):
    """Base, beside another, of what keeps a row per identity and draws some of them in each step.

    Attributes:
        place: where its own parameters and buffers live; `device`: they move with the module.
        draws: steps so far, the number of the next draw; saved too, so that a resumed run goes on with it.
    """

    place: RowPlace
    draws = 0

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Rows in host memory or in a file stay there, in their type, when the module is moved or cast."""
        if self.place == "device":
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        kept = self._parameters, self._buffers
        self._parameters, self._buffers = {}, {}
        try:
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            self._parameters, self._buffers = kept

    def get_extra_state(self) -> Tensor:
        """Return the number of the next draw."""
        return torch.tensor(self.draws, dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take up a saved number."""
        self.draws = int(state)


def _check_room(size: int) -> None:
    """Refuse now what would get the process killed in mid-run: zeros take memory only when they are written to."""
    free = available_memory(swap=True)
    if free is not None and size > free:
        raise UserError(
            f"rows of {size / 2**30:.2f} GiB do not fit the host memory, of which {free / 2**30:.2f} GiB are free: keep them in a file on a fast "
            "disk (negatives.place=file, head.place=file). center=other_images keeps a row per image, center=own_embedding one per identity"
        )


def _reserve(descriptor: int, size: int) -> None:
    """Take `size` bytes of the disk, or only set the length where the system cannot reserve."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:  # macOS
        os.truncate(descriptor, size)


@torch.no_grad()
def draw_rows(weight: Tensor, shard: ShardedRows) -> None:
    """Fill the rows `shard` of a classifier from torch's global generator: normal, around 0.

    Every rank draws the rows of all and keeps its own, so they are those of one process, and the generators stay alike. Time O(N D),
    memory of a block of rows.
    """
    if len(shard) == shard.rows:
        nn.init.normal_(weight, std=STD)
        return
    start = 0
    while start < shard.rows:  # numbers are drawn 16 at a time, an odd rest otherwise: only the last call may have one
        stop = start + DRAWN_ROWS if shard.rows - start >= 2 * DRAWN_ROWS else shard.rows
        draft = nn.init.normal_(weight.new_empty(stop - start, weight.shape[1]), std=STD)
        first, last = max(start, shard.start), min(stop, shard.stop)
        if first < last:
            weight[first - shard.start : last - shard.start] = draft[first - start : last - start]
        start = stop


def sampled_rows(weight_ND: Tensor, sampled_S: Tensor, rows_SD: Tensor) -> Tensor:
    """Return `rows_SD` with a gradient that reaches the weight as a sparse one.

    Args:
        weight_ND: (N, D), on any device.
        sampled_S: (S,) int64, ascending and all different, on the device of the weight.
        rows_SD: (S, D), the weight's rows `sampled_S`, on the device of the step.

    Returns:
        (S, D). Its gradient makes `weight_ND.grad` a sparse COO tensor of S rows, on the weight's own device.
    """
    copies: list[Arriving] = []
    if weight_ND.device.type == "cpu":
        weight_ND = _Landed.apply(weight_ND, copies)
    rows_SD = _SampledRows.apply(weight_ND, sampled_S, rows_SD, copies)
    return rows_SD


class _SampledRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_ND: Tensor, sampled_S: Tensor, rows_SD: Tensor, copies: list[Arriving]) -> Tensor:
        ctx.save_for_backward(sampled_S)
        ctx.shape, ctx.copies = weight_ND.shape, copies
        return rows_SD

    @staticmethod
    def backward(ctx: Any, values_SD: Tensor) -> tuple[Tensor | None, ...]:
        (sampled_S,) = ctx.saved_tensors
        if sampled_S.device.type == "cpu":
            ctx.copies.append(to_host((values_SD,)))
            (values_SD,) = ctx.copies[-1].tensors
        return gradient_of_rows(sampled_S, values_SD, ctx.shape), None, None, None


class _Landed(torch.autograd.Function):
    """The weight itself, whose gradient goes on when its copy is there; of the host, so autograd's thread for the device does not wait here."""

    @staticmethod
    def forward(ctx: Any, weight_ND: Tensor, copies: list[Arriving]) -> Tensor:
        ctx.copies = copies
        return weight_ND.view_as(weight_ND)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.copies.pop().landed()
        return gradient, None
