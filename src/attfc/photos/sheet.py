"""A picture of the photos without an aligned face, for whoever wants to see why. It shows people: handle it as the photos."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from attfc.data.images import BrokenImageError
from attfc.data.preview import fit_text
from attfc.photos.manifest import Row
from attfc.photos.reading import read_photo

__all__ = ["refused_sheet"]

MOST = 200
_SIDE, _COLUMNS, _LINE = 160, 8, 13


def refused_sheet(photos: Path, rows: Sequence[Row]) -> Image.Image:
    """Draw up to 200 photos, each above its name and the reason; a cross stands for one that cannot be decoded.

    Args:
        photos: their folder.
        rows: of photos without an aligned face, at least one.
    """
    shown = rows[:MOST]
    wide, high = _SIDE + 4, _SIDE + 2 * _LINE + 4
    sheet = Image.new("RGB", (min(len(shown), _COLUMNS) * wide, -(-len(shown) // _COLUMNS) * high), (24, 24, 28))
    draw = ImageDraw.Draw(sheet)
    draw.font = ImageFont.load_default(10)
    for number, row in enumerate(shown):
        left, top = number % _COLUMNS * wide, number // _COLUMNS * high
        try:
            photo = Image.fromarray(read_photo(photos / row.photo))
            photo.thumbnail((_SIDE, _SIDE))
            sheet.paste(photo, (left, top))
        except (OSError, BrokenImageError):
            draw.line((left, top, left + _SIDE, top + _SIDE), (214, 60, 52))
            draw.line((left, top + _SIDE, left + _SIDE, top), (214, 60, 52))
        for line, text in enumerate((row.photo, row.reason)):
            draw.text((left + 2, top + _SIDE + line * _LINE), fit_text(draw, text, _SIDE), (225, 225, 230))
    return sheet
