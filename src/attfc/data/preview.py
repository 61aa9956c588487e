"""A contact sheet of any store: a row per identity, a column per image, names and positions beneath.

To look at data before training on it: mixed-up identities, crops that are not aligned, duplicates and broken files show at
a glance. The choice is a hash of the seed, so a sheet can be made again. Cost: the images shown are decoded once.
A sheet of a real store shows real people: it is biometric data, as the store is, and belongs nowhere the store may not go.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from attfc.data.stores.store import Store
from attfc.errors import UserError
from attfc.random_streams import hash_words
from attfc.typing import Int64

__all__ = ["contact_sheet", "draw_sheet", "fit_text"]

_IDENTITIES, _IMAGES = 0x726F7773, 0x636F6C73  # purposes of the hash
_GAP = 2
_LABEL = 13  # height of a line of text in pixels
_BACKGROUND, _TEXT, _BROKEN = (24, 24, 28), (225, 225, 230), (214, 60, 52)


def contact_sheet(store: Store, identities: int = 8, images: int = 8, seed: int = 0, size: int = 112) -> Image.Image:
    """Draw a few identities of a store, one per row.

    Args:
        store: any store.
        identities: rows; fewer if the store has fewer.
        images: columns; an identity with fewer leaves the rest blank.
        seed: which identities and which of their images.
        size: side of a tile in pixels, 32 to 1024.

    Returns:
        RGB image. Above each row the identity's name and how many images it has, beneath each tile the image's
        position. A broken image is a red, crossed tile with the reason.

    Raises:
        UserError: a number out of range, or a store without images.
    """
    if identities < 1 or images < 1:
        raise UserError(f"a preview of {identities} identities x {images} images is empty: give at least 1 of each")
    if not 32 <= size <= 1024:
        raise UserError(f"size = {size}: tiles of a preview are 32 to 1024 pixels")
    if identities * images > 4096:
        raise UserError(f"a preview of {identities} x {images} tiles is too large: at most 4096 tiles")
    rows = _choose(store, identities, images, seed)
    if not rows:
        raise UserError(f"{store.name}: no identity has an image, there is nothing to show")

    counts = store.identities.counts()
    titled = [
        (f"{store.identity_name(label)}  ({counts[label]} image{'' if counts[label] == 1 else 's'})", [(store, chosen)])
        for label, chosen in rows
    ]
    return draw_sheet(titled, images, size)


def draw_sheet(rows: Sequence[tuple[str, Sequence[tuple[Store, Int64]]]], columns: int, size: int = 112) -> Image.Image:
    """Draw rows of images, each under its title and above its position.

    Args:
        rows: title, and the positions to show of one store or of several.
        columns: images per row at most.
        size: side of a tile in pixels.
    """
    tile, line = size + _GAP, size + _GAP + 2 * _LABEL
    sheet = Image.new("RGB", (columns * tile + _GAP, len(rows) * line + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.font = ImageFont.load_default(10)
    for row, (title, shown) in enumerate(rows):
        top, left = _GAP + row * line, _GAP
        draw.text((_GAP + 2, top), fit_text(draw, title, columns * tile - 4), _TEXT)
        for store, positions in shown:
            found = store.images(positions, size)
            for number, position in enumerate(positions.tolist()):
                if number in found.broken:
                    _draw_broken(draw, left, top + _LABEL, size, found.broken[number])
                else:
                    sheet.paste(Image.fromarray(found.pixels[number]), (left, top + _LABEL))
                draw.text((left + 2, top + _LABEL + size), fit_text(draw, str(position), size - 2), _TEXT)
                left += tile
    return sheet


def _choose(store: Store, identities: int, images: int, seed: int) -> list[tuple[int, np.ndarray]]:
    """(label, positions) of the rows: identities with images, by the order of their hashes."""
    index = store.identities
    filled = np.flatnonzero(index.counts() > 0)
    # Hash order of a bounded number of candidates: sorting 10 million identities for 8 rows would take seconds.
    if len(filled) > 100_000:
        draws = hash_words(_IDENTITIES, seed, np.arange(4 * identities)) % np.uint64(len(filled))
        _, first = np.unique(draws, return_index=True)
        labels = filled[draws[np.sort(first)].astype(np.int64)]
    else:
        labels = filled[np.argsort(hash_words(_IDENTITIES, seed, filled), kind="stable")]
    rows = []
    for label in labels[:identities].tolist():
        positions = index.of(label)
        order = np.argsort(hash_words(_IMAGES, seed, np.asarray(positions, dtype=np.int64)), kind="stable")
        rows.append((label, np.sort(positions[order[:images]])))
    return rows


def _draw_broken(draw: ImageDraw.ImageDraw, left: int, top: int, size: int, reason: str) -> None:
    right, bottom = left + size - 1, top + size - 1
    draw.rectangle((left, top, right, bottom), (52, 22, 22), _BROKEN)
    draw.line((left, top, right, bottom), _BROKEN)
    draw.line((left, bottom, right, top), _BROKEN)
    for row, text in enumerate(("broken", reason)):
        fitted = fit_text(draw, text, size - 8)
        draw.rectangle(
            (left + 2, top + 3 + row * _LABEL, left + 5 + draw.textlength(fitted), top + 15 + row * _LABEL),
            (52, 22, 22),
        )
        draw.text((left + 4, top + 3 + row * _LABEL), fitted, (255, 220, 215))


def fit_text(draw: ImageDraw.ImageDraw, text: str, width: float) -> str:
    """Return the text, cut with dots where it is wider than `width` pixels; unprintable characters and line breaks are shown as '?'."""
    text = "".join(c if c.isprintable() else "?" for c in text[:200])
    if draw.textlength(text) <= width:
        return text
    while text and draw.textlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
