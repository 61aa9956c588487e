"""Decoding: every mode to RGB, every kind of damage one exception, never a warning, bounded before it decodes."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from attfc.data import images
from attfc.data.images import BrokenImageError, decode_image, image_facts


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def gradient(width: int = 48, height: int = 48) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 / (width - 1), y * 255 / (height - 1), np.full_like(x, 60)], -1)
    return Image.fromarray(rgb.astype(np.uint8))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_come_back_exactly(kind: str, options: dict[str, object]) -> None:
    image = gradient()
    pixels = decode_image(encode(image, kind, **options), 48)
    assert pixels.dtype == np.uint8
    assert (pixels == np.asarray(image)).all()


def test_jpeg_is_rgb_and_close() -> None:
    pixels = decode_image(encode(gradient(), "JPEG", quality=95), 48).astype(int)
    assert np.abs(pixels - np.asarray(gradient())).mean() < 2


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = gradient().convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    pixels = decode_image(encode(image, kind), 48)
    assert pixels.shape == (48, 48, 3)
    assert np.abs(pixels.astype(int) - np.asarray(image.convert("RGB"))).mean() < 4


def test_adobe_inverted_cmyk_is_not_a_negative() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # Pillow writes Adobe's marker and inverted values
    encoded = encode(red, "JPEG", quality=95)
    assert b"Adobe" in encoded
    assert np.abs(decode_image(encoded, 16).astype(int) - (255, 0, 0)).max() < 12


def test_16_bit_grey_is_scaled() -> None:
    levels = [0, 128, 257, 30_000, 65_535]
    row = b"\0" + struct.pack(">5H", *levels)
    pixels = decode_image(png(5, 5, 16, 0, row * 5))
    assert pixels[0, :, 0].tolist() == [round(level / 257) for level in levels]
    assert (pixels[..., 0] == pixels[..., 2]).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_lies_over_black(kind: str) -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[...] = (200, 100, 50, 0)
    rgba[:4, :, 3] = 255
    pixels = decode_image(encode(Image.fromarray(rgba), kind, lossless=True, exact=True), 8)
    assert (pixels[:4] == (200, 100, 50)).all()
    assert (pixels[4:] == 0).all()


def test_transparent_palette_warns_nobody() -> None:
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    pixels = decode_image(encode(palette, "PNG", transparency=b"\xff\x00"), 8)
    assert (pixels == 0).all()
    grey = Image.new("L", (8, 8), 7)
    assert (decode_image(encode(grey, "PNG", transparency=7), 8) == 0).all()


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(turn: int, kind: str) -> None:
    undo = {  # how a camera must have stored the picture for this value, from the EXIF standard
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    upright = np.asarray(gradient(48, 32))
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = Image.fromarray(np.ascontiguousarray(undo[turn](upright)))
    pixels = decode_image(encode(stored, kind, exif=exif, quality=95))
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).mean() < 4


def test_damaged_exif_does_not_cost_the_image() -> None:
    good = encode(gradient(), "JPEG", quality=95)
    for body in (b"", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff\x12\x01", bytes(range(256))):
        segment = b"Exif\0\0" + body
        encoded = good[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + good[2:]
        assert np.abs(decode_image(encoded, 48).astype(int) - np.asarray(gradient())).mean() < 2


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    for kind in ("PNG", "WEBP"):
        encoded = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert (decode_image(encoded, 8) == (250, 0, 0)).all()


def test_oblong_images_keep_their_proportions() -> None:
    wide = np.zeros((30, 90, 3), np.uint8)
    wide[:, 30:60] = 255  # the central square
    for pixels in (wide, wide.transpose(1, 0, 2)):
        square = decode_image(encode(Image.fromarray(np.ascontiguousarray(pixels)), "PNG"), 15)
        assert (square[1:-1, 1:-1] == 255).all()
        assert square.min() > 200  # the filter sees one pixel beyond the edge
    assert decode_image(encode(Image.fromarray(wide), "PNG")).shape == (30, 90, 3)


def test_downscaling_averages() -> None:
    board = np.zeros((64, 64, 3), np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 255  # a chequerboard: picking pixels would give 0 or 255
    for kind in ("PNG", "JPEG"):
        pixels = decode_image(encode(Image.fromarray(board), kind, quality=95), 16)
        assert 110 < pixels.min() <= pixels.max() < 145


@pytest.mark.parametrize("size", [20, 24, 100])
def test_draft_decoding_of_large_jpegs_stays_close(size: int) -> None:
    large = gradient(200, 200)
    pixels = decode_image(encode(large, "JPEG", quality=95), size).astype(int)
    assert np.abs(pixels - np.asarray(large.resize((size, size), Image.Resampling.BILINEAR))).mean() < 2


def test_upscales_small_images() -> None:
    assert decode_image(encode(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"), 112).shape == (112, 112, 3)


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "empty file"),
        (b"hello, I am a text file\n", r"not a JPEG, PNG, WebP or BMP image \(starts with b'hello, I'\)"),
        (b"GIF89a" + bytes(40), "not a JPEG"),
        (b"\xff\xd8\xff", "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n", "cannot be decoded"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "cannot be decoded"),
        (b"BM", "cannot be decoded"),
    ],
)
def test_not_an_image(encoded: bytes, reason: str) -> None:
    for function in (decode_image, image_facts):
        with pytest.raises(BrokenImageError, match=reason):
            function(encoded)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_truncated_at_any_byte_is_broken_not_a_crash(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)
    encoded = encode(Image.fromarray(noise), kind)
    for length in [*range(0, len(encoded) // 2, 7), len(encoded) * 3 // 4]:
        with pytest.raises(BrokenImageError) as caught:
            decode_image(encoded[:length], 24)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_flipped_bytes_give_pixels_or_one_exception(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 2**20)  # a larger image that a flipped byte declares takes seconds
    rng = np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = encode(gradient(24, 24), kind, exif=exif)
    for _ in range(150):
        bad = np.frombuffer(encoded, np.uint8).copy()
        where = rng.integers(0, min(len(bad), 200), 3)
        bad[where] = rng.integers(0, 256, 3)
        with contextlib.suppress(BrokenImageError):
            assert decode_image(bad.tobytes(), 24).shape == (24, 24, 3)


def bombs() -> dict[str, bytes]:
    webp = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (15_999).to_bytes(3, "little") * 2
    webp += b"VP8L" + struct.pack("<I", 8) + b"\x2f" + bytes(7)
    jpeg = encode(Image.new("RGB", (16, 16)), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    bmp = encode(Image.new("RGB", (16, 16)), "BMP")
    return {
        "png of 900 MP": png(30_000, 30_000, 8, 2, bytes(100)),
        "png that Pillow only warns of": png(10_000, 10_000, 8, 2, bytes(100)),
        "jpeg": jpeg[:at] + struct.pack(">HH", 60_000, 60_000) + jpeg[at + 4 :],
        "bmp": bmp[:18] + struct.pack("<ii", 40_000, 40_000) + bmp[26:],
        "webp": b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp,
    }


@pytest.mark.parametrize("kind", list(bombs()))
def test_decompression_bombs_are_refused_by_their_header(kind: str) -> None:
    with pytest.raises(BrokenImageError, match=r"declares \d+ x \d+ pixels, more than the limit of 67,108,864"):
        decode_image(bombs()[kind], 112)


def test_large_but_allowed_images_do_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own limit must play no part
    assert decode_image(encode(gradient(), "JPEG"), 24).shape == (24, 24, 3)
    assert decode_image(encode(gradient(), "PNG"), 24).shape == (24, 24, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_running_out_of_memory_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    for kind in ("JPEG", "PNG"):
        encoded = encode(gradient(), kind)
        with monkeypatch.context() as patch, pytest.raises(MemoryError):  # noqa: PT012
            patch.setattr("PIL.ImageFile.ImageFile.load", fail)
            patch.setattr("simplejpeg.decode_jpeg", fail)
            decode_image(encoded)
        assert decode_image(encoded).shape == (48, 48, 3)  # the lock was given back


@pytest.mark.parametrize("kind", ["plain", "progressive", "grey", "rgb", "4:2:2", "4:2:0"])
def test_jpeg_has_the_pixels_of_pillow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, dict[str, object]] = {
        "progressive": {"progressive": True},
        "rgb": {"keep_rgb": True},
        "4:2:2": {"subsampling": 1},
        "4:2:0": {"subsampling": 2},
    }
    rng = np.random.default_rng(0)
    encoded, pillows = [], []
    for width, height in ((1, 1), (1, 9), (17, 8), (47, 33), (64, 64), (112, 112), (113, 225), (250, 250)):
        noisy = np.asarray(gradient(width + 1, height + 1))[:height, :width] + rng.integers(-30, 30, (height, width, 3))
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert("L" if kind == "grey" else "RGB")
        encoded.append(encode(image, "JPEG", quality=int(rng.integers(20, 99)), **options.get(kind, {})))
    sizes = (None, 8, 14, 28, 56, 112)
    ours = [decode_image(image, size) for image in encoded for size in sizes]
    monkeypatch.setattr(images, "_plain_jpeg", lambda encoded, size: None)
    pillows = [decode_image(image, size) for image in encoded for size in sizes]
    for one, other in zip(ours, pillows, strict=True):
        np.testing.assert_array_equal(one, other)


def test_plain_jpeg_is_decoded_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, turned = encode(gradient(), "JPEG"), encode(gradient(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    monkeypatch.setattr(images, "_open", lambda _: pytest.fail("Pillow was asked"))
    assert decode_image(plain).shape == (48, 48, 3)
    for other in (turned, encode(gradient().convert("CMYK"), "JPEG"), plain[:-200]):
        with pytest.raises(pytest.fail.Exception):
            decode_image(other)


def test_scans_are_bounded_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encode(gradient(), "JPEG", progressive=True)
    scans = encoded.count(b"\xff\xda")
    assert 5 < scans < 20
    monkeypatch.setattr(images, "MAX_SCANNED", 48 * 48 * scans)
    assert decode_image(encoded).shape == (48, 48, 3)
    monkeypatch.setattr(images, "MAX_SCANNED", 48 * 48 * scans - 1)
    for decode in (decode_image, image_facts):
        with pytest.raises(
            BrokenImageError, match=f"^declares 48 x 48 pixels in {scans} scans, more than a photo needs$"
        ):
            decode(encoded)


def test_facts() -> None:
    facts = image_facts(encode(gradient(30, 20).convert("L"), "JPEG"))
    assert (facts.width, facts.height, facts.mode, facts.format) == (30, 20, "L", "JPEG")
