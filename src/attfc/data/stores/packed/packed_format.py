"""A packed folder's files: their names, `packed.json` that describes them, sizes and checksums. The bytes: `docs/formats.md`."""

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attfc.data.stores.writer import UNFINISHED
from attfc.errors import UserError
from attfc.files import crc32_of

__all__ = [
    "ABOUT",
    "CHECKSUMS",
    "ENDS",
    "FORMAT",
    "HEADER_BYTES",
    "IMAGE_NAMES",
    "MAX_NAME_BYTES",
    "OFFSETS",
    "PER_IDENTITY",
    "PER_IMAGE",
    "RESTORE",
    "VERSION",
    "About",
    "check_size",
    "file_crc32",
    "npy_header",
    "read_about",
    "shard_name",
]

FORMAT = "attfc packed"
VERSION = 1
ABOUT = "packed.json"

OFFSETS = "offsets.npy"
ENDS = "image_ends.npy"
CHECKSUMS = "checksums.npy"
PER_IDENTITY = (OFFSETS, "identity_names.npy", "identity_name_offsets.npy")
PER_IMAGE = (ENDS, CHECKSUMS)
IMAGE_NAMES = ("image_names.npy", "image_name_offsets.npy")

HEADER_BYTES = 128
MAX_NAME_BYTES = 4096

_MAX_ABOUT_BYTES = 64 * 1024 * 1024
_MOST_SHARDS = 1_000_000


def shard_name(number: int) -> str:
    """Return "shard-00017.bin"."""
    return f"shard-{number:05d}.bin"


def npy_header(dtype: npt.DTypeLike, count: int) -> bytes:
    """Return the 128 bytes before the elements of a one-dimensional `.npy` file (format 1.0), whatever the count.

    >>> len(npy_header(np.int64, 10**12))
    128
    """
    text = f"{{'descr': '{np.dtype(dtype).str}', 'fortran_order': False, 'shape': ({count},), }}"
    return b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little") + text.encode().ljust(117) + b"\n"


@dataclass(frozen=True)
class About:
    """The contents of `packed.json`, and a digest of the file."""

    identities: int
    images: int
    shards: list[int]
    source: str
    image_names: bool
    crc32: dict[str, int]
    left_out: dict[str, int]
    digest: str


RESTORE = "copy the folder again or convert it again from its source"


def read_about(folder: Path) -> About:
    """Read and check `packed.json`. Raises UserError."""
    path = folder / ABOUT
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_ABOUT_BYTES + 1)
    except OSError as error:
        raise UserError(_not_packed(folder, error)) from None
    if len(content) > _MAX_ABOUT_BYTES:
        raise UserError(f"{path}: more than {_MAX_ABOUT_BYTES:,} bytes: not a packed set's; {RESTORE}")
    try:
        about = json.loads(content)
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise UserError(f'{path}: not the description of a packed set (no "format": "{FORMAT}")')
        if about.get("version") != VERSION:
            raise UserError(
                f"{path}: version {about.get('version')!r} of the packed format; this attfc reads version {VERSION}: "
                "update attfc or convert again"
            )
        shards = [_whole(about["shards"][number], f"shards[{number}]") for number in range(len(about["shards"]))]
        image_names = about["image_names"] is True
        names = PER_IDENTITY + PER_IMAGE + (IMAGE_NAMES if image_names else ())
        read = About(
            _whole(about["identities"], "identities", least=1),
            _whole(about["images"], "images", least=1),
            shards,
            str(about["source"]),
            image_names,
            {name: _whole(about["crc32"][name], f"crc32 of {name}") for name in names},
            {kind: _whole(about["left_out"][kind], f"left_out {kind}") for kind in ("images", "identities")},
            hashlib.blake2b(content, digest_size=16).hexdigest(),
        )
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}: damaged ({reason}): {RESTORE}") from None
    if not 1 <= len(shards) <= _MOST_SHARDS or sum(shards) > 2**62:
        raise UserError(f"{path}: damaged ({len(shards)} shards of {sum(shards)} bytes): {RESTORE}")
    return read


def _whole(value: object, what: str, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 2**62:
        raise ValueError(f"{what} is {str(value)[:40]} instead of a whole number from {least}")
    return value


def _not_packed(folder: Path, error: OSError) -> str:
    if (folder / UNFINISHED).is_file():
        return f"{folder}: an unfinished conversion: give the same attfc data convert command again and it continues"
    if not folder.exists():
        return f"{folder}: no such folder"
    if not folder.is_dir():
        return f"{folder}: is a file; a packed set is a folder with {ABOUT}"
    if isinstance(error, FileNotFoundError):
        return f"{folder}: not a packed set ({ABOUT} is missing)"
    return f"{folder / ABOUT}: cannot be read ({error.strerror})"


def check_size(path: Path, size: int) -> None:
    """Compare a file's size and kind: opening a pipe would wait for ever."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): {RESTORE}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: not a file: {RESTORE}")
    if status.st_size != size:
        raise UserError(f"{path}: {status.st_size} bytes instead of {size}: {RESTORE}")


def file_crc32(path: Path) -> int:
    """Return the CRC-32 of a file.

    Raises:
        UserError: missing, not a file, not readable.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"{path}: not a file: {RESTORE}")
        return crc32_of(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): {RESTORE}") from None
