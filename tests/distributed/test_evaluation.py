"""Ranks share the embedding of an evaluation: the same embeddings and figures as one process, and the same refusal on all."""

import json
from pathlib import Path

import pytest
import torch

from attfc.run.resuming import resume_run

from .embedding_workers import embed, embed_several
from .launch import on_ranks
from .workers import train

CASES = [(50, 8), (20, 20), (3, 1)]  # 4 + 3 batches; a rank without any; single images


@pytest.fixture(scope="module")
def on_two() -> list[list[dict]]:
    return on_ranks(2, embed_several, [*CASES, (20, 4, 1)])


@pytest.mark.parametrize("number", range(len(CASES)))
def test_two_ranks_embed_as_one_process(number, on_two) -> None:
    whole = embed(*CASES[number])
    for part in on_two:
        assert torch.equal(part[number]["vectors"], whole["vectors"])
        assert torch.equal(part[number]["norms"], whole["norms"])
        assert part[number]["broken"] == whole["broken"]
    assert sum(part[number]["passes"] for part in on_two) == whole["passes"], "nobody embeds what another has"


def test_a_rank_that_cannot_read_ends_all_with_its_reason(on_two) -> None:
    assert [part[-1] for part in on_two] == [{"error": "rank 1: the disk of this host is gone"}] * 2


def test_a_run_of_two_ranks_has_the_figures_of_one_process(tmp_path) -> None:
    options = [
        "eval.root=synthetic:identities=8,images=4,seed=0,first=1000",
        *("eval.generated_pairs=40", "eval.batch_size=8", "eval.every=2", "schedule.max_steps=3"),
    ]
    folder, other = on_ranks(2, train, options, str(tmp_path))
    assert folder == other
    written = json.loads((Path(folder) / "evaluation.json").read_text())
    assert written["step"] == 3
    trainer = resume_run(Path(folder), []).trainer
    figures = trainer.evaluation.evaluate(trainer.pair.query, 3)
    untimed = [name for name in figures if "second" not in name]
    assert {name: written[name] for name in untimed} == json.loads(
        json.dumps({name: figures[name] for name in untimed})
    )
    records = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["kind"] == "evaluation"] == [2, 3]
    assert (Path(folder) / "best" / "model.safetensors").is_file()
