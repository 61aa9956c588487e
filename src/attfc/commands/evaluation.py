"""`attfc evaluate`, `report`: figures of a trained model on people it never saw.

Each protocol is a function of `_PROTOCOLS`: it takes the options and the opened model, and returns an `Outcome`: figures, the scores behind them, and
how to print them. Intervals, `--json`, `--save` and `attfc compare` work on outcomes, whatever the protocol.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from attfc.commands.common import (
    CacheOption,
    JsonOption,
    ModelIsOption,
    err,
    out,
    print_figures,
    print_table,
    progress_bar,
    write_json,
)
from attfc.commands.outcome import OpenedModel, Outcome
from attfc.commands.rates import FarOption, read_fars
from attfc.errors import UserError, nearest

if TYPE_CHECKING:
    from attfc.evaluation import AllPairs, AllPairsEvaluation
    from attfc.evaluation.bootstrap import Interval
    from attfc.evaluation.bootstrap import Path as FigurePath
    from attfc.evaluation.protocols.identification_of_store import StoreIdentification
    from attfc.evaluation.protocols.templates import TemplateEvaluation
    from attfc.evaluation.protocols.verification import PairEvaluation
    from attfc.evaluation.results import EvaluationResult
    from attfc.evaluation.unseen import SharedPeople

__all__ = ["Outcome", "Request", "evaluate", "evaluate_model", "find_protocol", "report"]

PAIR_SETS = ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw")


PairsOption = Annotated[Path | None, typer.Option(help="pairs file in the LFW form; default: generated pairs")]
GeneratedPairsOption = Annotated[int, typer.Option(min=4, help="number of pairs to generate where no pairs are given")]
SeedOption = Annotated[int, typer.Option(min=0, help="seed for generated pairs, enrolment and intervals")]
ThresholdsOption = Annotated[
    str | None,
    typer.Option(help="thresholds: grid (as published; default for pairs) or exact (default for held-out)"),
]
BrokenLimitOption = Annotated[
    float, typer.Option(min=0, max=1, help="largest share of unusable images that is counted, not refused")
]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="images per forward pass")]
WorkersOption = Annotated[int, typer.Option(min=0, help="processes that read, decode and align; 0: this one")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda ...")]
ModeOption = Annotated[
    str,
    typer.Option(
        help="variants of ijbb and ijbc: N1 keeps the embeddings' length, N0 not; D1 weighs by detector score; F1 adds the mirror image; "
        "several joined by commas, or all"
    ),
]
EmbeddingsOption = Annotated[
    Path | None,
    typer.Option(
        help="folder where ijbb and ijbc keep embeddings for the next time; default attfc/embeddings in the user's cache",
        file_okay=False,
    ),
]
GroupsOption = Annotated[
    Path | None,
    typer.Option(
        help="file with a line per identity, name<TAB>group, for metrics of all-pairs within groups", dir_okay=False
    ),
]
BudgetOption = Annotated[
    float, typer.Option(min=0, help="memory that all-pairs may take for embeddings and scores, GiB")
]
EnrolledOption = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="share of the identities that the protocol identify enrolls; the others are not in the gallery",
    ),
]
EnrolledImagesOption = Annotated[
    int, typer.Option(min=1, help="images per enrolled identity in the gallery of identify")
]
ConfidenceOption = Annotated[float, typer.Option(help="confidence level of the intervals, 0.5 to below 1")]
ResamplesOption = Annotated[
    int, typer.Option(min=0, help="how often the identities are drawn again for the intervals; 0: no intervals")
]


@dataclass(frozen=True)
class Request:
    """What the user asked for, beside the model: the options, for the protocol to take what it needs."""

    protocol: str
    paths: tuple[str, ...]
    pairs: Path | None
    generated_pairs: int
    seed: int
    thresholds: Literal["grid", "exact"] | None
    broken_limit: float
    batch_size: int
    workers: int
    cache: Path | None
    mode: str
    embeddings: Path | None
    groups: Path | None
    fars: tuple[float, ...]
    budget_gib: float
    enrolled: float
    enrolled_images: int
    intervals: bool
    keep_scores: bool

    @property
    def wants_samples(self) -> bool:
        """Whether the scores behind the figures are needed."""
        return self.intervals or self.keep_scores

    def one_path(self, what: str) -> str:
        """Return the only path, of a protocol that takes one."""
        if len(self.paths) != 1:
            raise UserError(f"{self.protocol} takes one path, {what}; {len(self.paths)} were given")
        return self.paths[0]


def evaluate(
    model: Annotated[
        Path,
        typer.Argument(
            help="a run's folder, a folder with model.safetensors and config.json, a state dict, or an .onnx file"
        ),
    ],
    protocol: Annotated[
        str,
        typer.Argument(
            help="held-out: pairs, all pairs and rank-1 of a store; pairs: .bin files, a folder of them, or a store with --pairs; "
            "lfw, cfp_fp, agedb_30, calfw, cplfw: NAME.bin of a folder, several joined by commas; "
            "all-pairs: every image of a store against every other, as MFR-ALL; "
            "identify: a store's images searched in a gallery of some of its identities; "
            "ijbb, ijbc: the released folder with loose_crop and meta"
        ),
    ],
    paths: Annotated[
        list[str], typer.Argument(help="data of the protocol: store, .bin files, folder", metavar="PATH...")
    ],
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
    resamples: ResamplesOption = 1000,
    model_is: ModelIsOption = None,
    cache: CacheOption = None,
    save: Annotated[
        Path | None,
        typer.Option(help="keep figures and scores in this .npz file, for `compare` and `report`", dir_okay=False),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Evaluate a trained model, and say whether it was trained on the people of the evaluation."""
    asked = make_request(
        protocol=protocol,
        paths=tuple(paths),
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
        intervals=resamples > 0,
        keep_scores=save is not None,
    )
    if resamples > 0:
        from attfc.evaluation.bootstrap import check_resampling

        check_resampling(resamples, confidence)
    if save is not None and save.suffix != ".npz":
        raise UserError(f"--save {save}: the file is an archive of arrays, so name it {save.stem}.npz")
    result, outcome = evaluate_model(model, asked, model_is or [], device)
    intervals: Mapping[FigurePath, Interval] = {}
    notes: list[str] = []
    if resamples > 0:
        from attfc.evaluation.results import add_intervals, interval_notes, method_of_intervals, resample_result

        with progress_bar("intervals") as bar:
            resampled = resample_result(result, resamples, confidence, seed, progress=bar)
        intervals, notes = add_intervals(outcome.figures, resampled), interval_notes(resampled)
        outcome.figures["uncertainty"] = method_of_intervals(resamples, confidence, seed)
    outcome.show(intervals)
    if intervals:
        out.print(
            f"[a, b]: {100 * confidence:g} % interval, {resamples:,} bootstrap resamples of identities", markup=False
        )
    for note in (*notes, *outcome.people_notes):  # who was trained on is said last, where it is read
        out.print(f"note: {note}", markup=False)
    if save is not None:
        from attfc.evaluation.results import save_result

        save_result(save, result)
    write_json(json_file, {"model": result.model, "protocol": protocol, "paths": list(paths), **outcome.figures})


def make_request(**options: Any) -> Request:
    """Check what can be checked before a model is opened."""
    asked = Request(**options)
    run = find_protocol(asked.protocol)
    if asked.thresholds not in (None, "grid", "exact"):
        raise UserError(f"--thresholds {asked.thresholds} is unknown: use grid or exact")
    if asked.groups is not None and run is not _all_pairs:
        raise UserError(f"--groups is of the protocol all-pairs: leave it out of {asked.protocol}")
    if asked.fars and run is not _all_pairs:
        raise UserError(f"--far is an option of the protocol all-pairs: leave it out of {asked.protocol}")
    return asked


def evaluate_model(
    path: Path, asked: Request, model_is: Sequence[str], device: str
) -> "tuple[EvaluationResult, Outcome]":
    """Open a model and run a protocol on it; nothing is printed but notes about the model."""
    from attfc.devices import choose_device
    from attfc.evaluation.results import EvaluationResult
    from attfc.export import open_model
    from attfc.export.model_inputs import read_statements

    on = choose_device(device)
    module, facts = open_model(path, read_statements(list(model_is)), device=on.type)
    for note in facts.notes:
        err.print(f"note: {note}", markup=False)
    outcome = find_protocol(asked.protocol)(asked, OpenedModel(module.to(on), facts, on, path))
    return EvaluationResult(str(facts.path), asked.protocol, asked.paths, outcome.figures, outcome.samples), outcome


def find_protocol(name: str) -> Callable[[Request, OpenedModel], Outcome]:
    """Return the function of a protocol, or refuse a name."""
    found = {_PROTOCOLS.get(part) for part in name.split(",")}
    if None in found or len(found) != 1 or ("," in name and found != {_named_sets}):
        unknown = next((part for part in name.split(",") if part not in _PROTOCOLS), name)
        if unknown in _PROTOCOLS or (unknown == name and "," in name):
            raise UserError(f"{name!r}: only {', '.join(PAIR_SETS)} can be joined by commas")
        raise UserError(
            f"unknown protocol {unknown!r}{nearest(unknown, _PROTOCOLS)}: there are {', '.join(_PROTOCOLS)}"
        )
    run = found.pop()
    assert run is not None
    return run


def _held_out(asked: Request, model: OpenedModel) -> Outcome:
    from attfc.evaluation import evaluate_store, read_pairs
    from attfc.evaluation.people import heading_with_people
    from attfc.evaluation.protocols.all_pairs import SPARE_FOR_INTERVALS

    path, store, shared = model.open_data(asked)
    limit = asked.broken_limit
    result = evaluate_store(
        model.module,
        store,
        pairs=read_pairs(asked.pairs, store, broken_limit=limit) if asked.pairs is not None else None,
        generated_pairs=asked.generated_pairs,
        seed=asked.seed,
        thresholds=asked.thresholds or "exact",
        spare=SPARE_FOR_INTERVALS if asked.wants_samples else 1.0,
        broken_limit=limit,
        batch_size=asked.batch_size,
        workers=asked.workers,
        device=model.device,
    )
    figures = result.figures()

    def show(intervals: "Mapping[FigurePath, Interval]") -> None:
        print_figures(figures, intervals, heading_with_people(shared.heading, result.people))
        for note in figures["notes"]:
            out.print(f"note: {note}", markup=False)

    facts = {"store": path, "pairs_file": str(asked.pairs) if asked.pairs else None}
    return Outcome({**facts, **figures}, result.samples(), show, shared)


def _pairs(asked: Request, model: OpenedModel) -> Outcome:
    if asked.pairs is not None:
        return _pairs_of_store(asked, model)
    from attfc.evaluation.protocols.verification import find_sets

    files: list[Path] = []
    for path in map(Path, asked.paths):
        if path.is_dir():
            files += find_sets(path)
        elif path.suffix == ".bin":
            files.append(path)
        else:
            raise UserError(f"{path} is no .bin file and no folder of them: for a store of images add --pairs FILE")
    return _sets(asked, model, files)


def _named_sets(asked: Request, model: OpenedModel) -> Outcome:
    from attfc.evaluation.protocols.verification import find_sets

    if asked.pairs is not None:
        raise UserError(f"{asked.protocol} brings its own pairs: leave out --pairs, or use the protocol pairs")
    folder = Path(asked.one_path("the folder that holds NAME.bin"))
    return _sets(asked, model, find_sets(folder, asked.protocol.split(",")))


def _sets(asked: Request, model: OpenedModel, files: list[Path]) -> Outcome:
    from attfc.data.stores.verification_sets import read_verification_set
    from attfc.evaluation.protocols.verification import evaluate_pair_list, identities_of_set, pairs_of_set

    results: list[PairEvaluation] = []
    for file in files:
        verification_set = read_verification_set(file)
        if any(result.name == verification_set.name for result in results):
            raise UserError(f"{file}: a second set named {verification_set.name}: evaluate it in a run of its own")
        with progress_bar(verification_set.name) as bar:
            results.append(
                evaluate_pair_list(
                    model.module,
                    verification_set,
                    pairs_of_set(verification_set),
                    identities=identities_of_set(verification_set).take,
                    thresholds=asked.thresholds or "grid",
                    broken_limit=asked.broken_limit,
                    batch_size=asked.batch_size,
                    workers=asked.workers,
                    device=model.device,
                    progress=bar,
                )
            )
    return _outcome_of_pairs(asked, results)


def _pairs_of_store(asked: Request, model: OpenedModel) -> Outcome:
    from attfc.evaluation import read_pairs
    from attfc.evaluation.protocols.verification import evaluate_pair_list

    _, store, shared = model.open_data(asked)
    assert asked.pairs is not None
    pairs = read_pairs(asked.pairs, store, broken_limit=asked.broken_limit)
    with progress_bar(store.name) as bar:
        result = evaluate_pair_list(
            model.module,
            store,
            pairs,
            identities=store.labels,
            thresholds=asked.thresholds or "grid",
            broken_limit=asked.broken_limit,
            batch_size=asked.batch_size,
            workers=asked.workers,
            device=model.device,
            progress=bar,
        )
    return _outcome_of_pairs(asked, [result], shared)


def _outcome_of_pairs(asked: Request, results: "list[PairEvaluation]", shared: "SharedPeople | None" = None) -> Outcome:
    return Outcome(
        {
            "thresholds": asked.thresholds or "grid",
            "pairs_file": str(asked.pairs) if asked.pairs else None,
            "sets": {result.name: result.figures() for result in results},
        },
        {("sets", result.name): [result.sample] for result in results if result.sample is not None},
        lambda intervals: _print_pairs(results, intervals),
        shared,
    )


def _print_pairs(results: "list[PairEvaluation]", intervals: "Mapping[FigurePath, Interval]") -> None:
    """One line a set; notes below, since a figure with skipped pairs is not that of the whole set."""
    table = Table(
        "set", "pairs", "accuracy %", "± std", "AUC", "EER %", "TAR@1e-3 %", "TAR@1e-2 %", "skipped", box=None
    )
    _numbers(table)
    for result in results:
        scores, place = result.scores, ("sets", result.name)
        table.add_row(
            result.name,
            f"{len(result.pairs):,}",
            _figure(scores.accuracy, intervals.get((*place, "accuracy"))),
            f"{100 * scores.std:.2f}",
            _figure(scores.auc, intervals.get((*place, "auc")), places=4, percent=False),
            _figure(scores.eer, intervals.get((*place, "eer"))),
            *(
                _figure(scores.tar_at_far.get(far), intervals.get((*place, "tar_at_far", f"{far:g}")))
                for far in (1e-3, 1e-2)
            ),
            str(result.skipped_pairs),
        )
    print_table(table)
    concerned: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            concerned.setdefault(note, []).append(result.name)
    for note, names in concerned.items():
        out.print(f"{', '.join(names)}: {note}", markup=False)


def _numbers(table: Table) -> None:
    """Set all columns but the first to the right, and none over two lines."""
    for column in table.columns:
        column.no_wrap = True
        column.justify = "right" if column is not table.columns[0] else "left"


def _figure(share: float | None, interval: "Interval | None", places: int = 2, percent: bool = True) -> str:
    """A figure with its interval, `-` for one that cannot be stated."""
    if share is None:
        return "-"
    if interval is None:
        return f"{(100 if percent else 1) * share:.{places}f}"
    return dataclasses.replace(interval, value=share).text(places, percent)


def _all_pairs(asked: Request, model: OpenedModel) -> Outcome:
    from attfc.evaluation import ALL_PAIRS_FARS, evaluate_all_pairs, read_groups
    from attfc.evaluation.protocols.all_pairs import SPARE_FOR_INTERVALS

    if asked.pairs is not None:
        raise UserError("all-pairs scores every pair of images: leave out --pairs")
    path, store, shared = model.open_data(asked)
    groups = read_groups(asked.groups, store) if asked.groups is not None else None
    with progress_bar("faces, then pairs") as bar:
        result = evaluate_all_pairs(
            model.module,
            store,
            groups=groups,
            fars=asked.fars or ALL_PAIRS_FARS,
            budget=int(asked.budget_gib * 2**30),
            spare=SPARE_FOR_INTERVALS if asked.wants_samples else 1.0,
            broken_limit=asked.broken_limit,
            batch_size=asked.batch_size,
            workers=asked.workers,
            device=model.device,
            progress=bar,
        )
    return Outcome(
        {"store": path, "groups_file": str(asked.groups) if asked.groups else None, **result.figures()},
        result.samples(),
        lambda intervals: _print_all_pairs(result, intervals),
        shared,
    )


def _print_all_pairs(result: "AllPairsEvaluation", intervals: "Mapping[FigurePath, Interval]") -> None:
    """One line for everyone and one a group; rates of few pairs say so by their counts."""
    fars = sorted(result.everyone.tar_at_far)
    columns = (*(f"{far:g}" for far in fars), "images", "identities", "genuine pairs", "impostor pairs")
    table = Table("TAR % at FAR", *columns, box=None)
    _numbers(table)
    lines: dict[FigurePath, tuple[str, AllPairs]] = {("all_pairs",): (result.name, result.everyone)}
    lines.update({("groups", name): (f"  {name}", found) for name, found in result.groups.items()})
    for place, (name, found) in lines.items():
        counts = (found.images, found.identities, len(found.genuine_scores), found.impostor_pairs)
        table.add_row(
            Text(name),
            *(_figure(found.tar_at_far[far], intervals.get((*place, "tar_at_far", f"{far:g}"))) for far in fars),
            *(f"{count:,}" for count in counts),
        )
        balanced = (*place, "person_balanced_tar_at_far")
        alike = found.person_balanced_tar_at_far
        table.add_row(
            "  each person alike", *(_figure(alike[far], intervals.get((*balanced, f"{far:g}"))) for far in fars)
        )
    print_table(table)
    stated = [far for far in fars if result.everyone.threshold_at_far[far] is not None]
    if result.groups and stated:
        table = Table("at everyone's threshold", *(f"TAR %, FAR at {far:g}" for far in stated), box=None)
        _numbers(table)
        for name, rates in result.at_common_threshold.items():
            table.add_row(Text(f"  {name}"), *(f"{100 * rates[far][0]:.2f}, {rates[far][1]:.2g}" for far in stated))
        print_table(table)
    for note in result.notes:
        out.print(f"note: {note}", markup=False)


def _identify(asked: Request, model: OpenedModel) -> Outcome:
    from attfc.evaluation.protocols.identification_of_store import identify_in_store

    if asked.pairs is not None:
        raise UserError("identify searches images, not pairs: leave out --pairs")
    path, store, shared = model.open_data(asked)
    with progress_bar("faces") as bar:
        result = identify_in_store(
            model.module,
            store,
            enrolled=asked.enrolled,
            enrolled_images=asked.enrolled_images,
            seed=asked.seed,
            broken_limit=asked.broken_limit,
            batch_size=asked.batch_size,
            workers=asked.workers,
            device=model.device,
            progress=bar,
        )
    return Outcome(
        {"store": path, **result.figures()},
        result.samples(),
        lambda intervals: _print_identification(result, intervals),
        shared,
    )


def _print_identification(result: "StoreIdentification", intervals: "Mapping[FigurePath, Interval]") -> None:
    found = result.found
    table = Table(
        "1:N, %",
        *(f"rank {rank}" for rank in found.rank_rates),
        *(f"TPIR@{fpir:g}" for fpir in found.tpir_at_fpir),
        "enrolled",
        "mated probes",
        "strangers",
        box=None,
    )
    _numbers(table)
    table.add_row(
        Text(result.name),
        *(_figure(rate, intervals.get(("rank", str(rank)))) for rank, rate in found.rank_rates.items()),
        *(_figure(tpir, intervals.get(("tpir_at_fpir", f"{fpir:g}"))) for fpir, tpir in found.tpir_at_fpir.items()),
        f"{found.gallery:,}",
        f"{len(found.probe_ranks):,}",
        f"{len(found.stranger_scores):,}",
    )
    print_table(table)
    for note in result.notes:
        out.print(f"note: {note}", markup=False)


def _templates(asked: Request, model: OpenedModel) -> Outcome:
    from attfc.evaluation.embedding_cache import CacheKey, default_cache, model_digest
    from attfc.evaluation.protocols.template_lists import read_template_lists
    from attfc.evaluation.protocols.templates import TemplateMode, evaluate_templates, template_samples

    if asked.pairs is not None:
        raise UserError(f"{asked.protocol} brings its own pairs: leave out --pairs")
    modes = (
        TemplateMode.all()
        if asked.mode.lower() == "all"
        else tuple(dict.fromkeys(TemplateMode.parse(text) for text in asked.mode.split(",")))
    )
    with progress_bar("pairs") as bar:
        lists = read_template_lists(asked.one_path("the folder with loose_crop and meta"), asked.protocol, bar)
    key = CacheKey(model.facts.network, model.facts.colours, sorted(model.facts.options.items()))
    if model.facts.kind == "ONNX":
        key.add("file", _digest_of(model.facts.path))
    else:
        key.add("weights", model_digest(model.module).encode())
    cache = asked.embeddings or default_cache()
    with progress_bar("faces") as bar:
        results = evaluate_templates(
            model.module,
            lists,
            cache,
            modes,
            broken_limit=asked.broken_limit,
            model_key=key.digest,
            batch_size=asked.batch_size,
            workers=asked.workers,
            device=model.device,
            progress=bar,
        )
    samples = {
        ("modes", str(result.mode), *place): several
        for result in results
        for place, several in (template_samples(result, lists) if asked.wants_samples else {}).items()
    }
    return Outcome(
        {"modes": {str(result.mode): result.figures() for result in results}, "embeddings": str(results[0].cache)},
        samples,
        lambda intervals: _print_templates(results, intervals),
    )


def _digest_of(path: Path) -> bytes:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def _print_templates(results: "tuple[TemplateEvaluation, ...]", intervals: "Mapping[FigurePath, Interval]") -> None:
    """1:1 and 1:N, a line a mode; then what a reader should know."""
    first = results[0]
    out.print(
        f"{first.name}: {first.faces:,} faces, {first.templates:,} templates; {first.reused:,} embeddings were there, "
        f"all are in {first.cache}",
        markup=False,
    )
    if first.verification is not None:
        one = first.verification
        fars = [f"{far:.0e}".replace("e-0", "e-") for far in one.tar_at_far]
        table = Table("1:1 TAR % at FAR", *fars, "AUC", "EER %", box=None)
        _numbers(table)
        for result in results:
            found, place = result.verification, ("modes", str(result.mode), "verification")
            assert found is not None
            table.add_row(
                str(result.mode),
                *(
                    _figure(tar, intervals.get((*place, "tar_at_far", f"{far:g}")))
                    for far, tar in found.tar_at_far.items()
                ),
                _figure(found.auc, intervals.get((*place, "auc")), places=4, percent=False),
                _figure(found.eer, intervals.get((*place, "eer"))),
            )
            table.add_row("  nearest FAR *", *(_figure(tar, None) for tar in found.tar_at_nearest_far.values()))
        print_table(table)
        out.print(
            f"over {one.genuine:,} genuine and {one.impostors:,} impostor pairs; * at the point of the curve whose FAR is nearest, "
            "as the published scripts print it",
            markup=False,
        )
    if first.search is not None:
        ranks, fpirs = first.search.mean["rank"], first.search.mean["tpir_at_fpir"]
        table = Table(
            "1:N, %",
            *(f"rank {rank}" for rank in ranks),
            *(f"TPIR@{fpir}" for fpir in fpirs),
            box=None,
            title_justify="left",
        )
        _numbers(table)
        for result in results:
            search, at = result.search, ("modes", str(result.mode), "search")
            assert search is not None
            table.add_row(
                f"{result.mode} mean",
                *(_figure(rate, intervals.get((*at, "rank", name))) for name, rate in search.mean["rank"].items()),
                *(
                    _figure(rate, intervals.get((*at, "tpir_at_fpir", name)))
                    for name, rate in search.mean["tpir_at_fpir"].items()
                ),
            )
            for name, gallery in search.galleries.items():
                rates = (*gallery.rank_rates.values(), *gallery.tpir_at_fpir.values())
                table.add_row(f"  {name}", *(_figure(rate, None) for rate in rates))
            if search.published is not None:
                rates = (*search.published.rank_rates.values(), *search.published.tpir_at_fpir.values())
                table.add_row("  joined, as published", *(_figure(rate, None) for rate in rates))
        print_table(table)
    for note in dict.fromkeys(note for result in results for note in result.notes):
        out.print(f"note: {note}", markup=False)


_PROTOCOLS: dict[str, Callable[[Request, OpenedModel], Outcome]] = {
    "held-out": _held_out,
    "pairs": _pairs,
    **dict.fromkeys(PAIR_SETS, _named_sets),
    "all-pairs": _all_pairs,
    "identify": _identify,
    "ijbb": _templates,
    "ijbc": _templates,
}


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="a run's folder; or files of evaluate --save, to set models side by side", metavar="RUN|RESULT..."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="page to write for results, .html or .md; default report.html", dir_okay=False),
    ] = None,
    pictures: Annotated[
        bool,
        typer.Option("--pictures", help="show faces of a run's hardest pairs; only for stores you may show"),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="overwrite a page of results that is there already")] = False,
) -> None:
    """Write a run's report.html anew, or a page that sets several models side by side."""
    if all(path.suffix == ".npz" for path in paths):
        from attfc.evaluation.report.compare import write_comparison_report
        from attfc.evaluation.results import read_result

        if pictures:
            raise UserError("--pictures is of a run's report: results hold no pictures")
        target, results = output or Path("report.html"), [read_result(path) for path in paths]
        if target.exists() and not force:
            raise UserError(f"{target} is there already: name another page with --output, or overwrite it with --force")
        write_comparison_report(target, results)
        out.print(str(target), markup=False, soft_wrap=True)
        return
    if len(paths) > 1 or output is not None:
        strange = next(path for path in paths if path.suffix != ".npz")
        raise UserError(
            f"{strange} is no result: models are set side by side from files of `attfc evaluate ... --save FILE.npz`; "
            "a run's own report goes into its folder: attfc report RUN"
        )
    from attfc.config import load_config
    from attfc.data import open_store
    from attfc.evaluation import write_report

    run, store = paths[0], None
    if pictures:
        config = load_config(str(run / "config.yaml"))
        if config.eval.root is None:
            raise UserError(
                f"{run} was not evaluated (eval.root is not set), so there are no pairs to picture: leave out --pictures"
            )
        store = open_store(config.eval.root, cache=config.eval.index_cache)
    was_there = (run / "report.html").exists()
    written = write_report(run, store=store, pictures=pictures)
    if was_there:  # it is made of the run's files and of nothing else, so no work is lost; it is said all the same
        err.print("note: the run's earlier report is replaced", markup=False)
    out.print(str(written), markup=False, soft_wrap=True)
