"""What some ranks saved, other numbers of ranks go on with: rows, momentum, slots and draws, and the losses of a run without a stop."""

from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest
import torch

from .launch import on_ranks
from .workers import IMAGES, STEPS, go_on, go_on_several

FILE = {"place": "file", "folder": gettempdir()}
COUNTS = {"count": 25, "image_counts": range(1, 61)}
KEYS, OWN = ("keys", {"share": 0.8}), ("own", {"share": 0.8})


def recent(count: int) -> tuple[str, dict[str, Any]]:
    return "recent", {"count": count, "policy": "unique"}


CASES: dict[str, tuple[str, dict[str, Any], torch.dtype, str]] = {
    "attfc": ("attfc", {"rule": KEYS, "bank": recent(41), "in_batch": "fixed"}, torch.float32, "sgd"),
    "attfc table": (
        "attfc",
        {"rule": OWN, "bank": ("table", {"count": 25}), "in_batch": "fixed"},
        torch.float32,
        "sgd",
    ),
    "attfc table file": (
        "attfc",
        {"rule": KEYS, "bank": recent(19), "stored": ("table", FILE), "in_batch": "fixed"},
        torch.float32,
        "sgd",
    ),
    # In float32 a rounding of ranks may tip a bfloat16 number of the memory.
    "attfc others": (
        "attfc",
        {"rule": ("others", {"images": IMAGES}), "bank": ("memory", {"count": 25}), "in_batch": "fixed"},
        torch.float64,
        "sgd",
    ),
    "attfc trained": ("attfc", {"rule": OWN, "bank": ("table", {"trained": 13, **COUNTS})}, torch.float32, "sgd"),
    "attfc one trained": ("attfc", {"rule": OWN, "bank": ("table", {"trained": 1, **COUNTS})}, torch.float32, "adamw"),
    "full_fc": ("full_fc", {}, torch.float64, "sgd"),
    "full_fc adamw": ("full_fc", {"identities": 6}, torch.float64, "adamw"),
    "partial_fc": ("partial_fc", {"share": 0.4}, torch.float64, "sgd"),
    "partial_fc adamw": ("partial_fc", {"share": 0.4, "margin": "adaface"}, torch.float64, "adamw"),
    "partial_fc host": ("partial_fc", {"share": 0.6, "place": "host"}, torch.float32, "sgd"),
    "partial_fc file": ("partial_fc", {"share": 0.5, **FILE}, torch.float32, "sgd"),
    "full_fc file adamw": ("partial_fc", {"share": 1.0, **FILE}, torch.float32, "adamw"),
    "dcq": ("dcq", {"count": 30, "dtype": "int8"}, torch.float32, "sgd"),
    "dcp": ("dcp", {"count": 25}, torch.float32, "sgd"),
    "dcp int8": ("dcp", {"count": 22, "dtype": "int8", "initial": "random"}, torch.float32, "sgd"),
}
STOP = 5
Answer = dict[str, list[torch.Tensor]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """One process, without a stop."""
    return {name: go_on(*case, str(tmp_path_factory.mktemp("whole")), 0, STEPS) for name, case in CASES.items()}


def resumed(sizes: tuple[int, int], root: Path) -> dict[str, Answer]:
    """The losses of all cases before and after the change from one number of ranks to the other, and the encoder at the end."""
    parts = []
    for size, first, last in ((sizes[0], 0, STOP), (sizes[1], STOP, STEPS)):
        cases = [(*case, str(root / name), first, last) for name, case in CASES.items()]
        said = on_ranks(size, go_on_several, cases)
        for others in said[1:]:
            assert all(torch.equal(a, b) for a, b in zip(said[0][0]["losses"], others[0]["losses"], strict=True))
        parts.append(dict(zip(CASES, said[0], strict=True)))
    before, after = parts
    return {
        name: {"losses": before[name]["losses"] + after[name]["losses"], "encoder": after[name]["encoder"]}
        for name in CASES
    }


def assert_same(name: str, found: Answer, expected: Answer) -> None:
    tolerance = {"rtol": 1e-10, "atol": 1e-11} if CASES[name][2] == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    for part in ("losses", "encoder"):
        for mine, theirs in zip(found[part], expected[part], strict=True):
            torch.testing.assert_close(mine, theirs, **tolerance)


@pytest.fixture(scope="module")
def one_to_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    return resumed((1, 2), tmp_path_factory.mktemp("up"))


@pytest.fixture(scope="module")
def two_to_one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    return resumed((2, 1), tmp_path_factory.mktemp("down"))


@pytest.mark.parametrize("name", CASES)
def test_what_one_process_saved_two_ranks_go_on_with(name, one_to_two, whole) -> None:
    assert_same(name, one_to_two[name], whole[name])


@pytest.mark.parametrize("name", CASES)
def test_what_two_ranks_saved_one_process_goes_on_with(name, two_to_one, whole) -> None:
    assert_same(name, two_to_one[name], whole[name])


@pytest.mark.slow  # four processes on two cores
@pytest.mark.parametrize("sizes", [(4, 1), (4, 2), (2, 4), (1, 4)])
def test_four_ranks_go_on_and_are_gone_on_with(sizes, whole, tmp_path) -> None:
    found = resumed(sizes, tmp_path)
    for name in CASES:
        assert_same(name, found[name], whole[name])
