"""Identity index: grouping, validation of what is opened, cheap pickles."""

# ruff: noqa: S301  (pickles made here, a line above)
import pickle

import numpy as np
import pytest

from attfc.data.index import IdentityIndex
from attfc.errors import UserError


def test_groups_positions_by_label() -> None:
    labels = np.array([2, 0, 1, 0, 2, 2])
    index = IdentityIndex.from_labels(labels)
    assert (len(index), index.images) == (3, 6)
    assert [index.of(label).tolist() for label in range(3)] == [[1, 3], [2], [0, 4, 5]]
    assert index.counts().tolist() == [2, 1, 3]
    assert index.labels_of_slots(np.arange(6)).tolist() == [0, 0, 1, 2, 2, 2]
    assert index.labels().tolist() == labels.tolist()
    for array in (index.of(0), index.counts(), index.labels_of_slots([0]), index.labels()):
        assert array.dtype == np.int64


def test_identities_above_2_to_the_24_stay_apart() -> None:
    labels = np.arange(2**24 - 2, 2**24 + 4)  # as float32, 2**24 + 1 would become 2**24
    index = IdentityIndex.from_labels(labels, identities=2**24 + 4)
    assert [index.of(label).tolist() for label in range(2**24 - 2, 2**24 + 4)] == [[i] for i in range(6)]
    assert index.labels_of_slots(np.arange(6)).tolist() == labels.tolist()
    assert index.of(0).tolist() == []


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0.0, 1.0], np.float32), "float32"),
        (np.array([[0, 1]]), "row of integers"),
        ([0, -3, 1], "label -3 at position 1 is negative"),
        ([0, 2, 2, 2], "label 1 has no image"),
        ([0, 10**12], "label 1000000000000 among 2 images"),
        (np.array([2**63], np.uint64), "does not fit"),
    ],
)
def test_refuses_bad_labels(labels: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        IdentityIndex.from_labels(labels)  # type: ignore[arg-type]


def test_refuses_labels_beyond_the_identities() -> None:
    with pytest.raises(UserError, match="label 3 at position 0 is beyond the last of 3"):
        IdentityIndex.from_labels([3], identities=3)


def test_refuses_what_it_does_not_hold() -> None:
    index = IdentityIndex.from_labels([0, 0, 1])
    for label in (-1, 2):
        with pytest.raises(IndexError, match="2 identities"):
            index.of(label)
    for slot in (-1, 3):
        with pytest.raises(IndexError, match="3 images"):
            index.labels_of_slots([0, slot])


def test_is_mapped_from_disk_and_pickles_as_its_path(tmp_path) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(500), 20))
    built = IdentityIndex.from_labels(labels)
    built.save(tmp_path)
    opened = IdentityIndex.open(tmp_path)
    assert opened.labels().tolist() == labels.tolist()
    assert isinstance(opened.items.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        opened.of(3)[0] = 7
    pickled = pickle.dumps(opened)
    assert len(pickled) < 500
    assert isinstance(pickle.loads(pickled).items.base, np.memmap)
    assert pickle.loads(pickle.dumps(built)).items.tolist() == built.items.tolist()


def test_images_numbered_identity_by_identity_need_no_items(tmp_path) -> None:
    plain = IdentityIndex(np.array([0, 2, 2, 5]), np.arange(5))
    IdentityIndex(np.array([0, 2, 2, 5])).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["offsets.npy"]
    opened = IdentityIndex.open(tmp_path, consecutive=True)
    in_memory = IdentityIndex(np.array([0, 2, 2, 5]))
    for index in (opened, in_memory, pickle.loads(pickle.dumps(opened)), pickle.loads(pickle.dumps(in_memory))):
        assert index.consecutive
        assert (len(index), index.images) == (3, 5)
        assert [index.of(label).tolist() for label in range(3)] == [plain.of(label).tolist() for label in range(3)]
        assert index.positions_of_slots(np.array([[4], [0]])).tolist() == [[4], [0]]
        assert index.labels().tolist() == plain.labels().tolist() == [0, 0, 2, 2, 2]
        assert index.labels_of_slots([1, 4]).tolist() == [0, 2]
        assert index._items is None, "nothing of this needs them"
        assert index.items.tolist() == plain.items.tolist()
        assert index.of(2).tolist() == [2, 3, 4]
    assert len(pickle.dumps(opened)) < 500
    IdentityIndex(np.array([0, 2, 2, 6])).save(tmp_path)
    with pytest.raises(UserError, match="changed while a worker started"):
        pickle.loads(pickle.dumps(opened))


@pytest.mark.parametrize("wrong", [-1, 6])
def test_items_too_many_to_look_through_are_checked_in_use(tmp_path, monkeypatch, wrong: int) -> None:
    monkeypatch.setattr("attfc.data.index._CHECKED_WHEN_OPENED", 5)
    np.save(tmp_path / "offsets.npy", np.array([0, 3, 6], np.int64))
    np.save(tmp_path / "items.npy", np.array([0, 2, 4, 1, wrong, 5], np.int64))
    index = IdentityIndex.open(tmp_path)
    assert index.of(0).tolist() == [0, 2, 4]
    assert index.positions_of_slots(np.array([0, 5])).tolist() == [0, 5]
    for use in (
        lambda: index.of(1),
        lambda: index.positions_of_slots(np.array([4])),
        lambda: index.items,
        index.labels,
    ):
        with pytest.raises(UserError, match=f"items hold positions .*{wrong}.* but there are 6 images; delete"):
            use()


def test_a_worker_notices_that_the_index_was_replaced(tmp_path) -> None:
    IdentityIndex.from_labels([0, 1, 0]).save(tmp_path)
    pickled = pickle.dumps(IdentityIndex.open(tmp_path))
    IdentityIndex.from_labels([0, 1, 1, 0]).save(tmp_path)
    with pytest.raises(UserError, match="changed while a worker started"):
        pickle.loads(pickled)


def test_empty_index_is_saved_and_opened(tmp_path) -> None:
    IdentityIndex.from_labels(np.array([], np.int64)).save(tmp_path)
    opened = IdentityIndex.open(tmp_path, consecutive=True)
    assert (len(opened), opened.images) == (0, 0)


@pytest.mark.parametrize(
    ("offsets", "items", "message"),
    [
        ([0, 2, 1, 3], [0, 1, 2], "offsets fall at identity 1"),
        ([0, 2, 4], [0, 1, 2], "offsets run over 0 ... 4 but there are 3 images"),
        ([1, 3], [0, 1, 2], "offsets run over 1 ... 3"),
        ([], [], "offsets run over nothing"),
        ([0, 3], [0, 1, 3], "positions 0 ... 3 but there are 3"),
        ([0, 3], [0, -1, 1], "positions -1 ... 1"),
    ],
)
def test_opening_refuses_contradictions(tmp_path, offsets, items, message) -> None:
    np.save(tmp_path / "offsets.npy", np.array(offsets, np.int64))
    np.save(tmp_path / "items.npy", np.array(items, np.int64))
    with pytest.raises(UserError, match=message):
        IdentityIndex.open(tmp_path)


def test_opening_refuses_foreign_files(tmp_path) -> None:
    with pytest.raises(UserError, match=r"offsets\.npy is missing"):
        IdentityIndex.open(tmp_path)
    IdentityIndex.from_labels(np.tile(np.arange(1000), 2)).save(tmp_path)
    good = (tmp_path / "items.npy").read_bytes()
    np.save(tmp_path / "items.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="not a readable"):
        IdentityIndex.open(tmp_path)
    for bad in (b"", b"hello", good[:-8], good[:100], b"PK\x03\x04 not a zip"):
        (tmp_path / "items.npy").write_bytes(bad)
        with pytest.raises(UserError, match=r"items\.npy"):
            IdentityIndex.open(tmp_path)
    np.save(tmp_path / "items.npy", np.zeros(2000, np.float32))
    with pytest.raises(UserError, match="holds float32"):
        IdentityIndex.open(tmp_path)
