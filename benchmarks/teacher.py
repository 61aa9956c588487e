"""What a teacher gives a smaller network, and whether a new network fits into an old gallery: `python benchmarks/teacher.py TRAIN VAL`.

Real faces, a folder per person; nobody of VAL is in TRAIN. Per seed, all with the same number of epochs, batches and images:
`small` (r6_tiny) and `large` (r10_tiny) alone; `small` with `large` as its teacher; and r10_tiny made to fit the gallery of `small`, in three ways.
`longer`: a teacher of 13 epochs. With --weights, `teacher.weight` is the one of these that is best for the first seed on people of TRAIN who are
kept aside (give eval.share); VAL has no part in it.
Each run has a folder under --work and is gone on with after an interruption; the figures are made when all are there. Intervals are by
identity; those over seeds are of the mean over seeds, the same people drawn for each. Images and weights stay under --work.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_result

from attfc.config import apply_overrides
from attfc.data import open_store
from attfc.evaluation import Embedder, evaluate_store
from attfc.evaluation.bootstrap import FigurePath, IdentityDraw, Interval, Resampled, interval_of_difference, resample
from attfc.evaluation.cross import WAYS, evaluate_cross
from attfc.export import load
from attfc.run.build import new_run
from attfc.run.data import open_data
from attfc.run.resuming import resume_run
from attfc.run.saved import saved_configuration, with_found_data

RESAMPLES = 500
RUNS: dict[str, list[str]] = {
    "small": ["backbone=r6_tiny"],
    "large": ["backbone=r10_tiny"],
    "small, taught": ["backbone=r6_tiny", "teacher=large"],
    "large, longer": ["backbone=r10_tiny", "schedule.epochs=13"],
    "small, taught longer": ["backbone=r6_tiny", "teacher=large, longer"],
    "new, fixed centers": [
        "backbone=r10_tiny",
        "head=attfc",
        "teacher=small",
        "teacher.centers=fixed",
        "teacher.loss=null",
    ],
    "new, fixed centers and cosine": ["backbone=r10_tiny", "head=attfc", "teacher=small", "teacher.centers=fixed"],
    "new, cosine": ["backbone=r10_tiny", "teacher=small"],
}
COMMON = [
    *("head=full_fc", "backbone.embedding_size=128", "batch_size=128", "optimizer.learning_rate=0.1", "margin=cosface"),
    *("margin.scale=32", "margin.margin=0.4", "schedule.warmup_epochs=0.5", "eval.root=null", "report.write=false"),
    *("log.tensorboard=false", "precision.amp=bfloat16", "device=cpu", "data.workers=0", "data.decoded_cache_mib=400"),
    *("checkpoint.every=100", "checkpoint.keep=1"),
]
HELD_OUT = (
    (("all_pairs",), ("tar_at_far", "0.01")),
    (("all_pairs",), ("person_balanced_tar_at_far", "0.01")),
    ((), ("rank_one",)),
)
AGAINST = {"small, taught": "small", "small, taught longer": "small"}
CROSS = ("tar_at_far", "0.01"), ("rank", "1"), ("tar_at_old_threshold",)


def train(name: str, seed: int, options: argparse.Namespace, weight: float | None = None) -> Path:
    """Train a run, or go on with it; return its folder."""
    place = options.work / f"seed{seed}" / name.replace(", ", "_").replace(" ", "_")
    place = place.with_name(place.name + ("" if weight is None else f"_{weight:g}"))
    folder = place / "run-001"
    model = folder / "model" / "model.safetensors"
    if model.is_file():
        return folder
    began = time.monotonic()
    if any(folder.glob("checkpoints/step_*")):
        run = resume_run(folder, [])
    else:
        asked = [*COMMON, f"schedule.epochs={options.epochs}", f"seed={seed}", *RUNS[name], *options.also]
        asked += [] if weight is None else [f"teacher.weight={weight:g}"]
        kept = [each for each in asked if not each.startswith("teacher=")]
        kept += [
            f"teacher={train(each.partition('=')[2], seed, options)}" for each in asked if each.startswith("teacher=")
        ]
        paths = [
            f"data.root={options.train}",
            f"output={place}",
            f"teacher.cache={options.work / 'cache'}",
            "threads=1",
        ]
        run = new_run(apply_overrides({}, [*kept, *paths], "of the benchmark"))
    if run.train().interrupted:
        raise SystemExit(f"{run.stopped}: start this script again to go on")
    print(f"{name}, seed {seed}: {run.trainer.total_steps} steps, {time.monotonic() - began:.0f} s", flush=True)
    return folder


def tune(name: str, options: argparse.Namespace) -> dict[float, float]:
    """Return for each teacher.weight the person-balanced TAR at FAR 1e-2 on people of the training set who were kept aside."""
    found = {}
    for weight in options.weights:
        folder = train(name, options.seeds[0], options, weight)
        kept_aside = open_data(with_found_data(saved_configuration(folder), folder)[0])[1]
        assert kept_aside is not None, "give eval.share=0.1"
        figures = evaluate_store(Embedder(load(folder).module), kept_aside).figures()
        found[weight] = figures["all_pairs"]["person_balanced_tar_at_far"]["0.01"]
        print(f"{name}, weight {weight:g}: {found[weight]:.4f}", flush=True)
    return found


def mean(several: list[Resampled]) -> Resampled:
    """Return the mean over seeds, the same people drawn for each."""

    def of(field: str) -> dict[FigurePath, Any]:
        return {path: np.mean([getattr(each, field)[path] for each in several], axis=0) for path in several[0].values}

    return replace(
        several[0],
        values={path: float(value) for path, value in of("values").items()},
        **{field: of(field) for field in ("by_identity", "by_pair")},
    )


def plain(interval: Interval) -> list[float | None]:
    """Return value, lower and upper bound."""
    return [interval.value, interval.low, interval.high]


def main() -> None:
    """Train what is missing, evaluate, write benchmarks/results/teacher.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("--work", type=Path, default=Path("teacher_runs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument(
        "--runs", nargs="+", choices=RUNS, default=list(RUNS), help="those that the figures are made of"
    )
    parser.add_argument("--weights", type=float, nargs="+", help="values of teacher.weight to choose from")
    parser.add_argument("--output", default="teacher", help="name of the JSON")
    parser.add_argument("also", nargs="*", help="options of all runs, such as backbone.image_size=40")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tuned = {name: tune(name, options) for name in options.runs if name in AGAINST} if options.weights else {}
    best = {name: max(found, key=found.__getitem__) for name, found in tuned.items()}
    folders = {
        (name, seed): train(name, seed, options, best.get(name)) for name in options.runs for seed in options.seeds
    }
    store = open_store(str(options.val))
    embedders = {key: Embedder(load(folder).module) for key, folder in folders.items()}

    def held_out(name: str) -> dict[FigurePath, Resampled]:
        found: dict[FigurePath, list[Resampled]] = {}
        for seed in options.seeds:
            samples = evaluate_store(embedders[name, seed], store, spare=2.0).samples()
            for place, path in HELD_OUT:
                for sample in samples[place]:
                    if path in sample.figures(IdentityDraw(np.ones(sample.identities))):
                        drawn = resample(sample, RESAMPLES)
                        found.setdefault((*place, *path), []).append(replace(drawn, values={path: drawn.values[path]}))
        return {place: [mean(several), *several] for place, several in found.items()}

    alone = {name: held_out(name) for name in options.runs}
    rows = []
    for name in options.runs:
        figures = {}
        for place, (over_seeds, *each) in alone[name].items():
            (path,) = over_seeds.values
            other = AGAINST.get(name, next(each for each in options.runs if each.startswith("large")))
            against, *its = alone[other][place]
            figures[" ".join(place)] = {
                "mean": plain(over_seeds.interval(path)),
                "seeds": [drawn.values[path] for drawn in each],
                "against": other,
                "difference": plain(interval_of_difference(over_seeds, against, path)),
                "differences": [plain(interval_of_difference(a, b, path)) for a, b in zip(each, its, strict=True)],
            }
        rows.append({"run": name, "options": RUNS[name], "figures": figures, "tuned": tuned.get(name)})
    crossed = []
    for name in [name for name in options.runs if name.startswith("new") or name == "large"]:
        several = [evaluate_cross(embedders[name, seed], embedders["small", seed], store) for seed in options.seeds]
        drawn = [each.resampled(RESAMPLES, 0.95, 0) for each in several]
        entry: dict[str, Any] = {"run": name, "old": "small", "figures": {}, "far_at_old_threshold": {}}
        for way in WAYS:
            entry["far_at_old_threshold"][way] = [each.far_at_threshold[way] for each in several]
            for path in CROSS:
                over_seeds, old = (mean([each[one][path] for each in drawn]) for one in (way, "old x old"))
                entry["figures"].setdefault(" ".join(path), {})[way] = {
                    "mean": plain(over_seeds.interval(path)),
                    "seeds": [each[way][path].values[path] for each in drawn],
                    "minus old x old": plain(interval_of_difference(over_seeds, old, path)),
                    "minus old x old, seeds": [
                        plain(interval_of_difference(each[way][path], each["old x old"][path], path)) for each in drawn
                    ],
                }
        crossed.append(entry)
    config = {
        **{"epochs": options.epochs, "seeds": options.seeds, "common": COMMON, "also": options.also},
        **{"train": options.train.name, "val": options.val.name, "people": len(store.identities), "images": len(store)},
        "resamples": RESAMPLES,
    }
    print(write_result(options.output, config, {"alone": rows, "cross": crossed}))
    print(json.dumps(crossed, indent=1))


if __name__ == "__main__":
    main()
