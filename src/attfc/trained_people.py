"""Which people of an evaluation a run was trained on: its own training data, and those of the run that it started from."""

from collections.abc import Callable
from pathlib import Path

from attfc.config import RunConfig, load_config
from attfc.data import CombinedStore, Store
from attfc.data.kept_aside import split
from attfc.errors import UserError
from attfc.evaluation.unseen import SharedPeople, compare_with_training, not_compared

__all__ = ["compare_with_run", "run_of_model"]

Progress = Callable[[int, int], None]

_MOST_RUNS = 20  # a run started from a run started from ...


def run_of_model(path: Path) -> Path | None:
    """Return the run's folder that a model is in (`RUN`, `RUN/model`, `RUN/best` or their file), or None."""
    folders = [path, *path.parents[:2]]
    for number, folder in enumerate(folders):
        if number and folders[number - 1].name not in ("model", "best", "model.safetensors"):
            return None
        if (folder / "config.yaml").is_file():
            return folder
    return None


def compare_with_run(
    config: RunConfig, evaluation: Store, progress: Progress | None = None, training: Store | None = None
) -> SharedPeople:
    """Compare an evaluation set with everybody whom a run was trained on.

    Args:
        config: of the run.
        evaluation: the people to evaluate on.
        progress: called as (images read, images to read).
        training: the run's training data, if they are open already.
    """
    stores, unknown = [], ""
    try:
        stores.append(_training_data(config) if training is None else training)
    except (UserError, OSError) as error:
        return not_compared(evaluation, f"the run's training data cannot be opened ({error})")
    for _ in range(_MOST_RUNS):
        if config.start_from is None:
            break
        start = run_of_model(Path(config.start_from).expanduser())
        if start is None:
            unknown = "whether the start weights saw them is unknown"
            break
        try:
            config = load_config(str(start / "config.yaml"))
            stores.append(_training_data(config))
        except (UserError, OSError):
            unknown = "the training data of the run that it started from cannot be opened"
            break
    everybody = stores[0] if len(stores) == 1 else CombinedStore(stores)
    return compare_with_training(everybody, evaluation, progress, unknown=unknown)


def _training_data(config: RunConfig) -> Store:
    from attfc.build import open_training_data  # which imports this module

    store = open_training_data(config)
    return split(store, config.eval.share)[0] if config.eval.share else store
