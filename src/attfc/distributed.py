"""Ranks: what a component needs to know of the processes it trains with, and the few collectives of this package.

`Ranks()` is one process, the normal case: every operation then returns its argument. With a process group (`Ranks.world()`) the operations are
torch.distributed's own: gloo on the CPU, NCCL on GPUs. A component takes `ranks` as a plain argument and is written once for both.

Each rank holds an equal share of the global batch: rank r has samples [r b, (r + 1) b), so that a gather puts them in the order of one process.
**The gradient convention** is DistributedDataParallel's: a rank returns the mean loss of its own samples, gradients add up over ranks, and
who owns a parameter divides by their number; the result is the gradient of the global mean. `gather` and `sum` are differentiable in this sense.
Not taken: torch.distributed.nn.functional (deprecated) and _functional_collectives' autograd forms (private, and renamed between torch 2.9 and 2.15).
"""

import datetime
import inspect
import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from attfc.errors import UserError, one_line

__all__ = [
    "ALONE",
    "AgreedError",
    "Ranks",
    "claim_gpu",
    "data_parallel",
    "grad_scaler",
    "join_ranks",
    "launched_ranks",
    "leave_ranks",
    "lost_rank",
]

T = TypeVar("T")


class AgreedError(UserError):
    """The same error on every rank: rank 0 says it for all."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """This process among those that train together; all of them call every operation, in the same order.

    Attributes:
        rank: 0 ... size - 1.
        size: processes; 1 is the normal case.
        group: torch's process group, None alone.

    >>> alone = Ranks()
    >>> alone.gather(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    @classmethod
    def world(cls) -> "Ranks":
        """Return all processes of torch's default group, or this one alone where there is none."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)

    @property
    def reach_hosts(self) -> bool:
        """Whether the operations take tensors on the CPU too: a group of NCCL alone does not."""
        return self.size == 1 or "cpu:" in dist.get_backend_config(self.group)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Ranks":
        """Copies of a component belong to the same ranks: a process group cannot be copied."""
        return self

    def own(self, gathered: Tensor) -> Tensor:
        """Return this rank's block of a gathered tensor, a view."""
        each = gathered.shape[0] // self.size
        return gathered[self.rank * each : (self.rank + 1) * each]

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the blocks of all ranks one below the other, (size x B, ...); differentiable once, every rank's use of a block counts."""
        if self.size == 1:
            return tensor
        gathered: Tensor = _Gather.apply(tensor, self)
        return gathered

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks, on every rank; differentiable once."""
        if self.size == 1:
            return tensor
        total: Tensor = _Sum.apply(tensor, self)
        return total

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean over ranks, on every rank; differentiable once."""
        return tensor if self.size == 1 else self.sum(tensor) / self.size

    @torch.no_grad()
    def maximum(self, tensor: Tensor) -> Tensor:
        """Return the largest of each element over ranks, without gradient."""
        return tensor if self.size == 1 else _reduced(tensor, self, dist.ReduceOp.MAX)

    @torch.no_grad()
    def sum_own(self, tensor: Tensor) -> Tensor:
        """Return this rank's block of the sum over ranks: (size x B, ...) -> (B, ...), without gradient."""
        if self.size == 1:
            return tensor
        block = tensor.new_empty(tensor.shape[0] // self.size, *tensor.shape[1:])
        dist.reduce_scatter_tensor(block, tensor.contiguous(), group=self.group)
        return block

    def objects(self, value: T) -> list[T]:
        """Return the values of all ranks; they are pickled, so this is for what our own processes say, never for files. Waits."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def once(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 and return its value on every rank; a UserError is raised on every rank."""
        if self.size == 1:
            return make()
        said: list[Any] = [None, None]
        if self.rank == 0:
            try:
                said[0] = make()
            except UserError as error:
                said[1] = str(error)
        dist.broadcast_object_list(said, src=0, group=self.group)
        if said[1] is not None:
            raise AgreedError(said[1])
        value: T = said[0]
        return value

    def together(self, make: Callable[[], T]) -> T:
        """Call `make` on every rank; a UserError of any is raised on all, so that nobody waits for one who has left."""
        if self.size == 1:
            return make()
        value: T | None = None
        fault: str | None = None
        try:
            value = make()
        except UserError as error:
            fault = str(error)
        faults = self.objects(fault)
        first = next((number for number, text in enumerate(faults) if text is not None), None)
        if first is not None:
            alike = len(set(faults)) == 1
            raise AgreedError(str(faults[first]) if alike else f"rank {first}: {faults[first]}")
        return value  # type: ignore[return-value]

    def draw_apart(self, step: int) -> None:
        """Give every rank but 0 random numbers of its own from here on, a function of (step, rank): dropout masks should differ."""
        if self.rank:
            torch.manual_seed((step * self.size + self.rank) * 1_000_003 + 17)

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.size > 1:
            dist.barrier(group=self.group)


ALONE = Ranks()


def _reduced(tensor: Tensor, ranks: Ranks, operation: Any = dist.ReduceOp.SUM) -> Tensor:
    """Return a new tensor with the sum, or another reduction, of each element over ranks."""
    reduced = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(reduced, operation, group=ranks.group)
    return reduced


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        gathered = tensor.new_empty(tensor.shape[0] * ranks.size, *tensor.shape[1:])
        dist.all_gather_into_tensor(gathered, tensor.contiguous(), group=ranks.group)
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.sum_own(gradient), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return _reduced(tensor, ranks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _reduced(gradient, ctx.ranks), None


def launched_ranks() -> int:
    """Return how many processes the launcher (torchrun, or whoever sets its variables) started; 1 without one."""
    if "RANK" not in os.environ:
        return 1
    try:
        return int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        found = os.environ.get("WORLD_SIZE")
        raise UserError(
            f"RANK={os.environ['RANK']} is set but WORLD_SIZE is {found!r}: start with torchrun, which sets both"
        ) from None


def claim_gpu() -> None:
    """Make this process's own GPU the current one, by LOCAL_RANK; before anything is put on a GPU.

    Raises:
        UserError: there are more processes on this host than GPUs.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise UserError(
            f"local rank {local} on {socket.gethostname()} has no GPU of its own, the host has {torch.cuda.device_count()}: "
            f"start torchrun with --nproc-per-node={max(torch.cuda.device_count(), 1)}, or train with device=cpu"
        )
    torch.cuda.set_device(local)


def join_ranks(device: torch.device, timeout_seconds: float = 600.0) -> Ranks:
    """Join the processes that the launcher started; without a launcher, do nothing.

    Args:
        device: of the training on this rank: gloo for cpu, NCCL for cuda.
        timeout_seconds: longest wait for another rank, in any collective; then the process ends with an error.

    Raises:
        UserError: the port is in use, or ranks did not come.

    NCCL on GPUs is written after torch's documentation and has not been run by us: docs/distributed.md.
    """
    if launched_ranks() == 1 or dist.is_initialized():
        return Ranks.world()
    place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            timeout=datetime.timedelta(seconds=timeout_seconds),
            device_id=device if device.type == "cuda" else None,
        )
    except dist.DistNetworkError as error:
        reason = one_line(error)
        if "EADDRINUSE" in reason:
            raise UserError(
                f"the port of MASTER_ADDR:MASTER_PORT = {place} is in use: choose another "
                "(one host: torchrun --standalone finds a free one; several: --rdzv-endpoint HOST:PORT)"
            ) from None
        raise UserError(f"cannot reach the other ranks at {place}: {reason[:300]}") from None
    except (dist.DistError, ValueError) as error:
        raise UserError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} could not join at {place}: {one_line(error)[:300]}"
        ) from None
    return Ranks.world()


def leave_ranks() -> None:
    """Leave the process group, where there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def data_parallel(module: nn.Module, ranks: Ranks, device: torch.device, apart: Iterable[str] = ()) -> nn.Module:
    """Wrap a module so that backward averages its gradients over ranks; `module` itself where there is nothing to average.

    Args:
        apart: names of parameters and buffers that each rank has for itself.
    """
    names = set(apart)
    shared = any(value.requires_grad for name, value in module.named_parameters() if name not in names)
    if ranks.size == 1 or not shared:
        return module
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(names))  # type: ignore[no-untyped-call]
    # Buffers are the trainer's: it averages them. The option got another name in torch 2.15.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        process_group=ranks.group,
        gradient_as_bucket_view=True,
        **{buffers: False},  # type: ignore[arg-type]
    )


def grad_scaler(device: torch.device, enabled: bool, ranks: Ranks) -> torch.amp.GradScaler:
    """Return a gradient scaler; with several ranks one that skips a step on all of them, though only one shard overflowed."""
    if ranks.size == 1 or not enabled:
        return torch.amp.GradScaler(device.type, enabled=enabled)
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    return ShardedGradScaler(device.type, process_group=ranks.group)


def lost_rank(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank has gone or did not come in time."""
    text = f"{error} {error.__cause__ or ''}"
    signs = (
        "Connection closed by peer",
        "Connection reset by peer",
        "Timed out",
        "timed out",
        "Broken pipe",
        "gloo",
        "NCCL",
    )
    return isinstance(error, dist.DistError) or any(sign in text for sign in signs)
