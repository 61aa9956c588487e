"""A run on the device that is saved and resumed goes on as the one that was not: every head, precision and place of its rows."""

import pytest
import torch
from cases import CASES, MARKS, run_of, take_step

from attfc.run.resuming import resume_run

pytestmark = MARKS


@pytest.mark.parametrize(("name", "place", "amp"), CASES)
def test_a_resumed_run_goes_on(tmp_path, name, place, amp) -> None:
    whole = run_of(name, place, amp, tmp_path)
    for _ in range(3):
        take_step(whole)
    whole.trainer.save()
    resumed = resume_run(whole.folder, [])
    assert resumed.trainer.step == 3
    losses = torch.tensor([[float(take_step(run)) for _ in range(3)] for run in (whole, resumed)])
    # A GPU adds up in any order.
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-2, atol=1e-3)
