"""Rows in a checkpoint: those in shards as DTensors, so that each rank writes its own block and any other number of ranks reads its own.

A head names the entries of its state that are a block of rows (`Head.row_shards`). If such an entry is a parameter, the optimizer's tensors for it
(momentum, Adam's averages) are in the same blocks. In training all of them are plain tensors; they are wrapped for the save and
unwrapped after the load. Nothing is copied, and no rank ever holds all rows. Rows that live in a file (`RowStore`), which may be larger than
the memory, are read from the checkpoint into that file, and so is their momentum.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attfc.distributed import Ranks
from attfc.heads.banks.row_store import RowStore
from attfc.heads.banks.sharded_rows import ShardedRows
from attfc.training.row_optimizers import RowAdamW, RowSGD

__all__ = ["ShardedState"]

_OF_PARAMETER = re.compile(r"optimizer/state/([0-9]+)/")


class ShardedState:
    """Which tensors of a trainer's state are blocks of rows, or live in a file.

    Args:
        shards: `Head.row_shards()`.
        head: under "head" in the state.
        optimizer: under "optimizer" in the state.
        ranks: those that share the rows.
    """

    def __init__(self, shards: Mapping[str, ShardedRows], head: nn.Module, optimizer: Optimizer, ranks: Ranks) -> None:
        self._ranks = ranks
        self._named = {f"head/{name}": shard for name, shard in shards.items()}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
        stores = optimizer.stores if isinstance(optimizer, RowSGD | RowAdamW) else {}
        self._trained: dict[int, ShardedRows] = {}
        self._filed: dict[str, tuple[Tensor, RowStore]] = {}
        """By the beginning of their names in the state: parameters in a file, and the store of their state."""
        for name, parameter in head.named_parameters():
            number = numbers.get(id(parameter))
            if number is not None and name in shards:
                self._trained[number] = shards[name]
            if parameter in stores and stores[parameter].place == "file":
                for place in (f"head/{name}", f"optimizer/state/{number}/"):
                    self._filed[place] = parameter, stores[parameter]
        self._meshes: dict[str, Any] = {}

    def spread(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor of the state as all ranks save it: this rank's block of rows as a DTensor."""
        shard = self._shard(name)
        if shard is not None and tensor.dim() and len(tensor) == len(shard):
            return self._whole(tensor, shard)
        return tensor

    def place(self, name: str, size: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """Return what a tensor of a checkpoint is to be read into: a DTensor for this rank's block, the file it lives in, or None: a new one."""
        shard = self._shard(name)
        if shard is not None and (not size or size[0] != shard.rows):
            shard = None
        own = size if shard is None else (len(shard), *size[1:])
        match = _OF_PARAMETER.match(name)
        block, filed = None, match[0] if match else name
        if filed in self._filed:  # mapped memory, of rows or of their state
            parameter, store = self._filed[filed]
            if (own, dtype) == (tuple(parameter.shape), parameter.dtype):
                block = store.zeros(*own, dtype=dtype) if match else parameter.detach()
        if shard is None:
            return block
        return self._whole(torch.empty(own, dtype=dtype) if block is None else block, shard)

    def _shard(self, name: str) -> ShardedRows | None:
        """Return the rows that this rank holds of a tensor of the state, if it is one of rows."""
        match = _OF_PARAMETER.match(name)
        return self._trained.get(int(match[1])) if match else self._named.get(name)

    def _whole(self, block: Tensor, shard: ShardedRows) -> Tensor:
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import DTensor, Shard

        kind = block.device.type  # a state is saved from the device and read on the processor
        if kind not in self._meshes:
            assert self._ranks.group is not None
            self._meshes[kind] = DeviceMesh.from_group(self._ranks.group, kind)
        size = torch.Size((shard.rows, *block.shape[1:]))
        strides = torch.empty(size, device="meta").stride()
        return DTensor.from_local(
            block.detach(), self._meshes[kind], [Shard(0)], run_check=False, shape=size, stride=strides
        )
