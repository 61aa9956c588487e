"""The look at a set before training: what headers say, and the advice that follows."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from attfc.data.images import BrokenImageError, decode_image
from attfc.data.look import image_sizes
from attfc.data.stores.folder import FolderStore
from attfc.data.stores.synthetic import SyntheticFaces

WAY = "align faces to the ArcFace template first (docs/formats.md, section Aligned faces)"


def picture(width: int, height: int, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, kind)
    return out.getvalue()


def faces(root: Path, sizes: list[tuple[int, int]]) -> Path:
    (root / "Ann").mkdir(parents=True)
    for number, (width, height) in enumerate(sizes):
        (root / "Ann" / f"{number:04d}.jpg").write_bytes(picture(width, height))
    return root


def test_aligned_faces_call_for_nothing() -> None:
    found = image_sizes(SyntheticFaces(30, 4), 50)
    assert found.to_dict() == {
        "looked_at": 50,
        "unreadable": 0,
        "square": 50,
        "different": 1,
        "sizes": {"112 x 112": 50},
        "example": None,
        "advice": None,
    }
    json.dumps(found.to_dict())


def test_pictures_that_are_not_square(tmp_path: Path) -> None:
    found = image_sizes(FolderStore(faces(tmp_path / "f", [(64, 64)] * 10 + [(80, 60)] * 20 + [(60, 90)] * 9)))
    assert (found.looked_at, found.square, found.different) == (39, 10, 3)
    assert found.sizes == {"80 x 60": 20, "64 x 64": 10, "60 x 90": 9}
    assert found.advice == f"29 of 39 pictures looked at are not square, as 80 x 60: {WAY}"


def test_square_pictures_of_many_sizes(tmp_path: Path) -> None:
    found = image_sizes(FolderStore(faces(tmp_path / "f", [(50 + n, 50 + n) for n in range(20)])))
    assert (
        found.advice == f"the 20 pictures looked at have 20 sizes, 50 x 50 to 69 x 69: if they are not aligned, {WAY}"
    )
    assert len(found.sizes) == 5


def test_square_pictures_of_one_size_may_be_whole_photographs(tmp_path: Path) -> None:
    found = image_sizes(FolderStore(faces(tmp_path / "f", [(250, 250)] * 12)))
    assert (
        found.advice
        == f"the 12 pictures looked at are 250 x 250, larger than aligned faces of 112 x 112: if they are not aligned, {WAY}"
    )


def test_a_stray_picture_is_no_reason_for_advice(tmp_path: Path) -> None:
    found = image_sizes(FolderStore(faces(tmp_path / "f", [(64, 64)] * 29 + [(80, 60)])))
    assert (found.square, found.different, found.advice) == (29, 2, None)


def test_unreadable_pictures_are_counted_and_one_is_named(tmp_path: Path) -> None:
    root = faces(tmp_path / "f", [(64, 64)] * 4)
    store = FolderStore(root)
    (root / "Ann" / "0001.jpg").write_text("text")
    (root / "Ann" / "0002.jpg").unlink()
    found = image_sizes(store)
    assert (found.looked_at, found.unreadable, found.square) == (4, 2, 2)
    assert found.example is not None
    assert found.example.startswith("Ann/0001.jpg: not a JPEG")
    for number in (0, 3):
        (root / "Ann" / f"{number:04d}.jpg").unlink()
    found = image_sizes(store)
    assert (found.unreadable, found.sizes, found.advice) == (4, {}, None)
    assert found.example == "Ann/0000.jpg: cannot be read (No such file or directory)"


def test_no_pixel_is_decoded(tmp_path: Path) -> None:
    root = faces(tmp_path / "f", [(64, 64)])
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 100).save(noise, "JPEG")
    cut = noise.getvalue()[: len(noise.getvalue()) // 2]
    (root / "Ann" / "0000.jpg").write_bytes(cut)
    with pytest.raises(BrokenImageError):
        decode_image(cut)
    assert image_sizes(FolderStore(root)).sizes == {"64 x 64": 1}
