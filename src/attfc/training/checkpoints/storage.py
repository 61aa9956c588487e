"""Where torch.distributed.checkpoint puts the tensors: one safetensors file a rank, and no pickle anywhere.

DCP plans who writes and who reads which box of which tensor, so a checkpoint of N ranks loads on M. Its own storages do not serve us:
`FileSystemReader` unpickles `.metadata`; `HuggingFaceStorageWriter` holds the whole file in memory a second time and refuses
channels-last tensors. Here a file is streamed tensor by tensor (memory: one tensor), with its CRC-32 taken on the way, and forced to the disk.
Chunks are named by their tensor, followed by ``[offsets]`` where they are a part of it; any reader of safetensors can look inside.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from attfc.errors import UserError
from attfc.files import ChecksumFile, sync
from attfc.training.checkpoints.manifest import DTYPES, Chunk, Manifest, SavedFile, SavedTensor

__all__ = ["FolderReader", "FolderWriter"]

T = TypeVar("T")
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class _Written:
    """Travels from each rank to the coordinator with every chunk."""

    file: str
    whole_file: SavedFile


class _Stateless:
    """What DCP asks of a storage that knows its folder and keeps nothing between calls."""

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept."""

    def prepare_local_plan(self, plan: Any) -> Any:
        """Return the plan as it is."""
        return plan

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """DCP asks this only where it has to guess the storage."""
        return False


class FolderWriter(_Stateless, StorageWriter):
    """Writes the tensors of one checkpoint into a folder.

    Args:
        folder: the temporary folder; the same on all ranks.
        begin: called on the coordinator before any rank writes: makes the folder.
        finish: called on the coordinator, once all ranks have written, with the tensors and files: makes the checkpoint whole.
        strides: of the tensors that are dense but not row-major, by name.
    """

    def __init__(
        self,
        folder: Path,
        begin: Callable[[], None],
        finish: Callable[[dict[str, SavedTensor], dict[str, SavedFile]], None],
        strides: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.folder, self._begin, self._finish, self._strides = folder, begin, finish, strides

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to do before the plan is made."""

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make the folder (on the coordinator, before the plans go out) and tell each rank its file."""
        self._begin()
        return [replace(plan, storage_data=f"tensors_{number:05d}.safetensors") for number, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Stream this rank's chunks into its file."""
        # safetensors wants no gaps, and readers want aligned tensors: the widest types first.
        items = sorted(plan.items, key=lambda item: -_properties(item)[0].itemsize)
        if not items:
            return _done([])
        name: str = plan.storage_data
        header: dict[str, Any] = {}
        position = 0
        for item in items:
            dtype, sizes, _ = _properties(item)
            end = position + dtype.itemsize * math.prod(sizes)
            chunk = _item_name(item)
            assert chunk not in header, f"two chunks are called {chunk}"
            assert chunk != "__metadata__", "safetensors keeps this name for itself"
            header[chunk] = {"dtype": DTYPE_NAMES[dtype], "shape": list(sizes), "data_offsets": [position, end]}
            position = end
        with (self.folder / name).open("wb") as file:
            checked = ChecksumFile(file)
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            checked.write(len(text).to_bytes(8, "little") + text)
            for item in items:
                tensor = planner.resolve_data(item)
                assert isinstance(tensor, Tensor)
                flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                checked.write(flat.numpy().data)
            sync(file)
        written = _Written(name, SavedFile(bytes=checked.bytes, crc32=checked.crc32))
        return _done([WriteResult(item.index, 0, written) for item in items])

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Hand the tensors and files to the caller (coordinator only)."""
        places: dict[tuple[str, tuple[int, ...]], str] = {}
        files: dict[str, SavedFile] = {}
        for result in (result for rank in results for result in rank):
            written: _Written = result.storage_data
            places[result.index.fqn, tuple(result.index.offset or ())] = written.file
            files[written.file] = written.whole_file
        tensors = {}
        for name, entry in metadata.state_dict_metadata.items():
            assert isinstance(entry, TensorStorageMetadata)
            chunks = tuple(
                Chunk(tuple(chunk.offsets), tuple(chunk.sizes), places[name, tuple(chunk.offsets)])
                for chunk in entry.chunks
            )
            tensors[name] = SavedTensor(
                dtype=DTYPE_NAMES[entry.properties.dtype],
                size=tuple(entry.size),
                strides=self._strides.get(name),
                chunks=chunks,
            )
        self._finish(tensors, files)


class FolderReader(_Stateless, StorageReader):
    """Reads the boxes that DCP asks for from the files of a checkpoint.

    Args:
        folder: the checkpoint.
        manifest: its manifest, checked.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the manifest in DCP's words."""
        entries: dict[str, Any] = {}
        places: dict[MetadataIndex, Chunk] = {}
        for name, tensor in self.manifest.tensors.items():
            boxes = [ChunkStorageMetadata(torch.Size(c.offsets), torch.Size(c.sizes)) for c in tensor.chunks]
            properties = TensorProperties(dtype=DTYPES[tensor.dtype])
            entries[name] = TensorStorageMetadata(properties, torch.Size(tensor.size), boxes)
            places.update({MetadataIndex(name, chunk.offsets): chunk for chunk in tensor.chunks})
        return Metadata(entries, storage_data=places)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Remember where the chunks are."""
        self._places: dict[MetadataIndex, Chunk] = metadata.storage_data

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy every box of the plan into its tensor."""
        by_file: dict[str, list[Any]] = {}
        for item in plan.items:
            by_file.setdefault(self._places[item.storage_index].file, []).append(item)
        for name, items in by_file.items():
            path = self.folder / name
            try:
                with safe_open(str(path), framework="pt") as file:
                    for item in items:
                        target = planner.resolve_tensor(item)
                        target.detach().copy_(self._box(file, item, path))
                        planner.commit_tensor(item, target)
            except SafetensorError as error:
                raise UserError(f"{path} is damaged: {str(error)[:200]}") from None
        return _done(None)

    def _box(self, file: Any, item: Any, path: Path) -> Tensor:
        name = item.storage_index.fqn
        chunk = self._places[item.storage_index]
        tensor = self.manifest.tensors[name]
        stored = _chunk_name(name, chunk.offsets, chunk.sizes == tensor.size)
        entry = file.get_slice(stored)
        if tuple(entry.get_shape()) != chunk.sizes or entry.get_dtype() != tensor.dtype:
            raise UserError(
                f"{path} is damaged: {stored!r} is {entry.get_dtype()} {tuple(entry.get_shape())}, the manifest says {tensor.dtype} {chunk.sizes}"
            )
        if tuple(item.lengths) == chunk.sizes:
            whole: Tensor = file.get_tensor(stored)
            return whole
        box = tuple(slice(start, start + n) for start, n in zip(item.storage_offsets, item.lengths, strict=True))
        part: Tensor = entry[box]
        return part


def _done(result: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(result)
    return future


def _properties(item: WriteItem) -> tuple[torch.dtype, tuple[int, ...], tuple[int, ...]]:
    """Return type, sizes of the chunk, and sizes of its whole tensor."""
    assert item.tensor_data is not None
    assert item.tensor_data.chunk is not None
    return item.tensor_data.properties.dtype, tuple(item.tensor_data.chunk.sizes), tuple(item.tensor_data.size)


def _item_name(item: WriteItem) -> str:
    _, sizes, whole = _properties(item)
    return _chunk_name(item.index.fqn, tuple(item.index.offset or ()), sizes == whole)


def _chunk_name(name: str, offsets: tuple[int, ...], whole: bool) -> str:
    return name if whole else f"{name}[{','.join(map(str, offsets))}]"
