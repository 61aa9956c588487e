"""Edit lists: the file, what is refused in it, and the store that it describes."""

# ruff: noqa: S301  (pickles made here, a line above)
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from attfc.data.images import BrokenImageError
from attfc.data.index import IdentityIndex
from attfc.data.stores.edits import EditedStore, Edits, compose, read_edits, write_edits
from attfc.data.stores.store import EncodedStore, Store
from attfc.data.stores.synthetic import SyntheticFaces
from attfc.errors import UserError

HEADER = "# attfc edits 1\timages=6\tidentities=3"


class FewImages(EncodedStore):
    """Position p holds the bytes b"p"; labels as given."""

    name = "few"

    def __init__(self, labels: Sequence[int]) -> None:
        self.identities = IdentityIndex.from_labels(np.array(labels, np.int64))
        self.ignored = {"hidden": 4}

    def __len__(self) -> int:
        return self.identities.images

    def read(self, position: int) -> tuple[bytes, int]:
        if position == 5:
            raise BrokenImageError("five is broken")
        return str(position).encode(), int(self.labels([position])[0])

    def labels(self, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        return self.identities.labels()[np.asarray(positions)]

    def where(self, position: int) -> str:
        return f"image {position}"

    def identity_name(self, label: int) -> str:
        return "ABC"[label]


def edits(changes: dict[int, int], images: int = 6, identities: int = 3, comments: list[str] | None = None) -> Edits:
    return Edits(
        images,
        identities,
        np.array(sorted(changes), np.int64),
        np.array([changes[p] for p in sorted(changes)], np.int64),
        comments,
    )


def test_the_file_reads_as_documented(tmp_path: Path) -> None:
    made = edits({1: -1, 4: 7, 5: 0}, comments=["Ann/1.jpg: same as\tAnn/0.jpg\n", "", "ü \ud800"])
    write_edits(tmp_path / "list.txt", made, "my\tfaces")
    assert (tmp_path / "list.txt").read_bytes() == (
        b"# attfc edits 1\timages=6\tidentities=3\tchanges=3\tstore=my\\tfaces\n"
        b"1\t-\tAnn/1.jpg: same as\\tAnn/0.jpg\\n\n"
        b"4\t7\n"
        b"5\t0\t\xc3\xbc \\xed\\xa0\\x80\n"
    )
    again = read_edits(tmp_path / "list.txt")
    assert (again.images, again.identities) == (6, 3)
    assert again.positions.tolist() == [1, 4, 5]
    assert again.labels.tolist() == [-1, 7, 0]
    assert again.comments == ["Ann/1.jpg: same as\\tAnn/0.jpg\\n", "", "ü \\xed\\xa0\\x80"]
    assert read_edits(tmp_path / "list.txt", comments=False).comments is None
    assert os.listdir(tmp_path) == ["list.txt"]


def test_a_list_edited_by_hand_on_windows(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(
        b"\xef\xbb\xbf"
        + HEADER.encode()
        + b"\tstore=x\tlater=thing\r\n\r\n  4 \t 2\r\n#5\t1\r\n".replace(b" \t ", b"\t")
        + b"0\t-\tnot her"
    )
    read = read_edits(path)
    assert read.positions.tolist() == [0, 4]
    assert read.labels.tolist() == [-1, 2]
    assert read.comments == ["not her", ""]


def test_an_empty_list_changes_nothing(tmp_path: Path) -> None:
    write_edits(tmp_path / "list.txt", edits({}))
    read = read_edits(tmp_path / "list.txt")
    assert len(read) == 0
    assert read.apply([0, 0, 1, 1, 2, 2]).tolist() == [0, 0, 1, 1, 2, 2]
    store = EditedStore(FewImages([0, 0, 1, 1, 2, 2]), read)
    assert [store.read(p) for p in range(5)] == [store.store.read(p) for p in range(5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not an edit list: the first line must be"),
        ("0\t1\n", "not an edit list"),
        ("# attfc edits 2\timages=6\tidentities=3\n", "a version that is not known .'attfc edits 2'"),
        ("# attfc edits 1\timages=6\n", "line 1 lacks identities=N"),
        ("# attfc edits 1\timages=-6\tidentities=3\n", "line 1: images='-6' must be a whole number"),
        (f"# attfc edits 1\timages={'9' * 30}\tidentities=3\n", "must be a whole number"),
        (HEADER + "\nx\t1\n", "line 2 holds no position where one is due: 'x"),
        (HEADER + "\n0\t1\n\n6\t1\n", "line 4 holds no position, of 6 images, where"),
        (HEADER + "\n0\n", r"line 2 holds no label \(a whole number, or - to leave the image out\).*'0'"),
        (HEADER + "\n0\t-1\n", "line 2 holds no label"),
        (HEADER + "\n0 1\n", "line 2 holds no position"),
        (HEADER + "\n0\tnan\n", "line 2 holds no label"),
        (HEADER + "\n0\t\tx\n", "line 2 holds no label"),
        (HEADER + f"\n0\t{'9' * 19}\n", "line 2 holds no label"),
        (HEADER + "\n3\t1\n0\t1\n3\t-\n", "lines 2 and 4 both change position 3"),
        (HEADER + "\tchanges=2\n3\t1\n", "holds 1 changes, its first line says 2: cut short"),
        (HEADER + "\n3\t1\t\0\n", "NUL byte"),
        (HEADER + "\n3\t1\t" + "x" * 20_000, "line 2 is longer than 16,384 bytes"),
        ("x" * 20_000, "line 1 is longer"),
        (HEADER + "\tstore=\udcff\n", "line 1 is not UTF-8"),
    ],
)
def test_bad_lists_are_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message) as caught:
        read_edits(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(UserError, match="not a regular file"):
            read_edits(path)
    with pytest.raises(UserError, match="No such file"):
        read_edits(tmp_path / "absent")


def test_a_failed_write_leaves_the_old_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "list.txt"
    write_edits(path, edits({1: 2}))
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space"):
        write_edits(path, edits({1: 0}))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["list.txt"]


@pytest.mark.parametrize(
    ("positions", "labels", "message"),
    [
        ([1, 1], [0, 0], "must rise"),
        ([2, 1], [0, 0], "must rise"),
        ([-1], [0], "position -1 is not one of 6"),
        ([6], [0], "position 6 is not one of 6"),
        ([1], [-2], "label -2"),
        ([1], [10**18], "label 1000000000000000000"),
        ([1], [], "1 positions, 0 labels"),
    ],
)
def test_edits_are_checked(positions: list[int], labels: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Edits(6, 3, np.array(positions, np.int64), np.array(labels, np.int64))


def test_a_list_of_other_data_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"about 6 images of 4 identities, few holds 6 of 3: it was made for other data"
    ):
        EditedStore(FewImages([0, 0, 1, 1, 2, 2]), edits({}, identities=4))
    with pytest.raises(UserError, match="6 images and got labels of shape"):
        edits({}).apply([1, 2])
    with pytest.raises(UserError, match="leaves none of its 6 images"):
        EditedStore(FewImages([0, 0, 1, 1, 2, 2]), edits(dict.fromkeys(range(6), -1)))


def test_an_edited_store() -> None:
    #                         B loses both images; 4 becomes a new person; 0 becomes C's
    store = EditedStore(FewImages([0, 1, 0, 1, 2, 2]), edits({0: 2, 1: -1, 3: -1, 4: 9}))
    assert isinstance(store, Store)
    assert len(store) == 4
    assert [store.where(p) for p in range(4)] == ["image 0", "image 2", "image 4", "image 5"]
    assert [store.identity_name(label) for label in range(3)] == ["A", "C", "new-9"]
    assert store.labels([0, 1, 2, 3]).tolist() == [1, 0, 2, 1]
    assert store.labels(np.array([3, 0])).dtype == np.int64
    assert [store.identities.of(label).tolist() for label in range(3)] == [[1], [0, 3], [2]]
    assert [store.read(p) for p in range(3)] == [(b"0", 1), (b"2", 0), (b"4", 2)]
    assert [str(item) for item in store.read_many([2, 3])] == ["b'4'", "five is broken"]
    assert store.images([3], 8).broken == {0: "five is broken"}
    assert store.ignored == {"hidden": 4, "left_out": 2}
    assert store.name == "few (edited)"
    with pytest.raises(IndexError, match="store of 4 images"):
        store.read(4)
    with pytest.raises(IndexError, match="label 3 is not one of 3"):
        store.identity_name(3)


def test_views_stack_and_travel() -> None:
    first = EditedStore(FewImages([0, 1, 0, 1, 2, 2]), edits({0: 2, 1: -1, 3: -1, 4: 9}))
    second = EditedStore(first, edits({0: -1}, images=4))
    assert len(second.identities) == 3
    copy = pickle.loads(pickle.dumps(second))
    for view in (second, copy):
        assert [view.read(p)[0] for p in range(2)] == [b"2", b"4"]
        assert view.read_many([1]) == [b"4"]
        assert view.identities.labels().tolist() == [0, 2, 1]
        assert view.ignored == {"hidden": 4, "left_out": 3}


def test_images_come_from_the_store_whatever_it_is(tmp_path: Path) -> None:
    faces = SyntheticFaces(3, 2)
    store = EditedStore(faces, edits({2: -1}))
    assert np.array_equal(store.images([2, 0], 56).pixels, faces.images([3, 0], 56).pixels)
    out = np.empty((1, 56, 56, 3), np.uint8)
    assert store.images([4], 56, out).pixels is out


def test_joined_lists() -> None:
    first = edits({0: 1, 1: -1, 2: 2}, comments=["a", "", "c"])
    second = edits({0: 2, 1: 0, 5: -1}, comments=["d", "e", ""])
    both = compose(first, second)
    assert both.positions.tolist() == [0, 1, 2, 5]
    assert both.labels.tolist() == [2, -1, 2, -1]
    assert both.comments == ["a; d", "e", "c", ""]
    assert compose(edits({}), edits({})).comments is None
    with pytest.raises(UserError, match="about 6 images of 3 identities and about 7 of 3"):
        compose(first, edits({}, images=7))
