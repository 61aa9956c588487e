"""`attfc calibrate` as a user types it: the file beside the model, and who reads it."""

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import attfc
from attfc.errors import UserError
from attfc.evaluation.operating_point.point import read_point
from attfc.training.model_files import save_model

from .commands import run_main

CPU = ("--device", "cpu")
PEOPLE = "synthetic:identities=64,images=2,seed=5"


def save_run(folder: Path, seed: int = 0) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_model(folder / "model", attfc.create_backbone("r6_tiny", embedding_size=32))
    return folder


@pytest.fixture
def calibrated(tmp_path, monkeypatch, capsys) -> Path:
    """A run with an operating point at FMR 0.2."""
    run = save_run(tmp_path / "run")
    status, _said, err = run_main(monkeypatch, capsys, "calibrate", run, PEOPLE, "--fmr", 0.2, *CPU)
    assert status == 0, err
    return run


def test_calibrate_writes_beside_the_model(calibrated, tmp_path, monkeypatch, capsys) -> None:
    point = json.loads((calibrated / "model" / "operating_point.json").read_text())
    assert point["asked_fmr"] == 0.2
    assert point["people"] == 64
    low, high = point["threshold_interval"]
    assert low < point["threshold"] < high
    assert point["fmr"] < point["fmr_upper"]
    status, said, err = run_main(
        monkeypatch, capsys, *("calibrate", calibrated, PEOPLE, "--fmr", 0.2), *("--json", tmp_path / "a.json"), *CPU
    )
    assert status == 0, err
    again = json.loads((tmp_path / "a.json").read_text())
    assert {**point, "created": ""} == {**{key: again[key] for key in point}, "created": ""}
    assert re.search(rf"two faces are one person +{point['threshold']:.4f} \[", said)
    assert "FMR 0.2 needs about 28 people" in said


def test_what_the_people_do_not_support_is_refused(tmp_path, monkeypatch, capsys) -> None:
    run = save_run(tmp_path / "run")
    status, _, err = run_main(monkeypatch, capsys, "calibrate", run, PEOPLE, "--fmr", 1e-4, *CPU)
    assert status == 1
    assert f"{PEOPLE} has 64 people, too few for FMR 0.0001: that needs about 492" in err
    assert "support --fmr 0.0061 or higher" in err
    assert not (run / "model" / "operating_point.json").exists()
    status, _, err = run_main(monkeypatch, capsys, "calibrate", run, PEOPLE, "--fmr", 1.5, *CPU)
    assert status == 1
    assert "--fmr 1.5 is not a false match rate" in err


def test_groups_and_failures(tmp_path, monkeypatch, capsys) -> None:
    run, groups, people = save_run(tmp_path / "run"), tmp_path / "groups.tsv", tmp_path / "people"
    store = attfc.open_store(PEOPLE)
    for position in range(len(store)):
        encoded, label = store.read(position)
        (people / f"{label:02d}").mkdir(parents=True, exist_ok=True)
        (people / f"{label:02d}" / f"{position}.jpg").write_bytes(encoded if position != 5 else encoded[:60])
    groups.write_text("".join(f"{label:02d}\t{'one' if label < 31 else 'two'}\n" for label in range(64)))
    asked = ("calibrate", run, people, "--fmr", 0.2, "--groups", groups, *CPU)
    status, said, err = run_main(monkeypatch, capsys, *asked, "--count-failures", "--json", tmp_path / "a.json")
    assert status == 0, err
    point = json.loads((tmp_path / "a.json").read_text())
    assert [group["name"] for group in point["groups"]] == ["one", "two"]
    assert (point["failures"], point["failures_counted"], point["images"]) == (1, True, 128)
    assert "the worst group's FMR is" in said
    assert "failures to acquire (images without a usable face): 1 of 128; they count as non-matches" in said
    groups.write_text("".join(f"{label:02d}\t{'one' if label else 'two'}\n" for label in range(64)))
    status, _, err = run_main(monkeypatch, capsys, *asked)
    assert status == 1
    assert "group two has one person in people" in err


def two_faces(folder: Path) -> list[Path]:
    store, made = attfc.open_store(PEOPLE), []
    for position in (0, 1):
        made.append(folder / f"{position}.jpg")
        made[-1].write_bytes(store.read(position)[0])
    return made


def test_verify_and_galleries_go_by_it(calibrated, tmp_path, monkeypatch, capsys) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        return run_main(monkeypatch, capsys, *arguments, *CPU)

    faces, file = two_faces(tmp_path), calibrated / "model" / "operating_point.json"
    point = json.loads(file.read_text())
    stated = {"threshold_at_far": {"0.1": 0.25, "0.001": 0.5}, "impostor_pairs": 300_000}
    (calibrated / "evaluation.json").write_text(json.dumps({"all_pairs": stated}))
    status, said, err = run("verify", calibrated, *faces, "--json", tmp_path / "v.json")
    assert status == 0, err
    found = json.loads((tmp_path / "v.json").read_text())
    assert found["threshold_at_far"] == {"0.2": point["threshold"]}
    assert found["thresholds_of"] == str(file)
    assert f"P(same person) {found['same_person_probability']:.3f}" in said
    assert f"at FAR 0.2, threshold {point['threshold']:.4f}" in said
    status, said, err = run("gallery", "create", tmp_path / "g", calibrated)
    assert status == 0, err
    assert f"a search answers with a name above cosine {point['threshold']:.4f}: FAR 0.2 by {file}" in said
    file.rename(tmp_path / "mine.json")
    status, said, _ = run("verify", calibrated, *faces)
    assert "at FAR 0.1, threshold 0.2500" in said
    status, said, _ = run("verify", calibrated, *faces, "--evaluation", tmp_path / "mine.json")
    assert f"at FAR 0.2, threshold {point['threshold']:.4f}" in said
    assert "trained on" not in said


def test_rates_of_people_who_were_trained_on_say_so_wherever_they_are_used(
    calibrated, tmp_path, monkeypatch, capsys
) -> None:
    faces, file = two_faces(tmp_path), calibrated / "model" / "operating_point.json"
    point = json.loads(file.read_text())
    warning = "24 of 64 evaluation identities were trained on (24 by name): the metrics are not those of unseen people"
    file.write_text(json.dumps(point | {"notes": ["another note", warning]}))
    status, said, _ = run_main(monkeypatch, capsys, "verify", calibrated, *faces, *CPU)
    assert status == 0
    assert warning in " ".join(said.split())
    assert "another note" not in said
    file.unlink()
    stated = {"threshold_at_far": {"0.1": 0.25, "0.001": 0.5}, "impostor_pairs": 300_000}
    unseen = {"warning": warning, "shared_identities": 24}
    (calibrated / "evaluation.json").write_text(json.dumps({"all_pairs": stated, "unseen": unseen}))
    status, said, _ = run_main(monkeypatch, capsys, "verify", calibrated, *faces, *CPU)
    assert "evaluation.json, of whose people 24 were trained on." in " ".join(said.split())


GROUP = {
    **{"name": "a", "people": 40, "comparisons": 780, "false_matches": 9},
    **{"fmr": 0.1, "fmr_upper": 0.2, "fnmr": None},
}
CONTRADICTIONS = [  # what somebody writes into a real file, and what is said of it
    ("threshold", 1.5, "threshold: Input should be less than or equal to 1.0001, not 1.5"),
    ("threshold", math.nan, "threshold: Input should be a finite number, not nan"),
    ("threshold_interval", [0.5, 0.25], "threshold_interval=0.5, 0.25: its lower end comes first"),
    ("asked_fmr", 0, "asked_fmr: Input should be greater than 0, not 0"),
    ("fmr", -0.1, "fmr: Input should be greater than or equal to 0, not -0.1"),
    ("fmr_upper", 0.001, "fmr_upper=0.001 is below fmr=0.1"),
    ("fnmr.value", 1, "fnmr: high=0."),
    ("fnmr.low", 1, "fnmr: low=1 is above value="),
    ("fnmr.high", 0, "fnmr: high=0 is below value="),
    ("people", 65, "comparisons=2016, and people=65 make 2080 pairs"),
    ("people", -64, "people: Input should be greater than or equal to 0, not -64"),
    ("comparisons", 2015, "comparisons=2015, and people=64 make 2016 pairs"),
    ("mated_people", 65, "mated_people=65 are more than people=64"),
    ("images", 100, "people=64 with mated_people=64 need 128 images, and images=100 with failures=0 leave 100"),
    ("failures", 129, "failures=129 are more than images=128"),
    ("failures", 10, "need 128 images, and images=128 with failures=10 leave 118"),
    ("false_matches", 10**9, "false_matches=1000000000 are more than the pairs of images="),
    ("worth", 0, "worth: Input should be greater than 0, not 0"),
    ("probability.brier", 2, "probability.brier: Input should be less than or equal to 1, not 2"),
    ("probability.slope", math.inf, "probability.slope: Input should be a finite number, not inf"),
    ("worst_over_geometric_mean", 0.5, "worst_over_geometric_mean: Input should be greater than or equal to 0.999"),
    ("splits", 0, "splits: Input should be greater than or equal to 1, not 0"),
    ("confidence", 1, "confidence: Input should be less than 1, not 1"),
    ("people_needed", [[0.1, -5]], "people_needed.0.1: Input should be greater than or equal to 0, not -5"),
    ("groups", [GROUP, GROUP], "groups have 80 people, and people=64"),
    ("groups", [GROUP | {"fmr_upper": 0}], "groups.0: fmr_upper=0 is below fmr=0.1"),
    ("groups", [GROUP | {"comparisons": 781}], "groups.0: comparisons=781, and people=40 make 780 pairs"),
    ("across", GROUP | {"people": 65}, "across.people=65 are more than people=64"),
]


def test_a_field_that_contradicts_another_is_one_error(calibrated) -> None:
    path = calibrated / "model" / "operating_point.json"
    real = path.read_text()
    assert read_point(real, path).people == 64
    for field, value, said in CONTRADICTIONS:
        edited = json.loads(real)
        assert 1 not in (edited["fnmr"]["value"], edited["fnmr"]["high"])
        edited["fmr"] = 0.1
        *outer, last = field.split(".")
        (edited[outer[0]] if outer else edited)[last] = value
        with pytest.raises(UserError) as caught:
            read_point(json.dumps(edited), path)
        text = str(caught.value)
        assert text.startswith(f"{path} is not an operating point: ")
        assert said in text
        assert text.endswith("; make it with attfc calibrate")
        assert "\n" not in text


def test_that_of_another_model_or_a_damaged_one_is_refused(calibrated, tmp_path, monkeypatch, capsys) -> None:
    other, faces = save_run(tmp_path / "other", seed=1), two_faces(tmp_path)
    text = (calibrated / "model" / "operating_point.json").read_text()
    beside = other / "model" / "operating_point.json"
    for content, said in {
        text: f"{beside} is the operating point of another model: of digest ",
        text.replace(
            '"fmr": 0.', '"fmr": 7.'
        ): f"{beside} is not an operating point: fmr: Input should be less than or equal to 1",
        text.replace('"notes": []', '"notes": [], "more": 1'): "more: Extra inputs are not permitted",
        text[:300]: f"{beside} is not an operating point: Invalid JSON",
        " " * (2**22 + 1): f"{beside} is larger than 4,194,304 bytes",
    }.items():
        beside.write_text(content)
        for command in (("verify", other, *faces), ("gallery", "create", tmp_path / "g", other)):
            status, _, err = run_main(monkeypatch, capsys, *command, *CPU)
            assert status == 1
            assert said in err
    status, _, err = run_main(
        monkeypatch,
        capsys,
        *("verify", other, *faces),
        *("--evaluation", calibrated / "model" / "operating_point.json"),
        *CPU,
    )
    assert status == 1  # what lies beside the model is not looked at then, what is named is
    assert "is the operating point of another model" in err
    beside.unlink()
    os.mkfifo(beside)
    for said in (
        "is not a file",
        "is missing",
    ):  # a pipe is not waited for, and a link to nothing is not an evaluation's thresholds
        status, _, err = run_main(monkeypatch, capsys, "verify", other, *faces, *CPU)
        assert status == 1
        assert f"{beside} {said}" in err
        beside.unlink()
        beside.symlink_to(tmp_path / "gone.json")


def test_exports_carry_it(calibrated, tmp_path, monkeypatch, capsys) -> None:
    point = json.loads((calibrated / "model" / "operating_point.json").read_text())
    status, _, err = run_main(monkeypatch, capsys, "export", calibrated, tmp_path / "hub", "--format", "hf")
    assert status == 0, err
    carried = json.loads((tmp_path / "hub" / "operating_point.json").read_text())
    assert {**carried, "digest": ""} == {**point, "digest": ""}
    card = (tmp_path / "hub" / "README.md").read_text()
    assert f"Accept two faces as one person above cosine {point['threshold']:.4f}" in card
    status, said, err = run_main(monkeypatch, capsys, "verify", tmp_path / "hub", *two_faces(tmp_path), *CPU)
    assert f"at FAR 0.2, threshold {point['threshold']:.4f}" in said
    status, _, err = run_main(monkeypatch, capsys, "export", calibrated, tmp_path / "face.onnx")
    assert status == 0, err
    status, said, err = run_main(monkeypatch, capsys, "verify", tmp_path / "face.onnx", *two_faces(tmp_path), *CPU)
    assert status == 0, err
    assert f"at FAR 0.2, threshold {point['threshold']:.4f}" in said


def test_compare_judges_models_at_their_operating_points(calibrated, tmp_path, monkeypatch, capsys) -> None:
    others, file = "synthetic:identities=40,images=3,seed=11", tmp_path / "c.json"
    other = save_run(tmp_path / "other", seed=1)
    common = (others, "--resamples", 20, *CPU)
    status, said, err = run_main(monkeypatch, capsys, "compare", calibrated, other, "held-out", *common)
    assert status == 0, err
    assert "at operating point" not in said, "one model has none"
    assert "A's operating point was measured on 64 people of" in said
    assert run_main(monkeypatch, capsys, "calibrate", other, PEOPLE, "--fmr", 0.1, *CPU)[0] == 0
    status, said, err = run_main(monkeypatch, capsys, "compare", calibrated, other, "held-out", *common, "--json", file)
    assert status == 0, err
    assert "at operating point all pairs" in said
    assert "the operating points have different FMRs" in said
    assert not [
        line for line in said.splitlines() if len(line) > 80 and not line.startswith(("A:", "B:", "note:", "[a, b]"))
    ]
    found = {tuple(row["figure"]): row for row in json.loads(file.read_text())["differences"]}
    row = found["at_operating_point", "all_pairs", "fnmr"]
    scores, labels = all_scores(calibrated, others)
    threshold = json.loads((calibrated / "model" / "operating_point.json").read_text())["threshold"]
    genuine = scores[np.triu(labels[:, None] == labels, 1)]
    assert row["a"]["value"] == pytest.approx(np.mean(genuine <= threshold), abs=1 / len(genuine))
    assert row["a"]["value"] - row["b"]["value"] == pytest.approx(row["difference"]["value"])
    assert row["difference"]["interval"][0] < row["difference"]["interval"][1]
    figures = tmp_path / "e.json"
    status, said, err = run_main(
        monkeypatch,
        capsys,
        "evaluate",
        calibrated,
        "all-pairs",
        others,
        "--far",
        0.5,
        "--resamples",
        0,
        "--json",
        figures,
        *CPU,
    )
    assert status == 0, err
    stated = json.loads(figures.read_text())["at_operating_point"]["all_pairs"]
    impostors = scores[np.triu(labels[:, None] != labels, 1)]
    assert stated["fmr"] == pytest.approx(np.mean(impostors > threshold), abs=2 / len(impostors))
    assert re.search(rf"at the operating point +threshold +FNMR % +FMR\nall pairs +{threshold:.4f} ", said)


def all_scores(run: Path, people: str) -> tuple[np.ndarray, np.ndarray]:
    store = attfc.open_store(people)
    rows = attfc.load(run, device="cpu").embed(store)
    return rows @ rows.T, store.identities.labels()
