"""Runs of earlier versions go on: their configurations are read as this version would have saved them."""

import json
from pathlib import Path

import pytest
import yaml

from attfc.config import load_config
from attfc.config.translate import translate
from attfc.heads import AttFC
from attfc.run.build import new_run
from attfc.run.resuming import resume_run

from .commands import run_main
from .conftest import TINY
from .saved_runs import NAMES, SAVED, saved_run

NEWER = {"eval": ["share"], "log": ["wandb", "mlflow"], "backbone": ["colour_order", "mean", "std"]}


def as_0_1_saved_it(folder: Path) -> None:
    """Rewrite config.yaml: the options that version 0.1 had, a table and drawn negatives named, and a ratio of 1, which meant neither."""
    path = folder / "config.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    for section, names in NEWER.items():
        for name in names:
            values[section].pop(name, None)
    values.pop("start_licence", None)
    values["container"] |= {"slots": None, "ratio": 1.0}
    values["center"]["table"] = "host"
    values["negatives"]["source"] = "table"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")


@pytest.mark.parametrize("source", ["query", "keys"])
def test_a_run_of_0_1_with_a_slot_for_everyone_goes_on_in_its_container(source: str, tmp_path: Path) -> None:
    typed = [f"center.source={source}", "center.table=none", "negatives.source=container", "container.ratio=1"]
    run = new_run(load_config("demo", [*TINY, *typed, "eval.root=null", "report.write=false", f"output={tmp_path}"]))
    run.trainer.train()
    as_0_1_saved_it(run.folder)
    again = resume_run(run.folder, ["schedule.epochs=3"])
    head = again.trainer.head
    assert isinstance(head, AttFC)
    assert head.banks == [head.container]
    assert head.container.slots == 24
    assert int(head.container.fill) == 24
    again.trainer.train()
    assert again.trainer.step == again.trainer.total_steps > run.trainer.total_steps
    saved = load_config(str(run.folder / "config.yaml"))
    assert (saved.center.table, saved.negatives.source) == ("none", "container")


@pytest.mark.parametrize("name", NAMES)
def test_saved_runs_go_on_as_in_the_version_that_saved_them(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """losses_and_auc.json: losses of steps 3 and 4 and the AUC then, as attfc 0.1 goes on from the same numbers."""
    run = saved_run(name, tmp_path)
    said = run_main(monkeypatch, capsys, "train", "--resume", run, "schedule.max_steps=4")
    assert said[0] == 0, said
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = json.loads((SAVED / "losses_and_auc.json").read_text(encoding="utf-8"))[name]
    assert [step["loss"] for step in steps if step["kind"] == "train"] == pytest.approx(expected[:2], rel=2e-3)
    people = "synthetic:identities=8,images=4,seed=0,first=1000"
    options = ["--generated-pairs", 40, "--resamples", 0, "--json", tmp_path / "metrics.json"]
    said = run_main(monkeypatch, capsys, "evaluate", run, "held-out", people, *options)
    assert said[0] == 0, said
    found = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert found["auc"] == pytest.approx(expected[2], abs=0.01)


def test_vision_transformers_keep_what_they_dropped_and_masked() -> None:
    old = {"backbone": {"name": "vit_b", "options": {}}, "eval": {"root": None}}
    assert translate(old)["backbone"]["options"] == {"drop_path": 0.05, "mask_ratio": 0.05}
    assert old["backbone"]["options"] == {}
    set_by_hand = {"backbone": {"name": "vit_t", "options": {"drop_path": 0.2}}, "eval": {"root": None}}
    assert translate(set_by_hand)["backbone"]["options"] == {"drop_path": 0.2, "mask_ratio": 0.0}
    new = {"backbone": {"name": "vit_b", "options": {}}, "eval": {"share": 0.0}}
    assert translate(new) == new
