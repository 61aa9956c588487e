"""`attfc study run|table`: grids of heads x options x seeds, and their tables."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from attfc.commands.common import CHART, PositiveOption, err, print_markdown
from attfc.commands.help import Commands

__all__ = ["app"]

app = Commands(help="Compare heads and options over seeds.", no_args_is_help=True)

StudyArgument = Annotated[Path, Argument(help="file of the study", metavar="STUDY.yaml", show_default=False)]
FolderOption = Annotated[
    Path | None,
    Option("--output", "-o", help="folder of the study's cells.jsonl  [default: studies/NAME]", file_okay=False),
]


@app.command()
def run(
    study: StudyArgument,
    output: FolderOption = None,
    faces: Path | None = None,
    only: list[str] | None = None,
    parallel: PositiveOption = 1,
    threads: PositiveOption = 1,
) -> None:
    """Run the missing cells of a study, then print its table. After an interruption, run it again to continue.

    Args:
        faces: what {faces} in the study's overrides stands for
        only: variant to run; repeatable
        parallel: cells to run at a time
        threads: processor threads per cell
    """
    from attfc.lab.study import read_study, run_study

    read = read_study(study)
    folder = output or Path("studies") / read.name
    run_study(
        read,
        folder,
        faces=faces,
        only=only or (),
        parallel=parallel,
        threads=threads,
        said=lambda line: err.print(line),
    )
    table(study, output)


@app.command()
def table(
    study: StudyArgument,
    output: FolderOption = None,
    figure: Annotated[Path | None, Option(dir_okay=False, callback=CHART)] = None,
) -> None:
    """Print the table of a study's cells as Markdown.

    Args:
        figure: also write a chart to this SVG file
    """
    from attfc.errors import UserError
    from attfc.lab.pages import FIGURES, study_figure, study_table
    from attfc.lab.study import read_study, study_records

    read = read_study(study)
    folder = output or Path("studies") / read.name
    records = study_records(read, folder)
    if not records:
        raise UserError(f"{folder} holds no cell of {read.name}: attfc study run {study}")
    figures = FIGURES[read.world.kind]
    print_markdown(study_table(records, figures, read.reference))
    if figure is not None:
        name = next(iter(figures))
        figure.write_text(study_figure(records, name, figures[name]), encoding="utf-8")
