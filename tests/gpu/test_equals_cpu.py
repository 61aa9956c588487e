"""Losses of the first steps on the device are those of the processor: every head, precision and place of its rows."""

import pytest
import torch
from cases import CASES, DEVICE, MARKS, run_of, take_step

pytestmark = MARKS


TOLERANCES = {"none": 2e-2, "bfloat16": 6e-2}  # float16 is no type of a processor's run


@pytest.mark.parametrize(("name", "place", "amp"), [case for case in CASES if case[2] in TOLERANCES])
def test_losses_are_those_of_the_processor(tmp_path, name, place, amp) -> None:
    runs = [run_of(name, place, amp, tmp_path / device, device) for device in dict.fromkeys((DEVICE, "cpu"))]
    losses = torch.tensor([[float(take_step(run)) for _ in range(3)] for run in runs])
    torch.testing.assert_close(losses[0], losses[-1], rtol=TOLERANCES[amp], atol=1e-3)
