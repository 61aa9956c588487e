"""`attfc report`: a run's page written anew, or a page that sets several models side by side."""

from pathlib import Path
from typing import Annotated

from typer import Argument

from attfc.commands.common import FileOption, out, print_notes
from attfc.errors import UserError

__all__ = ["report"]


def report(
    paths: Annotated[list[Path], Argument(metavar="RUN|RESULT")],
    output: FileOption = None,
    pictures: bool = False,
    force: bool = False,
) -> None:
    """Write a run's report.html again, or a page that shows several models side by side.

    Args:
        paths: a run's folder; or files of evaluate --save, to show models side by side
        output: with files of --save: page to write, .html or .md; default: report.html
        pictures: show faces of a run's hardest pairs; only for people whom you may show
        force: overwrite an existing page
    """
    if all(path.suffix == ".npz" for path in paths):
        from attfc.evaluation.report.compare import write_comparison_report
        from attfc.evaluation.results import read_result

        if pictures:
            raise UserError("--pictures needs a run: saved results hold no pictures")
        target, results = output or Path("report.html"), [read_result(path) for path in paths]
        if target.exists() and not force:
            raise UserError(f"{target} is there already: name another page with --output, or overwrite it with --force")
        write_comparison_report(target, results)
        out.print(str(target), soft_wrap=True)
        return
    if len(paths) > 1 or output is not None:
        strange = next(path for path in paths if path.suffix != ".npz")
        raise UserError(
            f"{strange} is not a saved result: to compare models, give files of `attfc evaluate ... --save FILE.npz`; "
            "to write one run's own report into its folder: attfc report RUN"
        )
    from attfc.evaluation import write_report
    from attfc.run.data import open_data
    from attfc.run.saved import saved_configuration, with_found_data

    run, store = paths[0], None
    if pictures:
        store = open_data(with_found_data(saved_configuration(run), run)[0])[1]
        if store is None:
            raise UserError(f"{run} was not evaluated, so there are no pairs to picture: leave out --pictures")
    was_there = (run / "report.html").exists()
    written = write_report(run, store=store, pictures=pictures)
    if was_there:  # it is made of the run's files and of nothing else, so no work is lost; it is said all the same
        print_notes(["the run's earlier report is replaced"])
    out.print(str(written), soft_wrap=True)
