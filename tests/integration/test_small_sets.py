"""A preset's own values on few people: every head builds and trains, what is saved is what was built, and the loss falls."""

import json
import statistics
from pathlib import Path

import pytest
import torch

from attfc.config import load_config, preset_names
from attfc.config.kinds import HOLDING_A_BATCH
from attfc.heads import (
    AttFC,
    CenterTable,
    ImageMemory,
    KeyAttention,
    OtherImages,
    OwnEmbedding,
    Pairs,
    RecentCenters,
)
from attfc.run.build import new_run
from attfc.run.components import build_head
from attfc.run.resolved import resolve

SMALL = [
    "data.workers=0",
    "threads=1",
    "report.write=false",
    "log.tensorboard=false",
    "log.every=1",
    "checkpoint.every=0",
]
HEADS = ["attfc", "full_fc", "partial_fc", "dcq", "dcp"]


def run_on(people: int, images: int, folder: Path, *overrides: str):
    data = f"data.root=synthetic:identities={people},images={images},seed=0"
    return new_run(load_config("faces112", [data, f"output={folder}", "backbone.name=r6_tiny", *SMALL, *overrides]))


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("people", [2, 3, 20, 60, 127, 128])
@pytest.mark.parametrize("head", [*HEADS, "published"])
def test_a_presets_own_values_never_fail(people: int, head: str, tmp_path: Path) -> None:
    typed = "profile=published" if head == "published" else f"head={head}"
    run = run_on(people, 2, tmp_path, typed)
    assert run.config == load_config(str(run.folder / "config.yaml"))
    batch = next(run.trainer.loader.batches(1))
    keys = torch.randn(128, run.trainer.head.keys_per_query, 512) if run.trainer.head.keys_per_query else None
    embeddings = torch.randn(128, 512, requires_grad=True)
    loss = run.trainer.head(embeddings, batch.labels, keys)
    loss.backward()
    assert torch.isfinite(loss)
    if head in ("attfc", "full_fc", "partial_fc"):
        assert not any("container" in note or "slots" in note for note in run.notes)
    run.trainer.loader.close()


@pytest.mark.parametrize(
    "people", [20, pytest.param(60, marks=pytest.mark.slow), pytest.param(127, marks=pytest.mark.slow), 128]
)
def test_the_loss_falls(
    people: int, tmp_path: Path
) -> None:  # slow: a whole run each; the smallest and the largest stand for them
    run = run_on(people, 320 // people + 4, tmp_path)
    run.trainer.train()
    found = losses(run.folder)
    tenth = max(1, len(found) // 10)
    assert statistics.mean(found[-tenth:]) < statistics.mean(found[tenth : 2 * tenth])


def test_fewer_images_than_a_batch_and_fewer_than_20_steps_are_said_before_the_start(tmp_path: Path) -> None:
    run = run_on(2, 10, tmp_path, "data.decoded_cache_mib=0", "schedule.warmup_epochs=20")
    assert run.notes == [
        "the warm-up of 3 steps does not fit a run of 2: it takes 0",
        "20 images are fewer than the 128 of one step, so each step sees images twice: set batch_size=4",
        "the run has 2 steps, fewer than 20: it can hardly learn; set epochs=128 or more, or batch_size=4",
    ]
    again = run_on(2, 10, tmp_path, "data.decoded_cache_mib=0", "batch_size=4")
    assert again.notes == []
    assert again.trainer.total_steps == 50


RULES = {"key_attention": KeyAttention, "own_embedding": OwnEmbedding, "pairs": Pairs, "other_images": OtherImages}


@pytest.mark.parametrize("profile", ["published", "null"])
def test_what_is_saved_is_what_is_built(profile: str) -> None:
    """Over all presets: the head that is built has the parts that the resolved configuration names."""
    kinds = set()
    for name in preset_names():
        for size in (60, 20_000):
            config, _ = resolve(load_config(name, [f"profile={profile}"]), size)
            assert resolve(config, size) == (config, [])
            with torch.device("meta"):
                head = build_head(config, size, images=10 * size)
            if not isinstance(head, AttFC):
                continue
            kinds.add(name)
            assert config.negatives is not None
            assert config.center is not None
            assert head.negatives.size == config.negatives.get("count")
            kinds_of_banks = {type(bank) for bank in head.banks}
            assert bool(kinds_of_banks & {CenterTable, ImageMemory}) == (profile == "null")
            assert (RecentCenters in kinds_of_banks) == (config.negatives.kind in HOLDING_A_BATCH)
            assert head.in_batch == config.in_batch
            assert isinstance(head.center, RULES[config.center.kind])
            assert getattr(head.center, "share", None) == config.center.get("share")
    assert {"demo", "faces112"} <= kinds
    assert len(kinds) >= 8


def test_keys_have_no_push_and_a_ratio_of_1_draws_everybody() -> None:
    keys, _ = resolve(load_config("demo", ["center=key_attention"]), 600)
    assert keys.in_batch == "fixed"
    everyone, _ = resolve(load_config("demo"), 600)
    assert everyone.negatives is not None
    assert everyone.negatives.options == {"share": None, "count": 600, "place": "host", "folder": None, "trained": 0}


def test_the_logged_rate_is_the_one_that_the_step_used(tmp_path: Path) -> None:
    run = run_on(
        20,
        8,
        tmp_path,
        "schedule.max_steps=4",
        "schedule.warmup_epochs=0",
        "schedule.name=polynomial",
        "schedule.power=1",
    )
    run.trainer.train()
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    rates = [line["learning_rate"] for line in lines if line["kind"] == "train"]
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])
