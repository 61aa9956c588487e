"""Who is kept aside, and the two stores that a set is split into."""

# ruff: noqa: S301  (pickles made here, a line above)
import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from attfc.data.convert import convert_store
from attfc.data.index import IdentityIndex
from attfc.data.people.kept_aside import kept_aside_labels, split
from attfc.data.stores.combined import CombinedStore
from attfc.data.stores.edits import EditedStore, Edits
from attfc.data.stores.opening import open_store
from attfc.data.stores.store import EncodedStore, Store
from attfc.data.stores.synthetic import SyntheticFaces


class Named(EncodedStore):
    """`counts[i]` images of a person called `names[i]`; the bytes say whose and which."""

    name = "named"

    def __init__(self, names: Sequence[str], counts: Sequence[int]) -> None:
        self.names = list(names)
        self.identities = IdentityIndex.from_labels(np.repeat(np.arange(len(counts)), counts), identities=len(counts))

    def __len__(self) -> int:
        return self.identities.images

    def read(self, position: int) -> tuple[bytes, int]:
        label = int(self.labels([position])[0])
        return f"{self.names[label]}/{position - int(self.identities.offsets[label])}".encode(), label

    def labels(self, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        return self.identities.labels()[np.asarray(positions)]

    def where(self, position: int) -> str:
        return self.read(position)[0].decode()

    def identity_name(self, label: int) -> str:
        return self.names[label]


def many(people: int, images: int = 3) -> Named:
    return Named([f"person {number}" for number in range(people)], [images] * people)


def contents(store: Store) -> list[tuple[bytes, str]]:
    """What each image is and whose; both ways of asking for labels agree."""
    everything = list(range(len(store)))
    labels = store.labels(everything)
    assert store.identities.labels().tolist() == labels.tolist()
    assert len(store.identities) == len(set(labels.tolist())) == int(labels.max()) + 1
    assert [store.read(position)[1] for position in everything] == labels.tolist()
    return [
        (encoded, store.identity_name(label))
        for encoded, label in zip(store.read_many(everything), labels.tolist(), strict=True)
    ]


@pytest.mark.parametrize(
    ("people", "expected"),
    [(19, 0), (20, 4), (40, 8), (80, 8), (100, 10), (105, 10), (115, 12), (205, 20), (3000, 300), (12_000, 1000)],
)
def test_how_many_people_are_kept_aside(people: int, expected: int) -> None:
    assert len(kept_aside_labels(many(people), 0.1)) == expected  # 20 people: 8 would be two fifths of the images


def test_the_smallest_hashes_are_chosen_among_people_of_two_or_more_images() -> None:
    counts = [1 + number % 3 for number in range(90)]
    store = Named([f"person {number}" for number in range(90)], counts)
    by_hash = sorted(range(90), key=lambda label: hashlib.sha256(f"person {label}".encode()).digest())
    expected = [label for label in by_hash if counts[label] > 1][:12]
    chosen = kept_aside_labels(store, 0.2)
    assert chosen.dtype == np.int64
    assert chosen.tolist() == sorted(expected)


def test_nobody_is_kept_aside_where_it_is_not_asked_or_too_few_remain() -> None:
    assert not len(kept_aside_labels(many(100), 0.0))
    store = many(19)
    assert split(store, 0.1) == (store, None)


@pytest.mark.parametrize("place", [0, 1, 5])
@pytest.mark.parametrize("images", [1000, 40, 20])
def test_whoever_has_very_many_images_is_trained_on_and_others_are_kept_aside(place: int, images: int) -> None:
    names = [f"person {number}" for number in range(30)]
    by_hash = sorted(range(30), key=lambda label: hashlib.sha256(names[label].encode()).digest())
    counts = [images if label == by_hash[place] else 2 for label in range(30)]
    chosen = kept_aside_labels(Named(names, counts), 0.1).tolist()
    assert by_hash[place] not in chosen
    expected = [label for label in by_hash if label != by_hash[place]][: 8 if images > 20 else 7]
    assert chosen == sorted(expected)  # of 78 images 8 people would be more than a fifth


def test_at_least_two_people_are_kept_aside_however_uneven_they_are() -> None:
    counts = [100] * 9 + [2] * 11
    for seed in range(30):
        store = Named([f"{seed}, {number}" for number in range(20)], counts)
        chosen = kept_aside_labels(store, 0.1)
        assert len(chosen) >= 2
        assert store.identities.counts()[chosen].sum() * 5 <= len(store)


def test_equal_names_are_taken_by_label() -> None:
    assert kept_aside_labels(Named(["one"] * 50, [2] * 50), 0.16).tolist() == list(range(8))


def parts_of(store: Store) -> tuple[Store, Store]:
    training, kept = split(store, 0.1)
    assert kept is not None
    return training, kept


def test_two_stores_hold_everything_once_and_nobody_twice() -> None:
    store = many(50)
    training, kept = parts_of(store)
    assert (training.name, kept.name) == ("named", "named, kept aside")
    assert (len(training.identities), len(kept.identities)) == (42, 8)
    one, two = contents(training), contents(kept)
    assert sorted(one + two) == sorted(contents(store))
    assert not {name for _, name in one} & {name for _, name in two}
    assert training.where(5) == one[5][0].decode()
    assert kept.where(5) == two[5][0].decode()


def test_workers_get_neither_the_index_nor_a_row_for_each_image() -> None:
    store = SyntheticFaces(identities=20_000, images_per_identity=5)
    for part in parts_of(store):
        whole = part.identities
        pickled = pickle.dumps(part)
        assert len(pickled) < 250_000  # a tenth of the people: 8 bytes per image left out or left, and 8 a person
        again = pickle.loads(pickled)
        assert again.identities.labels().tolist() == whole.labels().tolist()


def test_synthetic_faces_are_decoded_where_they_are_asked_for() -> None:
    store = SyntheticFaces(identities=40, images_per_identity=2)
    training, kept = parts_of(store)
    out = np.zeros((2, 56, 56, 3), np.uint8)
    position = next(p for p in range(len(store)) if store.where(p) == kept.where(3))
    assert kept.images([3, 0], 56, out).pixels is out
    assert np.array_equal(out[0], store.images([position], 56).pixels[0])
    assert kept.identity_name(1) not in {training.identity_name(label) for label in range(len(training.identities))}


def test_an_edited_store_and_a_converted_one_are_split_alike(tmp_path: Path) -> None:
    faces = SyntheticFaces(identities=45, images_per_identity=(2, 5))
    edited = EditedStore(faces, Edits(len(faces), 45, np.array([0, 1, 2]), np.array([-1, -1, -1])))
    convert_store(edited, tmp_path / "packed")
    for one, two in zip(parts_of(edited), parts_of(open_store(tmp_path / "packed")), strict=True):
        assert contents(one) == contents(two)


@pytest.mark.parametrize("merge_names", [False, True])
def test_sources_keep_their_weights(merge_names: bool) -> None:
    first, second = many(40), Named([f"person {number}" for number in range(20, 70)], [2] * 50)
    store = CombinedStore([first, second], weights=[1, 4], merge_names=merge_names, names=["a", "b"])
    training, kept = parts_of(store)
    assert isinstance(training, CombinedStore)
    assert (training.weights, training.names, training.name) == ([1.0, 4.0], ["a", "b"], "a + b")
    one, two = contents(training), contents(kept)
    assert sorted(one + two) == sorted(contents(store))
    if merge_names:
        assert not {name for _, name in one} & {name for _, name in two}
    # The same order as leaving the people out of the joined store.
    chosen = set(kept_aside_labels(store, 0.1).tolist())
    left = [p for p, label in enumerate(store.labels(range(len(store))).tolist()) if label not in chosen]
    assert [training.where(p) for p in range(len(training))] == [store.where(p) for p in left]


def test_a_source_of_people_who_are_all_kept_aside_vanishes() -> None:
    names = [f"person {number}" for number in range(60)]
    first = min(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    others = [name for name in names if name != first]
    store = CombinedStore([Named(others, [2] * 59), Named([first], [2])], weights=[1, 2], names=["all", "one"])
    training, _ = parts_of(store)
    assert isinstance(training, CombinedStore)
    assert (training.names, training.weights) == (["all"], [1.0])
