"""Rows of Partial FC on the host and in a file: brought ahead, gradients back late; losses and rows are those of rows on the device, to the bit.

A copy from a device is imitated: what is read before it has landed is not a number.
"""

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attfc.errors import UserError
from attfc.heads import PartialFC
from attfc.heads.banks import row_store
from attfc.heads.banks.rows_ahead import Arriving, RowThread
from attfc.losses import CosFace
from attfc.training.momentum import MomentumPair
from attfc.training.optimizers import build_optimizer, parameter_groups
from attfc.training.step import Inputs, TrainStep

SIZE, IDENTITIES, BATCH, STEPS = 8, 50, 6, 12
CPU = torch.device("cpu")


def train_step(place: str, folder: Path, name: str = "sgd", share: float = 0.3) -> TrainStep:
    torch.manual_seed(0)
    head = PartialFC(
        SIZE, IDENTITIES, CosFace(16.0), share, place=place, folder=folder if place == "file" else None, seed=3
    )
    pair = MomentumPair(nn.Linear(6, SIZE), keys=False)
    groups = parameter_groups([pair.query, head], weight_decay=0.01)
    stores = {} if place == "device" else {head.weight: head.rows}
    return TrainStep(pair, head, build_optimizer(name, groups, learning_rate=0.05, stores=stores))


def inputs(number: int) -> Inputs:
    draw = torch.Generator().manual_seed(number)
    return Inputs(torch.randn(BATCH, 6, generator=draw), torch.randint(IDENTITIES, (BATCH,), generator=draw))


def losses(step: TrainStep, first: int = 0, stop: int = STEPS) -> list[float]:
    """Of steps over one batch and over two."""
    return [
        float(step([inputs(2 * number), inputs(2 * number + 1)][: 1 + number % 2])) for number in range(first, stop)
    ]


def assert_equal(step: TrainStep, expected: TrainStep) -> None:
    assert torch.equal(step.head.weight, expected.head.weight)
    kept, wanted = (each.optimizer.state[each.head.weight] for each in (step, expected))
    assert kept.keys() == wanted.keys()
    assert all(torch.equal(kept[name], wanted[name]) for name in kept)


@pytest.fixture
def landings(monkeypatch: pytest.MonkeyPatch) -> list[Arriving]:
    """Copies that land when they are waited for, and reads in a thread, as with an accelerator; the copies so far."""
    sent: list[Arriving] = []

    class Copy:
        def __init__(self, tensors: tuple[Tensor, ...], blocks: tuple[Tensor, ...]) -> None:
            self.tensors, self.blocks = tensors, blocks

        def synchronize(self) -> None:
            for block, tensor in zip(self.blocks, self.tensors, strict=True):
                block.copy_(tensor)

    def to_host(tensors: tuple[Tensor, ...]) -> Arriving:
        blocks = tuple(torch.full_like(tensor, float("nan")) for tensor in tensors)
        sent.append(Arriving(blocks, Copy(tensors, blocks)))  # type: ignore[arg-type]
        return sent[-1]

    later = RowThread.later
    monkeypatch.setattr(RowThread, "later", lambda self, task, at_once=False: later(self, task))
    monkeypatch.setattr(row_store, "to_host", to_host)
    return sent


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def plain(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, TrainStep, list[float]]:
    """The optimizer's name; a run with rows on the device, read in the step; its losses."""
    step = train_step("device", tmp_path_factory.mktemp("none"), request.param)
    return request.param, step, losses(step)


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("place", ["host", "file"])
def test_losses_rows_and_momentum_are_those_of_rows_on_the_device(
    plain, place: str, late: bool, tmp_path: Path, monkeypatch, request: pytest.FixtureRequest
) -> None:
    copies = request.getfixturevalue("landings") if late else []
    name, expected, wanted = plain
    step = train_step(place, tmp_path, name)
    taken: list[bool] = []
    forward = step.head.forward
    monkeypatch.setattr(
        step.head, "forward", lambda *args, **rest: (taken.append("ahead" in rest), forward(*args, **rest))[1]
    )
    assert losses(step) == wanted
    assert len(set(wanted)) == STEPS
    assert taken == [True] * (STEPS * 3 // 2)
    assert len(copies) == len(taken) * late
    assert_equal(step, expected)


@pytest.mark.parametrize("place", ["host", "file"])
def test_a_resumed_run_and_steps_taken_by_hand_go_on_as_one(
    plain, place: str, tmp_path: Path, monkeypatch, landings
) -> None:
    name, expected, wanted = plain
    step, again = (train_step(place, tmp_path, name) for _ in range(2))
    found = losses(step, 0, 5)
    again.head.load_state_dict(step.head.state_dict())
    again.pair.load_state_dict(step.pair.state_dict())
    again.optimizer.load_state_dict(copy.deepcopy(step.optimizer.state_dict()))
    with monkeypatch.context() as patch:
        patch.setattr(step.head, "bring", lambda *_: {})
        found += losses(step, 5, 8)
    assert found + losses(step, 8) == wanted
    assert_equal(step, expected)
    assert losses(again, 5) == wanted[5:]
    assert_equal(again, expected)


def test_all_classes_and_more_samples_than_the_share(tmp_path: Path, landings) -> None:
    for share in (1.0, 0.02):
        expected, step = (train_step(place, tmp_path, share=share) for place in ("device", "host"))
        assert losses(step, 0, 4) == losses(expected, 0, 4)
        assert_equal(step, expected)


def test_in_eval_the_rows_of_the_next_draw_come_and_it_stays_the_next(tmp_path: Path, landings) -> None:
    expected, step = (train_step(place, tmp_path) for place in ("device", "host"))
    for each in (expected, step):
        losses(each, 0, 3)
        each.head.eval()
    with torch.no_grad():
        found = [float(step.loss(inputs(90 + number))) for number in (0, 1, 0)]
        assert found == [float(expected.loss(inputs(90 + number))) for number in (0, 1, 0)]
    assert found[0] == found[2] != found[1]
    for each in (expected, step):
        each.head.train()
    assert losses(step, 3) == losses(expected, 3)


def test_rows_brought_too_early_are_refused(tmp_path: Path, landings) -> None:
    step = train_step("host", tmp_path)
    head, batch = step.head, inputs(1)
    queries = step.pair.query(batch.queries)

    def bring() -> dict[str, Any]:
        return head.bring(batch.labels, None, CPU)

    message = "bring fetched the rows of another step: call bring for each batch, after the optimizer's step"
    two = bring(), bring()
    loss = head(queries, batch.labels, ahead=two[0])
    with pytest.raises(UserError, match=message):
        head(queries, batch.labels, ahead=two[1])  # of the draw that the first used
    loss.backward()
    early = bring()
    step.optimizer.step()
    with pytest.raises(UserError, match=message):
        head(queries, batch.labels, ahead=early)  # of rows that the optimizer has changed since
    head(queries, batch.labels, ahead=bring())


def test_labels_that_cannot_be_are_refused_as_ever(tmp_path: Path) -> None:
    head = train_step("host", tmp_path).head
    with pytest.raises(UserError, match="label 50 is outside 0 to 49: build the head with identities"):
        head.bring(torch.tensor([3, 50]), None, CPU)
    for labels in (torch.tensor([-1]), torch.tensor([1.0]), torch.zeros(0, dtype=torch.int64), torch.zeros(2, 2)):
        assert head.bring(labels, None, CPU) == {}, "forward says what is wrong"
    assert head.bring(torch.zeros(2, dtype=torch.int64, device="meta"), None, CPU) == {}, "unknown to the host"
    assert train_step("device", tmp_path).head.bring(torch.tensor([3]), None, CPU) == {}


@pytest.mark.parametrize("place", ["host", "file"])
def test_a_copy_of_a_head_trains_on_its_own(place: str, tmp_path: Path, landings) -> None:
    step = train_step(place, tmp_path)
    losses(step, 0, 3)
    for twin in (copy.deepcopy(step.head), pickle.loads(pickle.dumps(step.head))):  # noqa: S301 our own
        found = []
        for head in (step.head, twin):
            head.zero_grad()
            head.draws = 3
            batch = inputs(7)
            loss = head(torch.randn(BATCH, SIZE, generator=torch.Generator().manual_seed(0)), batch.labels,
                        ahead=head.bring(batch.labels, None, CPU))  # fmt: skip
            loss.backward()
            found.append((loss.detach(), head.weight.grad.to_dense()))
        assert all(map(torch.equal, *found))
        assert twin.rows is not step.head.rows


def test_the_gradient_is_the_copy_itself(tmp_path: Path, landings) -> None:
    step = train_step("host", tmp_path)
    batch = inputs(0)
    step.loss(batch).backward()
    gradient = step.head.weight.grad
    assert gradient._values().data_ptr() == landings[0].tensors[0].data_ptr()
    assert gradient.is_coalesced()


def test_rows_are_read_while_the_network_runs(tmp_path: Path, monkeypatch, landings) -> None:
    step = train_step("file", tmp_path)
    read, reading = threading.Event(), step.head._read

    def noted(*args: Any) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        drawn = reading(*args)
        read.set()
        return drawn

    monkeypatch.setattr(step.head, "_read", noted)

    def wait(*_: Any) -> None:
        assert read.wait(timeout=60), "nothing came"

    step.pair.query.register_forward_pre_hook(wait)
    for number in range(3):
        read.clear()
        step([inputs(number)])


def test_the_network_steps_before_the_rows(tmp_path: Path, monkeypatch) -> None:
    """So that a device has its work before the host updates rows."""
    step = train_step("host", tmp_path)
    before = step.pair.query.weight.detach().clone()
    moved = []
    update = type(step.optimizer)._update_rows
    monkeypatch.setattr(
        type(step.optimizer),
        "_update_rows",
        lambda *args: (moved.append(not torch.equal(step.pair.query.weight, before)), update(*args))[1],
    )
    step([inputs(0)])
    assert moved == [True]
