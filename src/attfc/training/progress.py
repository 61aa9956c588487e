"""What a run tells while it trains: one progress line, `metrics.jsonl`, TensorBoard.

`metrics.jsonl` is the record everything else is drawn from: one JSON object a line, flushed as it is written, with `kind` train,
evaluation or broken. On resume, lines of steps after the checkpoint are dropped, so the file reads as if the run had never stopped.
Costs a few microseconds per step. On a terminal the line is rich's; otherwise a plain line every few seconds (a log file wants no bars).
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from attfc.errors import one_line
from attfc.files import sync, written_whole
from attfc.training.trackers import TensorBoard, Tracker, shared_numbers
from attfc.typing import Json

__all__ = ["RunLog", "Stopwatch", "figure_of", "memory_mib"]

SECONDS_BETWEEN_PLAIN_LINES = 15.0


def memory_mib(device: torch.device) -> float:
    """Peak memory of this process in MiB: of the accelerator if `device` is one, else resident."""
    if device.type == "cpu":
        import resource  # not on Windows, where nothing is trained

        kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return kibibytes / 1024 if sys.platform != "darwin" else kibibytes / 1024**2
    return float(torch.accelerator.max_memory_allocated(device)) / 1024**2


class ProgressLine:
    """Loss, images/s, learning rate, memory and time left, on one line that stays in place and moves at every step.

    While identities are seen for the first time and have no class center yet, the share of samples that have one stands behind the loss.

    >>> line = ProgressLine(total_steps=2, first_step=0, console=Console(quiet=True))
    >>> with line.bar:
    ...     line.update(1, {"loss": 3.2, "learning_rate": 0.1, "images_per_second": 900.0, "memory_mib": 512.0})
    """

    def __init__(self, total_steps: int, first_step: int = 0, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._total = total_steps
        self._first = first_step
        self._started = time.monotonic()
        self._last_plain = -math.inf
        self.bar = Progress(
            TextColumn("train"),
            BarColumn(bar_width=10 if self.console.width < 100 else 24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self.console,
            disable=not (self.console.is_terminal and self.console.file.isatty()),
            refresh_per_second=2,
        )
        self._task = self.bar.add_task("train", total=total_steps, completed=first_step, figures="")

    def update(self, step: int, figures: Json | None = None) -> None:
        """Move to a step and show its figures (the same keys as a `train` record); None: those that are shown stay."""
        self.bar.update(self._task, completed=step)
        if figures is None:
            return
        with_center = figures.get("positive_share", 1.0)
        parts = [
            f"loss {figures['loss']:.3f}"
            + (f" ({with_center:.0%} of images have a center)" if with_center < 0.995 else "")
        ]
        if figures["images_per_second"] is not None:
            parts.append(f"{figures['images_per_second']:,.0f} images/s")
        if self.bar.disable or self.console.width >= 100:
            parts.append(f"lr {figures['learning_rate']:.2g}")
            parts.append(f"{figures['memory_mib']:,.0f} MiB")
        text = "  ".join(parts)
        self.bar.update(self._task, figures=text)
        now = time.monotonic()
        if self.bar.disable and (now - self._last_plain > SECONDS_BETWEEN_PLAIN_LINES or step == self._total):
            self._last_plain = now
            left = (now - self._started) / max(step - self._first, 1) * (self._total - step)
            self.say(f"step {step}/{self._total}  {text}  {left / 60:.1f} min left")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


@dataclass
class RunLog:
    """What a run says of its steps while it is open: records in ``metrics.jsonl``, and the progress line. Closed (all ranks but 0), it says nothing.

    Args:
        every: steps between records of the training.
        tensorboard: also write event files under ``tensorboard/``.
        open_trackers: called with the run's folder when training begins; gives those that get the numbers too, and are closed with the log.
    """

    every: int = 10
    tensorboard: bool = True
    open_trackers: Callable[[Path], Sequence[Tracker]] = lambda _: ()
    _open: tuple[TextIO, list[Tracker], ProgressLine] | None = field(default=None, init=False)

    @contextlib.contextmanager
    def opened(self, run_folder: Path, step: int, total_steps: int) -> Iterator[None]:
        """Open for the steps after `step`; records of these are dropped from an existing file (resume).

        Of a finished run its last evaluation is dropped too: it comes again.
        """
        path = run_folder / "metrics.jsonl"
        with contextlib.ExitStack() as closing:
            trackers = [*self.open_trackers(run_folder)]
            if self.tensorboard:
                trackers.append(TensorBoard(run_folder, step + 1))
            for tracker in trackers:
                closing.callback(tracker.close)
            if path.exists():
                _drop_from(path, step + 1, step >= total_steps)
            file = closing.enter_context(path.open("a", encoding="utf-8"))
            closing.callback(sync, file)
            line = ProgressLine(total_steps, step)
            closing.enter_context(line.bar)
            self._open = file, trackers, line
            try:
                yield
            finally:
                self._open = None

    def write(self, kind: str, step: int, values: Json) -> None:
        """Append one record, with null for NaN and infinity (JSON has neither).

        Trackers get the numbers of train and evaluation as ``kind/name``; the progress line shows those of train.
        """
        if self._open:
            file, trackers, line = self._open
            record = {"kind": kind, "step": step, **values}
            file.write(json.dumps(_finite(record), ensure_ascii=False) + "\n")
            file.flush()
            for tracker in trackers if kind in ("train", "evaluation") else ():
                tracker.log(step, shared_numbers(kind, values))
            if kind == "train":
                line.update(step, values)

    def fail(self, step: int, error: Exception) -> None:
        """Record why the run ended, after what it recorded before; where that is nothing, or the disk is full, nothing."""
        if self._open and self._open[0].tell():
            with contextlib.suppress(OSError):
                self.write("error", step, {"message": one_line(error)})

    def show(self, step: int, figures: Json | None = None) -> None:
        """Move the bar to a step, with new figures if there are any."""
        if self._open:
            self._open[2].update(step, figures)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._open:
            self._open[2].say(text)


class Stopwatch:
    """Seconds of training: evaluations and saves are left out."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def start(self) -> None:
        """Count from now on."""
        self._since = time.perf_counter()

    def read(self) -> float:
        """Return the seconds so far."""
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now
        return self.seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing while this context lasts."""
        self.read()
        yield
        self.start()


def _drop_from(path: Path, step: int, evaluates_again: bool) -> None:
    with path.open("rb") as lines, written_whole(path) as kept:
        for line in lines:
            try:
                record = json.loads(line)
                number = record["step"]
            except (ValueError, TypeError, KeyError, RecursionError):
                continue  # torn by a kill, perhaps inside a letter: its step is past the last checkpoint
            is_evaluation = evaluates_again and record.get("kind") == "evaluation"
            if isinstance(number, int) and number < step - is_evaluation:
                kept.write(line if line.endswith(b"\n") else line + b"\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def _flat(figures: Json, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of an evaluation by name, those of nested figures with the outer name before them."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}_")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, float(value)


def figure_of(figures: Json, name: str) -> float | None:
    """Return a finite number of an evaluation by that name; None: there is none."""
    value = dict(_flat(figures)).get(name)
    return value if value is not None and math.isfinite(value) else None
