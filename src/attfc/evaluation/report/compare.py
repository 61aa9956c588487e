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
from attfc.evaluation.operating_point.judging import AT_POINT, at_point_of
from attfc.evaluation.protocols import board_of
from attfc.evaluation.protocols.protocol import Board
from attfc.evaluation.report.curves import HINTS, curves_of, result_of
from attfc.evaluation.report.drawing import MOST_SERIES, own_file
from attfc.evaluation.report.page import AT_IT, Cell, Figure, Stated, count_text, share_text, texts, write_page
from attfc.evaluation.report.people import notes_of_result
from attfc.evaluation.report.plots import GroupRate, curve_figure, group_figure
from attfc.evaluation.results import EvaluationResult, finite, once_each, stated_value
from attfc.files import write_text_whole
from attfc.templates import macros_of
from attfc.typing import Json, PathLike

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
_OF_GROUPS = ("tar_at_far", "tpir_at_fpir", "rank")
_SHOWN_GROUPS, _MOST_RANK = 40, 1000

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
        file = folder / f"{next(numbers):02d}.svg"
        write_text_whole(file, own_file(figure.svg, figure.caption))
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
    """What a model did on a board: samples, the figures as stated, those of the samples, and those at its operating point."""

    def __init__(self, samples: Sequence[Sample], holder: Mapping[str, Any], at_point: Mapping[str, Any]) -> None:
        super().__init__(holder)
        self.samples, self.at_point = samples, Stated(at_point)
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

    def each_group(self) -> list[tuple[str, str, Json]]:
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
            board.entries[name] = _Entry(samples, holder, at_point_of(result.figures, place))
            of_all = result.figures if place == ("all_pairs",) else holder
            if not place and "all_pairs" in result.figures:
                of_all = {}  # a list of pairs beside all pairs, whose groups and slices those are
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
    if any(entry.at_point.figures for entry in entries):
        rows.append(("FNMR at the operating point, %", [entry.at_point("fnmr") for entry in entries]))
        rows += [(name, [share_text(entry.at_point.number(key)) for entry in entries]) for name, key in AT_IT.items()]
    return ["metric", *board.entries], rows


def _figure_name(path: FigurePath) -> str:
    return _FIGURE_NAMES[path[0]].format(*path[1:]) if path[0] in _FIGURE_NAMES else " ".join(path)


def _figures(board: _Board, key: str) -> list[Figure]:
    """Draw every curve that the board's scores allow, of the first four models."""
    drawn = itertools.islice(board.entries.items(), MOST_SERIES)
    found = curves_of({model: entry.samples for model, entry in drawn})
    return [
        Figure(
            title := result_of(kind, curves),
            curve_figure(curves, f"{board.title}: {title}", f"{key}{kind}", kind),
            "; ".join([HINTS[kind], *_left_out([*board.entries])]),
        )
        for kind, curves in found.items()
    ]


class _Group(Stated):
    """A group of people, or a slice of images, as a model's file states it.

    Attributes:
        own: rate's path -> the rate at the group's own threshold.
        shared: FAR -> TAR and FAR of the group at everyone's threshold.
    """

    def __init__(self, name: str, model: str, group: Json) -> None:
        super().__init__(group)
        people = group.get("identities")
        self.name, self.model, self.people = name, model, count_text(people if isinstance(people, int) else None)
        self.own: dict[FigurePath, float] = {}
        for kind in _OF_GROUPS:
            stated = {(kind, at): finite(rate) for at, rate in _rates(group.get(kind))}
            self.own.update({path: rate for path, rate in stated.items() if rate is not None})
        self.shared: dict[FigurePath, tuple[float, float]] = {}
        for far, rates in _rates(group.get("at_common_threshold")):
            tar, within = (finite(_mapping(rates).get(kind)) for kind in ("tar", "far"))
            if tar is not None and within is not None:
                self.shared["tar_at_far", far] = (tar, within)

    def cells(self, path: FigurePath, common: bool) -> list[Cell]:
        """Return the rate at its own threshold with the interval, before it, where asked for, both rates at everyone's threshold."""
        found = self.shared.get(path)
        shared = "–" if found is None else f"{100 * found[0]:.2f} (FAR {found[1]:.2g})"
        return [*([shared] if common else []), self.cell(path, self.own.get(path))]

    def rate(self, path: FigurePath) -> GroupRate:
        """Return what is drawn of it."""
        bounds = self.intervals.get(path) or Interval(0.0, None, None)
        shared, _ = self.shared.get(path, (None, None))
        return GroupRate(self.name, self.model, self.own.get(path), bounds.low, bounds.high, shared)


def _group_table(groups: Sequence[_Group]) -> Rows:
    paths = {path for group in groups for path in (*group.own, *group.shared)}
    common = {path: any(path in group.shared for group in groups) for path in sorted(paths, key=_strictness)}
    rows = [
        (group.name, [group.model, *(cell for each in common.items() for cell in group.cells(*each)), group.people])
        for group in groups
    ]
    titles = [
        title
        for path, shared in common.items()
        for title in ((f"common, {path[1]}", f"own, {path[1]}") if shared else (_figure_name(path),))
    ]
    return ["Group", "Model", *titles, "identities"], rows


def _strictness(path: FigurePath) -> tuple[int, float]:
    return _OF_GROUPS.index(path[0]), float(path[1])


def _group_figures(groups: Sequence[_Group], key: str) -> list[Figure]:
    """Draw a rate by group, at the strictest of the places that most groups state; nothing where no group states any."""
    models = list(dict.fromkeys(group.model for group in groups))
    drawn = [group for group in groups if group.model in models[:MOST_SERIES]]
    stated = [path for group in drawn for path in group.own]
    if not stated:
        return []
    path = min(dict.fromkeys(stated), key=lambda path: (-stated.count(path), *_strictness(path)))
    rates = sorted((group.own[path], group.name, group.model) for group in drawn if path in group.own)
    shown = list(dict.fromkeys(name for _, name, _ in rates))
    several = len(models) > 1
    ends = [f"{100 * rate:.1f} % for {name}" + (f" ({model})" if several else "") for rate, name, model in rates]
    title, number = _figure_name(path), len({group.name for group in groups})
    caption = f"{title.removesuffix(', %')}: {' to '.join(dict.fromkeys((ends[0], ends[-1])))}"
    svg = group_figure(
        [group.rate(path) for group in drawn if group.name in shown[:_SHOWN_GROUPS]], caption, key=key, x_label=title
    )
    hints = (
        ["filled: at the group's own threshold, with its interval; hollow: at everyone's threshold"]
        if any(group.shared for group in drawn)
        else []
    )
    hints += [f"the {_SHOWN_GROUPS} groups with the lowest {title.split()[0]}"] if number > _SHOWN_GROUPS else []
    return [Figure(caption, svg, "; ".join([*hints, *_left_out(models)]))]


def _left_out(models: Sequence[str]) -> list[str]:
    """Say that not every model is drawn."""
    return [f"the first {MOST_SERIES} of {len(models)} models"] if len(models) > MOST_SERIES else []


def _mapping(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _rates(value: Any) -> Iterator[tuple[str, Any]]:
    """The entries of a mapping whose names are rates."""
    for text, entry in _mapping(value).items():
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?(e-[0-9]+)?", text) is not None and 0 < float(text) <= _MOST_RANK:
            yield text, entry
