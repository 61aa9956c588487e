"""`attfc compare`: models on the same protocol, figure by figure, the first against each other one, the same people drawn again for both."""

import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument

from attfc.commands.common import JsonOption, Table, err, out, print_table, progress_bar, write_json
from attfc.commands.evaluation.evaluate import evaluate_model
from attfc.commands.evaluation.options import EvaluationOptions, takes_options
from attfc.errors import UserError

if TYPE_CHECKING:
    from attfc.evaluation.results import Difference, EvaluationResult

__all__ = ["compare"]


@takes_options
def compare(
    one: Annotated[Path, Argument(metavar="A")],
    other: Annotated[Path, Argument(metavar="B")],
    asked: EvaluationOptions,
    protocol: Annotated[str | None, Argument()] = None,
    paths: Annotated[list[str] | None, Argument(metavar="PATH")] = None,
    resamples: int = 1000,
    cross: bool = False,
    json_file: JsonOption = None,
) -> None:
    """Say how much better model A is than model B, metric by metric, and how sure that is.

    Args:
        one: a model, as for evaluate, or a file of evaluate --save
        other: the other one; more may follow, and A is compared with each
        protocol: as for evaluate; left out when all models are files of evaluate --save
        paths: the data of the protocol
        resamples: bootstrap resamples of the identities, at least 20
        cross: search probes embedded by A in a gallery embedded by B, at B's threshold; takes PATH and no protocol
    """
    if cross:
        from attfc.commands.evaluation.cross import compare_cross

        compare_cross(one, other, [*filter(None, [protocol]), *(paths or [])], asked, resamples, json_file)
        return
    from attfc.evaluation.bootstrap import check_resampling
    from attfc.evaluation.results import compare_results

    check_resampling(resamples, asked.confidence)
    models, protocol, paths = _models_first([one, other], [*filter(None, [protocol]), *(paths or [])])
    results = _results(models, protocol, paths, asked)
    found = []
    for result in results[1:]:
        with progress_bar("resamples") as bar:
            found.append(compare_results(results[0], result, resamples, asked.confidence, asked.seed, progress=bar))
    notes = list(
        dict.fromkeys(note for differences in found for difference in differences for note in difference.notes)
    )
    for number, result in reversed(list(enumerate(results))):
        unseen = result.figures.get("unseen")
        if isinstance(unseen, dict) and unseen.get("warning"):
            notes.insert(0, f"{_letter(number)}: {unseen['warning']}")
    for number, result in reversed(list(enumerate(results[1:], start=1))):
        if results[0].condition != result.condition:
            of_a, of_b = (each.condition or "the images as they are" for each in (results[0], result))
            notes.insert(0, f"A was evaluated under {of_a}, {_letter(number)} under {of_b}")
        if results[0].paths != result.paths:
            of_a, of_b = (" ".join(each.paths) for each in (results[0], result))
            notes.insert(
                0,
                f"A was evaluated on {of_a}, {_letter(number)} on {of_b}: the metrics can be compared only if the data are the same",
            )
    _print_differences(results, found, asked.confidence, resamples)
    points = [result.figures.get("operating_point") for result in results]
    notes += _print_points(points)
    for note in notes:
        out.print(f"note: {note}")
    listed = [[difference.plain() for difference in differences] for differences in found]
    more = zip(results[2:], listed[1:], strict=True)
    write_json(
        json_file,
        {
            "a": results[0].model,
            "b": results[1].model,
            "protocol": results[0].protocol,
            "paths": list(results[0].paths),
            "confidence": asked.confidence,
            "resamples": resamples,
            "seed": asked.seed,
            "differences": listed[0],
            **({"more": [{"model": each.model, "differences": of} for each, of in more]} if listed[1:] else {}),
            **({"operating_points": points} if any(points) else {}),
            "notes": notes,
        },
    )


def _print_points(points: list[Any]) -> list[str]:
    """Print the operating points that `attfc calibrate` found of the models, of those that have one; return notes."""
    if not any(points):
        return []
    rows, notes = [], []
    for number, point in enumerate(points):
        cells = ["-"] * 4
        if point:
            value, low, high = (f"{100 * point['fnmr'][key]:.2f}" for key in ("value", "low", "high"))
            cells = [
                f"{point['threshold']:.4f}",
                f"{point['asked_fmr']:g}",
                f"{point['fmr_upper']:.2g}",
                f"{value} [{low}, {high}]",
            ]
            people = f"{point['people']:,} people of {point['store']}"
            notes.append(f"{_letter(number)}'s operating point was measured on {people}")
        rows.append([_letter(number), *cells])
    print_table(Table(("operating point", "threshold", "FMR", "95 % below", "FNMR, %"), rows))
    if len({point["asked_fmr"] for point in points if point}) > 1:
        notes.append("the operating points have different FMRs: a lower FNMR at a higher FMR is not a gain")
    return notes


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"model {number + 1}"


def _models_first(models: list[Path], words: list[str]) -> tuple[list[Path], str | None, list[str]]:
    """Return the models, the protocol and its paths: what stands before a protocol's name is a model, and so is a result."""
    from attfc.evaluation.protocols import find_protocol

    for number, word in enumerate(words):
        with suppress(UserError):
            find_protocol(word)
            return [*models, *map(Path, words[:number])], word, words[number + 1 :]
    saved = next((number for number, word in enumerate(words) if Path(word).suffix != ".npz"), len(words))
    return [*models, *map(Path, words[:saved])], next(iter(words[saved:]), None), words[saved + 1 :]


def _results(
    models: list[Path], protocol: str | None, paths: list[str], asked: EvaluationOptions
) -> "list[EvaluationResult]":
    """Return both results: read where a file of `evaluate --save` was named, else evaluated."""
    from attfc.evaluation.protocols import family_of, find_protocol
    from attfc.evaluation.results import read_result

    saved = [path.suffix == ".npz" for path in models]
    if protocol is not None:
        asked.taken_by(find_protocol(protocol), protocol, keep_scores=True)
        if all(saved):
            raise UserError(
                f"{' and '.join(map(str, models))} are results already: leave out {protocol} {' '.join(paths)}".rstrip()
            )
    kept = {path: read_result(path) for path, known in zip(models, saved, strict=True) if known}
    for path, result in kept.items():  # before a model is evaluated for nothing
        if protocol is not None and family_of(protocol) != family_of(result.protocol):
            raise UserError(f"{path} was evaluated on {result.protocol}, not on {protocol}: compare needs one protocol")
    found = []
    for path in models:
        if path in kept:
            found.append(kept[path])
            continue
        if protocol is None:
            example = next(
                (f"{result.protocol} {' '.join(result.paths)}" for result in kept.values()), "held-out OTHER_PEOPLE"
            )
            raise UserError(
                f"{path} is a model: say on which protocol and data, e.g. attfc compare {shlex.join(map(str, models))} {example}"
            )
        err.print(f"evaluating {path}")
        found.append(evaluate_model(path, protocol, paths, asked, keep_scores=True)[0])
    return found


def _print_differences(
    results: "list[EvaluationResult]", found: "list[list[Difference]]", confidence: float, resamples: int
) -> None:
    from attfc.evaluation.bootstrap import in_words

    for number, result in enumerate(results):
        out.print(f"{_letter(number)}: {result.model}")
    for number, differences in enumerate(found, start=1):
        rows: dict[str, list[tuple[str, ...]]] = {}
        for each in differences:
            name = each.path[-2:] if each.path[-1].replace("e-", "").replace(".", "").isdigit() else each.path[-1:]
            place, signed = each.path[: -len(name)], each.difference.text(4)
            signed = signed if signed.startswith("-") else f"+{signed}"
            cells = (f"{each.one.value:.4f}", f"{each.other.value:.4f}", signed, "*" if each.clear else "")
            rows.setdefault(in_words(place), []).append((in_words(name), *cells))
        other = _letter(number)
        header = ("metric", "A", other, f"A - {other}", "")
        print_table(*(Table(header, of, title=place) for place, of in rows.items()))
    whom = "both" if len(results) == 2 else "all"
    out.print(
        f"[a, b]: {100 * confidence:g} % interval, {resamples:,} bootstrap resamples of identities, the same for {whom}; "
        "* the interval of the difference excludes 0"
    )
    compared = [each for differences in found for each in differences]
    if len(compared) > 1 and any(each.clear for each in compared):
        chance = round(1 / (1 - confidence))
        out.print(f"{len(compared)} metrics are compared at once: by chance alone one in {chance} gets a *")
