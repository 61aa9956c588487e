"""Photos as people have them: which files are photos, and their upright pixels; one reason for every way in which a file can be bad.

JPEG, PNG, WebP and BMP are decoded as training images are (`data.images`: bounded pixels and scans, EXIF orientation, first frame). HEIC, what many
phones write, needs the package pillow-heif. Photos of other kinds are refused by their name, so that nobody misses them without notice.
"""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attfc.data.images import MAX_PIXELS, BrokenImageError, TooLargeImageError, decode_image
from attfc.data.stores.image_files import MAX_FILE_BYTES
from attfc.errors import one_line
from attfc.files import entry_is
from attfc.typing import UInt8

__all__ = ["Photo", "decode_photo", "list_photos", "read_photo"]

_READ = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".heic", ".heif")
_NOT_READ = (".avif", ".gif", ".tif", ".tiff", ".jp2", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw")
_KINDS = ((b"GIF8", "a GIF"), (b"II*\0", "a TIFF or raw"), (b"MM\0*", "a TIFF or raw"), (b"\xff\x0a", "a JPEG XL"))
_HEIC = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")


@dataclass(frozen=True)
class Photo:
    """A file of a folder of photos.

    Attributes:
        name: path relative to the folder, with "/".
        bytes, modified_ns: size and time of change, by which a later run knows it again.
        fault: why it is not read, empty for most.
    """

    name: str
    bytes: int
    modified_ns: int
    fault: str = ""


def list_photos(root: Path) -> Iterator[Photo]:
    """Yield the photos of a folder and its folders, in the order of their names; hidden names and other files are left out.

    Links that leave the folder are named and not followed, nor are links to folders: they could lead in a circle.

    Raises:
        OSError: a folder cannot be read.
    """
    top = os.path.join(os.path.realpath(root), "")
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        with os.scandir(root / inside) as entries:
            found = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
        folders = []
        for entry in found:
            name = f"{inside}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                folders.append(f"{name}/")
                continue
            is_photo = entry.name.lower().endswith(_READ + _NOT_READ)
            if entry.is_symlink() and (is_photo or entry_is(entry.is_dir)):
                if not os.path.join(os.path.realpath(entry.path), "").startswith(top):
                    yield Photo(name, 0, 0, "a link that leads out of the folder is not followed")
                    continue
                if entry_is(entry.is_dir) or not os.path.exists(entry.path):
                    yield Photo(name, 0, 0, "a link to a folder, or to nothing, is not followed")
                    continue
            if is_photo and entry_is(entry.is_file):
                facts = entry.stat()
                yield Photo(name, facts.st_size, facts.st_mtime_ns)
        waiting += reversed(folders)


def read_photo(path: Path) -> UInt8:
    """Return the upright pixels of a photo: uint8 (height, width, 3) RGB.

    Raises:
        BrokenImageError: it is not a photo, or none that can be decoded; the message is the reason, without the path.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        encoded = file.read(MAX_FILE_BYTES + 1)
    if len(encoded) > MAX_FILE_BYTES:
        raise BrokenImageError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
    return decode_photo(encoded)


def decode_photo(encoded: bytes) -> UInt8:
    """Return the upright pixels of an encoded photo, as `read_photo`."""
    if encoded[4:8] == b"ftyp" and encoded[8:12] in _HEIC:
        return _decode_heic(encoded)
    kind = (
        "an AVIF"
        if encoded[4:12] == b"ftypavif"
        else next((kind for mark, kind in _KINDS if encoded.startswith(mark)), "")
    )
    if kind:
        raise BrokenImageError(f"{kind} image, which is not read: convert it to JPEG or PNG")
    return decode_image(encoded)


def _decode_heic(encoded: bytes) -> UInt8:
    try:
        import pillow_heif
    except ImportError:
        raise BrokenImageError(
            "a HEIC image, and no decoder is installed: pip install pillow-heif, or convert it to JPEG"
        ) from None
    from PIL import ImageOps

    try:
        image = pillow_heif.open_heif(io.BytesIO(encoded), convert_hdr_to_8bit=True)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise TooLargeImageError(f"declares {width} x {height} pixels, more than the limit of {MAX_PIXELS:,}")
        return np.asarray(ImageOps.exif_transpose(image.to_pillow()).convert("RGB"))
    except (ValueError, OSError, RuntimeError, SyntaxError) as error:
        if isinstance(error, BrokenImageError):
            raise
        raise BrokenImageError(f"cannot be decoded ({one_line(error)[:200]})") from error
