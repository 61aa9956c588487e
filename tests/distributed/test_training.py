"""Training on two ranks is training in one process: losses, stops, checkpoints that any number of ranks resumes, errors at the start."""

import json
import shutil
from pathlib import Path
from tempfile import gettempdir

import pytest

from attfc.errors import UserError
from attfc.run.resuming import resume_run

from .launch import on_ranks
from .workers import errors, fine_tuned, train, train_by_path, train_several

# The others, and tighter: test_elastic_heads.py and test_torchrun_heads.py.
HEADS = {
    "attfc": ["head=attfc"],
    "trained": ["negatives.trained=9", "optimizer.accumulation=2"],
    "published": ["profile=published", "negatives.share=0.8", "negatives.dtype=int8", "key_encoder.momentum=0.9"],
    "sharded": ["head=full_fc", "optimizer.accumulation=2"],
    "replicated": ["head=full_fc", "distributed.rows=replicated"],
    "partial_fc": ["head=partial_fc", "head.share=0.4", "optimizer.accumulation=2"],
    "file": ["head=partial_fc", "head.share=0.7", "head.place=file", f"head.folder={gettempdir()}"],
    "dcp": ["head=dcp", "head.count=21", "head.dtype=bfloat16"],
}


def losses(folder: str | Path) -> list[float]:
    """Of all steps, in order; a step logged twice fails."""
    records = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if record["kind"] == "train"]
    assert steps == list(range(1, len(steps) + 1))
    return [record["loss"] for record in records if record["kind"] == "train"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, dict[str, Path]]:
    """Of each head, the uninterrupted run of one process, and one of two ranks that was stopped at step 3 by a signal to one rank."""
    root = tmp_path_factory.mktemp("runs")
    cases = [(options, str(root / f"two {name}"), 3, 1) for name, options in HEADS.items()]
    folders, others = on_ranks(2, train_several, cases)
    assert folders == others
    return {
        name: {"one": Path(train(options, str(root / f"one {name}"))), "two": Path(folder)}
        for (name, options), folder in zip(HEADS.items(), folders, strict=True)
    }


@pytest.mark.parametrize("name", HEADS)
def test_two_ranks_have_the_losses_of_one_and_stop_together(name, runs) -> None:
    stopped = losses(runs[name]["two"])
    assert len(stopped) == 3
    assert stopped == pytest.approx(losses(runs[name]["one"])[:3], rel=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_what_two_ranks_saved_one_process_goes_on_with(name, runs, tmp_path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(runs[name]["two"], copy)
    files = sorted(path.name for path in (copy / "checkpoints" / "step_000000003").iterdir())
    assert ("tensors_00001.safetensors" in files) == (name != "replicated")
    train([], str(copy))
    assert losses(copy) == pytest.approx(losses(runs[name]["one"]), rel=1e-2)


def test_what_one_process_saved_two_ranks_go_on_with(runs, tmp_path) -> None:
    cases = []
    elsewhere = {"file": [f"head.folder={tmp_path}"], "partial_fc": ["head.place=host"]}
    for name in HEADS:
        copy = tmp_path / name
        shutil.copytree(runs[name]["one"], copy)
        shutil.rmtree(copy / "checkpoints" / "step_000000006")
        cases.append((elsewhere.get(name, []), str(copy)))
    on_ranks(2, train_several, cases)
    for name in HEADS:
        assert losses(tmp_path / name) == pytest.approx(losses(runs[name]["one"]), rel=1e-2)


@pytest.mark.slow  # four processes on two cores
@pytest.mark.parametrize("name", HEADS)
def test_four_ranks_go_on_and_are_gone_on_with(name, runs, tmp_path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(runs[name]["two"], copy)
    on_ranks(4, train, [], str(copy), 5, 2)
    on_ranks(2, train, [], str(copy))
    assert losses(copy) == pytest.approx(losses(runs[name]["one"]), rel=1e-2)


def test_a_shard_that_is_missing_or_of_another_save_is_named(runs, tmp_path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(runs["attfc"]["two"], copy)
    shard = copy / "checkpoints" / "step_000000003" / "tensors_00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    found = on_ranks(2, errors, [([], str(copy))])
    assert "the checksum of tensors_00001.safetensors differs" in found[0][0]
    assert found[0] == found[1]
    shard.unlink()
    missing = on_ranks(2, errors, [([], str(copy))])[1][0]
    assert "has no whole checkpoint to resume from" in missing
    assert "tensors_00001.safetensors is missing): start a new run" in missing


def test_a_newer_checkpoint_that_is_not_whole_is_passed_over_and_said(runs, tmp_path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(runs["attfc"]["one"], copy)
    shard, earlier = (copy / "checkpoints" / f"step_00000000{step}" / "tensors_00000.safetensors" for step in (6, 3))
    shutil.copyfile(earlier, shard)  # shards of two saves: the sizes are right
    with pytest.raises(
        UserError, match=r"step_000000006 is damaged: the checksum of tensors_00000\.safetensors differs"
    ):
        resume_run(copy, [])
    shard.unlink()
    run = resume_run(copy, [])
    assert run.trainer.step == 3
    (note,) = [note for note in run.notes if "resumed from" in note]
    assert "step_000000006 is damaged: tensors_00000.safetensors is missing; resumed from" in note


def test_what_cannot_begin_says_so_on_every_rank(tmp_path) -> None:
    cases = {
        "ranks differ in their configuration: optimizer.learning_rate is 0.02 on rank 0 and 0.3 on rank 1": [
            "RANK1:optimizer.learning_rate=0.3"
        ],
        "batch_size=15 is that of all ranks and does not divide by 2 of them: take 16 or 14": ["batch_size=15"],
        "negatives.count=8 is smaller than batch_size=16": [*("negatives.count=8", "negatives=recent_centers")],
        "distributed.rows=replicated needs head.kind=full_fc, and this is partial_fc, whose gradient covers single rows": [
            *("head=partial_fc", "head.place=host", "distributed.rows=replicated")
        ],
        "device=cuda:0 names one device for 2 ranks": ["device=cuda:0"],
    }
    said = on_ranks(2, errors, [(options, str(tmp_path)) for options in cases.values()])
    for number, expected in enumerate(cases):
        assert expected in said[0][number]
        assert said[0][number] == said[1][number]


def test_an_attfc_run_starts_from_a_full_fc_run(runs, tmp_path) -> None:
    from attfc.config import load_config
    from attfc.run.build import new_run

    from .workers import TINY

    source = runs["sharded"]["two"]
    run = new_run(load_config("demo", [*TINY, f"output={tmp_path}", f"start_from={source}"]))
    (note,) = [note for note in run.notes if "started from" in note]
    assert "key encoder" not in note
    assert "new: head (there full_fc), optimizer, schedule, position in the data" in note
    query = run.trainer.pair.query.state_dict()
    assert run.trainer.pair.key is None  # the default head takes no keys
    fresh = new_run(load_config("demo", [*TINY, f"output={tmp_path}"])).trainer.pair.query.state_dict()
    assert any(bool((query[name] != fresh[name]).any()) for name in query)


def test_rank_0_chooses_for_all(tmp_path) -> None:
    one, other = on_ranks(2, train_by_path, str(tmp_path))
    assert one == other
    rows, _, configuration = one.split(" ", 2)
    chosen = json.loads(configuration)
    assert int(rows) >= 10
    assert (chosen["batch_size"], chosen["eval"]["share"], chosen["backbone"]["name"]) == (16, 0.1, "r6_tiny")


def test_two_ranks_fine_tune_as_one_does(runs, tmp_path) -> None:
    """Centers of rows in shards, read by one and by two; a frozen trunk; both comparisons, said on every rank."""
    source = runs["sharded"]["two"]
    options = [f"start_from={source}", "head=full_fc", "finetune.trunk_rate=0", "finetune.batch_norm=kept"]
    options += ["eval.root=synthetic:identities=24,images=3,seed=8", "eval.generated_pairs=40"]
    options += ["eval.also=synthetic:identities=22,images=3,seed=9"]
    one = fine_tuned(options, str(tmp_path / "one"))
    two = on_ranks(2, fine_tuned, options, str(tmp_path / "two"))
    assert two[0][1:3] == two[1][1:3] == one[1:3]
    assert "keep theirs from" in one[1]
    assert losses(two[0][0]) == pytest.approx(losses(one[0]), rel=1e-4)
    for mine, theirs in zip(one[3], two[0][3], strict=True):
        assert mine["where"] == theirs["where"]
        for this, that in zip(mine["differences"], theirs["differences"], strict=True):
            assert this["difference"]["value"] == pytest.approx(that["difference"]["value"], abs=0.02), this["figure"]
    assert two[1][3] == []  # rank 0 compares


def test_two_ranks_learn_from_a_teacher_as_one_does(tmp_path) -> None:
    import torch

    from attfc.backbones import create_backbone
    from attfc.training.model_files import save_model

    torch.manual_seed(3)
    teacher = save_model(tmp_path / "teacher", create_backbone("r6_tiny", embedding_size=32).eval())
    kinds = {
        "map": ["head=full_fc", "backbone.embedding_size=24", "optimizer.accumulation=2"],
        "fixed": ["head=attfc", "backbone.embedding_size=32", "teacher.centers=fixed"],
    }
    cases = {name: [*kind, f"teacher={teacher}", f"teacher.cache={tmp_path / 'cache'}"] for name, kind in kinds.items()}
    folders = on_ranks(2, train_several, [(case, str(tmp_path / f"two {name}"), 3, 1) for name, case in cases.items()])
    for (name, case), folder in zip(cases.items(), folders[0], strict=True):
        one = losses(train(case, str(tmp_path / f"one {name}")))
        assert losses(folder) == pytest.approx(one[:3], rel=1e-4)
        train([], folder)  # one process goes on
        assert losses(folder) == pytest.approx(one, rel=1e-2)
    refused = [
        (["RANK1:teacher.weight=3", *cases["map"]], str(tmp_path)),
        ([*cases["map"], "teacher=nowhere"], str(tmp_path)),
    ]
    said = on_ranks(2, errors, refused)
    assert said[0] == said[1]
    assert "ranks differ in their configuration: teacher.weight" in said[0][0]
    assert "teacher=nowhere: nowhere does not exist" in said[0][1]
