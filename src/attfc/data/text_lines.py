"""Text files of millions of lines as numpy arrays: blocks of whole lines, their numbers parsed without a Python object a line.

One pass, a few MiB at a time; about 10 M lines/s to find them and as many numbers/s to parse, on one core. The files come from
outside: only regular files are opened (a FIFO would wait for ever), and a line that is longer than any path is refused before
it is collected. Not taken: `numpy.loadtxt` (a Python object a field) and a mapping of the file (cut short while it is
read, it would kill the process).
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attfc.errors import UserError
from attfc.files import read_at
from attfc.typing import Bools, Int64, PathLike, UInt8

__all__ = [
    "BLANK",
    "MAX_LINE_BYTES",
    "LineBlock",
    "blocks_of",
    "last_before",
    "line_blocks",
    "lines_in_utf8",
    "lines_of",
    "open_regular",
    "opened",
    "read_head",
    "trimmed",
    "whole_numbers",
]

MAX_LINE_BYTES = 16 * 1024
"""Longest line: four times the longest path that Linux opens."""

BLANK = np.isin(np.arange(256), list(b" \t\r\v\f"))
"""Which bytes are blanks: bool (256,)."""

_BLOCK_BYTES = 4 * 1024 * 1024
_MAX_DIGITS = 18
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class LineBlock:
    """The lines of one stretch of a file that hold something: blank lines and lines that begin with `#` are left out.

    Attributes:
        data: uint8, the stretch.
        starts: int64 (n,) where each line's first character that is not a blank lies in `data`.
        ends: int64 (n,) behind each line's last character that is not a blank or line end.
        numbers: int64 (n,) line numbers in the file, from 1.
        offset: where `data` begins in the file, in bytes.
        path: of the file, for messages.
    """

    data: UInt8
    starts: Int64
    ends: Int64
    numbers: Int64
    offset: int
    path: str

    def text(self, row: int) -> bytes:
        """Return one line without the blanks around it."""
        return self.data[self.starts[row] : self.ends[row]].tobytes()

    def where(self, row: int) -> str:
        """Return "FILE: line 3 ('a.jpg 1')" for messages."""
        return (
            f"{self.path}: line {int(self.numbers[row])} ({self.text(row)[:80].decode('utf-8', 'backslashreplace')!r})"
        )

    def refuse(self, wrong: Bools, what: str) -> None:
        """Raise a UserError that names the first of the lines that are `wrong`: bool (n,)."""
        if wrong.any():
            raise UserError(f"{self.where(int(wrong.argmax()))} {what}")


def open_regular(path: str | bytes | os.PathLike[str]) -> int:
    """Open a file for reading and return the descriptor.

    Raises:
        OSError: not there, may not be read, or (errno EINVAL) a folder, device, FIFO or socket, which is not opened at all.
    """
    for _ in range(2):  # before opening, which rewinds some devices, and on what was opened in fact
        if not stat.S_ISREG(os.stat(path).st_mode):
            break
        descriptor = os.open(
            path, os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY"))
        )
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    raise OSError(22, "not a regular file")


@contextlib.contextmanager
def opened(path: PathLike, failure: str = "cannot be read") -> Iterator[int]:
    """Give the descriptor of a file that `open_regular` opens.

    Args:
        failure: what to say of one that cannot be opened, or read in the block.

    Raises:
        UserError: "PATH: cannot be read (No such file or directory)".
    """
    try:
        descriptor = open_regular(path)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(f"{os.fspath(path)}: {failure} ({error.strerror or error})") from None


def line_blocks(path: PathLike, descriptor: int) -> Iterator[LineBlock]:
    """Read a text file block by block, from its beginning.

    Line ends are LF or CR LF; blanks are spaces, tabs, vertical tabs and form feeds. A UTF-8 byte order mark is skipped.

    Args:
        path: for messages.
        descriptor: an open regular file; its position is neither used nor moved.

    Raises:
        UserError: a line longer than 16 KiB, or a NUL byte; the message names the line.
        OSError: the file cannot be read.
    """
    size = os.fstat(descriptor).st_size  # what is appended meanwhile is not followed
    done, line, rest = 0, 1, b""
    while True:
        at = done + len(rest)
        fresh = read_at(descriptor, min(_BLOCK_BYTES, size - at), at) if at < size else b""
        block = rest + fresh if rest else fresh
        cut = len(block) if not fresh else block.rfind(b"\n") + 1
        rest = block[cut:]
        if cut:
            lines = _split(os.fspath(path), block[:cut], done, line)
            _refuse_nul(lines, line)
            newlines = lines.data == 0x0A
            _refuse_long(path, np.flatnonzero(newlines), cut, line)
            yield lines
            done += cut
            line += int(np.count_nonzero(newlines))
        if len(rest) > MAX_LINE_BYTES:
            raise UserError(_too_long(path, line))
        if not fresh:
            return


def blocks_of(path: Path, what: str) -> Iterator[LineBlock]:
    """Open a file and read it block by block; see `line_blocks`.

    Raises:
        UserError: it cannot be opened, which is said of `what` (groups, list); those of `line_blocks`.
    """
    with opened(path, f"{what} cannot be read") as descriptor:
        yield from line_blocks(path, descriptor)


def lines_of(path: Path, what: str) -> Iterator[tuple[int, bytes]]:
    """Return the number and text of each line, without the blanks around it; see `blocks_of`."""
    for block in blocks_of(path, what):
        text = block.data.tobytes()
        for number, start, end in zip(block.numbers.tolist(), block.starts.tolist(), block.ends.tolist(), strict=True):
            yield number, text[start:end]


def lines_in_utf8(path: Path, what: str) -> Iterator[tuple[int, str]]:
    """Return the number and text of each line as `lines_of` does, decoded.

    Raises:
        UserError: a line is not UTF-8; those of `blocks_of`.
    """
    for number, text in lines_of(path, what):
        try:
            line = text.decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path} line {number} is not UTF-8 text: save it as UTF-8") from None
        yield number, line


def _split(path: str, block: bytes, offset: int, first_line: int) -> LineBlock:
    data = np.frombuffer(block, np.uint8)
    line_ends = np.flatnonzero(data == 0x0A)
    if not block.endswith(b"\n"):
        line_ends = np.append(line_ends, len(data))
    line_starts = np.append(0, line_ends[:-1] + 1)
    if offset == 0 and block.startswith(_BOM):
        line_starts[0] = min(len(_BOM), int(line_ends[0]))
    starts, ends = trimmed(data, line_starts, line_ends)
    kept = np.flatnonzero(starts < ends)
    kept = kept[data[starts[kept]] != 0x23]
    return LineBlock(data, starts[kept], ends[kept], first_line + kept, offset, path)


def trimmed(data: UInt8, starts: Int64, ends: Int64) -> tuple[Int64, Int64]:
    """Return stretches of `data` without the blanks around them; few have any, and only those are looked at again.

    A stretch of blanks alone ends up empty (start == end).
    """
    starts, ends = starts.copy(), ends.copy()
    rows = np.flatnonzero(starts < ends)
    while (rows := rows[BLANK[data[starts[rows]]]]).size:
        starts[rows] += 1
        rows = rows[starts[rows] < ends[rows]]
    rows = np.flatnonzero(starts < ends)
    while (rows := rows[BLANK[data[ends[rows] - 1]]]).size:  # the first character is not a blank: it stops here
        ends[rows] -= 1
    return starts, ends


def last_before(data: UInt8, wanted: Bools, starts: Int64, ends: Int64) -> Int64:
    """Return where the last byte of a wanted kind lies in each stretch: int64 (n,); -1: nowhere.

    Args:
        data: uint8.
        wanted: bool (256,): which bytes.
        starts, ends: int64 (n,) the stretches.
    """
    places = np.append(-1, np.flatnonzero(wanted[data]))
    last = places[np.searchsorted(places, ends) - 1]
    return np.where(last >= starts, last, -1)


def _refuse_nul(lines: LineBlock, first_line: int) -> None:
    zeros = np.flatnonzero(lines.data == 0)
    if zeros.size:
        number = first_line + int(np.count_nonzero(lines.data[: zeros[0]] == 0x0A))
        where = lines.offset + int(zeros[0])
        raise UserError(
            f"{lines.path}: line {number} (byte {where}) holds a NUL byte: no text file, or UTF-16; save it as UTF-8"
        )


def _refuse_long(path: PathLike, newlines: Int64, cut: int, first_line: int) -> None:
    lengths = np.diff(np.concatenate([[-1], newlines, [cut]]))
    if lengths.max() > MAX_LINE_BYTES:
        raise UserError(_too_long(path, first_line + int((lengths > MAX_LINE_BYTES).argmax())))


def _too_long(path: PathLike, line: int) -> str:
    return (
        f"{os.fspath(path)}: line {line} is longer than {MAX_LINE_BYTES:,} bytes: "
        "no list, or its lines do not end in LF or CR LF"
    )


def read_head(path: PathLike, descriptor: int) -> str:
    """Return the first line, without its line end.

    Raises:
        UserError: it is longer than 16 KiB or not UTF-8.
    """
    head, newline, _ = read_at(descriptor, MAX_LINE_BYTES, 0).removeprefix(_BOM).partition(b"\n")
    if not newline and len(head) > MAX_LINE_BYTES - len(_BOM) - 1:
        raise UserError(_too_long(path, 1))
    try:
        return head.decode("utf-8").rstrip("\r")
    except UnicodeDecodeError:
        raise UserError(f"{Path(path)}: line 1 is not UTF-8 text") from None


def whole_numbers(data: UInt8, starts: Int64, ends: Int64) -> tuple[Int64, Bools]:
    """Parse decimal numbers that lie in a row of bytes.

    Args:
        data: uint8.
        starts, ends: int64 (n,) the stretches; each within `data`.

    Returns:
        int64 (n,) values and bool (n,): whether the stretch is 1 to 18 digits and nothing else (no sign); elsewhere 0.

    >>> data = np.frombuffer(b"12 x7 ", np.uint8)
    >>> whole_numbers(data, np.array([0, 3]), np.array([2, 5]))
    (array([12,  0]), array([ True, False]))
    """
    lengths = ends - starts
    sound: Bools = (lengths >= 1) & (lengths <= _MAX_DIGITS)
    values = np.zeros(len(starts), np.int64)
    for place in range(int(lengths[sound].max(initial=0))):
        inside = sound & (lengths > place)
        digits = data[np.where(inside, ends - (1 + place), 0)] - np.uint8(
            0x30
        )  # what lies before "0" wraps to 208 and more
        sound &= ~inside | (digits <= 9)
        values += np.where(inside, digits * np.int64(10**place), 0)
    values[~sound] = 0
    return values, sound
