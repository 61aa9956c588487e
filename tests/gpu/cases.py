"""Every head x precision x place of its table, as small runs on the device: `cuda`, or what ATTFC_TEST_DEVICE names.

ATTFC_TEST_DEVICE=cpu runs all of it on a processor, so that a GPU's first run does not fail for the tests' own faults. Written without a GPU at hand.
The same heads on a device without values, on any machine: tests/unit/test_synchronization.py and tests/unit/test_fake_cuda.py.
"""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attfc.config import load_config
from attfc.run.build import Run, new_run

DEVICE = os.environ.get("ATTFC_TEST_DEVICE", "cuda")
ON_GPU = DEVICE.startswith("cuda")
MARKS = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="needs a GPU with CUDA: torch finds none here"),
]

COMMON = [
    *("data.root=synthetic:identities=400,images=4-7,seed=0", "data.workers=0", "threads=1", "log.every=1000"),
    *("batch_size=64", "backbone.name=r6_tiny", "eval.root=null", "schedule.max_steps=6", "schedule.warmup_epochs=0"),
    *("log.tensorboard=false", "report.write=false", "checkpoint.every=0"),
]
if not ON_GPU:
    COMMON += ["data.root=synthetic:identities=30,images=4,seed=0", "batch_size=8", "data.decoded_cache_mib=0"]
RECENT = [
    "negatives=recent_centers",
    "negatives.share=0.9",
    "negatives.policy=unique",
    "stored=center_table",
    "stored.place=device",
]
KEYS = ["center=key_attention", "center.share=0.6"]
DRAWN = ["negatives.share=0.9"]
HEADS = {
    "attfc drawn": [*DRAWN],
    "attfc trained": [*DRAWN, "negatives.trained=9"],
    "partial_fc": ["head=partial_fc", "head.share=0.5"],
    "full_fc": ["head=full_fc", "optimizer.accumulation=2"],
    "attfc published": ["profile=published", "negatives.share=0.9"],
    "attfc others": ["center=other_images", *DRAWN],
    "attfc": [*KEYS, *RECENT],
    "attfc stored": [*KEYS, *RECENT, "center.include_stored=true", "negatives.dtype=int8", "margin=adaface"],
    "attfc query": [*RECENT, "negatives.dtype=bfloat16"],
    "attfc filtered": [*KEYS, *RECENT, "head.filter_above=0.3", "head.filtering=zero", "margin=arcface"],
    "dcq": ["head=dcq"],
    "dcp": ["head=dcp", "head.filter_above=0.3"],
    "partial_fc adamw": ["head=partial_fc", "head.share=0.5", "optimizer.name=adamw"],
    "augmented": ["head=full_fc", "augment.crop_scale=[0.8,1.0]", "augment.brightness=0.2", "augment.blur=0.1"],
}
PLACED = {
    "attfc drawn": "negatives",
    "attfc trained": "negatives",
    "attfc others": "negatives",
    "partial_fc": "head",
    "partial_fc adamw": "head",
    "attfc": "stored",
}
"""Heads whose rows may lie elsewhere, and the section that says where."""

AMPS = ("bfloat16", "none", "float16") if ON_GPU else ("none",)
CASES = [(name, "device", amp) for amp in AMPS for name in HEADS]
CASES += [(name, place, AMPS[0]) for place in ("host", "file") for name in PLACED]
"""Head, place of its rows, precision; in order of worth."""


def options(name: str, place: str, amp: str, folder: Path) -> list[str]:
    """Return the overrides of a head with its rows in that place."""
    section = PLACED.get(name)
    where = [] if section is None else [f"{section}.place={place}"]
    if place == "file":
        where.append(f"{section}.folder={folder / 'rows'}")
    return [*COMMON, *HEADS[name], *where, f"precision.amp={amp}", f"output={folder}"]


def run_of(name: str, place: str, amp: str, folder: Path, device: str = DEVICE) -> Run:
    """Build the run."""
    return new_run(load_config("demo", [*options(name, place, amp, folder), f"device={device}"]))


def take_step(run: Run) -> Tensor:
    """Train on the next batches as the trainer does, and return the loss, on the device."""
    trainer = run.trainer
    batches = [next(trainer.loader.batches(trainer.loader.step + 1)) for _ in range(trainer.accumulation)]
    loss = trainer.train_step(batches)
    trainer.step += 1
    return loss
