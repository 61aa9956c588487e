"""What is asked before a saved run goes on: where its data are, whether they are the same people, what changes for the learning rate."""

import math
import os
import shlex
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attfc.config import RunConfig, read_preset
from attfc.config.overrides import dotted
from attfc.config.translate import translate
from attfc.errors import UserError
from attfc.training.checkpoints.checkpoint import latest_checkpoint
from attfc.training.checkpoints.manifest import read_manifest
from attfc.training.interruption import resume_command
from attfc.training.people import first_difference, saved_people

if TYPE_CHECKING:
    from attfc.run.build import Run

__all__ = [
    "check_people",
    "finished",
    "note_start_folder",
    "rate_note",
    "refuse_other_network",
    "saved_configuration",
    "what_is_left",
    "with_found_data",
]

_FIXED = ("backbone", "head", "negatives", "stored")
STARTED_IN = ".started_in"
MAX_PATH_BYTES = 1 << 16


def note_start_folder(folder: Path) -> None:
    """Write down in a run folder where relative paths of its configuration begin."""
    (folder / STARTED_IN).write_bytes(os.fsencode(Path.cwd()))


def saved_configuration(folder: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Return the configuration of a run's folder with overrides, of an earlier version as this one would have saved it.

    Raises:
        UserError: no run there, or an override that cannot be.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is not a run: it has no config.yaml")
    checkpoint = latest_checkpoint(folder / "checkpoints")
    tensors = () if checkpoint is None else read_manifest(checkpoint).tensors
    asked = read_preset(str(path), list(overrides), partial(translate, tensors=tensors, saved=True))
    if "profile" in asked.typed():
        raise UserError("profile= is for a new run: a resumed one keeps the method that its saved state belongs to")
    return asked.resolve()


def with_found_data(config: RunConfig, folder: Path) -> tuple[RunConfig, list[str]]:
    """Make paths absolute that are relative to the folder in which the run was started, where this is another; with a note for each.

    Raises:
        UserError: data that are in neither; the folders searched are named.
    """
    bases = _bases(config, folder)
    notes: list[str] = []

    def found(key: str, path: str) -> str:
        if not path or path.startswith("synthetic") or os.path.isabs(os.path.expanduser(path)) or Path(path).exists():
            return path
        there = next((base / path for base in bases if (base / path).exists()), None)
        if there is None:
            searched = ", ".join(map(str, dict.fromkeys([Path.cwd(), *bases])))
            raise UserError(
                f"{key}={path} is in none of the folders searched ({searched}): give its place as {key}=PATH"
            )
        notes.append(f"{key}={path} was found as {there}")
        return str(there)

    config = config.model_copy(deep=True)
    data, held_out = config.data, config.eval
    if data.sources:
        for number, source in enumerate(data.sources):
            source.root = found(f"data.sources.{number}.root", source.root)
            source.edits = [found(f"data.sources.{number}.edits", path) for path in source.edits]
    else:
        data.root = found("data.root", data.root)
        data.edits = [found("data.edits", path) for path in data.edits]
    if held_out.root is not None:
        held_out.root = found("eval.root", held_out.root)
    held_out.edits = [found("eval.edits", path) for path in held_out.edits]
    if held_out.pairs is not None:
        held_out.pairs = found("eval.pairs", held_out.pairs)
    return config, notes


def _bases(config: RunConfig, folder: Path) -> list[Path]:
    """Where the run may have been started: as it was written down, and as its place under `output` tells if all was moved."""
    bases = []
    try:
        with (folder / STARTED_IN).open("rb") as file:
            bases.append(Path(os.fsdecode(file.read(MAX_PATH_BYTES))))
    except OSError:
        pass
    output, parent = Path(config.output), folder.resolve().parent
    if not output.is_absolute() and output.parts == parent.parts[len(parent.parts) - len(output.parts) :]:
        bases.append(Path(*parent.parts[: len(parent.parts) - len(output.parts)]))
    return [base for base in bases if base.is_absolute()]


def refuse_other_network(before: RunConfig, after: RunConfig) -> None:
    """Raise UserError where overrides change what the saved state describes."""
    if before.optimizer.name != after.optimizer.name or before.batch_size != after.batch_size:
        raise UserError(
            f"optimizer.name={before.optimizer.name}, batch_size={before.batch_size} in the saved run, {after.optimizer.name}, "
            f"{after.batch_size} now: a resumed run keeps both (its steps and optimizer state count in them); start a new run"
        )
    old, new = (dotted(config.model_dump(include={*_FIXED})) for config in (before, after))
    # Where rows live is no part of what is saved: another host may have another disk, or more memory.
    free = {f"{section}.{name}" for section in _FIXED for name in ("block_mib", "place", "folder")}
    for key in sorted((old.keys() | new.keys()) - free):
        if old.get(key) != new.get(key):
            raise UserError(
                f"{key} is {old.get(key)!r} in the saved run and {new.get(key)!r} now: a resumed run keeps its network, head and container; "
                "start a new run to change them"
            )


def check_people(run: "Run", checkpoint: Path, overrides: list[str]) -> list[str]:
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


def rate_note(run: "Run", saved: float) -> list[str]:
    """Say what changes for the learning rate where a changed configuration changes it."""
    trainer = run.trainer
    now = float(trainer.optimizer.param_groups[0]["lr"])
    if trainer.step >= trainer.total_steps or math.isclose(now, saved, rel_tol=1e-6, abs_tol=1e-12):
        return []
    return [
        f"the learning rate of step {trainer.step + 1:,} is {now:.3g}; the saved run had come to {saved:.3g}. It follows the changed "
        f"configuration, with {trainer.total_steps:,} steps in all, as if the run had begun with it"
    ]


def finished(run: "Run") -> str | None:
    """Return what to say of a resumed run that has nothing left to do; None: it has."""
    trainer, folder = run.trainer, run.folder
    written = [folder / "model" / "model.safetensors"]
    if trainer.evaluate is not None:
        written.append(folder / "evaluation.json")
    if run.config.report.write:
        written.append(folder / "report.html")
    if trainer.step < trainer.total_steps or not all(path.is_file() for path in written):
        return None
    return (
        f"{folder} is finished: all {max(trainer.step, trainer.total_steps):,} steps are done. To train longer: {_longer(run)}\n"
        f"model: {folder / 'model'}" + (f"   report: {folder / 'report.html'}" if run.config.report.write else "")
    )


def what_is_left(run: "Run", overrides: list[str]) -> list[str]:
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
        f"all {total:,} steps are done: nothing is trained, only the evaluation and the report are made anew. To train longer: {_longer(run)}"
    ]


def _longer(run: "Run") -> str:
    """Return the command that doubles the steps of a run."""
    trainer, schedule = run.trainer, run.config.schedule
    longer, more = [], 2 * max(trainer.step, trainer.total_steps)
    if schedule.max_steps is not None and schedule.max_steps < more:
        longer.append(f"schedule.max_steps={more}")
    images = run.config.batch_size * run.config.optimizer.accumulation
    if schedule.epochs * trainer.loader.epoch_length < more * images:
        longer.append(f"schedule.epochs={math.ceil(more * images / trainer.loader.epoch_length)}")
    return f"{resume_command(run.folder)} {' '.join(longer)}"
