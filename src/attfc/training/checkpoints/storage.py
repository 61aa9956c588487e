"""Where torch.distributed.checkpoint puts the tensors: one safetensors file per rank, and no pickle anywhere.

DCP plans who writes and who reads which box of which tensor, so a checkpoint of N ranks loads on M. Its own storages do not serve us:
`FileSystemReader` unpickles `.metadata`; `HuggingFaceStorageWriter` holds the whole file in memory a second time and refuses
channels-last tensors. Here a file is streamed tensor by tensor (memory: one tensor), with its CRC-32 taken on the way, and forced to the disk.
Chunks are named by their tensor, followed by ``[offsets]`` where they are a part of it; any reader of safetensors can look inside.
"""

import contextlib
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from attfc.errors import UserError
from attfc.files import ChecksumFile, sync
from attfc.training.checkpoints.manifest import DTYPES, Chunk, Manifest, SavedFile, SavedTensor, read_manifest
from attfc.training.checkpoints.weights import open_weights
from attfc.typing import PathLike

__all__ = ["FolderReader", "FolderWriter", "rows_of"]

T = TypeVar("T")
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class _Part:
    """A chunk that a rank writes, and its tensor; travels from each rank to the coordinator."""

    tensor: str
    dtype: str
    size: tuple[int, ...]
    chunk: Chunk

    @classmethod
    def of(cls, item: WriteItem, file: str) -> "_Part":
        data = item.tensor_data
        assert data is not None
        assert data.chunk is not None
        chunk = Chunk(tuple(data.chunk.offsets), tuple(data.chunk.sizes), file)
        return cls(item.index.fqn, DTYPE_NAMES[data.properties.dtype], tuple(data.size), chunk)


@contextlib.contextmanager
def _quiet_and_unwrapped() -> Iterator[None]:
    """Silence DCP's note that there is no process group (for us the normal case), and raise what happened in place of its wrapper.

    DCP catches everything, Ctrl-C included, and raises a CheckpointException (a BaseException) with the failures by rank.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"torch\.distributed is (disabled|unavailable)", UserWarning)
            yield
    except CheckpointException as error:
        causes = [failure[0] for _, failure in sorted(error.failures.items())]
        raise next((cause for cause in causes if isinstance(cause, OSError)), causes[0]) from None


class _Stateless:
    """What DCP asks of a storage that knows its folder and keeps nothing between calls."""

    def reset(self, checkpoint_id: PathLike | None = None) -> None:
        """Nothing is kept."""

    def prepare_local_plan(self, plan: Any) -> Any:
        """Return the plan as it is."""
        return plan

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: PathLike) -> bool:
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

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors and finish; all ranks call it."""
        # What is not in shards comes from rank 0, whole: left to itself, DCP takes each tensor from the rank that has written least.
        planner = DefaultSavePlanner(flatten_state_dict=False, dedup_save_to_lowest_rank=True)
        with _quiet_and_unwrapped():
            save(dict(tensors), storage_writer=self, planner=planner)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to do before the plan is made."""

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make the folder (on the coordinator, before the plans go out) and tell each rank its file."""
        self._begin()
        return [replace(plan, storage_data=f"tensors_{number:05d}.safetensors") for number, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Stream this rank's chunks into its file."""
        if not plan.items:
            return _done([])
        name: str = plan.storage_data
        parts = [(_Part.of(item, name), item) for item in plan.items]
        # safetensors wants no gaps, and readers want aligned tensors: the widest types first.
        parts.sort(key=lambda each: -DTYPES[each[0].dtype].itemsize)
        header: dict[str, Any] = {}
        position = 0
        for part, _ in parts:
            end = position + DTYPES[part.dtype].itemsize * math.prod(part.chunk.sizes)
            stored = _stored_name(part.tensor, part.size, part.chunk)
            assert stored not in header, f"two chunks are called {stored}"
            assert stored != "__metadata__", "safetensors keeps this name for itself"
            header[stored] = {"dtype": part.dtype, "shape": part.chunk.sizes, "data_offsets": [position, end]}
            position = end
        with (self.folder / name).open("wb") as file:
            checked = ChecksumFile(file)
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            checked.write(len(text).to_bytes(8, "little") + text)
            for _, item in parts:
                tensor = planner.resolve_data(item)
                assert isinstance(tensor, Tensor)
                flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                checked.write(flat.numpy().data)
            sync(file)
        whole_file = SavedFile(bytes=checked.bytes, crc32=checked.crc32)
        return _done([WriteResult(item.index, 0, (part, whole_file)) for part, item in parts])

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Hand the tensors and files to the caller (coordinator only)."""
        parts: dict[str, list[_Part]] = {}
        files: dict[str, SavedFile] = {}
        for result in itertools.chain.from_iterable(results):
            part, whole_file = result.storage_data
            parts.setdefault(part.tensor, []).append(part)
            files[part.chunk.file] = whole_file
        tensors = {
            name: SavedTensor(
                dtype=own[0].dtype,
                size=own[0].size,
                strides=self._strides.get(name),
                chunks=tuple(part.chunk for part in own),
            )
            for name, own in parts.items()
        }
        self._finish(tensors, files)


class FolderReader(_Stateless, StorageReader):
    """Reads the boxes that DCP asks for from the files of a checkpoint.

    Args:
        folder: the checkpoint.
        manifest: its manifest, checked.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest

    def own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors as plain ones: of a DTensor, this rank's shard, in the same memory."""
        return {name: value.to_local() if isinstance(value, DTensor) else value for name, value in tensors.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill the tensors; all ranks call it."""
        with _quiet_and_unwrapped():
            load(dict(tensors), storage_reader=self, planner=DefaultLoadPlanner(flatten_state_dict=False))

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
            with open_weights(path) as file:
                for item in items:
                    target = planner.resolve_tensor(item)
                    target.detach().copy_(self._box(file, item, path))
                    planner.commit_tensor(item, target)
        return _done(None)

    def _box(self, file: Any, item: Any, path: Path) -> Tensor:
        name = item.storage_index.fqn
        chunk = self._places[item.storage_index]
        tensor = self.manifest.tensors[name]
        stored = _stored_name(name, tensor.size, chunk)
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


def rows_of(folder: Path, name: str, at_once: int = 1 << 16) -> Iterator[tuple[int, Tensor]]:
    """Yield a matrix of a checkpoint a few rows at a time, each part after the number of its first row; checksums are not looked at.

    Raises:
        UserError: not a checkpoint, or a damaged one.
    """
    saved = read_manifest(folder).tensors[name]
    for chunk in saved.chunks:
        with open_weights(folder / chunk.file) as file:
            entry = file.get_slice(_stored_name(name, saved.size, chunk))
            for start in range(0, chunk.sizes[0], at_once):
                yield chunk.offsets[0] + start, entry[start : start + at_once]


def _done(result: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(result)
    return future


def _stored_name(tensor: str, size: tuple[int, ...], chunk: Chunk) -> str:
    return tensor if chunk.sizes == size else f"{tensor}[{','.join(map(str, chunk.offsets))}]"
