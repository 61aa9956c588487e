"""A model's result on a protocol with the scores behind its figures, for intervals, comparisons and curves; and the file that keeps it.

`attfc evaluate ... --save FILE` writes a `.npz` (uncompressed, no pickle): the figures as JSON text, and the arrays of every sample. An all-pairs or
template result keeps all mated scores and the highest non-mated scores, not all. Names of people and files are not in it; scores and numbers of
identities are.

A file from elsewhere is hostile until read: no pickle, no member larger than the file, headers checked before anything is allocated.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attfc.errors import UserError
from attfc.evaluation.bootstrap import (
    FigurePath,
    IdentityDraw,
    Interval,
    Resampled,
    Sample,
    Samples,
    check_resampling,
    figure_at,
    in_words,
    interval_of_difference,
    nested,
    resample,
)
from attfc.evaluation.npz_file import read_npz
from attfc.evaluation.protocols import family_of
from attfc.evaluation.protocols.held_out import HeldOutEvaluation
from attfc.evaluation.samples import PairListSample, SearchSample, ShareSample
from attfc.evaluation.tail_sample import TailSample
from attfc.files import written_whole
from attfc.typing import Array, Json, PathLike, Progress

__all__ = [
    "Difference",
    "EvaluationResult",
    "add_intervals",
    "compare_results",
    "figures_with_intervals",
    "finite",
    "once_each",
    "read_result",
    "resample_result",
    "save_result",
    "stated_intervals",
    "stated_value",
]

_FORMAT = "attfc result 1"
RUN_RESAMPLES, RUN_EXACT = 400, 2**16  # 2.5 s for 300 identities x 8 images and 3,000 pairs
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (PairListSample, TailSample, SearchSample, ShareSample)}
_MOST_TEXT = 64 * 2**20
_MOST_IDENTITIES = 2**26  # a weight each takes 0.5 GiB


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """What one model did on one protocol.

    Attributes:
        model: where it was, as the user wrote it. protocol, paths: likewise.
        figures: as in `--json`.
        samples: where figures stand in `figures` -> the scores behind them.
    """

    model: str
    protocol: str
    paths: tuple[str, ...]
    figures: Json = field(repr=False)
    samples: Mapping[FigurePath, Sequence[Sample]] = field(repr=False)

    @property
    def condition(self) -> str:
        """What was done to the images, "lowres=24, jpeg=30"; empty: nothing."""
        return str(self.figures.get("condition", ""))


def resample_result(
    result: EvaluationResult, resamples: int, confidence: float, seed: int, progress: Progress | None = None
) -> dict[FigurePath, list[Resampled]]:
    """Resample every sample of a result: one `Resampled` for each, at the same places.

    Raises:
        UserError: see `resample`.
    """
    check_resampling(resamples, confidence)
    found: dict[FigurePath, list[Resampled]] = {}
    total = sum(map(len, result.samples.values()))
    for place, samples in result.samples.items():
        for sample in samples:
            found.setdefault(place, []).append(_as_stated(sample, result, place, resamples, confidence, seed))
            if progress is not None:
                progress(sum(map(len, found.values())), total)
    return found


def add_intervals(
    result: EvaluationResult, resamples: int, confidence: float, seed: int, progress: Progress | None = None
) -> tuple[dict[FigurePath, Interval], list[str]]:
    """Write `intervals` and `interval_notes` beside the figures of a result that they belong to, and `uncertainty` beside all.

    Returns:
        The intervals by the figure's whole path, and what a reader of them should know, each note once, after the places that it is of.
    """
    resampled = resample_result(result, resamples, confidence, seed, progress)
    for place, several in resampled.items():
        holder = figure_at(result.figures, place)
        holder["intervals"] = nested(_intervals({(): several}))
        holder["interval_identities"] = max(one.carriers for one in several)
        holder["interval_notes"] = _notes({(): several})
    result.figures["uncertainty"] = _method(resamples, confidence, seed)
    return _intervals(resampled), _notes(resampled)


def figures_with_intervals(found: HeldOutEvaluation, seed: int = 0) -> Json:
    """Return the figures of a held-out evaluation and beside them 95 % intervals by identity, for the end of a run: 400 resamples, a few seconds.

    `intervals` is laid out as the figures are, those of all pairs within it under `all_pairs`.
    """
    result = EvaluationResult("", "held-out", (), found.figures(), found.samples(RUN_EXACT))
    resampled = resample_result(result, RUN_RESAMPLES, 0.95, seed)
    return {
        **result.figures,
        "intervals": nested(_intervals(resampled)),
        "interval_identities": found.people,
        "interval_notes": _notes(resampled),
        "uncertainty": _method(RUN_RESAMPLES, 0.95, seed),
    }


def _intervals(resampled: Mapping[FigurePath, Sequence[Resampled]]) -> dict[FigurePath, Interval]:
    return {
        (*place, *path): interval
        for place, several in resampled.items()
        for one in several
        for path, interval in one.intervals().items()
    }


def _notes(resampled: Mapping[FigurePath, Sequence[Resampled]]) -> list[str]:
    return once_each(
        (in_words(place), note)
        for place, several in resampled.items()
        for note in dict.fromkeys(note for one in several for note in one.notes())
    )


def once_each(notes: Iterable[tuple[str, str]]) -> list[str]:
    """Return each note once, after the names of all that it is of.

    >>> once_each([("LFW", "few people"), ("CFP", "few people"), ("", "slow")])
    ['LFW, CFP: few people', 'slow']
    """
    named: dict[str, list[str]] = {}
    for name, note in notes:
        named.setdefault(note, []).append(name)
    return [f"{', '.join(filter(None, names))}: {note}" if any(names) else note for note, names in named.items()]


def _method(resamples: int, confidence: float, seed: int) -> Json:
    method = "bootstrap by identity (docs/evaluation.md)"
    return {"method": method, "confidence": confidence, "resamples": resamples, "seed": seed}


def stated_intervals(figures: Mapping[str, Any], place: FigurePath = ()) -> dict[FigurePath, Interval]:
    """Return the intervals that stand in figures (what `add_intervals` wrote), by the figure's whole path; what is none is left out.

    >>> stated_intervals({"auc": 0.9, "intervals": {"auc": [0.8, 0.95]}, "all_pairs": {"notes": []}})
    {('auc',): Interval(value=0.9, low=0.8, high=0.95)}
    """
    found: dict[FigurePath, Interval] = {}

    def gather(values: Any, bounds: Any, path: FigurePath) -> None:
        if isinstance(values, Mapping) and isinstance(bounds, Mapping):
            for name, inner in bounds.items():
                gather(values.get(name), inner, (*path, str(name)))
        elif isinstance(bounds, list) and len(bounds) == 2:
            value, low, high = map(finite, (values, *bounds))
            if value is not None and low is not None and high is not None:
                found[path] = Interval(value, low, high)

    gather(figures, figures.get("intervals"), place)
    for name, value in figures.items():
        if isinstance(value, Mapping) and name != "intervals":
            found.update(stated_intervals(value, (*place, str(name))))
    return found


def stated_value(figures: Any, path: FigurePath, computed: float) -> float:
    """Return a figure as `figures` state it. Below the non-mated scores that it keeps one by one, a sample computes a figure only closely.

    Where the two are further apart than 0.01 the file contradicts itself: the sample's figure is returned.
    """
    stated = finite(figure_at(figures, path))
    return computed if stated is None or abs(stated - computed) > 0.01 else stated


def _as_stated(
    sample: Sample, result: EvaluationResult, place: FigurePath, resamples: int, confidence: float, seed: int
) -> Resampled:
    found = resample(sample, resamples, confidence, seed)
    values = {path: stated_value(result.figures, (*place, *path), value) for path, value in found.values.items()}
    return dataclasses.replace(found, values=values)


def finite(value: object) -> float | None:
    """Return a finite number, None for anything else that JSON may hold."""
    # Compared, not converted: a whole number in JSON may be larger than any float.
    known = isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300
    return float(value) if known else None  # type: ignore[arg-type]


@dataclass(frozen=True)
class Difference:
    """A figure of two models, and that of the first minus that of the second; notes say what a reader of the intervals should know."""

    path: FigurePath
    one: Interval
    other: Interval
    difference: Interval
    notes: tuple[str, ...] = ()

    @property
    def clear(self) -> bool:
        """Whether the interval of the difference leaves out 0."""
        low, high = self.difference.low, self.difference.high
        return low is not None and high is not None and (low > 0 or high < 0)

    def plain(self) -> Json:
        """Return it as plain JSON types, for `--json` and evaluation.json."""
        intervals = {"a": self.one, "b": self.other, "difference": self.difference}
        stated = {name: {"value": each.value, "interval": each.plain()} for name, each in intervals.items()}
        return {"figure": list(self.path), **stated, "clear": self.clear}


def compare_results(
    one: EvaluationResult,
    other: EvaluationResult,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Difference]:
    """Compare two models on the same protocol, the same people drawn for both.

    Raises:
        UserError: other protocols, other pairs or people, other settings; nothing in common.
    """
    if family_of(one.protocol) != family_of(other.protocol):
        raise UserError(
            f"{one.model} was evaluated on {one.protocol}, {other.model} on {other.protocol}: compare needs one protocol"
        )
    common = [
        (place, *both)
        for place, samples in one.samples.items()
        for both in zip(samples, other.samples.get(place, ()), strict=False)
    ]
    if not common:
        raise UserError(
            f"{one.model} and {other.model} have no metrics in common ({_places(one)}; {_places(other)}): evaluate both on the same data"
        )
    for place, mine, theirs in common:
        _check_comparable(one, other, place, mine, theirs)
    found: list[Difference] = []
    for done, (place, mine, theirs) in enumerate(common, start=1):
        first = _as_stated(mine, one, place, resamples, confidence, seed)
        second = _as_stated(theirs, other, place, resamples, confidence, seed)
        notes = tuple(_notes({place: [first]}))  # the same people: the same notes
        for path in first.values:
            if path in second.values:
                difference = interval_of_difference(first, second, path)
                found.append(
                    Difference((*place, *path), first.interval(path), second.interval(path), difference, notes)
                )
        if progress is not None:
            progress(done, len(common))
    return found


def _places(result: EvaluationResult) -> str:
    return ", ".join(".".join(place) or "figures" for place in result.samples) or "none with scores"


def _check_comparable(
    one: EvaluationResult, other: EvaluationResult, place: FigurePath, first: Sample, second: Sample
) -> None:
    facts, others = first.facts(), second.facts()
    where = f"{'.'.join(place)}: " if place else ""
    if type(first) is not type(second) or facts.keys() != others.keys():
        raise UserError(f"{where}{one.model} and {other.model} keep different kinds of scores: evaluate both again")
    for name, values in facts.items():
        if values.shape != others[name].shape or not np.array_equal(values, others[name]):
            counts = f" ({values.size:,} and {others[name].size:,})" if values.shape != others[name].shape else ""
            raise UserError(
                f"{where}the {name} of {one.model} and of {other.model} differ{counts}: both must be evaluated on the same data "
                "with the same options and --seed, and leave out the same broken images"
            )


def save_result(path: PathLike, result: EvaluationResult) -> None:
    """Write a result in one piece, over an older one.

    Raises:
        UserError: it cannot be written.
    """
    arrays: dict[str, Array] = {}
    listed: list[Json] = []
    for place, samples in result.samples.items():
        for sample in samples:
            settings: Json = {}
            for one in dataclasses.fields(sample):  # type: ignore[arg-type]  # all of `samples` are dataclasses
                value = getattr(sample, one.name)
                if isinstance(value, np.ndarray):
                    arrays[f"{len(listed)}.{one.name}"] = value
                else:
                    settings[one.name] = value
            listed.append({"place": place, "kind": type(sample).__name__, "settings": settings})
    facts = {"format": _FORMAT, **vars(result), "samples": listed}
    text = json.dumps(facts, ensure_ascii=False, default=str).encode("utf-8")
    with written_whole(Path(path)) as file:
        np.savez(file, facts=np.frombuffer(text, dtype=np.uint8), **arrays)  # type: ignore[arg-type]


def read_result(path: PathLike) -> EvaluationResult:
    """Read a result.

    Raises:
        UserError: no such file, not a result, or damaged.
    """
    file = Path(path)
    try:
        arrays = read_npz(file)
        if "facts" not in arrays or arrays["facts"].dtype != np.uint8 or arrays["facts"].size > _MOST_TEXT:
            raise ValueError("it has no facts")
        facts = json.loads(arrays.pop("facts").tobytes().decode("utf-8"))
        if facts["format"] != _FORMAT:
            raise UserError(f"{file} is {str(facts['format'])[:40]!r}, not {_FORMAT!r}: evaluate again with --save")
        samples: Samples = {}
        for number, entry in enumerate(facts["samples"]):
            sample = _sample(number, entry, arrays)
            figures = sample.figures(IdentityDraw(np.ones(sample.identities)))
            if not all(math.isfinite(value) for value in figures.values()):
                raise ValueError(f"sample {number} gives no figures")
            place = tuple(map(str, entry["place"]))
            if not isinstance(figure_at(facts["figures"], place), dict):
                raise ValueError(f"sample {number} is of figures that are not there")
            samples.setdefault(place, []).append(sample)
        model, protocol, paths = str(facts["model"]), str(facts["protocol"]), tuple(map(str, facts["paths"]))
        return EvaluationResult(model, protocol, paths, dict(facts["figures"]), samples)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{file}: no such file: `attfc evaluate ... --save FILE` writes results") from None
    except Exception as error:  # what its numbers lead to is as open as what they are
        raise UserError(
            f"{file} is not a result of `attfc evaluate --save`, or damaged ({error}): evaluate again"
        ) from None


def _sample(number: int, entry: Json, arrays: dict[str, Array]) -> Sample:
    kind = _KINDS[entry["kind"]]
    values: dict[str, Any] = {}
    for one in dataclasses.fields(kind):
        if f"{number}.{one.name}" in arrays:
            values[one.name] = arrays[f"{number}.{one.name}"]
        elif one.name in entry["settings"] or one.default_factory is dataclasses.MISSING:
            setting = entry["settings"][one.name]
            values[one.name] = tuple(setting) if isinstance(setting, list) else setting
        # else: an array that came later than the file; empty, its figures have no interval
    sample: Sample = kind(**values)
    if "same" in values and not 1 == values["same"].ndim == values["scores"].ndim:
        raise ValueError(f"sample {number} has no row of scores")
    if not 1 <= sample.identities <= _MOST_IDENTITIES or any(
        values[name].size and (values[name].min() < 0 or values[name].max() >= sample.identities)
        for name in values
        if name in ("first", "second")
        or (name.endswith(("_identities", "_first", "_second")) and values[name].dtype.kind in "iu")
    ):
        raise ValueError(f"sample {number} names identities that it has not")
    return sample
