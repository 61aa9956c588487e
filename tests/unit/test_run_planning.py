"""How often a batch is halved until the planner says that it fits; a new head is planned."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import attfc
from attfc.config import load_config
from attfc.errors import UserError
from attfc.plan import Encoder
from attfc.run import planning
from attfc.run.planning import Planner

CPU = torch.device("cpu")
MEASURED = planning.measured_encoder
NETWORK = ["backbone.name=r10_tiny", "precision.amp=none"]


@pytest.fixture(scope="module")
def measured() -> tuple[Encoder, None]:
    return planning.measured_encoder(load_config("demo", NETWORK), CPU)


@pytest.fixture(autouse=True)
def _measured_once(measured: tuple[Encoder, None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "measured_encoder", lambda config, device: measured)


def test_a_frozen_trunk_keeps_nothing_for_backward(measured: tuple[Encoder, None]) -> None:
    frozen, _ = MEASURED(load_config("demo", [*NETWORK, "finetune.trunk_rate=0"]), CPU)
    whole = measured[0]
    assert frozen.parameters == whole.parameters
    assert 0 < frozen.trained < whole.trained
    assert frozen.saved.per_image < 0.3 * whole.saved.per_image
    assert frozen.backward.per_image < 0.3 * whole.backward.per_image


def divided(gib: float, *typed: str, ranks: int = 1) -> int:
    config = load_config("demo", [*NETWORK, "batch_size=256", *typed])
    return Planner(600, 9_600, CPU, gib * 2**30, ranks).passes_that_fit(config)


def test_what_fits_is_left_alone_and_what_does_not_is_halved() -> None:
    assert divided(1_000) == 1
    some, fewer = divided(0.28), divided(0.17)
    assert 1 < some < fewer
    assert divided(0.28, ranks=2) <= some // 2 or divided(0.28, ranks=2) == 1


@pytest.mark.parametrize(("batch", "least"), [(256, 128), (12, 4), (6, 2)])
def test_each_process_keeps_two_images_or_more_and_whole_ones(measured, batch: int, least: int) -> None:
    typed = f"batch_size={batch}"
    config = load_config("demo", [*NETWORK, typed])
    planner = Planner(600, 9_600, CPU, 0, 1)
    gib = planner.plan("", config, measured[0], divided=least).peak / 2**30
    by = divided(gib, typed)
    assert batch % by == 0
    assert by <= least
    assert batch // by >= 2
    assert planner.plan("", config, measured[0], divided=by // 2).peak > gib * 2**30
    with pytest.raises(
        UserError, match=f"^a step with {batch // by} images takes [0-9.]+ GiB, and cpu has 0.0. Its largest"
    ):
        divided(0.001, typed)


@pytest.mark.parametrize(
    ("typed", "way"),
    [
        (["head=full_fc"], "with gradients and optimizer state: head=attfc trains none"),
        (["negatives.count=20000"], ": keep them in a file: negatives.place=file negatives.folder=FOLDER"),
    ],
)
def test_where_rows_are_the_limit_no_smaller_batch_is_tried_and_the_way_out_is_said(typed, way) -> None:
    config = load_config("demo", [*NETWORK, "batch_size=256", *typed])
    with pytest.raises(UserError) as refused:
        Planner(29_000_000, None, CPU, 4 * 2**30, 1).passes_that_fit(config)
    assert "Its largest part is the head's rows, " in str(refused.value)
    assert f"MiB{' ' * (way[0] != ':')}{way}. With batch_size= it is tried all the same" in str(refused.value)


THROW_AWAY = '''
"""Two heads that nobody needs."""

from attfc.heads.dcp import DCP
from attfc.heads.full_fc import FullFC
from attfc.heads.options import SlotCount
from attfc.losses.margins import Margin


class Rows(FullFC):
    def __init__(self, embedding_size: int, identities: int, margin: Margin) -> None:
        super().__init__(embedding_size, identities, margin)


class Slots(DCP):
    def __init__(self, embedding_size: int, margin: Margin, *, count: SlotCount = None) -> None:
        super().__init__(embedding_size, margin, count=count)
'''


PLANS = """
import torch
from attfc.config import load_config
from attfc.errors import UserError
from attfc.plan import NOTHING, answer
from attfc.run.planning import Planner, configured_title

for typed in (["head=rows"], ["head=slots", "head.count=500"]):
    config = load_config("demo", typed)
    plans = Planner(1_000_000, None, torch.device("cpu"), 24 * 2**30, 1).plans(config, NOTHING, None)
    titles = [plan.head for plan in plans]
    print(*answer(plans, configured_title(config, titles), 24 * 2**30))
    print(titles)
"""


def test_a_head_is_planned_once_it_is_registered(tmp_path: Path) -> None:
    """A file and a line, in a copy of the package: the configuration's model of a head is made when it is imported."""
    shutil.copytree(Path(attfc.__file__).parent, tmp_path / "attfc")
    (tmp_path / "attfc" / "heads" / "throw_away.py").write_text(THROW_AWAY, encoding="utf-8")
    kinds = tmp_path / "attfc/config/kinds.py"
    text = kinds.read_text(encoding="utf-8")
    line, names = '        "dcp": "attfc.heads.dcp:DCP",\n', ("rows", "slots")
    assert line in text
    added = "".join(f'        "{name}": "attfc.heads.throw_away:{name.title()}",\n' for name in names)
    kinds.write_text(text.replace(line, line + added), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PLANS],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    lines = [
        "full_fc",
        "partial_fc 0.1",
        "rows",
        "attfc, key passes",
        "attfc, no key passes",
        "dcq, {0} slots",
        "dcp, {0} slots",
        "slots, {0} slots",
    ]
    assert done.stdout.splitlines() == [
        "yours (rows): fits, 26 % of the memory",
        str([line.format("100,000") for line in lines]),
        "yours (slots, 500 slots): fits, 0 % of the memory",
        str([line.format("500") for line in lines]),
    ]
