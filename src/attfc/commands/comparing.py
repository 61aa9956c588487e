"""`attfc compare`: two models on the same protocol, figure by figure, the same people drawn again for both."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from attfc.commands.common import (
    CacheOption,
    JsonOption,
    ModelIsOption,
    err,
    out,
    print_table,
    progress_bar,
    write_json,
)
from attfc.commands.evaluation import (
    BatchSizeOption,
    BrokenLimitOption,
    BudgetOption,
    ConfidenceOption,
    DeviceOption,
    EmbeddingsOption,
    EnrolledImagesOption,
    EnrolledOption,
    GeneratedPairsOption,
    GroupsOption,
    ModeOption,
    PairsOption,
    Request,
    SeedOption,
    ThresholdsOption,
    WorkersOption,
    evaluate_model,
    make_request,
)
from attfc.commands.rates import FarOption, read_fars
from attfc.errors import UserError

if TYPE_CHECKING:
    from attfc.evaluation.bootstrap import Interval
    from attfc.evaluation.results import Difference, EvaluationResult

__all__ = ["compare"]


def compare(
    one: Annotated[Path, typer.Argument(help="a model, as for evaluate, or a file of evaluate --save", metavar="A")],
    other: Annotated[Path, typer.Argument(help="the other one", metavar="B")],
    protocol: Annotated[
        str | None, typer.Argument(help="as for evaluate; left out when A and B are files of evaluate --save")
    ] = None,
    paths: Annotated[list[str] | None, typer.Argument(help="the data of the protocol", metavar="PATH...")] = None,
    pairs: PairsOption = None,
    generated_pairs: GeneratedPairsOption = 6000,
    seed: SeedOption = 0,
    thresholds: ThresholdsOption = None,
    broken_limit: BrokenLimitOption = 0.01,
    batch_size: BatchSizeOption = 256,
    workers: WorkersOption = 0,
    device: DeviceOption = "auto",
    mode: ModeOption = "N1D1F1",
    embeddings: EmbeddingsOption = None,
    groups: GroupsOption = None,
    far: FarOption = None,
    budget_gib: BudgetOption = 4.0,
    enrolled: EnrolledOption = 0.5,
    enrolled_images: EnrolledImagesOption = 1,
    confidence: ConfidenceOption = 0.95,
    resamples: Annotated[int, typer.Option(help="how often the identities are drawn again, at least 20")] = 1000,
    model_is: ModelIsOption = None,
    cache: CacheOption = None,
    json_file: JsonOption = None,
) -> None:
    """Say how much better model A is than model B, figure by figure, and how sure that is."""
    from attfc.evaluation.bootstrap import check_resampling
    from attfc.evaluation.results import compare_results, family_of, read_result

    check_resampling(resamples, confidence)
    saved = [path.suffix == ".npz" for path in (one, other)]
    asked = None
    if protocol is not None:
        asked = make_request(
            protocol=protocol,
            paths=tuple(paths or ()),
            pairs=pairs,
            generated_pairs=generated_pairs,
            seed=seed,
            thresholds=thresholds,
            broken_limit=broken_limit,
            batch_size=batch_size,
            workers=workers,
            cache=cache,
            mode=mode,
            embeddings=embeddings,
            groups=groups,
            fars=read_fars(far or ()),
            budget_gib=budget_gib,
            enrolled=enrolled,
            enrolled_images=enrolled_images,
            intervals=True,
            keep_scores=True,
        )
        if all(saved):
            raise UserError(
                f"{one} and {other} are results already: leave out {protocol} {' '.join(paths or ())}".rstrip()
            )
    kept = {path: read_result(path) for path in (one, other) if path.suffix == ".npz"}
    for path, result in kept.items():  # before a model is evaluated for nothing
        if asked is not None and family_of(asked.protocol) != family_of(result.protocol):
            raise UserError(
                f"{path} was evaluated on {result.protocol}, not on {asked.protocol}: compare needs one protocol"
            )
    if asked is None and not all(saved):
        example = next(
            (f"{result.protocol} {' '.join(result.paths)}" for result in kept.values()), "held-out OTHER_PEOPLE"
        )
        raise UserError(
            f"{other if saved[0] else one} is a model: say on which protocol and data, e.g. attfc compare {one} {other} {example}"
        )
    results = [kept[path] if path in kept else _evaluated(path, asked, model_is or [], device) for path in (one, other)]
    with progress_bar("resamples") as bar:
        differences = compare_results(results[0], results[1], resamples, confidence, seed, progress=bar)
    notes = list(dict.fromkeys(note for difference in differences for note in difference.notes))
    if results[0].paths != results[1].paths:
        of_a, of_b = (" ".join(result.paths) for result in results)
        notes.insert(0, f"A was evaluated on {of_a}, B on {of_b}: the figures compare only if the data are the same")
    for letter, result in zip("BA", results[::-1], strict=True):
        unseen = result.figures.get("unseen")
        if isinstance(unseen, dict) and unseen.get("warning"):
            notes.insert(0, f"{letter}: {unseen['warning']}")
    _print_differences(results, differences, confidence, resamples)
    for note in notes:
        out.print(f"note: {note}", markup=False)
    write_json(
        json_file,
        {
            "a": results[0].model,
            "b": results[1].model,
            "protocol": results[0].protocol,
            "paths": list(results[0].paths),
            "confidence": confidence,
            "resamples": resamples,
            "seed": seed,
            "differences": [_plain(difference) for difference in differences],
            "notes": notes,
        },
    )


def _evaluated(path: Path, asked: Request | None, model_is: list[str], device: str) -> "EvaluationResult":
    assert asked is not None
    err.print(f"evaluating {path}", markup=False)
    return evaluate_model(path, asked, model_is, device)[0]


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
    table = Table("figure", "A", "B", "A - B", "", box=None)
    for column in table.columns:
        column.no_wrap = True
        column.justify = "right" if column is not table.columns[0] else "left"
    for found in differences:
        name = " ".join(found.path).replace("_", " ")
        signed = found.difference.text(4)
        table.add_row(
            Text(name),
            _short(found.one),
            _short(found.other),
            Text(signed if signed.startswith("-") else f"+{signed}"),
            "*" if found.clear else "",
        )
    out.print(f"A: {results[0].model}", markup=False)
    out.print(f"B: {results[1].model}", markup=False)
    print_table(table)
    out.print(
        f"[a, b]: {100 * confidence:g} % interval, {resamples:,} bootstrap resamples of identities, the same for both; "
        "* the interval of the difference leaves out 0",
        markup=False,
    )
    clear = sum(found.clear for found in differences)
    if len(differences) > 1 and clear:
        out.print(
            f"{len(differences)} figures are compared at once: by chance alone one in {round(1 / (1 - confidence))} gets a *",
            markup=False,
        )


def _short(interval: "Interval") -> Text:
    return Text(interval.text(4))
