"""Tables of image attributes, and the slices they give: against counting pair by pair, and every way in which a table can be wrong."""

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attfc.data import SyntheticFaces
from attfc.data.attributes import read_attributes
from attfc.errors import UserError
from attfc.evaluation.embed import embed_store
from attfc.evaluation.protocols.all_pairs import evaluate_all_pairs
from attfc.evaluation.protocols.held_out import evaluate_store
from attfc.evaluation.results import EvaluationResult, add_intervals, compare_results, read_result, save_result


class Flat(nn.Module):
    """The pixels through a fixed matrix."""

    image_size, embedding_size = 8, 8

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(8 * 8 * 3, 8, bias=False)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(seed))

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


STORE = SyntheticFaces(12, 6, seed=3)
CAMERAS = np.array(["phone", "gate", ""])[np.arange(72) % 7 % 3]


def table(path: Path, header: str = "image\tcamera", rows: list[str] | None = None) -> Path:
    listed = [f"{STORE.where(image)}\t{camera}" for image, camera in enumerate(CAMERAS)] if rows is None else rows
    path.write_text("\n".join([header, *listed]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("protocol", ["held-out", "all-pairs"])
def test_a_slice_counts_the_pairs_of_which_both_images_have_the_value(tmp_path, protocol: str) -> None:
    attributes = read_attributes(table(tmp_path / "table.tsv"), STORE)
    assert attributes.columns["camera"].tolist() == CAMERAS.tolist()
    fars = (0.1, 0.01)
    if protocol == "held-out":
        result: Any = evaluate_store(Flat(), STORE, attributes=attributes, fars=fars, spare=2)
        everyone = result.all_pairs
    else:
        result = evaluate_all_pairs(Flat(), STORE, attributes=attributes, fars=fars, spare=2)
        everyone = result.everyone
    vectors = embed_store(Flat(), STORE).vectors.astype(np.float64)
    labels, slices = np.arange(72) // 6, result.figures()["slices"]["camera"]
    assert set(slices) == {"phone", "gate"}
    for value, found in slices.items():
        genuine, impostor = [], []
        for one in range(72):
            for other in range(one):
                if CAMERAS[one] == CAMERAS[other] == value:
                    scores = genuine if labels[one] == labels[other] else impostor
                    scores.append(float(vectors[one] @ vectors[other]))
        assert (found["genuine_pairs"], found["impostor_pairs"]) == (len(genuine), len(impostor))
        assert found["identities"] == len(
            {label for label, camera in zip(labels, CAMERAS, strict=True) if camera == value}
        )
        for far in fars:
            own = sorted(impostor)[-1 - int(far * len(impostor))]
            assert found["tar_at_far"][f"{far:g}"] == pytest.approx(np.mean(np.array(genuine) > own + 1e-7))
            threshold = everyone.threshold_at_far[far]
            common = found["at_common_threshold"][f"{far:g}"]
            assert common["tar"] == pytest.approx(np.mean(np.array(genuine) > threshold + 1e-7))
            assert common["far"] == pytest.approx(np.mean(np.array(impostor) > threshold + 1e-7))
    assert "camera: group phone rests on 12 people: too few to say how the model does on other people" in str(
        result.notes
    )
    assert "images are in no group" in str(result.notes)


def test_slices_have_intervals_are_kept_and_are_compared(tmp_path) -> None:
    attributes = read_attributes(table(tmp_path / "table.tsv"), STORE)
    results = []
    for seed in (0, 1):
        found = evaluate_all_pairs(Flat(seed), STORE, attributes=attributes, fars=(0.1,), spare=2)
        result = EvaluationResult(f"model {seed}", "all-pairs", ("faces",), found.figures(), found.samples())
        save_result(tmp_path / f"{seed}.npz", result)
        intervals, _ = add_intervals(result, 40, 0.9, 0)
        place = ("slices", "camera", "gate", "at_common_threshold", "0.1", "tar")
        value = result.figures["slices"]["camera"]["gate"]["at_common_threshold"]["0.1"]["tar"]
        assert intervals[place].value == pytest.approx(value)
        assert intervals[place].low <= value <= intervals[place].high  # type: ignore[operator]
        assert intervals["slices", "camera", "gate", "tar_at_far", "0.1"].low is not None
        results.append(read_result(tmp_path / f"{seed}.npz"))
    compared = {difference.path: difference for difference in compare_results(*results, 40)}
    difference = compared["slices", "camera", "phone", "tar_at_far", "0.1"].difference
    one, other = (each.figures["slices"]["camera"]["phone"]["tar_at_far"]["0.1"] for each in results)
    assert difference.value == pytest.approx(one - other)


def test_a_value_with_pairs_of_one_kind_is_left_out_and_said(tmp_path) -> None:
    rows = [f"{STORE.where(image)}\t{'alone' if image < 6 else 'many'}" for image in range(72)]
    attributes = read_attributes(table(tmp_path / "table.tsv", rows=rows), STORE)
    found = evaluate_store(Flat(), STORE, attributes=attributes)
    assert set(found.figures()["slices"]["camera"]) == {"many"}
    assert any(note.startswith("camera: group alone is left out: 6 images of 1 identities") for note in found.notes)


def test_numbers_and_dates_are_cut_into_bands(tmp_path) -> None:
    rows = [f"{STORE.where(n)},{n},{2000 + n % 3}-01-31,{n % 2},place {n % 30},{n // 8}" for n in range(72)]
    attributes = read_attributes(table(tmp_path / "t.csv", "path,age,date,glasses,place,visits", rows), STORE)
    columns = {name: np.unique(values).tolist() for name, values in attributes.columns.items()}
    assert sorted(columns["age"], key=lambda text: float(text.split()[0])) == [
        "0 to 17",
        "18 to 35",
        "36 to 53",
        "54 to 71",
    ]
    assert attributes.columns["age"][20] == "18 to 35"
    assert columns["visits"] == ["0 to 1", "2 to 3", "4 to 5", "6 to 8"]
    assert columns["date"] == ["2000", "2001", "2002"]
    assert columns["glasses"] == ["0", "1"]
    assert len(columns["place"]) == 21  # and "" for the others
    assert attributes.notes == ("place has 30 values: only those 20 with most images are slices",)


def test_an_image_may_be_named_by_a_longer_or_a_shorter_path(tmp_path) -> None:
    rows = [f"/data/faces/{STORE.where(0)},a", "sample 1,b", "identity 1/sample 1,c", r"C:\faces\identity 2\sample 0,d"]
    with pytest.raises(UserError, match=r"line 3: 'sample 1' may be identity 0/sample 1 or identity .*/sample 1"):
        read_attributes(table(tmp_path / "t.csv", "path,camera", [rows[0], rows[1]]), STORE)
    found = read_attributes(table(tmp_path / "t.csv", '"path","camera"', ["# a remark", rows[0], *rows[2:]]), STORE)
    assert {place: value for place, value in enumerate(found.columns["camera"].tolist()) if value} == {
        0: "a",
        7: "c",
        12: "d",
    }
    assert found.notes == ("t.csv: 69 of 72 images are not in it",)


class Named:
    """Images that have names alone."""

    name = "named"

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def where(self, position: int) -> str:
        return self.names[position]


def test_people_whose_files_have_equal_names_take_no_longer(tmp_path) -> None:
    # Each row beside each image of its file's name would be 400 million comparisons.
    faces = Named([f"/data/person {n}/0.jpg" for n in range(20_000)])
    rows = [f"person {n}/0.jpg,{n % 3}" for n in range(20_000)]
    found = read_attributes(table(tmp_path / "t.csv", "path,camera", rows), faces)
    assert found.columns["camera"].tolist() == [str(n % 3) for n in range(20_000)]
    assert found.notes == ()


def test_without_a_table_nothing_is_known() -> None:
    assert read_attributes(None, STORE) is None


def test_a_name_is_found_however_its_letters_are_composed(tmp_path) -> None:
    faces = Named([f"/Bilder/Zoë {n}.jpg" for n in range(3)])
    rows = [unicodedata.normalize("NFD", f"Zoë {n}.jpg,{n}") for n in range(3)]
    found = read_attributes(table(tmp_path / "t.csv", "path,camera", rows), faces)
    assert found.columns["camera"].tolist() == ["0", "1", "2"]


def test_what_is_not_a_number_is_not_known_and_long_texts_are_no_slices(tmp_path) -> None:
    rows = [
        f"{STORE.where(n)},{'NaN' if n % 9 == 0 else n},{'nan' if n < 3 else 'no'},{'x' * n * 10}" for n in range(72)
    ]
    attributes = read_attributes(table(tmp_path / "t.csv", "path,age,glasses,remark", rows), STORE)
    assert np.unique(attributes.columns["age"]).tolist() == ["", "1 to 17", "19 to 35", "37 to 53", "55 to 71"]
    assert np.unique(attributes.columns["glasses"]).tolist() == ["", "no"]
    assert attributes.notes == ("remark has 61 values of more than 100 characters: these are not slices",)
    assert attributes.columns["remark"].itemsize <= 400


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("image", ["x"], "line 1: 'image' does not name the columns: write image<TAB>camera<TAB>..., each once"),
        ("image,age,age", ["x,1,2"], "line 1: 'image,age,age' does not name the columns"),
        ("image,age", ["identity 0/sample 0,1,2"], "line 2: 3 fields, but 2 columns"),
        ("image,age", ["elsewhere.jpg,1"], "names no image of .*: it has 'elsewhere.jpg', the store has 'identity 0/sample 0'"),
        ("image,age", [], "names no image of .*: it has nothing, the store"),
        ("image,age", ["identity 0/sample 0,1", "a/identity 0/sample 0,2"], "lines 2 and 3 both name identity 0/sample 0"),
        ("image,age", ["identity 0/sample 0,1\ridentity 0/sample 1,1"], "line 2 has a CR within it: end lines with LF or CR LF"),
        ("", [], "is empty: write image<TAB>camera"),
        ("identity 0/sample 0,gate", ["identity 1/sample 0,phone"], "first line names an image, 'identity 0/sample 0', where"),
    ],
)  # fmt: skip
def test_a_table_that_is_wrong_is_refused_in_one_line(tmp_path, header: str, rows: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_attributes(table(tmp_path / "t.csv", header, rows), STORE)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_no_text_or_not_there_is_refused(tmp_path) -> None:
    (tmp_path / "t.csv").write_bytes(b"image,age\nidentity \xff,3\n")
    with pytest.raises(UserError, match=r"t.csv line 2 is not UTF-8 text"):
        read_attributes(tmp_path / "t.csv", STORE)
    with pytest.raises(UserError, match=r"none.csv: attributes cannot be read \(No such file or directory\)"):
        read_attributes(tmp_path / "none.csv", STORE)
