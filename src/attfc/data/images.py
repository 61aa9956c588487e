"""Encoded image -> uint8 RGB, the loader's hot path; one exception type for every way in which a file can be bad.

JPEG, PNG, WebP and BMP by their first bytes, never by name. The declared size is read from the header and bounded
before any pixel is decoded, as are the scans of a progressive JPEG: each costs a pass over the pixels. A plain JPEG is
decoded by simplejpeg, faster than by Pillow and with the same pixels (both call libjpeg-turbo). Everything else, a
damaged JPEG too, goes to Pillow's decoders, called directly: `Image.open` would probe formats by trial and warn about
large images through process-wide settings. Conventions:

- grey, palette, CMYK (Adobe's inverted JPEG too), YCbCr -> RGB; 16-bit grey is scaled by 1/257, not clipped;
- transparency is laid over black, the value that alignment leaves outside the photo;
- EXIF orientation is applied; of an animation the first frame is taken;
- an image that is not square is cropped to its central square (aligned faces are square; cropping keeps the
  proportions of a face, stretching would not), then resized with an antialiasing bilinear filter.
"""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from attfc.errors import one_line
from attfc.typing import UInt8

__all__ = [
    "BrokenImageError",
    "ImageFacts",
    "TooLargeImageError",
    "decode_image",
    "encode_image",
    "image_facts",
    "image_size",
    "reason_of",
]

MAX_PIXELS = 64 * 1024 * 1024
"""Largest width x height that is decoded: 192 MiB of RGB. A 20 KB PNG may declare far more."""
MAX_SCANNED = 16 * MAX_PIXELS
"""Largest width x height x scans of a JPEG: some 4 s. A usual progressive file has 10 scans, a hostile one thousands."""

_SCAN = b"\xff\xda"  # begins a scan; between entropy-coded bytes it cannot stand
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_warnings_lock = threading.Lock()


class BrokenImageError(ValueError):
    """The bytes are not an image that can be used; the message is a short reason without a path."""


class TooLargeImageError(BrokenImageError):
    """The image declares more pixels or scans than are decoded."""


def reason_of(error: OSError | BrokenImageError) -> str:
    """Return why an image could not be read or decoded: one line without the path."""
    return str(error) if isinstance(error, BrokenImageError) else f"cannot be read ({error.strerror or error})"


@dataclass(frozen=True)
class ImageFacts:
    """What an encoded image declares: pixels, Pillow's mode name ("RGB", "L", "CMYK" ...) and the format."""

    width: int
    height: int
    mode: str
    format: str


def decode_image(encoded: bytes, size: int | None = None) -> UInt8:
    """Decode an image to RGB.

    Args:
        encoded: the file's bytes: JPEG, PNG, WebP or BMP.
        size: side in pixels of the square result; None keeps the image's own width and height, uncropped.

    Returns:
        uint8 (size, size, 3) RGB, 0 ... 255; (height, width, 3) if size is None.

    Raises:
        BrokenImageError: empty, cut short, damaged, of another format, or too large; the message is the reason.
    """
    plain = _is_plain_jpeg(encoded)
    pixels = _plain_jpeg(encoded, size) if plain else None
    if pixels is not None:
        if size is None or pixels.shape[:2] == (size, size):
            return pixels
        return _squared(Image.fromarray(pixels), size)
    with _decoding(plain):
        image: Image.Image = _open(encoded)
        # Half-size decoding in the DCT: 112 -> 56 px takes 0.22 ms instead of 0.57 and comes closer to a Lanczos resize of
        # the whole (mean absolute difference 1.4 of 255 instead of 2.3); 250 -> 112 px 1.0 ms instead of 1.7.
        if size is not None and isinstance(image, JpegImageFile) and min(image.size) >= 2 * size:
            image.draft(None, (size, size))
        image.load()
        image = _to_rgb(_upright(image))
        return np.asarray(image) if size is None or image.size == (size, size) else _squared(image, size)


def encode_image(pixels: UInt8, kind: str, **options: int) -> bytes:
    """Return the file of uint8 (height, width, 3) RGB pixels; `options` of the kind ("JPEG", "PNG", "BMP") are those of Pillow."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def image_facts(encoded: bytes) -> ImageFacts:
    """Decode an image in full and tell its size, mode and format.

    Raises:
        BrokenImageError: as `decode_image`.
    """
    with _decoding(_is_plain_jpeg(encoded)):
        image = _open(encoded)
        width, height = image.size
        facts = ImageFacts(width, height, image.mode, image.format or "?")
        image.load()
        _to_rgb(image)
        return facts


def image_size(encoded: bytes) -> tuple[int, int]:
    """Return width and height as the image's header declares them; no pixel is decoded, nor the orientation applied.

    Raises:
        BrokenImageError: empty, of another format, too large, or a header that cannot be read.
    """
    with _decoding(_is_plain_jpeg(encoded)):
        return _open(encoded).size


def _is_plain_jpeg(encoded: bytes) -> bool:
    return encoded.startswith(b"\xff\xd8\xff") and encoded.find(b"Exif\0", 0, 65536) < 0


def _plain_jpeg(encoded: bytes, size: int | None) -> UInt8 | None:
    """Decode a JPEG without EXIF, at the scale that Pillow's `draft` chooses; None: Pillow shall judge it."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    if colours not in ("YCbCr", "Gray", "RGB"):
        return None
    _check_size((width, height), encoded)
    smaller = 1 if size is None else min(width, height) // size
    scale = next((by for by in (8, 4, 2) if smaller >= by), 1)
    try:
        pixels: UInt8 = simplejpeg.decode_jpeg(encoded, min_height=-(-height // scale), min_width=-(-width // scale))
    except ValueError:
        return None
    return pixels


def _open(encoded: bytes) -> ImageFile.ImageFile:
    if not encoded:
        raise BrokenImageError("empty file")
    stream = io.BytesIO(encoded)
    image: ImageFile.ImageFile
    if encoded.startswith(b"\xff\xd8\xff"):
        image = JpegImageFile(stream)
    elif encoded.startswith(b"\x89PNG\r\n\x1a\n"):
        image = PngImageFile(stream)
    elif encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        _check_size(_webp_size(encoded))  # Pillow's WebP reader allocates the canvas when it opens
        image = WebPImageFile(stream)
    elif encoded.startswith(b"BM"):
        image = BmpImageFile(stream)
    else:
        raise BrokenImageError(f"not a JPEG, PNG, WebP or BMP image (starts with {encoded[:8]!r})")
    _check_size(image.size, encoded if image.format == "JPEG" else b"")
    return image


def _check_size(size: tuple[int, int], jpeg: bytes = b"") -> None:
    pixels = size[0] * size[1]
    if pixels > MAX_PIXELS:
        raise TooLargeImageError(f"declares {size[0]} x {size[1]} pixels, more than the limit of {MAX_PIXELS:,}")
    # A scan takes ten bytes at least: most files cannot hold too many, and need no count.
    if pixels * (len(jpeg) // 10) > MAX_SCANNED and pixels * (scans := jpeg.count(_SCAN)) > MAX_SCANNED:
        raise TooLargeImageError(f"declares {size[0]} x {size[1]} pixels in {scans:,} scans, more than a photo needs")


def _webp_size(encoded: bytes) -> tuple[int, int]:
    """Return the declared canvas of a WebP file (RIFF container, RFC 9649), or (0, 0) where the decoder shall judge."""
    kind, body = encoded[12:16], encoded[20:30]
    if len(body) < 10:
        return 0, 0
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return 0, 0


def _upright(image: Image.Image) -> Image.Image:
    if "exif" not in image.info and "Raw profile type exif" not in image.info:
        return image
    try:
        turn = _TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # damaged metadata of any kind: the pixels are still good
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode.startswith("I") or mode == "F":  # 16-bit grey: "I;16", "I;16B", "I" by Pillow's version
        levels = np.asarray(image).astype(np.float32)
        return Image.fromarray(np.clip(levels / 257.0 + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        overlay = image.convert("RGBA")
        black = Image.new("RGB", overlay.size)
        black.paste(overlay, mask=overlay.getchannel("A"))
        return black
    return image.convert("RGB")


def _squared(image: Image.Image, size: int) -> UInt8:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


@contextlib.contextmanager
def _decoding(quiet: bool) -> Iterator[None]:
    """Turn what a decoder may raise into BrokenImageError, and keep its warnings from the caller.

    Pillow's readers raise OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError, IndexError and more on
    damaged files, so every Exception counts, save MemoryError: that is the machine's fault, not the image's. Only
    EXIF, palettes and animations make Pillow warn; catching warnings costs time and touches interpreter-wide state, so
    a plain JPEG, nearly every training image, goes without.
    """
    try:
        if quiet:
            yield
        else:  # catch_warnings is not thread-safe: two at once could leave "ignore" behind
            with _warnings_lock, warnings.catch_warnings(action="ignore"):
                yield
    except (BrokenImageError, MemoryError):
        raise
    except Exception as error:
        raise BrokenImageError(f"cannot be decoded ({one_line(error)[:200]})") from error
