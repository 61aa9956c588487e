"""Fine-tuning on 1,000 people of another style, in eight ways: what is gained on their like, what is lost on everybody.

Everybody: `synthetic:` faces, 3,000 people to learn the first model from (Partial FC) and 400 others to judge on. The other style: the same renderer,
grey, darker, noisier, with wider poses, as an infrared camera at a door: 1,000 people to fine-tune on, 200 others to judge on. All ways see the same
images equally often, but for `scratch, 4 x`. A second part goes on with the fine-tuned model on the same people, from AttFC to the full FC, with the
centers of the first stage and with new ones.

    python benchmarks/finetune.py --work FOLDER [--seeds 0 1 2] [--minutes 14] [--faces SOURCES]

With --faces, real faces in four of the ways: SOURCES has list files of two collections, web.lst and lfw.lst, and val.lst of other people of the
second. The first model learns from three quarters of the people of the first, is fine-tuned on the second, and is judged on val.lst and on the fourth
kept aside.

Cells that are in FOLDER are not computed again, and after --minutes the script leaves: call it until it says that all are there; then it writes
results/finetune.json, or finetune_faces.json. One thread.
"""

import argparse
import functools
import json
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import median_seconds_each, write_result
from teacher import mean

import attfc
from attfc.config import load_config
from attfc.data import SyntheticFaces, open_store
from attfc.data.images import encode_image
from attfc.evaluation import Embedder, evaluate_store
from attfc.evaluation.bootstrap import Resampled, interval_of_difference, resample
from attfc.evaluation.results import EvaluationResult, read_result, save_result
from attfc.run.components import build_backbone, build_head, build_pair, optimizer_of
from attfc.synthetic.face_parameters import identity_keys, identity_traits, sample_conditions, sample_keys
from attfc.synthetic.face_renderer import render_faces
from attfc.training.step import Inputs, TrainStep

FIRST = "synthetic:identities=3000,images=10,seed=1"
FIRST_EPOCHS, EPOCHS, STAGE_EPOCHS = 8, 3, 2
FIGURE, OF_FACES = ("all_pairs", "tar_at_far", "0.001"), ("all_pairs", "tar_at_far", "0.01")
ON_FACES = ("fine-tuned", "scratch", "BatchNorm kept", "scratch, 4 x the epochs")
COMMON = ["device=cpu", "threads=1", "precision.amp=none", "data.workers=0", "data.decoded_cache_mib=2000"]
COMMON += ["log.tensorboard=false", "report.write=false", "backbone=r6_tiny", "batch_size=128", "checkpoint.every=0"]
ADAPTED = "finetune.batch_norm=adapted"
WAYS: dict[str, tuple[str, ...]] = {
    "fine-tuned": (ADAPTED,),
    "scratch": ("lr=0.1",),
    "trunk frozen": ("finetune.trunk_rate=0", ADAPTED),
    "BatchNorm kept": ("finetune.batch_norm=kept",),
    "trunk at a tenth of the rate": ("finetune.trunk_rate=0.1", ADAPTED),
    "trunk frozen, BatchNorm kept": ("finetune.trunk_rate=0", "finetune.batch_norm=kept"),
    "ten times the rate": ("lr=0.1", ADAPTED),
    "scratch, 4 x the epochs": ("lr=0.1", f"epochs={4 * EPOCHS}"),
}
TRUNKS = {"trained": (), "frozen": ("finetune.trunk_rate=0",)}
STAGES = {"centers of the first stage": "by_name", "new centers": "fresh"}


class Data(NamedTuple):
    """What the first model learns from, what it is fine-tuned on, and two sets of other people: like the latter, like the first."""

    first: str
    people: str
    here: str
    there: str


class AnotherStyle(SyntheticFaces):
    """The renderer's people before an infrared camera."""

    def _encoded(self, labels_N: Any, samples_N: Any) -> list[bytes]:
        keys = identity_keys(self.seed, labels_N + self.first_identity)
        traits = identity_traits(keys)
        c = sample_conditions(sample_keys(keys, samples_N), traits)
        other = c._replace(saturation=0 * c.saturation, brightness=0.6 * c.brightness, noise=3 * c.noise + 0.02)
        pixels = render_faces(traits, other._replace(yaw=1.4 * c.yaw, pitch=1.4 * c.pitch, light_x=1.6 * c.light_x))
        return [
            encode_image(image, "JPEG", quality=int(quality)) for image, quality in zip(pixels, c.quality, strict=True)
        ]


def draw(folder: Path, faces: SyntheticFaces) -> None:
    """Write faces into a folder, once."""
    if (folder / "done").exists():
        return
    for label in range(len(faces.identities)):
        home = folder / "faces" / f"{folder.name} {label:05d}"
        home.mkdir(parents=True, exist_ok=True)
        for number, position in enumerate(faces.identities.of(label).tolist()):
            (home / f"{number}.jpg").write_bytes(faces.read(position)[0])
    (folder / "done").touch()


def split_faces(work: Path, sources: Path) -> Data:
    """Write the people of the first collection into two lists, three quarters and one, and return what is trained and judged on."""
    lines = (sources / "web.lst").read_text().splitlines(keepends=True)
    people = sorted({line.split("\t")[1] for line in lines})
    for name, aside in (("first", False), ("everybody", True)):
        chosen = [line for line in lines if (people.index(line.split("\t")[1]) % 4 == 0) == aside]
        (work / f"{name}.lst").write_text("".join(chosen))
    return Data(
        str(work / "first.lst"), str(sources / "lfw.lst"), str(sources / "val.lst"), str(work / "everybody.lst")
    )


def judge(model: Path, sets: dict[str, str], cell: Path) -> None:
    """Evaluate a model on sets, and keep figures and scores."""
    backbone = attfc.load(model, device="cpu").module
    for where, root in sets.items():
        store = open_store(root)
        found = evaluate_store(Embedder(backbone), store, spare=2.0, generated_pairs=3000)
        result = EvaluationResult(model.name, "held-out", (root,), found.figures(), found.samples(2**16))
        save_result(cell / f"{where}.npz", result)


def carry_out(cell: Path, data: str, sets: dict[str, str], options: list[str]) -> None:
    """Train and judge a cell, if it is not there."""
    cell.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    run = attfc.train(data, *COMMON, f"output={cell}", *options)
    took = time.perf_counter() - started
    judge(run.folder, sets, cell)
    record = {"options": options, "folder": str(run.folder), "steps": run.trainer.total_steps, "seconds": took}
    record |= {"train_seconds": run.trainer._clock.seconds, "notes": run.notes, "against_start": run.against_start}
    (cell / "cell.json").write_text(json.dumps(record))


def cells(
    work: Path, seeds: list[int], data: Data, ways: Collection[str]
) -> list[tuple[Path, str, dict[str, str], list[str]]]:
    """Return every cell: its folder, training data, sets to judge on, options; seed by seed."""
    _, people, here, there = data
    base = [f"epochs={FIRST_EPOCHS}", "lr=0.1", "head=partial_fc", "eval.share=0", "eval.root=null", "name=base"]
    both = {"here": here, "there": there}
    found = [(work / "cells" / "base", data.first, both, base)]
    start = f"start_from={work / 'cells' / 'base' / 'base-001'}"
    for seed in seeds:
        common = [f"seed={seed}", f"eval.root={here}", "eval.generated_pairs=3000", "eval.look_alikes=0", "name=run"]
        for name in ways:
            options = WAYS[name]
            begins = [] if name.startswith("scratch") else [start, f"eval.also={there}"]
            epochs = [] if any(option.startswith("epochs=") for option in options) else [f"epochs={EPOCHS}"]
            cell = work / "cells" / f"{name}, seed {seed}"
            found.append((cell, people, both, [*common, *begins, *epochs, *options]))
        first = f"start_from={work / 'cells' / f'fine-tuned, seed {seed}' / 'run-001'}"
        for name, rows in STAGES.items() if len(ways) == len(WAYS) else ():
            cell = work / "cells" / f"{name}, seed {seed}"
            options = [*common, first, "head=full_fc", f"epochs={STAGE_EPOCHS}", f"finetune.rows={rows}", ADAPTED]
            found.append((cell, people, both, options))
    return found


def cost(batch: int = 128) -> list[dict[str, Any]]:
    """Return processor time of a step and the memory that it keeps for backward: full FC on r10_tiny, three trunks in turns."""
    images, labels = torch.randn(batch, 3, 56, 56), torch.randint(1000, (batch,))
    steps: dict[str, TrainStep] = {}
    kept = dict.fromkeys(TRUNKS, 0.0)
    for name, options in TRUNKS.items():
        config = load_config("demo", ["head=full_fc", "backbone=r10_tiny", *options])
        pair, head = build_pair(config, build_backbone(config), 0), build_head(config, 1000)
        steps[name] = TrainStep(pair.train(), head, optimizer_of(config, pair, head))
        weights = {each.data_ptr() for module in (pair, head) for each in module.parameters()}

        def keep(tensor: torch.Tensor, name: str = name, weights: set[int] = weights) -> torch.Tensor:
            kept[name] += 0 if tensor.data_ptr() in weights else tensor.nbytes / 2**20
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            steps[name].loss(Inputs(images, labels))
    calls = {name: functools.partial(step, [Inputs(images, labels)]) for name, step in steps.items()}
    seconds = median_seconds_each(calls, repeats=7, clock=time.process_time)
    return [{"trunk": name, "step_seconds": seconds[name], "kept_mib": kept[name]} for name in TRUNKS]


@functools.cache
def resampled(file: Path, figure: tuple[str, ...]) -> Resampled:
    """Return an all-pairs figure of a cell, the people drawn again 400 times; the same people for every cell."""
    drawn = resample(read_result(file).samples[figure[:1]][0], 400)
    return replace(drawn, values={figure[1:]: drawn.values[figure[1:]]})


def summary(
    work: Path, name: str, against: str, where: str, seeds: list[int], figure: tuple[str, ...]
) -> dict[str, Any]:
    """Return the figure of a way on a set, and its difference to another way: of each seed, and of the mean over seeds."""
    mine, theirs = (
        [
            resampled(work / "cells" / (each if each == "base" else f"{each}, seed {seed}") / f"{where}.npz", figure)
            for seed in seeds
        ]
        for each in (name, against)
    )
    path = figure[1:]
    pairs = [(mean(mine), mean(theirs)), *zip(mine, theirs, strict=True)]
    difference, *each = (interval_of_difference(one, other, path) for one, other in pairs)
    return {
        "tar": [one.values[path] for one in mine],
        "mean": pairs[0][0].values[path],
        "difference": difference.value,
        "interval": [difference.low, difference.high],
        "differences": [[one.value, one.low, one.high] for one in each],
    }


def main() -> None:
    """Compute what is missing, and write the result once nothing is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--faces", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    work, ends = asked.work.resolve(), time.monotonic() + 60 * asked.minutes
    ways, figure = (tuple(WAYS), FIGURE) if asked.faces is None else (ON_FACES, OF_FACES)
    if asked.faces is None:
        draw(work / "people", AnotherStyle(1000, 8, seed=3))
        draw(work / "others", AnotherStyle(200, 8, seed=3, first_identity=5000))
        draw(work / "everybody", SyntheticFaces(400, 6, seed=2))
        data = Data(FIRST, *(str(work / name / "faces") for name in ("people", "others", "everybody")))
    else:
        work.mkdir(parents=True, exist_ok=True)
        data = split_faces(work, asked.faces)
    todo = [each for each in cells(work, asked.seeds, data, ways) if not (each[0] / "cell.json").exists()]
    for number, cell in enumerate(todo):
        if time.monotonic() > ends:
            print(f"{len(todo) - number} cells are missing: call it again")
            return
        carry_out(*cell)
    rows: list[dict[str, Any]] = []
    for name in ("base", *ways):
        record = json.loads(
            (work / "cells" / (name if name == "base" else f"{name}, seed 0") / "cell.json").read_text()
        )
        row = {"name": name, "options": record["options"][-2:], "steps": record["steps"]}
        row["train_seconds"] = record["train_seconds"]
        row |= {where: summary(work, name, "base", where, asked.seeds, figure) for where in ("here", "there")}
        row["here against scratch"] = summary(work, name, "scratch", "here", asked.seeds, figure)
        row["said"] = [line for each in record["against_start"].get("sets", []) for line in each["lines"]]
        rows.append(row)
    config = {"seeds": asked.seeds, "first": Path(data.first).name, "epochs": EPOCHS, "figure": list(figure)}
    if asked.faces is not None:
        print(write_result("finetune_faces", config, {"ways": rows}))
        return
    stages = [
        {"name": name}
        | {where: summary(work, name, "fine-tuned", where, asked.seeds, figure) for where in ("here", "there")}
        for name in STAGES
    ]
    print(write_result("finetune", config, {"ways": rows, "stages": stages, "cost": cost()}))


if __name__ == "__main__":
    main()
