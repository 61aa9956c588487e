"""`attfc compare`: two models on the same protocol, figure by figure, the same people drawn again for both."""

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
    paths: Annotated[list[str] | None, Argument(metavar="PATH...")] = None,
    resamples: int = 1000,
    cross: bool = False,
    json_file: JsonOption = None,
) -> None:
    """Say how much better model A is than model B, figure by figure, and how sure that is.

    Args:
        one: a model, as for evaluate, or a file of evaluate --save
        other: the other one
        protocol: as for evaluate; left out when A and B are files of evaluate --save
        paths: the data of the protocol
        resamples: how often the identities are drawn again, at least 20
        cross: probes embedded by A in a gallery embedded by B, at B's threshold; then PATH alone, no protocol
    """
    if cross:
        from attfc.commands.evaluation.cross import compare_cross

        compare_cross(one, other, [*filter(None, [protocol]), *(paths or [])], asked, resamples, json_file)
        return
    from attfc.evaluation.bootstrap import check_resampling
    from attfc.evaluation.results import compare_results

    check_resampling(resamples, asked.confidence)
    results = _results((one, other), protocol, paths or [], asked)
    with progress_bar("resamples") as bar:
        differences = compare_results(results[0], results[1], resamples, asked.confidence, asked.seed, progress=bar)
    notes = list(dict.fromkeys(note for difference in differences for note in difference.notes))
    if results[0].paths != results[1].paths:
        of_a, of_b = (" ".join(result.paths) for result in results)
        notes.insert(0, f"A was evaluated on {of_a}, B on {of_b}: the figures compare only if the data are the same")
    for letter, result in zip("BA", results[::-1], strict=True):
        unseen = result.figures.get("unseen")
        if isinstance(unseen, dict) and unseen.get("warning"):
            notes.insert(0, f"{letter}: {unseen['warning']}")
    _print_differences(results, differences, asked.confidence, resamples)
    for note in notes:
        out.print(f"note: {note}")
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
            "differences": [_plain(difference) for difference in differences],
            "notes": notes,
        },
    )


def _results(
    models: tuple[Path, Path], protocol: str | None, paths: list[str], asked: EvaluationOptions
) -> "list[EvaluationResult]":
    """Return both results: read where a file of `evaluate --save` was named, else evaluated."""
    from attfc.evaluation.protocols import family_of, find_protocol
    from attfc.evaluation.results import read_result

    saved = [path.suffix == ".npz" for path in models]
    if protocol is not None:
        find_protocol(protocol).taken(protocol, asked.for_protocols(keep_scores=True))
        if all(saved):
            raise UserError(
                f"{models[0]} and {models[1]} are results already: leave out {protocol} {' '.join(paths)}".rstrip()
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
                f"{path} is a model: say on which protocol and data, e.g. attfc compare {models[0]} {models[1]} {example}"
            )
        err.print(f"evaluating {path}")
        found.append(evaluate_model(path, protocol, paths, asked, keep_scores=True)[0])
    return found


def _plain(difference: "Difference") -> dict[str, Any]:
    return {
        "figure": list(difference.path),
        **{
            name: {"value": interval.value, "interval": interval.plain()}
            for name, interval in (
                ("a", difference.one),
                ("b", difference.other),
                ("difference", difference.difference),
            )
        },
        "clear": difference.clear,
    }


def _print_differences(
    results: "list[EvaluationResult]", differences: "list[Difference]", confidence: float, resamples: int
) -> None:
    rows = []
    for found in differences:
        signed = found.difference.text(4)
        rows.append(
            (
                " ".join(found.path).replace("_", " "),
                found.one.text(4),
                found.other.text(4),
                signed if signed.startswith("-") else f"+{signed}",
                "*" if found.clear else "",
            )
        )
    out.print(f"A: {results[0].model}")
    out.print(f"B: {results[1].model}")
    print_table(Table(("figure", "A", "B", "A - B", ""), rows))
    out.print(
        f"[a, b]: {100 * confidence:g} % interval, {resamples:,} bootstrap resamples of identities, the same for both; "
        "* the interval of the difference leaves out 0",
    )
    clear = sum(found.clear for found in differences)
    if len(differences) > 1 and clear:
        out.print(
            f"{len(differences)} figures are compared at once: by chance alone one in {round(1 / (1 - confidence))} gets a *",
        )
