"""One line to a trained model: `attfc.train(data)`; and what it and the command show.

That is what was chosen and why, notes, the bar while it trains, and a finish of a dozen lines. Everything else is in the report and in
evaluation.json.
"""

import os
import shlex
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from attfc.commands.common import Table, err, out, print_notes, print_table, progress_bar

if TYPE_CHECKING:
    from attfc.config.choose import Choice
    from attfc.run.build import Run

__all__ = ["RunScreen", "print_choices", "train"]

_FINISH_NOTES = 1


def print_choices(choices: "list[Choice]") -> None:
    """Print what was chosen from the data and the machine, a row each with its reason; words wrap, nothing is cut off."""
    rows = [(choice.what, choice.shown, choice.why) for choice in choices]
    print_table(Table(("chosen", "", "why (change any with key=value)"), rows, words=(0, 1, 2)), to=err, fits=True)


def train(data: str | os.PathLike[str], *overrides: str, **short: Any) -> "Run":
    """Train on a set of faces, judge the model on people kept aside, and write the report.

    Args:
        data: a folder with one folder per person, `train.rec`, a packed set, a list file, "synthetic:..."; or the name of a preset.
        overrides: as on the command line, such as "optimizer.weight_decay=1e-4"; also a preset's name.
        short: epochs, max_steps, lr, batch_size, backbone, head, seed, device, output, name, start_from.

    Returns:
        The run: `run.metrics` (of people kept aside; None where there are none), `run.model` (as `attfc.load`), `run.report` (path of the HTML page),
        `run.folder`, `run.config`, `run.against_start` (with start_from: what was gained and lost).
        An interrupt (Ctrl-C, a notebook's stop button) saves after the current step and returns the run with
        `run.interrupted` set; `attfc train --resume` goes on with it. Before the first step is done nothing is saved and the folder is removed;
        `run.stopped` says which.

    Raises:
        UserError: data, an option or a combination that cannot be trained; one line that names the value and the fix.
    """
    from attfc.config.arguments import read_words, short_overrides
    from attfc.run.build import new_run

    with RunScreen() as screen:
        run = screen.begin(lambda bar: new_run(read_words([data, *overrides, *short_overrides(short)]), bar))
        run.train()
        screen.finish(run)
    return run


class RunScreen:
    """Speaks for a run; of several ranks, rank 0 alone."""

    def __init__(self) -> None:
        self._run: Run | None = None

    def __enter__(self) -> "RunScreen":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        err.quiet = out.quiet = False  # an error of any rank is said
        if error is not None and self._run is not None and self._run.ranks.rank == 0 and not self._run.folder.exists():
            err.print(f"{self._run.folder} is removed: the run failed before its first record")

    def begin(self, make: "Callable[[Callable[[int, int], None]], Run]", resumed: bool = False) -> "Run":
        """Put a run together and say what it will do."""
        with progress_bar("images") as bar:
            run = make(bar)
        err.quiet = out.quiet = run.ranks.rank > 0
        try:
            self._announce(run, resumed)
        except BaseException:  # Ctrl-C, or rich leaves because nobody reads: attfc train ... 2>&1 | head -1
            from attfc.training.run_folder import remove_unsaved

            remove_unsaved(run.folder)
            raise
        self._run = run
        return run

    def _announce(self, run: "Run", resumed: bool) -> None:
        if run.choices:
            print_choices(run.choices)
        print_notes(run.notes)
        trainer, config = run.trainer, run.config
        err.print(
            f"{run.folder}: {config.head.kind} on {config.backbone.name}, {len(run.store.identities):,} people, {len(run.store):,} images, "
            f"{trainer.total_steps:,} step{'s' * (trainer.total_steps != 1)} of {config.batch_size * trainer.accumulation} on {trainer.device}"
            + (f" x {run.ranks.size} ranks" if run.ranks.size > 1 else "")
            + (f", resumed at step {trainer.step:,}" if resumed else ""),
        )

    def finish(self, run: "Run") -> None:
        """Print the figures a reader wants first, who stands behind them, and what to type next."""
        folder = run.folder
        if run.interrupted:
            err.print(run.stopped)
            return
        from attfc.evaluation.people import FEW_PEOPLE, few_people

        evaluation = run.trainer.evaluation
        lines = _headline(evaluation.last, run.intervals, evaluation.on) if evaluation and evaluation.last else []
        if run.against_start:
            lines.append(f"against {run.against_start['model']}; 95 % intervals, the same people drawn for both models")
            lines += [f"  {line}" for each in run.against_start["sets"] for line in (*each["lines"], *each["notes"])]
        lines += [f"note: {note}" for note in run.shared.notes[-1:] if run.shared.look_alikes] if run.shared else []
        lines += [f"model   {folder / 'model'}", *([f"report  {run.report}"] if run.report else [])]
        few = bool(evaluation and evaluation.last and few_people(evaluation.last["people"]))
        judges = f"   # {FEW_PEOPLE} of them or more, to judge the model" if few else ""
        lines.append(f"next    attfc evaluate {shlex.quote(str(folder))} held-out OTHER_PEOPLE{judges}")
        for line in lines:
            out.print(line)


def _headline(metrics: dict[str, Any], intervals: Any, heading: str) -> list[str]:
    """Return at most nine lines: whom the metrics are of, accuracy, TAR at two FARs of all pairs, rank-1, EER, notes."""
    everyone = metrics.get("all_pairs") or {}
    people = everyone.get("identities")
    count = "" if people is None or "rests on" in heading else f"{people:,} people, "
    behind = "" if people is None else f" ({count}{everyone['images']:,} images)"
    stated = [far for far, tar in (everyone.get("tar_at_far") or {}).items() if tar is not None]
    rows: list[tuple[str, tuple[str, ...], Any]] = [("accuracy of pairs", ("accuracy",), metrics.get("accuracy"))]
    rows += [
        (f"TAR at FAR {_power(far)}, all pairs", ("all_pairs", "tar_at_far", far), everyone["tar_at_far"][far])
        for far in sorted((far for far in stated if float(far) <= 0.01), key=float, reverse=True)[:2]
    ]
    rows += [("rank-1", ("rank_one",), metrics.get("rank_one")), ("EER", ("eer",), metrics.get("eer"))]
    known = [row for row in rows if isinstance(row[2], float)]
    lines = [f"{heading}{behind}{'; 95 % intervals by identity' if intervals else ''}"]
    for name, path, value in known:
        interval = (intervals or {}).get(path)
        bounds = "" if interval is None else "  " + interval.text(4).split(" ", 1)[1]
        lines.append(f"  {name:<27}{value:.4f}{bounds}")
    # How few people there are stands in the heading.
    notes = [
        note for note in metrics.get("notes", []) if "is not stated" not in note and not note.startswith("rests on")
    ]
    lines += [f"note: {note}" for note in notes[:_FINISH_NOTES]]
    if len(notes) > _FINISH_NOTES:
        lines[-1] += " (more notes in the report)"
    return lines


def _power(far: str) -> str:
    """Write "0.001" as 1e-3."""
    mantissa, _, exponent = f"{float(far):.0e}".partition("e")
    return f"{mantissa}e{int(exponent)}"
