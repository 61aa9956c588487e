"""Which people of an evaluation a run was trained on: its own training data, and those of the runs that it started from."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from attfc.config import RunConfig
from attfc.config.schema import DataConfig
from attfc.data import CombinedStore, Store
from attfc.data.people.kept_aside import split
from attfc.errors import UserError
from attfc.evaluation.embed import Embedder
from attfc.evaluation.look_alikes import with_look_alikes
from attfc.evaluation.unseen import SharedPeople, compare_with_training, not_compared
from attfc.run.data import open_training_data
from attfc.run.saved import saved_configuration, with_found_data
from attfc.run.start_weights import Lineage, lineage, read_record
from attfc.run.teacher import read_teacher
from attfc.typing import Progress

__all__ = ["compare_with_run", "compare_with_saved_run"]


def compare_with_saved_run(
    run: Path,
    evaluation: Store,
    progress: Progress | None = None,
    *,
    embedder: Embedder | None = None,
    seconds: float = 0.0,
) -> SharedPeople:
    """Compare an evaluation set with everybody whom the run of a folder was trained on; see `compare_with_run`."""
    try:
        config = saved_configuration(run)
        records = {"start weights": read_record(run), "teacher": read_teacher(run)}
    except (UserError, OSError) as error:
        return not_compared(evaluation, f"what the run was trained on cannot be read ({error})")
    with contextlib.suppress(UserError):  # where they are not found, the path is named below
        config = with_found_data(config, run)[0]
    behind = {name: record.lineage for name, record in records.items() if record is not None}
    return compare_with_run(config, evaluation, progress, behind=behind, embedder=embedder, seconds=seconds)


def compare_with_run(
    config: RunConfig,
    evaluation: Store,
    progress: Progress | None = None,
    *,
    training: Store | None = None,
    behind: Mapping[str, Lineage] | None = None,
    embedder: Embedder | None = None,
    seconds: float = 0.0,
) -> SharedPeople:
    """Compare an evaluation set with everybody whom a run was trained on.

    Args:
        config: of the run.
        evaluation: the people to evaluate on.
        progress: called as (images read, images to read).
        training: the run's training data, if they are open already.
        behind: who stands behind the "start weights" and the "teacher", as far as that is known already.
        embedder, seconds: the trained model, to look for people who look like trained ones for so long; None: names and files alone.
    """
    unknown = []
    try:
        stores = [training if training is not None else _training_data(config, config.data, config.eval.share)]
    except (UserError, OSError) as error:
        return not_compared(evaluation, f"the run's training data cannot be opened ({error})")
    for name, model in (("start weights", config.start_from), ("teacher", config.teacher.model)):
        if model is None:
            continue
        try:
            earlier = (behind or {}).get(name) or lineage(model)
            unknown += [f"whether the {name} saw them is unknown"] * earlier.foreign
            stores += [_training_data(config, one.data, one.share) for one in earlier.runs]
        except (UserError, OSError):
            of = "that it started from" if name == "start weights" else "of its teacher"
            unknown.append(f"the training data of a run {of} cannot be opened")
    everybody = stores[0] if len(stores) == 1 else CombinedStore(stores)
    shared = compare_with_training(everybody, evaluation, progress, unknown="; ".join(unknown))
    return shared if embedder is None else with_look_alikes(shared, embedder, everybody, evaluation, seconds, progress)


def _training_data(config: RunConfig, data: DataConfig, share: float) -> Store:
    store = open_training_data(config.model_copy(update={"data": data}))
    return split(store, share)[0] if share else store
