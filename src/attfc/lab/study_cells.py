"""One cell of a study: a head with its options, trained once in one world; figures on people it never saw.

A variant is a list of overrides of `attfc train` in every world, so what wins can be typed. `run_vectors` trains an encoder of vectors in this
process with the product's own heads, key encoder, stream, optimizer and schedule; only the store and the trainer's housekeeping are left out.
`run_faces` calls `attfc train` itself. Both return the same record: configuration, curve, figures, seconds of training (evaluation left
out), peak memory. Call each cell in a process of its own, or peaks of one are those of another.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from attfc.config import RunConfig, load_config
from attfc.data.index import IdentityIndex
from attfc.data.sampling.query_stream import Queries, QueryStream, queries_of
from attfc.data.stores.store import Store
from attfc.errors import UserError
from attfc.evaluation.embed import embed_store
from attfc.evaluation.protocols.all_pairs_scores import AllPairs, score_all_pairs
from attfc.evaluation.protocols.search import RankOne, rank_one
from attfc.export.hub_folder import from_pretrained
from attfc.heads import Head
from attfc.lab.head_cell import ResidentPeak, warm_up
from attfc.lab.study_people import figures_of, people_of
from attfc.lab.vectors import VectorEncoder, VectorWorld
from attfc.machine import environment
from attfc.run.components import build_backbone, build_head, build_pair, optimizer_of, schedule_of
from attfc.run.data import open_held_out, open_training_data
from attfc.run.resolved import identity_share, queries_in_a_row
from attfc.training.step import Inputs, TrainStep, head_alone
from attfc.typing import Int64, Json

__all__ = ["evaluate_faces", "evaluate_vectors", "run_faces", "run_vectors"]

FARS, FACE_FARS = (1e-3, 1e-4, 1e-5), (1e-2, 1e-3, 1e-4)


def run_vectors(
    world: VectorWorld,
    preset: str,
    overrides: list[str],
    seed: int,
    width: int = 256,
    points: int = 8,
    order: Callable[[IdentityIndex, Head], Queries] | None = None,
) -> Json:
    """Train once in the vector world.

    Args:
        world: the training set and the people kept aside.
        preset, overrides: as for `attfc train`; sections about images, devices and files are not looked at.
        seed: of the encoder's weights, the stream and the head.
        width: of the encoder's hidden layers.
        points: evaluations on the validation people, spread evenly over the steps.
        order: makes the order of samples of the training set and the head; default: what the configuration says.

    Returns:
        "config", "steps", "seconds" of training, "samples_per_second", "curve" [{step, seconds, loss, tar_at_far/..}], "figures"
        {"validation": ..., "test": ...}, "people" {"test": `people_of`}, "head_bytes", "peak_bytes", or "failed": why, with what came before.
    """
    config = load_config(preset, [*overrides, f"seed={seed}"])
    index = world.labelled()
    warm_up(torch.device("cpu"))
    torch.manual_seed(seed)
    meter = ResidentPeak()
    head = build_head(config, len(index), images=index.images, image_counts=index.counts())
    pair = build_pair(config, VectorEncoder(world.size, config.backbone.embedding_size, width), head.keys_per_query)
    stream = _stream(config, index, head, seed, order(index, head) if order else None)
    optimizer = optimizer_of(config, pair, head)
    schedule, steps = schedule_of(config, optimizer, stream.epoch_length)
    take_step = TrainStep(
        pair, head, optimizer, lambda numbers_B: _observed(world, stream, numbers_B), clip=config.optimizer.clip
    )
    record: Json = {
        "config": config.model_dump(mode="json"),
        "identities": len(index),
        "images": index.images,
    }
    curve: list[dict[str, float]] = []
    seconds, losses, since = 0.0, 0.0, 0
    images = config.batch_size * config.optimizer.accumulation
    stops = {round(steps * (number + 1) / points) for number in range(points)}
    pair.train()
    for step in range(1, steps + 1):
        start = time.perf_counter()
        first = (step - 1) * images
        numbers = np.arange(first, first + images).reshape(-1, config.batch_size)
        loss = float(take_step(list(numbers)))
        schedule.step()
        losses, since = losses + loss, since + 1
        seconds += time.perf_counter() - start
        if not math.isfinite(loss):
            record["failed"] = f"the loss of step {step} is {loss}"
            break
        if step in stops:
            found = evaluate_vectors(world, pair.query, "validation")
            curve.append({"step": step, "seconds": round(seconds, 3), "loss": losses / since, **found})
            losses, since = 0.0, 0
    record |= {
        "steps": step,
        "seconds": round(seconds, 3),
        "samples_per_second": round(step * images / seconds, 1),
        "curve": curve,
        "head_bytes": _head_bytes(head, optimizer),
        "peak_bytes": meter.peak(),
        "statistics": head.statistics(),
        "environment": environment(torch.device("cpu")),
    }
    if "failed" not in record:
        scores = {split: _vector_scores(world, pair.query, split) for split in ("validation", "test")}
        record["figures"] = {split: figures_of(*of_split) for split, of_split in scores.items()}
        record["people"] = {"test": people_of(*scores["test"])}
    return record


def _stream(config: RunConfig, index: IdentityIndex, head: Head, seed: int, queries: Queries | None) -> QueryStream:
    """The samples of a run, in the order that the configuration says unless `queries` is one."""
    if queries is None:
        queries = queries_of(
            index,
            seed,
            config.batch_size,
            sampling=config.data.sampling,
            identity_share=identity_share(config),
            group=queries_in_a_row(config),
        )
    return QueryStream(
        index,
        head.keys_per_query,
        seed,
        distinct_keys=config.key_encoder is None or config.key_encoder.distinct_keys,
        sampling=config.data.sampling,
        queries=queries,
    )


def _observed(world: VectorWorld, stream: QueryStream, numbers_B: Int64) -> Inputs:
    """What the encoders see of the samples of these numbers."""
    samples = stream.samples(numbers_B)
    positions = np.concatenate([samples.positions, samples.key_positions.ravel()])
    views = np.concatenate([samples.seeds[:, 0], samples.seeds[:, 1:].ravel()])
    seen = torch.from_numpy(world.observe(*world.samples_at(positions), views))
    batch, keys = samples.key_positions.shape
    keys_BKX = seen[batch:].view(batch, keys, -1) if keys else None
    return Inputs(seen[:batch], torch.from_numpy(samples.labels), keys_BKX, torch.from_numpy(samples.positions))


def evaluate_vectors(world: VectorWorld, encoder: nn.Module, split: str) -> dict[str, float]:
    """Return TAR at FAR over all pairs and rank-1 on people kept aside; the encoder's mode is as before.

    Args:
        split: "validation" | "test".
    """
    return figures_of(*_vector_scores(world, encoder, split))


@torch.no_grad()
def _vector_scores(world: VectorWorld, encoder: nn.Module, split: str) -> tuple[AllPairs, RankOne]:
    persons, samples = world.kept_aside(split)
    training = encoder.training
    encoder.eval()
    embeddings = torch.cat(
        [
            encoder(torch.from_numpy(world.observe(persons[start : start + 4096], samples[start : start + 4096])))
            for start in range(0, len(persons), 4096)
        ]
    )
    encoder.train(training)
    return _scores(embeddings, persons, FARS)


def _scores(embeddings_ND: Tensor, persons_N: Int64, fars: tuple[float, ...]) -> tuple[AllPairs, RankOne]:
    return score_all_pairs(embeddings_ND, persons_N, fars=fars, hardest=0), rank_one(embeddings_ND, persons_N)


def _head_bytes_of(config: RunConfig, identities: int, images: int) -> int:
    """`_head_bytes` after one step on random embeddings."""
    head = build_head(config, identities, images=images, image_counts=torch.ones(identities))
    optimizer = optimizer_of(config, build_pair(config, build_backbone(config), head.keys_per_query), head)
    batch, keys, size = config.batch_size, head.keys_per_query, config.backbone.embedding_size
    numbers, given = torch.arange(batch), torch.randn(batch, keys, size) if keys else None
    seen = Inputs(torch.randn(batch, size, requires_grad=True), numbers % identities, given, numbers % images)
    head_alone(head, optimizer, torch.device("cpu"))([seen])
    return _head_bytes(head, optimizer)


def _head_bytes(head: Head, optimizer: torch.optim.Optimizer) -> int:
    """Bytes that the head keeps from step to step: its state, and gradient and optimizer state of its parameters."""
    parameters = list(head.parameters())
    kept = [*head.state_dict().values()]
    for parameter in parameters:
        kept += [value for value in optimizer.state.get(parameter, {}).values() if isinstance(value, Tensor)]
        if parameter.grad is not None:
            gradient = parameter.grad
            kept += [gradient._indices(), gradient._values()] if gradient.is_sparse else [gradient]
    return sum(tensor.nbytes for tensor in kept if isinstance(tensor, Tensor))


def run_faces(preset: str, overrides: list[str], seed: int, threads: int) -> Json:
    """Train once with `attfc train PRESET`, and evaluate on the people of `eval.root`: half of them for validation, the others for the test.

    Args:
        preset, overrides: as typed; `data.root` and `eval.root` say where the faces are. With `eval.every` the curve has the figures of
            all people of `eval.root`.
        seed: the run's.
        threads: processor threads of the training.

    Returns:
        As `run_vectors`; `peak_bytes` is the whole process's.
    """
    config = load_config(preset, overrides)
    held_out = open_held_out(config)
    if held_out is None:
        raise UserError(
            "a study of faces evaluates on eval.root, and there is none: add eval.root=... to its overrides"
        )
    with tempfile.TemporaryDirectory(prefix="attfc-study-") as scratch:
        fixed = [
            f"output={scratch}",
            f"seed={seed}",
            f"threads={threads}",
            "eval.pairs=null",
            "report.write=false",
            "log.tensorboard=false",
            "checkpoint.every=0",
            f"log.every={config.eval.every}" if config.eval.every else "eval.root=null",
        ]
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "attfc", "train", preset, *overrides, *fixed],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        wall = round(time.perf_counter() - started, 1)
        folders = list(Path(scratch).iterdir())
        if done.returncode or not folders:
            lines = done.stderr.strip().splitlines()
            if done.returncode < 0 or done.returncode == 130:
                raise UserError(f"attfc train was stopped (status {done.returncode}): run the study again to go on")
            return {"failed": lines[-1] if lines else f"status {done.returncode}", "wall_seconds": wall}
        figures, people = evaluate_faces(from_pretrained(folders[0]), held_out)
        trained_on = open_training_data(config)
        return {
            **_of_run(folders[0]),
            "identities": len(trained_on.identities),
            "images": len(trained_on),
            "head_bytes": _head_bytes_of(config, len(trained_on.identities), len(trained_on)),
            "wall_seconds": wall,
            "figures": figures,
            "people": people,
        }


def evaluate_faces(model: nn.Module, held_out: Store) -> tuple[dict[str, dict[str, float]], Json]:
    """Return TAR at FAR over all pairs of images and rank-1, of all people and of two halves that a checksum of their names tells apart.

    Args:
        model: (B, 3, S, S) float32 RGB in [-1, 1] -> (B, D); see `embed_store`.
        held_out: people that the model has not seen.

    Returns:
        Figures {"validation": ..., "test": ..., "all": ...}, each with thresholds of its own, and {"all": `people_of`}.
    """
    names = [held_out.identity_name(label) for label in range(len(held_out.identities))]
    halves = np.array([zlib.crc32(name.encode()) % 2 for name in names])
    labels = held_out.labels(np.arange(len(held_out)))
    embeddings = torch.from_numpy(embed_store(model, held_out).vectors)
    figures = {}
    for half, split in enumerate(("validation", "test")):
        chosen = np.flatnonzero(halves[labels] == half)
        figures[split] = figures_of(*_scores(embeddings[chosen], labels[chosen], FACE_FARS))
    everybody = _scores(embeddings, labels, FACE_FARS)
    return {**figures, "all": figures_of(*everybody)}, {"all": people_of(*everybody)}


def _of_run(folder: Path) -> Json:
    config = load_config(str(folder / "config.yaml"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = [{key: value for key, value in line.items() if key != "kind"} for line in lines if line["kind"] == "train"]
    evaluated = {line["step"]: line for line in lines if line["kind"] == "evaluation"}
    for point in curve:
        found = evaluated.get(point["step"], {})
        for far, tar in ((found.get("all_pairs") or {}).get("tar_at_far") or {}).items():
            if tar is not None:
                point[f"tar_at_far/{float(far):g}"] = tar
    last = curve[-1]
    images = last["step"] * config.batch_size * config.optimizer.accumulation
    return {
        "config": config.model_dump(mode="json"),
        "steps": last["step"],
        "seconds": round(last["seconds"], 1),
        "samples_per_second": round(images / last["seconds"], 1),
        "curve": curve,
        "peak_bytes": last["memory_mib"] * 2**20,
        "environment": json.loads((folder / "environment.json").read_text(encoding="utf-8")),
    }
