"""Faces from wherever they are, as one store: paths, arrays, PIL images, folders, stores, and lists that mix them.

Everything goes through the decoder that training and evaluation use (RGB, central square, the model's size), so the same face gives the same
embedding on every way in. Arrays and PIL images are kept as they are and encoded without loss when they are read: some 0.1 ms each.
"""

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from attfc.data import CombinedStore, Store, open_store
from attfc.data.images import BrokenImageError, image_facts
from attfc.data.index import IdentityIndex, spread
from attfc.data.stores.folder import EXTENSIONS
from attfc.data.stores.store import EncodedStore
from attfc.errors import UserError, one_line
from attfc.files import entry_is
from attfc.typing import Array, Int64, PathLike, Progress, UInt8

__all__ = ["FaceList", "notes_of_images", "open_faces"]

IMAGE_FILES = tuple(extension.decode() for extension in EXTENSIONS)
STORE_FILES = (
    ".rec",
    ".idx",
    ".txt",
    ".lst",
    ".tsv",
    ".list",
    ".bin",
)  # any other file is an image, whatever its name says
KINDS = "give a path, a uint8 RGB array (height, width, 3), a PIL image, a store, or a list of these"
LOOKED_AT = 64
Face = Path | UInt8 | Image.Image  # one image
KEPT_BY_PNG = (
    "RGBA",
    "LA",
    "P",
    "PA",
    "I",
    "I;16",
)  # transparency and 16-bit grey, which the decoder treats in its own way


class FaceList(EncodedStore):
    """A Store over single images, each an identity of its own, in the order given.

    Args:
        items: a path, a uint8 RGB array (height, width, 3) or a PIL image each.
        first: number of the first one in messages, where it is part of a longer list.
    """

    def __init__(self, items: Sequence[Face], first: int) -> None:
        self.items, self.first = list(items), first
        self.name = "1 image" if len(self.items) == 1 else f"{len(self.items):,} images"
        self.identities = IdentityIndex(np.arange(len(self.items) + 1, dtype=np.int64))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.items)

    def read(self, position: int) -> tuple[bytes, int]:
        """Return the encoded image; its label is its position.

        Raises:
            OSError, BrokenImageError: it cannot be read.
        """
        item = self.items[position]
        if isinstance(item, Path):
            return item.read_bytes(), position
        try:
            image = ImageOps.exif_transpose(item) if isinstance(item, Image.Image) else Image.fromarray(item)
            lossless = "PNG" if image.mode in KEPT_BY_PNG or "transparency" in image.info else "BMP"
            stream = io.BytesIO()
            (image if lossless == "PNG" or image.mode == "RGB" else image.convert("RGB")).save(stream, lossless)
        except (OSError, ValueError, SyntaxError) as error:
            raise BrokenImageError(one_line(error)[:200]) from None
        return stream.getvalue(), position

    def labels(self, positions: npt.ArrayLike) -> Int64:
        """Return the labels of positions: the positions themselves."""
        return np.asarray(positions, dtype=np.int64)

    def where(self, position: int) -> str:
        """Return the path, or which of the images it is: "array 2"."""
        item = self.items[position]
        if isinstance(item, Path):
            return str(item)
        return f"{'PIL image' if isinstance(item, Image.Image) else 'array'} {self.first + position}"

    def identity_name(self, label: int) -> str:
        """Return `where` of the one image."""
        return self.where(label)


class _MixedFaces(CombinedStore):
    """Single images and stores; single images go by their own names."""

    def where(self, position: int) -> str:
        """Return the path of a single image, "store: where in it" of any other."""
        source, place = self.source_of(position)
        store = self.stores[int(source)]
        return store.where(int(place)) if isinstance(store, FaceList) else super().where(position)


def open_faces(
    images: Any,
    *,
    cache: PathLike | None = None,
    progress: Progress | None = None,
) -> Store:
    """Open faces of any kind as one store, in the order given.

    Args:
        images: one of, or an iterable that mixes
            - the path of an image file, or of a folder with images directly in it (in the order of their names);
            - a path or specification of `open_store`: folders root/<identity>/<image>, RecordIO, packed folders, lists, synthetic:...;
            - a uint8 RGB array (height, width, 3), or (N, height, width, 3);
            - a PIL image of any mode;
            - a store.
        cache, progress: of `open_store`.

    Raises:
        UserError: nothing there, an image of another kind, or no image at all.
    """
    parts: list[Store] = []
    singles: list[Face] = []

    def close_singles() -> None:
        if singles:
            parts.append(FaceList(singles, sum(map(len, parts))))
            singles.clear()

    for item in images if _is_several(images) else [images]:
        found: Store | list[Face]
        if isinstance(item, str | os.PathLike):
            spec = os.fspath(item)
            path = Path(os.path.expanduser(spec))
            if not path.exists() and not spec.startswith("synthetic"):
                raise UserError(f"{spec} does not exist: check the path")
            if path.is_file() and path.suffix.lower() not in STORE_FILES:
                found = [path]
            else:
                flat = _images_directly_in(path) if path.is_dir() else []
                found = [*flat] or open_store(spec, cache=cache, progress=progress)
        elif isinstance(item, np.ndarray):
            found = _checked(item)
        elif isinstance(item, Image.Image):
            found = [item]
        elif isinstance(item, Store):
            found = item
        else:
            raise UserError(f"{_kind(item)} is not an image: {KINDS}")
        if isinstance(found, list):
            singles += found
        else:
            close_singles()
            parts.append(found)
    close_singles()
    if not parts:
        raise UserError(f"no images were given: {KINDS}")
    return parts[0] if len(parts) == 1 else _MixedFaces(parts)


def notes_of_images(store: Store, image_size: int) -> list[str]:
    """Look at up to 64 images and say what does not look like an aligned face: not square, or far larger than the model's input."""
    positions = spread(len(store), LOOKED_AT).tolist()
    oblong, large, first = 0, 0, ""
    most = max(2 * image_size, 224)
    for position in positions:
        try:
            facts = image_facts(store.read(position)[0])
        except (OSError, BrokenImageError):
            continue  # whoever embeds it says so
        odd = facts.width != facts.height
        if odd or facts.width > most:
            oblong, large = oblong + odd, large + (not odd)
            first = first or f"{store.where(position)} has {facts.width} x {facts.height} pixels"
    if not first:
        return []
    what = " and ".join(
        [f"{oblong} {'is' if oblong == 1 else 'are'} not square (the central square is taken)"] * bool(oblong)
        + [f"{large} {'is' if large == 1 else 'are'} larger than {most} pixels"] * bool(large)
    )
    return [
        f"of {len(positions)} images looked at, {what}: {first}; the model is made for faces aligned to the ArcFace template, "
        f"{image_size} x {image_size}, and its embeddings of whole photos say little. --align finds and aligns the faces"
    ]


def _is_several(images: Any) -> bool:
    single = isinstance(images, str | os.PathLike | np.ndarray | Image.Image | Store | dict | bytes)
    return isinstance(images, Iterable) and not single


def _images_directly_in(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
        names = sorted(
            entry.name for entry in shown if entry.name.lower().endswith(IMAGE_FILES) and entry_is(entry.is_file)
        )
        if names and any(entry_is(entry.is_dir) for entry in shown):
            raise UserError(
                f"{folder} holds images and folders, and it is open which are meant: name the folders, or the images ({folder / '*'}"
                f"{Path(names[0]).suffix})"
            )
    return [folder / name for name in names]


def _checked(array: Array) -> list[Face]:
    batch = array[None] if array.ndim == 3 else array
    if array.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != 3 or 0 in batch.shape[1:]:
        raise UserError(
            f"an array of {array.dtype} {array.shape} is not an image: give uint8 RGB, 0 to 255, of shape (height, width, 3) or (N, height, width, 3)"
        )
    return [*batch]


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
