"""Heads in shards against one process: same losses, gradients, rows and evictions for the same global batches."""

import pytest
import torch

from .launch import on_ranks
from .workers import run_head, run_heads

ATTFC = {
    "published": {"policy": "fifo", "center_blend": 0.0, "in_batch_negatives": False, "slots": 41},
    "tuned": {"slots": 41},
    "fifo in batch": {"policy": "fifo", "slots": 29, "include_stored_center": True},
    "int8 random": {"dtype": "int8", "slots": 32, "initial": "random"},
    "bfloat16 query": {"dtype": "bfloat16", "center_source": "query", "slots": 30},
    "filtered": {"interclass_filtering_threshold": 0.2, "filtering": "zero", "slots": 16},
    "adaface": {"margin": "adaface", "slots": 25},
}
FULL = {
    "cosface": {},
    "adaface": {"margin": "adaface"},
    "filtered": {"interclass_filtering_threshold": 0.1},
    "arcface zero": {"margin": "combined", "interclass_filtering_threshold": 0.3, "filtering": "zero"},
}


CASES = {
    **{f"attfc {name}": ("attfc", options, torch.float64) for name, options in ATTFC.items()},
    **{f"full_fc {name}": ("full_fc", options, torch.float64) for name, options in FULL.items()},
    "attfc in float32": ("attfc", ATTFC["tuned"], torch.float32),
    "full_fc in float32": ("full_fc", {}, torch.float32),
}


@pytest.fixture(scope="module")
def on_two() -> dict[str, list[dict[str, list[torch.Tensor]]]]:
    """All cases on two ranks, in one pair of processes."""
    first, second = on_ranks(2, run_heads, list(CASES.values()))
    return {name: [first[number], second[number]] for number, name in enumerate(CASES)}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one(name, on_two) -> None:
    assert_equal_to_one_process(on_two[name], *CASES[name])


@pytest.mark.slow  # four processes on two cores
@pytest.mark.parametrize("name", CASES)
def test_four_ranks_are_one(name) -> None:
    assert_equal_to_one_process(on_ranks(4, run_head, *CASES[name]), *CASES[name])


def assert_equal_to_one_process(
    parts: list[dict[str, list[torch.Tensor]]], kind: str, options: dict[str, object], dtype: torch.dtype
) -> None:
    whole = run_head(kind, options, dtype)
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    for part in parts:
        for name in ("losses", "gradients", "margin"):
            assert len(part[name]) == len(whole[name])
            for mine, expected in zip(part[name], whole[name], strict=True):
                torch.testing.assert_close(mine, expected, **tolerance)
        assert all(torch.equal(a, b) for a, b in zip(part["labels"], whole["labels"], strict=True))
    for number, expected in enumerate(whole["shards"]):
        rows = torch.cat([part["shards"][number] for part in parts])
        loose = tolerance if dtype == torch.float64 and kind != "attfc" else {"rtol": 1e-5, "atol": 1e-6}
        if options.get("dtype") == "int8" and rows.abs().max() > 1:  # a rounded number may fall on the other side
            loose = {"rtol": 0.0, "atol": 1.0}
        if dtype == torch.float32 and kind == "full_fc":
            # Single numbers near 0 carry the rounding of nine steps; the tensor as a whole is held to 1e-5.
            assert torch.linalg.vector_norm(rows - expected) <= 1e-5 * torch.linalg.vector_norm(expected)
        else:
            torch.testing.assert_close(rows, expected, **loose)
