"""A table of what is known of each image (age, size, camera, date), and the slices of a store that it gives.

The first line names the columns, the first column names the image: its path, or as much of the end of it as tells it from the others. Columns are
divided by tabs, or by commas where the first line has no tab. A column of more than 8 numbers, or years of dates, is cut into four bands of about
as many images each. `nan` stands for a value that is not known. The table is read in one pass and stays in memory; time is linear in rows and images.
"""

import csv
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from attfc.data.text_lines import lines_in_utf8
from attfc.errors import UserError
from attfc.typing import Texts

__all__ = ["Attributes", "NamedImages", "common_value", "read_attributes"]

MOST_VALUES, MOST_NUMBERS, BANDS = 20, 8, 4
LONGEST = 100  # characters of a value


class NamedImages(Protocol):
    """What is asked of a store or another set of images."""

    @property
    def name(self) -> str:
        """For messages."""

    def __len__(self) -> int:
        """Return the number of images."""

    def where(self, position: int) -> str:
        """Return the path of an image."""


@dataclass(frozen=True, eq=False)
class Attributes:
    """What is known of each image of a store.

    Attributes:
        columns: name -> (images,) text, "" = not known, or of a value that is too rare to be a slice.
        notes: what a reader of the figures should know.
    """

    columns: dict[str, Texts]
    notes: tuple[str, ...] = ()


def read_attributes(path: str | Path | None, store: NamedImages) -> Attributes | None:
    """Read a table of attributes and find its images in a store; None where there is no table.

    Images that the table lacks, and rows that name no image, are counted in a note.

    Raises:
        UserError: no such file, not UTF-8, no column beside the image's, two of one name, a row with more fields than columns; a row that
            names two images or an image of two rows; no row that names an image of the store, or a first line that names one.
    """
    if path is None:
        return None
    file = Path(path)
    names, rows, lines = _rows(file)
    image_of: dict[int, int] = {}
    row_of = np.full(len(store), -1)
    for row, image in _matches([*(row[0] for row in rows), names[0]], store):
        if row == len(rows):
            raise UserError(
                f"{file}: its first line names an image, {names[0][:80]!r}, where the columns are due: write image<TAB>camera<TAB>... above it"
            )
        if row_of[image] >= 0:
            one, other = sorted((lines[row_of[image]], lines[row]))
            raise UserError(f"{file}: lines {one} and {other} both name {store.where(image)}: leave one out")
        if row in image_of:
            one, other = sorted((image_of[row], image))
            raise UserError(
                f"{file} line {lines[row]}: {rows[row][0]!r} may be {store.where(one)} or {store.where(other)}: write more of the path"
            )
        row_of[image], image_of[row] = row, image
    if not image_of:
        example = repr(rows[0][0]) if rows else "nothing"
        raise UserError(f"{file} names no image of {store.name}: it has {example}, the store has {store.where(0)!r}")
    notes = []
    if strange := len(rows) - len(image_of):
        notes.append(f"{file.name}: {strange:,} of {len(rows):,} rows name no image of {store.name}")
    if lacking := int((row_of < 0).sum()):
        notes.append(f"{file.name}: {lacking:,} of {len(store):,} images are not in it")
    columns = {}
    for number, name in enumerate(names[1:], start=1):
        values = [row[number] for row in rows]
        if long := sum(len(value) > LONGEST for value in values):
            notes.append(f"{name} has {long:,} values of more than {LONGEST} characters: these are not slices")
        known = [value if len(value) <= LONGEST and value.lower() != "nan" else "" for value in values]
        columns[name], more = _banded(np.array([*known, ""], dtype=np.str_)[row_of])
        notes += [f"{name} {note}" for note in more]
    return Attributes(columns, tuple(notes))


def common_value(first_N: Texts, second_N: Texts) -> Texts:
    """Return the value that both have, "" where they differ.

    >>> common_value(np.array(["phone", "gate"]), np.array(["phone", ""])).tolist()
    ['phone', '']
    """
    return np.where(first_N == second_N, first_N, "")


def _rows(file: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Return the columns' names, the rows, each as long as these, and the line of each row."""
    names: list[str] = []
    rows, lines, divider = [], [], ","
    for number, line in lines_in_utf8(file, "attributes"):
        if not names:
            divider = "\t" if "\t" in line else ","
        try:
            fields = [field.strip() for field in next(csv.reader([line], delimiter=divider))]
        except csv.Error:
            raise UserError(f"{file} line {number} has a CR within it: end lines with LF or CR LF") from None
        if not names:
            names = fields
            if len(names) < 2 or not all(names) or len(set(names)) < len(names):
                raise UserError(
                    f"{file} line {number}: {line[:80]!r} does not name the columns: write image<TAB>camera<TAB>..., each once"
                )
            continue
        if len(fields) > len(names):
            raise UserError(f"{file} line {number}: {len(fields)} fields, but {len(names)} columns: {line[:80]!r}")
        rows.append(fields + [""] * (len(names) - len(fields)))
        lines.append(number)
    if not names:
        raise UserError(f"{file} is empty: write image<TAB>camera<TAB>..., then a line per image")
    return names, rows, lines


def _matches(keys: list[str], store: NamedImages) -> Iterator[tuple[int, int]]:
    """Return each row and image of which one's path is the end of the other's, or equal."""
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(_path(key), []).append(row)
    images: dict[str, list[int]] = {}
    for image in range(len(store)):
        path = _path(store.where(image))
        images.setdefault(path, []).append(image)
        for end in _ends(path):
            yield from ((row, image) for row in rows.get(end, ()))
    for path, those in rows.items():
        for end in _ends(path):
            if end != path:
                yield from ((row, image) for row in those for image in images.get(end, ()))


def _path(text: str) -> str:
    """Return a path with / and composed letters, as every system writes it."""
    return unicodedata.normalize("NFC", text.replace("\\", "/")).removeprefix("./")


def _ends(path: str) -> Iterator[str]:
    """Return a path, and what is left of it without its first folders."""
    while path:
        yield path
        path = path.partition("/")[2]


def _banded(texts: Texts) -> tuple[Texts, list[str]]:
    """Return the values of a column, cut into bands where they are many numbers; and what to say of it."""
    values, images = np.unique(texts[texts != ""], return_counts=True)
    if all(re.fullmatch(r"\d{4}-\d\d(-\d\d)?", value) for value in values.tolist()):
        texts = texts.astype("<U4")
        values, images = np.unique(texts[texts != ""], return_counts=True)
    if len(values) <= MOST_NUMBERS:
        return texts, []
    known = np.flatnonzero(texts != "")
    try:
        numbers = texts[known].astype(np.float64)
        if not np.isfinite(numbers).all():
            raise ValueError
    except ValueError:
        if len(values) <= MOST_VALUES:
            return texts, []
        kept = values[np.argsort(-images, kind="stable")[:MOST_VALUES]]
        note = f"has {len(values):,} values: only those {MOST_VALUES} with most images are slices"
        return np.where(np.isin(texts, kept), texts, ""), [note]
    edges = np.unique(np.quantile(numbers, np.arange(1, BANDS) / BANDS))
    band = np.searchsorted(edges, numbers, side="right")
    found = np.full(len(texts), "", dtype="<U40")
    for number in np.unique(band).tolist():
        of = numbers[band == number]
        found[known[band == number]] = f"{of.min():g} to {of.max():g}"
    return found, []
