"""Conversion between stores: nothing lost, what is left out, safe names, what is refused, full disks, interrupted runs."""

import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from attfc.data.convert import convert_store
from attfc.data.images import BrokenImageError
from attfc.data.index import IdentityIndex
from attfc.data.stores import folder_writer, writer
from attfc.data.stores.combined import CombinedStore
from attfc.data.stores.edits import EditedStore, Edits
from attfc.data.stores.folder import FolderStore
from attfc.data.stores.folder_writer import extension_of, safe_name
from attfc.data.stores.list_file import ListStore
from attfc.data.stores.opening import open_store
from attfc.data.stores.packed.packed_store import PackedStore
from attfc.data.stores.packed.packed_writer import PackedWriter
from attfc.data.stores.rec.record_writer import RecordSetWriter
from attfc.data.stores.rec.records import RecordStore
from attfc.data.stores.store import EncodedStore
from attfc.data.stores.synthetic import SyntheticFaces
from attfc.errors import UserError


def picture(level: int = 0, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (level, level, level)).save(out, kind)
    return out.getvalue()


class ListedStore(EncodedStore):
    """A store of anything: (label, name, bytes or the error that reading raises)."""

    name = "listed"

    def __init__(self, rows: list[tuple[int, str, bytes | Exception]], names: list[str] | None = None) -> None:
        self.rows = rows
        self.names = names or [f"person {label}" for label in range(max(label for label, *_ in rows) + 1)]
        self.identities = IdentityIndex.from_labels([label for label, *_ in rows], len(self.names))
        self.after_reads: Callable[[int], None] = lambda count: None
        self.reads = 0

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, position: int) -> tuple[bytes, int]:
        self.reads += 1
        self.after_reads(self.reads)
        label, _, encoded = self.rows[position]
        if isinstance(encoded, Exception):
            raise encoded
        return encoded, label

    def labels(self, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        return np.array([label for label, *_ in self.rows], np.int64)[np.asarray(positions)]

    def where(self, position: int) -> str:
        return f"{self.names[self.rows[position][0]]}/{self.rows[position][1]}"

    def identity_name(self, label: int) -> str:
        return self.names[label]


def tree(root: Path) -> dict[str, bytes]:
    """Every file under a folder, our own hidden ones aside."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".attfc" not in str(path.relative_to(root))
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "faces"
    files = {
        "Zoe/b.jpg": picture(1),
        "Zoe/a.JPG": picture(2, "PNG"),  # the bytes decide, the name is kept
        "Ann Lee/0001.jpg": picture(3),
        "Åsa 李/ü x.png": picture(4, "PNG"),
        "Åsa 李/broken.webp": b"text",
        "Bo/empty.jpg": b"",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_folder_to_packed_and_back_is_the_same_folder(root: Path, tmp_path: Path) -> None:
    source = FolderStore(root, cache=tmp_path / "cache")
    calls: list[tuple[int, int]] = []
    done = convert_store(source, tmp_path / "p.attfc", progress=lambda *call: calls.append(call))
    assert (done.kind, done.images, done.identities, done.left_out, done.notes) == ("packed", 6, 4, 0, [])
    assert done.encoded_bytes == sum(map(len, tree(root).values()))
    assert calls == [(0, 6), (6, 6)]
    packed = PackedStore(tmp_path / "p.attfc")
    assert [packed.read(i) for i in range(6)] == [source.read(i) for i in range(6)]
    assert [packed.where(i) for i in range(6)] == [source.where(i) for i in range(6)]
    assert packed.about.source == "faces"
    back = convert_store(packed, tmp_path / "back", kind="folder")
    assert (back.images, back.identities, back.notes) == (6, 4, [])
    assert tree(tmp_path / "back") == tree(root)
    assert sorted(os.listdir(tmp_path / "back")) == sorted(os.listdir(root)), "nothing of ours stays"
    again = convert_store(packed, tmp_path / "again.attfc", shard_bytes=1)
    assert again.images == 6
    assert tree(tmp_path / "again.attfc")["checksums.npy"] == tree(tmp_path / "p.attfc")["checksums.npy"]


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    try:
        os.makedirs(os.fsencode(tmp_path) + b"/faces/caf\xe9\n")
    except OSError:
        pytest.skip("this file system admits UTF-8 names only")
    with open(os.fsencode(tmp_path) + b"/faces/caf\xe9\n/\xff.jpg", "wb") as file:
        file.write(picture())
    convert_store(FolderStore(tmp_path / "faces"), tmp_path / "p")
    convert_store(PackedStore(tmp_path / "p"), tmp_path / "back", kind="folder")
    assert os.listdir(os.fsencode(tmp_path) + b"/back/caf\xe9\n") == [b"\xff.jpg"]


def test_list_files_keep_the_names_of_their_images(root: Path, tmp_path: Path) -> None:
    lines = ["Zoe/b.jpg 7", "Ann Lee/0001.jpg\t3", "Zoe/a.JPG 7", "absent.jpg 9"]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    source = ListStore(tmp_path / "list.txt", root=root, cache=tmp_path / "cache")
    done = convert_store(source, tmp_path / "p")
    assert (done.images, done.identities, done.left_out) == (3, 2, 1)
    packed = PackedStore(tmp_path / "p")
    assert [packed.where(i) for i in range(3)] == ["3/0001.jpg", "7/b.jpg", "7/a.JPG"]
    assert packed.read(2) == ((root / "Zoe/a.JPG").read_bytes(), 1)


def test_records_to_packed_and_back(tmp_path: Path) -> None:
    rows = [(n // 4, f"{n}.jpg", picture(n, "PNG" if n % 3 else "JPEG")) for n in range(12)]
    convert_store(ListedStore(rows), tmp_path / "p")
    calls: list[tuple[int, int]] = []
    done = convert_store(
        PackedStore(tmp_path / "p"), tmp_path / "rec", kind="rec", progress=lambda *call: calls.append(call)
    )
    assert (done.kind, done.images, done.identities, done.left_out) == ("rec", 12, 3, 0)
    assert calls[-1] == (12, 12)
    records = RecordStore(tmp_path / "rec", cache=tmp_path / "cache")
    convert_store(records, tmp_path / "again")
    again = PackedStore(tmp_path / "again")
    assert [again.read(i) for i in range(12)] == [(encoded, label) for label, _, encoded in rows]
    assert again.image_name(0) == b"", "a record has no file name"
    for name in ("checksums.npy", "image_ends.npy", "offsets.npy"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "p" / name).read_bytes()
    convert_store(again, tmp_path / "f", kind="folder")
    assert sorted(tree(tmp_path / "f"))[:2] == ["person 0/000001.jpg", "person 0/000002.png"]


def test_what_a_killed_writer_of_records_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    source, target = SyntheticFaces(3, 4), tmp_path / "rec"
    convert_store(source, tmp_path / "whole", kind="rec")
    target.mkdir()
    for name in (".train.rec.1.part", ".train.idx.1.part", "train.idx"):  # killed between its two renames
        (target / name).write_bytes(b"0\t0\n")
    (target / ".mine.1.part").write_bytes(b"kept")
    with RecordSetWriter(target, "", 3, None), pytest.raises(UserError, match="another process is converting into it"):
        convert_store(source, target, kind="rec")
    assert sorted(path.name for path in target.iterdir()) == [".mine.1.part", "train.idx"]
    with pytest.raises(UserError, match=r"train\.idx: exists already: give a folder without a record set"):
        convert_store(source, target, kind="rec")
    (target / ".train.rec.1.part").touch()
    convert_store(source, target, kind="rec")
    (target / ".mine.1.part").unlink()
    found, whole = ({path.name: path.read_bytes() for path in at.iterdir()} for at in (target, tmp_path / "whole"))
    assert found == whole


@pytest.mark.parametrize("kind", ["packed", "rec", "folder"])
@pytest.mark.parametrize("link", ["file", "folder"])
def test_links_out_of_the_folder_are_packed_only_when_asked(root: Path, tmp_path: Path, kind: str, link: str) -> None:
    secret = tmp_path / "secret" / "0.jpg"
    secret.parent.mkdir()
    secret.write_bytes(picture(77))
    if link == "file":
        (root / "Aaa").mkdir()
        (root / "Aaa" / "0.jpg").symlink_to(secret)
    else:
        (root / "Aaa").symlink_to(secret.parent)
    plain = FolderStore(root, cache=tmp_path / "cache")
    edited = EditedStore(plain, Edits(len(plain), len(plain.identities), np.array([1]), np.array([-1])))
    for store in (plain, edited, CombinedStore([plain, edited])):
        with pytest.raises(UserError) as caught:
            convert_store(store, tmp_path / "out", kind=kind)
        assert str(caught.value) == (
            f"{root}: Aaa/0.jpg is reached by a link that leads out of the folder, to {secret}: give --follow-links "
            "(follow_links=True) to take whatever links lead to, or remove the link"
        )
    assert not (tmp_path / "out").exists()
    done = convert_store(plain, tmp_path / "out", kind=kind, follow_links=True)
    assert done.images + done.left_out == len(plain)
    assert open_store(tmp_path / "out").read(0)[0] == picture(77)


def test_links_within_the_folder_are_packed(root: Path, tmp_path: Path) -> None:
    images = len(FolderStore(root))
    first = FolderStore(root).image_path(0)
    os.symlink(os.path.dirname(first), os.fsencode(root) + b"/again")
    os.symlink(os.path.join(b"..", os.path.relpath(first, os.fsencode(root))), os.path.dirname(first) + b"/zz.jpg")
    assert convert_store(FolderStore(root), tmp_path / "p").images > images + 1


def test_rendered_faces_have_no_file_names(tmp_path: Path) -> None:
    faces = SyntheticFaces(3, (2, 4))
    convert_store(faces, tmp_path / "p")
    packed = PackedStore(tmp_path / "p")
    assert [packed.read(i) for i in range(len(faces))] == [faces.read(i) for i in range(len(faces))]
    assert (packed.where(1), packed.image_name(1)) == ("identity 0/image 1", b"")
    assert convert_store(packed, tmp_path / "f", kind="folder").images == len(faces)
    assert sorted(tree(tmp_path / "f"))[:2] == ["identity 0/000001.jpg", "identity 0/000002.jpg"]


def test_shuffled_sources_are_grouped(tmp_path: Path) -> None:
    rows = [(n * 7 % 3, f"{n}.jpg", picture(n)) for n in range(20)]
    store = ListedStore(rows)
    convert_store(store, tmp_path / "p")
    packed = PackedStore(tmp_path / "p")
    expected = [rows[i] for label in range(3) for i in store.identities.of(label)]
    assert [(packed.read(i)[1], packed.image_name(i).decode(), packed.read(i)[0]) for i in range(20)] == expected


def test_what_cannot_be_read_is_left_out_and_listed(tmp_path: Path) -> None:
    rows: list[tuple[int, str, bytes | Exception]] = [
        (0, "a.jpg", picture(1)),
        (0, "gone.jpg", FileNotFoundError(errno.ENOENT, "No such file or directory")),
        (1, "only.jpg", BrokenImageError("checksum differs")),
        (3, "text.jpg", b"text"),
        (3, "new\nline.jpg", BrokenImageError("two\nlines")),
    ]
    store = ListedStore(rows, ["Ann", "Bo", "Cy", "Di"])
    for kind in ("packed", "folder", "rec"):
        done = convert_store(store, tmp_path / kind, kind=kind)
        assert (done.images, done.identities, done.left_out) == (2, 2, 3)
        assert done.left_out_file == tmp_path / kind / "left_out.tsv"
        assert done.left_out_file.read_text().splitlines() == [
            "1\tAnn/gone.jpg\tcannot be read (No such file or directory)",
            "2\tBo/only.jpg\tchecksum differs",
            "4\tDi/new line.jpg\ttwo lines",
        ]
        assert done.examples[1] == "Bo/only.jpg: checksum differs"
        assert done.notes[0].startswith("3 images could not be taken")
        assert done.notes[1].startswith("2 identities without an image are left out: later labels are smaller")
    packed = PackedStore(tmp_path / "packed")
    assert packed.ignored == {"images": 3, "identities": 2}
    assert [packed.identity_name(label) for label in range(2)] == ["Ann", "Di"]
    assert packed.labels([0, 1]).tolist() == [0, 1]
    assert sorted(tree(tmp_path / "folder")) == ["Ann/a.jpg", "Di/text.jpg", "left_out.tsv"]


def test_check_leaves_out_what_does_not_decode(tmp_path: Path) -> None:
    rows = [(0, "a.jpg", picture(1)), (0, "t.jpg", b"text"), (0, "cut.jpg", picture(2)[:100])]
    assert convert_store(ListedStore(rows), tmp_path / "all").images == 3
    done = convert_store(ListedStore(rows), tmp_path / "checked", check=True)
    assert (done.images, done.left_out) == (1, 2)
    assert [line.split("\t")[1] for line in (tmp_path / "checked/left_out.tsv").read_text().splitlines()] == [
        "person 0/t.jpg",
        "person 0/cut.jpg",
    ]


def test_a_source_that_goes_away_stops_the_conversion(tmp_path: Path) -> None:
    error = OSError(errno.EIO, "Input/output error")
    rows: list[tuple[int, str, bytes | Exception]] = [(n // 2, f"{n}.jpg", picture(n)) for n in range(40)]
    store = ListedStore([row if n < 20 else (*row[:2], error) for n, row in enumerate(rows)])
    with pytest.raises(UserError, match=r"10 images in a row cannot be read .*person 14/29\.jpg.*it continues"):
        convert_store(store, tmp_path / "p", give_up_after=10, sync_bytes=1)
    done = convert_store(ListedStore(rows), tmp_path / "p", sync_bytes=1)
    assert done.continued_at >= 10
    # What became durable before the end was noticed is left out and listed; nothing is lost silently.
    assert done.images + done.left_out == 40
    assert done.left_out <= 10


def test_nothing_readable(tmp_path: Path) -> None:
    store = ListedStore([(0, "a", BrokenImageError("bad"))])
    for kind in ("packed", "folder"):
        with pytest.raises(UserError, match="could be read: nothing to write"):
            convert_store(store, tmp_path / kind, kind=kind)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        (b"Ann Lee", b"Ann Lee"),
        (b"..", b"_.."),
        (b".", b"_."),
        (b".hidden", b"_.hidden"),
        (b"", b"_"),
        (b"a/b\\c\0d", b"a_b_c_d"),
        (b"\xff\xfe", b"\xff\xfe"),
        (b"/etc/passwd", b"_etc_passwd"),
    ],
)
def test_safe_names(name: bytes, safe: bytes) -> None:
    assert safe_name(name) == safe


def test_long_names_are_cut_and_stay_different() -> None:
    for start in ("x" * 300, "李" * 150):
        names = [(start + end).encode() for end in ("a.jpg", "b.jpg")]
        safe = [safe_name(name) for name in names]
        assert safe[0] != safe[1]
        for name in safe:
            assert len(name) <= 200
            assert name.endswith(b".jpg")
            assert name.decode().startswith(start[:30])


def test_hostile_and_equal_names(tmp_path: Path) -> None:
    rows = [
        (0, "x.jpg", picture(0)),
        (1, "x.jpg", picture(1)),
        (2, "x.jpg", picture(2)),
        (3, "a.jpg", picture(3)),
        (3, "b.jpg", picture(4)),
    ]
    store = ListedStore(rows, ["../../evil", "Ann", "Ann", "Ann~2"])
    done = convert_store(store, tmp_path / "deep/er/f", kind="folder")
    assert sorted(tree(tmp_path / "deep/er/f")) == [
        "Ann/x.jpg",
        "Ann~2/a.jpg",
        "Ann~2/b.jpg",
        "Ann~3/x.jpg",
        "_.._.._evil/x.jpg",
    ]
    assert done.notes == ["2 identities got a folder of another name, because theirs is taken or is not a file name"]
    assert FolderStore(tmp_path / "deep/er/f").identities.counts().tolist() == [1, 2, 1, 1]


def test_equal_image_names_in_an_identity(tmp_path: Path) -> None:
    rows = [
        (0, "x/1.jpg", picture(0)),
        (0, "y/1.jpg", picture(1)),
        (0, "1~2.jpg", picture(2)),
        (0, "z/1.JPG", picture(3)),
    ]
    convert_store(ListedStore(rows), tmp_path / "f", kind="folder")
    assert sorted(tree(tmp_path / "f")) == [
        "person 0/1.JPG",
        "person 0/1.jpg",
        "person 0/1~2.jpg",
        "person 0/1~2~2.jpg",
    ]


def test_where_case_is_ignored_names_that_differ_in_it_are_told_apart() -> None:
    names = [b"Ann", b"ann", b"ANN", "É".encode(), "e\u0301".encode(), b"\xc9"]
    assert folder_writer._distinct(names, ignore_case=False) == names
    assert folder_writer._distinct(names, ignore_case=True) == [
        b"Ann",
        b"ann~2",
        b"ANN~3",
        "É".encode(),
        "e\u0301~2".encode(),
        b"\xc9",
    ]


def test_extensions_follow_the_bytes(tmp_path: Path) -> None:
    kinds = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}
    assert [extension_of(picture(1, kind)).decode() for kind in kinds.values()] == list(kinds)
    rows = [(0, "no name", picture(1, kind)) for kind in kinds.values()] + [(0, "no name", b"text")]
    done = convert_store(ListedStore(rows), tmp_path / "f", kind="folder")
    assert [Path(name).suffix for name in sorted(tree(tmp_path / "f"))] == [*kinds, ".jpg"]
    assert done.notes == ["1 images of no known format are kept and named .jpg"]


@pytest.mark.parametrize("kind", ["packed", "folder"])
def test_a_destination_with_something_in_it_is_left_alone(root: Path, tmp_path: Path, kind: str) -> None:
    store = FolderStore(root, cache=tmp_path / "cache")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"full: holds .*files.*\(notes\.txt \.\.\.\): give a folder that is empty"):
        convert_store(store, tmp_path / "full", kind=kind)
    assert tree(tmp_path / "full") == {"notes.txt": b"mine"}
    with pytest.raises(UserError, match=r"notes\.txt: is a file; give a folder"):
        convert_store(store, tmp_path / "full/notes.txt", kind=kind)
    convert_store(store, tmp_path / "done", kind=kind)
    before = tree(tmp_path / "done")
    with pytest.raises(UserError, match="done: holds"):
        convert_store(store, tmp_path / "done", kind=kind)
    assert tree(tmp_path / "done") == before
    (tmp_path / "empty").mkdir()
    assert convert_store(store, tmp_path / "empty", kind=kind).images == 6


def test_what_is_refused(root: Path, tmp_path: Path) -> None:
    store = FolderStore(root, cache=tmp_path / "cache")
    with pytest.raises(UserError, match="kind = 'packd': use one of packed, rec, folder; did you mean 'packed'"):
        convert_store(store, tmp_path / "p", kind="packd")
    with pytest.raises(UserError, match="shard_bytes = 0"):
        convert_store(store, tmp_path / "p", shard_bytes=0)
    for inside in (root, root / "packed", root / "Zoe/deep"):
        with pytest.raises(UserError, match="lies in the source"):
            convert_store(store, inside)
    convert_store(store, tmp_path / "p")
    with pytest.raises(UserError, match="lies in the source"):
        convert_store(PackedStore(tmp_path / "p"), tmp_path / "p")
    empty = ListedStore([(0, "a", b"")])
    empty.identities = IdentityIndex.from_labels(np.zeros(0, np.int64), 3)
    with pytest.raises(UserError, match="holds no image: nothing to convert"):
        convert_store(empty, tmp_path / "q")
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o555)
        with pytest.raises(UserError, match="cannot be written"):
            convert_store(store, tmp_path / "locked/p")


# Interrupted conversions. Each run below is cut at some point; the last must equal an uninterrupted one byte for byte.


class CutError(BaseException):
    """Stands for a kill: no handler of ours may catch it."""


def many(count: int = 60, each: int = 3) -> list[tuple[int, str, bytes | Exception]]:
    chance = np.random.default_rng(5)
    rows: list[tuple[int, str, bytes | Exception]] = []
    for n in range(count * each):
        content: bytes | Exception = chance.bytes(int(chance.integers(0, 400)))
        rows.append((n // each, f"{n % each}.jpg", BrokenImageError("bad") if n % 17 == 5 else content))
    return rows


@pytest.mark.parametrize("kind", ["packed", "folder"])
def test_cut_again_and_again(tmp_path: Path, kind: str) -> None:
    calls: list[tuple[int, int]] = []
    progress = lambda *call: calls.append(call)  # noqa: E731
    options = {"kind": kind, "sync_bytes": 700, "shard_bytes": 3000, "progress": progress}
    whole = convert_store(ListedStore(many()), tmp_path / "whole", **options)
    assert (whole.images, whole.left_out, whole.continued_at) == (169, 11, 0)

    def cut(count: int) -> None:
        if count == 50:
            raise CutError

    runs = 0
    continued = [0]
    while True:
        store = ListedStore(many())
        store.after_reads = cut
        runs += 1
        calls.clear()
        try:
            done = convert_store(store, tmp_path / "cut", **options)
            break
        except CutError:
            state = tmp_path / "cut" / ("unfinished.json" if kind == "packed" else ".attfc-conversion/unfinished.json")
            continued.append(json.loads(state.read_text())["state"].get("done", 0))
            if kind == "packed":  # what a crash may leave behind the durable point
                for path in (tmp_path / "cut").glob("*.*"):
                    if path.suffix in (".npy", ".bin", ".tsv"):
                        with open(path, "ab") as file:
                            file.write(b"rubbish" * runs)
                (tmp_path / "cut/shard-00099.bin").write_bytes(b"rubbish")
    assert runs >= 4
    assert continued == sorted(set(continued)), "every run came further"
    assert done.continued_at == continued[-1]
    assert (calls[0], calls[-1]) == ((3 * continued[-1], 180), (180, 180))
    assert (done.images, done.identities, done.left_out) == (whole.images, whole.identities, whole.left_out)
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


def cut_packed(tmp_path: Path, **options) -> Path:
    store = ListedStore(many())

    def cut(count: int) -> None:
        if count == 100:
            raise CutError

    store.after_reads = cut
    with pytest.raises(CutError):
        convert_store(store, tmp_path / "cut", sync_bytes=500, **options)
    return tmp_path / "cut"


@pytest.mark.parametrize("kind", ["packed", "folder"])
def test_another_source_or_other_options_do_not_continue(tmp_path: Path, kind: str) -> None:
    folder = cut_packed(tmp_path, kind=kind)
    before = tree(folder)
    other = ListedStore(many()[:-1])
    with pytest.raises(
        UserError, match="unfinished conversion that began with another source digest: give the options"
    ):
        convert_store(other, folder, kind=kind)
    renamed = ListedStore(many(), [f"somebody {n}" for n in range(60)])
    with pytest.raises(UserError, match="another source digest"):
        convert_store(renamed, folder, kind=kind)
    with pytest.raises(UserError, match="another check False, now True"):
        convert_store(ListedStore(many()), folder, kind=kind, check=True)
    if kind == "packed":
        with pytest.raises(UserError, match="another shard bytes 1073741824, now 5"):
            convert_store(ListedStore(many()), folder, shard_bytes=5)
        with pytest.raises(UserError, match="another image names True, now False"):
            convert_store(ListedStore(many()), folder, keep_names=False)
    assert tree(folder) == before
    assert convert_store(ListedStore(many()), folder, kind=kind).images == 169


def test_damaged_unfinished_conversions(tmp_path: Path) -> None:
    folder = cut_packed(tmp_path, shard_bytes=4000)
    state = (folder / "unfinished.json").read_bytes()
    for content in (
        b"",
        state[:50],
        b"[]",
        b'{"begun_with": 3, "state": 4}',
        state.replace(b'"done": ', b'"done": "x'),
    ):
        (folder / "unfinished.json").write_bytes(content)
        with pytest.raises(UserError, match=r"unfinished\.json: damaged: delete .* and convert again"):
            convert_store(ListedStore(many()), folder, shard_bytes=4000)
    (folder / "unfinished.json").write_bytes(state)
    for name in ("checksums.npy", "shard-00000.bin", "shard-00001.bin"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:130])
        with pytest.raises(UserError, match=f"{name}: 130 bytes but unfinished.json says .* delete its folder"):
            convert_store(ListedStore(many()), folder, shard_bytes=4000)
        (folder / name).write_bytes(content)
    assert convert_store(ListedStore(many()), folder, shard_bytes=4000).images == 169


def test_two_at_once_are_kept_apart(tmp_path: Path) -> None:
    store = ListedStore(many())

    def second(count: int) -> None:
        if count == 20:
            with pytest.raises(UserError, match="another process is converting into it"):
                convert_store(ListedStore(many()), tmp_path / "p")

    store.after_reads = second
    assert convert_store(store, tmp_path / "p").images == 169


def test_killed_on_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the rename of `packed.json` and the removal of `unfinished.json`."""

    def cut(self: PackedWriter) -> None:
        raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(PackedWriter, "_end", cut)
        with pytest.raises(CutError):
            convert_store(ListedStore(many()), tmp_path / "p")
    assert len(PackedStore(tmp_path / "p")) == 169
    done = convert_store(ListedStore(many()), tmp_path / "p")
    assert (done.images, done.left_out) == (169, 11)
    assert not (tmp_path / "p/unfinished.json").exists()
    with pytest.raises(UserError, match="holds a finished conversion"):
        convert_store(ListedStore(many()), tmp_path / "p")


@pytest.mark.parametrize("kind", ["packed", "folder"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_one_error_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: int
) -> None:
    """The disk takes so many bytes and no more, wherever that falls: every run frees a little and comes a little further."""
    options = {"kind": kind, "sync_bytes": 900, "shard_bytes": 4000}
    convert_store(ListedStore(many(20)), tmp_path / "whole", **options)
    room = [0]

    class SmallDisk(io.FileIO):
        """What the writers write to, at whatever size of their buffers."""

        def write(self, data) -> int:  # type: ignore[no-untyped-def]
            if not room[0]:
                raise OSError(code, os.strerror(code))
            taken = min(len(data), room[0])
            room[0] -= taken
            return super().write(data[:taken])

    def opened(path, mode: str, buffering: int = 4096, opener=None):  # type: ignore[no-untyped-def]
        raw = SmallDisk(path, mode.replace("b", ""), opener=opener)
        return raw if buffering == 0 else io.BufferedRandom(raw, 256)

    messages = []
    done = None
    with monkeypatch.context() as patch:
        patch.setattr(writer, "open", opened, raising=False)
        patch.setattr(folder_writer, "open", opened, raising=False)
        for _ in range(60):
            room[0] = 3000
            try:
                done = convert_store(ListedStore(many(20)), tmp_path / "full", **options)
                break
            except UserError as error:
                messages.append(str(error))
    expected = {
        errno.ENOSPC: "the disk is full: make room and give the same command again, it continues where it stopped",
        errno.EDQUOT: "the disk quota is used up: make room",
        errno.EIO: "cannot be written (Input/output error): fix that and give the same command again",
    }
    assert len(messages) >= 2
    assert all(expected[code] in message and "\n" not in message for message in messages), messages[0]
    assert done is not None
    assert tree(tmp_path / "full") == tree(tmp_path / "whole")


def test_a_full_disk_when_the_journal_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert_store(ListedStore(many()), tmp_path / "whole", sync_bytes=900)
    replace_json = writer.replace_json
    calls = [0]

    def full(path: Path, content: dict[str, object]) -> None:
        calls[0] += 1
        if calls[0] % 4 == 0:
            path.with_name(f".{path.name}.1.part").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_json(path, content)

    monkeypatch.setattr(writer, "replace_json", full)
    for _ in range(100):
        try:
            convert_store(ListedStore(many()), tmp_path / "full", sync_bytes=900)
            break
        except UserError as error:
            assert "the disk is full" in str(error)  # noqa: PT017
    assert calls[0] > 20
    assert tree(tmp_path / "full") == tree(tmp_path / "whole")


def test_an_identity_folder_half_written_is_written_anew(tmp_path: Path) -> None:
    folder = cut_packed(tmp_path, kind="folder")
    begun = max(folder.glob("person *"), key=lambda path: int(path.name[7:]))
    (begun / "0.jpg").write_bytes(b"half")
    (begun / "stale.jpg").write_bytes(b"of a name that the next run does not write")
    convert_store(ListedStore(many()), folder, kind="folder")
    convert_store(ListedStore(many()), tmp_path / "whole", kind="folder")
    assert tree(folder) == tree(tmp_path / "whole")


def test_a_folder_killed_while_its_notes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(path: Path) -> None:
        raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut)
        with pytest.raises(CutError):
            convert_store(ListedStore(many()), tmp_path / "f", kind="folder")
    assert len(FolderStore(tmp_path / "f")) == 169, "whole, and what is left is hidden"
    done = convert_store(ListedStore(many()), tmp_path / "f", kind="folder")
    assert (done.images, done.left_out, done.continued_at) == (169, 11, 60)
    assert not [name for name in os.listdir(tmp_path / "f") if name.startswith(".")]
    (tmp_path / "f" / ".attfc-converted").mkdir()  # killed a moment later: half of it is removed
    with pytest.raises(UserError, match="holds files already"):
        convert_store(ListedStore(many()), tmp_path / "f", kind="folder")
    assert not (tmp_path / "f" / ".attfc-converted").exists()
