"""One process per run folder; the newest run; what stays of a run that saved nothing."""

import os
import signal
import sys

import pytest
import torch

from attfc.errors import UserError
from attfc.training.checkpoints.checkpoint import save_checkpoint
from attfc.training.run_folder import locked, newest_run, remove_unsaved


def test_a_second_process_is_refused_with_the_number_of_the_first_and_a_kill_gives_the_lock_back(tmp_path):
    ready, started = os.pipe()
    holder = os.fork()
    if not holder:
        with locked(tmp_path):
            os.write(started, b"x")
            signal.pause()
    try:
        os.read(ready, 1)
        with (
            pytest.raises(UserError, match=rf"is being trained by process {holder} on .*: wait for it, or stop it"),
            locked(tmp_path),
        ):
            pass
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        for end in (ready, started):
            os.close(end)
    with locked(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()


def test_a_forked_worker_that_outlives_the_run_does_not_hold_the_lock(tmp_path):
    wait, release = os.pipe()
    ready, started = os.pipe()
    with locked(tmp_path):
        child = os.fork()
        if not child:  # lives on until the pipe is closed
            os.close(release)
            os.write(started, b"x")
            os.read(wait, 1)
            os._exit(0)
        os.read(ready, 1)
    try:
        with locked(tmp_path):
            pass
    finally:
        os.close(release)
        os.waitpid(child, 0)
        for end in (wait, ready, started):
            os.close(end)


def test_the_lock_is_free_again_after_an_error_and_absent_where_there_is_none(tmp_path, monkeypatch):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with locked(tmp_path), locked(tmp_path):
        pass


def run_with_checkpoint(folder, step, age):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: x\n")
    path = save_checkpoint(folder / "checkpoints", step, {"weight": torch.zeros(1)})
    os.utime(path / "manifest.json", (1_000_000 - age, 1_000_000 - age))


def test_last_is_the_run_whose_checkpoint_is_the_newest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--resume last: no run with a checkpoint in .*runs: give the run's folder"):
        newest_run()
    run_with_checkpoint(tmp_path / "runs" / "a-001", 9, age=5)
    run_with_checkpoint(tmp_path / "runs" / "a-002", 3, age=1)
    run_with_checkpoint(tmp_path / "runs" / "b-001", 7, age=3)
    (tmp_path / "runs" / "c-001").mkdir()  # interrupted before its first checkpoint
    (tmp_path / "runs" / "c-001" / "config.yaml").write_text("name: c\n")
    assert newest_run().name == "a-002"
    run_with_checkpoint(tmp_path / "other" / "d-001", 1, age=9)
    assert newest_run(["seed=3", "output=other"]).name == "d-001"


def test_a_run_folder_goes_only_if_nothing_was_saved_and_nothing_else_lies_there(tmp_path):
    unsaved = tmp_path / "unsaved"
    (unsaved / "tensorboard").mkdir(parents=True)
    for name in ("config.yaml", "environment.json", "metrics.jsonl", ".lock", ".started_in"):
        (unsaved / name).write_text("")
    (unsaved / "notes.txt").write_text("mine")
    assert not remove_unsaved(unsaved)
    (unsaved / "notes.txt").unlink()
    assert remove_unsaved(unsaved)
    assert not unsaved.exists()
    run_with_checkpoint(tmp_path / "saved", 1, age=0)
    assert not remove_unsaved(tmp_path / "saved")
    assert not remove_unsaved(tmp_path / "nowhere")
