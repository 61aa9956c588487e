"""Image folders: what is an identity, what is ignored, when the cached index is used, and what happens to it."""

# ruff: noqa: S301  (pickles made here, a line above)
import io
import json
import multiprocessing
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attfc.data import FolderStore, Store, open_store
from attfc.data.stores import folder as folder_module
from attfc.data.stores import image_files
from attfc.errors import UserError

OLD = time.time() - 1000


def jpeg(level: int = 0, size: int = 16) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), (level, level, level)).save(out, "JPEG")
    return out.getvalue()


def fill(root: Path, tree: dict[str, dict[str, bytes]]) -> Path:
    for identity, files in tree.items():
        (root / identity).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (root / identity / name).write_bytes(content)
    age(root)
    return root


def age(root: Path) -> None:
    """Folders changed long ago: their modification time alone vouches for them."""
    for path in [root, *(p for p in root.iterdir() if p.is_dir())]:
        os.utime(path, (OLD, OLD))


class Scans:
    """Counts scans through the progress callback, which a cached index does not call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))

    def took(self) -> int:
        calls, self.calls = self.calls, []
        return len(calls)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fill(
        tmp_path / "faces",
        {"Zoe": {"b.jpg": jpeg(1), "a.JPG": jpeg(2)}, "Ann Lee": {"0001.jpg": jpeg(3)}, "Åsa 李": {"ü x.png": jpeg(4)}},
    )


def test_identities_and_images_are_in_the_order_of_their_bytes(root: Path) -> None:
    store = FolderStore(root)
    assert isinstance(store, Store)
    assert [store.identity_name(label) for label in range(3)] == ["Ann Lee", "Zoe", "Åsa 李"]
    assert [store.where(i) for i in range(len(store))] == [
        "Ann Lee/0001.jpg",
        "Zoe/a.JPG",
        "Zoe/b.jpg",
        "Åsa 李/ü x.png",
    ]
    assert store.identities.counts().tolist() == [1, 2, 1]
    labels = store.labels(np.array([3, 0, 2]))
    assert labels.tolist() == [2, 0, 1]
    assert labels.dtype == np.int64
    for position, label in enumerate([0, 1, 1, 2]):
        encoded, of = store.read(position)
        assert (encoded, of) == (Path(os.fsdecode(store.image_path(position))).read_bytes(), label)
    assert (store.images(np.arange(4), 16).pixels[:, 8, 8, 0].astype(int) - [3, 2, 1, 4]).tolist() == [0, 0, 0, 0]
    for position in (-1, 4):
        with pytest.raises(IndexError, match="4 images"):
            store.read(position)


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    try:
        os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9\n\x1b")
    except OSError:
        pytest.skip("this file system admits UTF-8 names only")
    with open(os.fsencode(tmp_path) + b"/caf\xe9\n\x1b/\xff.jpg", "wb") as file:
        file.write(jpeg(5))
    store = pickle.loads(pickle.dumps(FolderStore(tmp_path)))
    assert store.where(0) == "caf\\xe9\\n\\x1b/\\xff.jpg"
    assert store.images([0], 16).broken == {}
    store.where(0).encode("utf-8")


def test_what_is_ignored_is_counted(root: Path) -> None:
    fill(
        root,
        {
            "Zoe": {".hidden.jpg": b"", "notes.txt": b""},
            "empty": {},
            ".git": {"x.jpg": b""},
            "Zoe/deep": {"y.jpg": b""},
        },
    )
    (root / "readme.md").write_text("")
    (root / "Zoe" / "folder.jpg").mkdir()
    (root / "Zoe" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    os.mkfifo(root / "Zoe" / "pipe.jpg")
    for link in ("round", "Zoe/round.jpg"):  # to itself
        (root / link).symlink_to(root / link)
    expected = {"hidden": 2, "other_files": 4, "deeper_folders": 2, "empty_folders": 1, "files_beside_folders": 2}
    for store in (FolderStore(root), FolderStore(root), pickle.loads(pickle.dumps(FolderStore(root)))):
        assert store.ignored == expected
        assert (len(store.identities), len(store)) == (3, 4)
        assert store.notes == [
            "left out: 3 links that lead nowhere, named like images",
            "left out: 2 folders inside a person's folder: move their images up",
            "left out: 1 folders without an image in them",
        ]


def test_symlinked_folders_and_files_count(root: Path, tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", {"Bob": {"1.jpg": jpeg(9)}})
    (root / "Bob").symlink_to(tmp_path / "elsewhere" / "Bob")
    (root / "Zoe" / "c.jpg").symlink_to(tmp_path / "elsewhere" / "Bob" / "1.jpg")
    store = FolderStore(root)
    assert [store.where(p) for p in store.identities.of(1)] == ["Bob/1.jpg"]
    assert store.images(np.arange(6), 16).broken == {}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "no images: expected root/<identity>/<image> .*; found an empty folder"),
        ({"a": {}, "b": {"x.txt": b""}}, "found 1 other files, 2 empty folders"),
        ({"train/Ann": {"1.jpg": b""}}, "1 deeper folders.*if the people are one folder further down, give"),
    ],
)
def test_nothing_to_index(tmp_path: Path, tree: dict[str, dict[str, bytes]], message: str) -> None:
    fill(tmp_path, tree)
    with pytest.raises(UserError, match=message) as caught:
        FolderStore(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_folder_file_and_loose_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: no such folder"):
        FolderStore(tmp_path / "absent")
    (tmp_path / "1.jpg").write_bytes(jpeg())
    with pytest.raises(UserError, match="found 1 files beside folders"):
        FolderStore(tmp_path)
    with pytest.raises(UserError, match=r"1\.jpg: is a file"):
        FolderStore(tmp_path / "1.jpg")


def test_an_unlistable_identity_is_an_error_not_a_lost_identity(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: bytes):
        if path.endswith(b"Zoe"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(folder_module.os, "scandir", refuse)
    with pytest.raises(UserError, match="Zoe: cannot be listed"):
        FolderStore(root)


def test_bad_files_are_named_rows_not_exceptions(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(
        root,
        {"Bad": {"0.jpg": b"", "1.jpg": b"just text", "2.jpg": jpeg()[:200], "3.jpg": jpeg(7), "4.jpg": bytes(3000)}},
    )
    store = FolderStore(root)
    (root / "Bad" / "3.jpg").unlink()
    monkeypatch.setattr(image_files, "MAX_FILE_BYTES", 2000)
    rows = store.images(store.identities.of(1), 16)
    assert list(rows.broken) == [0, 1, 2, 3, 4]
    assert rows.broken[0] == "empty file"
    assert rows.broken[1].startswith("not a JPEG")
    assert rows.broken[2].startswith("cannot be decoded")
    assert rows.broken[3] == "cannot be read (No such file or directory)"
    assert rows.broken[4] == "file of 3,000 bytes, more than the limit of 2,000"
    assert not rows.pixels.any()
    assert store.images([0], 16).broken == {}


def test_the_index_is_cached_for_the_user_alone_and_mapped(root: Path) -> None:
    scans = Scans()
    first = FolderStore(root, progress=scans)
    assert scans.calls == [(3, 3)]
    assert scans.took() == 1
    again = FolderStore(root, progress=scans)
    assert scans.took() == 0
    assert again.cache == first.cache
    assert again.cache is not None
    assert again.cache.is_relative_to(Path(os.environ["XDG_CACHE_HOME"]) / "attfc")
    assert again.cache.stat().st_mode & 0o077 == 0, "names of people"
    assert not list(root.glob(".*")), "nothing of ours in the user's folder"
    assert [again.where(i) for i in range(4)] == [first.where(i) for i in range(4)]


@pytest.mark.parametrize(
    "change", ["add image", "remove image", "rename image", "add identity", "remove identity", "rename"]
)
def test_a_changed_folder_is_scanned_again(root: Path, change: str) -> None:
    FolderStore(root)
    if change == "add image":
        (root / "Zoe" / "c.jpg").write_bytes(jpeg())
    elif change == "remove image":
        (root / "Zoe" / "b.jpg").unlink()
    elif change == "rename image":
        (root / "Zoe" / "b.jpg").rename(root / "Zoe" / "z.jpg")
    elif change == "add identity":
        fill(root, {"Bob": {"1.jpg": jpeg()}})
    elif change == "remove identity":
        (root / "Ann Lee" / "0001.jpg").unlink()
        (root / "Ann Lee").rmdir()
    else:
        (root / "Zoe").rename(root / "Zora")
    scans = Scans()
    store = FolderStore(root, progress=scans)
    assert scans.took() == 1
    on_disk = sorted(os.fsencode(p.relative_to(root)) for p in root.glob("*/*.*"))
    assert [store.where(i).encode() for i in range(len(store))] == on_disk
    assert store.cache is not None
    assert len(list(store.cache.parent.iterdir())) == 1, "the former index is cleaned up"
    FolderStore(root, progress=scans)
    assert scans.took() == 0


def test_a_change_within_the_clocks_tick_is_noticed(root: Path) -> None:
    now = time.time_ns()
    os.utime(root / "Zoe", ns=(now, now))
    FolderStore(root)
    (root / "Zoe" / "c.jpg").write_bytes(jpeg())
    os.utime(root / "Zoe", ns=(now, now))  # a coarse clock: the folder looks as it did
    assert len(FolderStore(root)) == 5
    assert len(FolderStore(root)) == 5


def test_where_nothing_can_be_written_the_index_stays_in_memory(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = FolderStore(root, cache=tmp_path / "file")
    assert store.cache is None
    copy = pickle.loads(pickle.dumps(store))
    assert [copy.where(i) for i in range(4)] == [store.where(i) for i in range(4)]


def test_a_full_disk_leaves_no_half_index(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folder_module._FolderTables, "save", fail)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
        store = FolderStore(root)
    assert store.cache is None
    assert len(store) == 4
    (place,) = (tmp_path / "home" / "attfc").iterdir()
    assert list(place.iterdir()) == []


def test_two_roots_share_a_cache_folder(root: Path, tmp_path: Path) -> None:
    other = fill(tmp_path / "other", {"Ann Lee": {"9.jpg": jpeg()}})
    cache = tmp_path / "cache"
    for _ in range(2):
        assert len(FolderStore(root, cache=cache)) == 4
        assert FolderStore(other, cache=cache).where(0) == "Ann Lee/9.jpg"


def test_pictures_of_other_formats_are_mentioned(root: Path) -> None:
    assert FolderStore(root).notes == []
    for name in ("a.jfif", "b.TIF", "c.tif", "d.heic", "notes.txt", "noending"):
        (root / "Zoe" / name).write_bytes(b"")
    for _ in range(2):  # scanned, and from the cached index
        store = FolderStore(root)
        assert len(store) == 4
        assert store.ignored["other_files"] == 6
        assert store.notes == [
            "not read: 1 .jfif (JPEG under another name: rename to .jpg)",
            "not read: 1 .heic, 2 .tif (convert to .jpg or .png)",
        ]


def test_images_without_identity_folders(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    with pytest.raises(
        UserError, match="1 files beside folders; put the images of each person into a folder of their own"
    ):
        FolderStore(tmp_path)


def test_a_folder_of_other_formats_alone_says_so(tmp_path: Path) -> None:
    fill(tmp_path / "faces", {"Ann": {"a.tif": b"", "b.tif": b""}})
    with pytest.raises(
        UserError,
        match=r"no images: .*found 2 other files, 1 empty folders; not read: 2 \.tif \(convert to .jpg or .png\)",
    ):
        FolderStore(tmp_path / "faces")


def test_links_are_read_through_and_known(root: Path, tmp_path: Path) -> None:
    elsewhere = fill(tmp_path / "elsewhere", {"Eve": {"1.jpg": jpeg(), "2.jpg": jpeg()}})
    (root / "Zoe" / "c.jpg").symlink_to(root / "Zoe" / "b.jpg")
    (root / "Zoe" / "gone.jpg").symlink_to(root / "nothing")
    (root / "Zora").symlink_to("Zoe")
    for _ in range(2):
        store = FolderStore(root)
        assert [store.where(p) for p in store._tables.links.tolist()] == [
            "Zoe/c.jpg",
            "Zora/a.JPG",
            "Zora/b.jpg",
            "Zora/c.jpg",
        ]
        assert store.leads_out() is None
        assert store.notes[1:] == ["images reached by symbolic links: 4 of 8"]
    (root / "Eve").symlink_to(elsewhere / "Eve")
    store = FolderStore(root)
    assert store.images(range(len(store)), 16).broken == {}
    assert store.leads_out() == (1, str(elsewhere / "Eve" / "1.jpg"))
    assert store.where(1) == "Eve/1.jpg"
    (root / "Eve").unlink()
    (root / "Ann Lee" / "0002.jpg").symlink_to(elsewhere / "Eve" / "2.jpg")
    assert FolderStore(root).leads_out() == (1, str(elsewhere / "Eve" / "2.jpg"))
    again = FolderStore(root)
    (tmp_path / "way").symlink_to(root)
    assert FolderStore(tmp_path / "way").leads_out() == again.leads_out(), "the root may be a link itself"
    assert pickle.loads(pickle.dumps(again)).leads_out() == again.leads_out()


def test_a_folder_that_becomes_a_link_is_noticed(root: Path, tmp_path: Path) -> None:
    FolderStore(root)
    status = (root / "Zoe").stat()
    (root / "Zoe").rename(tmp_path / "Zoe")
    (root / "Zoe").symlink_to(tmp_path / "Zoe")
    assert (root / "Zoe").stat().st_mtime_ns == status.st_mtime_ns
    found = FolderStore(root).leads_out()
    assert found is not None
    assert found[1] == str(tmp_path / "Zoe" / "a.JPG")


@pytest.mark.parametrize("time", ["1e999", "NaN", '"now"', "null", "9" * 5000])
def test_an_index_with_an_odd_time_is_rebuilt(root: Path, time: str) -> None:
    cache = FolderStore(root).cache
    assert cache is not None
    about = json.loads((cache / "about.json").read_text("utf-8"))
    text = json.dumps({**about, "scanned_ns": "TIME"}).replace('"TIME"', time)
    (cache / "about.json").write_text(text, "utf-8")
    scans = Scans()
    assert len(FolderStore(root, progress=scans)) == 4
    assert scans.took() == 1


@pytest.mark.parametrize(
    "file",
    [
        "about.json",
        "offsets.npy",
        "file_names.npy",
        "file_name_offsets.npy",
        "identity_names.npy",
        "entries.npy",
        "links.npy",
    ],
)
@pytest.mark.parametrize("damage", ["cut", "gone", "zeros"])
def test_a_damaged_index_is_rebuilt(root: Path, file: str, damage: str) -> None:
    cache = FolderStore(root).cache
    assert cache is not None
    content = (cache / file).read_bytes()
    if damage == "gone":
        (cache / file).unlink()
    elif damage == "cut":
        (cache / file).write_bytes(content[: len(content) - 5])
    else:
        (cache / file).write_bytes(bytes(len(content)))
    scans = Scans()
    store = FolderStore(root, progress=scans)
    assert scans.took() == 1
    assert [store.where(i) for i in range(4)] == ["Ann Lee/0001.jpg", "Zoe/a.JPG", "Zoe/b.jpg", "Åsa 李/ü x.png"]
    FolderStore(root, progress=scans)
    assert scans.took() == 0


def test_an_index_that_came_with_the_data_cannot_lead_out_of_it(root: Path) -> None:
    cache = FolderStore(root).cache
    assert cache is not None
    names = np.load(cache / "file_names.npy")
    names[:3] = np.frombuffer(b"../", np.uint8)
    np.save(cache / "file_names.npy", names)
    scans = Scans()
    assert FolderStore(root, progress=scans).where(0) == "Ann Lee/0001.jpg"
    assert scans.took() == 1


def read_in_worker(store: FolderStore) -> tuple[list[str], list[int]]:
    return [store.where(i) for i in range(len(store))], store.images(np.arange(len(store)), 16).pixels[
        :, 0, 0, 0
    ].tolist()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_see_the_same_store(root: Path, method: str) -> None:
    store = FolderStore(root)
    assert len(pickle.dumps(store)) < 1000
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(read_in_worker, (store,)) == read_in_worker(store)


def test_open_store(root: Path, tmp_path: Path) -> None:
    assert isinstance(open_store(root, cache=tmp_path / "cache"), FolderStore)
    synthetic = open_store("synthetic: identities=3, images=2, seed=5")
    assert (len(synthetic), len(synthetic.identities)) == (6, 3)
    assert len(open_store("synthetic")) == 20_000
    assert open_store(open_store("synthetic:identities=4,images=2-6,seed=1,first=9").name).name.endswith("first=9")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "no data given"),
        ("absent/folder", "absent/folder: no such folder"),
        ("synthetik:identities=3", "did you mean 'synthetic'"),
        ("synthetic:identites=3", "unknown key 'identites'; did you mean 'identities'"),
        ("synthetic:identities=many", "identities needs a whole number, as in identities=1000"),
        ("synthetic:images", "images needs a whole number"),
        ("synthetic:identities=0", "identities = 0"),
        ("synthetic:images=9-2", "lowest"),
    ],
)
def test_open_store_refuses(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_store(spec)


def test_open_store_knows_what_is_no_folder_of_faces(tmp_path: Path) -> None:
    (tmp_path / "train.rec").write_bytes(b"")
    for path in (tmp_path, tmp_path / "train.rec"):
        with pytest.raises(UserError, match=r"train\.rec: holds no record"):
            open_store(path)
    (tmp_path / "lfw.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"lfw\.bin: is a verification set"):
        open_store(tmp_path / "lfw.bin")
    (tmp_path / "faces.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"faces\.zip: is a file of no known kind; supported are folders"):
        open_store(tmp_path / "faces.zip")
