"""What a run folder says about its run, read back: config.yaml, environment.json, metrics.jsonl, evaluation.json and .npz.

Every piece may be missing (a run that was not evaluated, or was interrupted); a piece that is there but damaged is an
error with its file and line, except the last line of metrics.jsonl, which a kill may have torn.
"""

import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from attfc.errors import UserError

__all__ = ["RunRecord", "read_run"]


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run's record.

    Attributes:
        name: the folder's name.
        train, evaluations, broken: the records of metrics.jsonl by kind, in order.
        evaluation: evaluation.json, else the last evaluation in metrics.jsonl, else empty.
        arrays: evaluation.npz, else empty.
        config_text, config: config.yaml as text and as a mapping; empty if missing.
        environment: environment.json, else empty.
        finished: the trained model was written.
        torn: the last line of metrics.jsonl was cut short and left out.
    """

    name: str
    train: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    broken: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    torn: bool = False


def read_run(folder: str | os.PathLike[str]) -> RunRecord:
    """Read a run folder.

    Raises:
        UserError: not a run folder, or a damaged file in it; with file and line.
    """
    root = Path(folder)
    if not root.is_dir() or not any(
        (root / name).is_file() for name in ("config.yaml", "metrics.jsonl", "evaluation.json")
    ):
        raise UserError(f"{root} is not a run: it has none of config.yaml, metrics.jsonl, evaluation.json")
    records, torn = _read_lines(root / "metrics.jsonl")
    kinds: dict[str, list[dict[str, Any]]] = {"train": [], "evaluation": [], "broken": []}
    for record in records:
        kinds.setdefault(str(record.get("kind")), []).append(record)
    config_text = (root / "config.yaml").read_text(encoding="utf-8") if (root / "config.yaml").is_file() else ""
    try:
        config = yaml.safe_load(config_text)
    except yaml.YAMLError:
        config = None  # shown as it stands; nothing but the heading needs it parsed
    evaluation = _read_object(root / "evaluation.json") or (kinds["evaluation"][-1] if kinds["evaluation"] else {})
    return RunRecord(
        name=root.resolve().name,
        train=kinds["train"],
        evaluations=kinds["evaluation"],
        broken=kinds["broken"],
        evaluation=evaluation,
        arrays=_read_arrays(root / "evaluation.npz"),
        config_text=config_text,
        config=config if isinstance(config, dict) else {},
        environment=_read_object(root / "environment.json"),
        finished=(root / "model" / "model.safetensors").is_file(),
        torn=torn,
    )


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    if not path.is_file():
        return [], False
    lines = path.read_bytes().split(b"\n")
    whole, rest = lines[:-1], lines[-1]  # what follows the last line break is empty, or torn
    records: list[dict[str, Any]] = []
    for number, line in enumerate([*whole, rest] if rest.strip() else whole, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number >= len(whole) and not any(later.strip() for later in lines[number:]):
                return records, True
            raise UserError(f"{path} line {number}: not a JSON record ({error}): remove the line") from None
        records.append(record)
    return records, False


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}): remove it, or evaluate again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__} instead of an object: remove it, or evaluate again")
    return value


def _read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return dict(file)
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable .npz file ({error}): remove it, or evaluate again") from None
