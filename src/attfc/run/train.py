"""One line to a trained model: `attfc.train(data)`, and the same for the command line."""

import os
from typing import Any

from attfc.config.arguments import read_words, short_overrides
from attfc.distributed import leave_ranks
from attfc.run.build import Run, finish_run, new_run
from attfc.training.interruption import Interrupted

__all__ = ["carry_out", "train"]


def train(data: str | os.PathLike[str], *overrides: str, **short: Any) -> Run:
    """Train on a set of faces, judge the model on people kept aside, and write the report.

    Args:
        data: a folder with one folder per person, `train.rec`, a packed set, a list file, "synthetic:..."; or the name of a preset.
        overrides: as on the command line, such as "optimizer.weight_decay=1e-4"; also a preset's name.
        short: epochs, max_steps, lr, batch_size, backbone, head, seed, device, output, name, start_from.

    Returns:
        The run: `run.metrics` (of people kept aside; None where there are none), `run.model` (as `attfc.load`), `run.report` (path of the HTML page),
        `run.folder`, `run.config`. An interrupt (Ctrl-C, a notebook's stop button) saves after the current step and returns the run with
        `run.interrupted` set; `attfc train --resume` goes on with it. Before the first step is done nothing is saved and the folder is removed;
        `run.stopped` says which.

    Raises:
        UserError: data, an option or a combination that cannot be trained; one line that names the value and the fix.
    """
    from attfc.commands.training_screen import RunScreen

    with RunScreen() as screen:
        run = screen.begin(lambda bar: new_run(read_words([data, *overrides, *short_overrides(short)]), bar))
        carry_out(run)
        screen.finish(run)
    return run


def carry_out(run: Run) -> Run:
    """Train a run that was put together, from wherever it stands, and write its report; `run.interrupted` says whether it was stopped."""
    try:
        run.trainer.train()
    except Interrupted as stop:
        run.interrupted, run.stopped = True, str(stop)
        if not stop.saved:
            leave_ranks()
            return run
    run.report = finish_run(run)
    run.ranks.barrier()  # torchrun ends all ranks as soon as one has left
    leave_ranks()
    return run
