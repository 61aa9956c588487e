"""The command line: the commands of `attfc.commands` put together, and how they end.

Exit status: 0 done; 1 the input is at fault (one line on stderr, a traceback only with ``--debug``); 2 usage; 130 interrupted. Commands that
compute a figure take ``--json FILE``. Heavy imports wait until a command needs them, so ``attfc --help`` answers at once.
"""

import errno
import os
import sys
from typing import Annotated

import typer

from attfc.commands import (
    benchmarks,
    data,
    embed,
    export,
    gallery,
    models,
    options,
    planning,
    study,
    training,
)
from attfc.commands.common import err, out
from attfc.commands.evaluation import calibrate, compare, evaluate, report
from attfc.commands.help import Commands, CommandsByUse
from attfc.commands.photos import align, serve
from attfc.errors import UserError, first_line

__all__ = ["app", "main"]

app = Commands(
    help="Train face recognition on millions of identities with one GPU.",
    no_args_is_help=True,
    cls=CommandsByUse,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    training.train,
    evaluate.evaluate,
    compare.compare,
    calibrate.calibrate,
    report.report,
    export.export,
    embed.embed,
    embed.verify,
    align.align,
    serve.serve,
    models.backbones,
    planning.plan,
    planning.presets,
    options.options,
):
    app.command()(command)
app.add_typer(gallery.app, name="gallery")
app.add_typer(data.app, name="data")
app.add_typer(benchmarks.app, name="bench")
app.add_typer(study.app, name="study")


_TAKE_LESS = {
    "--batch-size": "a smaller --batch-size",
    "--batch": "a smaller --batch",
    "--budget-gib": "a smaller --budget-gib",
    "--identities": "a smaller --identities",
    "--parallel": "--parallel 1",
    "--workers": "fewer --workers",
}
"""Options of commands that bound their memory, and what to do with them."""
_REMEDY = {
    errno.EACCES: "; take another place, or have the permission changed",
    errno.EROFS: "; take a place that can be written to",
    errno.ENOSPC: "; make room there, or take a place on another disk",
    errno.EDQUOT: "; make room there, or take a place on another disk",
    errno.ENAMETOOLONG: "; give a shorter name",
    errno.EISDIR: "; that is a folder: name a file",
    errno.ENOTDIR: "; a part of that path is a file: name another one",
}
"""What to do about a failure of the system that a command has no better words for."""


def main() -> None:
    """Run the command line; ``--debug`` anywhere shows tracebacks."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    _refuse_flags(arguments)
    if "OMP_WAIT_POLICY" not in os.environ:
        # Read when torch is loaded, so it is set before. Threads that spin for long take the processor from the one they wait
        # for: beside another busy process training is 1.3 to 1.6 times faster so, alone as fast (benchmarks/waiting_threads.py).
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app([argument for argument in arguments if argument != "--debug"], prog_name="attfc")
    except (UserError, OSError) as error:
        if debug:
            raise
        rank = os.environ.get("RANK", "0")
        text = str(error)
        if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str | bytes | os.PathLike):
            text = f"{os.fsdecode(error.filename)}: {error.strerror}{_REMEDY.get(error.errno or 0, '')}"
        if rank == "0" or type(error).__name__ != "AgreedError":  # attfc.distributed's: rank 0 says it for all
            err.print(f"error: {text}" if rank == "0" else f"error on rank {rank}: {text}")
        sys.exit(1)
    except (RuntimeError, MemoryError) as error:
        if debug or not _of_memory(error):
            raise
        err.print(f"error: {first_line(error).rstrip('. ')}. {_less_memory(arguments, error)}")
        sys.exit(1)


def _of_memory(error: Exception) -> bool:
    """Whether memory ran out: NumPy's error, or one of torch, known without importing it."""
    names = {each.__name__ for each in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "DefaultCPUAllocator" in str(error)


def _less_memory(arguments: list[str], error: Exception) -> str:
    """Return what to try where memory ran out: options that the command typed has, and none that --resume refuses."""
    found = typer.main.get_command(app)
    for word in arguments:
        if isinstance(found, typer.core.TyperGroup) and word in found.commands:
            found = found.commands[word]
    if any(parameter.name == "words" for parameter in found.params):  # options of a run
        resumed = any(word.partition("=")[0] == "--resume" for word in arguments)
        new = "half the batch_size with twice the optimizer.accumulation, backbone.options={checkpointing: true}, "
        return f"Try {'' if resumed else new}precision.amp=bfloat16, or a smaller eval.batch_size"
    flags = {name for parameter in found.params for name in parameter.opts}
    if "--far" in flags and "--mode" in flags and "all-pairs" not in arguments:
        flags.discard("--budget-gib")  # evaluate and compare: of that protocol alone
    ways = [way for flag, way in _TAKE_LESS.items() if flag in flags]
    if "CUDA" in str(error) and "--device" in flags:
        ways.append("--device cpu")
    return f"Try {' or '.join(ways)}" if ways else "Close other programs, or take a machine with more memory"


def _refuse_flags(arguments: list[str]) -> None:
    """Leave with status 2 where an option of a run is typed as a flag: ``attfc train demo --epochs 3``."""
    if arguments[:1] != ["train"] or not any(word.startswith("-") for word in arguments):
        return
    group = typer.main.get_command(app)
    assert isinstance(group, CommandsByUse)
    flags = {
        name for parameter in group.commands["train"].params for name in (*parameter.opts, *parameter.secondary_opts)
    }
    fault = options.written_as_flag(arguments[1:], {*flags, "--help", "--debug"})
    if fault is not None:
        err.print(f"error: {fault}")
        sys.exit(2)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        out.print(version("attfc"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="print the version and exit", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
) -> None:
    del version, debug  # the first left already; the second is taken from the arguments in main()
