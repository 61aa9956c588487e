"""What a run folder says about its run, read back: config.yaml, environment.json, metrics.jsonl, evaluation.json and .npz.

Every piece may be missing (a run that was not evaluated, or was interrupted); a piece that is there but damaged is an
error with its file and line, except the last line of metrics.jsonl, which a kill may have torn.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from attfc.config.safe_yaml import read_yaml, read_yaml_text
from attfc.errors import UserError
from attfc.evaluation.npz_file import read_npz
from attfc.evaluation.operating_point.point import OperatingPoint, point_of
from attfc.evaluation.results import finite
from attfc.files import read_bounded
from attfc.typing import Array, Json, PathLike

__all__ = ["RunRecord", "at_fault", "columns_of", "read_run"]

Columns = defaultdict[str, tuple[list[float], list[float]]]
"""Steps and values of each field of a log; empty for a field that it lacks."""

_MOST_JSON_BYTES, _MOST_LOG_BYTES = 64 * 2**20, 2**30
_REMOVE = "no run writes that, remove it"
_LEAST_UNPACKED = 64 * 2**20


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run's record.

    Attributes:
        name: the folder's name.
        train: of the training records of metrics.jsonl. evaluations, broken: its records of these kinds, in order.
        evaluation: evaluation.json, else the last evaluation in metrics.jsonl, else empty.
        arrays: evaluation.npz, else empty.
        config_text, config: config.yaml as text and as a mapping; empty if missing.
        environment: environment.json, else empty.
        finished: the trained model was written.
        torn: the last line of metrics.jsonl was cut short and left out.
        point: the operating point beside the trained model. faults: why there is none although its file is there.
    """

    name: str
    train: Columns
    evaluations: list[Json]
    broken: list[Json]
    evaluation: Json
    arrays: dict[str, Array]
    config_text: str
    config: Json
    environment: Json
    finished: bool
    torn: bool
    point: OperatingPoint | None
    faults: tuple[str, ...]


class _Model(NamedTuple):
    """The model that a run trained, as `point_of` takes it."""

    path: Path
    operating_point: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of its weights."""
        with (self.path / "model.safetensors").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def read_run(folder: PathLike) -> RunRecord:
    """Read a run folder.

    Raises:
        UserError: not a run folder, or a damaged file in it; with file and line.
    """
    root = Path(folder)
    if not any((root / name).is_file() for name in ("config.yaml", "metrics.jsonl", "evaluation.json")):
        raise UserError(f"{root} is not a run: it has none of config.yaml, metrics.jsonl, evaluation.json")
    records, torn = _read_lines(root / "metrics.jsonl")
    kinds: defaultdict[str, list[Json]] = defaultdict(list)
    for record in records:
        kinds[str(record.get("kind"))].append(record)
    config_text = _read_config(root / "config.yaml")
    try:
        config = read_yaml(config_text)
    except ValueError:
        config = None  # shown as it stands; nothing but the heading needs it parsed
    finished = (root / "model" / "model.safetensors").is_file()
    point: OperatingPoint | None = None
    faults: tuple[str, ...] = ()
    try:
        point = point_of(_Model(root / "model")) if finished else None
    except UserError as error:  # a model that was trained further has its report all the same
        faults = (str(error),)
    return RunRecord(
        name=root.resolve().name,
        train=columns_of(kinds["train"]),
        evaluations=kinds["evaluation"],
        broken=kinds["broken"],
        evaluation=_read_object(root / "evaluation.json") or [{}, *kinds["evaluation"]][-1],
        arrays=_read_arrays(root / "evaluation.npz"),
        config_text=config_text,
        config=config if isinstance(config, dict) else {},
        environment=_read_object(root / "environment.json"),
        finished=finished,
        torn=torn,
        point=point,
        faults=faults,
    )


@contextmanager
def at_fault(folder: Path, source: str) -> Iterator[None]:
    """Draw a part of a page about a run in a block: values that cannot be drawn are the fault of the file, `source`, that they come from.

    Raises:
        UserError: they cannot; names the folder and the file.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a number may be any number, a name anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{folder}: no report can be made of what {source} holds ({reason}): remove the file, or evaluate again"
        ) from error


def columns_of(records: Iterable[Mapping[str, Any]]) -> Columns:
    """Return steps and values of each field; a record without the field, or without a step, is left out."""
    found: Columns = defaultdict(lambda: ([], []))
    for record in records:
        step = finite(record.get("step"))
        for name, value in record.items():
            number = finite(value)
            if step is not None and number is not None:
                found[name][0].append(step)
                found[name][1].append(number)
    return found


def _read_lines(path: Path) -> tuple[list[Json], bool]:
    lines = read_bounded(path, _MOST_LOG_BYTES, _REMOVE).split(b"\n") if path.is_file() else []
    records: list[Json] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            # What follows the last line break may be torn; where nothing does, the line before it.
            if number >= len(lines) - 1 and not any(later.strip() for later in lines[number:]):
                return records, True
            raise UserError(f"{path} line {number}: not a JSON record ({str(error)[:200]}): remove the line") from None
        records.append(record)
    return records, False


def _read_object(path: Path) -> Json:
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_bounded(path, _MOST_JSON_BYTES, _REMOVE))
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


def _read_arrays(path: Path) -> dict[str, Array]:
    if not path.is_file():
        return {}
    try:
        # Scores hardly shrink in packing, so all arrays together are a few times the file.
        return read_npz(path, most_bytes=_LEAST_UNPACKED + 200 * path.stat().st_size)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable .npz file ({error}): remove it, or evaluate again") from None
