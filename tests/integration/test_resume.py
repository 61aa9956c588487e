"""A resumed run is the uninterrupted run: the same losses bit for bit, wherever it was cut and however it ended."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import attfc
from attfc.config import load_config
from attfc.errors import UserError
from attfc.run.build import new_run
from attfc.run.resuming import resume_run
from attfc.training.step import TrainStep
from attfc.training.trainer import Interrupted, Trainer

from .conftest import TINY

HEADS = {
    "tuned": [],
    "published": [
        *("profile=published", "negatives.share=1.0", "data.sampling=with_replacement"),
        "report.write=true",  # intervals too
    ],
    "int8": [
        *("negatives=recent_centers", "negatives.dtype=int8", "stored=center_table"),
        *("center=key_attention", "center.share=0.6"),
        "center.include_stored=true",
        "key_encoder.momentum=0.9",
    ],
    "others": ["center=other_images", "negatives.share=0.3"],
    "trained": ["negatives.trained=9", "optimizer.head_learning_rate_scale=2"],
    "full_fc": ["head=full_fc"],
    "full_fc_past": ["head=full_fc", "head.past=40"],
    "groups": ["center=pairs", "center.group=4", "center.own=true", "negatives=recent_centers"],
    "dcq": ["head=dcq"],
    # An epoch of its loader is three times as long.
    "dcp": ["head=dcp", "head.dtype=bfloat16", "schedule.max_steps=18"],
    "partial_fc": ["head=partial_fc", "head.share=0.3"],
    "partial_fc_adamw": [
        "head=partial_fc",
        "head.place=host",
        "optimizer.name=adamw",
        "optimizer.learning_rate=0.001",
        "optimizer.accumulation=2",
    ],
    "adaface_adamw": [
        *("margin=adaface", "augment.low_resolution=0.5", "center.memory=2"),
        "optimizer.name=adamw",
        "optimizer.learning_rate=0.001",
        "precision.amp=none",
    ],
    "accumulated": [
        *("optimizer.accumulation=2", "center=key_attention"),
        *("key_encoder.momentum_schedule=ramp", "key_encoder.momentum=0.99"),
    ],
}


def losses(folder: Path) -> dict[int, float]:
    """Loss by step; a step logged twice fails."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {}
    for record in records:
        if record["kind"] == "train":
            assert record["step"] not in found, "a step stands twice in metrics.jsonl"
            found[record["step"]] = record["loss"]
    return found


def untimed_figures(folder: Path) -> dict[str, object]:
    """evaluation.json without the clock's figures."""
    figures = json.loads((folder / "evaluation.json").read_text())
    return {name: value for name, value in figures.items() if "second" not in name}


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make the trainer behave as if SIGTERM had arrived during `step`."""
    original = Trainer.train_step

    def train_step(self, batches):
        if self.step + 1 == step:
            self._stop = True
        return original(self, batches)

    monkeypatch.setattr(Trainer, "train_step", train_step)


@pytest.mark.parametrize(
    ("head", "cut", "workers"),
    [
        ("tuned", 1, 0),
        ("tuned", 9, 1),
        pytest.param("tuned", 13, 0, marks=pytest.mark.slow),  # a third cut of the same head: two runs more
        ("published", 7, 0),
        ("int8", 10, 0),
        ("others", 7, 1),
        ("trained", 6, 0),
        ("full_fc", 5, 0),
        pytest.param("partial_fc", 6, 0, marks=pytest.mark.slow),  # partial_fc_adamw does all of it and more
        ("full_fc_past", 6, 0),
        ("groups", 3, 1),
        ("dcq", 7, 0),
        ("dcp", 6, 0),
        ("partial_fc_adamw", 4, 0),
        ("adaface_adamw", 6, 0),
        ("accumulated", 3, 0),
    ],
)
def test_losses_equal_bit_for_bit_after_a_cut(tmp_path, monkeypatch, head, cut, workers) -> None:
    overrides = [*TINY, *HEADS[head]]
    whole = new_run(load_config("demo", [*overrides, f"output={tmp_path / 'whole'}"]))
    whole.trainer.train()
    broken = new_run(load_config("demo", [*overrides, f"output={tmp_path / 'cut'}", f"data.workers={workers}"]))
    with monkeypatch.context() as patch:
        stop_after(patch, cut)
        with pytest.raises(Interrupted, match=f"saved at step {cut}"):
            broken.trainer.train()
    resumed = resume_run(broken.folder, [])
    assert resumed.trainer.step == cut
    resumed.trainer.train()
    expected = losses(whole.folder)
    assert len(expected) == whole.trainer.total_steps
    assert losses(broken.folder) == expected
    first, second = (load_file(run.folder / "model" / "model.safetensors") for run in (whole, resumed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert untimed_figures(whole.folder) == untimed_figures(resumed.folder)


def start(tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    """`attfc train` in its own process group, as from a shell."""
    command = [sys.executable, "-m", "attfc", "train", "demo", *TINY, f"output={tmp_path}", "schedule.epochs=12", *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until metrics.jsonl has that step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (folder / "metrics.jsonl").exists() and f'"step": {step},' in (folder / "metrics.jsonl").read_text():
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_and_resume_goes_on(tmp_path, number, end_with_test) -> None:
    process = end_with_test(start(tmp_path, "data.workers=1", "checkpoint.every=0"))
    folder = tmp_path / "demo-001"
    wait_for_step(folder, 3, process)
    os.killpg(process.pid, number)  # the whole group, as Ctrl-C in a terminal does: workers get it too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "go on with: attfc train --resume" in errors
    assert "Traceback" not in errors
    stopped = max(losses(folder))
    resumed = resume_run(folder, [f"schedule.max_steps={stopped + 2}"])
    assert resumed.trainer.step == stopped
    resumed.trainer.train()
    assert sorted(losses(folder)) == list(range(1, stopped + 3))


def test_kill_9_loses_at_most_the_steps_since_the_last_checkpoint(tmp_path, monkeypatch, end_with_test) -> None:
    process = end_with_test(start(tmp_path / "killed"))
    folder = tmp_path / "killed" / "demo-001"
    wait_for_step(folder, 11, process)
    process.kill()
    process.communicate(timeout=60)
    reached = max(losses(folder))
    before = losses(folder)
    resumed = resume_run(folder, [])
    assert reached - 4 <= resumed.trainer.step <= reached
    assert resumed.trainer.step % 4 == 0
    stop_after(monkeypatch, 16)
    with pytest.raises(Interrupted):
        resumed.trainer.train()
    again = losses(folder)
    assert max(again) == 16
    assert {step: again[step] for step in before} == before, "what was trained twice came out otherwise"


def test_resume_of_another_network_is_refused_and_nothing_is_lost(tmp_path) -> None:
    run = new_run(load_config("demo", [*TINY, f"output={tmp_path}", "schedule.max_steps=2"]))
    run.trainer.train()
    before = sorted(path.name for path in (run.folder / "checkpoints").rglob("*"))
    with pytest.raises(UserError, match=r"backbone\.name is 'r6_tiny' in the saved run and 'r10_tiny' now"):
        resume_run(run.folder, ["backbone.name=r10_tiny"])
    config = run.folder / "config.yaml"  # someone edits the file instead of overriding
    config.write_text(config.read_text().replace("r6_tiny", "r10_tiny"))
    with pytest.raises(UserError, match="does not fit"):
        resume_run(run.folder, [])
    assert sorted(path.name for path in (run.folder / "checkpoints").rglob("*")) == before


def test_resume_without_a_checkpoint_says_so(tmp_path) -> None:
    run = new_run(load_config("demo", [*TINY, f"output={tmp_path}"]))
    with pytest.raises(UserError, match="no whole checkpoint to resume from"):
        resume_run(run.folder, [])
    with pytest.raises(UserError, match=r"is not a run: it has no config\.yaml"):
        resume_run(tmp_path, [])


def test_nan_loss_stops_with_step_positions_and_advice(tmp_path, monkeypatch) -> None:
    run = new_run(load_config("demo", [*TINY, f"output={tmp_path}", "head=full_fc"]))
    original, trainer = TrainStep.loss, run.trainer

    def poisoned(self, batch):
        loss = original(self, batch)
        return loss * float("nan") if trainer.step == 5 else loss

    monkeypatch.setattr(TrainStep, "loss", poisoned)
    with pytest.raises(
        UserError, match="the loss or its gradient is nan at step 6, in the batch of sample positions"
    ) as caught:
        run.trainer.train()
    assert "optimizer.learning_rate" in str(caught.value)
    resumed = resume_run(run.folder, [])
    trainer = resumed.trainer
    assert trainer.step == 4  # the checkpoint before it stands
    assert all(parameter.isfinite().all() for parameter in resumed.trainer.pair.query.parameters())
    with pytest.raises(UserError):
        resumed.train()
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [record for record in records if record["kind"] == "error"] == [
        records[-1]
    ]  # that of the first time is gone
    assert records[-1] == {"kind": "error", "step": 7, "message": str(caught.value)}


@pytest.mark.parametrize("kept", [False, True])
def test_a_run_that_fails_before_its_first_record_leaves_what_others_put_there(
    tmp_path, monkeypatch, capsys, kept: bool
) -> None:
    folder = tmp_path / "demo-001"

    def fails(self, batch):
        if kept:
            (folder / "notes.txt").write_text("mine")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TrainStep, "loss", fails)
    with pytest.raises(UserError) as caught:
        attfc.train("demo", *TINY, f"output={tmp_path}")
    assert str(caught.value) == (
        f"cannot write into {folder}: No space left on device; nothing was saved so far: make room or permission there, then start the run again"
    )
    assert (folder / "notes.txt").is_file() == folder.exists() == kept
    said = f"{folder} is removed: the run failed before its first record\n"
    assert capsys.readouterr().err.endswith(said) != kept


def test_a_signal_during_an_evaluation_saves_that_step(tmp_path) -> None:
    run = new_run(load_config("demo", [*TINY, f"output={tmp_path}", "eval.every=3", "checkpoint.every=0"]))
    trainer = run.trainer
    evaluate = trainer.evaluation.evaluate

    def interrupted(model, step):
        trainer._stop = True
        return evaluate(model, step)

    trainer.evaluation.evaluate = interrupted
    with pytest.raises(Interrupted, match="saved at step 3"):
        trainer.train()
    assert resume_run(run.folder, []).trainer.step == 3


def test_rates_changed_on_resume_are_used_and_kept(tmp_path) -> None:
    run = new_run(load_config("demo", [*TINY, f"output={tmp_path}", "schedule.max_steps=4", "schedule.name=constant"]))
    run.trainer.train()
    changes = ["schedule.max_steps=6", "optimizer.learning_rate=0.003", "optimizer.weight_decay=0.25"]
    resumed = resume_run(run.folder, changes)
    group = resumed.trainer.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.003, 0.25)
    resumed.trainer.train()
    assert resumed.trainer.optimizer.param_groups[0]["lr"] == 0.003
    assert load_config(str(run.folder / "config.yaml")).optimizer.learning_rate == 0.003


def test_accumulation_can_change_on_resume_but_not_the_batch(tmp_path) -> None:
    run = new_run(
        load_config("demo", [*TINY, f"output={tmp_path}", "schedule.max_steps=4", "optimizer.accumulation=2"])
    )
    run.trainer.train()
    resumed = resume_run(run.folder, ["schedule.max_steps=7", "optimizer.accumulation=1"])
    resumed.trainer.train()
    assert resumed.trainer.loader.step == 4 * 2 + 3
    with pytest.raises(UserError, match="a resumed run keeps both"):
        resume_run(run.folder, ["batch_size=20"])


def test_a_gradient_that_is_not_finite_stops_before_it_is_saved(tmp_path) -> None:
    run = new_run(load_config("demo", [*TINY, f"output={tmp_path}", "head=full_fc", "checkpoint.every=1"]))
    trainer = run.trainer
    weight = next(trainer.pair.query.parameters())
    weight.register_hook(lambda gradient: gradient * float("inf") if trainer.step == 2 else gradient)
    with pytest.raises(UserError, match="the loss or its gradient is nan at step 3"):
        trainer.train()
    assert resume_run(run.folder, []).trainer.step == 2
    assert not (run.folder / "model").exists()


def test_an_evaluation_that_cannot_be_is_an_error_before_the_training(tmp_path) -> None:
    one = "eval.root=synthetic:identities=1,images=4,first=1000"
    with pytest.raises(UserError, match="identit"):
        new_run(load_config("demo", [*TINY, f"output={tmp_path}", one]))
    assert not any(tmp_path.iterdir())


def test_a_cache_that_cannot_hold_the_store_is_left_out_with_a_note(tmp_path) -> None:
    options = ["data.root=synthetic:identities=500,images=4", "data.decoded_cache_mib=1"]
    run = new_run(load_config("demo", [*TINY, *options, f"output={tmp_path}"]))
    assert run.notes == [
        "decoded images take 18 MiB, more than data.decoded_cache_mib=1: each is decoded every time it is used "
        "(raise it if you have the memory)"
    ]


def test_a_finished_run_that_is_resumed_evaluates_again_but_logs_it_once(tmp_path) -> None:
    run = new_run(load_config("demo", [*TINY, f"output={tmp_path}", "schedule.max_steps=2"]))
    run.trainer.train()
    before = (run.folder / "metrics.jsonl").read_text()
    resume_run(run.folder, []).trainer.train()
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(record["kind"], record["step"]) for record in records] == [
        (record["kind"], record["step"]) for record in map(json.loads, before.splitlines())
    ]
    assert [record["kind"] for record in records].count("evaluation") == 1


def test_the_automatic_precision_is_decided_once_and_saved(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("attfc.run.build.best_autocast_dtype", lambda device: torch.bfloat16)
    options = [*TINY, f"output={tmp_path}", "schedule.max_steps=1", "eval.root=null", "precision.amp=auto"]
    run = new_run(load_config("demo", options))
    assert run.trainer.take_step.autocast_dtype is torch.bfloat16
    run.trainer.train()
    monkeypatch.setattr("attfc.run.build.best_autocast_dtype", lambda device: None)  # resumed on another machine
    assert resume_run(run.folder, []).trainer.take_step.autocast_dtype is torch.bfloat16


def test_seconds_count_every_step_of_an_interrupted_run(tmp_path, monkeypatch) -> None:
    run = new_run(load_config("demo", [*TINY, f"output={tmp_path}", "log.every=100", "eval.root=null"]))
    stop_after(monkeypatch, 3)
    with pytest.raises(Interrupted):
        run.trainer.train()
    assert run.trainer.state_dict()["trainer"]["seconds"] > 0.0
    assert resume_run(run.folder, []).trainer.state_dict()["trainer"]["seconds"] > 0.0


@pytest.mark.slow  # the compiler takes about a minute
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_a_compiled_run_has_the_same_losses_and_resumes_uncompiled(tmp_path) -> None:
    def train(name: str, *more: str) -> Path:
        options = [*TINY, f"output={tmp_path / name}", "schedule.max_steps=3", "eval.root=null", "precision.amp=none"]
        run = new_run(load_config("demo", [*options, *more]))
        run.trainer.train()
        return run.folder

    compiled, plain = train("compiled", "precision.compile=true"), train("plain")
    assert list(losses(compiled).values()) == pytest.approx(list(losses(plain).values()), rel=1e-3)
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (compiled, plain))
    assert first.keys() == second.keys()
    assert resume_run(compiled, ["precision.compile=false"]).trainer.step == 3
