"""Packed folders: what is read, what opening and reading refuse, workers, many shards, threads."""

# ruff: noqa: S301  (pickles made here, a line above)
import io
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attfc.data.images import BrokenImageError
from attfc.data.stores.opening import open_store
from attfc.data.stores.packed import packed_store as packed
from attfc.data.stores.packed.packed_check import verify_packed
from attfc.data.stores.packed.packed_format import npy_header
from attfc.data.stores.packed.packed_store import PackedStore
from attfc.data.stores.packed.packed_writer import PackedWriter
from attfc.data.stores.store import Store
from attfc.errors import UserError


def jpeg(level: int = 0, size: int = 16) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), (level, level, level)).save(out, "JPEG")
    return out.getvalue()


PEOPLE: dict[bytes, dict[bytes, bytes]] = {
    b"Ann Lee": {b"0001.jpg": jpeg(10), b"0002.jpg": jpeg(20), b"0003.jpg": jpeg(30)},
    b"Bo": {b"x.png": b"no image at all"},
    "Åsa 李".encode(): {b"caf\xe9\n.jpg": jpeg(40), b"empty.jpg": b""},
    b"Zoe": {b"%d.jpg" % number: jpeg(50 + number) for number in range(7)},
}
IMAGES = [encoded for images in PEOPLE.values() for encoded in images.values()]
LABELS = [label for label, images in enumerate(PEOPLE.values()) for _ in images]


def write(folder: Path, people: dict[bytes, dict[bytes, bytes]] = PEOPLE, **options) -> Path:
    with PackedWriter(folder, source="a test", source_digest="0", **options) as writer:
        for label, (name, images) in enumerate(people.items()):
            writer.start_identity(label, name)
            for image, encoded in images.items():
                writer.add(encoded, image)
            writer.end_identity(label + 1)
        writer.finish()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "faces.attfc", shard_bytes=1500)


def test_what_was_written_is_read(folder: Path) -> None:
    store = PackedStore(folder)
    assert isinstance(store, Store)
    assert (store.name, len(store), len(store.identities)) == ("faces.attfc", 13, 4)
    assert store.identities.counts().tolist() == [3, 1, 2, 7]
    assert store.labels(np.array([12, 0, 3])).tolist() == [3, 0, 1]
    assert store.labels([12]).dtype == np.int64
    assert [store.read(position) for position in range(13)] == list(zip(IMAGES, LABELS, strict=True))
    assert store.read_many([12, 0, 5, 3, 0]) == [IMAGES[position] for position in (12, 0, 5, 3, 0)]
    assert store.read_many([]) == []
    assert [store.identity_name(label) for label in range(4)] == ["Ann Lee", "Bo", "Åsa 李", "Zoe"]
    assert [store.where(position) for position in (0, 4, 12)] == [
        "Ann Lee/0001.jpg",
        "Åsa 李/caf\\xe9\\n.jpg",
        "Zoe/6.jpg",
    ]
    assert store.image_name(4) == b"caf\xe9\n.jpg"
    assert store.ignored == {"images": 0, "identities": 0}
    images = store.images([9, 3, 0, 5], 16)
    assert images.broken == {1: "not a JPEG, PNG, WebP or BMP image (starts with b'no image')", 3: "empty file"}
    assert images.pixels[[0, 2], 8, 8, 0].tolist() == [53, 10]
    assert "4 identities, 13 images" in repr(store)


def test_positions_and_labels_outside_are_index_errors(folder: Path) -> None:
    store = PackedStore(folder)
    for position in (-1, 13):
        for read in (store.read, store.where, store.image_name, lambda p: store.read_many([0, p])):
            with pytest.raises(IndexError, match="13 images"):
                read(position)
    with pytest.raises(IndexError, match="4 identities"):
        store.identity_name(4)


def test_an_identity_stays_in_one_shard_unless_it_is_larger(tmp_path: Path) -> None:
    """Sizes 100 x counts, shards of 1,000: a shard ends with the identity that fills it."""
    counts = [3, 8, 2, 45, 1]
    people = {b"%d" % label: {b"%d" % i: bytes([label, i]) * 50 for i in range(n)} for label, n in enumerate(counts)}
    store = PackedStore(write(tmp_path / "p", people, shard_bytes=1000))
    assert store.about.shards == [1100, 2000, 2000, 800]  # 3 + 8; 2 + the first 18 of 45; 20; 7 + 1
    assert [store.read(i)[0] for i in range(59)] == [e for images in people.values() for e in images.values()]
    assert (store.path / "shard-00001.bin").read_bytes()[:100] == bytes([2, 0]) * 50


def test_the_bytes_are_those_of_the_documentation(tmp_path: Path) -> None:
    """Read with nothing but numpy, zlib and the order of the files."""
    folder = write(tmp_path / "p", shard_bytes=1500)
    arrays = {path.stem: np.load(path, allow_pickle=False) for path in folder.glob("*.npy")}
    about = json.loads((folder / "packed.json").read_text())
    everything = b"".join((folder / f"shard-{n:05d}.bin").read_bytes() for n in range(len(about["shards"])))
    assert [len(everything), about["shards"]] == [
        sum(map(len, IMAGES)),
        [p.stat().st_size for p in sorted(folder.glob("*.bin"))],
    ]
    ends = arrays["image_ends"]
    assert [everything[a:b] for a, b in itertools.pairwise(ends)] == IMAGES
    assert arrays["checksums"].tolist() == [zlib.crc32(encoded) for encoded in IMAGES]
    assert arrays["offsets"].tolist() == [0, 3, 4, 6, 13]
    names, name_ends = arrays["identity_names"].tobytes(), arrays["identity_name_offsets"]
    assert [names[a:b] for a, b in itertools.pairwise(name_ends)] == list(PEOPLE)
    assert {name: zlib.crc32((folder / name).read_bytes()) for name in about["crc32"]} == about["crc32"]
    assert {k: v.dtype.str for k, v in arrays.items()} == {
        "offsets": "<i8",
        "image_ends": "<i8",
        "checksums": "<u4",
        "identity_names": "|u1",
        "identity_name_offsets": "<i8",
        "image_names": "|u1",
        "image_name_offsets": "<i8",
    }
    assert sorted(p.name for p in folder.iterdir() if p.suffix not in (".npy", ".bin")) == ["packed.json"]


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.uint8])
@pytest.mark.parametrize("count", [0, 1, 42_000_000, 2**62])
def test_headers_are_numpys(dtype: type, count: int, tmp_path: Path) -> None:
    with open(tmp_path / "x.npy", "wb+") as file:
        file.write(npy_header(dtype, count))
        file.seek(0)
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file) == ((count,), False, np.dtype(dtype))
        assert file.tell() == 128


def test_names_may_be_left_out(tmp_path: Path) -> None:
    store = PackedStore(write(tmp_path / "p", image_names=False))
    assert (store.image_name(4), store.where(4)) == (b"", "Åsa 李/image 0")
    assert not list((tmp_path / "p").glob("image_name*"))


def test_neighbours_come_in_one_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PackedStore(folder)
    reads: list[tuple[int, int]] = []
    pread = os.pread
    monkeypatch.setattr(packed.os, "pread", lambda fd, n, at: reads.append((at, n)) or pread(fd, n, at))
    size = [len(encoded) for encoded in IMAGES]
    shards = [(0, sum(size[:3])), (0, sum(size[3:10])), (0, sum(size[10:]))]
    assert store.about.shards == [length for _, length in shards], "Zoe is larger than a shard"
    assert store.read_many([2, 0]) == [IMAGES[2], IMAGES[0]]
    assert reads == [(0, sum(size[:3]))], "query and key, and what little lies between"
    reads.clear()
    assert store.read_many(range(13)) == IMAGES
    assert reads == shards, "never over the end of a shard"
    reads.clear()
    monkeypatch.setattr(packed, "_GAP", size[1] - 1)
    assert store.read_many([2, 0]) == [IMAGES[2], IMAGES[0]]
    assert reads == [(0, size[0]), (size[0] + size[1], size[2])], "too far apart"
    reads.clear()
    monkeypatch.setattr(packed, "_SPAN", size[0] + size[1])
    store.read_many([0, 1, 2])
    assert reads == [(0, size[0] + size[1]), (size[0] + size[1], size[2])], "a region is bounded"


def test_short_reads_are_continued(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread = os.pread
    monkeypatch.setattr(packed.os, "pread", lambda fd, n, at: pread(fd, min(n, 100), at))
    assert PackedStore(folder).read_many(range(13)) == IMAGES


def test_a_changed_byte_breaks_its_image_alone(folder: Path) -> None:
    shard = folder / "shard-00000.bin"
    content = bytearray(shard.read_bytes())
    at = len(IMAGES[0])
    content[at + 5] ^= 1
    shard.write_bytes(content)
    store = PackedStore(folder)
    message = f"checksum of image 1 differs \\(shard-00000.bin, {len(IMAGES[1])} bytes from byte {at}\\)"
    with pytest.raises(BrokenImageError, match=message):
        store.read(1)
    images = store.images([0, 1, 2], 16)
    assert list(images.broken) == [1]
    assert images.pixels[:, 8, 8, 0].tolist() == [10, 0, 30]
    check = verify_packed(folder)
    assert (check.sound, check.images, check.damaged, check.files) == (False, 13, 1, [])
    assert check.examples[0].startswith("Ann Lee/0002.jpg: checksum of image 1 differs")


def test_a_shard_cut_short_or_gone_under_a_running_reader(folder: Path) -> None:
    store = PackedStore(folder)
    os.truncate(folder / "shard-00000.bin", len(IMAGES[0]) + 3)
    images = store.images(range(4), 16)
    assert list(images.broken) == [1, 2, 3], "the first is still there, the fourth never was an image"
    assert images.broken[1].startswith("shard-00000.bin is cut short")
    for number in (1, 2):
        (folder / f"shard-0000{number}.bin").unlink()
    assert store.read(5)[0] == IMAGES[5], "an open shard lives on"
    assert store.images([12], 16).broken == {0: "cannot be read (No such file or directory)"}


def test_one_bad_sector_breaks_only_its_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PackedStore(folder)
    pread = os.pread
    bad = len(IMAGES[0]) + 7

    def failing(descriptor: int, length: int, at: int) -> bytes:
        if at <= bad < at + length:
            raise OSError(5, "Input/output error")
        return pread(descriptor, length, at)

    store.read(0)
    monkeypatch.setattr(packed.os, "pread", failing)
    assert store.images(range(3), 16).broken == {1: "cannot be read (Input/output error)"}
    assert isinstance(store.read_many([1])[0], OSError)


def damage(folder: Path, name: str, change) -> None:
    content = bytearray((folder / name).read_bytes())
    (folder / name).write_bytes(change(content))


def put(at: int, value: bytes):
    return lambda content: content[:at] + value + content[at + len(value) :]


def test_places_are_checked_before_they_are_read(folder: Path) -> None:
    """`image_ends` is not read at opening: what it says is checked image by image."""
    whole = (folder / "image_ends.npy").read_bytes()
    cases = {
        2**62: "places image 1 at bytes .* of",
        -5: "places image 1 at bytes",
        3: "places image 1 at bytes",  # falls
        len(IMAGES[0]) + 1: "checksum of image 1 differs",
        sum(map(len, IMAGES[:4])): r"places image 1 over the end of shard-00000\.bin",
    }
    for value, message in cases.items():
        (folder / "image_ends.npy").write_bytes(whole)
        damage(folder, "image_ends.npy", put(128 + 8 * 2, int(value).to_bytes(8, "little", signed=True)))
        store = PackedStore(folder)
        with pytest.raises(BrokenImageError, match=message):
            store.read(1)
        assert isinstance(store.read_many([1, 0])[0], BrokenImageError)
        assert store.read_many([1, 0])[1] == IMAGES[0]
        check = verify_packed(folder)
        assert check.files == ["image_ends.npy"]
        assert check.damaged >= 1


def test_sizes_are_bounded_before_they_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "MAX_FILE_BYTES", len(IMAGES[0]) - 1)
    reasons = PackedStore(folder).images([0], 16).broken
    assert reasons[0] == f"image of {len(IMAGES[0])} bytes, more than the limit of {len(IMAGES[0]) - 1}"


@pytest.mark.parametrize("name", ["offsets.npy", "identity_names.npy", "identity_name_offsets.npy"])
def test_any_change_in_what_moves_labels_is_noticed_at_opening(folder: Path, name: str) -> None:
    damage(folder, name, lambda content: content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])
    with pytest.raises(UserError, match=rf"{name}: damaged \(CRC-32 .* convert it again") as caught:
        PackedStore(folder)
    assert "\n" not in str(caught.value)


def resign(folder: Path, name: str) -> None:
    """Make `packed.json` agree with a changed file, as somebody who means harm would."""
    about = json.loads((folder / "packed.json").read_text())
    about["crc32"][name] = zlib.crc32((folder / name).read_bytes())
    (folder / "packed.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("name", "at", "value", "message"),
    [
        ("offsets.npy", 128 + 8, 4, "identity 1 has no image"),
        ("offsets.npy", 128 + 8, 5, "identity 1 has no image"),
        ("offsets.npy", 128 + 32, 14, "offsets run over 0 ... 14"),
        ("offsets.npy", 128, -1, "offsets run over -1"),
        ("image_ends.npy", 128, 1, "runs over bytes 1"),
        ("image_ends.npy", 128 + 8 * 13, 7, r"runs over bytes 0 \.\.\. 7 but the shards hold"),
        ("identity_name_offsets.npy", 128 + 32, 2**50, r"identity_names\.npy: .* bytes instead of"),
        ("identity_name_offsets.npy", 128 + 32, -1, r"runs over bytes 0 \.\.\. -1"),
    ],
)
def test_contradictions_are_refused_even_when_signed(
    folder: Path, name: str, at: int, value: int, message: str
) -> None:
    damage(folder, name, put(at, value.to_bytes(8, "little", signed=True)))
    resign(folder, name)
    with pytest.raises(UserError, match=message):
        PackedStore(folder)


def test_a_name_that_lies_outside_its_table(folder: Path) -> None:
    for name in ("identity_name_offsets.npy", "image_name_offsets.npy"):
        damage(folder, name, put(128 + 16, (2**50).to_bytes(8, "little")))
        resign(folder, name)
    store = PackedStore(folder)
    with pytest.raises(UserError, match=r"identity_names\.npy: name 1 lies at bytes"):
        store.identity_name(1)
    with pytest.raises(UserError, match=r"image_names\.npy: name 1 lies at bytes"):
        store.image_name(1)
    assert store.where(1) == "Ann Lee/image 1", "a message does not fail over a name"
    assert store.where(3).startswith("identity 1/")
    assert store.read(3) == (IMAGES[3], 1)


def test_a_name_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "p", {b"a" * 2000: {b"": b""}, b"b" * 2000: {b"": b""}, b"c" * 2000: {b"": b""}})
    assert PackedStore(folder).identity_name(2) == "c" * 2000
    damage(folder, "identity_name_offsets.npy", put(128 + 8, bytes(8) + (6000).to_bytes(8, "little")))
    resign(folder, "identity_name_offsets.npy")
    with pytest.raises(UserError, match=r"name 1 lies at bytes 0 \.\.\. 6000"):
        PackedStore(folder).identity_name(1)


def test_a_pipe_in_the_place_of_an_empty_shard(tmp_path: Path) -> None:
    """Its size is that of the shard; reading it would wait for ever."""
    folder = write(tmp_path / "p", {b"a": {b"": b""}})
    assert PackedStore(folder).read(0) == (b"", 0)
    (folder / "shard-00000.bin").unlink()
    os.mkfifo(folder / "shard-00000.bin")
    with pytest.raises(UserError, match=r"shard-00000\.bin: not a file"):
        PackedStore(folder)


@pytest.mark.parametrize(
    "name", ["offsets.npy", "image_ends.npy", "checksums.npy", "image_names.npy", "shard-00001.bin"]
)
@pytest.mark.parametrize("change", ["cut", "longer", "gone", "folder", "pipe", "empty"])
def test_a_file_of_another_size_or_kind(folder: Path, name: str, change: str) -> None:
    path = folder / name
    if change == "cut":
        os.truncate(path, path.stat().st_size - 1)
    elif change in ("longer", "empty"):
        path.write_bytes(path.read_bytes() + b"x" if change == "longer" else b"")
    else:
        path.unlink()
        if change == "folder":
            path.mkdir()
        elif change == "pipe":
            os.mkfifo(path)  # opening it would wait for ever
    with pytest.raises(UserError, match=f"{name}: ") as caught:
        PackedStore(folder)
    assert "copy the folder again or convert it again" in str(caught.value)


@pytest.mark.parametrize(
    "header", [npy_header(np.uint64, 14), npy_header(np.int64, 13), b"\x93NUMPY\x01\x00" + bytes(121)]
)
def test_an_array_of_another_type(folder: Path, header: bytes) -> None:
    damage(folder, "image_ends.npy", put(0, header))
    with pytest.raises(UserError, match=r"image_ends\.npy: not an array of 14 int64"):
        PackedStore(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"format": "zip"}, "not the description of a packed set"),
        (lambda a: [a], "not the description of a packed set"),
        (lambda a: a | {"version": 2}, "version 2 of the packed format; this attfc reads version 1: update attfc"),
        (lambda a: {k: v for k, v in a.items() if k != "images"}, "'images' is missing"),
        (lambda a: a | {"images": 12}, r"bytes instead of \d+"),
        (lambda a: a | {"images": -1}, "images is -1 instead of a whole number"),
        (lambda a: a | {"images": True}, "images is True"),
        (lambda a: a | {"images": 10**30}, "images is 1000000"),
        (lambda a: a | {"identities": 3.0}, "identities is 3.0"),
        (lambda a: a | {"identities": 0}, "identities is 0 instead of a whole number from 1"),
        (lambda a: a | {"shards": []}, "0 shards"),
        (lambda a: a | {"shards": [2**62, 2**62]}, "2 shards of"),
        (
            lambda a: a | {"shards": [a["shards"][1], a["shards"][0], a["shards"][2]]},
            r"shard-00000\.bin: \d+ bytes instead of",
        ),
        (lambda a: a | {"shards": a["shards"][:1]}, "but the shards hold"),
        (lambda a: a | {"shards": 7}, "damaged"),
        (lambda a: a | {"crc32": {}}, "is missing"),
    ],
)
def test_a_description_that_is_wrong(folder: Path, change, message: str) -> None:
    about = change(json.loads((folder / "packed.json").read_text()))
    (folder / "packed.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=message) as caught:
        PackedStore(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b'{"images": ' + b"9" * 5000 + b"}", b"NaN"])
def test_a_description_that_is_none(folder: Path, content: bytes) -> None:
    (folder / "packed.json").write_bytes(content)
    with pytest.raises(UserError, match=r"packed\.json: "):
        PackedStore(folder)


def test_what_is_not_packed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: no such folder"):
        PackedStore(tmp_path / "absent")
    with pytest.raises(UserError, match=r"not a packed set \(packed\.json is missing\)"):
        PackedStore(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; a packed set is a folder"):
        PackedStore(tmp_path / "file")
    writer = PackedWriter(tmp_path / "half", source="", source_digest="0")
    writer.close()
    for opened in (PackedStore, open_store):
        with pytest.raises(
            UserError, match="half: an unfinished conversion: give the same attfc data convert command again"
        ):
            opened(tmp_path / "half")


def test_more_shards_than_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_OPEN_SHARDS", 3)
    people = {b"%d" % label: {b"": bytes([label]) * 10} for label in range(50)}
    store = PackedStore(write(tmp_path / "p", people, shard_bytes=1))
    assert len(store.about.shards) == 50
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    expected = [bytes([label]) * 10 for label in range(50)]
    assert store.read_many(range(50)) == expected
    failed: list[int] = []

    def read(seed: int) -> None:
        positions = np.random.default_rng(seed).integers(0, 50, 400).tolist()
        failed.extend(p for p in positions if store.read(p) != (expected[p], p))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 3


def read_in_worker(store: PackedStore) -> tuple[list[bytes | Exception], list[str]]:
    return store.read_many(range(len(store))), [store.where(i) for i in range(len(store))]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_see_the_same_store(folder: Path, method: str) -> None:
    store = PackedStore(folder)
    store.read(0)  # a forked worker shares this descriptor
    assert len(pickle.dumps(store)) < 500
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(read_in_worker, (store,)) == read_in_worker(store)


def test_a_worker_refuses_another_set_in_the_same_place(folder: Path, tmp_path: Path) -> None:
    pickled = pickle.dumps(PackedStore(folder))
    shutil.rmtree(folder)
    write(folder, {b"Eve": PEOPLE[b"Zoe"]})
    with pytest.raises(UserError, match="another packed set was put here"):
        pickle.loads(pickled)


def test_verify_reports_progress_and_soundness(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    check = verify_packed(PackedStore(folder), lambda done, total: calls.append((done, total)))
    assert (check.sound, check.images, check.encoded_bytes) == (True, 13, sum(map(len, IMAGES)))
    assert calls == [(13, 13)]
