"""MXNet RecordIO as bytes: frames, and the header of their payloads. No MXNet.

A frame is the magic 0xced7230a, a word of 3 bits `cflag` and 29 bits length, the payload, zeros up to a multiple of 4. Where
the magic stands in a payload at a multiple of 4 it is taken out and the payload goes into several frames (cflag 1, 2 ..., 3; 0 is a
whole one), so that a magic word in the file always begins a frame. Bytes and their order: `docs/formats.md`.

Everything is read with `pread` on one descriptor: threads and forked workers share no position. Per image of 5 KB in the page
cache that takes 1.7 us (2.6 us at random) where a memory map takes 0.9 (1.4), and decoding takes 300: not worth a process
that dies of SIGBUS when a mapped file is cut short. Files come from outside: each length is compared with the file and with the
limit of 256 MiB before anything is allocated.
"""

import contextlib
import os
import struct
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attfc.data.stores.image_files import MAX_FILE_BYTES
from attfc.data.text_lines import open_regular
from attfc.errors import UserError
from attfc.files import read_at
from attfc.typing import Bools, Float32, Int64, PathLike, Progress

__all__ = [
    "FIRST",
    "FRAME",
    "HEADER",
    "LAST",
    "LENGTH_BITS",
    "MAGIC",
    "MAGIC_BYTES",
    "MAX_PARTS",
    "MAX_PAYLOAD_BYTES",
    "MIDDLE",
    "BadRecordError",
    "RecordFile",
    "RecordHeads",
    "read_header",
]


MAGIC = 0xCED7230A
MAX_PAYLOAD_BYTES = MAX_FILE_BYTES
MAX_PARTS = 65_536
"""Parts of one record. Chance puts the magic into one 5 KB image of three million; a file made to keep us busy has millions of parts."""

MAGIC_BYTES = MAGIC.to_bytes(4, "little")
FRAME = struct.Struct("<II")
HEADER = struct.Struct("<IfQQ")
_LABEL = struct.Struct("<f")
_HEAD = np.dtype(
    [("magic", "<u4"), ("word", "<u4"), ("flag", "<u4"), ("label", "<f4"), ("ids", "<u8", 2), ("labels", "<f4", 2)]
)
"""The first bytes of a record: frame, payload header, and two labels if there are so many."""

LENGTH_BITS = 29
_LENGTH_MASK = (1 << LENGTH_BITS) - 1
WHOLE, FIRST, MIDDLE, LAST = range(4)

_HEADS_TOGETHER = 16_384
_ONE_READ = 1 << 20


class BadRecordError(ValueError):
    """A record that cannot be read; the message is the reason, without file, key and offset: the caller knows them."""


def read_header(buffer: bytes, begin: int, end: int) -> tuple[int, float, float, int]:
    """Return what the payload at begin ... end holds before the image.

    Returns:
        The number of labels (0: one, in the header); the first two of them, 0 for one that is not there; where the image begins.

    Raises:
        BadRecordError: it is shorter than its header and labels.

    >>> from attfc.data.stores.rec.record_writer import pack_payload
    >>> read_header(pack_payload([1.0, 7.0], b"jpeg", key=5), 0, 36)
    (2, 1.0, 7.0, 32)
    """
    if end - begin < HEADER.size:
        raise BadRecordError(f"payload of {end - begin} bytes has no room for the header of {HEADER.size}")
    flag, first, _, _ = HEADER.unpack_from(buffer, begin)
    second, image_at = 0.0, begin + HEADER.size + 4 * flag
    if image_at > end:
        raise BadRecordError(f"payload of {end - begin:,} bytes declares {flag:,} labels, which do not fit into it")
    if flag:
        (first,) = _LABEL.unpack_from(buffer, begin + HEADER.size)
    if flag > 1:
        (second,) = _LABEL.unpack_from(buffer, begin + HEADER.size + _LABEL.size)
    return flag, first, second, image_at


@dataclass(frozen=True)
class RecordHeads:
    """What the headers of some records say, row by row.

    Attributes:
        first, second: float32 (n,) the first two labels; the second is 0 where there is none.
        flags: int64 (n,) number of labels, 0 for one in the header.
        image_bytes: int64 (n,) size of what follows the labels.
    """

    first: Float32
    second: Float32
    flags: Int64
    image_bytes: Int64

    @property
    def imageless(self) -> Bools:
        """Two labels and nothing else: record 0 and identity records."""
        imageless: Bools = (self.flags == 2) & (self.image_bytes == 0)
        return imageless


class RecordFile:
    """An open `.rec` file.

    Args:
        path: the file.

    Attributes:
        size, mtime_ns: of the file when it was opened.

    Raises:
        UserError: no such file, or it cannot be read.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(os.path.abspath(path))
        self._descriptor = -1
        try:
            self._descriptor = open_regular(self.path)
            status = os.fstat(self._descriptor)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error})") from None
        self.size = status.st_size
        self.mtime_ns = status.st_mtime_ns

    def __del__(self) -> None:
        """Close with the last user."""
        if getattr(self, "_descriptor", -1) >= 0:
            os.close(self._descriptor)

    def changed(self) -> bool:
        """Whether the open file was written to since it was opened. A new file under the same name is another file: False."""
        with contextlib.suppress(OSError):  # a network disk that has lost it
            status = os.fstat(self._descriptor)
            return (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns)
        return True

    def read(self, offset: int, span: int | None = None) -> bytes:
        """Return the payload of the record that begins at byte `offset`, its parts joined.

        Args:
            offset: multiple of 4.
            span: bytes from here to where the next record begins, if known: then one read does, and it is checked that the
                record ends there or that another frame follows.

        Raises:
            BadRecordError: no record begins there, or it is damaged; the message is the reason.
            OSError: the file cannot be read.
        """
        buffer, begin, end = self.locate(offset, span)
        return buffer[begin:end]

    def locate(self, offset: int, span: int | None = None) -> tuple[bytes, int, int]:
        """Return a buffer and where in it the payload begins and ends: as `read`, without the copy."""
        room = self.size - offset
        if offset < 0 or offset % 4 or room < FRAME.size:
            raise BadRecordError(f"no record can begin at byte {offset} of a file of {self.size:,} bytes")
        limit = room if span is None else min(span, room)
        region = self.bytes_at(offset, FRAME.size if span is None else min(limit, _ONE_READ))
        if len(region) >= FRAME.size:
            magic, length = FRAME.unpack_from(region)
            end = FRAME.size + length  # a part of several has a cflag, which makes it longer than any region
            if magic == MAGIC and end + (-end % 4) == len(region) == limit:  # nearly every record
                return region, FRAME.size, end
        payload, end = self._join(offset, region, limit, room)
        if span is not None and end < limit:
            self._check_follower(offset, region, end, limit)
        return payload, 0, len(payload)

    def _frames(self, offset: int, region: bytes, limit: int, room: int) -> Iterator[tuple[int, int]]:
        """Yield where the bytes of each part of a record begin, counted from `offset`, and where they end.

        Args:
            region: the file's bytes from `offset` on, as far as read.
            limit, room: bytes from `offset` to where the record must end, and to the end of the file.
        """
        at = parts = 0
        while True:
            if at + FRAME.size > limit:
                raise BadRecordError(f"part {parts + 1} of the record is missing: {_beyond(offset, limit, room)}")
            magic, word = FRAME.unpack(self._part(offset, region, at, FRAME.size))
            cflag, length = word >> LENGTH_BITS, word & _LENGTH_MASK
            if magic != MAGIC:
                raise BadRecordError(f"no record begins there (0x{magic:08x} instead of 0x{MAGIC:08x})")
            if cflag not in ((MIDDLE, LAST) if parts else (WHOLE, FIRST)):
                wanted = "2 or 3 (a further part)" if parts else "0 or 1 (the beginning of a record)"
                where = f" at byte {offset + at}" if at else ""  # the message names the record's first byte already
                raise BadRecordError(f"cflag {cflag}{where} where {wanted} must stand")
            begin, end = at + FRAME.size, at + FRAME.size + length
            if end > limit:
                raise BadRecordError(f"declares {length:,} bytes: {_beyond(offset, limit, room)}")
            yield begin, end
            if cflag in (WHOLE, LAST):
                return
            at, parts = end + (-end % 4), parts + 1

    def _join(self, offset: int, region: bytes, limit: int, room: int) -> tuple[bytes, int]:
        """Return the payload and where the record ends."""
        pieces: list[bytes] = []
        total = -len(MAGIC_BYTES)
        for begin, end in self._frames(offset, region, limit, room):
            if pieces and len(pieces[-1]) % 4:
                raise BadRecordError(
                    f"part {len(pieces)} of the record has {len(pieces[-1])} bytes, not a multiple of 4"
                )
            total += len(MAGIC_BYTES) + end - begin
            if total > MAX_PAYLOAD_BYTES:
                raise BadRecordError(f"record of {total:,} bytes or more, the limit is {MAX_PAYLOAD_BYTES:,}")
            if len(pieces) == MAX_PARTS:
                raise BadRecordError(f"record of more than {MAX_PARTS:,} parts")
            pieces.append(self._part(offset, region, begin, end - begin))
        return MAGIC_BYTES.join(pieces), end + (-end % 4)

    def _part(self, offset: int, region: bytes, begin: int, length: int) -> bytes:
        if begin + length <= len(region):
            return region[begin : begin + length]
        return self.bytes_at(offset + begin, length)

    def _check_follower(self, offset: int, region: bytes, end: int, limit: int) -> None:
        """An index may leave records out, so a record may end before the next one that is listed; a frame must follow."""
        follower = self._part(offset, region, end, 4) if end + 4 <= limit else b""
        if follower != MAGIC_BYTES:
            raise BadRecordError(
                f"ends at byte {offset + end} where no record follows; the next listed one begins at byte {offset + limit}"
            )

    def bytes_at(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from byte `offset`. Raises BadRecordError (the file ends before) or OSError."""
        data = read_at(self._descriptor, count, offset)
        if len(data) < count:
            raise BadRecordError(f"the file ends at byte {offset + len(data)}, it was cut short while in use")
        return data

    def heads(self, keys: Int64, offsets: Int64, spans: Int64, progress: Progress | None = None) -> RecordHeads:
        """Read the headers of many records, in blocks of some thousand.

        Args:
            keys: int64 (n,) for messages.
            offsets: int64 (n,) in any order; they are read in rising order.
            spans: int64 (n,) bytes from each to where the next record begins: no record may be longer.
            progress: called as (records done, records).

        Raises:
            UserError: a record that is damaged, as far as its header shows it; the message names file, key and offset.
        """
        count = len(offsets)
        heads = RecordHeads(*np.empty((2, count), np.float32), *np.empty((2, count), np.int64))
        order = np.argsort(offsets, kind="stable")
        for done in range(0, count, _HEADS_TOGETHER):
            rows = order[done : done + _HEADS_TOGETHER]
            try:
                self._read_heads(heads, rows, keys, offsets, spans)
            except OSError as error:
                where = f"{self.path}: byte {int(offsets[rows[0]])}"
                raise UserError(f"{where}: cannot be read ({error.strerror or error})") from None
            if progress is not None:
                progress(done + len(rows), count)
        return heads

    def _read_heads(self, heads: RecordHeads, rows: Int64, keys: Int64, offsets: Int64, spans: Int64) -> None:
        size = _HEAD.itemsize
        data = [read_at(self._descriptor, size, offset).ljust(size, b"\0") for offset in offsets[rows].tolist()]
        found = np.frombuffer(b"".join(data), _HEAD)
        length = (found["word"] & _LENGTH_MASK).astype(np.int64)
        flags = found["flag"].astype(np.int64)
        image_bytes = length - HEADER.size - 4 * flags
        heads.flags[rows], heads.image_bytes[rows] = flags, image_bytes
        heads.first[rows] = np.where(flags > 0, found["labels"][:, 0], found["label"])
        heads.second[rows] = np.where(flags > 1, found["labels"][:, 1], np.float32(0))
        plain = (found["magic"] == MAGIC) & (found["word"] >> LENGTH_BITS == WHOLE) & (image_bytes >= 0)
        plain &= (length <= spans[rows] - FRAME.size) & (length <= MAX_PAYLOAD_BYTES)
        for row in rows[~plain].tolist():  # damaged, or of several parts
            offset = int(offsets[row])
            try:
                payload = self.read(offset, int(spans[row]))
                flag, heads.first[row], heads.second[row], image_at = read_header(payload, 0, len(payload))
            except BadRecordError as error:
                raise UserError(f"{self.path}: record {keys[row]} at byte {offset}: {error}; {_RESTORE}") from None
            heads.flags[row], heads.image_bytes[row] = flag, len(payload) - image_at

    def walk(self, progress: Progress | None = None) -> Int64:
        """Return where each record begins, by going from header to header: what an `.idx` would say.

        Args:
            progress: called as (bytes done, bytes).

        Raises:
            UserError: the frames do not follow each other up to the end of the file.
        """
        starts = array("q")
        at = 0
        while at < self.size:
            starts.append(at)
            room = self.size - at
            try:
                if room < FRAME.size:
                    raise BadRecordError(f"{room} bytes are left, too few for a record")
                [(_, end)] = deque(self._frames(at, b"", room, room), maxlen=1)
            except (BadRecordError, OSError) as error:
                raise UserError(f"{self.path}: record {len(starts) - 1} at byte {at}: {error}; {_RESTORE}") from None
            at += end + (-end % 4)
            if progress is not None and (len(starts) % _HEADS_TOGETHER == 0 or at >= self.size):
                progress(min(at, self.size), self.size)
        return np.array(starts, np.int64)


_RESTORE = "damaged or cut short: fetch it again"


def _beyond(offset: int, limit: int, room: int) -> str:
    what = "the file ends" if limit == room else "the next record begins"
    return f"{what} at byte {offset + limit}"
