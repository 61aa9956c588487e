"""Rows that come to the device ahead, and go back later: the same losses, bit for bit, as reading and writing them in the step."""

import copy
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attfc.errors import UserError
from attfc.heads import AttFC, CenterTable, ImageMemory, KeyAttention, OtherImages, RecentCenters
from attfc.heads.banks import kept_rows
from attfc.heads.banks.kept_rows import KeptRows
from attfc.heads.banks.rows_ahead import Arriving, RowThread
from attfc.losses import CosFace
from attfc.training.momentum import MomentumPair
from attfc.training.step import Inputs, TrainStep

SIZE, IDENTITIES, IMAGES, BATCH, STEPS = 8, 40, 120, 10, 20
CPU = torch.device("cpu")
PLACES = ["device", "host", "file"]
PARTS: dict[str, Any] = {
    "drawn": lambda **place: {"negatives": CenterTable(count=12, **place)},
    "trained": lambda **place: {
        "negatives": CenterTable(count=12, trained=7, image_counts=range(IDENTITIES), **place)
    },
    "beside": lambda **place: {"negatives": RecentCenters(count=15), "stored": CenterTable(**place)},
    "keys": lambda **place: {"center": KeyAttention(share=0.0), "in_batch": "fixed", "negatives": CenterTable(count=9, **place)},
    "images": lambda **place: {"center": OtherImages(IMAGES), "negatives": ImageMemory(count=12, **place)},
    "images beside": lambda **place: {
        "center": OtherImages(IMAGES), "negatives": RecentCenters(count=15), "stored": ImageMemory(**place)
    },
}  # fmt: skip


def train_step(parts: str, place: str, folder: Path) -> TrainStep:
    torch.manual_seed(0)
    where = {"place": place} | ({"folder": folder} if place == "file" else {})
    head = AttFC(SIZE, CosFace(16.0), identities=IDENTITIES, **PARTS[parts](**where))
    pair = MomentumPair(nn.Linear(6, SIZE))
    return TrainStep(pair, head, torch.optim.SGD(pair.query.parameters(), lr=0.5))


def losses(step: TrainStep, first: int = 0, stop: int = STEPS) -> list[float]:
    """Of steps over two batches, in which identities and images repeat."""
    found = []
    for number in range(first, stop):
        draw = torch.Generator().manual_seed(number)
        batches = []
        for _ in range(2):
            positions = torch.randint(IMAGES, (BATCH,), generator=draw)
            images = torch.randn(BATCH, 6, generator=draw)
            keys = torch.randn(BATCH, 2, 6, generator=draw) if step.head.keys_per_query else None
            batches.append(Inputs(images, positions // 3, keys, positions))
        found.append(float(step(batches)))
    return found


def plain(step: TrainStep, monkeypatch: pytest.MonkeyPatch) -> TrainStep:
    monkeypatch.setattr(step.head, "bring", lambda *_: {})
    return step


class Late:
    """The event of a copy that takes its time."""

    def synchronize(self) -> None:
        assert threading.current_thread() is not threading.main_thread(), "nobody else may wait for the device"
        time.sleep(0.003)


@pytest.fixture
def written_later(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that do not live on the device are written when a copy has come, as with an accelerator."""
    written = []

    def late_copy(tensors: tuple[Tensor, ...]) -> Arriving:
        written.append(len(tensors))
        return Arriving(tuple(tensor.clone() for tensor in tensors), Late())  # type: ignore[arg-type]

    later = RowThread.later
    monkeypatch.setattr(RowThread, "later", lambda self, task, at_once=False: later(self, task))
    monkeypatch.setattr(kept_rows, "to_host", late_copy)
    monkeypatch.setattr(KeptRows, "_apart", lambda self, _: self.place != "device")
    return written


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("parts", PARTS)
def test_losses_are_those_of_rows_read_in_the_step(parts: str, place: str, tmp_path: Path, monkeypatch) -> None:
    expected = losses(plain(train_step(parts, "host", tmp_path), monkeypatch))
    step = train_step(parts, place, tmp_path)
    taken: list[bool] = []
    forward = step.head.forward
    monkeypatch.setattr(
        step.head, "forward", lambda *args, **rest: (taken.append("ahead" in rest), forward(*args, **rest))[1]
    )
    assert losses(step) == expected
    assert len(set(expected)) == STEPS
    assert taken == [place != "device"] * 2 * STEPS


@pytest.mark.parametrize("parts", PARTS)
def test_what_is_written_later_is_there_for_the_next_step_and_for_a_save(
    parts: str, tmp_path: Path, monkeypatch, written_later: list[int]
) -> None:
    expected = losses(plain(train_step(parts, "device", tmp_path), monkeypatch))
    assert not written_later
    step = train_step(parts, "host", tmp_path)
    found = losses(step, 0, 7)
    again = train_step(parts, "host", tmp_path)  # a resume in mid-run; the optimizer has no state
    again.head.load_state_dict(step.head.state_dict())
    again.pair.load_state_dict(step.pair.state_dict())
    for name, rows in copy.deepcopy(step.head).named_buffers():
        assert torch.equal(rows, again.head.get_buffer(name)), "a copy has what was under way"
    assert found + losses(step, 7) == expected
    assert losses(again, 7) == expected[7:]
    assert len(written_later) == 2 * (STEPS + STEPS - 7)


def test_a_step_taken_by_hand_follows_those_with_rows_brought(tmp_path: Path, monkeypatch, written_later) -> None:
    expected = losses(plain(train_step("drawn", "device", tmp_path), monkeypatch))
    step = train_step("drawn", "host", tmp_path)
    found = losses(step, 0, 5)
    with monkeypatch.context() as patch:
        found += losses(plain(step, patch), 5, 9)
    assert found + losses(step, 9) == expected


def test_rows_under_way_that_nobody_took_are_forgotten(tmp_path: Path, monkeypatch) -> None:
    expected = losses(plain(train_step("drawn", "device", tmp_path), monkeypatch))
    step = train_step("drawn", "host", tmp_path)
    found = losses(step, 0, 4)
    step.head.bring(torch.arange(BATCH), None, CPU)  # and then the encoder fails
    assert found + losses(step, 4) == expected


def test_labels_that_cannot_be_are_refused_as_ever(tmp_path: Path) -> None:
    head = train_step("drawn", "host", tmp_path).head
    with pytest.raises(UserError, match="label 40 is outside 0 to 39: build the head with identities"):
        head.bring(torch.tensor([3, 40]), None, CPU)
    for labels in (torch.tensor([-1]), torch.tensor([1.0]), torch.zeros(0, dtype=torch.int64), torch.zeros(2, 2)):
        assert head.bring(labels, None, CPU) == {}, "forward says what is wrong"
    assert head.bring(torch.zeros(2, dtype=torch.int64, device="meta"), None, CPU) == {}, "unknown to the host"


def test_what_failed_in_the_thread_is_raised() -> None:
    thread = RowThread()
    thread.later(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        thread.settle()
    failed = thread.later(lambda: 1 // 0)
    assert isinstance(failed.exception(), ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        thread.later(lambda: 1)
