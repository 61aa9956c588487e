"""Several models side by side: one HTML or Markdown page from files of `attfc evaluate --save`.

First the table of the field (MFR-ALL | IJB-C(1E-4) | IJB-C(1E-5), a line a model), then for each protocol all figures with their intervals, ROC, DET,
CMC and DIR curves, and groups. Nothing is computed anew but the curves. Models differ by colour and by line.
Figures of a Markdown page are SVG files in a folder beside it.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attfc.errors import UserError
from attfc.evaluation.bootstrap import FigurePath, IdentityDraw, Interval, Sample, figure_at
from attfc.evaluation.operating_point.judging import AT_POINT
from attfc.evaluation.protocols import board_of
from attfc.evaluation.protocols.protocol import Board
from attfc.evaluation.report.curves import HINTS, curves_of
from attfc.evaluation.report.page import Cell, Figure, Stated, count_text, texts, write_page
from attfc.evaluation.report.people import notes_of_result
from attfc.evaluation.report.plots import GroupRate, curve_figure, group_figure, with_colours
from attfc.evaluation.results import EvaluationResult, finite, once_each, stated_value
from attfc.files import write_text_whole
from attfc.templates import macros_of
from attfc.typing import PathLike

__all__ = ["write_comparison_report"]

_COUNTS = {
    "genuine_pairs": "mated pairs",
    "impostor_pairs": "non-mated pairs",
    "mated_probes": "mated probes",
    "stranger_searches": "non-mated searches",
    "interval_identities": "identities behind the intervals",
}
_FIGURE_NAMES = {
    "accuracy": "accuracy, %",
    "auc": "AUC",
    "eer": "EER, %",
    "rank_one": "rank 1, leave one out, %",
    "tar_at_far": "TAR at FAR {}, %",
    "person_balanced_tar_at_far": "person-balanced TAR at FAR {}, %",
    "tpir_at_fpir": "TPIR at FPIR {}, %",
    "rank": "rank {}, %",
}
_SHOWN_GROUPS = 40

Columns = Sequence[tuple[str, FigurePath]]
"""Name and figure of a board's columns in the summary."""
Rows = tuple[list[str], list[tuple[str, list[Cell]]]]
"""Header of a table, and name and cells of its rows."""


def write_comparison_report(path: PathLike, results: Sequence[EvaluationResult]) -> Path:
    """Write a page that sets results side by side, in one piece, over an older one.

    Args:
        path: ends in .html or .md; the latter's figures go to the folder `<name>_figures` beside it.
        results: of any protocols and models; results of one model share a line and a colour.

    Raises:
        UserError: no results, another ending, two results of one model on the same data, or a page that cannot be written.
    """
    target = Path(path)
    if target.suffix not in (".html", ".md"):
        raise UserError(f"{target}: a report is .html or .md")
    if not results:
        raise UserError("no results: pass files of `attfc evaluate ... --save FILE`")
    names = _names([result.model for result in results])
    boards, models = _boards(results, names), list(dict.fromkeys(names.values()))
    parts = macros_of(Path(__file__).with_name("compare.jinja"), kit=f"parts{target.suffix}", kept=_beside(target))
    sections = [("Summary", parts.summary(*_summary(boards, models)))]
    for number, board in enumerate(boards):
        drawn = _figures(board, f"f{number}")
        sections.append((board.title, parts.board(*_figure_table(board), drawn, once_each(board.notes))))
    for number, board in enumerate(board for board in boards if board.groups):
        groups = [_Group(*each) for each in board.each_group()]
        several = len(board.groups) > 1
        notes = [
            (f"{group.name} ({group.model})" if several else group.name, note)
            for group in groups
            for note in texts(group.figures.get("interval_notes"))
        ]
        shown = parts.groups(*_group_table(groups), _group_figures(groups, f"g{number}"), once_each(notes))
        sections.append((f"{board.title}: groups and slices", shown))
    title, line = "Models side by side", ", ".join(models)
    return write_page(target, f"{title}: {line} · attfc", title, line, [*sections, ("", parts.legend())])


def _beside(target: Path) -> Callable[[Figure], str]:
    """Return what writes a figure into the folder beside a Markdown page; it returns its address."""
    folder, numbers = target.with_name(f"{target.stem}_figures"), itertools.count(1)

    def kept(figure: Figure) -> str:
        folder.mkdir(exist_ok=True)
        file = folder / f"{next(numbers):02d}_{figure.caption.lower()}.svg"
        write_text_whole(file, with_colours(figure.svg))
        return f"{folder.name}/{file.name}"

    return kept


def _names(models: Iterable[str]) -> dict[str, str]:
    """Short names that tell the models apart: as many of the last parts of their paths as it takes."""
    different = list(dict.fromkeys(models))
    for parts in range(1, 1 + max(len(Path(model).parts) for model in different)):
        short = {model: "/".join(Path(model).parts[-parts:]) for model in different}
        if len(set(short.values())) == len(different):
            return short
    return {model: model for model in different}


class _Entry(Stated):
    """What a model did on a board: samples, the figures as stated, and those of the samples."""

    def __init__(self, samples: Sequence[Sample], holder: Mapping[str, Any]) -> None:
        super().__init__(holder)
        self.samples = samples
        self.values: dict[FigurePath, float] = {}
        for sample in samples:
            found = sample.figures(IdentityDraw(np.ones(sample.identities)))
            self.values.update({path: stated_value(holder, path, value) for path, value in found.items()})

    def __call__(self, *path: str) -> tuple[str, str]:
        return self.cell(path, self.values.get(path))


@dataclass(frozen=True, eq=False)
class _Board:
    """One set of people on which models were evaluated the same way.

    Attributes:
        title: for people. columns: of its columns in the summary.
        entries: model's short name -> what it did.
        groups: model's short name -> the JSON of its groups. notes: model's short name, note.
    """

    title: str
    columns: Columns
    entries: dict[str, _Entry] = field(default_factory=dict)
    groups: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)

    def each_group(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Return (group, model, its JSON), group after group."""
        names = dict.fromkeys(name for groups in self.groups.values() for name in groups)
        return [(name, model, _mapping(groups.get(name))) for name in names for model, groups in self.groups.items()]


def _boards(results: Sequence[EvaluationResult], names: Mapping[str, str]) -> list[_Board]:
    boards: dict[FigurePath, _Board] = {}
    for result in results:
        for place, samples in result.samples.items():
            if not {"groups", "slices", AT_POINT}.isdisjoint(place):
                continue
            found = board_of(result.protocol, Path(result.paths[0]).name if result.paths else "?", place)
            if condition := result.condition:
                columns = tuple((f"{title}, {condition}", path) for title, path in found.columns)
                found = Board((*found.key, condition), f"{found.title}, {condition}", columns)
            board = boards.setdefault(found.key, _Board(found.title, found.columns))
            holder = figure_at(result.figures, place)
            name = names[result.model]
            if name in board.entries:
                raise UserError(f"{found.title}: two results of {result.model}: pass one of them")
            board.entries[name] = _Entry(samples, holder)
            of_all = result.figures if place == ("all_pairs",) else holder if place else {}
            groups = dict(_mapping(of_all.get("groups")))
            for column, values in _mapping(of_all.get("slices")).items():
                groups |= {f"{column}: {value}": slice_ for value, slice_ in _mapping(values).items()}
            if groups:
                board.groups[name] = groups
            board.notes.extend((name, note) for note in notes_of_result(result.figures, holder))
    return list(boards.values())


def _summary(boards: Sequence[_Board], models: Sequence[str]) -> Rows:
    """Header and rows: a line a model, a column a figure of the field's tables: MFR-ALL and IJB-C first."""
    columns = [(name, path, board) for board in boards for name, path in board.columns]
    columns.sort(key=lambda column: (column[0] != "MFR-ALL", not column[0].startswith("IJB-C(")))
    rows = []
    for model in models:
        entries = [(board.entries.get(model), path) for _, path, board in columns]
        rows.append((model, ["–" if entry is None else entry(*path) for entry, path in entries]))
    return ["Model", *(name for name, _, _ in columns)], rows


def _figure_table(board: _Board) -> Rows:
    entries = board.entries.values()
    paths = dict.fromkeys(path for entry in entries for path in entry.values)
    rows: list[tuple[str, list[Cell]]] = [(_figure_name(path), [entry(*path) for entry in entries]) for path in paths]
    for key, name in _COUNTS.items():
        counts = [count if isinstance(count := entry.figures.get(key), int) else None for entry in entries]
        if any(count is not None for count in counts):
            rows.append((name, [*map(count_text, counts)]))
    return ["metric", *board.entries], rows


def _figure_name(path: FigurePath) -> str:
    return _FIGURE_NAMES[path[0]].format(*path[1:]) if path[0] in _FIGURE_NAMES else " ".join(path)


def _figures(board: _Board, key: str) -> list[Figure]:
    """Draw every curve that the board's scores allow."""
    found = curves_of({model: entry.samples for model, entry in board.entries.items()})
    return [
        Figure(kind.upper(), curve_figure(curves, f"{board.title}, {kind.upper()}", f"{key}{kind}", kind), HINTS[kind])
        for kind, curves in found.items()
    ]


class _Group(Stated):
    """A group of people as a model's file states it.

    Attributes:
        own: FAR -> TAR at the group's own threshold.
        shared: FAR -> TAR and FAR of the group at everyone's threshold.
    """

    def __init__(self, name: str, model: str, group: dict[str, Any]) -> None:
        super().__init__(group)
        people = group.get("identities")
        self.name, self.model, self.people = name, model, count_text(people if isinstance(people, int) else None)
        tars = {far: finite(tar) for far, tar in _rates(group.get("tar_at_far"))}
        self.own = {far: tar for far, tar in tars.items() if tar is not None}
        self.shared: dict[str, tuple[float, float]] = {}
        for far, rates in _rates(group.get("at_common_threshold")):
            tar, within = (finite(_mapping(rates).get(kind)) for kind in ("tar", "far"))
            if tar is not None and within is not None:
                self.shared[far] = (tar, within)

    def cells(self, far: str) -> tuple[Cell, Cell]:
        """Return the rates at everyone's threshold, and at its own with the interval."""
        common = f"{100 * self.shared[far][0]:.2f} (FAR {self.shared[far][1]:.2g})" if far in self.shared else "–"
        return common, self.cell(("tar_at_far", far), self.own.get(far))

    def rate(self, far: str) -> GroupRate:
        """Return what is drawn of it."""
        bounds = self.intervals.get(("tar_at_far", far)) or Interval(0.0, None, None)
        shared, _ = self.shared.get(far, (None, None))
        return GroupRate(self.name, self.model, self.own.get(far), bounds.low, bounds.high, shared)


def _group_table(groups: Sequence[_Group]) -> Rows:
    fars = sorted({far for group in groups for far in (*group.own, *group.shared)}, key=float)
    rows = [
        (group.name, [group.model, *(cell for far in fars for cell in group.cells(far)), group.people])
        for group in groups
    ]
    return ["Group", "Model", *(f"{of}, {far}" for far in fars for of in ("common", "own")), "identities"], rows


def _group_figures(groups: Sequence[_Group], key: str) -> list[Figure]:
    """Draw TAR by group, at the strictest of the FARs that most groups state; nothing where no group states any."""
    stated = [far for group in groups for far in group.own]
    if not stated:
        return []
    far = max(dict.fromkeys(stated), key=lambda far: (stated.count(far), -float(far)))
    lowest: dict[str, float] = {}
    for group in groups:
        lowest[group.name] = min(lowest.get(group.name, 2.0), group.own.get(far, 2.0))
    shown = sorted(lowest, key=lowest.__getitem__)[:_SHOWN_GROUPS]
    rates = [group.rate(far) for group in groups if group.name in shown]
    svg = group_figure(rates, f"true accept rate by group at FAR {far}", key=key, x_label=f"TAR at FAR {far}, %")
    hint = "filled: at the group's own threshold, with its interval; hollow: at everyone's threshold"
    more = f"; the {_SHOWN_GROUPS} groups with the lowest TAR" if len(shown) < len(lowest) else ""
    return [Figure("Groups", svg, hint + more)]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _rates(value: Any) -> Iterator[tuple[str, Any]]:
    """The entries of a mapping whose names are rates."""
    for text, entry in _mapping(value).items():
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?(e-[0-9]+)?", text) is not None and 0 < float(text) <= 1:
            yield text, entry
