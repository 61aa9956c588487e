"""Weights & Biases and MLflow get numbers and settings, and nothing else; recorded packages stand in for the real ones."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from attfc.config import load_config
from attfc.errors import UserError
from attfc.run.build import new_run
from attfc.run.resuming import resume_run
from attfc.training.progress import RunLog
from attfc.training.trackers import open_trackers, refuse_missing, shared_numbers, shared_settings

PRIVATE = ("/home/zoe/faces", "Zoe Smith", "edits-of-zoe.tsv", "zoe-run", "photographs of Zoe")
TINY = [
    *("data.root=synthetic:identities=24,images=4,seed=0", "data.workers=0", "batch_size=16", "backbone=r6_tiny"),
    *("data.decoded_cache_mib=0", "max_steps=2", "schedule.warmup_epochs=0", "log.every=1", "log.tensorboard=false"),
    *("eval.root=synthetic:identities=8,images=4,seed=0,first=1000", "eval.generated_pairs=40", "eval.every=1"),
    *("report.write=false", "threads=1", "precision.amp=none", "name=zoe-run"),
]


class Recorded:
    """What left the process; refuses what must not."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.numbers: list[tuple[int, str, float]] = []
        self.opened: list[tuple[str, bool]] = []  # key, whether it goes on
        self.closed = 0

    def take_settings(self, settings: dict[str, Any]) -> None:
        for key, value in settings.items():
            assert value is None or isinstance(value, int | float | bool | str), (key, value)
            assert not isinstance(value, str) or (
                len(value) < 20 and "/" not in value and "zoe" not in value.lower()
            ), (
                key,
                value,
            )
        self.settings |= settings

    def take_number(self, step: int, name: str, value: float) -> None:
        assert isinstance(step, int)
        assert type(value) is float
        assert math.isfinite(value)
        assert "zoe" not in name.lower()
        self.numbers.append((step, name, value))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorded]:
    found = {"wandb": Recorded(), "mlflow": Recorded()}
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(found["wandb"]))
    for name, module in fake_mlflow(found["mlflow"]).items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


def fake_wandb(record: Recorded) -> ModuleType:
    class Run:
        def define_metric(self, name: str, step_metric: str) -> None:
            assert (name, step_metric) == ("*", "step")

        def log(self, values: dict[str, Any]) -> None:
            step = values.pop("step")
            for name, value in values.items():
                record.take_number(step, name, value)

        def finish(self) -> None:
            record.closed += 1

    def init(*, project: str, id: str, resume: str | None, config: dict[str, Any], dir: str, settings: Any) -> Run:
        assert project == "attfc"
        for name in ("x_disable_meta", "x_disable_machine_info", "x_disable_stats", "disable_code", "disable_git"):
            assert settings[name] is True
        assert settings["console"] == "off"
        assert settings["x_save_requirements"] is False
        record.opened.append((id, resume == "allow"))
        record.take_settings(config)
        return Run()

    module = ModuleType("wandb")
    vars(module).update(init=init, Settings=dict)
    return module


def fake_mlflow(record: Recorded) -> dict[str, ModuleType]:
    class MlflowClient:
        def get_experiment_by_name(self, name: str) -> None:
            assert name == "attfc"

        def create_experiment(self, name: str) -> str:
            return "1"

        def create_run(self, experiment: str) -> Any:
            record.opened.append(("a1", False))
            return SimpleNamespace(info=SimpleNamespace(run_id="a1"))

        def update_run(self, key: str, status: str) -> None:
            assert status == "RUNNING"
            record.opened.append((key, True))

        def log_batch(self, key: str, metrics: Any = (), params: Any = ()) -> None:
            assert len(params) <= 100
            record.take_settings({param.key: param.value for param in params})
            for metric in metrics:
                record.take_number(metric.step, metric.key, metric.value)

        def set_terminated(self, key: str) -> None:
            record.closed += 1

    mlflow, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    vars(mlflow).update(MlflowClient=MlflowClient)
    vars(entities).update(
        Metric=lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step),
        Param=lambda key, value: SimpleNamespace(key=key, value=value),
    )
    return {"mlflow": mlflow, "mlflow.entities": entities}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_run_sends_numbers_and_settings_and_a_resumed_one_goes_on(recorded, tmp_path, name) -> None:
    config = load_config("demo", [*TINY, f"log.{name}=true", f"output={tmp_path}"])
    run = new_run(config)
    run.trainer.train()
    record, other = recorded[name], recorded[{"wandb": "mlflow", "mlflow": "wandb"}[name]]
    names = {number for _, number, _ in record.numbers}
    assert {"train/loss", "train/learning_rate", "evaluation/accuracy", "evaluation/all_pairs/tar_at_far/0.1"} <= names
    assert {step for step, _, _ in record.numbers} == {1, 2}
    assert str(record.settings["optimizer.learning_rate"]) == "0.1"
    assert record.settings["head.kind"] == "attfc"
    assert not {"name", "data.root", "data.licence", "eval.root", "output", "start_from"} & set(record.settings)
    assert (record.closed, other.opened, other.numbers) == (1, [], [])
    again = resume_run(run.folder, ["max_steps=3"])
    again.trainer.train()
    assert [goes_on for _, goes_on in record.opened] == [False, True]
    assert len({key for key, _ in record.opened}) == 1
    assert json.loads((run.folder / "trackers.json").read_text()) == {name: record.opened[0][0]}


def test_off_by_default(recorded, tmp_path) -> None:
    new_run(load_config("demo", [*TINY, f"output={tmp_path}"])).trainer.train()
    assert not any(record.opened for record in recorded.values())
    assert not list(tmp_path.rglob("trackers.json"))


def test_a_missing_package_is_said_before_anything_is_made(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match=r"^log\.wandb=true needs the package wandb, .*pip install 'attfc\[wandb\]'"):
        new_run(load_config("demo", [*TINY, "log.wandb=true", f"output={tmp_path / 'runs'}"]))
    assert not (tmp_path / "runs").exists()
    refuse_missing([])


def test_a_tracker_that_cannot_be_opened_is_one_line(recorded, monkeypatch, tmp_path) -> None:
    def fails(**_: Any) -> None:
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setattr(sys.modules["wandb"], "init", fails)
    with pytest.raises(
        UserError, match=r"wandb cannot be opened \(no API key configured\); run wandb login, or set WANDB_MODE=offline"
    ):
        open_trackers(["wandb"], tmp_path, {})


def test_a_tracker_that_fails_in_mid_run_is_left_and_the_log_goes_on(recorded, monkeypatch, tmp_path, capsys) -> None:
    trackers = open_trackers(["mlflow"], tmp_path, {})
    monkeypatch.setattr(recorded["mlflow"], "take_number", lambda *_: 1 / 0)
    log = RunLog(tensorboard=False, open_trackers=lambda _: trackers)
    with log.opened(tmp_path, 0, 3):
        log.write("evaluation", 1, {"eer": 1.0})
        log.write("evaluation", 2, {"eer": 0.5})
    said = capsys.readouterr().err.removesuffix("\n\n").removesuffix("\n")  # rich 13 ends its bar with an empty line
    assert said == "note: mlflow failed (division by zero) and gets nothing more; metrics.jsonl has all"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_records_of_broken_images_and_names_in_figures_stay_here(recorded, tmp_path) -> None:
    log = RunLog(tensorboard=False, open_trackers=lambda folder: open_trackers(["wandb"], folder, {}))
    figures = {
        "accuracy": 0.5,
        "note": PRIVATE[1],
        "by_person": {PRIVATE[1]: 0.8},
        "tar_at_far": {"0.01": 0.4, "1e-4": None},
    }
    with log.opened(tmp_path, 0, 3):
        log.write("broken", 3, {"position": 4, "where": PRIVATE[0], "reason": "truncated"})
        log.write("evaluation", 3, figures)
    assert recorded["wandb"].numbers == [(3, "evaluation/accuracy", 0.5), (3, "evaluation/tar_at_far/0.01", 0.4)]
    assert shared_numbers("train", {"loss": math.nan, "good": True, "steps": 3}) == {"train/steps": 3.0}


def test_no_text_of_a_configuration_is_shared_but_choices_and_two_words() -> None:
    config = load_config(
        "demo", ["profile=published", "backbone.options={dropout: 0.1, checkpointing: true, weights: /home/zoe/w.pt}"]
    )

    def fill(section: Any) -> None:
        """Put something private into every text and list."""
        for name, field in type(section).model_fields.items():
            value = getattr(section, name)
            if hasattr(type(value), "model_fields"):
                fill(value)
            elif field.annotation in (str, str | None, str | Path | None):
                section.__dict__[name] = PRIVATE[0]
            elif isinstance(value, list):
                section.__dict__[name] = list(PRIVATE)

    fill(config)
    shared = shared_settings(config)
    texts = {
        key: value for key, value in shared.items() if isinstance(value, str) and key not in ("device", "backbone.name")
    }
    assert (texts["head.kind"], texts["in_batch"], texts["profile"]) == ("attfc", "none", "published")
    for value in texts.values():
        assert not any(private in value for private in PRIVATE)
    assert shared["backbone.options.dropout"] == 0.1
    assert "backbone.options.weights" not in shared
    assert len(shared) > 70
    assert Path(PRIVATE[0]).name not in json.dumps({key: value for key, value in shared.items() if key in texts})
