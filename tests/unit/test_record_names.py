"""Names beside a record set: written, read back, and refused where they are damaged or another set's."""

# ruff: noqa: S301  (pickles made here, a line above)
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from attfc.data.convert import convert_store
from attfc.data.people.kept_aside import kept_aside_labels
from attfc.data.stores.edits import EditedStore, Edits
from attfc.data.stores.opening import open_store
from attfc.data.stores.rec.record_names import write_record_names
from attfc.data.stores.rec.records import RecordStore
from attfc.data.stores.store import Store
from attfc.data.stores.synthetic import SyntheticFaces
from attfc.errors import UserError


def names_of(store: Store) -> list[str]:
    return [store.identity_name(label) for label in range(len(store.identities))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record set of identities 5, 7 and 8: the middle of four is left out."""
    faces = SyntheticFaces(4, 2, first_identity=5)
    edited = EditedStore(faces, Edits(8, 4, np.array([2, 3]), np.array([-1, -1])))
    folder = tmp_path_factory.mktemp("made") / "set"
    convert_store(edited, folder, kind="rec")
    return folder


@pytest.fixture
def records(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "set"))


def test_names_come_back(records: Path) -> None:
    size = (records / "train.rec").stat().st_size
    assert (records / "train.names").read_bytes() == (
        f"# attfc identity names 1\tidentities=3\tbytes={size}\n0\tidentity 5\n1\tidentity 7\n2\tidentity 8\n".encode()
    )
    store = open_store(records)
    assert names_of(store) == ["identity 5", "identity 7", "identity 8"]
    assert store.notes == []
    copy = pickle.loads(pickle.dumps(store))
    assert names_of(copy) == names_of(store)
    assert len(pickle.dumps(store)) < 1000


def test_the_same_people_are_kept_aside_after_a_conversion(tmp_path: Path) -> None:
    faces = SyntheticFaces(40, 2)
    convert_store(faces, tmp_path / "rec", kind="rec")
    store = RecordStore(tmp_path / "rec")
    assert kept_aside_labels(store, 0.2).tolist() == kept_aside_labels(faces, 0.2).tolist()


def test_no_names_are_written_where_they_are_not_wanted(tmp_path: Path) -> None:
    convert_store(SyntheticFaces(2, 1), tmp_path / "rec", kind="rec", keep_names=False)
    assert sorted(os.listdir(tmp_path / "rec")) == ["property", "train.idx", "train.rec"]
    assert names_of(RecordStore(tmp_path / "rec")) == ["0", "1"]


def test_names_of_another_file_are_not_taken(records: Path) -> None:
    names = records / "train.names"
    names.write_bytes(names.read_bytes().replace(b"bytes=", b"bytes=1"))
    store = RecordStore(records)
    assert names_of(store) == ["0", "1", "2"]
    assert store.notes == ["train.names belongs to another train.rec: its numbers stand for the names"]
    names.write_bytes(b"Ann\nBob\n")
    assert RecordStore(records).notes == [
        "train.names is not a list of identity names ('# attfc identity names 1'): its numbers stand for the names"
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            b"x\tAnn\n",
            r"line 2 \('x\\tAnn'\): a line is number<TAB>name, the name at most 4,096 bytes; delete the file",
        ),
        (b"0\tAnn\n1\n", "line 3 "),
        (b"0 Ann\n", "line 2 "),
        (b"0\t" + b"n" * 5000 + b"\n", "line 2 "),
        (b"0\tAnn\n0\tBob\n", "a number is listed twice; delete the file to name people by their numbers"),
        (b"0\tA\0nn\n", "NUL byte"),
        (b"0\t" + b"n" * 20_000, "longer than 16,384 bytes"),
    ],
)
def test_damaged_names_are_refused(records: Path, lines: bytes, message: str) -> None:
    names = records / "train.names"
    head = names.read_bytes().split(b"\n")[0]
    names.write_bytes(head + b"\n" + lines)
    with pytest.raises(UserError, match=message) as caught:
        RecordStore(records)
    assert str(names) in str(caught.value)


def test_names_in_any_order_unknown_numbers_and_none_at_all(records: Path) -> None:
    names = records / "train.names"
    head = names.read_bytes().split(b"\n")[0]
    names.write_bytes(head + b"\n99\tNobody\n2\tC\\n\xff\n0\tA\tB\n")
    assert names_of(RecordStore(records)) == ["A\\tB", "1", "C\\n\\xff"]


def test_no_device_is_read(records: Path) -> None:
    (records / "train.names").unlink()
    os.mkfifo(records / "train.names")
    with pytest.raises(UserError, match=r"names cannot be read \(not a regular file"):
        RecordStore(records)


def test_hostile_names_stay_one_line(tmp_path: Path) -> None:
    write_record_names(tmp_path / "train.rec", 8, ["A\nB\t0", "\ud800", "x" * 10_000])
    lines = (tmp_path / "train.names").read_bytes().splitlines()
    assert [len(line) for line in lines[3:]] == [2 + 4096]
    assert lines[1:3] == [b"0\tA\\nB\\t0", b"1\t\\xed\\xa0\\x80"]
