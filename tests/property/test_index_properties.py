"""No identity lost, no image doubled, whatever the labels."""

import tempfile

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from attfc.data.index import IdentityIndex

label_lists = st.lists(st.integers(0, 12), max_size=60)


@settings(deadline=None)
@given(label_lists)
def test_every_image_is_in_its_identity_once(raw: list[int]) -> None:
    labels = np.unique(np.array(raw, np.int64), return_inverse=True)[1]
    index = IdentityIndex.from_labels(labels)
    expected: dict[int, list[int]] = {}
    for position, label in enumerate(labels.tolist()):
        expected.setdefault(label, []).append(position)
    assert {label: index.of(label).tolist() for label in range(len(index))} == expected
    assert index.labels().tolist() == labels.tolist()
    assert [int(index.labels_of_slots(slot)) for slot in range(index.images)] == sorted(labels.tolist())


@settings(deadline=None)
@given(label_lists, st.integers(0, 5))
def test_identities_without_images_keep_their_number(labels: list[int], spare: int) -> None:
    identities = max(labels, default=-1) + 1 + spare
    index = IdentityIndex.from_labels(np.array(labels, np.int64), identities=identities)
    assert len(index) == identities
    assert index.counts().tolist() == [labels.count(label) for label in range(identities)]
    assert index.labels().tolist() == labels
    slots = np.arange(index.images)
    assert index.labels_of_slots(slots).tolist() == sorted(labels)


@settings(deadline=None)
@given(label_lists)
def test_save_and_open_change_nothing(raw: list[int]) -> None:
    index = IdentityIndex.from_labels(np.array(raw, np.int64), identities=13)
    with tempfile.TemporaryDirectory() as folder:
        index.save(folder)
        opened = IdentityIndex.open(folder, consecutive=index.consecutive)
        assert opened.offsets.tolist() == index.offsets.tolist()
        assert opened.items.tolist() == index.items.tolist()
