"""The inspection's counts against a folder made by hand."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attfc.data import FolderStore, inspect_store


def encode(level: int, size: tuple[int, int] = (16, 16), mode: str = "RGB", kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (level, 0, 0)).convert(mode).save(out, kind)
    return out.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    people = {
        "ann": [encode(10 * i) for i in range(6)],
        "bob": [encode(100), encode(100), encode(100), encode(0), b"", encode(120)[:150], b"text"],
        "cat": [encode(20, (20, 30), "L", "PNG")],
        "dan": [encode(200, kind="WEBP"), b""],
    }
    for name, files in people.items():
        (tmp_path / name).mkdir()
        for number, content in enumerate(files):
            (tmp_path / name / f"{number}.jpg").write_bytes(content)
    (tmp_path / "ann" / "notes.txt").write_text("")
    return FolderStore(tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_report(store: FolderStore, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "attfc.data.cleaning.duplicates._CHUNK", 5
    )  # several chunks even here (forked workers inherit it)
    seen: list[tuple[int, int]] = []
    report = inspect_store(store, workers=workers, progress=lambda done, total: seen.append((done, total)))
    assert (report.identities, report.images) == (4, 16)
    assert report.images_per_identity == {"min": 1.0, "median": 4.0, "mean": 4.0, "max": 7.0}
    assert report.single_image_identities == 1
    assert report.histogram == ((1, 1, 1), (2, 2, 1), (5, 9, 2))
    assert report.sizes == {"16 x 16": 11, "20 x 30": 1}
    assert report.modes == {"RGB": 11, "L": 1}
    assert report.formats == {"JPEG": 10, "PNG": 1, "WEBP": 1}
    assert report.broken_images == 4
    assert [(file.where, file.position) for file in report.broken] == [
        ("bob/4.jpg", 10),
        ("bob/5.jpg", 11),
        ("bob/6.jpg", 12),
        ("dan/1.jpg", 15),
    ]
    assert report.broken[0].reason == "empty file"
    assert report.duplicates_within == (("bob/0.jpg", "bob/1.jpg", "bob/2.jpg"),)
    assert report.duplicate_images_within == 2
    assert report.duplicates_across == (("ann/0.jpg", "bob/3.jpg"),)
    assert report.duplicate_images_across == 1
    assert report.ignored["other_files"] == 1
    assert seen[-1] == (16, 16)
    assert seen == sorted(seen)


def test_lists_are_capped_and_counts_are_not(store: FolderStore) -> None:
    report = inspect_store(store, list_limit=1)
    assert len(report.broken) == 1
    assert report.broken_images == 4
    assert "... and 3 more" in report.to_text()


def test_text_and_json(store: FolderStore) -> None:
    report = inspect_store(store)
    text = report.to_text()
    for part in (
        "4 identities, 16 images",
        "identities with a single image: 1",
        "bob/4.jpg: empty file",
        "5-9",
        "other files (1)",
    ):
        assert part in text
    assert "ann/0.jpg = bob/3.jpg" in text
    back = json.loads(json.dumps(report.to_dict()))
    assert back["broken"][0] == {"position": 10, "where": "bob/4.jpg", "reason": "empty file"}
    assert back["histogram"][0] == [1, 1, 1]


def test_everything_broken(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"x")
    report = inspect_store(FolderStore(tmp_path))
    assert (report.broken_images, report.duplicate_images_within, report.sizes) == (1, 0, {})
    assert "sizes: none" in report.to_text()


def test_same_duplicates_as_a_dictionary_of_contents(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for identity in range(8):
        (tmp_path / f"{identity}").mkdir()
        for image in range(10):
            (tmp_path / f"{identity}" / f"{image}.jpg").write_bytes(encode(int(rng.integers(30)) * 8))
    store = FolderStore(tmp_path)
    contents: dict[bytes, list[int]] = {}
    for position in range(len(store)):
        contents.setdefault(store.read(position)[0], []).append(position)
    within, across = [], []
    for group in contents.values():
        if len(group) > 1:
            (across if len({p // 10 for p in group}) > 1 else within).append(tuple(store.where(p) for p in group))
    report = inspect_store(store)
    assert report.duplicates_within == tuple(within)
    assert report.duplicates_across == tuple(across)
