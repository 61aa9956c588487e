"""What a protocol is: one file that says how it evaluates, which scores stand behind its figures, what is shown of them, and a line in `PROTOCOLS`.

A protocol's file defines a `Protocol`: the names under which it is asked for, the options of `attfc evaluate` that it takes, and
`run(subject, name, paths, **options)`. It returns an `Outcome`: figures as plain JSON types, samples by where their figures stand, and tables
whose cells name figures by their place. Intervals, `--json`, `--save`, `attfc compare` and the reports work on these, whatever the protocol. Its
functions (`evaluate_store`, ...) are usable without all this.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from attfc.data.stores.store import Store
from attfc.errors import UserError
from attfc.evaluation.bootstrap import FigurePath, IdentityDraw, Interval, Sample, figure_at, nested
from attfc.evaluation.embed import Embedder
from attfc.evaluation.people import few_people
from attfc.evaluation.unseen import SharedPeople
from attfc.typing import Bools, Json, Progress, Texts

__all__ = ["Board", "Cell", "Outcome", "Protocol", "Subject", "Table", "noted", "one_path", "with_slices"]


@dataclass(frozen=True)
class Subject:
    """The model to evaluate.

    Attributes:
        embedder: the backbone on its device.
        digest: gives the key of its contents, under which embeddings are kept.
        open_path: opens a store and compares its people with those whom the model was trained on.
        progress: gives a bar with a title.
    """

    embedder: Embedder
    digest: Callable[[], str]
    open_path: Callable[[str], tuple[Store, SharedPeople]]
    progress: Callable[[str], AbstractContextManager[Progress]]

    def open_store(self, name: str, paths: Sequence[str]) -> tuple[str, Store, SharedPeople]:
        """Return the only path of a protocol of a store, the store, and whether its people were trained on."""
        path = one_path(name, paths, "an image folder, any other store, or a synthetic: spec")
        return path, *self.open_path(path)


def one_path(name: str, paths: Sequence[str], what: str) -> str:
    """Return the only path, of a protocol that takes one."""
    if len(paths) != 1:
        raise UserError(f"{name} takes one path, {what}; {len(paths)} were given")
    return paths[0]


@dataclass(frozen=True)
class Cell:
    """A figure of a table, by its place: in percent with two places, as it is with four, or as a count."""

    path: FigurePath
    form: Literal["percent", "share", "count"] = "percent"

    def text(self, figures: Mapping[str, Any], intervals: Mapping[FigurePath, Interval]) -> str:
        """Return the figure with its interval, `-` for one that cannot be stated."""
        value = figure_at(figures, self.path)
        if value is None:
            return "-"
        if self.form == "count":
            return f"{value:,}"
        interval = dataclasses.replace(intervals.get(self.path, Interval(value, None, None)), value=value)
        text = interval.text(2, percent=True) if self.form == "percent" else interval.text(4)
        return text if self.path in intervals else text.split(" ")[0]


@dataclass(frozen=True)
class Table:
    """A table of figures: its header, and rows of a name and cells; text stands as it is."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]

    @staticmethod
    def of(title: str, columns: Mapping[str, Cell], places: Sequence[tuple[str, FigurePath]]) -> "Table":
        """Return the table of the same figures at several places, a row by name for each; the cells' paths go on from there."""

        def cells(place: FigurePath) -> list[Cell]:
            return [Cell((*place, *cell.path), cell.form) for cell in columns.values()]

        return Table((title, *columns), [[name, *cells(place)] for name, place in places])


@dataclass(frozen=True)
class Outcome:
    """What a protocol found.

    Attributes:
        figures: plain JSON types. samples: the scores behind them, by where they stand in `figures`.
        shown: tables and lines for the screen, in order.
        shared: whether the people were trained on, where the protocol is of a store.
    """

    figures: Json
    samples: Mapping[FigurePath, Sequence[Sample]]
    shown: Sequence[str | Table]
    shared: SharedPeople | None = None

    def __post_init__(self) -> None:
        """Put what is known of the people beside the figures."""
        if self.shared is not None:
            self.figures["unseen"] = self.shared.to_dict()

    @property
    def people_notes(self) -> list[str]:
        """What the screen says about the people."""
        return [] if self.shared is None else self.shared.notes


def with_slices(
    outcome: Outcome,
    place: FigurePath,
    columns: Mapping[str, Texts],
    sample_of: Callable[[Bools], Sample | None],
    shown: Mapping[str, Cell],
) -> Outcome:
    """Return an outcome with the figures, samples and tables of its slices: the rows, pairs or probes, that have a value of an attribute.

    Args:
        place: of the figures that are sliced; the slices stand there under `slices`, by column and value.
        columns: the value of each row, "" = none. sample_of: the sample of chosen rows; None: they give no figures.
        shown: columns of the tables, beside rows and people.
    """
    samples, tables = dict(outcome.samples), [*outcome.shown]
    found = figure_at(outcome.figures, place).setdefault("slices", {})
    for column, value_N in columns.items():
        lines = []
        for value in np.unique(value_N[value_N != ""]).tolist():
            sample = sample_of(value_N == value)
            if sample is None:
                tables.append(f"note: {column}: {value} is left out: it has not both kinds of rows")
                continue
            figures = nested(sample.figures(IdentityDraw(np.ones(sample.identities))))
            counts = {"rows": int((value_N == value).sum()), "identities": sample.carriers}
            found.setdefault(column, {})[value] = counts | figures
            samples[*place, "slices", column, value] = [sample]
            lines.append((value, (*place, "slices", column, value)))
            tables += [f"note: {column}: {value} {note}" for note in few_people(sample.carriers)]
        counted = {"rows": Cell(("rows",), "count"), "people": Cell(("identities",), "count")}
        tables += [Table.of(" ".join((*place, column)), {**counted, **shown}, lines)] if lines else []
    return dataclasses.replace(outcome, samples=samples, shown=tables)


def noted(notes: Sequence[str]) -> list[str]:
    """Return notes as lines for the screen."""
    return [f"note: {note}" for note in notes]


@dataclass(frozen=True)
class Board:
    """Where figures stand in a report on several models.

    Attributes:
        key: results with equal keys share a table. title: above it.
        columns: (name, figure) of its columns in the summary.
    """

    key: FigurePath
    title: str
    columns: tuple[tuple[str, FigurePath], ...]


@dataclass(frozen=True)
class Protocol:
    """A protocol: what a file of this room registers.

    Attributes:
        names: under which it is asked for.
        run: (subject, name, paths, **options) -> outcome; name as typed.
        options: which of `attfc evaluate` it takes.
        board: (name, its data's name, place of figures) -> where they stand in a report.
        family: results of one family can be compared; empty: those of one name.
        without_pairs: what to say where `--pairs` is given and not taken, after the name.
        joined: several names can be asked for at once, joined by commas.
    """

    names: tuple[str, ...]
    run: Callable[..., Outcome]
    options: tuple[str, ...]
    board: Callable[[str, str, FigurePath], Board]
    family: str = ""
    without_pairs: str = "takes no list of pairs: leave out --pairs"
    joined: bool = False

    def taken(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that this protocol takes.

        Raises:
            UserError: `pairs`, `groups`, `attributes` or `fars` are given, which only some protocols take.
        """
        refused = {
            "pairs": f"{name} {self.without_pairs}",
            "groups": f"--groups is of the protocol all-pairs: leave it out of {name}",
            "attributes": f"--attributes names images, and {name} has none that have names: leave it out",
            "fars": f"--far is an option of the protocol all-pairs: leave it out of {name}",
        }
        for option, refusal in refused.items():
            if options[option] and option not in self.options:
                raise UserError(refusal)
        return {option: options[option] for option in self.options}
