"""Presets: each loads, says where it comes from and builds its network and head; each kind of training among them takes two steps."""

import json
import math
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from attfc.backbones import create_backbone
from attfc.backbones.shapes import shapes_only
from attfc.cli import app
from attfc.config import RunConfig, load_config, preset_names
from attfc.run.build import new_run
from attfc.run.components import build_head

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = json.loads((ROOT / "benchmarks" / "published.json").read_text(encoding="utf-8"))["rows"]
ON_A_PROCESSOR = {"demo", "faces112"}
LARGE = sorted(set(preset_names()) - ON_A_PROCESSOR)


@cache
def preset(name: str) -> RunConfig:
    return load_config(name)


def text_of(name: str) -> str:
    return (resources.files("attfc") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def facts_of(name: str) -> tuple[int, int]:
    match = re.search(r"# ([\d,]+) identities, ([\d,]+) images", text_of(name))
    assert match, f"{name} does not say how large its data are"
    identities, images = (int(group.replace(",", "")) for group in match.groups())
    return identities, images


@cache
def takes_shape(network: str, options: str) -> bool:
    with shapes_only():
        create_backbone(network, **json.loads(options))
    return True


def test_every_row_of_the_published_tables_has_a_preset() -> None:
    assert len(PUBLISHED) == 35
    assert len({row["preset"] for row in PUBLISHED}) == 35
    ours = {name for name in LARGE if "_attfc_" in name}
    assert {row["preset"] for row in PUBLISHED} | ours == set(LARGE)
    assert len(ours) == 6


@pytest.mark.parametrize("name", LARGE)
def test_preset_says_where_it_comes_from_and_builds(name: str) -> None:
    config = preset(name)
    first = text_of(name).partition("\n")[0]
    assert config.name == name
    assert config.data.root.startswith("data/")
    assert re.match(r"# .+ GPUs? x \d+.*\. (From arcface_torch, configs/\w+\.py\. Differs: |Ours: )", first), first
    assert takes_shape(config.backbone.name, json.dumps(config.backbone.options))
    identities, images = facts_of(name)
    assert 10 * identities < images < 70 * identities
    with torch.device("meta"):
        head = build_head(config, identities)
    assert head.embedding_size == 512
    assert head.keys_per_query == 0


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row["preset"])
def test_preset_is_that_of_its_row(row: dict[str, Any]) -> None:
    config = preset(row["preset"])
    gpus = int(re.search(r"(\d+) GPUs? x ", text_of(row["preset"]))[1])  # type: ignore[index]
    assert (gpus, config.batch_size) == (row["gpus"], row["gpus"] * row["batch_size"])  # batch_size is over all ranks
    if stated := re.search(r"\((\d+)\*(\d+)\)", row["network"]):  # r100(128*16): images a GPU, GPUs
        assert (config.batch_size // gpus, gpus) == tuple(map(int, stated.groups()))
    rate = re.search(r"PFC-([\d.]+)", row["data"])
    assert config.head.kind == ("partial_fc" if rate else "full_fc")
    if rate:
        assert config.head.get("share") == float(rate[1])
    assert (config.head.get("filter_above") == 0.4) == row["data"].endswith("*")
    network = row["network"].lower().replace("-", "_")
    assert (
        config.backbone.name == "mbf"
        if network.startswith("mobilefacenet")
        else network.startswith(config.backbone.name)
    )


def kind(config: RunConfig) -> tuple[str, ...]:
    family = re.sub(r"(_.|\d+)$", "", config.backbone.name)  # r100 -> r, vit_b -> vit
    filtered = "filtered" if config.head.get("filter_above") is not None else ""
    return config.head.kind, config.margin.kind, config.optimizer.name, family, filtered


KINDS = {kind(preset(name)): name for name in reversed(LARGE)}
SMALL = {
    "r": ["backbone.name=r6_tiny"],
    "mbf": ["backbone.image_size=32"],
    "vit": ["backbone.name=vit_t", "backbone.image_size=27"],
}


def test_kinds_of_training_were_collected() -> None:
    assert len(KINDS) >= 8
    assert {head for head, *_ in KINDS} == {"attfc", "full_fc", "partial_fc"}


def train_two_steps(name: str, folder: Path) -> None:
    config = preset(name)
    slots = ["negatives.count=48"] if config.negatives is not None and config.negatives.get("count") else []
    run = new_run(
        load_config(
            name,
            [
                *("data.root=synthetic:identities=64,images=4,seed=0", "data.workers=0", "batch_size=8"),
                *SMALL[kind(config)[3]],
                *(*slots, "schedule.max_steps=2", "schedule.warmup_epochs=0", "log.every=1"),
                *("optimizer.accumulation=1", "log.tensorboard=false", "report.write=false", f"output={folder}"),
            ],
        )
    )
    run.trainer.train()
    assert run.trainer.step == 2
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[1] > 0  # the first batch of AttFC without key passes meets an empty table
    assert (run.folder / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("name", sorted(KINDS.values()))
def test_each_kind_of_preset_takes_two_steps(name: str, tmp_path: Path) -> None:
    train_two_steps(name, tmp_path)


@pytest.mark.slow  # 35 trainings of two steps, most of them of the same kind as one of the default tests
@pytest.mark.parametrize("name", sorted(set(LARGE) - set(KINDS.values())))
def test_every_other_preset_takes_two_steps(name: str, tmp_path: Path) -> None:
    train_two_steps(name, tmp_path)


def test_presets_are_listed_by_data_set_with_their_whole_names() -> None:
    shown = CliRunner().invoke(app, ["presets"]).stdout
    lines = shown.splitlines()
    for name in preset_names():
        assert sum(line.split()[:1] == [name] for line in lines) == 1, name
    at = lines.index("WebFace42M   data.root=data/WebFace42M")
    assert lines[at + 1].split()[:2] == ["wf42m_attfc_r100", "r100"]
    line = next(line for line in lines if "wf42m_pfc03_vit_b_8gpus" in line)
    assert " ".join(line.split()) == "wf42m_pfc03_vit_b_8gpus vit_b partial_fc 0.3 8 x 256 x 12 40"
