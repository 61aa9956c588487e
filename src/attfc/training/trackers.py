"""Weights & Biases and MLflow beside `metrics.jsonl`, where the configuration asks for them: numbers and settings, nothing else.

What leaves the machine is chosen here by kind, not by name: finite numbers, and of the configuration numbers, switches, choices from a list and
the few words of `WORDS`. So no path, no name of a person, no image and no free text can pass, whatever is added elsewhere. Both packages are extras
and imported when a run opens them. A run that is resumed goes on with the same run of the tracker (`trackers.json` in its folder).
A tracker that fails while the run trains is left out from then on: `metrics.jsonl` is the record, and no training dies of a broken connection.
"""

import contextlib
import importlib.util
import json
import math
import os
import re
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args

from pydantic import BaseModel

from attfc.errors import UserError, one_line
from attfc.files import write_json_whole
from attfc.typing import Json

__all__ = ["TRACKERS", "TensorBoard", "Tracker", "open_trackers", "refuse_missing", "shared_settings"]

TRACKERS = ("wandb", "mlflow")
WORDS = ("device", "backbone.name")  # text that is sent; other text may be a path or a name
FIGURES = ("all_pairs",)  # nested figures that are sent; other names within a record may be those of people
PROJECT = "attfc"


class Tracker(Protocol):
    """Takes the numbers of a step."""

    def log(self, step: int, numbers: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def refuse_missing(names: Sequence[str]) -> None:
    """Say which package is missing, before anything is trained.

    Raises:
        UserError: the package of a tracker that is asked for is not installed.
    """
    for name in names:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise UserError(
                f"log.{name}=true needs the package {name}, which is not installed: pip install 'attfc[{name}]', or leave log.{name} out"
            )


def shared_settings(config: BaseModel, prefix: str = "") -> dict[str, float | bool | str | None]:
    """Return the settings that may leave the machine, by dotted key: numbers, switches, choices, and the text named in `WORDS`."""
    shared: dict[str, float | bool | str | None] = {}
    for name, field in type(config).model_fields.items():
        key, value = f"{prefix}{name}", getattr(config, name)
        if isinstance(value, BaseModel):
            shared |= shared_settings(value, f"{key}.")
        elif isinstance(value, dict):
            shared |= {f"{key}.{entry}": number for entry, number in value.items() if isinstance(number, int | float)}
        elif isinstance(value, str):
            choices = [each for part in (field.annotation, *get_args(field.annotation)) for each in get_args(part)]
            if key in WORDS or value in choices:
                shared[key] = value
        elif isinstance(value, int | float):
            shared[key] = value
    return shared


def open_trackers(names: Sequence[str], run_folder: Path, settings: Mapping[str, Any]) -> list[Tracker]:
    """Open the trackers of a run; `settings` are those of `shared_settings`.

    Raises:
        UserError: a tracker cannot be opened; the message says what it said.
    """
    path = run_folder / "trackers.json"
    known: dict[str, str] = {}
    # A new run, or a file that nobody can read: then the tracker begins a new run as well.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        known = {str(name): str(key) for name, key in json.loads(path.read_text(encoding="utf-8")).items()}
    opened: list[Tracker] = []
    for name in names:
        kind = _Wandb if name == "wandb" else _MLflow
        try:
            tracker = kind(run_folder, dict(settings), known.get(name))
        except Exception as error:  # whatever a foreign package raises, the user asked for it and must hear
            for other in opened:
                other.close()
            raise UserError(
                f"log.{name}=true: {name} cannot be opened ({one_line(error)[:300]}); {kind.ADVICE}, or leave log.{name} out"
            ) from error
        known[name] = tracker.key
        opened.append(_Careful(name, tracker))
    if opened:
        write_json_whole(path, known)
    return opened


def shared_numbers(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a record as ``kind/name``; of what is nested, `FIGURES` and what numbers name (``tar_at_far/0.001``)."""
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            if name in FIGURES or all(re.fullmatch(r"[0-9.e+-]+", str(below)) for below in value):
                numbers |= shared_numbers(f"{kind}/{name}", value)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            numbers[f"{kind}/{name}"] = float(value)
    return numbers


class _Careful:
    """Passes numbers on until the tracker fails, then says so once."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker, self._works = name, tracker, True

    def _try(self, what: str, *arguments: Any) -> None:
        try:
            if self._works:
                getattr(self._tracker, what)(*arguments)
        except Exception as error:  # a foreign package: a network that is gone has many names
            self._works = False
            said = f"note: {self._name} failed ({one_line(error)[:200]}) and gets nothing more; metrics.jsonl has all"
            print(said, file=sys.stderr)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._try("log", step, numbers)

    def close(self) -> None:
        self._try("close")


class TensorBoard:
    """Event files under ``tensorboard/`` of a run's folder; steps from `first_step` on are written again."""

    def __init__(self, run_folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import: only for runs that log

        self._writer: Any = SummaryWriter(str(run_folder / "tensorboard"), purge_step=first_step or None)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Write the numbers of a step."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def close(self) -> None:
        """Write what is not on the disk yet."""
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases; `WANDB_MODE`, `WANDB_PROJECT` and the like work as its documentation says."""

    ADVICE = "run wandb login, or set WANDB_MODE=offline"

    def __init__(self, run_folder: Path, settings: Json, key: str | None) -> None:
        import wandb

        self.key = key or uuid.uuid4().hex[:16]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.key,
            resume="allow" if key else None,
            config=settings,
            dir=str(run_folder),
            # No code, no output, no names of packages and files, no facts of the machine.
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                silent=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self._run.define_metric("*", step_metric="step")  # a resumed run writes steps again

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log({"step": step, **numbers})

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of MLflow; `MLFLOW_TRACKING_URI` says where, `MLFLOW_EXPERIMENT_NAME` in which experiment."""

    ADVICE = "set MLFLOW_TRACKING_URI to your server, or to sqlite:///mlflow.db"

    def __init__(self, run_folder: Path, settings: Json, key: str | None) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        # The client, not mlflow.start_run: that adds the user's name and the path of the script.
        self._client, self._metric = MlflowClient(), Metric
        if key is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found is not None else self._client.create_experiment(name)
            key = str(self._client.create_run(experiment).info.run_id)
            parameters = [Param(name, str(value)) for name, value in settings.items()]
            for first in range(0, len(parameters), 100):  # the most that a call takes
                self._client.log_batch(key, params=parameters[first : first + 100])
        else:
            self._client.update_run(key, status="RUNNING")
        self.key = key

    def log(self, step: int, numbers: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(
            self.key, metrics=[self._metric(name, value, now, step) for name, value in numbers.items()]
        )

    def close(self) -> None:
        self._client.set_terminated(self.key)
