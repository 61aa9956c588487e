"""How often a batch is halved until the planner says that it fits."""

import pytest
import torch

from attfc.config import load_config
from attfc.run.planning import passes_that_fit


def divided(gib: float, *typed: str, ranks: int = 1) -> int:
    config = load_config("demo", ["backbone.name=r18", "batch_size=256", "precision.amp=none", *typed])
    return passes_that_fit(config, 600, 9_600, torch.device("cpu"), gib * 2**30, ranks)


def test_what_fits_is_left_alone_and_what_does_not_is_halved() -> None:
    assert divided(1_000) == 1
    some, fewer = divided(4), divided(2)
    assert 1 < some < fewer
    assert divided(4, ranks=2) <= some // 2 or divided(4, ranks=2) == 1


@pytest.mark.parametrize(("batch", "least"), [(256, 128), (12, 4), (6, 2)])
def test_each_process_keeps_two_images_or_more_and_whole_ones(batch: int, least: int) -> None:
    by = divided(0.001, f"batch_size={batch}")
    assert batch % by == 0
    assert by <= least
    assert batch // by >= 2
