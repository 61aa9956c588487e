"""How a run is stopped from outside: signals, and what the one who stopped it is told."""

import contextlib
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from attfc.training.checkpoints.checkpoint import latest_checkpoint
from attfc.training.run_folder import remove_unsaved

__all__ = ["Interrupted", "resume_command", "signals_call", "stopped_unsaved", "way_on"]


class Interrupted(Exception):
    """SIGTERM or Ctrl-C arrived; the text says what was saved, and how to go on.

    Attributes:
        step: where the run stopped.
        saved: the state of `step` is in a checkpoint; False: what came after the last checkpoint, if there is one, is lost.
    """

    def __init__(self, text: str, step: int, saved: bool) -> None:
        super().__init__(text)
        self.step = step
        self.saved = saved


def resume_command(folder: Path) -> str:
    """Return what to type to go on with a run."""
    return f"attfc train --resume {shlex.quote(str(folder))}"


def way_on(folder: Path, first: str = "") -> str:
    """Return what is saved of a run that failed, and what to do, `first` before all."""
    if latest_checkpoint(folder / "checkpoints") is None:
        return f"nothing was saved so far: {first}start the run again"
    return f"the checkpoints saved so far are intact: {first}{resume_command(folder)}"


def stopped_unsaved(folder: Path, step: int, total_steps: int, rank: int) -> Interrupted:
    """Return what to raise where a run ends without saving its last steps; rank 0 removes the folder of one that saved nothing at all."""
    last = latest_checkpoint(folder / "checkpoints")
    if last is not None and step >= total_steps:
        text = f"stopped in the evaluation; all {step:,} steps are saved; go on with: {resume_command(folder)}"
    elif last is not None:
        text = (
            f"stopped in step {step + 1:,}, which is not saved; go on from {last.name} with: {resume_command(folder)}"
        )
    else:
        text = f"stopped in step {step + 1:,}, before the first checkpoint: nothing was saved"
        if rank == 0 and remove_unsaved(folder):
            text += f", and {folder} is removed"
    return Interrupted(text, step, saved=False)


@contextlib.contextmanager
def signals_call(ask: Callable[[int], None]) -> Iterator[None]:
    """Call `ask` with SIGTERM or SIGINT when one arrives; not in forked workers, which end with their parent."""
    process = os.getpid()

    def handler(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            ask(number)

    try:
        before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: whoever runs us there handles signals
        before = {}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
