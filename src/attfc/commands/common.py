"""What the commands share: consoles and tables (`screen`), options, a progress bar, tables of figures, `--json`."""

import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer import Option

from attfc.commands.screen import Table, err, out, print_markdown, print_table
from attfc.errors import UserError
from attfc.files import written_whole

if TYPE_CHECKING:
    from PIL.Image import Image

    from attfc.data import Store

__all__ = [
    "CHART",
    "SHEET",
    "AlignOption",
    "BatchSizeOption",
    "CacheOption",
    "DetectorOption",
    "DeviceOption",
    "FileOption",
    "FolderOption",
    "JsonOption",
    "ModelIsOption",
    "NaturalOption",
    "PositiveOption",
    "ShareOption",
    "Table",
    "WorkersOption",
    "err",
    "open_with_bar",
    "out",
    "print_markdown",
    "print_notes",
    "print_table",
    "progress_bar",
    "refuse_idle",
    "replaces",
    "save_sheet",
    "working",
    "write_json",
]


def replaces(mark: bytes) -> Callable[[Path | None], Path | None]:
    """Return the callback of an option that names a file to write: its folder is made, and a file that is there has `mark` near its beginning.

    It is asked while options are read, so that nothing is computed for a file that cannot be written.
    """

    def check(path: Path | None) -> Path | None:
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if not os.access(path.parent, os.W_OK):
                    raise PermissionError(errno.EACCES, "you may not write there", path.parent)
            except OSError as error:
                raise UserError(
                    f"{path} cannot be written ({error.filename}: {error.strerror}): name another place"
                ) from None
        if path is not None and path.is_file():
            with path.open("rb") as file:
                beginning = file.read(64)
            if beginning and mark not in beginning:
                raise UserError(
                    f"{path} exists and is not what this option writes: name another file, or remove it first"
                )
        return path

    return check


CHART, SHEET = replaces(b"<svg"), replaces(b"Software\0attfc")
"""Callbacks of options for a chart (SVG) and for a sheet that `save_sheet` writes."""

JsonOption = Annotated[
    Path | None,
    Option(
        "--json",
        help="also write the results to this JSON file; older results are replaced",
        dir_okay=False,
        callback=replaces(b'{\n  "'),
    ),
]
CacheOption = Annotated[
    Path | None,
    Option(help="folder for the identity index; default: the user's cache folder", file_okay=False),
]
ModelIsOption = Annotated[
    list[str] | None,
    Option(
        metavar="KEY=VALUE",
        help="fact that the model's file lacks: network, image_size, embedding_size, colour_order, mean, std, training_data or licence; repeatable",
    ),
]
DeviceOption = Annotated[str, Option(help="where to compute: auto, cpu, cuda, cuda:1 or mps")]
AlignOption = Annotated[bool, Option(help="the images are whole photos: take the largest face of each")]
DetectorOption = Annotated[
    Path | None, Option(dir_okay=False, help="with --align: ONNX file that finds faces, as attfc align takes it")
]
BatchSizeOption = Annotated[int, Option(min=1, help="images per forward pass")]
WorkersOption = Annotated[int, Option(min=0, help="processes that read and decode images; 0: the main process")]
FileOption = Annotated[Path | None, Option(dir_okay=False)]
FolderOption = Annotated[Path | None, Option(file_okay=False)]
NaturalOption = Annotated[int, Option(min=0)]
PositiveOption = Annotated[int, Option(min=1)]
ShareOption = Annotated[float, Option(min=0, max=1)]


SECONDS_BETWEEN_DRAWINGS, SECONDS_BEFORE_A_LINE = 0.5, 5.0


class progress_bar:  # noqa: N801  reads as a function at its call sites
    """A bar on stderr that appears with the first call and counts (done, total); where nobody watches, one line if it takes 5 s or more."""

    def __init__(self, title: str) -> None:
        self._title, self._began = title, time.monotonic()
        self._next = self._began + (0 if err.is_watched else SECONDS_BEFORE_A_LINE)
        self._bar = Progress(
            TextColumn(title),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=err,
            transient=True,
            auto_refresh=False,
        )
        self._task: Any = None

    def __enter__(self) -> "progress_bar":
        return self

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not err.is_watched:
            if now >= self._next:
                err.print(f"{self._title}: {done:,} of {total:,} after {now - self._began:.0f} s")
                self._next = math.inf
        elif now >= self._next or done == total:
            self._next = now + SECONDS_BETWEEN_DRAWINGS
            if self._task is None:
                self._bar.start()
                self._task = self._bar.add_task("", total=total)
            self._bar.update(self._task, completed=done, total=total, refresh=True)

    def __exit__(self, *error: object) -> None:
        if self._task is not None:
            self._bar.stop()


def print_notes(notes: Iterable[str]) -> None:
    """Print what a reader should know beside the results on stderr, a line each."""
    for note in notes:
        err.print(f"note: {note}")


def refuse_idle(given: Mapping[str, object], why: str) -> None:
    """Raise UserError for the first option that was given where it does nothing.

    Args:
        given: by option, what is true where it was given.
        why: what the option is for, and the way out.
    """
    for option, there in given.items():
        if there:
            raise UserError(f"{option} {why}")


def working(what: str) -> AbstractContextManager[object]:
    """Say on stderr what is being done while it is, for work that has no steps to count."""
    if err.is_watched:
        return err.status(what)
    err.print(what)
    return nullcontext()


def open_with_bar(path: str, **options: Any) -> "Store":
    """Open a set of faces with a bar while it is indexed for the first time; options as `attfc.open_store`."""
    from attfc.data import open_store

    with progress_bar("index") as bar:
        return open_store(path, **options, progress=bar)


def save_sheet(sheet: "Image", path: Path) -> None:
    """Write a sheet of pictures as PNG, in one piece, with a mark by which `SHEET` knows it."""
    from PIL.PngImagePlugin import PngInfo

    written_by = PngInfo()
    written_by.add_text("Software", "attfc")
    with written_whole(path.resolve()) as file:
        sheet.save(file, "PNG", pnginfo=written_by)


def write_json(path: Path | None, values: dict[str, Any]) -> None:
    """Write what `--json FILE` asks for; nothing without it."""
    if path is not None:
        text = json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n"
        path.write_text(text, encoding="utf-8", errors="backslashreplace")  # in place: it may be a link, or /dev/stdout
