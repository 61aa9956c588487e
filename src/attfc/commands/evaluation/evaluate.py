"""`attfc evaluate`: figures of a trained model on people it never saw, by any protocol of `attfc.evaluation.protocols`.

A protocol gives an `Outcome`: intervals, tables on the screen, `--json`, `--save` and `attfc compare` work on outcomes, whatever the protocol.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from attfc.commands.common import (
    JsonOption,
    NaturalOption,
    Table,
    out,
    print_notes,
    print_table,
    progress_bar,
    replaces,
    write_json,
)
from attfc.commands.evaluation.options import EvaluationOptions, takes_options
from attfc.commands.evaluation.subject import open_subject
from attfc.errors import UserError

if TYPE_CHECKING:
    from attfc.evaluation.bootstrap import FigurePath, Interval
    from attfc.evaluation.protocols.protocol import Outcome
    from attfc.evaluation.results import EvaluationResult

__all__ = ["evaluate", "evaluate_model"]


@takes_options
def evaluate(
    model: Path,
    protocol: str,
    paths: Annotated[list[str], Argument(metavar="PATH")],
    asked: EvaluationOptions,
    resamples: NaturalOption = 1000,
    save: Annotated[Path | None, Option(dir_okay=False, callback=replaces(b"facts.npy"))] = None,
    json_file: JsonOption = None,
) -> None:
    """Evaluate a trained model, and say whether its training set holds people of the evaluation set.

    Args:
        model: a run's folder, a folder with model.safetensors and config.json, a state dict, or an .onnx file
        protocol: held-out: pairs, all pairs and rank-1 of a store. pairs: .bin files, a folder of them, or a store with --pairs.
            lfw, cfp_fp, agedb_30, calfw, cplfw: NAME.bin in a folder; join several with commas.
            all-pairs: every image of a store against every other, as in MFR-ALL.
            identify: search a store's images in a gallery of some of its identities.
            ijbb, ijbc: the released folder with loose_crop and meta
        paths: data of the protocol: store, .bin files or folder
        resamples: bootstrap resamples of the identities for the intervals; 0: no intervals
        save: keep metrics and scores in this .npz file, for `compare` and `report`; an older one is replaced
    """
    from attfc.evaluation.bootstrap import check_resampling
    from attfc.evaluation.protocols import find_protocol
    from attfc.evaluation.results import add_intervals, save_result

    keep_scores = resamples > 0 or save is not None
    asked.taken_by(find_protocol(protocol), protocol, keep_scores)
    if resamples > 0:
        check_resampling(resamples, asked.confidence)
    if save is not None and save.suffix != ".npz":
        raise UserError(f"--save {save}: the file is an archive of arrays, so name it {save.stem}.npz")
    result, outcome, digest = evaluate_model(model, protocol, paths, asked, keep_scores)
    intervals: Mapping[FigurePath, Interval] = {}
    notes: list[str] = []
    if resamples > 0:
        with progress_bar("intervals") as bar:
            intervals, notes = add_intervals(result, resamples, asked.confidence, asked.seed, progress=bar)
    if result.condition:
        out.print(f"condition of the images: {result.condition}")
    _show(outcome, intervals)
    if intervals:
        out.print(
            f"[a, b]: {100 * asked.confidence:g} % interval, {resamples:,} bootstrap resamples of identities",
        )
    for note in (*notes, *outcome.people_notes):  # who was trained on is said last, where it is read
        out.print(f"note: {note}")
    if save is not None:
        save_result(save, result)
    of = {"model": result.model, "model_digest": digest, "protocol": protocol, "paths": paths}
    write_json(json_file, {**of, **outcome.figures})


def evaluate_model(
    path: Path, protocol: str, paths: list[str], asked: EvaluationOptions, keep_scores: bool
) -> "tuple[EvaluationResult, Outcome, str]":
    """Open a model, run a protocol on it, and return the model's digest too; nothing is printed but notes about the model."""
    from attfc.evaluation.operating_point.judging import judged_at
    from attfc.evaluation.operating_point.point import point_of
    from attfc.evaluation.protocols import find_protocol
    from attfc.evaluation.results import EvaluationResult

    found = find_protocol(protocol)
    options = asked.taken_by(found, protocol, keep_scores)
    subject, facts = open_subject(path, asked)
    point = None
    try:
        point = point_of(facts)
    except UserError as error:  # a model that was trained further is evaluated all the same
        print_notes([str(error)])
    outcome = found.run(subject, protocol, paths, **options)
    if point is not None:
        outcome = judged_at(point, outcome)
        outcome.figures["operating_point"] = point.summary()
    if asked.conditions:
        outcome.figures["condition"] = ", ".join(map(str, asked.conditions))
    result = EvaluationResult(str(facts.path), protocol, tuple(paths), outcome.figures, outcome.samples)
    return result, outcome, facts.digest


def _show(outcome: "Outcome", intervals: "Mapping[FigurePath, Interval]") -> None:
    for part in outcome.shown:
        if isinstance(part, str):
            out.print(part)
        else:
            rows = []
            for row in part.rows:
                cells = [cell if isinstance(cell, str) else cell.text(outcome.figures, intervals) for cell in row]
                rows.append(cells + [""] * (len(part.header) - len(cells)))
            print_table(Table(part.header, rows))
