"""List files: how a line is read, what is refused, when the cached index is used, and which files are opened."""

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

from attfc.data import text_lines
from attfc.data.stores import image_files, list_file
from attfc.data.stores.list_file import ListStore
from attfc.data.stores.opening import open_store
from attfc.data.stores.store import Store
from attfc.errors import UserError


def jpeg(level: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (level, level, level)).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists count as written long ago: a test cannot set back the time of a file's last change."""
    monkeypatch.setattr(list_file, "RACY_NS", -(10**15))


class Parses:
    """Counts parses through the progress callback, which a cached index does not call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))

    def took(self) -> int:
        calls, self.calls = self.calls, []
        return len(calls)


def listed(folder: Path, text: str | bytes) -> Path:
    path = folder / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Four images in and beside the list's folder, and a list of them with everything a list may hold."""
    folder = tmp_path / "ünal faces"
    (folder / "Ann Lee").mkdir(parents=True)
    (folder / "Ann Lee" / "1 a.jpg").write_bytes(jpeg(10))
    (folder / "b.jpg").write_bytes(jpeg(20))
    (folder / "李.jpg").write_bytes(jpeg(30))
    (tmp_path / "out side.jpg").write_bytes(jpeg(40))
    return listed(
        folder,
        "\ufeff# path label\r\nAnn Lee/1 a.jpg\t17\r\n\r\n \t b.jpg  \t 1000000007 \r\n"
        f"  # not this\n李.jpg 3\n{tmp_path}/out side.jpg   17\n../out side.jpg 003\nb.jpg\t17",
    )


def test_lines_are_read_as_documented(faces: Path) -> None:
    store = ListStore(faces)
    assert isinstance(store, Store)
    assert (store.name, len(store), len(store.identities)) == ("list.txt", 6, 3)
    outside = str(faces.parent.parent / "out side.jpg")
    names = ["Ann Lee/1 a.jpg", "b.jpg", "李.jpg", outside, "../out side.jpg", "b.jpg"]
    assert [store.where(p) for p in range(6)] == names
    assert store.labels(range(6)).tolist() == [1, 2, 0, 1, 0, 1]
    assert store.labels(np.array([1])).dtype == np.int64
    assert [store.identity_name(label) for label in range(3)] == ["3", "17", "1000000007"]
    assert [store.identities.of(label).tolist() for label in range(3)] == [[2, 4], [0, 3, 5], [1]]
    assert store.read(0) == ((faces.parent / "Ann Lee" / "1 a.jpg").read_bytes(), 1)
    found = store.images(np.arange(6), 16)
    assert found.broken == {}
    assert (found.pixels[:, 8, 8, 0].astype(int) // 10 * 10).tolist() == [10, 20, 30, 40, 40, 20]
    for position in (-1, 6):
        for ask in (store.read, store.where, lambda p: store.labels([p])):
            with pytest.raises(IndexError, match="6 images"):
                ask(position)
    with pytest.raises(IndexError, match="label 3 is not one of 3"):
        store.identity_name(3)


def test_one_name_makes_all_labels_names(tmp_path: Path) -> None:
    path = listed(tmp_path, "a.jpg\tZoe\nb.jpg\tAnn Lee\nc.jpg 7\nd.jpg 07\ne.jpg\tÅsa\nf.jpg\tAnn Lee\n")
    store = ListStore(path)
    assert [store.identity_name(label) for label in range(5)] == ["07", "7", "Ann Lee", "Zoe", "Åsa"]
    assert store.labels(range(6)).tolist() == [3, 2, 1, 0, 4, 2]
    assert [ListStore(path).identity_name(label) for label in range(5)] == ["07", "7", "Ann Lee", "Zoe", "Åsa"]


def test_names_are_numbered_alike_whatever_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"p{number * 7919 % 101:x}" for number in range(1000)]
    path = listed(tmp_path, "".join(f"{number}.jpg {name}\n" for number, name in enumerate(names)))
    monkeypatch.setattr(text_lines, "_BLOCK_BYTES", 97)
    store = ListStore(path)
    known = sorted(set(names))
    assert store.labels(range(1000)).tolist() == [known.index(name) for name in names]
    assert [store.where(p) for p in (0, 500, 999)] == ["0.jpg", "500.jpg", "999.jpg"]


def test_sparse_labels_are_made_dense_both_ways(tmp_path: Path) -> None:
    for labels in ([5, 10**17, 5, 0], [5, 9, 5, 0], [1, 0, 1, 2]):
        store = ListStore(listed(tmp_path, "".join(f"x {label}\n" for label in labels)))
        known = sorted(set(labels))
        assert store.labels(range(4)).tolist() == [known.index(label) for label in labels]
        assert [store.identity_name(number) for number in range(len(known))] == [str(label) for label in known]


def test_thousands_of_lines_may_name_one_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(50))
    store = ListStore(listed(tmp_path, "a.jpg 1\n" * 50_000))
    assert (len(store), len(store.identities)) == (50_000, 1)
    assert store.images([0, 49_999], 16).broken == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no images: a line `path label`"),
        (b"# only\n\n \t\r\n", "no images"),
        (b"a.jpg 1\n\nb.jpg\n", r"line 3 \('b\.jpg'\) has no label"),
        (b"a.jpg 1\n\t7 \n", r"line 2 \('7'\) has no label"),
        (b"a.jpg 1\nb.jpg -1\n", "line 2 .*: label -1 is not a whole number"),
        (b"a.jpg nan\n", "label nan is not a whole number"),
        (b"a.jpg 1\nb.jpg 2.0\n", "line 2 .*: label 2.0 is not a whole number"),
        (b"a.jpg " + b"9" * 19, "label 9999999999999999999 is not a whole number"),
        (b"12\ta.jpg\n", "line 1 .*ends in an image file where the label is due: .*swap the columns"),
        (b"path label\na.jpg 1\n", r"line 1 \('path label'\) is a heading: remove it, or begin it with #"),
        (b"path\tlabel\na b.jpg\t1\n", "line 1 .*is a heading"),
        (b"0\t1.000000\t2.000000\ta.jpg\n", "line 1 .* has 2 labels: keep one, as in number<TAB>label<TAB>path"),
        (b"0\t1.500000\ta.jpg\n", "line 1 .*: label 1.500000 is not a whole number"),
        (b"1\ta.jpg\t3\nb.jpg\t3\n", "line 2 .* has other columns than the first line, which is 1<TAB>path<TAB>label"),
        (b"0\t3.000000\ta.jpg\n1\tb.jpg\n", "line 2 .* has other columns .*number<TAB>label<TAB>path"),
        (b"1\ta.jpg\t3\n1\t\t3\n", "line 2 .* has no path"),
        (b"1\ta.jpg\t17\n1\tfolder/\t\ty.jpg\t3\r\n", r"line 2 \('1.tfolder/.t.ty\.jpg.t3'\) has no label"),
        (b"0\t17.0\ta.jpg\n1\t\x0b\tb.jpg\n", r"line 2 \('1.t.x0b.tb\.jpg'\) has no label"),
        (b"a\0.jpg 1\n", r"line 1 \(byte 1\) holds a NUL byte"),
        ("a.jpg 1\n".encode("utf-16"), "UTF-16"),
        (b"a.jpg 1\n" + b"x" * 17_000 + b" 1\n", "line 2 is longer than 16,384 bytes"),
        (b"a.jpg 1\r" * 9000, "line 1 is longer than 16,384 bytes"),
    ],
)
def test_bad_lists_are_refused_by_line(tmp_path: Path, text: bytes, message: str) -> None:
    path = listed(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        ListStore(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_gigantic_lines_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = listed(tmp_path, "a.jpg 1\n")
    with open(path, "ab") as file:
        file.truncate(1 << 40)  # sparse: a terabyte of zeros
    started = time.monotonic()
    with pytest.raises(UserError, match="line 2"):
        ListStore(path)
    assert time.monotonic() - started < 5


def test_missing_lists_and_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="No such file"):
        ListStore(tmp_path / "absent.txt")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match="not a regular file"):
            ListStore(path)


def test_bad_files_are_named_rows_and_no_device_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good.jpg").write_bytes(jpeg(60))
    (tmp_path / "text.jpg").write_text("just text")
    (tmp_path / "huge.jpg").write_bytes(bytes(3000))
    (tmp_path / "link.jpg").symlink_to(tmp_path / "good.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.jpg")
    names = [
        "good.jpg",
        "text.jpg",
        "huge.jpg",
        "link.jpg",
        "zero.jpg",
        "pipe.jpg",
        "/dev/tty",
        "absent.jpg",
        "..",
        "a" * 5000,
    ]
    store = ListStore(listed(tmp_path, "".join(f"{name} 1\n" for name in names)))
    monkeypatch.setattr(image_files, "MAX_FILE_BYTES", 2000)
    opened: list[bytes] = []
    really_open = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: (opened.append(path), really_open(path, *rest))[1])
    found = store.images(np.arange(len(names)), 16)
    assert {os.path.basename(path) for path in opened} == {b"good.jpg", b"text.jpg", b"huge.jpg", b"link.jpg"}
    not_regular = "cannot be read (not a regular file)"
    assert found.broken.pop(1).startswith("not a JPEG")
    assert found.broken == {
        2: "file of 3,000 bytes, more than the limit of 2,000",
        4: not_regular,
        5: not_regular,
        6: not_regular,
        7: "cannot be read (No such file or directory)",
        8: not_regular,
        9: "cannot be read (File name too long)",
    }


def test_relative_paths_start_at_the_root_that_is_given(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(jpeg())
    path = listed(tmp_path, "a.jpg 1\n")
    assert 0 in ListStore(path).images([0], 16).broken
    assert ListStore(path, root=tmp_path / "images").images([0], 16).broken == {}


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("InsightFace", "1\tAnn Lee/1.jpg\t7\n1\tBob/1.jpg\t3\n1\tBob/2.jpg\t3\n"),
        ("with boxes", "0\tAnn Lee/1.jpg\t7\t1\t2\t3\t4\n0\tBob/1.jpg\t3\n0\tBob/2.jpg\t3\t1\t2\t3\t4\t5.5\n"),
        ("im2rec", "0\t7.000000\tAnn Lee/1.jpg\n1\t3.000000\tBob/1.jpg\n2\t3\tBob/2.jpg\n"),
        ("Windows", "\ufeffAnn Lee\\1.jpg\t7\r\nBob\\1.jpg\t3\r\nBob\\2.jpg\t3\r\n"),
        ("Windows and InsightFace", "1\tAnn Lee\\1.jpg\t7\r\n1\tBob\\1.jpg\t3\r\n1\t.\\Bob\\2.jpg\t3\r\n"),
    ],
)
def test_lists_of_other_tools_are_read(tmp_path: Path, name: str, lines: str) -> None:
    for level, image in enumerate(("Ann Lee/1.jpg", "Bob/1.jpg", "Bob/2.jpg")):
        (tmp_path / image).parent.mkdir(exist_ok=True)
        (tmp_path / image).write_bytes(jpeg(10 * level))
    store = open_store(listed(tmp_path, lines))
    assert [store.identity_name(label) for label in range(2)] == ["3", "7"]
    assert store.labels(range(3)).tolist() == [1, 0, 0]
    found = store.images(range(3), 16)
    assert found.broken == {}
    assert (found.pixels[:, 8, 8, 0].astype(int) // 10 * 10).tolist() == [0, 10, 20]


def test_a_file_whose_name_holds_a_backslash_is_itself(tmp_path: Path) -> None:
    (tmp_path / "a\\b.jpg").write_bytes(jpeg(10))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.jpg").write_bytes(jpeg(20))
    assert ListStore(listed(tmp_path, "a\\b.jpg 1\n")).read(0)[0] == jpeg(10)


def test_a_list_of_images_that_are_not_there_is_refused(tmp_path: Path) -> None:
    path = listed(tmp_path, "".join(f"faces/{number}.jpg 1\n" for number in range(40)))
    expected = (
        f"{path}: none of 10 images of the list that were looked for exists; the first is 'faces/0.jpg', looked for as "
        f"{tmp_path}/faces/0.jpg. Relative paths start at the list's folder {tmp_path}: move the list to where its paths start, "
        "or write absolute paths"
    )
    with pytest.raises(UserError) as caught:
        open_store(path)
    assert str(caught.value) == expected
    (tmp_path / "list.rec").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        open_store(path)
    assert str(caught.value) == f"{expected}; the images are in {tmp_path}/list.rec? Give that file"
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "39.jpg").write_bytes(jpeg())
    assert len(open_store(path).images(range(40), 16).broken) == 39, "some are missing: broken images, as ever"


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    store = ListStore(listed(tmp_path, b"caf\xe9\x1b.jpg\tJos\xe9\n"))
    assert (store.where(0), store.identity_name(0)) == ("caf\\xe9\\x1b.jpg", "Jos\\xe9")
    assert store.image_path(0) == os.fsencode(tmp_path) + b"/caf\xe9\x1b.jpg"


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize(("labels", "has_items"), [([3, 3, 7], False), ([3, 7, 3], True)])
def test_only_a_list_that_is_not_sorted_keeps_a_row_of_positions(tmp_path, labels, has_items) -> None:
    path = listed(tmp_path, "".join(f"{row}.jpg {label}\n" for row, label in enumerate(labels)))
    cache = ListStore(path).cache
    assert cache is not None
    assert (cache / "items.npy").exists() == has_items
    parses = Parses()
    opened = ListStore(path, progress=parses)
    assert (parses.took(), opened.identities.labels().tolist()) == (
        0,
        np.unique(labels, return_inverse=True)[1].tolist(),
    )
    about = json.loads((cache / "about.json").read_text())
    del about["consecutive"]  # as version 0.1 wrote it, always with the row
    (cache / "about.json").write_text(json.dumps(about))
    assert len(ListStore(path, progress=parses)) == 3
    assert (parses.took() == 0) == has_items


@pytest.mark.usefixtures("old")
def test_the_index_is_cached_for_the_user_alone(faces: Path) -> None:
    parses = Parses()
    first = ListStore(faces, progress=parses)
    size = faces.stat().st_size
    assert parses.calls[-1] == (size, size)
    assert parses.took() > 0
    again = ListStore(faces, progress=parses)
    assert parses.took() == 0
    assert again.cache == first.cache
    assert again.cache is not None
    assert again.cache.is_relative_to(Path(os.environ["XDG_CACHE_HOME"]) / "attfc")
    assert again.cache.stat().st_mode & 0o077 == 0, "names of people"
    assert not list(faces.parent.glob(".*")), "nothing of ours in the user's folder"
    assert [again.where(p) for p in range(6)] == [first.where(p) for p in range(6)]
    assert again.identities.labels().tolist() == first.labels(range(6)).tolist()
    assert again.identity_name(1) == "17"


@pytest.mark.usefixtures("old")
def test_a_changed_list_is_parsed_again(faces: Path) -> None:
    ListStore(faces)
    status = faces.stat()
    faces.write_bytes(faces.read_bytes().replace(b".jpg 3", b".jpg 4"))
    os.utime(faces, ns=(status.st_atime_ns, status.st_mtime_ns))  # size and modification time as they were
    assert faces.stat().st_size == status.st_size
    again = ListStore(faces)
    assert again.identity_name(1) == "4"
    assert again.cache is not None
    assert len(list(again.cache.parent.iterdir())) == 1, "the former index is cleaned up"


def test_the_index_of_a_fresh_list_is_not_trusted(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parses = Parses()
    for _ in range(2):
        ListStore(faces, progress=parses)
        assert parses.took() > 0
    monkeypatch.setattr(list_file.time, "time_ns", lambda: time.time() * 1e9 + 3e9)
    ListStore(faces, progress=parses)
    assert parses.took() > 0
    ListStore(faces, progress=parses)
    assert parses.took() == 0


def test_a_list_that_changes_under_the_parser_is_refused(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def append(done: int, total: int) -> None:
        with open(faces, "ab") as file:
            file.write(b"\nlater.jpg 3\n")

    with pytest.raises(UserError, match="changed while it was read"):
        ListStore(faces, progress=append)


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize(
    "file", ["about.json", "offsets.npy", "labels.npy", "path_names.npy", "path_name_offsets.npy", "numbers.npy"]
)
@pytest.mark.parametrize("damage", ["cut", "gone", "ones"])
def test_a_damaged_index_is_rebuilt(faces: Path, file: str, damage: str) -> None:
    cache = ListStore(faces).cache
    assert cache is not None
    content = (cache / file).read_bytes()
    if damage == "gone":
        (cache / file).unlink()
    elif damage == "cut":
        (cache / file).write_bytes(content[:-5])
    else:
        (cache / file).write_bytes(b"\1" * len(content))
    parses = Parses()
    store = ListStore(faces, progress=parses)
    assert parses.took() > 0
    assert store.labels(range(6)).tolist() == [1, 2, 0, 1, 0, 1]
    ListStore(faces, progress=parses)
    assert parses.took() == 0


def test_without_a_place_to_write_the_index_stays_in_memory(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ListStore(faces, cache=tmp_path / "file")
    assert store.cache is None
    copy = pickle.loads(pickle.dumps(store))
    assert [copy.where(p) for p in range(6)] == [store.where(p) for p in range(6)]
    assert copy.labels(range(6)).tolist() == store.labels(range(6)).tolist()


def read_in_worker(store: ListStore) -> tuple[list[str], list[int], list[int]]:
    everything = range(len(store))
    pixels = store.images(np.arange(len(store)), 16).pixels
    return [store.where(p) for p in everything], store.labels(everything).tolist(), pixels[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_see_the_same_store_even_when_the_list_is_gone(faces: Path, method: str) -> None:
    store = ListStore(faces)
    faces.unlink()
    assert len(pickle.dumps(store)) < 1000
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(read_in_worker, (store,)) == read_in_worker(store)


@pytest.mark.usefixtures("old")
def test_an_index_that_lies_is_refused_when_it_is_read(faces: Path) -> None:
    cache = ListStore(faces).cache
    assert cache is not None
    for file, wrong in (
        ("labels.npy", 3),
        ("labels.npy", -1),
        ("path_name_offsets.npy", 1 << 40),
        ("path_name_offsets.npy", -5),
    ):
        right = np.load(cache / file)
        damaged = right.copy()
        damaged[1] = wrong
        np.save(cache / file, damaged)
        store = ListStore(faces)
        with pytest.raises(UserError, match="damaged list index"):
            store.labels([0, 1]) if file == "labels.npy" else store.where(1)
        np.save(cache / file, right)
    assert ListStore(faces).where(1) == "b.jpg"
