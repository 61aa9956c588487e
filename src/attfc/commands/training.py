"""`attfc train`: from a preset and overrides to a trained run."""

from pathlib import Path
from typing import Annotated

import typer

from attfc.commands.common import err, out, print_figures, progress_bar
from attfc.errors import UserError

__all__ = ["train"]


def train(
    preset: Annotated[
        str | None, typer.Argument(help="a preset's name or a .yaml file; not with --resume", metavar="PRESET")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="for example optimizer.learning_rate=0.05", metavar="[KEY=VALUE]...")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="folder of an interrupted run to go on with", file_okay=False)
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="print the resolved configuration and leave")
    ] = False,
) -> None:
    """Train a face model, evaluate it on unseen identities, write the report."""
    from attfc.config import config_to_yaml, load_config, preset_names

    changes = list(overrides or [])
    if resume is not None and preset is not None and "=" in preset:
        changes.insert(0, preset)
        preset = None
    if resume is None and preset is None:
        raise UserError(f"which preset? One of {', '.join(preset_names())}, or the path of a .yaml file")
    if resume is not None and preset is not None:
        raise UserError(
            f"--resume takes its configuration from {resume / 'config.yaml'}: leave out the preset {preset!r} (overrides may stay)"
        )
    if print_config:
        if resume is not None:
            preset = str(resume / "config.yaml")
        out.print(config_to_yaml(load_config(str(preset), changes)), markup=False, end="", soft_wrap=True)
        return

    from attfc.build import finish_run, new_run, resume_run
    from attfc.distributed import leave_ranks
    from attfc.training.trainer import Interrupted

    with progress_bar("index") as bar:
        run = (
            resume_run(resume, changes, bar) if resume is not None else new_run(load_config(str(preset), changes), bar)
        )
    err.quiet = out.quiet = run.ranks.rank > 0  # rank 0 speaks for all
    for note in run.notes:
        err.print(f"note: {note}", markup=False)
    trainer = run.trainer
    identities, images = len(run.store.identities), len(run.store)
    err.print(
        f"{run.folder}: {run.config.head.name} on {run.config.backbone.name}, {identities:,} identities, {images:,} images, "
        f"{trainer.total_steps:,} steps of {run.config.batch_size * trainer.accumulation} on {trainer.device}"
        + (f" x {run.ranks.size} ranks" if run.ranks.size > 1 else "")
        + (f", resumed at step {trainer.step:,}" if resume is not None else ""),
        markup=False,
    )
    try:
        trainer.train()
    except Interrupted as stop:
        err.print(f"saved at step {stop.step:,}; go on with: attfc train --resume {run.folder}", markup=False)
        finish_run(run)
        run.ranks.barrier()  # torchrun ends all ranks as soon as one has left
        leave_ranks()
        raise typer.Exit(130) from None
    finally:
        err.quiet = out.quiet = False  # an error of any rank is said
    report = finish_run(run)
    run.ranks.barrier()
    leave_ranks()
    if run.ranks.rank:
        return
    if trainer.last_evaluation is not None:
        print_figures(trainer.last_evaluation, run.intervals)
        if run.intervals:
            out.print("[a, b]: 95 % interval by identity; more in the report", markup=False)
    err.print(f"model: {run.folder / 'model'}" + (f"   report: {report}" if report else ""), markup=False)
