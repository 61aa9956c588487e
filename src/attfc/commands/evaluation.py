"""`attfc evaluate`, `report`: figures of a trained model on people it never saw.

Each protocol is a function of `PROTOCOLS`: it takes the opened model, the paths and the options, prints its figures and returns them for `--json`.
"""

from collections.abc import Callable
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
    open_with_bar,
    out,
    print_figures,
    progress_bar,
    write_json,
)
from attfc.errors import UserError, nearest

if TYPE_CHECKING:
    import torch
    from torch import nn

    from attfc.deploy import ModelFacts
    from attfc.evaluation import AllPairsEvaluation
    from attfc.evaluation.templates import TemplateEvaluation
    from attfc.evaluation.verification import PairEvaluation

__all__ = ["evaluate", "report"]

PAIR_SETS = ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw")


@dataclass(frozen=True)
class Request:
    """What the user asked for, beside the protocol: the opened model and the options, for the protocol to take what it needs."""

    model: "nn.Module"
    facts: "ModelFacts"
    device: "torch.device"
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
    budget_gib: float

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
            "ijbb, ijbc: the released folder with loose_crop and meta"
        ),
    ],
    paths: Annotated[
        list[str], typer.Argument(help="the data of the protocol: store, .bin files, folder", metavar="PATH...")
    ],
    pairs: Annotated[Path | None, typer.Option(help="pairs file in the LFW form; default: generated pairs")] = None,
    generated_pairs: Annotated[int, typer.Option(min=4, help="how many, where no pairs are given")] = 6000,
    seed: Annotated[int, typer.Option(help="of the generated pairs")] = 0,
    thresholds: Annotated[
        str | None,
        typer.Option(help="of the accuracy: grid (as published; default for pairs) or exact (default for held-out)"),
    ] = None,
    broken_limit: Annotated[
        float, typer.Option(min=0, max=1, help="largest share of unusable images that is counted, not refused")
    ] = 0.01,
    batch_size: Annotated[int, typer.Option(min=1, help="images in a forward pass")] = 256,
    workers: Annotated[int, typer.Option(min=0, help="processes that read, decode and align; 0: this one")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    mode: Annotated[
        str,
        typer.Option(
            help="of ijbb and ijbc: N1 keeps the embeddings' length, N0 not; D1 weighs by detector score; F1 adds the mirror image; "
            "several joined by commas, or all"
        ),
    ] = "N1D1F1",
    embeddings: Annotated[
        Path | None,
        typer.Option(
            help="folder where ijbb and ijbc keep embeddings for the next time; default attfc/embeddings in the user's cache",
            file_okay=False,
        ),
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            help="of all-pairs: file with a line an identity, name<TAB>group; figures within each group too",
            dir_okay=False,
        ),
    ] = None,
    budget_gib: Annotated[
        float, typer.Option(min=0, help="of all-pairs: memory for a copy of the embeddings and the scores kept, GiB")
    ] = 4.0,
    model_is: ModelIsOption = None,
    cache: CacheOption = None,
    json_file: JsonOption = None,
) -> None:
    """Evaluate a trained model on identities it never saw."""
    run = _protocol(protocol)
    if thresholds not in (None, "grid", "exact"):
        raise UserError(f"--thresholds {thresholds} is unknown: use grid or exact")
    if groups is not None and run is not _all_pairs:
        raise UserError(f"--groups is of the protocol all-pairs: leave it out of {protocol}")

    from attfc.build import choose_device
    from attfc.deploy import open_model
    from attfc.deploy.model_inputs import read_statements

    on = choose_device(device)
    module, facts = open_model(model, read_statements(model_is or []), device=on.type)
    for note in facts.notes:
        err.print(f"note: {note}", markup=False)
    figures = run(
        Request(
            model=module.to(on),
            facts=facts,
            device=on,
            protocol=protocol,
            paths=tuple(paths),
            pairs=pairs,
            generated_pairs=generated_pairs,
            seed=seed,
            thresholds=thresholds,  # type: ignore[arg-type]
            broken_limit=broken_limit,
            batch_size=batch_size,
            workers=workers,
            cache=cache,
            mode=mode,
            embeddings=embeddings,
            groups=groups,
            budget_gib=budget_gib,
        )
    )
    write_json(json_file, {"model": str(facts.path), "protocol": protocol, "paths": list(paths), **figures})


def _protocol(name: str) -> Callable[[Request], dict[str, Any]]:
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


def _held_out(asked: Request) -> dict[str, Any]:
    from attfc.evaluation import evaluate_store, read_pairs

    path = asked.one_path("an image folder, any other store, or a synthetic: spec")
    store = open_with_bar(path, cache=asked.cache)
    result = evaluate_store(
        asked.model,
        store,
        pairs=read_pairs(asked.pairs, store) if asked.pairs is not None else None,
        generated_pairs=asked.generated_pairs,
        seed=asked.seed,
        thresholds=asked.thresholds or "exact",
        batch_size=asked.batch_size,
        workers=asked.workers,
        device=asked.device,
    )
    figures = result.figures()
    print_figures(figures)
    return {"store": path, "pairs_file": str(asked.pairs) if asked.pairs else None, **figures}


def _pairs(asked: Request) -> dict[str, Any]:
    if asked.pairs is not None:
        return _pairs_of_store(asked)
    from attfc.evaluation.verification import find_sets

    files: list[Path] = []
    for path in map(Path, asked.paths):
        if path.is_dir():
            files += find_sets(path)
        elif path.suffix == ".bin":
            files.append(path)
        else:
            raise UserError(f"{path} is no .bin file and no folder of them: for a store of images add --pairs FILE")
    return _sets(asked, files)


def _named_sets(asked: Request) -> dict[str, Any]:
    from attfc.evaluation.verification import find_sets

    if asked.pairs is not None:
        raise UserError(f"{asked.protocol} brings its own pairs: leave out --pairs, or use the protocol pairs")
    folder = Path(asked.one_path("the folder that holds NAME.bin"))
    return _sets(asked, find_sets(folder, asked.protocol.split(",")))


def _sets(asked: Request, files: list[Path]) -> dict[str, Any]:
    from attfc.data.verification_sets import read_verification_set
    from attfc.evaluation.verification import evaluate_pair_list, pairs_of_set

    results: list[PairEvaluation] = []
    for file in files:
        verification_set = read_verification_set(file)
        if any(result.name == verification_set.name for result in results):
            raise UserError(f"{file}: a second set named {verification_set.name}: evaluate it in a run of its own")
        with progress_bar(verification_set.name) as bar:
            results.append(
                evaluate_pair_list(
                    asked.model,
                    verification_set,
                    pairs_of_set(verification_set),
                    thresholds=asked.thresholds or "grid",
                    broken_limit=asked.broken_limit,
                    batch_size=asked.batch_size,
                    workers=asked.workers,
                    device=asked.device,
                    progress=bar,
                )
            )
    return _print_pairs(asked, results)


def _pairs_of_store(asked: Request) -> dict[str, Any]:
    from attfc.evaluation import read_pairs
    from attfc.evaluation.verification import evaluate_pair_list

    path = asked.one_path("the folder of images that --pairs names")
    store = open_with_bar(path, cache=asked.cache)
    assert asked.pairs is not None
    pairs = read_pairs(asked.pairs, store)
    with progress_bar(store.name) as bar:
        result = evaluate_pair_list(
            asked.model,
            store,
            pairs,
            thresholds=asked.thresholds or "grid",
            broken_limit=asked.broken_limit,
            batch_size=asked.batch_size,
            workers=asked.workers,
            device=asked.device,
            progress=bar,
        )
    return _print_pairs(asked, [result])


def _print_pairs(asked: Request, results: "list[PairEvaluation]") -> dict[str, Any]:
    """One line a set; notes below, since a figure with skipped pairs is not that of the whole set."""
    table = Table("set", "pairs", "accuracy", "± std", "AUC", "EER", "TAR@1e-3", "TAR@1e-2", "skipped", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for result in results:
        scores = result.scores
        table.add_row(
            result.name,
            f"{len(result.pairs):,}",
            f"{100 * scores.accuracy:.2f} %",
            f"{100 * scores.std:.2f}",
            f"{scores.auc:.4f}",
            f"{100 * scores.eer:.2f} %",
            _percent(scores.tar_at_far.get(1e-3)),
            _percent(scores.tar_at_far.get(1e-2)),
            str(result.skipped_pairs),
        )
    out.print(table)
    concerned: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            concerned.setdefault(note, []).append(result.name)
    for note, names in concerned.items():
        out.print(f"{', '.join(names)}: {note}", markup=False)
    return {
        "thresholds": asked.thresholds or "grid",
        "pairs_file": str(asked.pairs) if asked.pairs else None,
        "sets": {result.name: result.figures() for result in results},
    }


def _all_pairs(asked: Request) -> dict[str, Any]:
    from attfc.evaluation import evaluate_all_pairs, read_groups

    if asked.pairs is not None:
        raise UserError("all-pairs scores every pair of images: leave out --pairs")
    path = asked.one_path("an image folder, any other store, or a synthetic: spec")
    store = open_with_bar(path, cache=asked.cache)
    groups = read_groups(asked.groups, store) if asked.groups is not None else None
    with progress_bar("faces, then pairs") as bar:
        result = evaluate_all_pairs(
            asked.model,
            store,
            groups=groups,
            budget=int(asked.budget_gib * 2**30),
            broken_limit=asked.broken_limit,
            batch_size=asked.batch_size,
            workers=asked.workers,
            device=asked.device,
            progress=bar,
        )
    _print_all_pairs(result)
    return {"store": path, "groups_file": str(asked.groups) if asked.groups else None, **result.figures()}


def _print_all_pairs(result: "AllPairsEvaluation") -> None:
    """One line for everyone and one a group; rates of few pairs say so by their counts."""
    fars = sorted(result.everyone.tar_at_far)
    table = Table(
        "TAR at FAR", *(f"{far:g}" for far in fars), "images", "identities", "genuine pairs", "impostor pairs", box=None
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, found in {
        result.name: result.everyone,
        **{f"  {name}": found for name, found in result.groups.items()},
    }.items():
        counts = (found.images, found.identities, len(found.genuine_scores), found.impostor_pairs)
        table.add_row(
            Text(name), *(_percent(found.tar_at_far[far]) for far in fars), *(f"{count:,}" for count in counts)
        )
    out.print(table)
    for note in result.notes:
        out.print(f"note: {note}", markup=False)


def _templates(asked: Request) -> dict[str, Any]:
    from attfc.evaluation.embedding_cache import CacheKey, default_cache, model_digest
    from attfc.evaluation.template_lists import read_template_lists
    from attfc.evaluation.templates import TemplateMode, evaluate_templates

    if asked.pairs is not None:
        raise UserError(f"{asked.protocol} brings its own pairs: leave out --pairs")
    modes = (
        TemplateMode.all()
        if asked.mode.lower() == "all"
        else tuple(dict.fromkeys(TemplateMode.parse(text) for text in asked.mode.split(",")))
    )
    with progress_bar("pairs") as bar:
        lists = read_template_lists(asked.one_path("the folder with loose_crop and meta"), asked.protocol, bar)
    key = CacheKey(asked.facts.network, asked.facts.colours, sorted(asked.facts.options.items()))
    if asked.facts.kind == "ONNX":
        key.add("file", _digest_of(asked.facts.path))
    else:
        key.add("weights", model_digest(asked.model).encode())
    cache = asked.embeddings or default_cache()
    with progress_bar("faces") as bar:
        results = evaluate_templates(
            asked.model,
            lists,
            cache,
            modes,
            broken_limit=asked.broken_limit,
            model_key=key.digest,
            batch_size=asked.batch_size,
            workers=asked.workers,
            device=asked.device,
            progress=bar,
        )
    _print_templates(results)
    return {"modes": {str(result.mode): result.figures() for result in results}, "embeddings": str(results[0].cache)}


def _digest_of(path: Path) -> bytes:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def _print_templates(results: "tuple[TemplateEvaluation, ...]") -> None:
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
        for column in table.columns:
            column.no_wrap = True
            column.justify = "right" if column is not table.columns[0] else "left"
        for result in results:
            found = result.verification
            assert found is not None
            table.add_row(
                str(result.mode), *map(_bare, found.tar_at_far.values()), f"{found.auc:.4f}", _bare(found.eer)
            )
            table.add_row("  nearest FAR *", *map(_bare, found.tar_at_nearest_far.values()))
        out.print(table)
        out.print(
            f"over {one.genuine:,} genuine and {one.impostors:,} impostor pairs; * at the point of the curve whose FAR is nearest, "
            "as the published scripts print it",
            markup=False,
        )
    if first.search is not None:
        ranks, fpirs = first.search.mean["rank"], first.search.mean["tpir_at_fpir"]
        table = Table(
            "1:N",
            *(f"rank {rank}" for rank in ranks),
            *(f"TPIR@{fpir}" for fpir in fpirs),
            box=None,
            title_justify="left",
        )
        for column in table.columns[1:]:
            column.justify = "right"
        for result in results:
            search = result.search
            assert search is not None
            table.add_row(
                f"{result.mode} mean",
                *map(_percent, (*search.mean["rank"].values(), *search.mean["tpir_at_fpir"].values())),
            )
            for name, gallery in search.galleries.items():
                table.add_row(
                    f"  {name}", *map(_percent, (*gallery.rank_rates.values(), *gallery.tpir_at_fpir.values()))
                )
            if search.published is not None:
                joined = search.published
                table.add_row(
                    "  joined, as published",
                    *map(_percent, (*joined.rank_rates.values(), *joined.tpir_at_fpir.values())),
                )
        out.print(table)
    for note in dict.fromkeys(note for result in results for note in result.notes):
        out.print(f"note: {note}", markup=False)


def _bare(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


_PROTOCOLS: dict[str, Callable[[Request], dict[str, Any]]] = {
    "held-out": _held_out,
    "pairs": _pairs,
    **dict.fromkeys(PAIR_SETS, _named_sets),
    "all-pairs": _all_pairs,
    "ijbb": _templates,
    "ijbc": _templates,
}


def report(
    run: Annotated[Path, typer.Argument(help="a run's folder")],
    pictures: Annotated[
        bool, typer.Option("--pictures", help="embed faces of the hardest pairs; only for stores you may show")
    ] = False,
) -> None:
    """Write a run's report.html anew."""
    from attfc.config import load_config
    from attfc.data import open_store
    from attfc.evaluation import write_report

    store = None
    if pictures:
        config = load_config(str(run / "config.yaml"))
        if config.eval.root is None:
            raise UserError(
                f"{run} was not evaluated (eval.root is not set), so there are no pairs to picture: leave out --pictures"
            )
        store = open_store(config.eval.root, cache=config.eval.index_cache)
    out.print(str(write_report(run, store=store, pictures=pictures)), markup=False)
