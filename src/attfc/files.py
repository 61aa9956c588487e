"""What a writer of files must get right: the old content or the new one, never half; on the disk, not in a buffer; one writer at a time.

Cost: `replacing` waits for the disk (some milliseconds on an SSD). `crc32_of` reads about 1 GB per second.
"""

import contextlib
import errno
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from attfc.errors import UserError

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = [
    "LONGEST_NAME",
    "ChecksumFile",
    "cache_home",
    "crc32_of",
    "entry_is",
    "first_fault",
    "lock",
    "read_at",
    "read_bounded",
    "read_json",
    "replacing",
    "sync",
    "sync_folder",
    "write_json_whole",
    "write_text_whole",
    "written_whole",
]

LONGEST_NAME = 255  # bytes of a file's name, on most file systems


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write into, hidden beside `path`; at the end it is forced to the disk and takes the place of `path`.

    Whoever opens `path` finds the old or the new content. After a failure the old content stands and nothing lies beside it.

    Raises:
        OSError: it could not be written (disk full, no permission ...).
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    if len(os.fsencode(draft.name)) > LONGEST_NAME:
        draft = path.with_name(f".{zlib.crc32(os.fsencode(path.name)):08x}.{os.getpid()}.part")
    try:
        with draft.open("w+b", buffering=1 << 20) as file:
            yield file
            sync(file)
        draft.replace(path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write into, as `replacing` does.

    Raises:
        UserError: it could not be written (disk full, no permission ...); what was at `path` stands.
    """
    try:
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}; make room or permission there"
        ) from error


def write_text_whole(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with `written_whole`."""
    with written_whole(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_json_whole(path: Path, values: Mapping[str, Any]) -> None:
    """Write `values` as JSON with `written_whole`."""
    write_text_whole(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def read_bounded(path: Path, most: int, too_large: str) -> bytes:
    """Read a file of at most `most` bytes, which may come from a stranger; a device or a pipe, which might never end, is not opened.

    Args:
        too_large: said of a larger one: "no checkpoint of attfc writes that".

    Raises:
        UserError: missing, not a file, unreadable, or too large.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file" if path.exists() else f"{path} is missing")
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > most:
        raise UserError(f"{path} is larger than {most:,} bytes: {too_large}")
    return data


def read_json(path: Path, most: int, too_large: str, damaged: str = "is damaged") -> Any:
    """Read a JSON file as `read_bounded` does.

    Args:
        damaged: said of one that is no JSON, before its reason.

    Raises:
        UserError: those of `read_bounded`, or no JSON.
    """
    data = read_bounded(path, most, too_large)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} {damaged}: {str(error)[:100]}") from None


def cache_home() -> Path:
    """Return the user's cache folder: $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"))


def first_fault(error: "ValidationError") -> str:
    """Return where the first fault of a file's content is, and what: "tensors.weight.size.0: Input should be ..., not -1"."""
    fault = error.errors(include_url=False)[0]
    where = "".join(f"{str(part)[:80]}." for part in fault["loc"]).rstrip(".")
    found = "" if isinstance(fault["input"], dict) else f", not {str(fault['input'])[:40]}"
    return f"{where}{': ' if where else ''}{fault['msg'].removeprefix('Value error, ')[:200]}{found}"


class ChecksumFile:
    """Writes into a binary file and keeps the CRC-32 and the size of what was written, so nothing is read back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.crc32 = self.bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self._file.write(data)
        self.crc32 = zlib.crc32(data, self.crc32)
        self.bytes += memoryview(data).nbytes


def crc32_of(path: Path) -> int:
    """Return the CRC-32 of a file, read through a small buffer: mapped, it would count as memory of this process.

    Raises:
        OSError: missing or not readable.
    """
    crc = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            crc = zlib.crc32(piece, crc)
    return crc


def sync(file: IO[Any]) -> None:
    """Wait until what was written to a file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can say so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def lock(file: IO[Any] | int) -> bool:
    """Take the lock of an open file or folder, which ends with its last descriptor; False: another process has it.

    True also where there are no locks (Windows, some network disks): two writers at once are the user's to avoid.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


def entry_is(kind: Callable[[], bool]) -> bool:
    """Return whether an entry of a folder is of a kind, as `entry.is_dir` says it; a link to itself is of none, as one to nothing."""
    try:
        return kind()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


_turn = threading.Lock()


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """Return `count` bytes from `offset`, fewer where the file ends: `os.pread`, else (Windows) one thread after the other."""
    data = b""
    while len(data) < count:
        if hasattr(os, "pread"):
            more = os.pread(descriptor, count - len(data), offset + len(data))
        else:
            with _turn:
                os.lseek(descriptor, offset + len(data), os.SEEK_SET)
                more = os.read(descriptor, count - len(data))
        if not more:
            break
        data = data + more if data else more
    return data
