"""Whether evaluation people were trained on: names, seeds, bytes, and what may be said when nothing can be compared."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from attfc.config import load_config
from attfc.data import CombinedStore, EditedStore, Edits, SyntheticFaces, convert_store, open_store
from attfc.data.people.kept_aside import split
from attfc.evaluation import unseen
from attfc.evaluation.unseen import SharedPeople, compare_with_training, not_compared
from attfc.run.trained_people import compare_with_run
from attfc.training.run_folder import run_of


def folder(root: Path, people: dict[str, list[bytes]]) -> str:
    for name, images in people.items():
        (root / name).mkdir(parents=True)
        for number, content in enumerate(images):
            (root / name / f"{number}.jpg").write_bytes(content)
    return str(root)


def photos(person: str, images: int = 3) -> list[bytes]:
    return [f"{person} {number}".encode() * (3 + number) for number in range(images)]


def compare(training: str, evaluation: str) -> SharedPeople:
    return compare_with_training(open_store(training), open_store(evaluation))


def test_sets_without_anybody_in_common_are_unseen(tmp_path) -> None:
    training = folder(tmp_path / "a", {name: photos(name) for name in ("Ann Lee", "Bo Ek")})
    evaluation = folder(tmp_path / "b", {name: photos(name) for name in ("Cy Ray", "Di Fu")})
    found = compare(training, evaluation)
    assert (found.shared_identities, found.shared_names, found.shared_images) == (0, 0, 0)
    assert (found.heading, found.warning, found.screen_note) == ("on unseen identities", None, None)
    assert found.checked == "compared: identity names, the bytes of all 6 evaluation images with all training images"


def test_the_same_folder_for_both(tmp_path) -> None:
    root = folder(tmp_path / "faces", {name: photos(name) for name in ("Ann Lee", "17", "18")})
    (tmp_path / "link").symlink_to(root)
    found = compare(root, str(tmp_path / "link"))
    assert found.same_data
    assert found.heading == "on identities that were trained on"
    assert found.warning == (
        "training and evaluation read the same data: all 3 evaluation identities were trained on, so the metrics say nothing about "
        "unseen people"
    )


def test_names_are_compared_without_case_spaces_and_underscores(tmp_path) -> None:
    training = folder(tmp_path / "a", {name: photos(name) for name in ("Ann_Lee", "Bo Ek", "Cy")})
    evaluation = folder(tmp_path / "b", {name: photos("other " + name) for name in ("ann lee", "Di")})
    found = compare(training, evaluation)
    assert (found.shared_identities, found.shared_names, found.shared_images, found.same_data) == (1, 1, 0, False)
    assert found.heading == "on identities, some of which were trained on"
    assert found.warning == (
        "1 of 2 evaluation identities were trained on (1 by name): the metrics are not those of unseen people"
    )
    assert found.screen_note == f"{found.warning}; for example ann lee"
    assert "ann" not in json.dumps(found.to_dict()).lower()  # the file may travel


def test_copies_under_other_names_are_found_by_their_bytes(tmp_path) -> None:
    training = folder(tmp_path / "a", {"1": photos("x"), "2": photos("y")})
    evaluation = folder(tmp_path / "b", {"1": photos("new"), "2": [*photos("new too"), photos("x")[1]]})
    found = compare(training, evaluation)
    assert (found.shared_identities, found.shared_names, found.shared_images) == (1, None, 1)
    assert "(1 image equal byte for byte)" in str(found.warning)
    assert found.checked == (
        "compared: the bytes of all 7 evaluation images with all training images; "
        "not compared: identity names (mere numbers prove nothing in other data)"
    )
    (tmp_path / "b" / "1" / "1.jpg").unlink()
    (tmp_path / "b" / "1" / "1.jpg").write_bytes(b"")  # an image that holds nothing equals none
    assert compare(training, evaluation).shared_images == 1


@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_a_file_under_several_people_of_one_set_makes_nobody_seen(tmp_path, where) -> None:
    blank = b"no picture available"
    several, one = {name: [*photos(name), blank] for name in "12"}, {"3": [*photos("3"), blank], "4": photos("1")[:1]}
    training, evaluation = (several, one) if where == "training" else (one, several)
    found = compare(folder(tmp_path / "a", training), folder(tmp_path / "b", evaluation))
    assert (found.shared_identities, found.shared_images) == (1, 1)  # the true copy
    root = folder(tmp_path / "c", {"9": [blank]})
    twice = CombinedStore([open_store(root), open_store(root)])
    seen = compare_with_training(twice, open_store(folder(tmp_path / "d", {"8": [blank]})))
    assert (
        seen.shared_identities == 1
    )  # one person of a set that is read twice, as a run and the run it started from do


@pytest.mark.parametrize("kind", ["packed", "records", "list"])
def test_every_kind_of_store_is_compared_by_its_bytes(tmp_path, kind: str, monkeypatch) -> None:
    faces = SyntheticFaces(6, 3, seed=3)
    names = [faces.identity_name(label).replace("identity", "face of") + " x" for label in range(6)]
    root = folder(
        tmp_path / "a", {name: [faces.read(3 * label + i)[0] for i in range(3)] for label, name in enumerate(names)}
    )
    store = open_store(root)
    if kind == "packed":
        convert_store(store, tmp_path / "p")
        path = str(tmp_path / "p")
    elif kind == "records":
        convert_store(store, tmp_path / "r", kind="rec")
        path = str(tmp_path / "r")
    else:
        path = str(tmp_path / "train.lst")
        lines = [f"a/{name}/{i}.jpg\t{label}" for label, name in enumerate(names) for i in range(3)]
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    evaluation = folder(tmp_path / "b", {"Zed": photos("zed"), "Copy": [faces.read(7)[0], faces.read(16)[0]]})
    for limit in (200_000, 5):  # read by byte length in either case; above the limit no more than it
        monkeypatch.setattr(unseen, "_ALL_IMAGES", limit)
        found = compare(path, evaluation)
        assert (found.shared_identities, found.shared_images, found.checked_images) == (1, 2, 5)
    assert found.checked.endswith(
        "evaluation images with the training images of equal byte length"
        + ("; not compared: identity names (mere numbers prove nothing in other data)" if kind == "list" else "")
    )


def test_above_the_limit_some_images_are_compared_the_rarest_lengths_first(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(unseen, "_ALL_IMAGES", 10)
    monkeypatch.setattr(unseen, "_SOME_IMAGES", 8)
    common = [bytes([number]) * 50 for number in range(20)]
    training = folder(tmp_path / "a", {"one": common, "two": [b"rare" * 5]})
    evaluation = folder(tmp_path / "b", {"three": common[:1], "four": [b"rare" * 5], "five": photos("five")})
    found = compare(training, evaluation)
    assert (found.shared_images, found.checked_images) == (1, 4)  # 20 images of 50 bytes are more than the limit
    assert "the bytes of 4 of 5 evaluation images with the training images of equal byte length" in found.checked
    more = folder(tmp_path / "c", {f"p{i}": [bytes([100 + i]) * (20 + i)] for i in range(12)})
    first, again = compare(training, more), compare(training, more)
    assert first == again
    assert first.checked_images == 8


def test_synthetic_people_are_their_seed_and_number() -> None:
    training = open_store("synthetic:identities=20,images=4")
    for spec, shared in (("first=20", 0), ("first=15", 5), ("seed=1", 0), ("", 10)):
        found = compare_with_training(training, open_store(f"synthetic:identities=10,images=2,{spec}"))
        assert found.shared_identities == shared, spec
        assert found.checked == "compared: seeds and numbers of synthetic people"
    assert found.heading == "on identities that were trained on"


def test_people_kept_aside_from_one_set_of_numbers_are_unseen(tmp_path) -> None:
    store = open_store(folder(tmp_path / "a", {str(number): photos(str(number)) for number in range(6)}))
    labels = store.identities.labels()

    def part(keep: np.ndarray) -> EditedStore:
        out = np.flatnonzero(~keep)
        return EditedStore(store, Edits(len(store), len(store.identities), out, np.full(len(out), -1)))

    found = compare_with_training(part(labels < 4), part(labels >= 4))
    assert (found.shared_identities, found.shared_names) == (0, 0)
    assert found.heading == "on unseen identities"
    found = compare_with_training(CombinedStore([SyntheticFaces(3, 2), part(labels < 5)]), part(labels >= 4))
    assert (found.shared_identities, found.shared_names) == (1, 1)


def test_two_names_that_differ_in_case_are_two_people_of_one_folder(tmp_path) -> None:
    store = open_store(folder(tmp_path / "a", {"ann lee": photos("a"), "Ann_Lee": photos("b")}))
    halves = [EditedStore(store, Edits(6, 2, np.arange(3 * i, 3 * i + 3), np.full(3, -1))) for i in range(2)]
    assert compare_with_training(*halves).shared_identities == 0


def test_what_cannot_be_compared_is_said(tmp_path) -> None:
    evaluation = open_store(folder(tmp_path / "b", {"1": photos("a")}))
    found = not_compared(evaluation, "what it was trained on is not known here")
    assert found.heading == "on identities; whether they were trained on is not known"
    assert found.screen_note == "not checked: what it was trained on is not known here"
    assert found.to_dict()["shared_identities"] is None
    mixed = compare_with_training(SyntheticFaces(3, 2), evaluation)
    assert mixed.shared_identities is None
    assert mixed.checked == (
        "not compared: identity names (mere numbers prove nothing in other data), the images of synthetic faces"
    )


def test_images_that_are_gone_are_left_out(tmp_path) -> None:
    training = folder(tmp_path / "a", {"Ann": photos("a")})
    evaluation = folder(tmp_path / "b", {"Bo": photos("b"), "Cy": photos("a")})
    stores = open_store(training), open_store(evaluation)
    (tmp_path / "a" / "Ann" / "0.jpg").unlink()
    shutil.rmtree(tmp_path / "b" / "Bo")
    found = compare_with_training(*stores)
    assert (found.shared_images, found.checked_images) == (2, 3)


def test_whoever_a_run_keeps_aside_is_unseen_and_all_others_are_not() -> None:
    data = "synthetic:identities=80,images=3"
    config = load_config("demo", [f"data.root={data}", "eval.share=0.1", "eval.root=null"])
    training, kept = split(open_store(data), 0.1)
    assert kept is not None
    assert compare_with_run(config, kept).heading == "on unseen identities"
    found = compare_with_run(config, open_store(data))
    assert (found.shared_identities, found.identities) == (len(training.identities), 80)


def test_start_weights_from_elsewhere_leave_it_open_whom_they_saw(tmp_path) -> None:
    config = load_config("demo", ["data.root=synthetic:identities=30,images=3", f"start_from={tmp_path / 'w.pt'}"])
    found = compare_with_run(config, SyntheticFaces(25, 2, first_identity=100))
    assert found.heading == ("on identities not in this training set; whether the start weights saw them is unknown")
    assert found.screen_note == f"the evaluation is {found.heading}"
    assert found.to_dict()["unknown"] == "whether the start weights saw them is unknown"
    assert compare_with_run(config, SyntheticFaces(25, 2, first_identity=20)).shared_identities == 10


def test_a_model_is_found_in_its_runs_folder_and_nowhere_else(tmp_path) -> None:
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "checkpoints").mkdir()
    for name in ("config.yaml", "model/model.safetensors", "checkpoints/x.pt", "x.onnx"):
        (run / name).touch()
    for path in (run, run / "model", run / "best", run / "model" / "model.safetensors"):
        assert run_of(path) == run, path
    for path in (
        tmp_path,
        run / "checkpoints",
        tmp_path / "other" / "model",
        run / "checkpoints" / "x.pt",
        run / "x.onnx",
    ):
        assert run_of(path) is None, path
