"""The table of contents of a checkpoint, `manifest.json`: written last, so it also says that the checkpoint is whole.

It lists every file with its size and CRC-32, and every tensor with its type, size and chunks (one chunk, or one per rank). It takes the
place of torch.distributed.checkpoint's `.metadata`, which is a pickle. A checkpoint may come from a stranger, so what is read is
checked before memory is asked for: names, counts, and that all tensors together are no larger than the files that hold them.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attfc.errors import UserError
from attfc.files import read_json

__all__ = [
    "DTYPES",
    "Chunk",
    "Manifest",
    "SavedFile",
    "SavedTensor",
    "is_dense",
    "read_manifest",
    "read_state",
]

FORMAT = "attfc checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
STATE = "state.json"
MAX_JSON_BYTES = 256 * 2**20
MAX_DIMENSIONS = 32
FILE_NAME = re.compile(r"state\.json|tensors_[0-9]{5}\.safetensors")

# safetensors' names of types
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor and the file that holds it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str


@dataclass(frozen=True)
class SavedTensor:
    """A tensor's type (safetensors' name), size, chunks, and strides where they are not the plain row-major ones."""

    dtype: str
    size: tuple[int, ...]
    strides: tuple[int, ...] | None
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class SavedFile:
    """Size in bytes and CRC-32 of a whole file."""

    bytes: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """What is in a checkpoint."""

    step: int
    tensors: dict[str, SavedTensor]
    files: dict[str, SavedFile]

    def to_json(self) -> str:
        """Return the text of `manifest.json`."""
        tensors = {
            name: {
                "dtype": tensor.dtype,
                "size": tensor.size,
                "strides": tensor.strides,
                "chunks": [[chunk.offsets, chunk.sizes, chunk.file] for chunk in tensor.chunks],
            }
            for name, tensor in self.tensors.items()
        }
        files = {name: {"bytes": file.bytes, "crc32": file.crc32} for name, file in self.files.items()}
        return json.dumps({"format": FORMAT, "version": VERSION, "step": self.step, "files": files, "tensors": tensors})


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``folder/manifest.json``, and that every file it lists is there in its full size.

    Raises:
        UserError: not a checkpoint, a damaged one, or one that asks for more than its files hold.
    """
    data = read_state(folder / MANIFEST)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"{folder / MANIFEST} is not the manifest of an attfc checkpoint")
    if data.get("version") != VERSION:
        raise UserError(
            f"{folder} is a checkpoint of format version {data.get('version')!r}, this attfc reads {VERSION}: use the attfc that wrote it"
        )
    try:
        manifest = _parse(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / MANIFEST} is damaged or forged: {str(error)[:200]}") from None
    for name, file in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise UserError(f"checkpoint {folder} is damaged: {name} is missing")
        if path.stat().st_size != file.bytes:
            raise UserError(
                f"checkpoint {folder} is damaged: {name} has {path.stat().st_size} bytes, not the {file.bytes} that were written"
            )
    return manifest


def read_state(path: Path) -> Any:
    """Read a JSON file of a checkpoint; a link is not followed.

    Raises:
        UserError: missing, unreadable, too large, or no JSON.
    """
    if path.is_symlink():
        raise UserError(f"{path} is missing")
    return read_json(path, MAX_JSON_BYTES, "no checkpoint of attfc writes that")


def is_dense(size: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether `strides` are those of a row-major tensor with its dimensions in some other order: no gaps, no overlaps."""
    expected = 1
    for stride, length in sorted((stride, length) for stride, length in zip(strides, size, strict=True) if length != 1):
        if stride != expected:
            return False
        expected *= length
    return 0 not in size


def _parse(data: dict[str, Any]) -> Manifest:
    files = {}
    for name, entry in data["files"].items():
        if not FILE_NAME.fullmatch(name):
            raise ValueError(f"it lists file {name[:80]!r}")
        files[name] = SavedFile(_natural(entry["bytes"]), _natural(entry["crc32"]))
    if STATE not in files:
        raise ValueError(f"it lists no {STATE}")
    held = dict.fromkeys(files, 0)
    tensors = {}
    for name, entry in data["tensors"].items():
        tensors[name] = tensor = _parse_tensor(name[:80], entry)
        for chunk in tensor.chunks:
            held[chunk.file] += math.prod(chunk.sizes) * DTYPES[tensor.dtype].itemsize
    for name, amount in held.items():
        if amount > files[name].bytes:
            raise ValueError(f"its tensors take {amount} bytes of {name}, which has {files[name].bytes}")
    return Manifest(_natural(data["step"]), tensors, files)


def _parse_tensor(name: str, entry: dict[str, Any]) -> SavedTensor:
    dtype, size = entry["dtype"], _naturals(entry["size"])
    if dtype not in DTYPES:
        raise ValueError(f"tensor {name!r} has unknown type {str(dtype)[:20]!r}")
    strides = None if entry["strides"] is None else _naturals(entry["strides"])
    if strides is not None and not (len(strides) == len(size) and is_dense(size, strides)):
        raise ValueError(f"tensor {name!r} of size {size} cannot have strides {strides}")
    chunks = tuple(Chunk(_naturals(offsets), _naturals(sizes), str(file)) for offsets, sizes, file in entry["chunks"])
    for chunk in chunks:
        if not len(chunk.offsets) == len(chunk.sizes) == len(size) or any(
            offset + length > whole for offset, length, whole in zip(chunk.offsets, chunk.sizes, size, strict=True)
        ):
            raise ValueError(f"tensor {name!r} has a chunk outside it")
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(size):
        raise ValueError(f"tensor {name!r} of size {size} is not covered by its chunks")
    return SavedTensor(dtype, size, strides, chunks)


def _natural(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**62:
        raise ValueError(f"{str(value)[:40]} is not a size")
    return value


def _naturals(values: object) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > MAX_DIMENSIONS:
        raise ValueError(f"{str(values)[:40]} is not a list of sizes")
    return tuple(_natural(value) for value in values)
