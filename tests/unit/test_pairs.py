"""Pair lists: LFW's file format found in a store, and generated pairs."""

import numpy as np
import pytest

from attfc.data.index import IdentityIndex
from attfc.errors import UserError
from attfc.evaluation.protocols.pair_lists import generate_pairs, read_pairs

PEOPLE = {"Ann_Lee": [1, 2, 4, 10], "Bo_Ek": [1, 2], "Cy_Ray": [1]}


class NamedStore:
    """As much of a Store as pair lists need: names, and files of chosen names."""

    name = "people"

    def __init__(self, files: dict[str, list[str]]) -> None:
        self.files = [(label, f"{name}/{file}") for label, (name, fs) in enumerate(files.items()) for file in fs]
        self.names = list(files)
        self.identities = IdentityIndex.from_labels(np.array([label for label, _ in self.files]))

    def __len__(self) -> int:
        return len(self.files)

    def where(self, position: int) -> str:
        return self.files[position][1]

    def identity_name(self, label: int) -> str:
        return self.names[label]


@pytest.fixture
def store() -> NamedStore:
    # Out of order on purpose: the number in the name counts, not the place.
    return NamedStore({name: [f"{name}_{i:04d}.jpg" for i in reversed(numbers)] for name, numbers in PEOPLE.items()})


def write(tmp_path, *lines: str, encoding: str = "utf-8"):
    path = tmp_path / "pairs.txt"
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def test_folds_and_both_kinds_of_lines(tmp_path, store) -> None:
    path = write(tmp_path, "2\t1", "Ann_Lee\t1\t10", "Ann_Lee\t4\tCy_Ray\t1", "Bo_Ek\t1\t2", "Bo_Ek\t2\tAnn_Lee\t2")
    found = read_pairs(path, store)
    names = [(store.where(a), store.where(b)) for a, b in zip(found.first, found.second, strict=True)]
    assert names == [
        ("Ann_Lee/Ann_Lee_0001.jpg", "Ann_Lee/Ann_Lee_0010.jpg"),
        ("Ann_Lee/Ann_Lee_0004.jpg", "Cy_Ray/Cy_Ray_0001.jpg"),
        ("Bo_Ek/Bo_Ek_0001.jpg", "Bo_Ek/Bo_Ek_0002.jpg"),
        ("Bo_Ek/Bo_Ek_0002.jpg", "Ann_Lee/Ann_Lee_0002.jpg"),
    ]
    assert found.same.tolist() == [True, False, True, False]
    assert found.fold.tolist() == [0, 0, 1, 1]
    assert (found.source, found.notes) == ("pairs.txt", ())


def test_list_without_folds_is_cut_into_folds_of_both_kinds(tmp_path, store) -> None:
    same = ["Ann_Lee\t1\t2", "Ann_Lee\t1\t4", "Bo_Ek\t1\t2"]
    different = ["Ann_Lee\t1\tBo_Ek\t1", "Ann_Lee\t2\tBo_Ek\t1", "Cy_Ray\t1\tBo_Ek\t1"]
    found = read_pairs(write(tmp_path, "3", *same, *different), store)
    assert found.fold.tolist() == [0, 1, 2, 0, 1, 2]
    assert "3 folds" in found.notes[0]
    assert read_pairs(write(tmp_path, "3", *same, *different), store, folds=2).fold.tolist() == [0, 0, 1, 0, 0, 1]


def test_spaces_in_names_and_spaces_between_fields(tmp_path) -> None:
    spaced = NamedStore({"Ann Lee": ["Ann Lee_0001.jpg", "Ann Lee_0002.jpg"], "Émile": ["Émile_0001.png"]})
    lines = ["Ann Lee\t1\t2"] * 2 + ["Émile\t1\tAnn Lee\t2"] * 2
    assert read_pairs(write(tmp_path, "2", *lines), spaced).second.tolist() == [1, 1, 1, 1]
    bare = NamedStore({"A": ["A_1.jpg", "A_2.jpg"], "B": ["B_1.jpg"]})
    assert read_pairs(write(tmp_path, "1 2", *["A 1 2"] * 2, *["A 1 B 1"] * 2), bare).first.tolist() == [0] * 4


def test_files_without_numbers_are_counted_in_the_order_of_their_names(tmp_path) -> None:
    store = NamedStore({"A": ["zoo.jpg", "art.jpg"], "B": ["x.jpg"]})
    found = read_pairs(write(tmp_path, "2", *["A\t1\t2"] * 2, *["A\t2\tB\t1"] * 2), store)
    assert (found.first.tolist(), found.second.tolist()) == ([1, 1, 0, 0], [0, 0, 2, 2])


OTHER = "Bo_Ek\t1\tCy_Ray\t1"


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (
            ["1\t1", "Ann_Lea\t1\t2", OTHER],
            r"pairs.txt line 2: nobody in people is named 'Ann_Lea'; did you mean 'Ann_Lee'",
        ),
        (
            ["1\t1", "Ann_Lee\t1\t3", OTHER],
            r"line 2: 'Ann_Lee' has no image 3 in people \(files numbered 1, 2, 4, 10\)",
        ),
        (["1\t1", "Ann_Lee\t1\t2", "", "Bo_Ek\t3\tCy_Ray\t1"], r"line 4: 'Bo_Ek' has no image 3"),
        (["1\t1", "Ann_Lee\t1\tx", OTHER], "line 2: 'x' is not an image number"),
        (["1\t1", "Ann_Lee\t2\t2", OTHER], "line 2: image 2 of 'Ann_Lee' is paired with itself"),
        (["1\t1", "Ann_Lee\t2", OTHER], "line 2: 2 fields"),
        (["1\t1", "Ann_Lee\t1\tAnn_Lee\t2", OTHER], "line 2: a non-mated pair names 'Ann_Lee' twice"),
        (["2\t1", "Ann_Lee\t1\t2", OTHER], "2 pairs, but line 1 announces 2 x 2 x 1 = 4"),
        (["name\timagenum1", "Ann_Lee\t1\t2"], "line 1: .* is not a header"),
        (["0\t1"], "line 1"),
        ([""], "line 1"),
        (["1", "Ann_Lee\t1\t2", OTHER], "1 mated pair is not enough for 2 folds"),
    ],
)
def test_faults_are_named_with_their_line(tmp_path, store, lines, text) -> None:
    with pytest.raises(UserError, match=text):
        read_pairs(write(tmp_path, *lines), store)


def long_list(store: NamedStore, tmp_path, *wrong: str):
    """A list of 60 genuine and 60 impostor pairs of 120 images, with some lines replaced."""
    lines = [f"P{i} x\t1\t2" for i in range(60)] + [f"P{i} x\t1\tP{(i + 1) % 60} x\t1" for i in range(60)]
    lines[: len(wrong)] = wrong
    return write(tmp_path, "60", *lines)


def test_missing_images_are_skipped_and_counted_up_to_the_limit(tmp_path) -> None:
    many = NamedStore({f"P{i} x": [f"P{i} x_0001.jpg", f"P{i} x_0002.jpg"] for i in range(60)})
    path = long_list(many, tmp_path, "P0 x\t1\t3", "Nobody\t1\t2")
    with pytest.raises(UserError) as refused:
        read_pairs(path, many)
    assert str(refused.value) == (
        f"{path} line 2: 'P0 x' has no image 3 in people (files numbered 1, 2): add P0 x_0003.jpg or remove the pair "
        "(3 of 121 images that the list names are missing, more than the limit of 0.01)"
    )
    found = read_pairs(path, many, broken_limit=0.03)
    assert (len(found), found.skipped, found.missing) == (118, 2, 3)
    assert found.same.tolist() == [True] * 58 + [False] * 60
    assert found.first.min() >= 0
    assert np.bincount(found.fold[found.same]).tolist() == [6, 6, 6, 6, 5, 6, 6, 6, 6, 5]
    assert found.notes[0] == (
        "2 of 120 pairs of pairs.txt were left out: 3 of their images are missing; the first is on line 2"
    )
    one = read_pairs(long_list(many, tmp_path, "P0 x\t1\t3"), many)  # 1 of 120 is within the default limit
    assert (one.skipped, one.missing) == (1, 1)
    with pytest.raises(
        UserError, match=r"line 2: 'P0 x' has no image 3 .*\(1 of 120 images that the list names are missing"
    ):
        read_pairs(path.with_name("pairs.txt"), many, broken_limit=0)


def test_marks_and_line_ends_of_windows_are_read(tmp_path, store) -> None:
    lines = ["2\t1", "Ann_Lee\t1\t10", "Ann_Lee\t4\tCy_Ray\t1", "Bo_Ek\t1\t2", "Bo_Ek\t2\tAnn_Lee\t2"]
    plain = read_pairs(write(tmp_path, *lines), store)
    path = tmp_path / "pairs.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    marked = read_pairs(path, store)
    assert (marked.first.tolist(), marked.second.tolist()) == (plain.first.tolist(), plain.second.tolist())
    path.write_bytes("\r\n".join(lines).encode("utf-16"))
    with pytest.raises(UserError, match=r"pairs.txt: not UTF-8 text \(byte 0\)"):
        read_pairs(path, store)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (
            ["1\t1", "faces\\Ann_Lee\t1\t2", OTHER],
            r"line 2: 'faces\\\\Ann_Lee' is a path: write the identity's name and the",
        ),
        (["1\t1", "a/Ann_Lee\t1\t2", OTHER], r"line 2: 'a/Ann_Lee' is a path"),
        (
            ["name,imagenum1,imagenum2,", "Ann_Lee,1,2,"],
            r"line 1: 'name,imagenum1,imagenum2,' is not a header: write '<folds>",
        ),
        (["Ann_Lee\t1\t2", OTHER], r"line 1: 'Ann_Lee\\t1\\t2' is not a header"),
    ],
)
def test_other_forms_of_lists_are_refused_by_name(tmp_path, store, lines, text) -> None:
    with pytest.raises(UserError, match=text):
        read_pairs(write(tmp_path, *lines), store)


def test_not_text_and_not_there(tmp_path, store) -> None:
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_pairs(write(tmp_path, "1\t1", "J\xf6rg\t1\t2", encoding="latin-1"), store)
    with pytest.raises(FileNotFoundError):
        read_pairs(tmp_path / "none.txt", store)


def index_of(*counts: int) -> IdentityIndex:
    return IdentityIndex.from_labels(np.repeat(np.arange(len(counts)), counts), identities=len(counts))


def test_generated_pairs_are_deterministic_balanced_and_distinct() -> None:
    index = index_of(*([5] * 60), *([1] * 300))
    first, again, other = generate_pairs(index, 400, 3), generate_pairs(index, 400, 3), generate_pairs(index, 400, 4)
    np.testing.assert_array_equal(np.stack([first.first, first.second]), np.stack([again.first, again.second]))
    assert (first.first != other.first).any()
    labels = index.labels()
    np.testing.assert_array_equal(labels[first.first] == labels[first.second], first.same)
    assert (len(first), int(first.same.sum())) == (400, 200)
    assert len(np.unique(np.sort(np.stack([first.first, first.second], 1), axis=1), axis=0)) == 400
    assert set(np.bincount(labels[first.first[first.same]], minlength=360)[:60]) == {3, 4}  # 200 over 60 identities
    assert first.fold.tolist() == sorted(first.fold.tolist())
    for fold in range(10):
        assert int(first.same[first.fold == fold].sum()) == 20
    assert (first.source, first.notes) == ("generated (seed 3)", ())


def test_large_identities_give_every_pair_the_same_chance() -> None:
    # 4,000 images make 8 million pairs: the code -> (earlier, later) map must not lose any to rounding.
    found = generate_pairs(index_of(4000, 4000), 4000, 0)
    spread = np.abs(found.first - found.second)[found.same]
    assert (spread >= 1).all()
    assert spread.max() > 3500
    assert abs(spread.mean() - 4000 / 3) < 100


def test_small_stores_give_all_they_have_and_say_so() -> None:
    found = generate_pairs(index_of(3, 1, 1), 6000)
    assert (len(found), len(np.unique(found.fold))) == (6, 3)
    assert "6 pairs, not 6,000: the people have only 3 different mated pairs" in found.notes[0]
    assert "non-mated" in generate_pairs(index_of(9, 1), 6000).notes[0]


@pytest.mark.parametrize(
    ("counts", "pairs", "text"),
    [
        ((9,), 10, "1 identity has images"),
        ((9, 0), 10, "1 identity has images"),
        ((1, 1, 1), 10, "none of 3 identities has 2 images"),
        ((2, 1), 10, "not enough for 2 folds"),
        ((9, 9), 3, "pairs=3"),
    ],
)
def test_stores_that_allow_no_pairs_are_refused(counts, pairs, text) -> None:
    with pytest.raises(UserError, match=text):
        generate_pairs(index_of(*counts), pairs)
