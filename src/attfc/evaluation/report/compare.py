"""Several models side by side: one HTML or Markdown page from files of `attfc evaluate --save`.

First the table of the field (MFR-ALL | IJB-C(1E-4) | IJB-C(1E-5), a line a model), then for each protocol all figures with their intervals, ROC, DET,
CMC and DIR curves, and groups. Nothing is computed anew but the curves. HTML is one file with everything inside, no script, nothing loaded; Markdown
has its figures as SVG files in a folder beside it. All text from the results is escaped. Models differ by colour and by line.
"""

import html
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt

from attfc.errors import UserError
from attfc.evaluation.bootstrap import FigurePath, IdentityDraw, Sample
from attfc.evaluation.metrics import roc
from attfc.evaluation.report.people import notes_of_result
from attfc.evaluation.report.plots import (
    CERTAIN_FALSE_ACCEPTS,
    Curve,
    GroupRate,
    curve_figure,
    group_figure,
    with_colours,
)
from attfc.evaluation.results import EvaluationResult, stated_value
from attfc.evaluation.samples import PairListSample, SearchSample
from attfc.evaluation.tail_sample import TailSample
from attfc.files import write_text_whole

__all__ = ["write_comparison_report"]

Floats = npt.NDArray[np.float64]

_SET_NAMES = {
    "lfw": "LFW",
    "cfp_fp": "CFP-FP",
    "agedb_30": "AgeDB-30",
    "calfw": "CALFW",
    "cplfw": "CPLFW",
    "ijbb": "IJB-B",
    "ijbc": "IJB-C",
}
_POINTS = 400
_CMC_RANKS = 50
_SHOWN_GROUPS = 40
_PALE = "pale: fewer than 30 errors, uncertain"


def write_comparison_report(path: str | os.PathLike[str], results: Sequence[EvaluationResult]) -> Path:
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
    boards = _boards(results, names)
    page = _HtmlPage() if target.suffix == ".html" else _MarkdownPage(target)
    page.title("Models side by side", ", ".join(dict.fromkeys(names.values())))
    page.section("Summary")
    page.table(*_summary(boards, list(dict.fromkeys(names.values()))))
    for number, board in enumerate(boards):
        page.section(board.title)
        page.table(*_figure_table(board))
        for caption, hint, svg in _figures(board, f"f{number}"):
            page.figure(caption, hint, svg)
        page.notes(board.told())
    groups = [board for board in boards if board.groups]
    for number, board in enumerate(groups):
        page.section(f"{board.title}: groups")
        page.table(*_group_table(board))
        page.hint(
            "Common: TAR and FAR of the group at the threshold that gives everyone the FAR of the column. Own: TAR at the group's own threshold."
        )
        for caption, hint, svg in _group_figures(board, f"g{number}"):
            page.figure(caption, hint, svg)
        page.notes(_group_notes(board))
    write_text_whole(target, page.text())
    return target


def _names(models: Iterable[str]) -> dict[str, str]:
    """Short names that tell the models apart: as many of the last parts of their paths as it takes."""
    different = list(dict.fromkeys(models))
    for parts in range(1, 1 + max(len(Path(model).parts) for model in different)):
        short = {model: "/".join(Path(model).parts[-parts:]) for model in different}
        if len(set(short.values())) == len(different):
            return short
    return {model: model for model in different}


@dataclass(frozen=True, eq=False)
class _Board:
    """One set of people on which models were evaluated the same way.

    Attributes:
        title: for people. columns: (name, figure) of its columns in the summary.
        entries: model's short name -> its samples, and the figures they belong to.
        groups: model's short name -> the JSON of its groups. notes: note -> the models it is of.
    """

    title: str
    columns: tuple[tuple[str, FigurePath], ...]
    entries: dict[str, tuple[list[Sample], Mapping[str, Any]]]
    groups: dict[str, Mapping[str, Any]]
    notes: dict[str, list[str]]

    def told(self) -> list[str]:
        """Return the notes, each once, with the models that it is of."""
        return [f"{', '.join(models)}: {note}" for note, models in self.notes.items()]


def _boards(results: Sequence[EvaluationResult], names: Mapping[str, str]) -> list[_Board]:
    boards: dict[tuple[Any, ...], _Board] = {}
    for result in results:
        for place, samples in result.samples.items():
            if place[:1] == ("groups",):
                continue
            key, title, columns = _identity_of(result, place)
            board = boards.setdefault(key, _Board(title, columns, {}, {}, {}))
            holder: Any = result.figures
            for part in place:
                holder = holder[part]
            name = names[result.model]
            if name in board.entries:
                raise UserError(f"{title}: two results of {result.model}: pass one of them")
            board.entries[name] = (list(samples), holder)
            found = result.figures.get("groups")
            if isinstance(found, dict) and found and place == ("all_pairs",):
                board.groups[name] = found
            for note in notes_of_result(result.figures, holder):
                board.notes.setdefault(note, []).append(name)
    return list(boards.values())


def _texts(value: Any) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else []


def _identity_of(
    result: EvaluationResult, place: FigurePath
) -> tuple[tuple[Any, ...], str, tuple[tuple[str, FigurePath], ...]]:
    """What makes two results stand in one table; its title; its columns in the summary."""
    data = Path(result.paths[0]).name if result.paths else "?"
    protocol = result.protocol
    if place[:1] == ("sets",):
        name = _SET_NAMES.get(place[1], place[1])
        return ("sets", place[1]), f"{name}: pairs", ((name, ("accuracy",)),)
    if place[:1] == ("modes",):
        name = _SET_NAMES.get(protocol, protocol)
        shown = f"{name}, {place[1]}"
        if place[2] == "verification":
            columns = tuple(
                (f"{name}({far})", ("tar_at_far", key)) for far, key in (("1E-4", "0.0001"), ("1E-5", "1e-05"))
            )
            return (protocol, *place), f"{shown}: 1:1", columns
        return (protocol, *place), f"{shown}: 1:N", ((f"{name} rank 1", ("rank", "1")),)
    if place == ("all_pairs",):
        name = "MFR-ALL" if "mfr" in data.lower() else f"{data}(1E-6)"
        if protocol == "held-out":
            return (
                (protocol, data, place),
                f"{data}: all pairs",
                ((f"{data} all pairs(1E-3)", ("tar_at_far", "0.001")),),
            )
        return (protocol, data, place), f"{data}: all pairs", ((name, ("tar_at_far", "1e-06")),)
    if protocol == "identify":
        return (protocol, data), f"{data}: identification", ((f"{data} rank 1", ("rank", "1")),)
    return (protocol, data, place), f"{data}: pairs", ((f"{data} pairs", ("accuracy",)),)


def _values(samples: Sequence[Sample], holder: Mapping[str, Any]) -> dict[FigurePath, float]:
    """The figures that the samples give, as they were stated."""
    found: dict[FigurePath, float] = {}
    for sample in samples:
        found.update(sample.figures(IdentityDraw(np.ones(sample.identities))))
    return {path: stated_value(holder, path, value) for path, value in found.items()}


def _interval(holder: Mapping[str, Any], path: FigurePath) -> tuple[float, float] | None:
    value: Any = holder.get("intervals")
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
        return float(value[0]), float(value[1])
    return None


def _cell(value: float | None, interval: tuple[float, float] | None, path: FigurePath) -> tuple[str, str]:
    """The figure as the field prints it (percent, two places; AUC as it is), and its interval."""
    if value is None:
        return "–", ""
    factor, places = (1, 4) if path == ("auc",) else (100, 2)
    bounds = "" if interval is None else f"[{factor * interval[0]:.{places}f}, {factor * interval[1]:.{places}f}]"
    return f"{factor * value:.{places}f}", bounds


Cell = tuple[str, str]


def _summary(boards: Sequence[_Board], models: Sequence[str]) -> tuple[list[str], list[list[Cell]]]:
    """A line a model, a column a figure of the field's tables: first those of the seed's layout."""
    columns = [(name, path, board) for board in boards for name, path in board.columns]
    columns.sort(key=lambda column: (column[0] != "MFR-ALL", not column[0].startswith("IJB-C(")))
    values = {id(board): {model: _values(*entry) for model, entry in board.entries.items()} for board in boards}
    rows: list[list[Cell]] = []
    for model in models:
        cells: list[Cell] = [(model, "")]
        for _, path, board in columns:
            entry = board.entries.get(model)
            value = values[id(board)].get(model, {}).get(path)
            cells.append(_cell(value, None if entry is None else _interval(entry[1], path), path))
        rows.append(cells)
    return ["Model", *(name for name, _, _ in columns)], rows


def _figure_table(board: _Board) -> tuple[list[str], list[list[Cell]]]:
    values = {model: _values(*entry) for model, entry in board.entries.items()}
    paths = list(dict.fromkeys(path for found in values.values() for path in found))
    rows: list[list[Cell]] = [
        [
            (_figure_name(path), ""),
            *(
                _cell(values[model].get(path), _interval(holder, path), path)
                for model, (_, holder) in board.entries.items()
            ),
        ]
        for path in paths
    ]
    for key in ("genuine_pairs", "impostor_pairs", "mated_probes", "stranger_searches", "interval_identities"):
        counts = [holder.get(key) for _, holder in board.entries.values()]
        if any(isinstance(count, int) for count in counts):
            name = "identities behind the intervals" if key == "interval_identities" else key.replace("_", " ")
            rows.append([(name, ""), *((f"{count:,}" if isinstance(count, int) else "–", "") for count in counts)])
    return ["", *board.entries], rows


def _figure_name(path: FigurePath) -> str:
    names = {"accuracy": "accuracy, %", "auc": "AUC", "eer": "EER, %", "rank_one": "rank 1, leave one out, %"}
    if path[0] in ("tar_at_far", "person_balanced_tar_at_far"):
        return f"{'TAR' if path[0] == 'tar_at_far' else 'person-balanced TAR'} at FAR {path[1]}, %"
    if path[0] == "tpir_at_fpir":
        return f"TPIR at FPIR {path[1]}, %"
    return f"rank {path[1]}, %" if path[0] == "rank" else names.get(path[0], " ".join(path))


def _own_rates(group: Mapping[str, Any]) -> dict[str, float]:
    """FAR -> TAR at the group's own threshold; a file may hold anything."""
    found = _mapping(group.get("tar_at_far"))
    return {far: float(tar) for far, tar in found.items() if _is_rate(far) and _is_number(tar)}


def _shared_rates(group: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """FAR -> TAR and FAR of the group at everyone's threshold."""
    found = {far: _mapping(rates) for far, rates in _mapping(group.get("at_common_threshold")).items() if _is_rate(far)}
    return {
        far: (float(rates["tar"]), float(rates["far"]))
        for far, rates in found.items()
        if _is_number(rates.get("tar")) and _is_number(rates.get("far"))
    }


def _is_rate(text: str) -> bool:
    return re.fullmatch(r"[0-9]+(\.[0-9]+)?(e-[0-9]+)?", text) is not None and 0 < float(text) <= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _groups_of(board: _Board) -> list[tuple[str, str, dict[str, Any]]]:
    """(group, model, its JSON), group after group."""
    names = dict.fromkeys(name for groups in board.groups.values() for name in groups)
    return [(name, model, _mapping(groups.get(name))) for name in names for model, groups in board.groups.items()]


def _group_table(board: _Board) -> tuple[list[str], list[list[Cell]]]:
    several = _groups_of(board)
    fars = {far for _, _, group in several for rates in (_own_rates(group), _shared_rates(group)) for far in rates}
    columns = sorted(fars, key=float)
    rows: list[list[Cell]] = []
    for name, model, group in several:
        own, shared = _own_rates(group), _shared_rates(group)
        cells: list[Cell] = [(name, ""), (model, "")]
        for far in columns:
            tar, within = shared.get(far, (None, None))
            cells.append(("–" if tar is None else f"{100 * tar:.2f} (FAR {within:.2g})", ""))
            cells.append(_cell(own.get(far), _interval(group, ("tar_at_far", far)), ("tar_at_far", far)))
        count = group.get("identities")
        cells.append((f"{count:,}" if isinstance(count, int) else "–", ""))
        rows.append(cells)
    header = ["Group", "Model", *(text for far in columns for text in (f"common, {far}", f"own, {far}")), "identities"]
    return header, rows


def _group_figures(board: _Board, key: str) -> list[tuple[str, str, str]]:
    """(caption, hint, SVG) of TAR by group, at the strictest of the FARs that most groups state; none where no group states any."""
    several = _groups_of(board)
    stated = [far for _, _, group in several for far in _own_rates(group)]
    if not stated:
        return []
    far = max(dict.fromkeys(stated), key=lambda far: (stated.count(far), -float(far)))
    rates = []
    for name, model, group in several:
        own, (shared, _) = _own_rates(group).get(far), _shared_rates(group).get(far, (None, None))
        low, high = _interval(group, ("tar_at_far", far)) or (None, None)
        rates.append(GroupRate(name, model, own, low, high, shared))
    lowest: dict[str, float] = {}
    for one in rates:
        lowest[one.group] = min(lowest.get(one.group, 2.0), 2.0 if one.rate is None else one.rate)
    shown = sorted(lowest, key=lowest.__getitem__)[:_SHOWN_GROUPS]
    rates = [one for one in rates if one.group in shown]
    svg = group_figure(rates, f"true accept rate by group at FAR {far}", key=key, x_label=f"TAR at FAR {far}, %")
    hint = "filled: at the group's own threshold, with its interval; hollow: at everyone's threshold"
    more = f"; the {_SHOWN_GROUPS} groups with the lowest TAR" if len(shown) < len(lowest) else ""
    return [("Groups", hint + more, svg)]


def _group_notes(board: _Board) -> list[str]:
    told: dict[str, list[str]] = {}
    for model, groups in board.groups.items():
        for name, group in groups.items():
            for note in _texts(_mapping(group).get("interval_notes")):
                told.setdefault(note, []).append(name if len(board.groups) == 1 else f"{name} ({model})")
    return [f"{', '.join(of)}: {note}" for note, of in told.items()]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _figures(board: _Board, key: str) -> list[tuple[str, str, str]]:
    """(caption, hint, SVG) of every curve the board's scores allow."""
    verification: list[tuple[Curve, Curve]] = []
    searches: list[tuple[Curve, Curve | None]] = []
    for model, (samples, _) in board.entries.items():
        for sample in samples:
            if isinstance(sample, PairListSample | TailSample):
                far, tar, impostors = _list_roc(sample) if isinstance(sample, PairListSample) else _tail_roc(sample)
                certain = CERTAIN_FALSE_ACCEPTS / impostors
                verification.append((Curve(model, far, tar, certain), Curve(model, far, 1.0 - tar, certain)))
            elif isinstance(sample, SearchSample):
                searches.append((_cmc(model, sample), _dir(model, sample)))
    found: list[tuple[str, str, str]] = []

    def draw(curves: Sequence[Curve], caption: str, hint: str, kind: Any, x_label: str, y_label: str) -> None:
        svg = curve_figure(
            curves,
            f"{board.title}, {caption}".replace('"', "").replace("&", "+").replace("<", "("),
            key=f"{key}{kind}",
            kind=kind,
            x_label=x_label,
            y_label=y_label,
        )
        found.append((caption, hint, svg))

    if verification:
        draw([one for one, _ in verification], "ROC", _PALE, "roc", "false accept rate", "true accept rate")
        draw(
            [other for _, other in verification],
            "DET",
            f"{_PALE}; axes in normal deviates",
            "det",
            "false accept rate",
            "false reject rate",
        )
    if searches:
        draw(
            [one for one, _ in searches], "CMC", "probes whose person is enrolled", "cmc", "rank", "share of the probes"
        )
        strangers = [other for _, other in searches if other is not None]
        if strangers:
            draw(
                strangers,
                "DIR",
                _PALE,
                "dir",
                "false positive identification rate",
                "true positive identification rate",
            )
    return found


def _list_roc(sample: PairListSample) -> tuple[Floats, Floats, int]:
    curve = roc(sample.scores, sample.same)
    last = np.append(np.flatnonzero(np.diff(curve.far)), len(curve.far) - 1)  # of equal FARs the highest TAR
    return curve.far[last], curve.tar[last], int((~sample.same).sum())


def _tail_roc(sample: TailSample) -> tuple[Floats, Floats, int]:
    """Numbers of false accepts spread evenly over the logarithm, each exact as far as single scores are kept, then at the ranks kept."""
    falling, total = sample.impostor_scores, sample.impostor_pairs
    most = len(falling) - 1 if len(falling) < total else total
    accepts = np.unique(np.geomspace(1, max(most, 1), _POINTS).astype(np.int64))
    barred = np.append(falling, -2.0)[accepts]
    deep = sample.deep_counts > most
    far = np.concatenate([accepts, sample.deep_counts[deep]]) / total
    barred = np.concatenate([barred, sample.deep_scores[deep]])
    accepted = len(sample.genuine_scores) - np.searchsorted(sample.genuine_scores, barred, side="right")
    return far, accepted / len(sample.genuine_scores), total


def _over_galleries(sample: SearchSample, curve: Callable[[int], Floats]) -> Floats:
    galleries = int(sample.probe_gallery.max()) + 1
    return np.asarray(np.mean([curve(gallery) for gallery in range(galleries)], axis=0), dtype=np.float64)


def _cmc(model: str, sample: SearchSample) -> Curve:
    ranks = np.arange(1, _CMC_RANKS + 1)

    def rates(gallery: int) -> Floats:
        found = np.sort(sample.ranks[sample.probe_gallery == gallery])
        return np.searchsorted(found, ranks, side="right") / len(found)

    return Curve(model, ranks.astype(np.float64), _over_galleries(sample, rates))


def _dir(model: str, sample: SearchSample) -> Curve | None:
    fewest = int(np.bincount(sample.stranger_gallery, minlength=int(sample.probe_gallery.max()) + 1).min())
    if not fewest:
        return None
    fpirs = np.unique(np.geomspace(1, fewest, _POINTS).astype(np.int64)) / fewest

    def rates(gallery: int) -> Floats:
        strangers = np.sort(sample.strangers[sample.stranger_gallery == gallery])[::-1]
        mine = sample.probe_gallery == gallery
        found = np.sort(np.where(sample.ranks <= sample.worst_rank, sample.mates, -np.inf)[mine])
        allowed = np.floor(fpirs * len(strangers) + 1e-9).astype(np.int64)
        barred = np.append(strangers, -2.0)[np.minimum(allowed, len(strangers))]
        return 1.0 - np.searchsorted(found, barred, side="right") / len(found)

    return Curve(model, fpirs, _over_galleries(sample, rates), CERTAIN_FALSE_ACCEPTS / fewest)


class _HtmlPage:
    """Parts of the page in order; figures of a section stand side by side."""

    def __init__(self) -> None:
        self._name, self._parts, self._pictures = "", [""], [""]

    def title(self, name: str, models: str) -> None:
        self._name = f"{name}: {models}"
        self._parts.append(
            f'<header>\n<h1>{_escaped(name)}</h1>\n<div class="sub"><span>{_escaped(models)}</span></div>\n</header>'
        )

    def section(self, name: str) -> None:
        self._flush()
        self._parts.append(f"<h2>{_escaped(name)}</h2>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        top = "".join(f"<th{'' if k == 0 else _NUMBER}>{_breakable(text)}</th>" for k, text in enumerate(header))
        body = "".join(f"<tr>{''.join(map(self._cell, range(len(row)), row))}</tr>" for row in rows)
        self._parts.append(f'<div class="panel"><table><tr>{top}</tr>{body}</table></div>')

    @staticmethod
    def _cell(column: int, cell: Cell) -> str:
        text, bounds = cell
        interval = f'<br><span class="interval">{_escaped(bounds)}</span>' if bounds else ""
        return f"<td{_NUMBER if column else ''}>{_escaped(text)}{interval}</td>"

    def figure(self, caption: str, hint: str, svg: str) -> None:
        self._pictures.append(
            f'<figure>\n<figcaption>{_escaped(caption)}</figcaption>\n{svg}\n<p class="hint">{_escaped(hint)}</p></figure>'
        )

    def hint(self, text: str) -> None:
        self._parts.append(f'<p class="hint">{_escaped(text)}</p>')

    def notes(self, notes: Sequence[str]) -> None:
        self._flush()
        if notes:
            items = "".join(f"<li>{_escaped(note)}</li>" for note in notes)
            self._parts.append(f'<div class="notes"><ul>{items}</ul></div>')

    def _flush(self) -> None:
        if any(self._pictures):
            self._parts.append(f'<div class="figures" style="margin-top:14px">{"".join(self._pictures)}</div>')
        self._pictures = []

    def text(self) -> str:
        self._flush()
        template = Template((resources.files(__package__) / "report_template.html").read_text(encoding="utf-8"))
        self._parts.append(f'<p class="hint">{_escaped(_LEGEND)}</p>')
        return template.substitute(title=_escaped(f"{self._name} · attfc"), body="\n".join(filter(None, self._parts)))


_NUMBER = ' class="number"'
_LEGEND = (
    "Figures in percent unless said otherwise. In brackets: bootstrap intervals by identity, at the confidence given to evaluate (95 % by default). "
    "A difference between two models is judged by attfc compare, not by whether these intervals overlap."
)


class _MarkdownPage:
    """The same as Markdown; figures as SVG files in a folder beside the page."""

    def __init__(self, target: Path) -> None:
        self._folder, self._lines, self._count = target.with_name(f"{target.stem}_figures"), [""], 0

    def title(self, name: str, models: str) -> None:
        self._lines = [f"# {name}", "", _marked(models), ""]

    def section(self, name: str) -> None:
        self._lines += [f"## {_marked(name)}", ""]

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        self._lines += [
            _row([_marked(text) for text in header]),
            _row([":---", *("---:" for _ in header[1:])]),
            *(_row([f"{_marked(text)} {bounds}".strip() for text, bounds in row]) for row in rows),
            "",
        ]

    def figure(self, caption: str, hint: str, svg: str) -> None:
        self._count += 1
        self._folder.mkdir(exist_ok=True)
        file = self._folder / f"{self._count:02d}_{caption.lower()}.svg"
        write_text_whole(file, with_colours(svg))
        self._lines += [
            f"![{_marked(caption)}](<{self._folder.name}/{file.name}>)",
            "",
            f"*{_marked(caption)}; {_marked(hint)}*",
            "",
        ]

    def hint(self, text: str) -> None:
        self._lines += [_marked(text), ""]

    def notes(self, notes: Sequence[str]) -> None:
        self._lines += [*(f"- {_marked(note)}" for note in notes), *([""] if notes else [])]

    def text(self) -> str:
        return "\n".join([*self._lines, _LEGEND, ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _marked(text: str) -> str:
    """Text that Markdown shows as it stands."""
    for sign in "\\`*_<>|#[]$":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _breakable(text: str) -> str:
    """Names of data may be long and without a blank: a line may also end before a bracket, after a comma, a colon and "="."""
    return re.sub(r"([,:=])", r"\1<wbr>", _escaped(text)).replace("(", "<wbr>(")


def _escaped(value: object) -> str:
    return html.escape(str(value), quote=True)
