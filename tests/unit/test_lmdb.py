"""LMDB sets, written by the LMDB library with msgpack and pickle as the writers of public sets do it, read by our own reader of pages."""

import contextlib
import functools
import io
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attfc.data import convert_store, inspect_store, open_store
from attfc.data.images import BrokenImageError
from attfc.data.loader import AttentionLoader
from attfc.data.stores.lmdb.lmdb_file import LmdbFile
from attfc.data.stores.lmdb.lmdb_store import LmdbStore
from attfc.errors import UserError

lmdb = pytest.importorskip("lmdb", reason="the independent writer of the dev group")
msgpack = pytest.importorskip("msgpack", reason="the independent writer of the dev group")

PEOPLE = 7


@functools.cache
def picture(number: int) -> bytes:
    """A JPEG whose size differs from picture to picture: some fit into a leaf page, most take overflow pages."""
    pixels = np.random.default_rng(number).integers(0, 255, (8 + number % 40, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=5 + 2 * (number % 45))
    return file.getvalue()


def write(
    path: Path,
    pack: Callable[[Any], bytes] = msgpack.dumps,
    *,
    images: int = 90,
    at_once: int = 40,
    folder: bool = False,
    value: Callable[[bytes, int], Any] = lambda image, label: (image, label),
    **more: Any,
) -> Path:
    """Write a set as folder2lmdb and imagelist2lmdb do: keys 0, 1 ... in several transactions, then what tells counts."""
    with lmdb.open(str(path), subdir=folder, map_size=1 << 26, meminit=False) as database:
        for start in range(0, images, at_once):
            with database.begin(write=True) as writing:
                for number in range(start, min(start + at_once, images)):
                    writing.put(b"%d" % number, pack(value(picture(number), 3 * number % PEOPLE)))
        with database.begin(write=True) as writing:
            told = {"__keys__": [b"%d" % number for number in range(images)], "__len__": images, "__classnum__": PEOPLE}
            for name, values in {**told, **more}.items():
                writing.put(name.encode(), pack(values))
    return path


WITH_FEATURES = {"value": lambda image, label: (image, b"\x93NUMPY" + bytes(2048), label, b"points")}


@pytest.mark.parametrize("pack", [msgpack.dumps, pickle.dumps, lambda value: msgpack.dumps(value, use_bin_type=False)])
@pytest.mark.parametrize("options", [{}, {"folder": True}, WITH_FEATURES, {"images": 3000}])
def test_reads_what_other_writers_wrote(tmp_path: Path, pack: Callable[[Any], bytes], options: dict[str, Any]) -> None:
    path = write(tmp_path / "faces.lmdb", pack, **options)
    left = sorted(entry.name for entry in tmp_path.rglob("*"))
    store = open_store(path, cache=tmp_path / "cache")
    assert isinstance(store, LmdbStore)
    assert (store.name, store.notes, len(store.identities)) == (
        "faces.lmdb" if options.get("folder") else "faces",
        [],
        PEOPLE,
    )
    known = sorted((3 * number % PEOPLE, number) for number in range(options.get("images", 90)))
    for position, (label, number) in enumerate(known):
        assert store.read(position) == (picture(number), label)
    assert store.where(1) == f"faces.lmdb key {PEOPLE}"
    assert store.identity_name(4) == "4"
    lengths = [len(picture(number)) for _, number in known]
    assert store.byte_lengths(np.arange(len(store))).tolist() == lengths
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301  (what a worker gets)
    assert len(pickle.dumps(store)) < 1000
    assert copy.read(5) == store.read(5)
    assert sorted(e.name for e in tmp_path.rglob("*") if "cache" not in e.parts) >= left
    assert not [name for name in set(os.listdir(tmp_path)) - {"cache"} if name not in left]  # no lock file of ours


def test_the_index_is_found_again_and_made_anew_when_the_file_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "faces.lmdb")
    done: list[int] = []

    def opened() -> LmdbStore:
        return LmdbStore(path, cache=tmp_path / "cache", progress=lambda count, of: done.append(count))

    assert len(opened()) == 90
    assert done == [90]
    store = opened()
    assert done == [90]
    path.unlink()
    write(path, images=120)
    assert store.read(0)  # its descriptor is still that of the old file
    assert len(opened()) == 120
    assert done == [90, 120]


def test_workers_inspect_and_conversion(tmp_path: Path) -> None:
    store = open_store(write(tmp_path / "faces.lmdb", pickle.dumps), cache=tmp_path / "cache")
    report = inspect_store(store, workers=2)
    assert (report.images, report.identities, len(report.broken)) == (90, PEOPLE, 0)
    convert_store(store, tmp_path / "packed")
    packed = open_store(tmp_path / "packed")
    assert [packed.read(position) for position in range(90)] == [store.read(position) for position in range(90)]
    assert packed.identity_name(6) == "6"
    batches = AttentionLoader(store, batch_size=8, keys_per_query=1, image_size=16, workers=2, seed=1)
    assert next(iter(batches)).queries.shape[0] == 8


def test_a_file_that_is_written_to_or_cut_short_gives_broken_images(tmp_path: Path) -> None:
    path = write(tmp_path / "faces.lmdb")
    store = open_store(path, cache=tmp_path / "cache")
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    answers = store.read_many(range(len(store)))
    assert all(isinstance(answer, BrokenImageError) for answer in answers)
    assert "written to while in use" in str(answers[0]) or "ends at byte" in str(answers[0])
    with pytest.raises(UserError, match="damaged or cut short: fetch it again"):
        open_store(path, cache=tmp_path / "cache")


class Harm:
    """What a pickle from elsewhere may do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize(
    ("pack", "value", "message"),
    [
        (pickle.dumps, lambda image, label: (image, Harm()), r"key \d+: refused: the pickle asks for posix\.system .* set of images"),
        (pickle.dumps, lambda image, label: {"image": image}, r"key \d+: refused: the pickle uses the instruction EMPTY_DICT"),
        (pickle.dumps, lambda image, label: image, r"key \d+: holds bytes: \(encoded image, label\) is needed"),
        (pickle.dumps, lambda image, label: (image, "Ann"), r"key \d+: holds bytes, text: "),
        (pickle.dumps, lambda image, label: (np.zeros((4, 4, 3)), label), r"key \d+.*an array of type 'f8'"),
        (lambda v: pickle.dumps(v, 2), lambda image, label: (image, label), "no image in one piece: pickle it with protocol 3"),
        (msgpack.dumps, lambda image, label: (image, -1), r"key \d+: holds bytes, a whole number: "),
        (msgpack.dumps, lambda image, label: {"image": image}, r"key \d+: refused: .* begin with 0x81 and are neither a pickle nor msgpack"),
        (msgpack.dumps, lambda image, label: [[image], label], r"key \d+: refused: .* begin with 0x92"),
        (lambda v: msgpack.dumps(v)[:-1], lambda image, label: (image, label), r"key \d+: refused: .* begin with 0x92"),
        (lambda v: v if isinstance(v, bytes) else b"", lambda image, label: image, r"key \d+: refused: .* begin with 0xff"),
    ],
)  # fmt: skip
def test_other_values_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Any, value: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "faces.lmdb", pack, value=value, __len__=2)
    with pytest.raises(UserError, match=message):
        open_store(path, cache=tmp_path / "cache")
    assert not (tmp_path / "harmed").exists()


def test_other_databases_are_refused(tmp_path: Path) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            open_store(path, cache=tmp_path / "cache")
        return str(caught.value).partition(": ")[2]

    empty = write(tmp_path / "empty.lmdb", images=0)
    assert refusal(empty).startswith("no images: keys 0, 1, 2 ...")
    (tmp_path / "no.lmdb").write_bytes(bytes(8192))
    assert refusal(tmp_path / "no.lmdb") == "no LMDB file of a 64-bit little-endian machine (byte 16)"
    (tmp_path / "short.lmdb").write_bytes(bytes(10))
    assert "damaged or cut short" in refusal(tmp_path / "short.lmdb")
    for name, duplicates in (("named", False), ("several", True)):
        with lmdb.open(str(tmp_path / f"{name}.lmdb"), subdir=False, max_dbs=2) as database:
            inner = database.open_db(b"inner", dupsort=duplicates)
            with database.begin(write=True, db=inner) as writing:
                writing.put(b"0", b"1")
    assert refusal(tmp_path / "named.lmdb") == "holds databases within the database, where sets of images have one"
    with lmdb.open(str(tmp_path / "words.lmdb"), subdir=False) as database, database.begin(write=True) as writing:
        writing.put(b"Ann/0.jpg", msgpack.dumps((b"image", 0)))
    assert refusal(tmp_path / "words.lmdb").endswith("keys of images are whole numbers, 0, 1, 2 ...")
    store = open_store(write(tmp_path / "told.lmdb", __len__=91), cache=tmp_path / "cache")
    assert store.notes == ["__len__ says 91 images, the file holds 90"]


def test_damaged_pages_end_in_one_refusal_and_never_in_the_process(tmp_path: Path) -> None:
    whole = write(tmp_path / "faces.lmdb", images=150, at_once=150).read_bytes()
    trees = [
        number
        for number in range(len(whole) // 4096)
        if whole[number * 4096 + 10] & 0x2F in (1, 2) or number < 2  # branches, leaves, and the two meta pages
    ]
    chance = random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        page = chance.choice(trees) * 4096
        for _ in range(4):
            damaged[page + chance.randrange(160)] = chance.randrange(256)
        if chance.random() < 0.2:
            del damaged[chance.randrange(len(whole)) :]
        path = tmp_path / "damaged.lmdb"
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            refused += 1
            store = LmdbStore(path, cache=tmp_path / "cache")
            store.read_many(range(len(store)))
            refused -= 1
    assert refused > 50


def test_a_tree_of_circles_ends(tmp_path: Path) -> None:
    """A branch whose children are all itself: without a bound it would be walked for ever, or 100^32 times."""
    path = write(tmp_path / "faces.lmdb", images=3000)
    whole, branch = bytearray(path.read_bytes()), LmdbFile(path)._root * 4096
    assert whole[branch + 10] == 1
    for place in np.frombuffer(
        whole[branch + 16 : branch + int.from_bytes(whole[branch + 12 : branch + 14], "little")], "<u2"
    ):
        whole[branch + place : branch + place + 6] = (branch // 4096).to_bytes(6, "little")
    for meta in (0, 4096):
        whole[meta + 94 : meta + 96] = b"\xff\xff"  # the depth that the file claims
    path.write_bytes(whole)
    with pytest.raises(UserError, match="more pages or levels than the file says"):
        LmdbStore(path)
