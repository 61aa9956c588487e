"""The table of contents of a checkpoint, `manifest.json`: written last, so it also says that the checkpoint is whole.

It lists every file with its size and CRC-32, and every tensor with its type, size and chunks (one chunk, or one per rank). It takes the
place of torch.distributed.checkpoint's `.metadata`, which is a pickle. A checkpoint may come from a stranger, so what is read is
checked before memory is asked for: names, counts, and that all tensors together are no larger than the files that hold them.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator

from attfc.errors import UserError
from attfc.files import first_fault, read_json

__all__ = ["DTYPES", "Chunk", "Manifest", "SavedFile", "SavedTensor", "is_dense", "read_manifest", "read_state"]

FORMAT = "attfc checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
STATE = "state.json"
MAX_JSON_BYTES = 256 * 2**20
MAX_MANIFEST_BYTES = 32 * 2**20  # some 200,000 tensors

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

Natural = Annotated[int, Field(strict=True, ge=0, lt=2**62)]
Naturals = Annotated[tuple[Natural, ...], Field(max_length=32, fail_fast=True)]
FileName = Annotated[str, StringConstraints(pattern=r"^(state\.json|tensors_[0-9]{5}\.safetensors)$")]


class Chunk(NamedTuple):
    """A box of a tensor and the file that holds it."""

    offsets: Naturals
    sizes: Naturals
    file: FileName


class SavedTensor(BaseModel, frozen=True):
    """A tensor's type (safetensors' name), size, strides where they are not the plain row-major ones, and chunks."""

    dtype: str
    size: Naturals
    strides: Naturals | None
    chunks: tuple[Chunk, ...]

    @model_validator(mode="after")
    def _is_whole(self) -> "SavedTensor":
        size, strides = self.size, self.strides
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown type {self.dtype[:20]!r}")
        if strides is not None and not (len(strides) == len(size) and is_dense(size, strides)):
            raise ValueError(f"size {size} cannot have strides {strides}")
        for chunk in self.chunks:
            if not len(chunk.offsets) == len(chunk.sizes) == len(size) or any(
                offset + length > whole for offset, length, whole in zip(chunk.offsets, chunk.sizes, size, strict=True)
            ):
                raise ValueError("a chunk is outside the tensor")
        if sum(math.prod(chunk.sizes) for chunk in self.chunks) != math.prod(size):
            raise ValueError(f"size {size} is not covered by its chunks")
        return self


class SavedFile(BaseModel, frozen=True):
    """Size in bytes and CRC-32 of a whole file."""

    bytes: Natural
    crc32: Natural


class Manifest(BaseModel, frozen=True):
    """What is in a checkpoint; `manifest.json` is its JSON."""

    format: Literal["attfc checkpoint"] = "attfc checkpoint"
    version: Literal[1] = 1
    step: Natural
    files: dict[FileName, SavedFile]
    tensors: dict[str, SavedTensor]

    @model_validator(mode="after")
    def _files_hold_the_tensors(self) -> "Manifest":
        if STATE not in self.files:
            raise ValueError(f"it lists no {STATE}")
        held = dict.fromkeys(self.files, 0)
        for tensor in self.tensors.values():
            for chunk in tensor.chunks:
                if chunk.file not in held:
                    raise ValueError(f"it lists no {chunk.file}")
                held[chunk.file] += math.prod(chunk.sizes) * DTYPES[tensor.dtype].itemsize
        for name, amount in held.items():
            if amount > self.files[name].bytes:
                raise ValueError(f"its tensors take {amount} bytes of {name}, which has {self.files[name].bytes}")
        return self


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``folder/manifest.json``, and that every file it lists is there in its full size.

    Raises:
        UserError: not a checkpoint, a damaged one, or one that asks for more than its files hold.
    """
    data = read_state(folder / MANIFEST, MAX_MANIFEST_BYTES)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"{folder / MANIFEST} is not the manifest of an attfc checkpoint")
    if data.get("version") != VERSION:
        raise UserError(
            f"{folder} is a checkpoint of format version {data.get('version')!r}, this attfc reads {VERSION}: use the attfc that wrote it"
        )
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{folder / MANIFEST} is damaged or forged: {first_fault(error)}") from None
    for name, file in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise UserError(f"checkpoint {folder} is damaged: {name} is missing")
        if path.stat().st_size != file.bytes:
            raise UserError(
                f"checkpoint {folder} is damaged: {name} has {path.stat().st_size} bytes, not the {file.bytes} that were written"
            )
    return manifest


def read_state(path: Path, most: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file of a checkpoint; a link is not followed.

    Raises:
        UserError: missing, unreadable, too large, or no JSON.
    """
    if path.is_symlink():
        raise UserError(f"{path} is missing")
    return read_json(path, most, "no checkpoint of attfc writes that")


def is_dense(size: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether `strides` are those of a row-major tensor with its dimensions in some other order: no gaps, no overlaps."""
    expected = 1
    for stride, length in sorted((stride, length) for stride, length in zip(strides, size, strict=True) if length != 1):
        if stride != expected:
            return False
        expected *= length
    return 0 not in size
