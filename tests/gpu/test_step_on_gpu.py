"""A training step on a GPU never makes the host wait: torch itself raises where it would. Written without a GPU at hand.

The same heads on a device without values, on any machine: tests/unit/test_synchronization.py.
"""

from collections.abc import Iterator

import pytest
import torch

from attfc.config import load_config
from attfc.run.build import new_run
from attfc.training.reports import StepReport

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA: torch finds none here"),
]

COMMON = [
    *("data.root=synthetic:identities=400,images=4-7,seed=0", "data.workers=0", "threads=1", "device=cuda"),
    *("batch_size=64", "backbone.name=r6_tiny", "eval.root=null", "schedule.max_steps=20", "schedule.warmup_epochs=0"),
    *("log.tensorboard=false", "log.every=1000", "report.write=false"),
]
TABLE = ["negatives.place=device", "negatives.share=0.9"]
RECENT = [
    "negatives=recent_centers",
    "negatives.share=0.9",
    "negatives.policy=unique",
    "stored=center_table",
    "stored.place=device",
]
KEYS = ["center=key_attention", "center.share=0.6"]
HEADS = {
    "attfc": [*KEYS, *RECENT],
    "attfc published": ["profile=published", "negatives.share=0.9"],
    "attfc stored": [*KEYS, *RECENT, "center.include_stored=true", "negatives.dtype=int8", "margin=adaface"],
    "attfc drawn": [*TABLE],
    "attfc host": ["negatives.share=0.9"],
    "attfc others host": ["center=other_images", "negatives.share=0.9"],
    "attfc query": [*RECENT, "negatives.dtype=bfloat16"],
    "attfc others": ["center=other_images", *TABLE],
    "attfc filtered": [*KEYS, *RECENT, "head.filter_above=0.3", "head.filtering=zero", "margin=arcface"],
    "full_fc": ["head=full_fc", "optimizer.accumulation=2"],
    "dcq": ["head=dcq"],
    "dcp": ["head=dcp", "head.filter_above=0.3"],
    "partial_fc": ["head=partial_fc", "head.share=0.5"],
    "partial_fc adamw": ["head=partial_fc", "head.share=0.5", "optimizer.name=adamw"],
    "augmented": ["head=full_fc", "augment.crop_scale=[0.8,1.0]", "augment.brightness=0.2", "augment.blur=0.1"],
}


@pytest.fixture
def refuse_to_wait() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    yield
    torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("amp", ["none", "bfloat16"])
@pytest.mark.parametrize("name", HEADS)
def test_a_step_does_not_wait_for_the_device(tmp_path, refuse_to_wait, name, amp) -> None:
    run = new_run(load_config("demo", [*COMMON, *HEADS[name], f"precision.amp={amp}", f"output={tmp_path}"]))
    trainer = run.trainer
    for number in range(6):
        batches = [next(trainer.loader.batches(trainer.loader.step + 1)) for _ in range(trainer.accumulation)]
        if number == 3:  # optimizer state, cuDNN's choices and the allocator's first blocks are there
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        loss = trainer.train_step(batches)
        report = StepReport(trainer.step, loss, batches, False, trainer.ranks)
        trainer.step += 1
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert torch.isfinite(report.figures).all()


@pytest.mark.parametrize("name", ["attfc", "attfc host", "attfc others host", "full_fc", "dcp"])
def test_losses_are_those_of_the_processor(tmp_path, name) -> None:
    found = []
    for device in ("cpu", "cuda"):
        options = [
            *COMMON,
            *HEADS[name],
            "precision.amp=none",
            "precision.tuned=false",
            f"output={tmp_path}",
            f"device={device}",
        ]
        trainer = new_run(load_config("demo", options)).trainer
        step = []
        for _ in range(2):
            batches = [next(trainer.loader.batches(trainer.loader.step + 1)) for _ in range(trainer.accumulation)]
            step.append(float(trainer.train_step(batches)))
            trainer.step += 1
        found.append(step)
    assert found[1] == pytest.approx(found[0], rel=2e-2)
