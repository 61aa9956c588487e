"""Every head through the command line under torchrun: two processes have the losses of one, and one goes on where they were stopped."""

from pathlib import Path

import pytest

from .test_launches import attfc, ended, launch
from .test_training import losses
from .workers import TINY, train

HEADS = {
    "attfc": [],
    "attfc keys": ["center=key_attention"],
    "attfc pairs": ["center=pairs"],
    "attfc others": ["center=other_images"],
    "full_fc": ["head=full_fc"],
    "full_fc on the host": ["head=partial_fc", "head.share=1", "head.place=host"],
    "partial_fc": ["head=partial_fc", "head.share=0.4"],
    "partial_fc in a file": ["head=partial_fc", "head.share=0.7", "head.place=file"],
    "partial_fc adamw": ["head=partial_fc", "optimizer.name=adamw", "optimizer.learning_rate=0.001"],
    "dcq": ["head=dcq", "head.count=40"],
    "dcp": ["head=dcp", "head.count=21"],
}


@pytest.mark.slow  # starts three processes, which import torch: ten seconds and more each
@pytest.mark.parametrize("name", HEADS)
def test_torchrun_trains_each_head_as_one_process_does(name, tmp_path: Path) -> None:
    options = [*HEADS[name], *([f"head.folder={tmp_path}"] if "head.place=file" in HEADS[name] else [])]
    expected = losses(train(options, str(tmp_path / "one")))
    two = ["--standalone", "--nproc-per-node=2"]
    short = [*TINY, *options, f"output={tmp_path / 'two'}", "device=cpu", "schedule.name=constant"]
    ((status, said),) = ended(launch(two, attfc("demo", *short, "schedule.max_steps=3")))
    assert status == 0, said
    (folder,) = (tmp_path / "two").iterdir()
    assert losses(folder)[0] == pytest.approx(expected[0], rel=1e-5)
    assert len(losses(folder)) == 3
    ((status, said),) = ended(launch(two, attfc("--resume", folder, "schedule.max_steps=5")))
    assert status == 0, said
    assert len(losses(folder)) == 5
    assert [path for path in tmp_path.iterdir() if path.name.startswith("attfc-rows-")] == []
