"""The commands, thin: parse, call, print.

Exit status: 0 done; 1 the input is at fault (one line on stderr, a traceback only with ``--debug``); 2 usage; 130 interrupted. Commands that
compute a figure take ``--json FILE``. Heavy imports wait until a command needs them, so ``attfc --help`` answers at once.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from attfc.errors import UserError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Train face recognition on millions of identities with one GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Look into a store of faces.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

JsonOption = Annotated[Path | None, typer.Option("--json", help="also write the figures to this file", dir_okay=False)]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="folder for the identity index; default beside the data", file_okay=False)
]

_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; ``--debug`` anywhere shows tracebacks."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if "OMP_WAIT_POLICY" not in os.environ:
        # Read when torch is loaded, so it is set before. Threads that spin for long take the processor from the one they wait
        # for: beside another busy process training is 1.3 to 1.6 times faster so, alone as fast (benchmarks/waiting_threads.py).
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app([argument for argument in arguments if argument != "--debug"], prog_name="attfc")
    except (UserError, OSError) as error:
        if debug:
            raise
        _err.print(f"error: {error}", markup=False)
        sys.exit(1)
    except RuntimeError as error:
        if debug or type(error).__name__ != "OutOfMemoryError":  # torch's, without importing torch to name it
            raise
        _err.print(
            f"error: {str(error).splitlines()[0]} Try a smaller batch_size with optimizer.accumulation, a smaller container, "
            "precision.amp=bfloat16, or backbone.options={checkpointing: true}",
            markup=False,
        )
        sys.exit(1)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        _out.print(version("attfc"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="print the version and leave", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
) -> None:
    del version, debug  # the first left already; the second is taken from the arguments in main()


@app.command()
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
        _out.print(config_to_yaml(load_config(str(preset), changes)), markup=False, end="")
        return

    from attfc.build import finish_run, new_run, resume_run
    from attfc.training.trainer import Interrupted

    with _progress_bar("index") as bar:
        run = (
            resume_run(resume, changes, bar) if resume is not None else new_run(load_config(str(preset), changes), bar)
        )
    for note in run.notes:
        _err.print(f"note: {note}", markup=False)
    trainer = run.trainer
    identities, images = len(run.store.identities), len(run.store)
    _err.print(
        f"{run.folder}: {run.config.head.name} on {run.config.backbone.name}, {identities:,} identities, {images:,} images, "
        f"{trainer.total_steps:,} steps of {run.config.batch_size * trainer.accumulation} on {trainer.device}"
        + (f", resumed at step {trainer.step:,}" if resume is not None else ""),
        markup=False,
    )
    try:
        trainer.train()
    except Interrupted as stop:
        _err.print(f"saved at step {stop.step:,}; go on with: attfc train --resume {run.folder}", markup=False)
        finish_run(run)
        raise typer.Exit(130) from None
    report = finish_run(run)
    if trainer.last_evaluation is not None:
        _print_figures(trainer.last_evaluation)
    _err.print(f"model: {run.folder / 'model'}" + (f"   report: {report}" if report else ""), markup=False)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="a run's folder, or a folder with model.safetensors and config.json")],
    protocol: Annotated[str, typer.Argument(help="held-out: pairs, all pairs and rank-1 of a store")],
    path: Annotated[str, typer.Argument(help="image folder or synthetic: spec of people never trained on")],
    pairs: Annotated[Path | None, typer.Option(help="pairs file in the LFW form; default: generated pairs")] = None,
    generated_pairs: Annotated[int, typer.Option(min=4)] = 6000,
    seed: Annotated[int, typer.Option(help="of the generated pairs")] = 0,
    device: Annotated[str, typer.Option()] = "auto",
    cache: CacheOption = None,
    json_file: JsonOption = None,
) -> None:
    """Evaluate a trained model on identities it never saw."""
    from attfc.build import choose_device
    from attfc.data import open_store
    from attfc.evaluation import evaluate_store, read_pairs
    from attfc.training.model_files import load_model

    if protocol != "held-out":
        raise UserError(f"unknown protocol {protocol!r}: this version has held-out")
    folder = model / "model" if (model / "model").is_dir() else model
    backbone, _ = load_model(folder)
    with _progress_bar("index") as bar:
        store = open_store(path, cache=cache, progress=bar)
    result = evaluate_store(
        backbone.to(choose_device(device)),
        store,
        pairs=read_pairs(pairs, store) if pairs is not None else None,
        generated_pairs=generated_pairs,
        seed=seed,
    )
    figures = result.figures()
    _print_figures(figures)
    _write_json(json_file, {"model": str(folder), "store": path, "pairs": str(pairs) if pairs else None, **figures})


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="a run's folder")],
    pictures: Annotated[
        bool, typer.Option("--pictures", help="embed faces of the hardest pairs; only for stores you may show")
    ] = False,
) -> None:
    """Write a run's report.html anew."""
    from attfc.config import load_config
    from attfc.data import open_store
    from attfc.evaluation import write_report

    store = None
    if pictures:
        config = load_config(str(run / "config.yaml"))
        if config.eval.root is None:
            raise UserError(
                f"{run} was not evaluated (eval.root is not set), so there are no pairs to picture: leave out --pictures"
            )
        store = open_store(config.eval.root, cache=config.eval.index_cache)
    _out.print(str(write_report(run, store=store, pictures=pictures)), markup=False)


@app.command()
def backbones(json_file: JsonOption = None) -> None:
    """Print the networks: parameters and multiply-accumulates of one image."""
    from attfc.backbones import backbone_table

    rows = backbone_table()
    table = Table("name", "parameters", "GMACs", "attention GMACs", "input", "source", box=None)
    for column in table.columns[1:5]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row.name,
            f"{row.params / 1e6:.2f} M",
            f"{row.gmacs:.3f}",
            f"{row.attention_gmacs:.3f}",
            f"{row.image_size} px",
            row.source,
        )
    _out.print(table)
    _out.print("timm:NAME takes any timm model (extra attfc[timm])")
    _write_json(json_file, {"backbones": [dataclasses.asdict(row) for row in rows]})


@app.command()
def presets() -> None:
    """List the presets."""
    from attfc.config import load_config, preset_names

    table = Table("preset", "data", "network", "head", "epochs", box=None)
    for name in preset_names():
        config = load_config(name)
        table.add_row(
            name,
            config.data.root,
            config.backbone.name,
            f"{config.head.name} ({config.profile})",
            f"{config.schedule.epochs:g}",
        )
    _out.print(table)


@data_app.command("inspect")
def inspect_data(
    path: Annotated[str, typer.Argument(help="image folder or synthetic: spec")],
    workers: Annotated[int, typer.Option(min=0, help="decoding processes")] = 2,
    cache: CacheOption = None,
    json_file: JsonOption = None,
) -> None:
    """Identities, images, images per identity, broken files, duplicates."""
    from attfc.data import inspect_store, open_store

    with _progress_bar("index") as bar:
        store = open_store(path, cache=cache, progress=bar)
    with _progress_bar("inspect") as bar:
        result = inspect_store(store, workers=workers, progress=bar)
    _out.print(result.to_text(), markup=False)
    _write_json(json_file, result.to_dict())


@data_app.command("preview")
def preview_data(
    path: Annotated[str, typer.Argument(help="image folder or synthetic: spec")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write", dir_okay=False)] = Path("preview.png"),
    identities: Annotated[int, typer.Option(min=1, max=100)] = 8,
    images: Annotated[int, typer.Option(min=1, max=100, help="per identity")] = 8,
    seed: Annotated[int, typer.Option()] = 0,
    cache: CacheOption = None,
) -> None:
    """Write a contact sheet: one identity a row. A sheet of a real store shows people: handle it as you handle the store."""
    from attfc.data import contact_sheet, open_store

    with _progress_bar("index") as bar:
        store = open_store(path, cache=cache, progress=bar)
    contact_sheet(store, identities=identities, images=images, seed=seed).save(output, "PNG")
    _out.print(str(output), markup=False)


class _progress_bar:  # noqa: N801  reads as a function at its call sites
    """A bar on stderr that appears with the first call and counts (done, total)."""

    def __init__(self, title: str) -> None:
        self._bar = Progress(
            TextColumn(title),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=_err,
            transient=True,
        )
        self._task: Any = None

    def __enter__(self) -> "_progress_bar":
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("", total=total)
        self._bar.update(self._task, completed=done, total=total)

    def __exit__(self, *error: object) -> None:
        if self._task is not None:
            self._bar.stop()


def _print_figures(figures: dict[str, Any]) -> None:
    table = Table("on unseen identities", "", box=None)
    table.columns[1].justify = "right"

    def rows(values: dict[str, Any], prefix: str) -> None:
        for name, value in values.items():
            label = f"{prefix}{name}".replace("_", " ")
            if isinstance(value, dict):
                rows(value, f"{label} ")
            elif isinstance(value, bool) or value is None:
                table.add_row(label, "-" if value is None else str(value))
            elif isinstance(value, float):
                table.add_row(label, f"{value:.4f}")
            elif isinstance(value, int):
                table.add_row(label, f"{value:,}")

    rows(figures, "")
    _out.print(table)


def _write_json(path: Path | None, values: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
