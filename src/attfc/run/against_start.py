"""What a fine-tune gained and lost: its model against the one it began with, on the people kept aside and on a set of everybody (`eval.also`).

The start model is evaluated before the first step, its scores wait in the run's folder (`start_here.npz`, `start_there.npz`, as of `attfc evaluate
--save`), so a resumed run does not need the start weights again. At the end the same people are drawn for both models, as `attfc compare` draws them.
Cost: both sets are embedded once more, and two bootstraps of 400 resamples per set.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attfc.data import Store, open_store
from attfc.data.stores.verification_sets import read_verification_set
from attfc.errors import UserError
from attfc.evaluation.bootstrap import Interval
from attfc.evaluation.embed import Embedder
from attfc.evaluation.people import FEW_PEOPLE
from attfc.evaluation.protocols import find_protocol
from attfc.evaluation.protocols.held_out import HeldOutEvaluation
from attfc.evaluation.protocols.protocol import Subject
from attfc.evaluation.results import (
    RUN_EXACT,
    RUN_RESAMPLES,
    Difference,
    EvaluationResult,
    compare_results,
    read_result,
    save_result,
)
from attfc.evaluation.unseen import SharedPeople
from attfc.run.start_weights import Lineage
from attfc.run.trained_people import compare_with_run

if TYPE_CHECKING:
    from attfc.run.build import Run

__all__ = ["AgainstStart"]

HEADLINES = (("all_pairs", "tar_at_far", "0.001"), ("all_pairs", "tar_at_far", "0.01"), ("accuracy",))
"""The figure that is said in a sentence: the first of these that both models have."""


class AgainstStart:
    """Compares the model of a run with the one of `start_from`.

    Args:
        run: put together, with people who are kept aside.
        behind: as `compare_with_run` takes it.

    Raises:
        UserError: `eval.also` cannot be opened, is of no known kind, or has too few people.
    """

    def __init__(self, run: "Run", behind: Mapping[str, Lineage]) -> None:
        self.run, self.also = run, run.config.eval.also
        self._protocol = "pairs"
        self._store: Store | None = None
        self._shared: SharedPeople | None = None
        if self.also is None:
            return
        self.also = os.path.expanduser(self.also)
        try:
            self._store = None if self.also.endswith(".bin") else open_store(self.also)
            people = _people(self.also, self._store)
        except (UserError, OSError) as error:
            raise UserError(f"eval.also: {error}") from None
        if people < FEW_PEOPLE:
            raise UserError(
                f"eval.also={run.config.eval.also} has {people} people with two images or more, too few to compare two models on "
                f"(at least {FEW_PEOPLE} are needed): give a larger set, or leave it out"
            )
        if (store := self._store) is not None:
            self._protocol = "held-out"
            self._shared = run.ranks.once(
                lambda: compare_with_run(run.config, store, training=run.store, behind=behind)
            )

    def begin(self, embedder: Embedder, here: HeldOutEvaluation) -> str:
        """Keep what the start model does; return a line that says so."""
        for where, result in self._results(embedder, here):
            if self.run.ranks.rank == 0:
                save_result(self.run.folder / f"start_{where}.npz", result)
        return f"step 0: {self.run.config.start_from} is evaluated, to be compared with at the end"

    def finish(self, embedder: Embedder, here: HeldOutEvaluation) -> dict[str, Any]:
        """Compare; return what evaluation.json keeps of it, on rank 0."""
        run, sets = self.run, []
        for where, result in self._results(embedder, here):
            if run.ranks.rank:
                continue
            found: dict[str, Any] = {
                "where": where,
                "data": result.paths[0],
                "lines": [],
                "differences": [],
                "notes": [],
            }
            try:
                kept = read_result(run.folder / f"start_{where}.npz")
                differences = compare_results(result, kept, RUN_RESAMPLES, seed=run.config.seed)
            except UserError as error:  # another set or seed since the run was begun: no reason to lose the run
                found["lines"] = [f"not compared {where}: {error}"]
            else:
                found["lines"] = [_line(each, where, result.paths[0]) for each in _headlines(differences)]
                found["differences"] = [each.plain() for each in differences]
                notes = [note for each in differences for note in each.notes]
                if where == "there" and self._shared is not None and self._shared.warning:
                    notes.append(self._shared.warning)
                found["notes"] = list(dict.fromkeys(notes))
            sets.append(found)
        return {"model": run.config.start_from, "confidence": 0.95, "resamples": RUN_RESAMPLES, "sets": sets}

    def _results(self, embedder: Embedder, here: HeldOutEvaluation) -> Iterator[tuple[str, EvaluationResult]]:
        """Yield the result of a model on each set, by where it is."""
        run = self.run
        figures, samples = here.figures(), here.samples(RUN_EXACT)
        yield "here", EvaluationResult(str(run.folder), "held-out", (here.name,), figures, samples)
        if self.also is None:
            return
        subject = Subject(embedder, str, self._open, lambda _: contextlib.nullcontext(lambda done, total: None))
        given: dict[str, Any] = {
            "seed": run.config.seed,
            "broken_limit": run.config.data.broken_limit,
            "keep_scores": True,
        }
        given["generated_pairs"] = run.config.eval.generated_pairs
        protocol = find_protocol(self._protocol)
        options = {name: given.get(name) for name in protocol.options}
        outcome = protocol.run(subject, self._protocol, [self.also], **options)
        yield "there", EvaluationResult(str(run.folder), self._protocol, (self.also,), outcome.figures, outcome.samples)

    def _open(self, path: str) -> tuple[Store, SharedPeople]:
        assert self._store is not None
        assert self._shared is not None
        return self._store, self._shared


def _people(path: str, store: Store | None) -> int:
    """Return how many people a model can be judged on: those with two images, or the mated pairs of a .bin, which names nobody."""
    if store is None:
        return int(np.count_nonzero(read_verification_set(Path(path)).same))
    return int(np.count_nonzero(store.identities.counts() >= 2))


def _headlines(differences: list[Difference]) -> list[Difference]:
    for figure in HEADLINES:
        if found := [each for each in differences if each.path[-len(figure) :] == figure]:
            return found
    return []


def _line(found: Difference, where: str, data: str) -> str:
    """Return "gained 8.1 [5.2, 11.0] points of TAR at FAR 0.001 here, on faces/val: 40.2 % -> 48.3 %"."""
    change = found.difference
    lost = change.value < 0
    if lost:
        low, high = (None if bound is None else -bound for bound in (change.high, change.low))
        change = Interval(-change.value, low, high)
    figure = f"TAR at FAR {found.path[-1]}" if "tar_at_far" in found.path else found.path[-1]
    clear = "" if found.clear else " (the interval holds 0)"
    return (
        f"{'lost' if lost else 'gained'} {change.text(1, percent=True)} points of {figure} {where}{clear}; on {data}: "
        f"{100 * found.other.value:.1f} -> {100 * found.one.value:.1f} %"
    )
