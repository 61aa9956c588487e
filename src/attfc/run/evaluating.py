"""The evaluation of a run while it trains, and the files that it leaves in the run's folder."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from attfc.errors import UserError
from attfc.evaluation import Embedder, Pairs, evaluate_store
from attfc.evaluation.people import heading_with_people
from attfc.evaluation.protocols.all_pairs_scores import SPARE_FOR_INTERVALS
from attfc.evaluation.results import figures_with_intervals, stated_intervals
from attfc.files import write_json_whole, written_whole
from attfc.precision import AMP_DTYPES
from attfc.training.interruption import resume_command

if TYPE_CHECKING:
    from attfc.run.build import Run

__all__ = ["evaluator_of"]


def evaluator_of(run: "Run", pairs: Pairs) -> Callable[[nn.Module, int], dict[str, Any]]:
    """Evaluate on the held-out store; leaves evaluation.json and evaluation.npz in the run's folder."""
    config = run.config
    held_out = run.held_out
    assert held_out is not None

    def evaluate(model: nn.Module, step: int) -> dict[str, Any]:
        last = config.report.write and step == run.trainer.total_steps  # intervals take seconds: once a run
        try:
            result = evaluate_store(
                Embedder(
                    model,
                    batch_size=config.eval.batch_size,
                    flip=config.eval.flip,
                    workers=config.data.workers,
                    autocast_dtype=AMP_DTYPES[config.precision.amp],
                    ranks=run.ranks,
                ),
                held_out,
                pairs=pairs,
                seed=config.seed,
                all_pairs=config.eval.all_pairs,
                spare=SPARE_FOR_INTERVALS if last else 1.0,
                broken_limit=config.data.broken_limit,
            )
        except UserError as error:
            raise UserError(
                f"the evaluation at step {step:,} failed: {error}. What was trained is saved up to the last checkpoint: mend that, or raise "
                f"data.broken_limit, and go on with {resume_command(run.folder)}"
            ) from error
        figures = result.figures()
        if run.shared is not None:
            run.trainer.evaluated_on = heading_with_people(run.shared.heading, result.people)
        if run.ranks.rank:
            return figures
        written = figures_with_intervals(result, config.seed) if last else figures
        run.intervals = stated_intervals(written)
        unseen = {} if run.shared is None else {"unseen": run.shared.to_dict()}
        write_json_whole(run.folder / "evaluation.json", {"step": step, **written, **unseen})
        arrays: dict[str, Any] = result.arrays()
        with written_whole(run.folder / "evaluation.npz") as file:
            np.savez_compressed(file, **arrays)
        return figures

    return evaluate
