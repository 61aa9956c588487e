"""Photos as people have them, good and bad: each file one answer, the run goes on, and a kill or a full disk leaves nothing half."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from told_detector import THREE, Told

from attfc.data import images as decoding
from attfc.data.images import BrokenImageError
from attfc.errors import UserError
from attfc.photos import folder as folder_module
from attfc.photos.folder import align_folder
from attfc.photos.reading import read_photo

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def large_png(width: int, height: int) -> bytes:
    """Return a PNG that declares a size; its pixels are those of another."""
    content = bytearray(encoded(Image.new("L", (1, 1)), "PNG"))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    return bytes(content)


def many_scans() -> bytes:
    content = encoded(Image.new("L", (4096, 4096)), "JPEG", progressive=True)
    start = content.rindex(b"\xff\xda")
    return content[:start] + content[start:-2] * 3000 + content[-2:]


BAD = {
    "text.jpg": (b"no image", r"^not a JPEG, PNG, WebP or BMP image"),
    "empty.jpg": (b"", r"^empty file$"),
    "cut.jpg": (encoded(Image.new("RGB", (200, 200)), "JPEG")[:700], r"^cannot be decoded \("),
    "phone.heic": (
        HEIC,
        r"^a HEIC image, and no decoder is installed: pip install pillow-heif, or convert it to JPEG$",
    ),
    "phone.jpg": (HEIC, r"^a HEIC image"),
    "moving.gif": (
        encoded(Image.new("P", (9, 9)), "GIF", save_all=True, append_images=[Image.new("P", (9, 9), 3)]),
        r"^a GIF image, which is not read: convert it to JPEG or PNG$",
    ),
    "scan.tif": (encoded(Image.new("RGB", (9, 9)), "TIFF"), r"^a TIFF or raw image, which is not read"),
    "huge.png": (large_png(10_000, 10_000), r"^declares 10000 x 10000 pixels, more than the limit of 67,108,864$"),
    "scans.jpg": (many_scans(), r"^declares 4096 x 4096 pixels in [0-9,]+ scans, more than a photo needs$"),
}


@pytest.mark.parametrize("name", BAD)
def test_each_bad_file_has_one_reason(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    content, reason = BAD[name]
    (tmp_path / name).write_bytes(content)
    start = time.monotonic()
    with pytest.raises(BrokenImageError, match=reason):
        read_photo(tmp_path / name)
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_come_upright(orientation: int, tmp_path: Path) -> None:
    upright = Image.new("RGB", (64, 32))
    upright.paste((255, 0, 0), (0, 0, 16, 16))  # upper left
    upright.paste((0, 0, 255), (48, 16, 64, 32))  # lower right
    turns = decoding._TURNS
    opposite = {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }
    turn = turns.get(orientation)
    stored = upright if turn is None else upright.transpose(opposite.get(turn, turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.jpg", exif=exif, quality=100, subsampling=0)
    pixels = read_photo(tmp_path / "photo.jpg").astype(int)
    assert pixels.shape == (32, 64, 3)
    assert abs(pixels - np.asarray(upright)).max() < 60
    assert pixels[4, 4, 0] > 200 > 100 > pixels[4, 4, 2]


def test_the_run_goes_on_over_every_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    root = tmp_path / "photos"
    root.mkdir()
    for name, (content, _) in BAD.items():
        (root / name).write_bytes(content)
    for name in ("<script>alert(1)<script>.jpg", "two\nlines.jpg", "dots.. .jpg", os.fsdecode(b"caf\xe9.jpg")):
        Image.new("RGB", (340, 320)).save(root / name)
    (tmp_path / "secret.jpg").write_bytes(encoded(Image.new("RGB", (340, 320)), "JPEG"))
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    monkeypatch.setattr(folder_module, "open_detector", lambda path: THREE)
    done = align_folder(root, tmp_path / "out")
    assert (done.photos, done.aligned) == (len(BAD) + 5, 4)
    assert {row.photo for row in done.refused} == {*BAD, "link.jpg"}
    lines = (tmp_path / "out" / "manifest.tsv").read_bytes().split(b"\n")
    assert len(lines) == 1 + done.photos + 1
    assert not list((tmp_path / "out").rglob("*secret*"))


def test_the_longest_names_are_aligned_and_longer_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "open_detector", lambda path: THREE)
    root, fits, too_long = tmp_path / "photos", "n" * 251 + ".jpg", "m" * 251 + ".png"
    root.mkdir()
    for name in (fits, too_long, "z.jpg"):
        Image.new("RGB", (340, 320)).save(root / name)
    align_folder(root, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.jpg")) == [fits, "z.jpg"]
    manifest = (tmp_path / "out" / "manifest.tsv").read_text()
    assert "the name of its face would have more than 255 bytes: give it a shorter one" in manifest


def test_a_full_disk_is_one_error_and_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = tmp_path / "photos", tmp_path / "out"
    root.mkdir()
    for number in range(5):
        Image.new("RGB", (340, 320)).save(root / f"{number}.jpg")
    monkeypatch.setattr(folder_module, "open_detector", lambda path: THREE)
    save, calls = Image.Image.save, []

    def full(image: Image.Image, file: object, *args: object, **options: object) -> None:
        calls.append(file)
        if len(calls) > 2:
            file.write(b"\xff\xd8 half a face")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(image, file, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", full)
        with pytest.raises(
            UserError, match=r"2.jpg cannot be written: No space left on device; make room or permission there$"
        ):
            align_folder(root, out)
    assert sorted(path.name for path in out.iterdir()) == ["0.jpg", "1.jpg", "align.json", "manifest.part.tsv"]
    done = align_folder(root, out)
    assert (done.aligned, done.reused) == (5, 2)


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from told_detector import THREE
from attfc.photos import folder
folder.open_detector = lambda path: THREE
folder.align_folder(Path({photos!r}), Path({out!r}))
"""


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = tmp_path / "photos", tmp_path / "out"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(60):
        Image.fromarray(rng.integers(0, 256, (320, 340, 3), dtype=np.uint8)).save(root / f"{number:02}.jpg", quality=50)
    code = KILLED.format(tests=str(Path(__file__).parent), photos=str(root), out=str(out))
    kills, seen = 0, 0
    for _ in range(30):
        process = subprocess.Popen([sys.executable, "-c", code])
        until = time.monotonic() + 60
        # Killed when some more faces are there, which may be in the middle of anything.
        while process.poll() is None and len(list(out.glob("*.jpg"))) < seen + 15 and time.monotonic() < until:
            time.sleep(0.001)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        seen = len(list(out.glob("*.jpg")))
        for path in out.glob("*.jpg"):  # none is half
            with Image.open(path) as face:
                face.load()
    assert kills >= 2
    monkeypatch.setattr(folder_module, "open_detector", lambda path: THREE)
    assert align_folder(root, out).reused == 60
    align_folder(root, tmp_path / "fresh")
    names = [{path.name for path in folder.iterdir()} for folder in (out, tmp_path / "fresh")]
    assert names[0] == names[1]
    assert len(names[0] - {"manifest.parquet"}) == 62  # the last only where pyarrow is installed
    for path in (tmp_path / "fresh").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name


def test_ten_faces_and_a_face_at_the_border(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    Image.new("RGB", (340, 320)).save(root / "crowd.jpg")
    ten = Told(*((0.3, 30 * place, 10) for place in range(9)), (1, -70, 50))
    monkeypatch.setattr(folder_module, "open_detector", lambda path: ten)
    done = align_folder(root, tmp_path / "out", policy="all")
    assert (done.faces, done.several) == (9, 1)  # the tenth is cut by the border
