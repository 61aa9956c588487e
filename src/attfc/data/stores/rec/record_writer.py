"""Writer of RecordIO: `train.rec` and `train.idx`, and a whole set in the InsightFace layout. Bytes and their order: `docs/formats.md`.

Both files appear whole, by rename, when the last record is written: a run that was interrupted leaves none. The drafts of one that was killed
are removed by the next.
"""

import contextlib
import itertools
import os
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from attfc.data.images import BrokenImageError, image_facts
from attfc.data.stores.rec.idx_file import doubled
from attfc.data.stores.rec.record_file import (
    FIRST,
    FRAME,
    HEADER,
    LAST,
    LENGTH_BITS,
    MAGIC,
    MAGIC_BYTES,
    MAX_PARTS,
    MAX_PAYLOAD_BYTES,
    MIDDLE,
)
from attfc.data.stores.rec.record_names import write_record_names
from attfc.data.stores.writer import LEFT_OUT, StoreWriter
from attfc.errors import UserError
from attfc.files import replacing
from attfc.typing import PathLike

__all__ = ["RecordSetWriter", "RecordWriter", "frames", "pack_payload"]


def pack_payload(labels: float | Sequence[float], image: bytes = b"", key: int = 0, id2: int = 0) -> bytes:
    """Return the payload of a record: header, labels, image.

    Args:
        labels: one number (flag 0), or several, even one in a list (flag = their number).

    >>> len(pack_payload(3.0, b"jpeg")), len(pack_payload([1.0, 2.0]))
    (28, 32)
    """
    if isinstance(labels, int | float):
        return HEADER.pack(0, labels, key, id2) + image
    return HEADER.pack(len(labels), 0.0, key, id2) + struct.pack(f"<{len(labels)}f", *labels) + image


def frames(payload: bytes) -> list[bytes]:
    """Return a payload as it lies in the file: a list of bytes to be written one after the other.

    Raises:
        UserError: more bytes or parts than the reader takes.

    >>> b"".join(frames(b"jpeg!")).hex(" ", 4)
    '0a23d7ce 05000000 6a706567 21000000'
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise UserError(f"record of {len(payload):,} bytes, more than the limit of {MAX_PAYLOAD_BYTES:,}")
    cuts: list[int] = []
    if MAGIC_BYTES in payload:  # one image of hundreds of thousands
        words = np.frombuffer(payload, "<u4", len(payload) // 4)
        cuts = (4 * np.flatnonzero(words == MAGIC)).tolist()
    if len(cuts) >= MAX_PARTS:
        raise UserError(f"record of {len(cuts) + 1:,} parts, more than the limit of {MAX_PARTS:,}")
    pad = bytes(-len(payload) % 4)
    if not cuts:
        return [FRAME.pack(MAGIC, len(payload)), payload, pad]
    parts: list[bytes] = []
    for number, (begin, end) in enumerate(itertools.pairwise([-4, *cuts, len(payload)])):
        cflag = FIRST if number == 0 else LAST if number == len(cuts) else MIDDLE
        part = payload[begin + 4 : end]
        parts += [FRAME.pack(MAGIC, cflag << LENGTH_BITS | len(part)), part]
    return [*parts, pad]


class RecordWriter:
    """Writes a `.rec` file and its `.idx`; both appear whole, by rename, when the block ends without an exception.

    Args:
        path_rec, path_idx: the files to make; existing ones are replaced.

    Raises:
        UserError: they cannot be written, a key was given twice, a payload is too large (all methods).

    """

    def __init__(self, path_rec: PathLike, path_idx: PathLike) -> None:
        self.path_rec, self.path_idx = Path(os.path.abspath(path_rec)), Path(os.path.abspath(path_idx))
        self.size = 0
        self._keys = array("q")

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path_rec}: cannot be written ({error.strerror or error})") from None

    def __enter__(self) -> "RecordWriter":
        """Open the two drafts."""
        with self._failures(), contextlib.ExitStack() as drafts:
            # They are put in place in the other order, the .rec last: who sees it finds its .idx.
            self._rec, self._idx = (drafts.enter_context(replacing(path)) for path in (self.path_rec, self.path_idx))
            self._drafts = drafts.pop_all()
        return self

    def append(self, payload: bytes, key: int) -> int:
        """Write one record and return the byte at which it begins."""
        if not 0 <= key < 1 << 59:
            raise UserError(f"{self.path_idx}: key {key}: a whole number of at most 17 digits is needed")
        offset = self.size
        with self._failures():
            self.size += self._rec.write(b"".join(frames(payload)))
            self._idx.write(b"%d\t%d\n" % (key, offset))
        self._keys.append(key)
        return offset

    def rewrite(self, payload: bytes, offset: int) -> None:
        """Replace a record that was appended at `offset` by one of the same length."""
        with self._failures():
            self._rec.seek(offset)
            self._rec.write(b"".join(frames(payload)))
            self._rec.seek(self.size)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Put both files in place; after an exception remove them."""
        keys = np.array(self._keys, np.int64)
        again = doubled(keys)
        if kind is not None or again is not None:
            self.discard()
        else:
            with self._failures():
                self._drafts.close()
        if kind is None and again is not None:
            raise UserError(f"{self.path_idx}: key {keys[again[0]]} was given twice")

    def discard(self) -> None:
        """Remove the drafts."""
        given_up = InterruptedError()
        with contextlib.suppress(OSError):
            self._drafts.__exit__(InterruptedError, given_up, None)


class RecordSetWriter(StoreWriter):
    """Writes `train.rec`, `train.idx` and `property` in the InsightFace layout, `train.names` and the list of what is left out.

    Each image also holds its label as its own.

    Args:
        folder: made if it is missing; must not hold `train.rec`.
        source: the source's name. identities: how many it has.
        names: gives the name of an identity of the source, for `train.names`; None: no such file.

    Raises:
        UserError: the folder holds a set or cannot be written to, or more than 16,777,216 identities (their labels would collide
            in float32).
    """

    again = " and start again"
    drafts = (".train.*.part",)  # the folder may hold other things

    def __init__(self, folder: PathLike, source: str, identities: int, names: Callable[[int], str] | None) -> None:
        super().__init__(Path(os.path.abspath(folder)))
        self.source, self._names = source, names
        rec, idx = self.folder / "train.rec", self.folder / "train.idx"
        if identities > 1 << 24:
            raise UserError(
                f"{source}: {identities:,} identities, but RecordIO holds labels as float32, exact for 16,777,216: "
                "convert to the packed format"
            )
        killed = any(self.folder.glob(".train.rec.*.part"))  # perhaps between putting the .idx in place and the .rec
        for path in (rec,) if killed else (rec, idx):
            if os.path.lexists(path):
                raise UserError(f"{path}: exists already: give a folder without a record set")
        self._firsts, self._taken = array("q"), array("q")  # first key, and label in the source, of each identity
        self._shape: tuple[int, int] | None = None
        self._left_out: list[bytes] = []
        self._records = RecordWriter(rec, idx)
        try:
            with self.failures():
                self._take(self.folder)
            self._records.__enter__().append(pack_payload([0.0, 0.0]), key=0)
        except BaseException:
            super().close()
            raise

    def failure(self, error: OSError) -> UserError:
        """Return the error for anything that keeps a set from being written."""
        return UserError(f"{self.folder}: cannot be written ({error.strerror or error})")

    def refusal(self, encoded: bytes) -> str | None:
        """Return why an image cannot be taken; None: it can."""
        if not encoded:
            return "empty file"
        large = len(encoded) > MAX_PAYLOAD_BYTES - 64
        return f"image of {len(encoded):,} bytes, more than a record takes" if large else None

    def add(self, encoded: bytes, name: bytes = b"") -> None:
        """Append one image of the identity at hand."""
        super().add(encoded)
        key = self.images + self._started
        self._records.append(pack_payload(float(self.identities), encoded, key), key)
        if self._shape is None:
            with contextlib.suppress(BrokenImageError):
                facts = image_facts(encoded)
                self._shape = facts.width, facts.height

    def _note(self, line: bytes) -> None:
        self._left_out.append(line)

    def end_identity(self, done: int) -> None:
        """End the identity at hand; without images it is left out."""
        if self._started:
            self._firsts.append(self.images + 1)
            self._taken.append(done - 1)
        super().end_identity(done)

    def _finish(self) -> None:
        after = self.images + 1
        for key, (first, last) in enumerate(itertools.pairwise([*self._firsts, after]), after):
            self._records.append(pack_payload([float(first), float(last)], key=key), key)
        self._records.rewrite(pack_payload([float(after), float(after + self.identities)]), 0)
        if self._left_out:
            (self.folder / LEFT_OUT).write_bytes(b"".join(self._left_out))
        width, height = self._shape or (112, 112)
        (self.folder / "property").write_text(f"{self.identities},{height},{width}\n", "utf-8")
        if self._names is not None:
            write_record_names(self._records.path_rec, self._records.size, map(self._names, self._taken))
        self._records.__exit__(None)
        self.finished = True

    def close(self) -> None:
        """Remove what is unfinished."""
        if not self.finished:
            self._records.discard()
        super().close()
