"""RecordIO stores: layouts, cached indexes, workers, files that change under a reader, and what is said about bad files."""

# ruff: noqa: S301  (pickles made here, a line above)
import io
import itertools
import multiprocessing
import os
import pickle
import re
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attfc.data import Store, open_store
from attfc.data.images import BrokenImageError
from attfc.data.stores.rec import records as records_module
from attfc.data.stores.rec.record_file import RecordFile
from attfc.data.stores.rec.record_writer import RecordWriter, pack_payload
from attfc.data.stores.rec.records import RecordStore
from attfc.errors import UserError

MAGIC = struct.pack("<I", 0xCED7230A)


def picture(level: int, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (level, level, level)).save(out, kind)
    return out.getvalue()


def write(folder: Path, payloads: list[bytes], keys: list[int] | None = None, name: str = "train") -> list[int]:
    """Write a set and return where each record begins."""
    folder.mkdir(parents=True, exist_ok=True)
    with RecordWriter(folder / f"{name}.rec", folder / f"{name}.idx") as writer:
        numbered = enumerate(payloads) if keys is None else zip(keys, payloads, strict=True)
        return [writer.append(payload, key) for key, payload in numbered]


Rows = list[list[tuple[float, bytes]]]
"""Identity by identity, the own label and the bytes of each image."""


def insightface(identities: Rows, ranges: list[tuple[float, float]] | None = None) -> list[bytes]:
    counts = [len(images) for images in identities]
    ends = np.cumsum([1, *counts]).tolist()
    ranges = ranges or list(itertools.pairwise(ends))
    images = [row for group in identities for row in group]
    payloads = [pack_payload([float(ends[-1]), float(ends[-1] + len(ranges))])]
    payloads += [pack_payload(own, encoded, key) for key, (own, encoded) in enumerate(images, 1)]
    return payloads + [pack_payload([float(a), float(b)], key=key) for key, (a, b) in enumerate(ranges, ends[-1])]


MULTI_PART = picture(4) + bytes(-len(picture(4)) % 4) + MAGIC + b"tail" + MAGIC
FACES: Rows = [
    [(0.0, picture(1)), (0.0, picture(2, "PNG")), (0.0, picture(3))],
    [(1.0, MULTI_PART)],
    [(2.0, picture(5, "PNG")), (2.0, picture(6))],
]
FLAT = [(encoded, int(own)) for group in FACES for own, encoded in group]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "faces", insightface(FACES))
    return tmp_path / "faces"


def contents(store: RecordStore) -> list[tuple[bytes, int]]:
    return [store.read(position) for position in range(len(store))]


def test_the_insightface_layout(root: Path) -> None:
    store = RecordStore(root)
    assert isinstance(store, Store)
    assert (store.layout, store.name, store.folder, len(store)) == ("insightface", "faces", root, 6)
    assert contents(store) == FLAT
    assert store.read_many([5, 3, 0]) == [FLAT[5][0], FLAT[3][0], FLAT[0][0]]
    assert store.identities.counts().tolist() == [3, 1, 2]
    assert store.identities.consecutive
    labels = store.labels(np.array([5, 3, 0]))
    assert (labels.tolist(), labels.dtype) == ([2, 1, 0], np.int64)
    assert [store.identity_name(label) for label in range(3)] == ["0", "1", "2"]
    assert store.where(3) == f"train.rec record 4 at byte {RecordFile(root / 'train.rec').walk()[4]}"
    assert (store.ignored, store.notes) == ({"unowned_images": 0, "empty_identities": 0, "other_records": 0}, [])
    rows = store.images(np.arange(6), 16)
    assert rows.broken == {}
    assert rows.pixels[:, 8, 8, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert repr(store) == f"RecordStore('{root}/train.rec', 3 identities, 6 images)"
    for position in (-1, 6):
        with pytest.raises(IndexError, match=rf"positions {position} \.\.\. {position} of a store of 6 images"):
            store.read(position)
        with pytest.raises(
            IndexError, match=rf"positions {min(position, 0)} \.\.\. {max(position, 0)} of a store of 6 images"
        ):
            store.read_many([0, position])
    with pytest.raises(IndexError, match="label 3 is not one of 3 identities"):
        store.identity_name(3)
    assert store.read_many([]) == []


def test_what_no_identity_owns_is_left_out_and_counted(tmp_path: Path) -> None:
    payloads = insightface(FACES, [(1, 3), (3, 3), (4, 5)])  # images 3, 5 and 6 are nobody's, identity 1 is empty
    payloads[4] = pack_payload(2.0, MULTI_PART, 4)
    write(tmp_path, [*payloads, pack_payload(0.0, b"beyond")])
    store = RecordStore(tmp_path)
    assert store.ignored == {"unowned_images": 3, "empty_identities": 1, "other_records": 1}
    assert [store.identity_name(label) for label in range(2)] == ["0", "2"]
    assert contents(store) == [FLAT[0], FLAT[1], (MULTI_PART, 1)]
    assert [store.where(n).split(" at ")[0] for n in range(3)] == [f"train.rec record {key}" for key in (1, 2, 4)]


LABELS = [7, 3, 7, 0, 3, 7]


@pytest.mark.parametrize("keys", [None, [40, 10, 20, 5, 60, 30]])
def test_the_im2rec_layout_shuffled(tmp_path: Path, keys: list[int] | None) -> None:
    payloads = [pack_payload(float(label), FLAT[n][0]) for n, label in enumerate(LABELS)]
    payloads[2] = pack_payload([7.0, 0.5, 0.25], FLAT[2][0])  # several labels: the first one counts
    write(tmp_path, payloads, keys)
    store = RecordStore(tmp_path)
    assert store.layout == "im2rec"
    assert contents(store) == [(FLAT[n][0], label) for label, n in [(0, 3), (1, 1), (1, 4), (2, 0), (2, 2), (2, 5)]]
    assert [store.identity_name(label) for label in range(3)] == ["0", "3", "7"]
    assert [store.where(n).split()[2] for n in (0, 1)] == (["3", "1"] if keys is None else ["5", "10"])
    again = RecordStore(tmp_path)
    assert again.cache is not None
    assert [again.where(n) for n in range(6)] == [store.where(n) for n in range(6)]
    assert contents(again) == contents(store)


def test_whose_labels_count(tmp_path: Path) -> None:
    own = [[(2.0, b"a"), (2.0, b"b")], [(2.0, b"c")], [(4.0, b"d")]]
    write(tmp_path, insightface(own))
    expected = (
        r"train\.rec: record 1 at byte 40, and record 3 at byte \d+, images of two identities by the identity records, have "
        r"the own labels 2 and 2: data.label_source=images takes each image\'s own label instead"
    )
    with pytest.raises(UserError, match=expected):
        RecordStore(tmp_path)
    store = RecordStore(tmp_path, label_source="images")
    assert (store.layout, contents(store)) == ("insightface", [(b"a", 0), (b"b", 0), (b"c", 0), (b"d", 1)])
    assert [store.identity_name(label) for label in range(2)] == ["2", "4"]
    assert store.ignored == {"unowned_images": 0, "empty_identities": 0, "other_records": 0}
    with pytest.raises(UserError, match="label_source = 'image': use one of identities, images; did you mean 'images'"):
        RecordStore(tmp_path, label_source="image")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        ([5.0, 5.0, 5.0], "all images have the own label 5: the identity records alone say whose they are"),
        (
            [30.0, 10.0, 20.0],
            "the images' own labels number the identities in another way than the identity records do",
        ),
    ],
)
def test_own_labels_of_another_kind_are_noted(tmp_path: Path, labels: list[float], note: str) -> None:
    write(
        tmp_path,
        insightface([[(label, encoded) for _, encoded in group] for label, group in zip(labels, FACES, strict=True)]),
    )
    for _ in range(2):
        store = RecordStore(tmp_path)
        assert store.notes == [note]
        assert contents(store) == FLAT


def test_one_odd_own_label_is_damage_and_not_another_numbering(tmp_path: Path) -> None:
    """It would switch off the comparison of all other images: exchanged single images would pass for each other."""
    single = [[(float(label), b"%d" % label)] for label in range(4)]
    offsets = write(tmp_path, insightface(single))
    rewrite_idx(tmp_path, lambda lines: [lines[0], lines[1], f"2\t{offsets[3]}", f"3\t{offsets[2]}", *lines[4:]])
    expected = (
        rf"train\.rec: record 2 at byte {offsets[3]}: its own label is 2, but the identity records count it to identity 1, and "
        r"most others agree with theirs: damaged, or is the \.idx of another file\? data.label_source=images takes"
    )
    with pytest.raises(UserError, match=expected):
        RecordStore(tmp_path)
    assert [image for image, _ in contents(RecordStore(tmp_path, label_source="images"))] == [b"0", b"1", b"2", b"3"]


def test_without_idx_the_frames_are_walked(root: Path) -> None:
    (root / "train.idx").unlink()
    store = RecordStore(root)
    assert contents(store) == FLAT
    assert store.notes == ["train.idx is missing: records are numbered as they lie in train.rec"]


def test_idx_with_windows_line_ends_spaces_and_no_end(root: Path) -> None:
    where = [RecordStore(root).where(n) for n in range(6)]
    text = (root / "train.idx").read_bytes()
    for other in (
        text.replace(b"\n", b"\r\n"),
        text.replace(b"\t", b" "),
        text.rstrip(),
        b"\xef\xbb\xbf# by hand\n\n" + text,
    ):
        (root / "train.idx").write_bytes(other)
        store = RecordStore(root)
        assert contents(store) == FLAT
        assert [store.where(n) for n in range(6)] == where


@pytest.mark.parametrize("given", ["", "train.rec", "train.idx"])
def test_folder_rec_or_idx(root: Path, given: str) -> None:
    for opened in (RecordStore(root / given), open_store(root / given)):
        assert isinstance(opened, RecordStore)
        assert opened.path == root / "train.rec"
        assert contents(opened) == FLAT


def test_which_file_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.rec file"):
        RecordStore(tmp_path)
    with pytest.raises(UserError, match=r"absent\.rec: cannot be read \(No such file or directory\)"):
        RecordStore(tmp_path / "absent.rec")
    write(tmp_path, insightface(FACES), name="val")
    assert (RecordStore(tmp_path).path.name, RecordStore(tmp_path).name) == ("val.rec", "val")
    shutil.copy(tmp_path / "val.rec", tmp_path / "test.rec")
    with pytest.raises(UserError, match=r"holds 2 \.rec files \(test\.rec, val\.rec\): give the path of one"):
        RecordStore(tmp_path)
    shutil.copy(tmp_path / "val.rec", tmp_path / "train.rec")
    assert RecordStore(tmp_path).path.name == "train.rec"
    os.mkfifo(tmp_path / "pipe.rec")
    with pytest.raises(UserError, match=r"pipe\.rec: cannot be read \(not a regular file\)"):
        RecordStore(tmp_path / "pipe.rec")


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        ("3,112,112\n", []),
        ("85742,112,112", ["property says '85742' identities, the file holds 3"]),
        ("", ["property says '' identities, the file holds 3"]),
        (
            "\x1b[2J" * 9000,
            ["property says '" + r"\\x1b[2J" * 10 + "' identities, the file holds 3"],
        ),
    ],
)
def test_property_is_compared_and_not_relied_on(root: Path, text: str, notes: list[str]) -> None:
    (root / "property").write_text(text)
    for _ in range(2):
        store = RecordStore(root)
        assert store.notes == notes
        assert contents(store) == FLAT


class Builds:
    """Counts builds through the progress callback, which a cached index does not call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))

    def took(self) -> bool:
        calls, self.calls = self.calls, []
        return bool(calls)


def test_progress_runs_to_the_end_of_each_stage(root: Path, tmp_path: Path) -> None:
    builds = Builds()
    RecordStore(root, progress=builds)
    assert len(builds.calls) >= 2
    assert all(0 < done <= total for done, total in builds.calls)
    assert builds.calls[0] == ((root / "train.idx").stat().st_size,) * 2
    assert builds.calls[-1] == (3, 3), "the identity records"
    builds.took()
    write(tmp_path / "other", [pack_payload(float(label), b"x") for label in LABELS])
    (tmp_path / "other/train.idx").unlink()
    RecordStore(tmp_path / "other", progress=builds)
    assert builds.calls == [((tmp_path / "other/train.rec").stat().st_size,) * 2, (6, 6)]


def test_the_index_is_cached_for_the_user_and_rebuilt_when_something_changes(root: Path) -> None:
    builds = Builds()
    first = RecordStore(root, progress=builds)
    assert builds.took()
    assert first.cache is not None
    assert first.cache.is_relative_to(Path(os.environ["XDG_CACHE_HOME"]) / "attfc")
    for path in (root, root / "train.idx"):
        assert RecordStore(path, progress=builds).cache == first.cache
        assert not builds.took()
    changes: list[Callable[[], object]] = [
        lambda: os.utime(root / "train.rec", (1, 1)),
        lambda: os.utime(root / "train.idx", (1, 1)),
        lambda: (root / "property").write_text("3"),
        lambda: (root / "train.idx").unlink(),
        lambda: write(root, insightface(FACES[:2])),
    ]
    for number, change in enumerate(changes):
        change()
        store = RecordStore(root, progress=builds)
        assert builds.took(), number
        assert contents(store) == FLAT[: 4 if number == 4 else 6]
        assert len(list(first.cache.parent.iterdir())) == 1, "the former index is cleaned up"
        RecordStore(root, progress=builds)
        assert not builds.took(), number
    RecordStore(root, label_source="images", progress=builds)
    assert builds.took(), "another index"


def test_where_the_index_goes(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = Builds()
    cache = tmp_path / "cache"
    for built in (True, False):
        store = RecordStore(root, cache=cache, progress=builds)
        assert store.cache is not None
        assert cache in store.cache.parents
        assert builds.took() == built
    assert sorted(os.listdir(root)) == ["train.idx", "train.rec"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    root.chmod(0o555)
    try:
        store = RecordStore(root)
    finally:
        root.chmod(0o755)
    assert store.cache is not None
    assert tmp_path / "home" in store.cache.parents
    (tmp_path / "file").write_text("")
    store = RecordStore(root, cache=tmp_path / "file")
    assert store.cache is None
    assert contents(pickle.loads(pickle.dumps(store))) == FLAT


@pytest.mark.parametrize("file", ["about.json", "offsets.npy", "record_offsets.npy", "record_spans.npy", "numbers.npy"])
@pytest.mark.parametrize("damage", ["cut", "gone", "zeros", "half"])
def test_a_damaged_index_is_rebuilt(root: Path, file: str, damage: str) -> None:
    cache = RecordStore(root).cache
    assert cache is not None
    content = (cache / file).read_bytes()
    if damage == "gone":
        (cache / file).unlink()
    elif damage == "half" and file.endswith(".npy"):
        np.save(cache / file, np.load(cache / file)[:2])
    else:
        (cache / file).write_bytes(bytes(len(content)) if damage == "zeros" else content[:-5])
    builds = Builds()
    assert contents(RecordStore(root, progress=builds)) == FLAT
    assert builds.took()


def test_an_index_that_lies_gives_broken_images(root: Path) -> None:
    """An index can come with somebody's data: each read is compared with the record all the same."""
    cache = RecordStore(root).cache
    assert cache is not None
    offsets = np.load(cache / "record_offsets.npy")
    np.save(cache / "record_offsets.npy", offsets[[5, 3, 2, 3, 4, 5]] + [0, -4, 2, 1 << 60, -(1 << 60), 0])
    store = RecordStore(root)
    assert store.cache == cache
    reasons = [str(found) if isinstance(found, Exception) else found for found in store.read_many(range(6))]
    assert reasons[0].startswith("declares") or reasons[0].startswith("the record's own label 2 is not 0")
    assert reasons[1].startswith("no record begins there (0x")
    assert [reason.startswith("no record can begin at byte") for reason in reasons[2:5]] == [True] * 3
    assert reasons[5] == FLAT[5][0]


def read_in_worker(store: RecordStore) -> tuple[list[tuple[bytes, int]], list[str], int]:
    return contents(store), [store.where(n) for n in range(len(store))], store.read_many([1, 2]).count(FLAT[1][0])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_see_the_same_store(root: Path, method: str) -> None:
    store = RecordStore(root)
    assert len(pickle.dumps(store)) < 1000
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(read_in_worker, (store,)) == read_in_worker(store)


def test_a_worker_refuses_a_file_that_was_replaced(root: Path) -> None:
    pickled = pickle.dumps(RecordStore(root))
    write(root, insightface(FACES[:2]))
    with pytest.raises(UserError, match=r"train\.rec: was replaced or written to while a worker started; start again"):
        pickle.loads(pickled)


def later(path: Path) -> None:
    """A coarse clock must not hide a change."""
    now = time.time_ns() + 10_000_000_000
    os.utime(path, ns=(now, now))


def test_a_file_overwritten_in_place_gives_broken_images_never_another_face(root: Path) -> None:
    store = RecordStore(root)
    content = (root / "train.rec").read_bytes()
    other: Rows = [[(own, picture(200 + n)) for n, (own, _) in enumerate(group)] for group in FACES]
    write(root / "other", insightface(other))
    with open(root / "train.rec", "r+b") as file:  # the same inode
        file.write((root / "other/train.rec").read_bytes())
        file.truncate()
    later(root / "train.rec")
    for position in range(6):
        with pytest.raises(BrokenImageError):
            store.read(position)
    assert all(isinstance(found, BrokenImageError) for found in store.read_many(range(6)))
    with open(root / "train.rec", "r+b") as file:
        file.write(content)
        file.truncate()
    later(root / "train.rec")
    with pytest.raises(
        BrokenImageError, match=r"train\.rec was written to while in use: start again when it is complete"
    ):
        store.read(0)


def test_a_file_cut_short_while_in_use(root: Path) -> None:
    store = RecordStore(root)
    offset = int(store.where(5).split()[-1])
    os.truncate(root / "train.rec", offset + 20)
    with pytest.raises(BrokenImageError, match=f"the file ends at byte {offset + 20}, it was cut short while in use"):
        store.read(5)
    rows = store.images([5, 0], 16)
    assert list(rows.broken) == [0, 1], "changed: nothing of it is trusted"
    assert not rows.pixels.any()


def test_a_file_replaced_by_rename_leaves_open_readers_the_old_one(root: Path) -> None:
    store = RecordStore(root)
    write(root, insightface([[(0.0, picture(9))]]))
    assert contents(store) == FLAT
    assert contents(RecordStore(root)) == [(picture(9), 0)]


def test_a_file_written_to_while_it_is_indexed_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = records_module.build_record_index

    def slow(*args, **kwargs):
        found = build(*args, **kwargs)
        with open(root / "train.rec", "ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(records_module, "build_record_index", slow)
    with pytest.raises(UserError, match=r"train\.rec: was written to while it was being indexed; open it when"):
        RecordStore(root)


# Bad files, as they lie when they are opened: one line that names file, record (or line) and byte.


def rewrite_idx(folder: Path, edit: Callable[[list[str]], list[str]]) -> None:
    lines = edit((folder / "train.idx").read_text().splitlines())
    (folder / "train.idx").write_text("".join(f"{line}\n" for line in lines))


def refused(folder: Path, message: str, **options: object) -> None:
    """`message` with {n} for a number, else literally."""
    pattern = re.escape(message).replace(re.escape("{n}"), r"[\d,]+")
    with pytest.raises(UserError, match=pattern) as caught:
        RecordStore(folder, **options)  # type: ignore[arg-type]
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: [], "train.idx: lists no record; delete it to have it rebuilt from the .rec file"),
        (lambda lines: ["# nothing", ""], "train.idx: lists no record"),
        (lambda lines: [*lines[:2], "2"], "train.idx: line 3 ('2') is not 'KEY<TAB>OFFSET', two whole numbers; delete"),
        (
            lambda lines: [lines[0], "one\ttwo"],
            "train.idx: line 2 ('one\\ttwo') is not 'KEY<TAB>OFFSET', two whole numbers",
        ),
        (lambda lines: [*lines, "-10\t0"], "train.idx: line 11 ('-10\\t0') is not 'KEY<TAB>OFFSET', two whole numbers"),
        (lambda lines: [*lines, f"10\t{10**30}"], "is not 'KEY<TAB>OFFSET', two whole numbers"),
        (
            lambda lines: [*lines, "10\t42"],
            "train.idx: line 11 places record 10 at byte 42, which is not a multiple of 4",
        ),
        (
            lambda lines: [*lines, f"10\t{10**17}"],
            f"train.idx: line 11 places record 10 at byte {10**17}, but the .rec file ends at byte {{n}}: cut short?",
        ),
        (lambda lines: [*lines, "3\t40"], "train.idx: key 3 is listed twice, at bytes {n} and 40"),
        (lambda lines: [*lines, "10\t40"], "train.idx: keys 1 and 10 both begin at byte 40 of the .rec file"),
        (lambda lines: [*lines[:9], "9\t44"], "train.rec: record 9 at byte 44: no record begins there (0x"),
        (
            lambda lines: lines[:8] + lines[9:],
            "train.rec: record 0 at byte 0: says that identity records have keys 7 ... 9, but 8 is not listed",
        ),
        (
            lambda lines: lines[:7],
            "says that identity records have keys 7 ... 9, but 7 is not listed: is the .idx of another",
        ),
        (
            lambda lines: lines[:2] + lines[3:],
            "train.rec: record 7 at byte {n}: its identity owns image 2, which the .idx does not list: is it of another file?",
        ),
        (
            lambda lines: lines[1:],
            "train.rec: record 7 at byte {n}: holds a range [1, 4) as identity records do, where an image",
        ),
    ],
)
def test_an_idx_that_is_damaged_or_disagrees(root: Path, edit: Callable[[list[str]], list[str]], message: str) -> None:
    rewrite_idx(root, edit)
    refused(root, message)


def test_an_idx_of_another_file(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", insightface([[(0.0, picture(7) + b"longer")], *FACES]))
    shutil.copy(tmp_path / "other/train.idx", root / "train.idx")
    with pytest.raises(UserError, match=r"train\.(rec: record|idx: line) \d+ (at byte|places record \d+ at byte) \d+"):
        RecordStore(root)


def test_a_truncated_rec(root: Path) -> None:
    size = (root / "train.rec").stat().st_size
    os.truncate(root / "train.rec", size - 4)
    refused(
        root,
        f"train.rec: record 9 at byte {size - 40}: declares 32 bytes: the file ends at byte {size - 4}; damaged or cut",
    )
    os.truncate(root / "train.rec", size - 60)
    refused(
        root,
        f"train.idx: line 10 places record 9 at byte {size - 40}, but the .rec file ends at byte {size - 60}: cut short?",
    )
    (root / "train.idx").unlink()
    refused(
        root,
        f"train.rec: record 8 at byte {size - 80}: declares 32 bytes: the file ends at byte {size - 60}; damaged or cut",
    )
    os.truncate(root / "train.rec", size - 76)
    refused(
        root, f"train.rec: record 8 at byte {size - 80}: 4 bytes are left, too few for a record; damaged or cut short"
    )
    os.truncate(root / "train.rec", 0)
    refused(root, "train.rec: holds no record")


def patch(path: Path, at: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(content)


@pytest.mark.parametrize(
    ("at", "content", "reason"),
    [
        (0, b"JPEG", r"no record begins there \(0x4745504a instead of 0xced7230a\)"),
        (4, struct.pack("<I", 2 << 29 | 100), r"cflag 2 where 0 or 1 \(the beginning of a record\) must stand"),
        (4, struct.pack("<I", 7 << 29 | 100), r"cflag 7 where 0 or 1 \(the beginning of a record\) must stand"),
        (4, struct.pack("<I", (1 << 29) - 1), r"declares 536,870,911 bytes: the next record begins at byte \d+"),
        (4, struct.pack("<I", 3), r"ends at byte \d+ where no record follows; the next listed one begins at byte \d+"),
        (
            8,
            struct.pack("<I", (1 << 32) - 1),
            r"payload of \d+ bytes declares 4,294,967,295 labels, which do not fit into it",
        ),
        (12, struct.pack("<f", float("nan")), r"the record's own label nan is not 2, its identity"),
        (12, struct.pack("<f", -1), r"the record's own label -1 is not 2, its identity"),
        (12, struct.pack("<f", 1), r"the record's own label 1 is not 2, its identity"),
    ],
)
def test_damage_in_one_record(tmp_path: Path, at: int, content: bytes, reason: str) -> None:
    """Where the images' headers are read it is an error; where only identity records are, a broken image."""
    middle: Rows = [*FACES[:2], [(2.0, picture(5)), (2.0, picture(6)), (2.0, picture(7))]]
    offsets = write(tmp_path, insightface(middle))
    patch(tmp_path / "train.rec", offsets[6] + at, content)
    store = RecordStore(tmp_path)
    assert store.where(5) == f"train.rec record 6 at byte {offsets[6]}"
    with pytest.raises(BrokenImageError, match=reason):
        store.read(5)
    assert isinstance(store.read_many([5])[0], BrokenImageError)
    assert re.match(reason, store.images([4, 5, 6], 16).broken[1])
    assert [store.read(n)[0] for n in (4, 6)] == [picture(5), picture(7)]
    if at != 12:
        with pytest.raises(
            UserError, match=rf"train\.rec: record 6 at byte {offsets[6]}: {reason}; damaged or cut short: fetch"
        ):
            RecordStore(tmp_path, label_source="images")


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        (float("nan"), "nan"),
        (-1.0, "-1"),
        (0.5, "0.5"),
        (float("inf"), "inf"),
        (2.0**24, "16777216"),
        (1e30, "1.000000015e+30"),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_own_labels_that_are_no_label(tmp_path: Path, label: float, shown: str, several: bool) -> None:
    offsets = write(tmp_path, [pack_payload(3.0, b"x"), pack_payload([label, 1.0] if several else label, b"y")])
    refused(
        tmp_path, f"train.rec: record 1 at byte {offsets[1]}: label {shown} is not a whole number of 0 ... 16,777,215"
    )


def test_the_largest_label_is_taken_and_costs_nothing(tmp_path: Path) -> None:
    write(tmp_path, [pack_payload(2.0**24 - 1, b"x"), pack_payload(5.0, b"y"), pack_payload(2.0**24 - 1, b"z")])
    store = RecordStore(tmp_path)
    assert contents(store) == [(b"y", 0), (b"x", 1), (b"z", 1)]
    assert [store.identity_name(label) for label in range(2)] == ["5", "16777215"]


@pytest.mark.parametrize(
    ("ranges", "key", "message"),
    [
        (
            [(1, 4), (3, 5), (5, 7)],
            8,
            "its range of images [3, 5) overlaps that of record 7, [1, 4): data.label_source=images",
        ),
        (
            [(4, 5), (1, 4), (5, 7)],
            8,
            "its range of images [1, 4) stands after that of record 7, [4, 5): data.label_source=images",
        ),
        ([(1, 4), (5, 4), (5, 7)], 8, "its identity owns images [5, 4), which is not a range within 1 ... 6"),
        ([(0, 4), (4, 5), (5, 7)], 7, "its identity owns images [0, 4), which is not a range within 1 ... 6"),
        ([(-2, 4), (4, 5), (5, 7)], 7, "its identity owns images [-2, 4), which is not a range within 1 ... 6"),
        ([(1, 4), (4, 5), (5, 8)], 9, "its identity owns images [5, 8), which is not a range within 1 ... 6"),
        (
            [(1, 4), (4, 5), (5, 1e12)],
            9,
            "its identity owns images [5, 9.999999959e+11), which is not a range within 1 ... 6",
        ),
        (
            [(1, 4), (4, float("nan")), (5, 7)],
            8,
            "its identity owns images [4, nan), which is not a range within 1 ... 6",
        ),
        ([(1, 3.5), (4, 5), (5, 7)], 7, "its identity owns images [1, 3.5), which is not a range within 1 ... 6"),
    ],
)
def test_ranges_that_are_none(tmp_path: Path, ranges: list[tuple[float, float]], key: int, message: str) -> None:
    offsets = write(tmp_path, insightface(FACES, ranges))
    refused(tmp_path, f"train.rec: record {key} at byte {offsets[key]}: {message}")
    assert contents(RecordStore(tmp_path, label_source="images")) == FLAT


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (
            [float("nan"), 9.0],
            "holds [nan, 9] where the keys of the first identity record and of what follows the last must",
        ),
        ([7.0, 5.0], "holds [7, 5] where the keys of the first identity record"),
        ([0.0, 5.0], "holds [0, 5] where the keys of the first identity record"),
        ([7.5, 10.0], "holds [7.5, 10] where the keys of the first identity record"),
        ([7.0, 2.0**39], f"says that identity records have keys 7 ... {2**39 - 1}, but 10 is not listed"),
        (
            [2.0**39, 2.0**39 + 2**20],
            f"says that identity records have keys {2**39} ... {2**39 + 2**20 - 1}, but {2**39} is not listed",
        ),
    ],
)
def test_record_zero_that_says_what_cannot_be(tmp_path: Path, ends: list[float], message: str) -> None:
    write(tmp_path, [pack_payload(ends), *insightface(FACES)[1:]])
    refused(tmp_path, f"train.rec: record 0 at byte 0: {message}")


def test_identity_records_that_are_none(tmp_path: Path) -> None:
    payloads = insightface(FACES)
    payloads[8] = pack_payload(1.0, b"an image")
    offsets = write(tmp_path, payloads)
    refused(
        tmp_path,
        f"train.rec: record 8 at byte {offsets[8]}: is not an identity record: 0 labels and 8 bytes of image instead of",
    )


def test_nobody_owns_an_image(tmp_path: Path) -> None:
    write(tmp_path, insightface(FACES, [(1, 1), (1, 1)]))
    refused(tmp_path, "train.rec: none of its 2 identity records owns an image")


def test_an_image_that_is_empty_or_no_image(tmp_path: Path) -> None:
    write(tmp_path, insightface([[(0.0, picture(1)), (0.0, b""), (0.0, b"text"), (0.0, picture(2))]]))
    rows = RecordStore(tmp_path).images(np.arange(4), 16)
    assert list(rows.broken) == [1, 2]
    assert rows.broken[1] == "the record holds no image"
    assert rows.broken[2].startswith("not a JPEG, PNG, WebP or BMP image")
