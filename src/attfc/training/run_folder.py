"""Whose run folder it is: a lock while it is trained in, which run is the newest, and what is left of one that saved nothing.

The lock is the operating system's (`flock`) on the file `.lock`: a process that ends, killed or not, gives it back. Where there is none
(Windows, some network disks) runs go unlocked.
"""

import contextlib
import os
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from attfc.errors import UserError
from attfc.files import lock
from attfc.training.checkpoints.checkpoint import latest_checkpoint
from attfc.training.checkpoints.manifest import MANIFEST

__all__ = ["fresh_folder", "locked", "newest_run", "remove_unrecorded", "remove_unsaved", "run_of"]

LOCK = ".lock"
UNSAVED = {"config.yaml", "environment.json", "metrics.jsonl", "tensorboard", "checkpoints", ".started_in", LOCK,
           "start_weights.json", "start_here.npz", "start_there.npz", "teacher.json"}  # fmt: skip
"""What a run writes before its first checkpoint."""

_held: set[TextIO] = set()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which must exist.

    Raises:
        UserError: another process trains there; with its number.
    """
    try:
        file = (folder / LOCK).open("a+", encoding="utf-8", errors="replace")
    except OSError:  # a folder that cannot be written to says so where it matters
        file = None
    if file is None:
        yield
        return
    with file:
        if not lock(file):
            file.seek(0)
            owner = file.read(100).strip() or "another process"
            raise UserError(
                f"{folder} is being trained by {owner}: wait for it, or stop it (kill -INT makes it save); then resume"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)


def _let_go() -> None:
    """Close the lock in a forked child: a worker that outlives the run must not hold it."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def newest_run(overrides: Sequence[str] = ()) -> Path:
    """Return the run whose last checkpoint is the newest, of those in the folder that ``output=FOLDER`` among `overrides` names, else in runs.

    Raises:
        UserError: there is none.
    """
    named = [text.removeprefix("output=") for text in overrides if text.startswith("output=")]
    output = Path(os.path.expanduser(named[-1] if named else "runs"))
    found = [
        ((checkpoint / MANIFEST).stat().st_mtime_ns, folder)
        for folder in (output.iterdir() if output.is_dir() else ())
        if (folder / "config.yaml").is_file() and (checkpoint := latest_checkpoint(folder / "checkpoints")) is not None
    ]
    if not found:
        raise UserError(
            f"--resume last: no run with a checkpoint in {output.absolute()}: give the run's folder, or output=FOLDER that holds the runs"
        )
    return max(found)[1]


def fresh_folder(output: Path, name: str) -> Path:
    """Make and return ``output/name-NUMBER``, with the first number that is free.

    Raises:
        UserError: it cannot be made there.
    """
    safe = re.sub(r"[^\w.-]+", "-", name)
    try:
        output.mkdir(parents=True, exist_ok=True)
        for number in range(1, 100_000):
            folder = output / f"{safe}-{number:03d}"
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise UserError(
            f"cannot make the run's folder in output={output}: {error.strerror or error}; name a folder that you may write into"
        ) from None
    raise UserError(f"output={output} holds 100,000 runs named {safe}: choose another name=")


def run_of(path: Path) -> Path | None:
    """Return the folder of the run that `path` is, or that it is a model of (`model/`, `best/`, a file in them); None: of no run."""
    folder = path.parent if path.is_file() else path
    if folder.name in ("model", "best") and (folder.parent / "config.yaml").is_file():
        return folder.parent
    return folder if folder == path and (folder / "config.yaml").is_file() else None


def remove_unsaved(folder: Path) -> bool:
    """Remove a run folder in which no checkpoint was finished and nothing else lies; False: it stays."""
    if not folder.is_dir() or latest_checkpoint(folder / "checkpoints") is not None:
        return False
    if {path.name for path in folder.iterdir()} - UNSAVED:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def remove_unrecorded(folder: Path) -> bool:
    """Remove the folder of a run that failed, as `remove_unsaved`; False: it stays, also where metrics.jsonl says anything of the run."""
    log = folder / "metrics.jsonl"
    return not (log.is_file() and log.stat().st_size) and remove_unsaved(folder)
