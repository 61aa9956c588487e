"""Learning rate factors at points whose values are known by hand, and the scheduler built on them."""

import itertools
import math

import pytest
import torch

from attfc.errors import UserError
from attfc.training.schedule import build_schedule, learning_rate_factor


def test_cosine_at_known_points():
    factors = [learning_rate_factor(step, 100) for step in (0, 25, 50, 75, 100, 200)]
    assert factors == pytest.approx([1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.0, 0.0])


def test_polynomial_at_known_points():
    factors = [learning_rate_factor(step, 100, kind="polynomial", power=2.0) for step in (0, 50, 90, 100)]
    assert factors == pytest.approx([1.0, 0.25, 0.01, 0.0])
    assert learning_rate_factor(50, 100, kind="polynomial", power=0.5) == pytest.approx(math.sqrt(0.5))


def test_constant():
    assert {learning_rate_factor(step, 10, kind="constant") for step in range(15)} == {1.0}


@pytest.mark.parametrize("kind", ["cosine", "polynomial", "constant"])
def test_warm_up_is_a_line_to_the_full_rate(kind):
    factors = [learning_rate_factor(step, 20, 4, kind) for step in range(5)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("kind", ["cosine", "polynomial"])
def test_fall_starts_after_the_warm_up_and_ends_at_final(kind):
    shifted = [learning_rate_factor(step + 10, 60, 10, kind) for step in range(51)]
    assert shifted == pytest.approx([learning_rate_factor(step, 50, 0, kind) for step in range(51)])
    assert learning_rate_factor(60, 60, 10, kind, final=0.1) == pytest.approx(0.1)
    assert learning_rate_factor(10, 60, 10, kind, final=0.1) == 1.0
    assert all(a > b for a, b in itertools.pairwise(shifted))


def test_schedule_scales_each_group_and_resumes():
    def make():
        parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
        optimizer = torch.optim.SGD([{"params": [parameters[0]], "lr": 0.1}, {"params": [parameters[1]], "lr": 1.0}])
        return optimizer, build_schedule(optimizer, "cosine", total=8, warmup=2, final=0.01)

    optimizer, schedule = make()
    rates = []
    for _ in range(8):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    for step, (small, large) in enumerate(rates):
        assert small == pytest.approx(0.1 * learning_rate_factor(step, 8, 2, final=0.01))
        assert large == pytest.approx(10 * small)

    optimizer, schedule = make()
    for _ in range(3):
        optimizer.step()
        schedule.step()
    again_optimizer, again = make()
    again_optimizer.load_state_dict(optimizer.state_dict())
    again.load_state_dict(schedule.state_dict())
    resumed = []
    for _ in range(5):
        resumed.append([group["lr"] for group in again_optimizer.param_groups])
        again_optimizer.step()
        again.step()
    assert resumed == rates[3:]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"total": 10, "warmup": 10}, "warm-up of 10 steps does not fit a run of 10 steps"),
        ({"total": 0}, "does not fit a run of 0 steps"),
        ({"total": 10, "warmup": -1}, "warm-up of -1 steps"),
        ({"total": 10, "kind": "step"}, "'step' is unknown"),
        ({"total": 10, "kind": "polynomial", "power": 0.0}, "power 0.0 must be above 0"),
        ({"total": 10, "final": 1.5}, "share 1.5 is outside"),
    ],
)
def test_bad_options_are_refused_at_once(options, text):
    with pytest.raises(UserError, match=text):
        learning_rate_factor(0, **options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(UserError, match=text):
        build_schedule(optimizer, **options)
