"""`attfc calibrate`: a threshold for a false match rate, measured on other people than those that chose it, kept beside the model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from attfc.commands.common import (
    AlignOption,
    BatchSizeOption,
    CacheOption,
    DetectorOption,
    DeviceOption,
    FileOption,
    JsonOption,
    ModelIsOption,
    NaturalOption,
    ShareOption,
    Table,
    WorkersOption,
    open_with_bar,
    out,
    print_notes,
    print_table,
    progress_bar,
    replaces,
    write_json,
)
from attfc.commands.embed import ModelArgument, faces_of, open_with_notes
from attfc.commands.evaluation.subject import shared_with_run
from attfc.errors import UserError

if TYPE_CHECKING:
    from attfc.evaluation.operating_point.point import Estimate, GroupRates, OperatingPoint

__all__ = ["calibrate"]


def calibrate(
    model: ModelArgument,
    store: str,
    fmr: Annotated[float, Option("--fmr", metavar="RATE")],
    groups: FileOption = None,
    align: AlignOption = False,
    detector: DetectorOption = None,
    count_failures: bool = False,
    splits: Annotated[int, Option(min=2)] = 100,
    seed: NaturalOption = 0,
    output: Annotated[Path | None, Option("--output", "-o", dir_okay=False, callback=replaces(b'"format": 1'))] = None,
    broken_limit: ShareOption = 0.01,
    batch_size: BatchSizeOption = 256,
    workers: WorkersOption = 0,
    budget_gib: Annotated[float, Option(min=0)] = 4.0,
    device: DeviceOption = "auto",
    model_is: ModelIsOption = None,
    cache: CacheOption = None,
    json_file: JsonOption = None,
) -> None:
    """Choose a model's threshold for a false match rate, and say how sure it is. Writes operating_point.json beside the model.

    Args:
        store: people the model was not trained on: an image folder or any other store; more people support a lower rate
        fmr: false match rate (FMR): share of comparisons of two different people that are accepted, such as 1e-4
        groups: file with a line per identity, name<TAB>group, for rates within and across groups of people
        count_failures: count failures to acquire (unusable images, photos without a face) as non-matches, as NIST's FRTE does;
            default: leave them out
        splits: random splits of the people; one half chooses the threshold, the other half is measured
        seed: seed for the splits
        output: the file to write; default: operating_point.json in the model's folder, MODEL.operating_point.json beside a file
        broken_limit: largest share of unusable images to leave out; above it the command stops. No limit with --count-failures
        budget_gib: memory for embeddings and scores, GiB
    """
    from attfc.evaluation import Embedder, read_groups
    from attfc.evaluation.operating_point.measuring import Measuring, check_request
    from attfc.evaluation.operating_point.point import beside

    if not 0 < fmr < 1:
        raise UserError(
            f"--fmr {fmr:g} is not a false match rate: give a number above 0 and below 1, such as --fmr 1e-4"
        )
    people = open_with_bar(store, cache=cache)
    listed = read_groups(groups, people) if groups is not None else None
    check_request(people, fmr, listed)
    opened = open_with_notes(model, model_is, device)
    shared = shared_with_run(model, people)
    print_notes([shared.screen_note] if shared.warning and shared.screen_note else [])  # before hours of embedding
    faces, notes = faces_of(people, opened.facts.image_size, align, detector)
    embedder = Embedder(opened.module, batch_size, device=opened.device, workers=workers)
    measuring = Measuring(fmr, listed, count_failures, splits, seed, broken_limit, int(budget_gib * 2**30))
    with progress_bar("faces, pairs, splits") as bar:
        point = measuring.of(
            embedder,
            faces,
            network=opened.facts.network,
            digest=opened.facts.digest,
            aligned=align,
            notes=[*notes, *([shared.warning] if shared.warning else [])],
            progress=bar,
        )
    path = output or beside(opened.facts.path)
    point.write(path)
    _show(point)
    print_notes([note for note in point.notes if note != shared.warning])
    taken = (
        "verify, gallery, serve and export use it"
        if output is None
        else f"verify, gallery and serve use it with --evaluation {path}"
    )
    out.print(f"written to {path}: {taken}")
    write_json(json_file, {"model": opened.facts.to_dict(), "file": str(path), **point.model_dump(mode="json")})


def _show(point: "OperatingPoint") -> None:
    out.print(
        f"{point.store}: {point.people:,} people, {point.images:,} images; {point.mated_people:,} people have two images or more"
    )
    low, high = ("-" if end is None else f"{end:.4f}" for end in point.threshold_interval)
    rows = [
        ["threshold: above this cosine two faces are one person", f"{point.threshold:.4f} [{low}, {high}]"],
        [
            "FMR, false match rate (elsewhere FAR): two people taken for one",
            f"{point.fmr:.2g} [0, {point.fmr_upper:.2g}]",
        ],
        ["FNMR, %, false non-match rate (elsewhere 1 - TAR): one person not recognised", _percent(point.fnmr)],
    ]
    print_table(Table(("on people who did not choose the threshold", "[95 % sure]"), rows))
    if point.groups:
        lines = [*point.groups, *([point.across] if point.across else [])]
        print_table(Table(("group", "people", "pairs of people", "FMR", "FNMR, %"), [_row(line) for line in lines]))
        worst = point.worst_over_geometric_mean
        if worst is not None:
            out.print(f"the worst group's FMR is {worst:.2f} times the geometric mean of the groups'")
    curve = point.probability
    out.print(
        f"P(same person) = 1 / (1 + exp(-({curve.slope:.2f} cosine {curve.offset:+.2f}))) where same and different are equally likely beforehand; "
        f"Brier score {curve.brier:.4f} (0: perfect, 0.25: no better than guessing)"
    )
    counted = "count as non-matches" if point.failures_counted else "are left out"
    if point.failures:
        out.print(
            f"failures to acquire (images without a usable face): {point.failures:,} of {point.images:,}; they {counted}"
        )
    out.print(
        f"Half of the people chose the threshold, the other half was measured, {point.splits:,} times. "
        f"Its {point.comparisons:,} pairs carry as much information as {point.worth:,.0f} independent comparisons."
    )
    out.print("; ".join(f"FMR {rate:g} needs about {people:,} people" for rate, people in point.people_needed))


def _percent(rate: "Estimate | None") -> str:
    return "-" if rate is None else f"{100 * rate.value:.2f} [{100 * rate.low:.2f}, {100 * rate.high:.2f}]"


def _row(rates: "GroupRates") -> list[str]:
    return [
        rates.name,
        f"{rates.people:,}",
        f"{rates.comparisons:,}",
        f"{rates.fmr:.2g} [0, {rates.fmr_upper:.2g}]",
        _percent(rates.fnmr),
    ]
