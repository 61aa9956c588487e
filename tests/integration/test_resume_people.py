"""A run goes on with its own people, from wherever it is resumed, alone in its folder; and an early end leaves nothing behind."""

import json
import os
import shutil
import signal

import pytest

from attfc.config import load_config
from attfc.data import SyntheticFaces
from attfc.errors import UserError
from attfc.files import crc32_of
from attfc.run.build import new_run
from attfc.run.resuming import finished, resume_run
from attfc.training.checkpoints.manifest import STATE
from attfc.training.run_folder import locked
from attfc.training.trainer import Interrupted, Trainer

from .commands import run_main
from .conftest import TINY

SHORT = [*TINY, "eval.root=null", "head=full_fc"]


def faces(root, people=20, seed=0):
    store = SyntheticFaces(people, 2, seed=seed)
    for position in range(len(store)):
        encoded, label = store.read(position)
        folder = root / f"person {label:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{position}.jpg").write_bytes(encoded)
    return root


def trained(tmp_path, *more, steps=2):
    run = new_run(load_config("demo", [*SHORT, f"output={tmp_path / 'runs'}", f"schedule.max_steps={steps}", *more]))
    run.trainer.train()
    return run


def test_a_renamed_folder_is_refused_and_nothing_is_touched(tmp_path) -> None:
    root = faces(tmp_path / "faces")
    run = trained(tmp_path, f"data.root={root}")
    longer = ["schedule.max_steps=3"]
    (root / "person 00").rename(root / "person 99")  # 19 of 20 labels would be other people
    with pytest.raises(UserError) as told:
        resume_run(run.folder, longer)
    assert str(told.value) == (
        "faces does not hold the people of the saved run: the counts are equal, but the names of the labels 0 to 19 "
        "(now 'person 01' to 'person 99') or their order differ. A resumed run needs the same people in the same order. "
        f"To train on these from its weights: attfc train {run.folder}/config.yaml schedule.max_steps=3 start_from={run.folder}"
    )
    (root / "person 99").rename(root / "person 00")
    resumed = resume_run(run.folder, longer)
    assert [note for note in resumed.notes if "people" in note] == []
    shutil.copytree(root / "person 00", root / "person 20")
    with pytest.raises(
        UserError, match=r"of the saved run: 20 identities in the saved run, now 21\. A resumed run needs"
    ):
        resume_run(run.folder, longer)
    assert "person" not in (run.folder / "checkpoints" / "step_000000002" / STATE).read_text()


def test_the_way_out_that_is_named_works(tmp_path) -> None:
    run = trained(tmp_path)
    other = "data.root=synthetic:identities=24,images=6,seed=1"
    with pytest.raises(UserError, match=r"'seed 1 identity 0' to 'seed 1 identity 23'\) or their order differ") as told:
        resume_run(run.folder, [other])
    named = str(told.value).split("attfc train ")[1].split()
    begun = new_run(load_config(named[0], named[1:]))
    assert begun.folder != run.folder
    assert begun.config.data.root == other.removeprefix("data.root=")


def test_a_checkpoint_of_an_earlier_version_resumes_with_a_note(tmp_path) -> None:
    run = trained(tmp_path)
    checkpoint = run.folder / "checkpoints" / "step_000000002"
    state = json.loads((checkpoint / STATE).read_text())
    del state["people"]
    (checkpoint / STATE).write_text(json.dumps(state))
    manifest = manifest_after_edit(checkpoint)
    (checkpoint / "manifest.json").write_text(manifest)
    resumed = resume_run(run.folder, ["schedule.max_steps=3"])
    (note,) = [note for note in resumed.notes if "people" in note]
    assert note.startswith("step_000000002 was written by an earlier attfc, which kept no hashes of the people")
    with pytest.raises(UserError, match="144 images in the saved run, now 120"):
        resume_run(run.folder, ["data.root=synthetic:identities=24,images=5,seed=0"])


def manifest_after_edit(checkpoint) -> str:
    """The manifest with the size and checksum that state.json has now."""
    data = json.loads((checkpoint / "manifest.json").read_text())
    data["files"][STATE] = {"bytes": (checkpoint / STATE).stat().st_size, "crc32": crc32_of(checkpoint / STATE)}
    return json.dumps(data)


def test_relative_data_are_found_from_another_folder(tmp_path, monkeypatch) -> None:
    project = tmp_path / "project"
    faces(project / "faces")
    monkeypatch.chdir(project)
    run = new_run(load_config("demo", [*SHORT, "data.root=faces", "output=runs", "schedule.max_steps=2"]))
    run.trainer.train()
    monkeypatch.chdir(tmp_path)
    resumed = resume_run(tmp_path / "project" / "runs" / "demo-001", [])
    assert resumed.config.data.root == str(project / "faces")
    assert f"data.root=faces was found as {project / 'faces'}" in resumed.notes
    project.rename(tmp_path / "moved")  # the folder written down is gone; the run's place tells
    folder = tmp_path / "moved" / "runs" / "demo-001"
    assert resume_run(folder, ["data.root=faces"]).config.data.root == str(tmp_path / "moved" / "faces")
    with pytest.raises(UserError) as told:
        resume_run(folder, ["data.root=other"])
    assert str(told.value) == (
        f"data.root=other is in none of the folders searched ({tmp_path}, {project}, {tmp_path / 'moved'}): give its place as data.root=PATH"
    )


def test_changes_that_leave_nothing_to_train_are_said_or_refused(tmp_path) -> None:
    run = trained(tmp_path, steps=4)
    command = f"attfc train --resume {run.folder} schedule.max_steps=8"
    assert (
        f"all 4 steps are done: nothing is trained, only the evaluation and the report are made again. To train longer: {command}"
        in (resume_run(run.folder, ["schedule.epochs=50"]).notes)
    )
    saved = (run.folder / "config.yaml").read_text(encoding="utf-8")
    with pytest.raises(UserError) as told:
        resume_run(run.folder, ["max_steps=3", "lr=1e-3"])
    assert str(told.value) == (
        f"{run.folder} has done 4 steps, and with max_steps=3 lr=1e-3 it would end at 3: to train longer: {command}"
    )
    assert (run.folder / "config.yaml").read_text(encoding="utf-8") == saved


def test_going_on_after_the_end_says_what_the_rate_does_and_uses_it(tmp_path) -> None:
    run = trained(tmp_path, "optimizer.learning_rate=0.1", steps=4)
    assert "is finished: all 4 steps are done. To train longer: attfc train --resume" in finished(
        resume_run(run.folder, [])
    )
    assert finished(resume_run(run.folder, [])).splitlines()[0].endswith(" schedule.max_steps=8")
    resumed = resume_run(run.folder, ["schedule.max_steps=8"])
    assert finished(resumed) is None
    assert (
        "the learning rate of step 5 is 0.05; the saved run had come to 0. It follows the changed configuration, with 8 steps in all, "
        "as if the run had begun with it"
    ) in resumed.notes
    assert resumed.trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_a_run_that_is_being_trained_is_not_resumed(tmp_path) -> None:
    run = trained(tmp_path)
    with locked(run.folder), pytest.raises(UserError, match=rf"demo-001 is being trained by process {os.getpid()} on "):
        resume_run(run.folder, ["schedule.max_steps=3"])
    resumed = resume_run(run.folder, ["schedule.max_steps=3"])
    with locked(run.folder), pytest.raises(UserError, match="is being trained by"):
        resumed.trainer.train()
    resumed.trainer.train()


def signalled(monkeypatch, number, step, times=1):
    """Send this process a signal in the middle of a step."""
    original = Trainer.train_step

    def train_step(self, batches):
        if self.step + 1 == step:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return original(self, batches)

    monkeypatch.setattr(Trainer, "train_step", train_step)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_is_done_leaves_no_folder(tmp_path, monkeypatch, number) -> None:
    run = new_run(load_config("demo", [*SHORT, f"output={tmp_path}"]))
    signalled(monkeypatch, number, step=1)
    with pytest.raises(Interrupted) as stop:
        run.trainer.train()
    assert (
        str(stop.value)
        == f"stopped in step 1, before the first checkpoint: nothing was saved, and {run.folder} is removed"
    )
    assert not stop.value.saved
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_ends_at_once_and_says_what_stands(tmp_path, monkeypatch) -> None:
    run = new_run(load_config("demo", [*SHORT, f"output={tmp_path}", "checkpoint.every=2"]))
    signalled(monkeypatch, signal.SIGINT, step=4, times=2)
    with pytest.raises(Interrupted) as stop:
        run.trainer.train()
    assert str(stop.value) == (
        f"stopped in step 4, which is not saved; go on from step_000000002 with: attfc train --resume {run.folder}"
    )
    assert resume_run(run.folder, []).trainer.step == 2


def test_a_signal_while_a_resumed_run_has_done_nothing_keeps_what_was_saved(tmp_path, monkeypatch) -> None:
    run = trained(tmp_path)
    resumed = resume_run(run.folder, ["schedule.max_steps=9"])
    signalled(monkeypatch, signal.SIGINT, step=3)
    with pytest.raises(Interrupted, match="stopped in step 3, which is not saved; go on from step_000000002"):
        resumed.trainer.train()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_last_step_or_evaluation_ends_at_once_and_the_evaluation_is_made_up_for(
    tmp_path, monkeypatch, number
) -> None:
    judged = ("eval.root=synthetic:identities=20,images=2,first=500", "eval.look_alikes=0")
    run = trained(tmp_path, *judged)
    assert finished(resume_run(run.folder, [])) is not None
    evaluate = Trainer.run_evaluation

    def interrupted_evaluation(trainer: Trainer) -> str:
        os.kill(os.getpid(), number)
        return evaluate(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_evaluation", interrupted_evaluation)
        with pytest.raises(Interrupted) as stop:
            resume_run(run.folder, ["schedule.max_steps=4"]).trainer.train()
    command = f"attfc train --resume {run.folder}"
    assert str(stop.value) == f"stopped in the evaluation; all 4 steps are saved; go on with: {command}"
    resumed = resume_run(run.folder, [])
    assert finished(resumed) is None  # its evaluation.json is of step 2
    resumed.trainer.train()
    assert finished(resume_run(run.folder, [])) is not None

    with monkeypatch.context() as patch:
        signalled(patch, number, step=6)
        with pytest.raises(Interrupted, match=f"saved at step 6; go on with: {command}"):
            resume_run(run.folder, ["schedule.max_steps=6"]).trainer.train()
    resumed = resume_run(run.folder, [])
    assert finished(resumed) is None
    resumed.trainer.train()
    assert finished(resume_run(run.folder, [])) is not None


def test_the_command_says_that_a_run_is_finished_and_finds_the_last(tmp_path, monkeypatch, capsys) -> None:
    run = trained(tmp_path)
    status, _, err = run_main(monkeypatch, capsys, "train", "--resume", "last", f"output={tmp_path / 'runs'}")
    assert status == 0, err
    assert f"{run.folder} is finished: all 2 steps are done" in err
