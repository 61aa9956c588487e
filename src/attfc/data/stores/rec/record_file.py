"""MXNet RecordIO as bytes: frames, and the header of their payloads. No MXNet.

A frame is the magic 0xced7230a, a word of 3 bits `cflag` and 29 bits length, the payload, zeros up to a multiple of 4. Where
the magic stands in a payload at a multiple of 4 it is taken out and the payload goes into several frames (cflag 1, 2 ..., 3; 0 is a
whole one), so that a magic word in the file always begins a frame. Bytes and their order: `docs/formats.md`.

Everything is read with `pread` on one descriptor: threads and forked workers share no position. Per image of 5 KB in the page
cache that takes 1.7 us (2.6 us at random) where a memory map takes 0.9 (1.4), and decoding takes 300: not worth a process
that dies of SIGBUS when a mapped file is cut short. Files come from outside: each length is compared with the file and with the
limit of 256 MiB before anything is allocated.
"""

import os
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attfc.data.stores.image_files import MAX_FILE_BYTES
from attfc.data.text_lines import open_regular
from attfc.errors import UserError
from attfc.files import read_at
from attfc.typing import Bools, Float32, Int64, Progress

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
    "RecordHeader",
    "RecordHeads",
    "unpack_payload",
]


MAGIC = 0xCED7230A
MAX_PAYLOAD_BYTES = MAX_FILE_BYTES
MAX_PARTS = 65_536
"""Parts of one record. Chance puts the magic into one 5 KB image of three million; a file made to keep us busy has millions of parts."""

MAGIC_BYTES = MAGIC.to_bytes(4, "little")
FRAME = struct.Struct("<II")
HEADER = struct.Struct("<IfQQ")
_FIRST_LABEL = struct.Struct("<f")
LENGTH_BITS = 29
_LENGTH_MASK = (1 << LENGTH_BITS) - 1
WHOLE, FIRST, MIDDLE, LAST = range(4)

_HEAD_WORDS = 10  # frame, payload header and two labels: 40 bytes
_HEAD_BYTES = 4 * _HEAD_WORDS
_BLOCK_BYTES = 4 << 20
_WIDE_GAP = 8192  # beyond it, 40 bytes per record are cheaper to read one by one than with all that lies between
_ONE_READ = 1 << 20
_PROGRESS_EVERY = 16_384


class BadRecordError(ValueError):
    """A record that cannot be read; the message is the reason, without file, key and offset: the caller knows them."""


@dataclass(frozen=True)
class RecordHeader:
    """What a payload holds before the image.

    Attributes:
        flag: 0: one label; else the number of labels.
        labels: float32 (1,) or (flag,).
        id, id2: uint64; the key, and 0, by custom.
    """

    flag: int
    labels: Float32
    id: int
    id2: int


def unpack_payload(payload: bytes) -> tuple[RecordHeader, bytes]:
    """Return the header and the image of a payload.

    Raises:
        BadRecordError: it is shorter than its header and labels.

    >>> from attfc.data.stores.rec.record_writer import pack_payload
    >>> header, image = unpack_payload(pack_payload([1.0, 7.0], b"jpeg", key=5))
    >>> header.flag, header.labels.tolist(), header.id, image
    (2, [1.0, 7.0], 5, b'jpeg')
    """
    flag, label, image_at = read_header(payload, 0, len(payload))
    _, _, key, id2 = HEADER.unpack_from(payload)
    labels = np.array([label], np.float32)
    if flag:
        labels = np.frombuffer(payload, "<f4", flag, HEADER.size).astype(np.float32, copy=False)
    return RecordHeader(flag, labels, key, id2), payload[image_at:]


def read_header(buffer: bytes, begin: int, end: int) -> tuple[int, float, int]:
    """Return flag, first label, and where the image begins, of the payload at begin ... end."""
    if end - begin < HEADER.size:
        raise BadRecordError(f"payload of {end - begin} bytes has no room for the header of {HEADER.size}")
    flag, label, _, _ = HEADER.unpack_from(buffer, begin)
    image_at = begin + HEADER.size + 4 * flag
    if image_at > end:
        raise BadRecordError(f"payload of {end - begin:,} bytes declares {flag:,} labels, which do not fit into it")
    if flag:
        (label,) = _FIRST_LABEL.unpack_from(buffer, begin + HEADER.size)
    return flag, label, image_at


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

    def __init__(self, path: str | os.PathLike[str]) -> None:
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
        status = os.fstat(self._descriptor)
        return (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns)

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
        region = self._pread(FRAME.size if span is None else min(limit, _ONE_READ), offset)
        if len(region) >= FRAME.size:
            magic, length = FRAME.unpack_from(region)
            end = FRAME.size + length  # a part of several has a cflag, which makes it longer than any region
            if magic == MAGIC and end + (-end % 4) == len(region) == limit:  # nearly every record
                return region, FRAME.size, end
        payload, end = self._join(offset, region, limit, room)
        if span is not None and end < limit:
            self._check_follower(offset, region, end, limit)
        return payload, 0, len(payload)

    def _join(self, offset: int, region: bytes, limit: int, room: int) -> tuple[bytes, int]:
        """Return the payload and where the record ends; `region` holds the file's bytes from `offset` on, as far as read."""
        pieces: list[bytes] = []
        at = total = 0
        while True:
            if at + FRAME.size > limit:
                raise BadRecordError(f"part {len(pieces) + 1} of the record is missing: {_beyond(offset, limit, room)}")
            length, cflag = _check_frame(self._part(offset, region, at, FRAME.size), len(pieces))
            begin = at + FRAME.size
            if begin + length > limit:
                raise BadRecordError(f"declares {length:,} bytes: {_beyond(offset, limit, room)}")
            total += length + (4 if pieces else 0)
            if total > MAX_PAYLOAD_BYTES:
                raise BadRecordError(f"record of {total:,} bytes or more, the limit is {MAX_PAYLOAD_BYTES:,}")
            if len(pieces) == MAX_PARTS:
                raise BadRecordError(f"record of more than {MAX_PARTS:,} parts")
            pieces.append(self._part(offset, region, begin, length))
            at = begin + length + (-length % 4)
            if cflag in (WHOLE, LAST):
                return MAGIC_BYTES.join(pieces), at
            if length % 4:
                raise BadRecordError(f"part {len(pieces)} of the record has {length} bytes, not a multiple of 4")

    def _part(self, offset: int, region: bytes, begin: int, length: int) -> bytes:
        if begin + length <= len(region):
            return region[begin : begin + length]
        return self._pread(length, offset + begin)

    def _check_follower(self, offset: int, region: bytes, end: int, limit: int) -> None:
        """An index may leave records out, so a record may end before the next one that is listed; a frame must follow."""
        follower = self._part(offset, region, end, 4) if end + 4 <= limit else b""
        if follower != MAGIC_BYTES:
            raise BadRecordError(
                f"ends at byte {offset + end} where no record follows; the next listed one begins at byte {offset + limit}"
            )

    def _pread(self, count: int, offset: int) -> bytes:
        data = read_at(self._descriptor, count, offset)
        while len(data) < count:
            more = read_at(self._descriptor, count - len(data), offset + len(data))
            if not more:
                raise BadRecordError(f"the file ends at byte {offset + len(data)}, it was cut short while in use")
            data += more
        return data

    def heads(self, keys: Int64, offsets: Int64, spans: Int64, progress: Progress | None = None) -> RecordHeads:
        """Read the headers of many records, vectorized, in blocks of some thousand; 1.1 us a record of 5 KB in the page cache.

        Args:
            keys: int64 (n,) for messages.
            offsets: int64 (n,) in any order; they are read in rising order.
            spans: int64 (n,) bytes from each to where the next record begins: no record may be longer.
            progress: called as (records done, records).

        Raises:
            UserError: a record that is damaged, as far as its header shows it; the message names file, key and offset.
        """
        done, count = 0, len(offsets)
        heads = RecordHeads(*np.empty((2, count), np.float32), *np.empty((2, count), np.int64))
        order = np.arange(count) if bool((offsets[1:] > offsets[:-1]).all()) else np.argsort(offsets, kind="stable")
        ordered = offsets[order]
        while done < count:
            stop = int(np.searchsorted(ordered, ordered[done] + _BLOCK_BYTES))
            rows = order[done:stop]
            try:
                self._read_heads(heads, rows, keys[rows], ordered[done:stop], spans[rows])
            except OSError as error:
                where = f"{self.path}: byte {int(ordered[done])}"
                raise UserError(f"{where}: cannot be read ({error.strerror or error})") from None
            done = stop
            if progress is not None:
                progress(done, count)
        return heads

    def _words(self, offsets: Int64) -> npt.NDArray[np.uint32]:
        """Return the first ten words at each offset: uint32 (n, 10), zeros beyond the end of the file."""
        first, length = int(offsets[0]), int(offsets[-1] - offsets[0]) + _HEAD_BYTES
        if length > _WIDE_GAP * len(offsets):
            one_by_one = [read_at(self._descriptor, _HEAD_BYTES, offset) for offset in offsets.tolist()]
            data = b"".join([head.ljust(_HEAD_BYTES, b"\0") for head in one_by_one])
            return np.frombuffer(data, "<u4").reshape(-1, _HEAD_WORDS)
        region = read_at(self._descriptor, length, first)
        words = np.frombuffer(region.ljust(length, b"\0"), "<u4")
        heads: npt.NDArray[np.uint32] = words[((offsets - first) >> 2)[:, None] + np.arange(_HEAD_WORDS)]
        return heads

    def _read_heads(self, heads: RecordHeads, rows: Int64, keys: Int64, offsets: Int64, spans: Int64) -> None:
        words = self._words(offsets)
        length = words[:, 1].astype(np.int64)
        cflag = length >> LENGTH_BITS
        length &= _LENGTH_MASK
        flags = words[:, 2].astype(np.int64)
        image_bytes = length - HEADER.size - 4 * flags
        heads.flags[rows], heads.image_bytes[rows] = flags, image_bytes
        heads.first[rows] = np.where(flags > 0, words[:, 8], words[:, 3]).view(np.float32)
        heads.second[rows] = np.where(flags > 1, words[:, 9], np.uint32(0)).view(np.float32)
        plain = (words[:, 0] == MAGIC) & (cflag == WHOLE) & (length <= spans - FRAME.size)
        plain &= (length >= HEADER.size) & (image_bytes >= 0) & (length <= MAX_PAYLOAD_BYTES)
        for place in np.flatnonzero(~plain).tolist():  # damaged, or of several parts
            row, offset = rows[place], int(offsets[place])
            try:
                header, image = unpack_payload(self.read(offset, int(spans[place])))
            except BadRecordError as error:
                raise UserError(
                    f"{self.path}: record {int(keys[place])} at byte {offset}: {error}; {_RESTORE}"
                ) from None
            heads.flags[row], heads.image_bytes[row] = header.flag, len(image)
            heads.first[row], heads.second[row] = (*header.labels[:2], 0.0)[:2]

    def walk(self, progress: Progress | None = None) -> Int64:
        """Return where each record begins, by going from header to header: what an `.idx` would say. 1.7 us per record.

        Args:
            progress: called as (bytes done, bytes).

        Raises:
            UserError: the frames do not follow each other up to the end of the file.
        """
        starts = array("q")
        at = parts = frames_seen = 0
        while at < self.size:
            try:
                if self.size - at < FRAME.size:
                    raise BadRecordError(f"{self.size - at} bytes are left, too few for a record")
                length, cflag = _check_frame(read_at(self._descriptor, FRAME.size, at), parts)
                if length > self.size - at - FRAME.size:
                    raise BadRecordError(f"declares {length:,} bytes: the file ends at byte {self.size}")
            except (BadRecordError, OSError) as error:
                where = f"{self.path}: record {max(len(starts) - bool(parts), 0)} at byte {at}"
                raise UserError(f"{where}: {error}; {_RESTORE}") from None
            if parts == 0:
                starts.append(at)
            parts = parts + 1 if cflag in (FIRST, MIDDLE) else 0
            at += FRAME.size + length + (-length % 4)
            frames_seen += 1
            if progress is not None and frames_seen % _PROGRESS_EVERY == 0:
                progress(at, self.size)
        if parts:
            raise UserError(
                f"{self.path}: record {len(starts) - 1} at byte {starts[-1]}: lacks its last part; {_RESTORE}"
            )
        if progress is not None and self.size:
            progress(self.size, self.size)
        return np.array(starts, np.int64)


_RESTORE = "damaged or cut short: fetch it again"


def _check_frame(frame: bytes, parts: int) -> tuple[int, int]:
    """Return length and cflag of a frame that follows `parts` parts of its record."""
    if len(frame) < FRAME.size:
        raise BadRecordError("the file was cut short while in use")
    magic, word = FRAME.unpack(frame)
    if magic != MAGIC:
        raise BadRecordError(f"no record begins there (0x{magic:08x} instead of 0x{MAGIC:08x})")
    cflag = word >> LENGTH_BITS
    if cflag not in ((MIDDLE, LAST) if parts else (WHOLE, FIRST)):
        wanted = "2 or 3 (a further part)" if parts else "0 or 1 (the beginning of a record)"
        raise BadRecordError(f"cflag {cflag} where {wanted} must stand")
    return word & _LENGTH_MASK, cflag


def _beyond(offset: int, limit: int, room: int) -> str:
    what = "the file ends" if limit == room else "the next record begins"
    return f"{what} at byte {offset + limit}"
