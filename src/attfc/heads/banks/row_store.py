"""Where the rows of a classifier and their optimizer state live: on the device, in host memory, or in a file.

`device`: ordinary tensors. `host`: ordinary tensors on the CPU that stay there when the head moves; a step gathers the sampled
rows into one block (page-locked where an accelerator is used), copies it over, and takes their gradient back. `file`: the
same, with memory mapped from a file, so that the rows may be larger than the memory: the operating system keeps the pages in use.
The file is working memory, not a save: it changes with every step, so after a crash it would be of no step at all. It has
no name (it is removed from the folder as soon as it is open, and its room is given back when the process ends, however it
ends), two runs never share it, and a checkpoint holds the rows as it holds everything.

Prefetching. The next step's draw is known one step ahead (`draw`), the next batch's own classes are not. `file`: a
thread touches the pages of the next draw, of the rows and of their state, while the device is busy; this changes no value. `host`:
nothing is copied ahead: the draw overlaps with the rows that this step is about to change, and the gathered block would be stale.
Cost of a step with S sampled rows of D numbers: S D 4 B to the device, S D 4 B of gradient back, and the update on the host.
"""

import mmap
import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from attfc.errors import UserError, nearest
from attfc.heads.banks.sharded_rows import ShardedRows
from attfc.machine import available_memory

__all__ = ["DrawnRows", "RowPlace", "RowStore", "draw_rows", "sampled_rows"]

RowPlace = Literal["device", "host", "file"]

_PAGE = 4096  # bytes; larger pages hold more rows, which does no harm
DRAWN_ROWS = 1 << 16  # at once, where a rank keeps its own of all rows; times D, a multiple of 16


class RowStore:
    """Makes the tensors of rows, and looks after those that do not live on the device.

    Args:
        place: `device` | `host` | `file`.
        folder: for `file`: a folder on a fast disk with room for the rows and their state; made if missing.

    Raises:
        UserError: unknown place; `file` without a folder, or a folder with another place.
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
        self._thread: ThreadPoolExecutor | None = None
        self._prefetch: Future[int] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "RowStore":
        """Copy the kind; the tensors of the copy are its owner's business, and are ordinary memory."""
        return RowStore(self.place, self.folder)

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

    def prefetch(self, rows: Tensor) -> None:
        """Bring the pages of these rows into memory, in a thread; a call while the last is under way is left out.

        Args:
            rows: int64, any order, on the CPU.
        """
        if self.place != "file" or (self._prefetch is not None and not self._prefetch.done()):
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._prefetch = self._thread.submit(self._touch, rows)

    def _touch(self, rows: Tensor) -> int:
        """Read one number per page of each row of every tensor; return how many were read."""
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
            f"rows of {size / 2**30:.2f} GiB do not fit the host memory, of which {free / 2**30:.2f} GiB are free: keep them in a file on a "
            "fast disk (negatives.place=file, head.place=file); center=other_images keeps a row per image, center=own_embedding one per identity"
        )


def _reserve(descriptor: int, size: int) -> None:
    """Take `size` bytes of the disk, or only set the length where the system cannot reserve."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:  # macOS
        os.truncate(descriptor, size)


@torch.no_grad()
def draw_rows(weight: Tensor, shard: ShardedRows, std: float = 0.01) -> None:
    """Fill the rows `shard` of a classifier from torch's global generator: normal, around 0.

    Every rank draws the rows of all and keeps its own, so they are those of one process, and the generators stay alike. Time O(N D),
    memory of a block of rows.
    """
    if len(shard) == shard.rows:
        nn.init.normal_(weight, std=std)
        return
    start = 0
    while start < shard.rows:  # numbers are drawn 16 at a time, an odd rest otherwise: only the last call may have one
        stop = start + DRAWN_ROWS if shard.rows - start >= 2 * DRAWN_ROWS else shard.rows
        draft = nn.init.normal_(weight.new_empty(stop - start, weight.shape[1]), std=std)
        first, last = max(start, shard.start), min(stop, shard.stop)
        if first < last:
            weight[first - shard.start : last - shard.start] = draft[first - start : last - start]
        start = stop


def sampled_rows(weight_ND: Tensor, sampled_S: Tensor) -> Tensor:
    """Return rows of `weight_ND` on the device of `sampled_S`; their gradient reaches the weight as a sparse one.

    Args:
        weight_ND: (N, D), on any device.
        sampled_S: (S,) int64, ascending and all different.

    Returns:
        (S, D), a copy. Its gradient makes `weight_ND.grad` a sparse COO tensor of S rows, on the weight's own device.
    """
    rows_SD: Tensor = _SampledRows.apply(weight_ND, sampled_S)
    return rows_SD


class _SampledRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_ND: Tensor, sampled_S: Tensor) -> Tensor:
        home_S = sampled_S.to(weight_ND.device)
        ctx.save_for_backward(home_S)
        ctx.shape = weight_ND.shape
        if weight_ND.device == sampled_S.device:
            return weight_ND.index_select(0, home_S)
        lock = sampled_S.device.type == "cuda"
        block_SD = torch.empty(len(home_S), weight_ND.shape[1], dtype=weight_ND.dtype, pin_memory=lock)
        torch.index_select(weight_ND, 0, home_S, out=block_SD)
        return block_SD.to(sampled_S.device, non_blocking=lock)

    @staticmethod
    def backward(ctx: Any, gradient_SD: Tensor) -> tuple[Tensor, None]:
        (home_S,) = ctx.saved_tensors
        values_SD = gradient_SD.to(home_S.device)
        gradient = torch.sparse_coo_tensor(
            home_S.unsqueeze(0), values_SD, ctx.shape, is_coalesced=True, check_invariants=False
        )
        return gradient, None
