"""Heads in shards against one process: same losses, gradients, rows and evictions for the same global batches."""

import pytest
import torch

from .launch import on_ranks
from .workers import IMAGES, full_state, full_states, refusals, run_head, run_heads, scaled_steps, steps_by_place


def attfc(
    rule: str = "keys", count: int = 41, policy: str = "unique", share: float = 0.8, in_batch: str = "fixed",
    bank: str = "recent", stored: str | None = None, dtype: str = "float32", initial: str = "empty",
    include_stored: bool = False, own: dict[str, object] | None = None, trained: int = 0, **rest: object,
) -> dict[str, object]:  # fmt: skip
    """Parts of an AttFC by name, as `workers.build` puts them together."""
    options = {"keys": {"share": share, "include_stored": include_stored}, "others": {"images": IMAGES}}
    slots = {"policy": policy, "dtype": dtype, "initial": initial} if bank == "recent" else {}
    if trained:
        slots = {"trained": trained, "image_counts": range(1, 61)}
    kept = {} if stored is None else {"stored": (stored, {})}
    rule_options = options.get(rule, own or {"share": share})
    return {"rule": (rule, rule_options), "bank": (bank, {"count": count, **slots}), "in_batch": in_batch} | kept | rest


BY_IMAGES = {"memory": 0.3, "image_counts": range(1, 61)}
ATTFC = {
    "published": attfc(policy="fifo", share=0.0, in_batch="none"),
    "tuned": attfc(),
    "fifo in batch": attfc(policy="fifo", count=29, include_stored=True),
    "int8 random": attfc(dtype="int8", count=32, initial="random"),
    "bfloat16 query": attfc("own", dtype="bfloat16", count=30),
    "filtered": attfc(filter_above=0.2, filtering="zero", count=16),
    "adaface": attfc(margin="adaface", count=25),
    "table": attfc("own", stored="table", count=17),
    "drawn": attfc(bank="table", count=25),
    "batch": attfc("pairs", count=17),
    "groups": attfc("pairs", count=17, labels=4) | {"rule": ("pairs", {"share": 0.8, "group": 4, "own": True})},
    "others": attfc("others", bank="memory", count=25),
    "drawn, two-way": attfc("own", bank="table", count=25, in_batch="push"),
    "batch, two-way": attfc("pairs", count=17, in_batch="push", policy="fifo"),
    "share by images": attfc(
        "own", bank="table", count=25, in_batch="push", own=BY_IMAGES, filter_above=0.2, filter_gap=0.1
    ),
    "others, two-way": attfc("others", bank="memory", count=25, in_batch="push"),
    "others, recent negatives": attfc("others", count=17),
    "table and keys": attfc(stored="table", include_stored=True, policy="fifo", count=17),
    "trained": attfc("own", bank="table", count=25, in_batch="push", trained=13),
    "trained, fixed": attfc("own", bank="table", count=25, in_batch="fixed", trained=13, margin="adaface"),
    "trained, none": attfc(
        "own", bank="table", count=25, in_batch="none", trained=30, filter_above=0.2, filtering="zero"
    ),
    "one trained": attfc("own", bank="table", count=25, in_batch="push", trained=1),  # on the first rank
    "all trained": attfc("own", bank="table", count=25, in_batch="push", trained=99),
}
FULL = {
    "cosface": {},
    "subcenters": {"subcenters": 3, "filter_above": 0.4},
    "adaface": {"margin": "adaface", "identities": 5},
    "filtered": {"filter_above": 0.1},
    "arcface zero": {"margin": "combined", "filter_above": 0.3, "filtering": "zero"},
}
# At 0.4 a step sees 15 of 37 classes, at 0.01 as many as the batch.
PARTIAL = {
    "cosface": {"share": 0.4},
    "all rows move": {"share": 0.4, "unsampled": "move"},
    "adaface": {"share": 0.4, "margin": "adaface"},
    "of the batch": {"share": 0.01, "seed": 5},
    "of all": {"share": 1.0},
    "of the first rank": {"identities": 600, "labels": 90, "share": 0.01},
    "few identities": {"identities": 5},  # of four ranks, the last has none
    "filtered": {"share": 0.5, "filter_above": 0.1},
    "combined zero": {
        "share": 0.4,
        "margin": "combined",
        "filter_above": 0.3,
        "filtering": "zero",
    },
}
DCQS = {"cosface": {"count": 41}, "int8 random": {"dtype": "int8", "count": 30, "initial": "random"}}
DCPS = {
    "cosface": {"count": 41},
    "all enter first": {"count": 25, "enter_first": 1.0, "margin": "adaface"},
    "nobody enters first": {"count": 30, "enter_first": 0.0, "hardest_weight": 0.7, "margin": "combined"},
    "int8 random": {"dtype": "int8", "count": 33, "initial": "random"},
    "bfloat16": {"dtype": "bfloat16", "count": 19},
    "filtered": {"count": 29, "filter_above": 0.2, "filtering": "zero"},
}

CASES = {
    **{f"attfc {name}": ("attfc", options, torch.float64) for name, options in ATTFC.items()},
    **{f"full_fc {name}": ("full_fc", options, torch.float64) for name, options in FULL.items()},
    **{f"partial_fc {name}": ("partial_fc", options, torch.float64) for name, options in PARTIAL.items()},
    **{f"dcq {name}": ("dcq", options, torch.float64) for name, options in DCQS.items()},
    **{f"dcp {name}": ("dcp", options, torch.float64) for name, options in DCPS.items()},
    "attfc in float32": ("attfc", ATTFC["tuned"], torch.float32),
    "attfc trained in float32": ("attfc", ATTFC["trained"], torch.float32),
    "full_fc in float32": ("full_fc", {}, torch.float32),
    "partial_fc in float32": ("partial_fc", PARTIAL["cosface"], torch.float32),
    "partial_fc on the host": ("partial_fc", {"share": 0.4, "place": "host"}, torch.float32),
    "dcq in float32": ("dcq", DCQS["cosface"], torch.float32),
    "dcp in float32": ("dcp", DCPS["cosface"], torch.float32),
}


Parts = list[dict[str, list[torch.Tensor]]]


def all_cases(size: int) -> dict[str, Parts]:
    """What each rank found in each case; a dozen cases in one set of processes."""
    found: dict[str, Parts] = {}
    for start in range(0, len(CASES), 12):
        names = list(CASES)[start : start + 12]
        said = on_ranks(size, run_heads, [CASES[name] for name in names])
        found |= {name: [part[number] for part in said] for number, name in enumerate(names)}
    return found


@pytest.fixture(scope="module")
def on_two() -> dict[str, Parts]:
    return all_cases(2)


@pytest.fixture(scope="module")
def on_four() -> dict[str, Parts]:
    return all_cases(4)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one(name, on_two) -> None:
    assert_equal_to_one_process(on_two[name], *CASES[name])


@pytest.mark.slow  # four processes on two cores
@pytest.mark.parametrize("name", CASES)
def test_four_ranks_are_one(name, on_four) -> None:
    assert_equal_to_one_process(on_four[name], *CASES[name])


def test_rows_brought_ahead_are_those_read_in_the_step(tmp_path) -> None:
    for device, host, file in on_ranks(2, steps_by_place, str(tmp_path)):
        assert len(device[0].unique()) == len(device[0])
        for expected, *others in zip(device, host, file, strict=True):
            assert all(torch.equal(expected, each) for each in others)


def test_a_rank_without_any_of_the_drawn_rows_takes_part(on_two) -> None:
    rows = [part["shards"][:-1] for part in on_two["partial_fc of the first rank"]]
    touched = [[int((gradient != 0).any(dim=1).sum()) for gradient in gradients] for gradients in rows]
    assert min(touched[1]) == 0
    assert max(touched[1]) > 0
    assert min(touched[0]) > 10


WHOLE = (
    "attfc drawn",
    "attfc int8 random",
    "attfc others",
    "attfc trained",
    "attfc one trained",
    "full_fc cosface",
    "full_fc subcenters",
    "partial_fc cosface",
    "dcq cosface",
    "dcp int8 random",
)


def test_the_full_state_has_the_rows_of_all_ranks_and_any_number_of_them_takes_it_up() -> None:
    said = on_ranks(2, full_states, [CASES[name] for name in WHOLE])
    for number, name in enumerate(WHOLE):
        (state, taken), (other, too) = (part[number] for part in said)
        expected, _ = full_state(*CASES[name])
        assert taken, name
        assert too, name
        assert state.keys() == other.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(state[key], other[key])
            assert state[key].dtype == value.dtype
            torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1 if value.dtype == torch.int8 else 1e-2)


def test_what_cannot_be_shared_is_refused_on_every_rank() -> None:
    cases = {
        "1 identities are fewer than the 2 ranks that share their rows: start fewer processes": (
            "partial_fc",
            {"identities": 1},
        ),
        "1 identities are fewer than the 2 ranks that share their rows: start fewer processes, or replicate the rows": (
            "full_fc",
            {"identities": 1},
        ),
        "container has 1 slots, fewer than the 2 ranks that share them": ("dcp", {"count": 1}),
        "container has 15 slots, which is smaller than the batch (16): raise count to at least 16": (
            "dcp",
            {"count": 15},
        ),
        "container has 14 slots, which is smaller than the batch (16): raise count to at least 16": (
            "dcq",
            {"count": 14},
        ),
        "label 36 is outside 0 to 35: build the head with identities = the data set's": (
            "partial_fc",
            {"identities": 36, "labels": 37},
        ),
        "label 29 is outside 0 to 28: build the head with identities = the data set's": (
            "full_fc",
            {"identities": 29, "labels": 30},
        ),
    }
    for said in on_ranks(2, refusals, list(cases.values())):
        assert len(said) == len(cases)
        assert all(text.startswith(expected) for text, expected in zip(said, cases, strict=True)), said


def test_an_overflow_in_one_block_of_rows_skips_the_step_on_all_ranks() -> None:
    parts = on_ranks(2, scaled_steps)
    whole, changed, scale = scaled_steps()
    assert changed
    torch.testing.assert_close(torch.cat([rows for rows, _, _ in parts]), whole, rtol=1e-10, atol=1e-10)
    assert [(changed, after) for _, changed, after in parts] == [(False, scale / 2)] * 2


def assert_equal_to_one_process(parts: Parts, kind: str, options: dict[str, object], dtype: torch.dtype) -> None:
    whole = run_head(kind, options, dtype)
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    for part in parts:
        for name in ("losses", "gradients", "figures", "margin"):
            assert len(part[name]) == len(whole[name])
            for mine, expected in zip(part[name], whole[name], strict=True):
                torch.testing.assert_close(mine, expected, **tolerance)
        assert all(torch.equal(a, b) for a, b in zip(part["labels"], whole["labels"], strict=True))
    for number, expected in enumerate(whole["shards"]):
        rows = torch.cat([part["shards"][number] for part in parts])
        loose = tolerance if dtype == torch.float64 and kind.endswith("_fc") else {"rtol": 1e-5, "atol": 1e-6}
        if options.get("dtype") == "int8" and rows.abs().max() > 1:  # a rounded number may fall on the other side
            loose = {"rtol": 0.0, "atol": 1.0}
        if dtype == torch.float32 and kind.endswith("_fc"):
            # Single numbers near 0 carry the rounding of nine steps; the tensor as a whole is held to 1e-5.
            assert torch.linalg.vector_norm(rows - expected) <= 1e-5 * torch.linalg.vector_norm(expected)
        else:
            torch.testing.assert_close(rows, expected, **loose)
