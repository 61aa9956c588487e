"""What a run's folder says of the run: its configuration, and where its data are."""

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from attfc.config import RunConfig, read_preset
from attfc.config.translate import translate
from attfc.errors import UserError
from attfc.training.checkpoints.checkpoint import latest_checkpoint
from attfc.training.checkpoints.manifest import read_manifest

__all__ = ["note_start_folder", "saved_configuration", "with_found_data"]

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
        raise UserError(
            f"{folder} {'is not a run: it has no config.yaml' if folder.is_dir() else 'is no folder of a run'}: a run is a folder such as "
            "runs/faces-001, and --resume last takes the newest"
        )
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
    parts: list[tuple[str, Any]] = [
        (f"data.sources.{number}", source) for number, source in enumerate(config.data.sources)
    ]
    for section, part in [*(parts or [("data", config.data)]), ("eval", config.eval), ("teacher", config.teacher)]:
        for name in ("root", "edits", "pairs", "also", "model"):
            value = getattr(part, name, None)
            if isinstance(value, list):
                setattr(part, name, [found(f"{section}.{name}", path) for path in value])
            elif value is not None:
                setattr(part, name, found(f"{section}.{name}", value))
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
