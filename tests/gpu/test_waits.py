"""A training step on a GPU never makes the host wait: torch itself raises where it would.

In backward the thread that called it waits for the gradient of rows in host memory, beside the thread that queues the network's. Left out are
float16, whose scaler reads whether a gradient overflowed, and rows in a file.
"""

from collections.abc import Iterator

import pytest
import torch
from cases import AMPS, HEADS, MARKS, ON_GPU, run_of

from attfc.training.reports import StepReport

pytestmark = MARKS


@pytest.fixture
def refuse_to_wait() -> Iterator[None]:
    if not ON_GPU:
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    yield
    torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("amp", [amp for amp in AMPS if amp != "float16"])
@pytest.mark.parametrize(
    ("name", "place"),
    [*((name, "device") for name in HEADS), ("attfc drawn", "host"), ("attfc others", "host"), ("partial_fc", "host")],
)
def test_a_step_does_not_wait_for_the_device(tmp_path, refuse_to_wait, name, place, amp) -> None:
    trainer = run_of(name, place, amp, tmp_path).trainer
    for number in range(6):
        batches = [next(trainer.loader.batches(trainer.loader.step + 1)) for _ in range(trainer.accumulation)]
        if number == 3 and ON_GPU:  # optimizer state, cuDNN's choices and the allocator's first blocks are there
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        loss = trainer.train_step(batches)
        report = StepReport(trainer.step, loss, batches, False, trainer.ranks)
        trainer.step += 1
    if ON_GPU:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    assert torch.isfinite(report.figures).all()
