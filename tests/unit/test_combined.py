"""Several sets as one: positions and labels one after the other, merged names, one call a source, weights."""

# ruff: noqa: S301  (pickles made here, a line above)
import pickle
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from attfc.data.images import BrokenImageError
from attfc.data.index import IdentityIndex
from attfc.data.stores.combined import CombinedStore
from attfc.data.stores.store import EncodedStore, Images, Store
from attfc.data.stores.synthetic import SyntheticFaces
from attfc.errors import UserError


class Letters(EncodedStore):
    """One identity a letter: "abca" is four images of three people; a "!" is broken and belongs to "x". Counts its calls."""

    def __init__(self, name: str, letters: str) -> None:
        self.name, self.letters = name, letters
        people = ["x" if letter == "!" else letter for letter in letters]
        self.known = sorted(set(people))
        self.identities = IdentityIndex.from_labels([self.known.index(letter) for letter in people])
        self.ignored = {"hidden": 1}
        self.calls: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.letters)

    def read(self, position: int) -> tuple[bytes, int]:
        if self.letters[position] == "!":
            raise BrokenImageError("shriek")
        return f"{self.letters[position]}{position}".encode(), int(self.labels([position])[0])

    def labels(self, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        return self.identities.labels()[np.asarray(positions, np.int64)]

    def where(self, position: int) -> str:
        return f"image {position}"

    def identity_name(self, label: int) -> str:
        return self.known[label]

    def images(self, positions: npt.ArrayLike, size: int, out: npt.NDArray[np.uint8] | None = None) -> Images:
        asked = np.asarray(positions).tolist()
        self.calls.append(asked)
        pixels = np.empty((len(asked), size, size, 3), np.uint8) if out is None else out
        for row, position in enumerate(asked):
            pixels[row] = ord(self.letters[position]) if self.letters[position] != "!" else 0
        return Images(pixels, {row: "shriek" for row, p in enumerate(asked) if self.letters[p] == "!"})


def by_hand(stores: Sequence[Letters], merge: bool) -> tuple[list[int], list[str]]:
    """Labels of all positions and names of all labels, one image at a time."""
    names: list[tuple[int, str]] = []
    for number, store in enumerate(stores):
        for known in store.known:
            key = (0 if merge else number, known)
            if key not in names:
                names.append(key)
    labels = []
    for number, store in enumerate(stores):
        people = ["x" if letter == "!" else letter for letter in store.letters]
        labels.extend(names.index((0 if merge else number, person)) for person in people)
    return labels, [name for _, name in names]


def three() -> list[Letters]:
    return [Letters("one", "abca!"), Letters("two", "d"), Letters("one", "cdcb")]


@pytest.mark.parametrize("merge", [False, True])
def test_positions_and_labels_follow_each_other(merge: bool) -> None:
    stores = three()
    store = CombinedStore(stores, merge_names=merge)
    assert isinstance(store, Store)
    labels, names = by_hand(stores, merge)
    assert len(store) == 10
    assert len(store.identities) == len(names) == (5 if merge else 8)
    assert store.labels(np.arange(10)).tolist() == labels
    assert store.labels([9, 0, 5]).tolist() == [labels[9], labels[0], labels[5]]
    assert store.labels([]).dtype == np.int64
    assert [store.identity_name(label) for label in range(len(names))] == names
    index = store.identities
    assert index.labels().tolist() == labels
    assert [index.of(label).tolist() for label in range(len(names))] == [
        [position for position, of in enumerate(labels) if of == label] for label in range(len(names))
    ]
    assert [store.read(position) for position in (0, 5, 9)] == [
        (b"a0", labels[0]),
        (b"d0", labels[5]),
        (b"b3", labels[9]),
    ]
    copy = pickle.loads(pickle.dumps(store))
    assert "identities" not in vars(copy)
    assert copy.identities.labels().tolist() == labels
    for ask in (store.read, store.where, lambda p: store.labels([p])):
        for position in (-1, 10):
            with pytest.raises(IndexError, match="store of 10 images"):
                ask(position)
    with pytest.raises(IndexError, match="is not one of"):
        store.identity_name(len(names))


def test_messages_name_the_source() -> None:
    store = CombinedStore(three())
    assert store.names == ["one", "two", "one (2)"]
    assert store.name == "one + two + one (2)"
    assert [store.where(position) for position in (0, 5, 9)] == ["one: image 0", "two: image 0", "one (2): image 3"]
    assert store.ignored == {"one: hidden": 1, "two: hidden": 1, "one (2): hidden": 1}
    assert CombinedStore(three(), names=["a", "b", "c"]).where(9) == "c: image 3"


def test_images_come_in_the_order_asked_for_with_one_call_a_source() -> None:
    stores = three()
    store = CombinedStore(stores)
    found = store.images([9, 4, 0, 5, 9, 4], 2)
    assert found.pixels[:, 0, 0, 0].tolist() == [ord("b"), 0, ord("a"), ord("d"), ord("b"), 0]
    assert found.broken == {1: "shriek", 5: "shriek"}
    assert [each.calls for each in stores] == [[[4, 0, 4]], [[0]], [[3, 3]]]
    out = np.zeros((2, 2, 2, 3), np.uint8)
    assert store.images([5, 0], 2, out).pixels is out
    assert out[:, 0, 0, 0].tolist() == [ord("d"), ord("a")]
    assert store.images([6], 2, out[:1]).pixels.base is not None
    assert store.images([], 2).pixels.shape == (0, 2, 2, 3)
    with pytest.raises(ValueError, match="out is uint8"):
        store.images([5, 0], 4, out)


def test_read_many_asks_each_source_once() -> None:
    found = CombinedStore(three()).read_many([9, 4, 0, 5])
    assert [str(item) for item in found] == ["b'b3'", "shriek", "b'a0'", "b'd0'"]


def test_the_pixels_are_the_stores_own() -> None:
    first, second = SyntheticFaces(2, 2, seed=1), SyntheticFaces(2, 3, seed=2)
    found = CombinedStore([first, second]).images([9, 0, 4], 56).pixels
    assert np.array_equal(found[[1]], first.images([0], 56).pixels)
    assert np.array_equal(found[[0, 2]], second.images([5, 0], 56).pixels)


@pytest.mark.parametrize("merge", [False, True])
def test_weights_reach_the_right_images(merge: bool) -> None:
    store = CombinedStore(three(), merge_names=merge, weights=[2, 0, 0.5])
    epochs = store.weighted_epochs(seed=4)
    assert epochs.length == 12
    visited = np.bincount(store.identities.items[epochs.query_slots(np.arange(24))], minlength=10)
    assert visited.tolist() == [4] * 5 + [0] + [1] * 4


def test_one_source_is_itself() -> None:
    faces = SyntheticFaces(3, 2)
    store = CombinedStore([faces])
    assert store.identities.items.tolist() == faces.identities.items.tolist()
    assert store.weights == [1.0]


def test_what_cannot_be_combined() -> None:
    with pytest.raises(UserError, match="no sources"):
        CombinedStore([])
    with pytest.raises(UserError, match="2 sampling weights for 3 sources"):
        CombinedStore(three(), weights=[1, 2])
    with pytest.raises(UserError, match="1 names for 3 sources"):
        CombinedStore(three(), names=["a"])
    twins = Letters("twins", "ab")
    twins.known = ["same", "same"]
    with pytest.raises(UserError, match="twins: two identities are called 'same'"):
        CombinedStore([Letters("one", "ab"), twins], merge_names=True)
    assert len(CombinedStore([twins]).identities) == 2
