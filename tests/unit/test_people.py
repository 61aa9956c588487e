"""The hashes of the people in a checkpoint: equal for the same people however they are stored, and the first difference is named."""

import json

import numpy as np
import pytest

from attfc.data import SyntheticFaces, open_store
from attfc.data.convert import convert_store
from attfc.data.people.identity_names import names_of
from attfc.data.stores.combined import CombinedStore
from attfc.data.stores.edits import EditedStore, Edits
from attfc.errors import UserError
from attfc.training.people import first_difference, people_of, saved_people


def folder_of(root, names, images=2):
    """A folder with an identity per name; the images need not be any."""
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(images):
            (root / name / f"{number}.jpg").write_bytes(b"x")
    return open_store(root, cache=root.parent / f"{root.name}-index")


def names_one_by_one(store):
    return [store.identity_name(label).encode() for label in range(len(store.identities))]


def all_names(store):
    found = names_of(store, np.arange(len(store.identities)))
    return [found[number] for number in range(len(found))]


def test_names_of_many_are_the_names_one_by_one(tmp_path):
    folder = folder_of(tmp_path / "faces", [f"p{number}" for number in range(9)])
    listed = tmp_path / "faces.txt"
    listed.write_text("".join(f"faces/p{number}/0.jpg person{number}\n" for number in (4, 2, 7)))
    numbered = tmp_path / "numbers.txt"
    numbered.write_text("".join(f"faces/p{number}/0.jpg {number}\n" for number in (4, 2, 7)))
    lists = [open_store(path, cache=tmp_path / path.stem) for path in (listed, numbered)]
    # One leaves (identity 3), one is made (label 11), the others stay.
    edits = Edits(len(folder), 9, np.array([6, 7, 8]), np.array([-1, -1, 11]))
    edited = EditedStore(folder, edits)
    joined = CombinedStore([edited, lists[0]])
    merged = CombinedStore([lists[0], folder, edited], merge_names=True)
    for store in (folder, *lists, edited, joined, merged):
        assert all_names(store) == names_one_by_one(store), store
        backwards = names_of(store, np.arange(len(store.identities))[::-1])
        assert [backwards[number] for number in range(len(backwards))] == names_one_by_one(store)[::-1]
    assert b"new-11" in all_names(edited)


def test_the_same_people_in_another_form_have_the_same_hashes(tmp_path):
    source = tmp_path / "faces"
    faces = SyntheticFaces(20, 2, seed=1)
    for position in range(len(faces)):
        encoded, label = faces.read(position)
        (source / f"Zoë {label}").mkdir(parents=True, exist_ok=True)
        (source / f"Zoë {label}" / f"{position}.jpg").write_bytes(encoded)
    folder = open_store(source)
    for kind in ("packed", "rec"):
        convert_store(folder, tmp_path / kind, kind=kind)
        assert people_of(open_store(tmp_path / kind)) == people_of(folder)


def test_hashes_hold_no_name_and_at_least_16_names_each():
    for identities, blocks in ((1, 1), (20, 1), (32, 2), (5_000, 64)):
        people = people_of(SyntheticFaces(identities, 2))
        assert len(people["names"]) == blocks
        assert len(json.dumps(people)) < 2_048
        assert "identity" not in json.dumps(people["names"])


def test_the_first_difference_is_named(tmp_path):
    names = [f"person {number:03d}" for number in range(64)]
    before = people_of(folder_of(tmp_path / "before", names))
    grown = folder_of(tmp_path / "grown", [*names, "somebody"])
    assert first_difference(before, grown, people_of(grown)) == "64 identities in the saved run, now 65"
    fuller = folder_of(tmp_path / "fuller", names, images=3)
    assert first_difference(before, fuller, people_of(fuller)) == "128 images in the saved run, now 192"
    names[40] = "person 020a"  # sorted between 20 and 21: labels 21 to 40 are other people now
    renamed = folder_of(tmp_path / "renamed", names)
    assert first_difference(before, renamed, people_of(renamed)) == (
        "the counts are equal, but the names of the labels 16 to 31 (now 'person 016' to 'person 030') or their order differ"
    )
    one = people_of(CombinedStore([SyntheticFaces(1, 3), SyntheticFaces(1, 1)]))
    other = CombinedStore([SyntheticFaces(1, 1), SyntheticFaces(1, 3)])
    assert first_difference(one, other, people_of(other)) == (
        "identities and their names are equal, but not how many images each of them has"
    )


def test_where_a_name_ends_counts(tmp_path):
    names = [f"{number:02d}" for number in range(16)]
    joined = people_of(folder_of(tmp_path / "one", [*names, "aab", "c"]))
    split = people_of(folder_of(tmp_path / "other", [*names, "aa", "bc"]))
    assert joined["identities"] == split["identities"]
    assert joined["names"] != split["names"]


def test_synthetic_people_of_another_seed_are_others():
    seeds = [SyntheticFaces(40, 2, seed=seed) for seed in (0, 1)]
    assert "names of the labels 0 to 19" in str(first_difference(people_of(seeds[0]), seeds[1], people_of(seeds[1])))
    assert first_difference(people_of(seeds[0]), seeds[0], people_of(seeds[0])) is None
    later = SyntheticFaces(40, 2, seed=0, first_identity=1)
    assert first_difference(people_of(seeds[0]), later, people_of(later)) is not None


def test_what_an_earlier_version_or_a_stranger_wrote(tmp_path):
    def saved(text):
        (tmp_path / "state.json").write_text(text)
        return saved_people(tmp_path)

    store = SyntheticFaces(40, 2)
    now = people_of(store)
    assert saved('{"loader": {"images": 80}}') == {"images": 80}
    assert first_difference({"images": 80}, store, now) is None
    assert first_difference({"images": 81}, store, now) == "81 images in the saved run, now 80"
    for odd in ('{"people": 3}', "[]", "{}", '{"loader": {"images": "x"}}', '{"loader": 3}'):
        assert saved(odd) == {}
    for field in ("identities", "images", "names", "images_per_identity"):
        for value in (None, 3, "x" * 100, [], {}, ["a"] * 999):
            assert first_difference({**now, field: value}, store, now) is not None
    with pytest.raises(UserError, match=r"state\.json is damaged"):
        saved("[" * 100_000)
