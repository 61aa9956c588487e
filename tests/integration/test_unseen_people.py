"""Runs and evaluations whose people were trained on, or are too few: said on the screen, in the files and in the report."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attfc.cli import app
from attfc.data import SyntheticFaces

from .commands import run_main
from .conftest import TINY

WARNING = "4 of 8 evaluation identities were trained on (4 by name): the metrics are not those of unseen people"


def train(monkeypatch, capsys, folder: Path, *options: str) -> tuple[Path, str]:
    status, out, err = run_main(
        *(monkeypatch, capsys, "train", "demo", *TINY, f"output={folder}", "negatives.share=1", "schedule.max_steps=4"),
        *options,
    )
    assert status == 0, err
    return folder / "demo-001", " ".join((out + err).split())


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory) -> tuple[Path, str]:
    """A run that was trained on four of the eight people that it is evaluated on, and what it printed."""
    folder = tmp_path_factory.mktemp("runs")
    options = ("eval.root=synthetic:identities=8,images=4,seed=0,first=20", "eval.every=2", "report.write=true")
    typed = ["train", "demo", *TINY, f"output={folder}", "negatives.share=1", "schedule.max_steps=4", *options]
    done = CliRunner().invoke(app, typed)
    assert done.exit_code == 0, done.output
    return folder / "demo-001", " ".join(done.output.split())


def test_a_run_that_was_trained_on_its_evaluation_people_says_so_everywhere(overlapping) -> None:
    run, shown = overlapping
    assert f"note: {WARNING}; for example identity 20, identity 21, identity 22" in shown
    assert shown.index(WARNING) < shown.index("step 1/4")  # before the first step is logged
    heading = "on identities, some of which were trained on; rests on 8 people, too few to judge a model"
    assert f"step 2: {heading} accuracy" in shown
    assert shown.count(heading) == 2  # in the middle, and above the table at the end
    assert "unseen identities" not in shown
    kept = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert kept["unseen"] == {
        "heading": "on identities, some of which were trained on",
        "warning": WARNING,
        "checked": "compared: seeds and numbers of synthetic people",
        "unknown": None,
        "same_data": True,
        "identities": 8,
        "shared_identities": 4,
        "shared_names": 4,
        "images": 32,
        "checked_images": 0,
        "shared_images": None,
    }
    assert kept["people"] == 8
    assert kept["notes"][0].startswith("rests on 8 people: too few to say")
    assert "identity 20" not in (run / "evaluation.json").read_text(encoding="utf-8")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"<li>{WARNING}</li>" in page
    assert "<h2>Verification on identities, some of which were trained on</h2>" in page
    assert page.count("rests on 8 people") > 4  # below every headline metric
    assert "each person alike" in page
    assert "Training and evaluation data, compared: seeds and numbers of synthetic people." in page


def test_evaluate_says_what_the_run_knows_of_its_people(overlapping, tmp_path, monkeypatch, capsys) -> None:
    run, _ = overlapping
    few = ("--resamples", "0", "--device", "cpu", "--json", tmp_path / "figures.json")
    overlap = "synthetic:identities=8,images=4,seed=0,first=20"
    others = "synthetic:identities=24,images=3,seed=0,first=5000"

    def evaluated(*arguments: object) -> tuple[str, dict]:
        status, out, err = run_main(monkeypatch, capsys, "evaluate", *arguments, *few)
        assert status == 0, err
        return " ".join(out.split()), json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["unseen"]

    for model in (run, run / "model", run / "model" / "model.safetensors"):
        shown, unseen = evaluated(model, "all-pairs", overlap)
        assert f"note: {WARNING}" in shown
        assert (unseen["shared_identities"], unseen["warning"]) == (4, WARNING)
    shown, unseen = evaluated(run, "identify", overlap, "--save", tmp_path / "a.npz")
    assert f"note: {WARNING}" in shown
    status, out, err = run_main(monkeypatch, capsys, "report", tmp_path / "a.npz", "--output", tmp_path / "page.md")
    assert status == 0, err
    assert f"model: {WARNING}" in (tmp_path / "page.md").read_text(encoding="utf-8")
    status, out, err = run_main(
        *(monkeypatch, capsys, "compare", tmp_path / "a.npz", tmp_path / "a.npz", "--resamples", "20")
    )
    assert status == 0, err
    assert f"note: A: {WARNING}\nnote: B: {WARNING}" in out
    shown, unseen = evaluated(run, "held-out", overlap)
    assert "on identities, some of which were trained on; rests on 8 people" in shown
    shown, unseen = evaluated(run, "held-out", others)
    assert shown.startswith("on unseen identities (24 people, 72 images) pairs")  # no remark on their number
    assert unseen["warning"] is None
    (tmp_path / "bare").symlink_to(run / "model")
    shown, unseen = evaluated(tmp_path / "bare", "held-out", others)
    assert "note: not checked: the training data of this model are not known" in shown
    assert "on identities; whether they were trained on is not known" in shown
    assert unseen["shared_identities"] is None


def test_training_data_that_cannot_be_opened_any_more(overlapping, tmp_path, monkeypatch, capsys) -> None:
    run, _ = overlapping
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "model").symlink_to(run / "model")
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (moved / "config.yaml").write_text(config.replace("synthetic:identities=24,images=6,seed=0", "gone/faces"))
    status, out, err = run_main(
        *(monkeypatch, capsys, "evaluate", moved, "all-pairs", "synthetic:identities=24,images=3"),
        *("--resamples", "0", "--device", "cpu"),
    )
    assert status == 0, err
    assert "note: not checked: the run's training data cannot be opened (gone/faces: no such folder)" in out


def test_a_run_started_from_another_was_trained_on_that_ones_people_too(
    overlapping, tmp_path, monkeypatch, capsys
) -> None:
    run, _ = overlapping
    options = (f"start_from={run}", "eval.root=synthetic:identities=8,images=4,seed=0,first=20")
    later, shown = train(
        *(monkeypatch, capsys, tmp_path, *options, "data.root=synthetic:identities=24,images=6,seed=5")
    )
    assert WARNING in shown
    assert json.loads((later / "evaluation.json").read_text(encoding="utf-8"))["unseen"]["shared_identities"] == 4


def test_images_that_cannot_be_used_are_refused_above_the_runs_own_limit(tmp_path, monkeypatch, capsys) -> None:
    faces = SyntheticFaces(8, 4, first_identity=500)
    for position in range(len(faces)):
        encoded, label = faces.read(position)
        target = tmp_path / "val" / f"face {label}" / f"{position}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoded[:200] if position == 5 else encoded)
    options = (f"eval.root={tmp_path / 'val'}", "eval.generated_pairs=40", "schedule.max_steps=2")
    run, _ = train(monkeypatch, capsys, tmp_path / "runs", *options, "data.broken_limit=0.05")
    assert json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["broken"] == 1
    status, _, err = run_main(
        *(monkeypatch, capsys, "train", "demo", *TINY, f"output={tmp_path}", "negatives.share=1", *options),
    )
    assert status == 1
    message = "val: 1 of 32 images are broken, more than the limit of 0.01; the first is face 1/5.jpg: "
    assert message in err
    assert "or raise --broken-limit (of a training run: data.broken_limit)" in err
    for limit, expected in ((0.05, 0), (0.01, 1)):
        for protocol in ("held-out", "all-pairs", "identify"):
            status, _, err = run_main(
                *(monkeypatch, capsys, "evaluate", run, protocol, tmp_path / "val", "--broken-limit", limit),
                *("--resamples", "0", "--device", "cpu"),
            )
            assert status == expected, (protocol, err)
            assert (message in err) == bool(expected)
