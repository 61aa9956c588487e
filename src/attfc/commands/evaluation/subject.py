"""A model opened to be evaluated; whether it was trained on the people, from what its run knows of its data."""

from pathlib import Path
from typing import TYPE_CHECKING

from attfc.commands.common import open_with_bar, print_notes, progress_bar
from attfc.commands.evaluation.options import EvaluationOptions

if TYPE_CHECKING:
    from attfc.data import Store
    from attfc.evaluation import Embedder
    from attfc.evaluation.protocols.protocol import Subject
    from attfc.evaluation.unseen import SharedPeople
    from attfc.export import ModelFacts

__all__ = ["open_subject", "shared_with_run"]


def open_subject(path: Path, asked: EvaluationOptions) -> "tuple[Subject, ModelFacts]":
    """Open a model for a protocol; print notes about it."""
    from attfc.devices import choose_device
    from attfc.evaluation import Embedder
    from attfc.evaluation.protocols.protocol import Subject
    from attfc.export import open_model
    from attfc.export.model_inputs import contents_digest, read_statements

    on = choose_device(asked.device)
    module, facts = open_model(path, read_statements(asked.model_is or []), device=on.type)
    print_notes(facts.notes)

    def open_path(data: str) -> "tuple[Store, SharedPeople]":
        store = open_with_bar(data, cache=asked.cache)
        return store, shared_with_run(path, store, embedder, asked.look_alikes)

    embedder = Embedder(module.to(on), asked.batch_size, device=on, workers=asked.workers, conditions=asked.conditions)
    return Subject(embedder, lambda: contents_digest(module, facts), open_path, progress_bar), facts


def shared_with_run(
    model: Path, store: "Store", embedder: "Embedder | None" = None, seconds: float = 0.0
) -> "SharedPeople":
    """Compare an evaluation set with the training data of a model's run.

    Args:
        model: as the user named it: a run's folder, its `model/`, or anything else, of which nothing is known.
        store: the evaluation set.
        embedder, seconds: the opened model, and how long to look for people who look like trained ones.
    """
    from attfc.evaluation.unseen import not_compared
    from attfc.run.trained_people import compare_with_saved_run
    from attfc.training.run_folder import run_of

    run = run_of(model)
    if run is None:
        return not_compared(store, "the training data of this model are not known")
    with progress_bar("compare with the training data") as bar:
        return compare_with_saved_run(run, store, bar, embedder=embedder, seconds=seconds)
