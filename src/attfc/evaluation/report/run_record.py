"""What a run folder says about its run, read back: config.yaml, environment.json, metrics.jsonl, evaluation.json and .npz.

Every piece may be missing (a run that was not evaluated, or was interrupted); a piece that is there but damaged is an
error with its file and line, except the last line of metrics.jsonl, which a kill may have torn.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt

from attfc.config.safe_yaml import read_yaml, read_yaml_text
from attfc.errors import UserError
from attfc.evaluation.npz_file import read_npz
from attfc.evaluation.results import finite

__all__ = ["RunRecord", "column_of", "drawn_from", "read_run", "setting"]

Drawn = TypeVar("Drawn")

_MOST_JSON_BYTES, _MOST_LOG_BYTES = 64 * 2**20, 2**30
_LEAST_UNPACKED = 64 * 2**20


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
    config_text = _read_config(root / "config.yaml")
    try:
        config = read_yaml(config_text)
    except ValueError:
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


def drawn_from(draw: Callable[[RunRecord], Drawn], run: RunRecord, folder: Path, source: str) -> Drawn:
    """Draw a part of a page about a run; values that cannot be drawn are the fault of the file, `source`, that they come from.

    Raises:
        UserError: they cannot; names the folder and the file.
    """
    try:
        return draw(run)
    except UserError:
        raise
    except Exception as error:  # a number may be any number, a name anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{folder}: no report can be made of what {source} holds ({reason}): remove the file, or evaluate again"
        ) from error


def column_of(records: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Return steps and values of one field, leaving out records without it."""
    both = [(finite(record.get("step")), finite(record.get(name))) for record in records]
    found = [(step, value) for step, value in both if step is not None and value is not None]
    return [step for step, _ in found], [value for _, value in found]


def setting(values: Mapping[str, Any], *path: str) -> Any:
    """Return a value of nested mappings, None where there is none."""
    value: Any = values
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    if not path.is_file():
        return [], False
    lines = _content(path, _MOST_LOG_BYTES).split(b"\n")
    whole, rest = lines[:-1], lines[-1]  # what follows the last line break is empty, or torn
    records: list[dict[str, Any]] = []
    for number, line in enumerate([*whole, rest] if rest.strip() else whole, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            if number >= len(whole) and not any(later.strip() for later in lines[number:]):
                return records, True
            raise UserError(f"{path} line {number}: not a JSON record ({str(error)[:200]}): remove the line") from None
        records.append(record)
    return records, False


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(_content(path, _MOST_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({str(error)[:200]}): remove it, or evaluate again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__} instead of an object: remove it, or evaluate again")
    return value


def _read_config(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        return read_yaml_text(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}): remove it, or put back the run's own") from None


def _content(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    if len(data) > most:
        raise UserError(f"{path}: has more than {most:,} bytes, which no run writes: remove it")
    return data


def _read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    if not path.is_file():
        return {}
    try:
        # Scores hardly shrink in packing, so all arrays together are a few times the file.
        return read_npz(path, most_bytes=_LEAST_UNPACKED + 200 * path.stat().st_size)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable .npz file ({error}): remove it, or evaluate again") from None
