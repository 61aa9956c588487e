"""How a saved run goes on: `resume_run`, and what is asked before: the same network, the same people, something left to train.

The state itself is taken up by `Trainer.load` from what `attfc.training.checkpoints` wrote.
"""

import json
import math
import os
import shlex
from pathlib import Path

from attfc.config import Asked, RunConfig, config_to_yaml
from attfc.config.overrides import dotted
from attfc.errors import UserError
from attfc.files import write_text_whole
from attfc.run.build import Run, assemble
from attfc.run.saved import saved_configuration, with_found_data
from attfc.run.start_weights import read_record
from attfc.training.checkpoints.checkpoint import latest_checkpoint
from attfc.training.checkpoints.manifest import read_manifest
from attfc.training.interruption import resume_command
from attfc.training.people import first_difference, saved_people
from attfc.training.run_folder import locked
from attfc.typing import Progress

__all__ = ["finished", "resume_run"]

_FIXED = ("backbone", "finetune", "head", "negatives", "stored", "teacher")


def resume_run(folder: Path, overrides: list[str], progress: Progress | None = None) -> Run:
    """Put a run together again from its folder and take up its newest whole checkpoint.

    Raises:
        UserError: no run there, one that is being trained, data of other people, or overrides that change what the saved state
            describes (network, head, container).
    """
    before, config = saved_configuration(folder), saved_configuration(folder, overrides)
    _refuse_other_network(before, config)
    if os.environ.get("RANK", "0") == "0":
        with locked(folder):  # taken again by `Trainer.train`; asked here, before minutes of reading data
            pass
    config, notes = with_found_data(config, folder)
    run = assemble(Asked.of(config), folder, progress, read_record(folder))
    run.notes += notes
    found, faults = run.ranks.once(lambda: _newest(folder / "checkpoints"))
    if not found:
        raise UserError(
            f"{folder} has no whole checkpoint to resume from (looked in {folder / 'checkpoints'}"
            + (f"; {faults[0]}" if faults else "")
            + "): start a new run"
        )
    run.notes += [f"{fault}; resumed from {found}" for fault in faults]
    run.notes += run.ranks.together(lambda: _check_people(run, Path(found), overrides))
    run.notes += _rate_note(run, saved=run.trainer.load(Path(found)))
    run.notes += _what_is_left(run, overrides)
    if run.config != before and run.ranks.rank == 0:  # the next resume goes on with these values
        write_text_whole(folder / "config.yaml", config_to_yaml(run.config))
    return run


def _newest(checkpoints: Path) -> tuple[str, list[str]]:
    """Return the newest whole checkpoint, and what is wrong with those that are newer."""
    found = latest_checkpoint(checkpoints)
    newer = [path for path in checkpoints.glob("step_*") if found is None or path.name > found.name.removeprefix(".")]
    faults = []
    for path in sorted(newer, reverse=True):
        try:
            read_manifest(path)
        except UserError as error:
            faults.append(str(error))
    return str(found or ""), faults


def _refuse_other_network(before: RunConfig, after: RunConfig) -> None:
    """Raise UserError where overrides change what the saved state describes."""
    if before.optimizer.name != after.optimizer.name or before.batch_size != after.batch_size:
        raise UserError(
            f"optimizer.name={before.optimizer.name}, batch_size={before.batch_size} in the saved run, {after.optimizer.name}, "
            f"{after.batch_size} now: a resumed run keeps both (its steps and optimizer state count in them); start a new run"
        )
    old, new = (dotted(config.model_dump(include={*_FIXED})) for config in (before, after))
    # Where rows live is not part of what is saved: another host may have another disk, or more memory.
    free = {f"{section}.{name}" for section in _FIXED for name in ("block_mib", "place", "folder")}
    free |= {"teacher.model", "teacher.cache", "teacher.weight"}  # which model it is says its digest
    for key in sorted((old.keys() | new.keys()) - free):
        if old.get(key) != new.get(key):
            raise UserError(
                f"{key} is {old.get(key)!r} in the saved run and {new.get(key)!r} now: a resumed run keeps its network, head and container; "
                "start a new run to change them"
            )


def _check_people(run: Run, checkpoint: Path, overrides: list[str]) -> list[str]:
    """Compare the training set with the one of a checkpoint.

    Returns:
        A note where the checkpoint was written by a version that kept no names, else nothing.

    Raises:
        UserError: other people; with the first difference and the way to train on them from the run's weights.
    """
    saved = saved_people(checkpoint)
    difference = first_difference(saved, run.store, run.trainer.people)
    if difference is not None:
        anew = shlex.join([f"{run.folder}/config.yaml", *overrides, f"start_from={run.folder}"])
        raise UserError(
            f"{run.store.name} does not hold the people of the saved run: {difference}. A resumed run needs the same people in the same order. "
            f"To train on these from its weights: attfc train {anew}"
        )
    if "names" not in saved:
        return [
            f"{checkpoint.name} was written by an earlier attfc, which kept no hashes of the people: whether {run.store.name} holds the same "
            "people in the same order is not checked"
        ]
    return []


def _rate_note(run: Run, saved: float) -> list[str]:
    """Say what changes for the learning rate where a changed configuration changes it."""
    trainer = run.trainer
    now = float(trainer.optimizer.param_groups[0]["lr"])
    if trainer.step >= trainer.total_steps or math.isclose(now, saved, rel_tol=1e-6, abs_tol=1e-12):
        return []
    return [
        f"the learning rate of step {trainer.step + 1:,} is {now:.3g}; the saved run had come to {saved:.3g}. It follows the changed "
        f"configuration, with {trainer.total_steps:,} steps in all, as if the run had begun with it"
    ]


def finished(run: Run) -> str | None:
    """Return what to say of a resumed run that has nothing left to do; None: it has."""
    trainer, folder = run.trainer, run.folder
    written = [folder / "model" / "model.safetensors"]
    if trainer.evaluation is not None:
        written.append(folder / "evaluation.json")
    if run.config.report.write:
        written.append(folder / "report.html")
    if trainer.step < trainer.total_steps or not all(path.is_file() for path in written) or _stale(run):
        return None
    return (
        f"{folder} is finished: all {max(trainer.step, trainer.total_steps):,} steps are done. To train longer: {_longer(run)}\n"
        f"model: {folder / 'model'}" + (f"   report: {folder / 'report.html'}" if run.config.report.write else "")
    )


def _stale(run: Run) -> bool:
    """Whether evaluation or report are of an earlier end of the run, which was trained longer and interrupted before they were made again."""
    evaluation, report = run.folder / "evaluation.json", run.folder / "report.html"
    if run.trainer.evaluation is None:
        return False
    try:
        step = json.loads(evaluation.read_bytes()).get("step", run.trainer.step)
    except (OSError, ValueError, RecursionError, AttributeError):
        return True
    return bool(step != run.trainer.step) or (
        run.config.report.write and report.stat().st_mtime_ns < evaluation.stat().st_mtime_ns
    )


def _what_is_left(run: Run, overrides: list[str]) -> list[str]:
    """Say of a run that is resumed with changes where they leave it nothing to train.

    Raises:
        UserError: the changes end the run before the step at which it stands.
    """
    step, total = run.trainer.step, run.trainer.total_steps
    if not overrides or step < total:
        return []
    if step > total:
        raise UserError(
            f"{run.folder} has done {step:,} steps, and with {' '.join(overrides)} it would end at {total:,}: to train longer: {_longer(run)}"
        )
    return [
        f"all {total:,} steps are done: nothing is trained, only the evaluation and the report are made again. To train longer: {_longer(run)}"
    ]


def _longer(run: Run) -> str:
    """Return the command that doubles the steps of a run."""
    trainer, schedule = run.trainer, run.config.schedule
    longer, more = [], 2 * max(trainer.step, trainer.total_steps)
    if schedule.max_steps is not None and schedule.max_steps < more:
        longer.append(f"schedule.max_steps={more}")
    images = run.config.batch_size * run.config.optimizer.accumulation
    if schedule.epochs * trainer.loader.epoch_length < more * images:
        longer.append(f"epochs={math.ceil(more * images / trainer.loader.epoch_length)}")
    return f"{resume_command(run.folder)} {' '.join(longer)}"
