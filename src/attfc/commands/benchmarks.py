"""`attfc bench heads`: the speed tables, measured on the machine at hand."""

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from attfc.commands.common import (
    CHART,
    DeviceOption,
    JsonOption,
    PositiveOption,
    err,
    print_markdown,
    replaces,
    write_json,
)
from attfc.commands.help import Commands
from attfc.errors import UserError

__all__ = ["app"]

app = Commands(help="Measure speed and memory on this machine.", no_args_is_help=True)

SeveralOption = Annotated[int, Option(min=2)]
SomeOption = Annotated[float, Option(min=1e-6, max=1)]


@app.callback()
def _group() -> None:
    """Keep `heads` a word of its own, also while it is the only one."""


@app.command()
def heads(
    identities: str | None = None,
    budget_gib: Annotated[float, Option(min=0.05)] = 16.0,
    batch: SeveralOption = 128,
    sample_rate: SomeOption = 0.1,
    ratio: SomeOption = 0.1,
    slots: SeveralOption = 100_000,
    keys: PositiveOption = 2,
    network: str = "r10_tiny",
    steps: SeveralOption = 9,
    device: DeviceOption = "auto",
    json_file: JsonOption = None,
    markdown: Annotated[Path | None, Option(dir_okay=False, callback=replaces(b"Samples/s"))] = None,
    figure: Annotated[Path | None, Option(dir_okay=False, callback=CHART)] = None,
) -> None:
    """Measure samples per second and memory of the heads for growing numbers of identities; `-`: does not fit.

    Each cell is measured in a process of its own. With --json, an interrupted call continues: finished cells are kept in
    FILE.cells.jsonl until all are done.

    Args:
        identities: numbers of identities, such as 125000,2000000; default: twelve up to 100 million
        budget_gib: memory that training may use beyond the idle process, GiB
        batch: samples per step
        sample_rate: share of the identities that Partial FC samples
        ratio: slots of AttFC's growing container as a share of the identities
        slots: slots of AttFC's container of fixed size
        keys: key images per query, for AttFC
        network: network for the second half of the tables; none: heads alone
        steps: timed steps per cell, fewer where they are long
        markdown: also write the tables to this file
        figure: also write a chart to this SVG file
    """
    from attfc.devices import choose_device
    from attfc.lab.head_speed import IDENTITIES, Sweep, run_sweep
    from attfc.lab.pages import speed_figure, speed_tables
    from attfc.machine import environment

    sizes = IDENTITIES if identities is None else tuple(sorted({_count(text) for text in identities.split(",")}))
    chosen = choose_device(device)
    sweep = Sweep(
        identities=sizes,
        budget_gib=budget_gib,
        batch=batch,
        keys=keys,
        sample_rate=sample_rate,
        ratio=ratio,
        slots=slots,
        network=None if network == "none" else network,
        steps=steps,
        device=str(chosen),
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        lines = (
            Path(folder) / "cells.jsonl" if json_file is None else json_file.with_name(json_file.name + ".cells.jsonl")
        )
        results = run_sweep(sweep, lines, lambda text: err.print(text))
        found: dict[str, Any] = {
            "settings": vars(sweep),
            "columns": sweep.columns(),
            "environment": environment(chosen),
            **results,
        }
        write_json(json_file, found)
        lines.unlink()
    tables = speed_tables(found["settings"], found["columns"], found)
    print_markdown(tables)
    if markdown is not None:
        markdown.write_text(tables + "\n", encoding="utf-8")
    if figure is not None:
        figure.write_text(speed_figure(found["settings"], found["columns"], found), encoding="utf-8")


def _count(text: str) -> int:
    try:
        return int(text.strip().replace("_", ""))
    except ValueError:
        raise UserError(
            f"--identities has {text.strip()!r}: give whole numbers with commas between, such as 125000,2000000"
        ) from None
