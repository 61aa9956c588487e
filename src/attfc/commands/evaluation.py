"""`attfc evaluate`, `report`: figures of a trained model on people it never saw.

Each protocol is a function of `PROTOCOLS`: it takes the opened model, the paths and the options, prints its figures and returns them for `--json`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from attfc.commands.common import (
    CacheOption,
    JsonOption,
    ModelIsOption,
    err,
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
            "lfw, cfp_fp, agedb_30, calfw, cplfw: NAME.bin of a folder, several joined by commas"
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
    model_is: ModelIsOption = None,
    cache: CacheOption = None,
    json_file: JsonOption = None,
) -> None:
    """Evaluate a trained model on identities it never saw."""
    run = _protocol(protocol)
    if thresholds not in (None, "grid", "exact"):
        raise UserError(f"--thresholds {thresholds} is unknown: use grid or exact")

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
    from attfc.data import open_store
    from attfc.evaluation import evaluate_store, read_pairs

    path = asked.one_path("an image folder, any other store, or a synthetic: spec")
    with progress_bar("index") as bar:
        store = open_store(path, cache=asked.cache, progress=bar)
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
    from attfc.data import open_store
    from attfc.evaluation import read_pairs
    from attfc.evaluation.verification import evaluate_pair_list

    path = asked.one_path("the folder of images that --pairs names")
    with progress_bar("index") as bar:
        store = open_store(path, cache=asked.cache, progress=bar)
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


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


_PROTOCOLS: dict[str, Callable[[Request], dict[str, Any]]] = {
    "held-out": _held_out,
    "pairs": _pairs,
    **dict.fromkeys(PAIR_SETS, _named_sets),
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
