"""`attfc train`: from a preset and overrides to a trained run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attfc.commands.common import err, out, print_figures, progress_bar
from attfc.errors import UserError

if TYPE_CHECKING:
    from attfc.build import Run

__all__ = ["train"]


def train(
    preset: Annotated[
        str | None, typer.Argument(help="a preset's name or a .yaml file; not with --resume", metavar="PRESET")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="for example optimizer.learning_rate=0.05", metavar="[KEY=VALUE]...")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", help="folder of a run to go on with; last: the newest under output", file_okay=False),
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
    if resume == Path("last"):
        from attfc.training.run_folder import newest_run

        resume = newest_run(changes)
        changes = [change for change in changes if not change.startswith("output=")]
    if resume is None and preset is None:
        raise UserError(f"which preset? One of {', '.join(preset_names())}, or the path of a .yaml file")
    if resume is not None and preset is not None:
        raise UserError(
            f"--resume takes its configuration from {resume / 'config.yaml'}: leave out the preset {preset!r} (overrides may stay)"
        )
    if print_config:
        if resume is not None:
            preset = str(resume / "config.yaml")
        out.print(config_to_yaml(load_config(str(preset), changes)), markup=False, end="")
        return

    try:
        from attfc.build import finish_run, new_run, resume_run
        from attfc.distributed import leave_ranks
        from attfc.resuming import finished
        from attfc.training.interruption import Interrupted, stopped_unsaved

        with progress_bar("index") as bar:
            run = (
                resume_run(resume, changes, bar)
                if resume is not None
                else new_run(load_config(str(preset), changes), bar)
            )
    except KeyboardInterrupt:
        err.print("stopped before the first step: nothing was saved", markup=False)
        raise typer.Exit(130) from None
    err.quiet = out.quiet = run.ranks.rank > 0  # rank 0 speaks for all
    said = finished(run) if resume is not None and not changes else None
    if said is not None:
        err.print(said, markup=False)
        leave_ranks()
        return
    trainer = run.trainer
    try:
        _say_what_runs(run, resumed=resume is not None)
        trainer.train()
    except (Interrupted, KeyboardInterrupt) as error:
        stop = error if isinstance(error, Interrupted) else stopped_unsaved(run.folder, trainer.step, run.ranks.rank)
        err.print(str(stop), markup=False)
        if stop.saved:
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


def _say_what_runs(run: "Run", resumed: bool) -> None:
    for note in run.notes:
        err.print(f"note: {note}", markup=False)
    trainer = run.trainer
    identities, images = len(run.store.identities), len(run.store)
    err.print(
        f"{run.folder}: {run.config.head.name} on {run.config.backbone.name}, {identities:,} identities, {images:,} images, "
        f"{trainer.total_steps:,} steps of {run.config.batch_size * trainer.accumulation} on {trainer.device}"
        + (f" x {run.ranks.size} ranks" if run.ranks.size > 1 else "")
        + (f", resumed at step {trainer.step:,}" if resumed else ""),
        markup=False,
    )
