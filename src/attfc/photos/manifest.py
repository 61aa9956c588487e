"""The manifest of a folder of aligned faces: a line per face, and a line per photo without one.

`manifest.tsv` beside the faces: a header, then tab-separated values; tabs, line breaks and backslashes in names are written as \\t, \\n, \\r, \\\\.
While photos are aligned, lines go to `manifest.part.tsv`, one photo at a time: a run that was killed goes on behind the last whole photo. At the end
the manifest is written whole, in the order of the photos, and as `manifest.parquet` too where pyarrow is installed.
"""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import IO, Any

from attfc.errors import UserError
from attfc.files import lock, written_whole

__all__ = ["MEASURES", "PLACES", "Manifest", "Row"]

WHOLE, PART, PARQUET = "manifest.tsv", "manifest.part.tsv", "manifest.parquet"
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


@dataclass(frozen=True)
class Row:
    """A face, or a photo without one; numbers of a photo without a face are NaN.

    Attributes:
        photo: path relative to the folder of photos.
        aligned: path relative to the folder of aligned faces; empty: none.
        reason: why there is none.
        faces: how many the photo has.
        confidence ... outside: see `AlignedFace`; coordinates are pixels of the upright photo, each point as x, y.
        bytes, modified_ns: of the photo.
    """

    photo: str
    aligned: str = ""
    reason: str = ""
    faces: int = 0
    confidence: float = math.nan
    left: float = math.nan
    top: float = math.nan
    right: float = math.nan
    bottom: float = math.nan
    left_eye_x: float = math.nan
    left_eye_y: float = math.nan
    right_eye_x: float = math.nan
    right_eye_y: float = math.nan
    nose_x: float = math.nan
    nose_y: float = math.nan
    left_mouth_x: float = math.nan
    left_mouth_y: float = math.nan
    right_mouth_x: float = math.nan
    right_mouth_y: float = math.nan
    size: float = math.nan
    sharpness: float = math.nan
    yaw: float = math.nan
    pitch: float = math.nan
    outside: float = math.nan
    bytes: int = 0
    modified_ns: int = 0

    def to_line(self) -> str:
        """Return the row as a line; numbers with two decimals, shares with four."""
        return "\t".join(map(_written, astuple(self), _FORMATS)) + "\n"

    @classmethod
    def of_line(cls, line: str) -> "Row":
        """Return the row that a line holds.

        Raises:
            ValueError: it holds another number of values, or one that is not a number.

        >>> Row.of_line(Row("a\\tb.jpg", faces=2, size=3.25).to_line()).photo
        'a\\tb.jpg'
        """
        values = [_read(text, field.type) for text, field in zip(line.split("\t"), fields(cls), strict=True)]
        return cls(*values)


_FORMATS = [".4f" if field.name in ("confidence", "outside") else ".2f" for field in fields(Row)]
_NAMES = [field.name for field in fields(Row)]
MEASURES = ("faces", "confidence", "size", "sharpness", "yaw", "pitch", "outside")
"""Columns that are attributes of an `AlignedFace` under the same names."""
PLACES = tuple(_NAMES[_NAMES.index("left") : _NAMES.index("size")])
"""Columns of its box and landmarks, in their order."""
_HEADER = "\t".join(_NAMES) + "\n"


def _written(value: object, form: str) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else format(value, form)
    return "".join(_ESCAPES.get(letter, letter) for letter in str(value))


def _read(text: str, kind: object) -> Any:
    if kind is int:
        return int(text)
    if kind is float:
        return float(text) if text else math.nan
    plain, letters = "", iter(text)
    for letter in letters:
        plain += {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}[next(letters, "")] if letter == "\\" else letter
    return plain


class Manifest:
    """The rows of a folder of aligned faces, open for one process to add to.

    Args:
        folder: of the aligned faces; it exists.

    Attributes:
        rows: photo -> its rows, of earlier runs and of this one.

    Raises:
        UserError: another process is aligning into the folder, or its manifest is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, dict[str, list[Row]]()
        self._file: IO[str] = self._open()

    def _open(self) -> IO[str]:
        part = self.folder / PART
        try:
            file = part.open("a+", encoding="utf-8", errors="surrogateescape", newline="\n")
        except OSError as error:
            raise UserError(f"{part} cannot be written: {error.strerror}; make room or permission there") from None
        if not lock(file):
            file.close()
            raise UserError(f"{self.folder}: another process is aligning photos into this folder: wait for it")
        try:
            for path in (self.folder / WHOLE, part):
                self._take(path)
        except UserError:
            file.close()
            raise
        return file

    def _take(self, path: Path) -> None:
        """Take the rows of a file; what stands behind its last whole line was being written when the run was killed."""
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            found: dict[str, list[Row]] = {}
            whole = 0
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    os.truncate(path, whole)
                    break
                whole += len(line)
                text = line[:-1].decode("utf-8", "surrogateescape")
                if not text or f"{text}\n" == _HEADER:
                    continue
                try:
                    row = Row.of_line(text)
                except (ValueError, KeyError):
                    raise UserError(
                        f"{path}:{number} is not a line of a manifest: delete {self.folder} to align the photos again"
                    ) from None
                found.setdefault(row.photo, []).append(row)
            self.rows.update(found)

    def __enter__(self) -> "Manifest":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the folder to others."""
        with contextlib.suppress(OSError):  # a full disk was said already
            self._file.close()

    def add(self, rows: list[Row]) -> None:
        """Add all rows of a photo at once.

        Raises:
            UserError: the disk is full.
        """
        self.rows[rows[0].photo] = rows
        try:
            self._file.write("".join(row.to_line() for row in rows))
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self.folder / PART} cannot be written: {error.strerror}; make room there, then run the same command again"
            ) from None

    def finish(self, order: Iterable[str]) -> None:
        """Write the manifest whole: the photos of `order` first, then those that only earlier runs saw."""
        order = list(dict.fromkeys(order))
        known = set(order)
        self.rows = {photo: self.rows[photo] for photo in [*order, *(name for name in self.rows if name not in known)]}
        with written_whole(self.folder / WHOLE) as file:
            file.write(_HEADER.encode())
            for row in self:
                file.write(row.to_line().encode("utf-8", "surrogateescape"))
        self._write_parquet()
        (self.folder / PART).unlink(missing_ok=True)

    def __iter__(self) -> Iterator[Row]:
        """Yield every row."""
        for rows in self.rows.values():
            yield from rows

    def _write_parquet(self) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            return
        # The numbers of the text, so that it does not matter which run aligned a photo.
        columns = list(zip(*(astuple(Row.of_line(row.to_line())) for row in self), strict=True))
        kinds = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float32()}
        arrays = [
            pyarrow.array([_utf8(value) for value in column], kinds[field.type])  # type: ignore[index]
            for column, field in zip(columns, fields(Row), strict=True)
        ]
        table = pyarrow.table(arrays, names=_NAMES)
        with written_whole(self.folder / PARQUET) as file:
            pyarrow.parquet.write_table(table, file)


def _utf8(value: object) -> object:
    """Return a value as Parquet takes it: NaN is missing, and names are UTF-8."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return (
        value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if isinstance(value, str)
        else value
    )
