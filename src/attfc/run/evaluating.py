"""How a run is judged: the pairs, the evaluation while it trains, and the files that it leaves in the run's folder."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from attfc.config import RunConfig
from attfc.data import Store
from attfc.errors import UserError
from attfc.evaluation import Embedder, Pairs, evaluate_store, generate_pairs, read_pairs
from attfc.evaluation.people import heading_with_people
from attfc.evaluation.protocols.all_pairs_scores import SPARE_FOR_INTERVALS
from attfc.evaluation.protocols.held_out import HeldOutEvaluation, positions_of
from attfc.evaluation.results import figures_with_intervals, stated_intervals
from attfc.files import write_json_whole, written_whole
from attfc.precision import AMP_DTYPES
from attfc.run.against_start import AgainstStart
from attfc.run.start_weights import Lineage
from attfc.run.trained_people import with_look_alikes
from attfc.training.checkpoints.checkpoint import latest_checkpoint
from attfc.training.interruption import resume_command
from attfc.training.trainer import Evaluation
from attfc.typing import Progress

if TYPE_CHECKING:
    from attfc.run.build import Run

__all__ = ["broken_images", "evaluation_of", "judged_pairs"]


def judged_pairs(config: RunConfig, held_out: Store) -> Pairs:
    """Read `eval.pairs`, or draw pairs of the people that the run is judged on.

    Raises:
        UserError: the list cannot be read or names others, or the people allow no pairs.
    """
    if not config.eval.pairs:
        try:
            return generate_pairs(held_out.identities, config.eval.generated_pairs, config.seed)
        except UserError as error:
            raise UserError(f"{held_out.name}, to be evaluated on: {error}; or set eval.root=OTHER_PEOPLE") from None
    path = Path(os.path.expanduser(config.eval.pairs))
    try:
        return read_pairs(path, held_out, broken_limit=config.data.broken_limit)
    except OSError as error:
        raise UserError(f"eval.pairs={config.eval.pairs}: {error.strerror}") from None
    except UserError as error:
        if config.eval.root is not None:
            raise
        raise UserError(f"{error}; set eval.root= to the images of the people in the list") from None


class _Blank(nn.Module):
    """Embeds every image alike: nothing is left of an evaluation but reading and decoding."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size

    def forward(self, images_BCSS: Tensor) -> Tensor:
        return images_BCSS.new_ones(len(images_BCSS), 1)


def broken_images(run: "Run", pairs: Pairs, image_size: int, progress: Progress | None) -> list[str]:
    """Decode every image that the evaluation will use, at most some 20,000, and return a note of those that it leaves out.

    Raises:
        UserError: more are broken than `data.broken_limit`, which would end the run at its evaluation.
    """
    config, held_out = run.config, run.held_out
    assert held_out is not None
    roots = (
        [config.eval.root] if config.eval.root else [each.root for each in config.data.sources] or [config.data.root]
    )
    if all(root.startswith("synthetic") for root in roots):
        return []
    embedder = Embedder(
        _Blank(image_size), config.eval.batch_size, flip=False, workers=config.data.workers, ranks=run.ranks
    )
    positions = positions_of(held_out, pairs, config.seed)
    found = embedder.embed_within(
        held_out, positions, config.data.broken_limit, missing=pairs.missing, progress=progress
    )
    if not found.broken:
        return []
    counts = f"{len(found.broken):,} of the {len(positions):,} images to be evaluated on"
    return [f"{counts} are broken and left out; {found.first_left_out}"]


def evaluation_of(run: "Run", pairs: Pairs, behind: Mapping[str, Lineage]) -> Evaluation:
    """Evaluate on the held-out store; leaves evaluation.json and evaluation.npz in the run's folder.

    behind: who stands behind the start weights, and behind the teacher.
    """
    config = run.config
    held_out = run.held_out
    assert held_out is not None
    against = None if config.start_from is None else AgainstStart(run, behind)

    def embedder_of(model: nn.Module) -> Embedder:
        return Embedder(
            model,
            batch_size=config.eval.batch_size,
            flip=config.eval.flip,
            workers=config.data.workers,
            autocast_dtype=AMP_DTYPES[config.precision.amp],
            ranks=run.ranks,
        )

    def found_by(embedder: Embedder, step: int, last: bool) -> HeldOutEvaluation:
        try:
            return evaluate_store(
                embedder,
                held_out,
                pairs=pairs,
                seed=config.seed,
                all_pairs=config.eval.all_pairs,
                spare=SPARE_FOR_INTERVALS if last else 1.0,
                broken_limit=config.data.broken_limit,
            )
        except UserError as error:
            saved = latest_checkpoint(run.folder / "checkpoints") is not None
            raise UserError(
                f"the evaluation at step {step:,} failed: {error}. "
                + (
                    "The training is saved up to the last checkpoint: fix that, or raise "
                    f"data.broken_limit, and go on with {resume_command(run.folder)}"
                    if saved
                    else "Nothing was saved so far: fix that, and start again"
                )
            ) from error

    def begin(model: nn.Module) -> str:
        assert against is not None
        embedder = embedder_of(model)
        return against.begin(embedder, found_by(embedder, 0, last=True))

    def evaluate(model: nn.Module, step: int) -> dict[str, Any]:
        at_end = step == run.trainer.total_steps
        last = config.report.write and at_end  # intervals take seconds: once a run
        embedder = embedder_of(model)
        result = found_by(embedder, step, last or (at_end and against is not None))
        figures = result.figures()
        if run.shared is not None and at_end:
            shared = run.shared
            run.shared = run.ranks.once(
                lambda: with_look_alikes(shared, embedder, run.store, held_out, config.eval.look_alikes)
            )
        if at_end and against is not None:
            run.against_start = against.finish(embedder, result)
        if run.shared is not None:
            evaluation.on = heading_with_people(run.shared.heading, result.people)
        if run.ranks.rank:
            return figures
        written = figures_with_intervals(result, config.seed) if last else figures
        run.intervals = stated_intervals(written)
        unseen = {} if run.shared is None else {"unseen": run.shared.to_dict()}
        compared = {"against_start": run.against_start} if run.against_start else {}
        write_json_whole(
            run.folder / "evaluation.json", {"step": step, "flip": config.eval.flip, **written, **unseen, **compared}
        )
        arrays: dict[str, Any] = result.arrays()
        with written_whole(run.folder / "evaluation.npz") as file:
            np.savez_compressed(file, **arrays)
        return figures

    evaluation = Evaluation(evaluate, config.eval.every, config.eval.best_by, begin=None if against is None else begin)
    return evaluation
