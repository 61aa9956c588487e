"""`attfc calibrate` as a user types it: the file beside the model, and who reads it."""

import json
from pathlib import Path

import pytest
import torch

import attfc
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
    assert f"threshold (cosine)  {point['threshold']:.4f} [" in said
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
    assert "--fmr 1.5 is no false match rate" in err


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
