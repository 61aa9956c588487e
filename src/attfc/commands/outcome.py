"""A model to evaluate and what a protocol found with it; whether it was trained on the people, from what its run knows of its data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attfc.commands.common import open_with_bar, progress_bar

if TYPE_CHECKING:
    import torch
    from torch import nn

    from attfc.commands.evaluation import Request
    from attfc.data import Store
    from attfc.evaluation.bootstrap import Interval, Sample
    from attfc.evaluation.bootstrap import Path as FigurePath
    from attfc.evaluation.unseen import SharedPeople
    from attfc.export import ModelFacts

__all__ = ["OpenedModel", "Outcome", "shared_with_run"]


@dataclass(frozen=True)
class OpenedModel:
    """A model on its device."""

    module: "nn.Module"
    facts: "ModelFacts"
    device: "torch.device"
    path: Path

    def open_data(self, asked: "Request") -> "tuple[str, Store, SharedPeople]":
        """Open the store that a protocol evaluates, and compare its people with those whom the model was trained on."""
        path = asked.one_path("an image folder, any other store, or a synthetic: spec")
        store = open_with_bar(path, cache=asked.cache)
        return path, store, shared_with_run(self.path, store)


@dataclass(frozen=True)
class Outcome:
    """What a protocol found.

    Attributes:
        figures: plain JSON types. samples: the scores behind them, by where they stand in `figures`.
        show: prints the figures, with intervals where there are any.
        shared: whether the people were trained on, where the protocol is of a store.
    """

    figures: dict[str, Any]
    samples: "Mapping[FigurePath, Sequence[Sample]]"
    show: Callable[["Mapping[FigurePath, Interval]"], None]
    shared: "SharedPeople | None" = None

    def __post_init__(self) -> None:
        """Put what is known of the people beside the figures."""
        if self.shared is not None:
            self.figures["unseen"] = self.shared.to_dict()

    @property
    def people_notes(self) -> list[str]:
        """What the screen says about the people."""
        note = None if self.shared is None else self.shared.screen_note
        return [] if note is None else [note]


def shared_with_run(model: Path, store: "Store") -> "SharedPeople":
    """Compare an evaluation set with the training data of a model's run.

    Args:
        model: as the user named it: a run's folder, its `model/`, or anything else, of which nothing is known.
        store: the evaluation set.
    """
    from attfc.evaluation.unseen import not_compared
    from attfc.run.trained_people import compare_with_saved_run
    from attfc.training.run_folder import run_of

    run = run_of(model)
    if run is None:
        return not_compared(store, "what the model was trained on is not known here")
    with progress_bar("comparing with the training data") as bar:
        return compare_with_saved_run(run, store, bar)
