"""Where path and label stand in the lines of a list: `path label`, or the columns of InsightFace's and MXNet's `.lst` files.

    path<TAB>label                          anything else
    1<TAB>path<TAB>label                    InsightFace: a flag "aligned", then box and landmarks, if any
    0<TAB>17.000000<TAB>path                MXNet's im2rec: a running number, one label, the path

The first line tells which; a later line that does not fit is refused, so no list is read half in one way and half in another.
"""

from dataclasses import dataclass

import numpy as np

from attfc.data.text_lines import BLANK, LineBlock, last_before, trimmed
from attfc.errors import UserError
from attfc.typing import Int64, UInt8

__all__ = ["IMAGE_ENDINGS", "Columns", "ListLayout"]

IMAGE_ENDINGS = (b".jpg", b".jpeg", b".png", b".webp", b".bmp", b".jfif", b".tif", b".tiff", b".gif")
"""What a path ends in and a label does not."""

_TAB = np.arange(256) == 0x09
_DOT = np.arange(256) == 0x2E


@dataclass(frozen=True)
class Columns:
    """Where path and label of each line of a block begin and end: int64 (n,) places in its data, without blanks around them."""

    path_starts: Int64
    path_ends: Int64
    label_starts: Int64
    label_ends: Int64


class ListLayout:
    """The columns of a list, as its first line has them.

    Raises:
        UserError: from `columns`: a line without a label, of other columns than the first, a heading, several labels.
    """

    _kind = ""

    def columns(self, block: LineBlock) -> Columns:
        """Return the columns of a block's lines; blocks in their order."""
        if not self._kind and len(block.starts):
            self._kind = self._told_by([block.text(row) for row in range(min(2, len(block.starts)))], block)
        if self._kind in ("insightface", "im2rec"):
            return self._by_tabs(block)
        data, starts, ends = block.data, block.starts, block.ends
        tab = last_before(data, _TAB, starts, ends)
        split = np.where(tab >= 0, tab, last_before(data, BLANK, starts, ends))
        block.refuse(split < 0, "has no label: a line is `path label`, a tab or blanks between them")
        _, path_ends = trimmed(data, starts, split)
        label_starts, _ = trimmed(data, split + 1, ends)
        return Columns(starts, path_ends, label_starts, ends)

    def _told_by(self, lines: list[bytes], block: LineBlock) -> str:
        first = [field.strip() for field in lines[0].split(b"\t")]
        if len(lines) > 1 and not _names_an_image(lines[0]) and _names_an_image(lines[1]):
            raise UserError(f"{block.where(0)} is a heading: remove it, or begin it with #")
        if len(first) < 3 or not first[0].isdigit():
            return "plain"
        if first[-1].lower().endswith(IMAGE_ENDINGS):
            if len(first) > 3:
                raise UserError(
                    f"{block.where(0)} has {len(first) - 2} labels: keep one, as in number<TAB>label<TAB>path"
                )
            return "im2rec"
        return "insightface" if first[2].isdigit() and not first[1].isdigit() else "plain"

    def _by_tabs(self, block: LineBlock) -> Columns:
        data, starts, ends = block.data, block.starts, block.ends
        tabs = np.flatnonzero(data == 0x09)
        number = np.searchsorted(tabs, starts)
        count = np.searchsorted(tabs, ends) - number
        expected = "1<TAB>path<TAB>label" if self._kind == "insightface" else "number<TAB>label<TAB>path"
        unlike = count < 2 if self._kind == "insightface" else count != 2
        block.refuse(unlike, f"has other columns than the first line, which is {expected}")
        tabs = np.append(tabs, len(data))
        one, two, three = (np.minimum(tabs[np.minimum(number + nth, len(tabs) - 1)], ends) for nth in range(3))
        if self._kind == "insightface":
            return Columns(*trimmed(data, one + 1, two), *trimmed(data, two + 1, three))
        label_starts, label_ends = trimmed(data, one + 1, two)
        return Columns(*trimmed(data, two + 1, ends), label_starts, _without_zeros(data, label_starts, label_ends))


def _names_an_image(line: bytes) -> bool:
    words = (word for field in line.split(b"\t") for word in (field, *field.split()))
    return any(word.strip().lower().endswith(IMAGE_ENDINGS) for word in words)


def _without_zeros(data: UInt8, starts: Int64, ends: Int64) -> Int64:
    """Return where labels end without ".000000", which im2rec writes behind whole numbers."""
    dots = last_before(data, _DOT, starts, ends)
    zeros = np.append(0, np.cumsum(data == 0x30))
    whole = (dots > starts) & (zeros[ends] - zeros[np.maximum(dots, 0)] == ends - dots - 1)
    return np.where(whole, dots, ends)
