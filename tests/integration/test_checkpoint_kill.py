"""kill -9 at random moments of a process that does nothing but save and prune: the newest checkpoint is always whole, and never older than
the last one that was reported done.

A small server imports torch once and forks the victims: ten starts cost one import.
"""

import os
import random
import signal
import subprocess
import sys
import time

import torch

from attfc.training.checkpoints.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint

KILLS = 12
SERVER = """
import os, sys
from pathlib import Path
import torch
import torch.distributed.checkpoint.default_planner
from attfc.training.checkpoints import storage
from attfc.training.checkpoints.checkpoint import latest_checkpoint, load_checkpoint, prune_checkpoints, save_checkpoint

def state(step):
    return {"step": step, "rows": [torch.full((50_000,), float(step)) for _ in range(4)]}

def victim(folder):
    last = latest_checkpoint(folder)
    step = 0 if last is None else load_checkpoint(last)["step"]
    while True:
        step += 1
        save_checkpoint(folder, step, state(step))
        os.write(1, b"done %d\\n" % step)
        if step % 2:
            save_checkpoint(folder, step, state(step))  # the same step again: a checkpoint that replaces another
        prune_checkpoints(folder, 2)

torch.set_num_threads(1)
folder = Path(sys.argv[1])
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        victim(folder)
    os.write(1, b"born %d\\n" % child)
    _, status = os.waitpid(child, 0)
    os.write(1, b"dead %d\\n" % status)
"""


def test_kill_at_any_moment(tmp_path, end_with_test):
    chance = random.Random(0)
    folder = tmp_path / "checkpoints"
    command = [sys.executable, "-c", SERVER, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = end_with_test(subprocess.Popen(command, text=True, bufsize=1, start_new_session=True, **pipes))
    assert server.stdin is not None
    assert server.stdout is not None
    reported = 0
    cuts = 0
    for _ in range(KILLS):
        server.stdin.write("go\n")
        child = None
        saved = 0
        while child is None or not saved:  # the two processes write to one pipe, in either order
            word, number = server.stdout.readline().split()
            child = int(number) if word == "born" else child
            saved = int(number) if word == "done" else saved
        time.sleep(chance.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        while word != "dead":
            word, number = server.stdout.readline().split()
            saved = int(number) if word == "done" else saved
        assert int(number) == signal.SIGKILL
        assert saved > reported
        reported = saved
        cuts += any(path.name.startswith(".") for path in folder.iterdir())
        state = load_checkpoint(latest_checkpoint(folder))
        assert reported <= state["step"] <= reported + 1
        assert all(torch.equal(rows, torch.full((50_000,), float(state["step"]))) for rows in state["rows"])
    server.stdin.close()
    assert server.wait(timeout=60) == 0
    server.stdout.close()
    assert cuts >= 2  # the kills did fall into saves
    save_checkpoint(folder, reported + 10, {"step": reported + 10})
    assert all(path.name.startswith("step_") for path in folder.iterdir())  # nothing temporary outlives the next save
