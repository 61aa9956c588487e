"""The training step: accumulation, what goes where, and no device named in the code."""

import contextlib
import itertools
import math
import shutil
from pathlib import Path

import pytest
import torch

from attfc.backbones import create_backbone
from attfc.data import AttentionLoader, Augment, SyntheticFaces
from attfc.errors import UserError
from attfc.heads import AttFC, FullFC, Head, KeyAttention, RecentCenters
from attfc.losses import CosFace
from attfc.training.checkpoints.checkpoint import latest_checkpoint
from attfc.training.momentum import MomentumPair
from attfc.training.optimizers import build_optimizer, parameter_groups
from attfc.training.progress import RunLog
from attfc.training.schedule import build_schedule
from attfc.training.step import Augmented, Inputs, TrainStep
from attfc.training.trainer import Trainer


def make_trainer(
    folder: Path,
    head_name: str = "attfc",
    batch_size: int = 8,
    accumulation: int = 1,
    device: str = "cpu",
    total_steps: int = 4,
) -> Trainer:
    """A trainer over 6 synthetic identities."""
    torch.manual_seed(0)
    store = SyntheticFaces(6, 8, seed=0)
    backbone = create_backbone("r6_tiny", embedding_size=32)
    margin = CosFace(16.0, 0.1)
    head: Head = FullFC(32, 6, margin)
    if head_name != "full_fc":
        container = RecentCenters(count=24, policy="unique")
        head = AttFC(32, margin, identities=6, center=KeyAttention(share=0.8), negatives=container, in_batch="fixed")
    pair = MomentumPair(backbone, 0.9).to(device)
    head = head.to(device)
    optimizer = build_optimizer(
        "sgd",
        parameter_groups([pair.query, head], weight_decay=5e-4, decay_norms_and_biases=True),
        learning_rate=0.1,
        momentum=0.9,
    )
    where = torch.device(device)
    return Trainer(
        TrainStep(pair, head, optimizer, Augmented(Augment(flip=0.5), where), device=where),
        schedule=build_schedule(optimizer, "cosine", total=total_steps, warmup=0),
        loader=AttentionLoader(store, batch_size, head.keys_per_query, 0, image_size=56, workers=0),
        total_steps=total_steps,
        run_folder=folder,
        model_config={"network": "r6_tiny", "options": {}, "training_data": {"root": "synthetic", "licence": "none"}},
        accumulation=accumulation,
        log=RunLog(every=1, tensorboard=False),
    )


def trained(trainer: Trainer) -> list[torch.nn.Parameter]:
    """Parameters of the query encoder that are trained (IResNets freeze the scale of their last BatchNorm)."""
    return [parameter for parameter in trainer.pair.query.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("head_name", ["attfc", "full_fc"])
def test_model_head_and_loss_run_on_the_meta_device(tmp_path, head_name) -> None:
    trainer = make_trainer(tmp_path, head_name, device="meta")
    batch = next(iter(trainer.loader))
    loss = trainer.take_step.loss(batch)
    assert loss.device.type == "meta"
    assert loss.shape == ()
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.device.type == "meta" for parameter in trained(trainer))


def test_gradient_accumulation_descends_the_mean_loss_of_its_batches(tmp_path) -> None:
    trainer = make_trainer(tmp_path, "full_fc", batch_size=8)
    trainer.pair.query.eval()  # fixed BatchNorm: the gradient of the mean is then the mean of the gradients
    batches = [batch for batch, _ in zip(trainer.loader.batches(2), range(2), strict=True)]
    losses, gradients = [], []
    for batch in batches:
        trainer.optimizer.zero_grad()
        loss = trainer.take_step.loss(batch)
        loss.backward()
        losses.append(loss.detach())
        gradients.append([parameter.grad.clone() for parameter in trained(trainer)])
    seen = []
    trainer.take_step.clip = 0.0
    trainer.optimizer.register_step_pre_hook(
        lambda *_: seen.extend(parameter.grad.clone() for parameter in trained(trainer))
    )
    total = trainer.train_step(batches)
    torch.testing.assert_close(total, torch.stack(losses).mean())
    for got, first, second in zip(seen, *gradients, strict=True):
        torch.testing.assert_close(got, (first + second) / 2, rtol=1e-4, atol=1e-6)


def test_accumulation_consumes_exactly_its_batches(tmp_path) -> None:
    trainer = make_trainer(tmp_path, batch_size=4, accumulation=3, total_steps=4)
    trainer.checkpoint_every = 0
    trainer.train()
    assert trainer.loader.state_dict() == make_state_after(tmp_path, 12)


def test_data_that_end_the_run_cost_no_step(tmp_path, monkeypatch) -> None:
    whole = make_trainer(tmp_path / "whole", accumulation=2)
    whole.run_folder.mkdir()
    whole.train()

    stopped = make_trainer(tmp_path / "stopped", accumulation=2)
    stopped.run_folder.mkdir()
    judge, judged = AttentionLoader._judge, itertools.count()

    def too_many_broken(loader: AttentionLoader, broken: object) -> None:
        if next(judged) == 5:  # the second batch of the third step
            raise UserError("too many are broken")
        judge(loader, broken)

    monkeypatch.setattr(AttentionLoader, "_judge", too_many_broken)
    with pytest.raises(
        UserError,
        match=r"too many are broken; saved at step 2; go on with: attfc train --resume .*stopped$",
    ):
        stopped.train()
    monkeypatch.undo()

    resumed = make_trainer(tmp_path / "stopped", accumulation=2)
    resumed.load(latest_checkpoint(tmp_path / "stopped" / "checkpoints"))
    resumed.train()
    for expected, found in zip(trained(whole), trained(resumed), strict=True):
        assert torch.equal(expected, found)


def test_a_disk_without_room_for_a_checkpoint_is_told_after_one_step(tmp_path, monkeypatch) -> None:
    sizes = iter([0, 1 << 20])  # a file system that states no size, then a small one
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=next(sizes), free=1 << 20))
    make_trainer(tmp_path).train()
    again = make_trainer(tmp_path)
    with pytest.raises(
        UserError, match=r"a checkpoint takes \d+\.\d MiB, and 1\.0 MiB are free in .*: make room there, or"
    ):
        again.train()
    assert again.step == 1
    momentum = again.optimizer.state[trained(again)[0]]["momentum_buffer"]
    assert momentum.numel() == trained(again)[0].numel()  # what is not there before the first step is counted


def make_state_after(folder: Path, batches: int) -> dict[str, object]:
    """State of the same loader after that many batches."""
    loader = make_trainer(folder, batch_size=4).loader
    for _ in loader.batches(batches):
        pass
    return loader.state_dict()


def test_the_gradient_is_clipped_to_the_norm_that_was_asked(tmp_path) -> None:
    trainer = make_trainer(tmp_path, "full_fc")
    trainer.take_step.clip = 1e-3
    trainer.train_step([next(iter(trainer.loader))])
    norm = math.sqrt(sum(float(parameter.grad.double().square().sum()) for parameter in trained(trainer)))
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_float16_steps_under_the_gradient_scaler(tmp_path) -> None:
    trainer = make_trainer(tmp_path, "full_fc", total_steps=6)
    step = trainer.take_step
    trainer.take_step = TrainStep(step.pair, step.head, step.optimizer, step.prepare, autocast_dtype=torch.float16)
    assert trainer.take_step.scaler.is_enabled()
    before = [parameter.detach().clone() for parameter in trained(trainer)]
    trainer.take_step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for batch in trainer.loader.batches(2):
        assert torch.isfinite(trainer.train_step([batch]))
    assert any(not torch.equal(old, new) for old, new in zip(before, trained(trainer), strict=True))
    scale = trainer.state_dict()["scaler"]["scale"]
    resumed = make_trainer(tmp_path, "full_fc", total_steps=6)  # in float32: the saved scale is left alone
    resumed.load_state_dict(trainer.state_dict())
    assert scale == 2.0**8


def test_training_lowers_the_loss_and_touches_no_key_encoder_gradient(tmp_path) -> None:
    trainer = make_trainer(tmp_path, "full_fc", total_steps=30)
    trainer.checkpoint_every = 0
    losses = []
    original = trainer.train_step
    trainer.train_step = lambda batches: losses.append(float(loss := original(batches))) or loss
    trainer.train()
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in trainer.pair.key.parameters())
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_the_key_encoder_moves_once_a_step_and_counts_them(tmp_path) -> None:
    trainer = make_trainer(tmp_path, accumulation=2)
    batches = list(trainer.loader.batches(6))
    for start in (0, 2, 4):
        trainer.train_step(batches[start : start + 2])
        trainer.step += 1
    assert trainer.pair.step == 3  # the ramp of its momentum goes by this count


def places(value, place=()):
    """Every place in a nested state, down to four keys deep."""
    if place:
        yield place
    if isinstance(value, dict) and len(place) < 4:
        for key in value:
            yield from places(value[key], (*place, key))


def replaced(value, place, odd):
    """A copy of a nested state with another value at a place."""
    return odd if not place else {**value, place[0]: replaced(value[place[0]], place[1:], odd)}


def test_a_state_with_anything_anywhere_is_taken_up_or_refused_in_one_line(tmp_path) -> None:
    trainer = make_trainer(tmp_path, "full_fc", total_steps=2)
    trainer.train_step([next(iter(trainer.loader))])
    state = trainer.state_dict()
    quick = [place for place in places(state) if place[0] not in ("pair", "schedule") and place[1:2] != ("state",)]
    assert len(quick) > 30
    for place, odd in itertools.product(quick, (None, "x", [], {}, math.inf)):
        with contextlib.suppress(UserError):
            trainer.load_state_dict(replaced(state, place, odd))
    trainer.load_state_dict(state)


@pytest.mark.parametrize("kept", [False, True])
def test_kept_statistics_are_not_averaged_over_ranks(monkeypatch, kept) -> None:
    """They are equal on all, and the mean of three equal numbers would round."""
    averaged: list[object] = []
    monkeypatch.setattr(
        "attfc.training.step.average_running_statistics", lambda modules, ranks: averaged.extend(modules)
    )
    pair = MomentumPair(torch.nn.BatchNorm1d(3), keys=False, keep_statistics=kept)
    head = FullFC(3, 4, CosFace())
    step = TrainStep(pair, head, torch.optim.SGD([*pair.parameters(), *head.parameters()], lr=0.1))
    pair.train()
    step([Inputs(torch.randn(4, 3), torch.arange(4))])
    assert averaged == ([] if kept else [pair])
