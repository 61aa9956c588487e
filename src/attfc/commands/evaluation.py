"""`attfc evaluate`, `report`: figures of a trained model on people it never saw."""

from pathlib import Path
from typing import Annotated

import typer

from attfc.commands.common import CacheOption, JsonOption, out, print_figures, progress_bar, write_json
from attfc.errors import UserError

__all__ = ["evaluate", "report"]


def evaluate(
    model: Annotated[Path, typer.Argument(help="a run's folder, or a folder with model.safetensors and config.json")],
    protocol: Annotated[str, typer.Argument(help="held-out: pairs, all pairs and rank-1 of a store")],
    path: Annotated[str, typer.Argument(help="image folder or synthetic: spec of people never trained on")],
    pairs: Annotated[Path | None, typer.Option(help="pairs file in the LFW form; default: generated pairs")] = None,
    generated_pairs: Annotated[int, typer.Option(min=4)] = 6000,
    seed: Annotated[int, typer.Option(help="of the generated pairs")] = 0,
    device: Annotated[str, typer.Option()] = "auto",
    cache: CacheOption = None,
    json_file: JsonOption = None,
) -> None:
    """Evaluate a trained model on identities it never saw."""
    from attfc.build import choose_device
    from attfc.data import open_store
    from attfc.evaluation import evaluate_store, read_pairs
    from attfc.training.model_files import load_model

    if protocol != "held-out":
        raise UserError(f"unknown protocol {protocol!r}: this version has held-out")
    folder = model / "model" if (model / "model").is_dir() else model
    backbone, _ = load_model(folder)
    with progress_bar("index") as bar:
        store = open_store(path, cache=cache, progress=bar)
    result = evaluate_store(
        backbone.to(choose_device(device)),
        store,
        pairs=read_pairs(pairs, store) if pairs is not None else None,
        generated_pairs=generated_pairs,
        seed=seed,
    )
    figures = result.figures()
    print_figures(figures)
    write_json(json_file, {"model": str(folder), "store": path, "pairs": str(pairs) if pairs else None, **figures})


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
