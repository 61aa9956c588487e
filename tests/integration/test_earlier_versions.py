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

NEWER = {
    "eval": ["share"],
    "log": ["wandb", "mlflow"],
    "backbone": ["colour_order", "mean", "std"],
    "data": ["sampling"],
}
OF_FORMAT_2 = (
    "format",
    "profile",
    "start_licence",
    "head",
    "margin",
    "center",
    "negatives",
    "stored",
    "in_batch",
    "key_encoder",
)


def as_0_1_saved_it(folder: Path, source: str) -> None:
    """Rewrite config.yaml: the options that version 0.1 had, a table and drawn negatives named, and a ratio of 1, which meant neither."""
    path = folder / "config.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    for section, names in NEWER.items():
        for name in names:
            values[section].pop(name, None)
    values = {key: value for key, value in values.items() if key not in OF_FORMAT_2}
    values |= {
        "profile": "tuned",
        "head": {
            **{"name": "attfc", "interclass_filtering_threshold": None, "filtering": "drop", "block_mib": 32.0},
            **{"sample_rate": 0.1, "rows": "device", "rows_folder": None, "enter_first": 0.667, "hardest_weight": 1.0},
        },
        "margin": {
            **{"name": "cosface", "scale": 32.0, "margin": 0.2, "m1": 1.0, "m2": 0.0, "m3": 0.4, "h": 0.333},
            **{"gradient": "exact", "beyond_pi": "linear"},
        },
        "keys": {"per_query": 2, "distinct": True, "sampling": "each_once"},
        "key_encoder": {"momentum": 0.0, "momentum_schedule": "constant", "batch_norm": "batch"},
        "attention": {"temperature": 1.0, "include_stored_center": False},
        "center": {"blend": 0.6, "source": source, "table": "host", "table_folder": None},
        "container": {"ratio": 1.0, "slots": None, "policy": "unique", "dtype": "float32", "initial": "empty"},
        "negatives": {"in_batch": True, "in_batch_gradient": source == "query", "source": "table"},
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")


@pytest.mark.parametrize(("source", "rule"), [("query", "own_embedding"), ("keys", "key_attention")])
def test_a_run_of_0_1_with_a_slot_for_everyone_goes_on_in_its_container(source: str, rule: str, tmp_path: Path) -> None:
    typed = [f"center={rule}", "center.share=0.6", "negatives=recent_centers", "negatives.policy=unique"]
    run = new_run(load_config("demo", [*TINY, *typed, "eval.root=null", f"output={tmp_path}"]))
    run.trainer.train()
    as_0_1_saved_it(run.folder, source)
    again = resume_run(run.folder, ["schedule.epochs=3"])
    head = again.trainer.head
    assert isinstance(head, AttFC)
    assert head.banks == [head.container]
    assert head.container.slots == 24
    assert int(head.container.fill) == 24
    assert again.config.center == run.config.center
    assert again.config.in_batch == run.config.in_batch
    again.trainer.train()
    assert again.trainer.step == again.trainer.total_steps > run.trainer.total_steps
    saved = load_config(str(run.folder / "config.yaml"))
    assert saved.negatives is not None
    assert (saved.format, saved.stored, saved.negatives.kind, saved.negatives.get("policy")) == (
        2,
        None,
        "recent_centers",
        "unique",
    )


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
    assert translate(old, saved=True)["backbone"]["options"] == {"drop_path": 0.05, "mask_ratio": 0.05}
    assert old["backbone"]["options"] == {}
    set_by_hand = {"backbone": {"name": "vit_t", "options": {"drop_path": 0.2}}, "eval": {"root": None}}
    assert translate(set_by_hand, saved=True)["backbone"]["options"] == {"drop_path": 0.2, "mask_ratio": 0.0}
    new = {"backbone": {"name": "vit_b", "options": {}}, "eval": {"share": 0.0}}
    assert translate(new, saved=True)["backbone"] == new["backbone"]
