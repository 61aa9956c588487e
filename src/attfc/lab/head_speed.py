"""The speed tables: samples per second and memory of the heads against the number of identities, under a budget of memory.

For each size and head the planner says whether a step fits; then it is tried in a child process with that limit (`head_cell`), whatever
the planner said. So `-` in the tables has been seen and not computed, and each disagreement is counted. Two ratios are
taken again with both sides in one process in turns: a busy moment of the machine then meets both.
Cost: the default sizes take some 20 minutes on two cores, most of it the full FC and the largest containers.

Source: the speed benchmark of arcface_torch (data parallel, model parallel, Partial FC 0.1 on eight V100 of 32 GB; samples per second and MB a GPU).
Here: one device, one process, and what the table is about, AttFC, beside them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch

from attfc.backbones import create_backbone
from attfc.errors import UserError
from attfc.lab.children import in_child
from attfc.lab.head_cell import Case, build_head, measure, measure_in_turns
from attfc.plan import NOTHING, Encoder, measure_encoder, plan_step
from attfc.precision import best_autocast_dtype
from attfc.typing import Json

__all__ = ["IDENTITIES", "Sweep", "ratios", "run_sweep"]

IDENTITIES = (
    *(125_000, 250_000, 500_000, 1_000_000, 1_400_000, 2_000_000),
    *(4_000_000, 5_500_000, 8_000_000, 16_000_000, 29_000_000, 100_000_000),
)
FIXED = "attfc fixed"
TURNS = {"fixed container": 9, "against partial_fc": 3}
"""Rounds of what is timed in turns."""


@dataclass(frozen=True)
class Sweep:
    """What is measured: four columns of heads, at each number of identities, alone and with a network."""

    identities: tuple[int, ...] = IDENTITIES
    budget_gib: float = 16.0
    batch: int = 128
    embedding_size: int = 512
    keys: int = 2
    sample_rate: float = 0.1
    ratio: float = 0.1
    slots: int = 100_000
    network: str | None = "r10_tiny"
    steps: int = 9
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.slots < self.batch:
            raise UserError(
                f"{self.slots} slots are fewer than the batch ({self.batch}): raise --slots or lower --batch"
            )
        if not self.identities or min(self.identities) < self.batch:
            raise UserError(f"identities {self.identities} must each be at least the batch ({self.batch})")

    def columns(self) -> dict[str, str]:
        """Titles of the columns by their short names."""
        return {
            "full_fc": "full FC",
            "partial_fc": f"Partial FC {self.sample_rate:g}",
            "attfc ratio": f"AttFC, ratio {self.ratio:g}",
            FIXED: f"AttFC, {self.slots:,} slots",
        }

    def case(self, column: str, identities: int, mode: str = "head", limited: bool = True) -> Case:
        """Return one cell."""
        slots = {"attfc ratio": max(round(self.ratio * identities), self.batch), FIXED: self.slots}.get(column)
        alike = ("sample_rate", "batch", "embedding_size", "keys", "steps", "device")
        return Case(
            head="attfc" if slots else column,  # type: ignore[arg-type]
            identities=identities,
            slots=slots,
            network=self.network if mode == "network" else None,
            budget_bytes=int(self.budget_gib * 2**30) if limited else None,
            **{name: getattr(self, name) for name in alike},
        )


def run_sweep(sweep: Sweep, lines: Path, say: Callable[[str], None]) -> Json:
    """Measure every cell and the ratios; a cell that stands in `lines` already is not measured again.

    Args:
        lines: a JSON line is appended for each cell as it is done: after an interruption the next call goes on there.
        say: takes a line of progress.

    Returns:
        `cells`, `in_turns`, `ratios`, all for JSON.

    Raises:
        UserError: a device whose memory cannot be measured here.
    """
    if not Path("/proc/self/clear_refs").exists() and not sweep.device.startswith("cuda"):
        raise UserError("memory is measured through /proc/self, which only Linux has: run the speed tables there")
    done = _read(lines)
    encoder = _encoder(sweep)

    def once(key: Json, work: Callable[[], Json]) -> Json:
        name = json.dumps(key, sort_keys=True)
        if name not in done:
            done[name] = work()
            with lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "found": done[name]}) + "\n")
        return done[name]

    cells: list[Json] = []
    turns: Json = {}
    for mode in ("head",) if sweep.network is None else ("head", "network"):
        for identities, column in product(sweep.identities, sweep.columns()):
            case = sweep.case(column, identities, mode)
            planned = _planned(case, encoder)
            found = once({"case": vars(case)}, partial(_try, case, not planned["fits"]))
            cells.append({"mode": mode, "column": column, "case": vars(case), "planned": planned, **found})
            say(_line(cells[-1]))
        if mode == "head":
            for name, cases in _compared(sweep, cells).items():
                asked = {column: vars(case) for column, case in cases.items()}
                found = once({"turns": asked}, partial(in_child, measure_in_turns, cases, TURNS[name]))
                turns[name] = {"cases": asked, **found}
                say(f"{name}: " + ", ".join(f"{column} {taken:.3f} s" for column, taken in found["seconds"].items()))
    return {"cells": cells, "in_turns": turns, "ratios": ratios(sweep, cells, turns)}


def _read(lines: Path) -> dict[str, Json]:
    if not lines.exists():
        return {}
    done = {}
    for text in lines.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(text)
        except json.JSONDecodeError:  # the line at which it was interrupted
            continue
        done[json.dumps(record["key"], sort_keys=True)] = record["found"]
    return done


def _encoder(sweep: Sweep) -> Encoder:
    if sweep.network is None:
        return NOTHING
    device = torch.device(sweep.device)
    network = create_backbone(sweep.network, embedding_size=sweep.embedding_size).to(device)
    size = int(getattr(network, "image_size", 112))
    return measure_encoder(network, size, device=device, autocast_dtype=best_autocast_dtype(device))


def _planned(case: Case, encoder: Encoder) -> Json:
    """Return what the planner says of a case."""
    on_card = case.device.startswith("cuda")
    with torch.device("meta"):
        memory = build_head(case).footprint(case.batch, cached=not on_card)
    network = encoder if case.network else NOTHING
    plan = plan_step(case.head, network, memory, case.batch, memory_bytes=case.budget_bytes)
    return {"peak_bytes": plan.peak, "fits": plan.fits}


def _try(case: Case, rehearsal: bool) -> Json:
    """Measure a case in a child; a library of it that gives up under the limit (abort, segmentation fault) did not fit either."""
    try:
        return in_child(measure, case, rehearsal)
    except ChildProcessError as error:
        if case.budget_bytes is not None and str(error).endswith(("signal 6", "signal 11")):
            return {"fits": False, "why": f"the process {error} under the limit"}
        if str(error).endswith("signal 9"):
            raise UserError(
                f"the machine ended {case.head} at {case.identities:,} identities before the budget was reached: it has less memory free than "
                f"{(case.budget_bytes or 0) / 2**30:.1f} GiB; lower --budget-gib or close other programs, and call again"
            ) from None
        raise


def _line(cell: Json) -> str:
    case = cell["case"]
    where = f"{case['identities']:>11,} {cell['column']:<12} {case['network'] or 'head only':<10}"
    if not cell["fits"]:
        return f"{where} does not fit (planned: {cell['planned']['peak_bytes'] / 2**30:.1f} GiB)"
    planned = cell["planned"]["peak_bytes"] / 2**20
    return f"{where} {cell['samples_per_second']:9.1f} samples/s {cell['peak_bytes'] / 2**20:9,.0f} MiB (planned: {planned:,.0f})"


def _compared(sweep: Sweep, cells: list[Json]) -> dict[str, dict[str, Case]]:
    """Return the pairs to be timed in turns: AttFC at the ends of the sizes, and against Partial FC where that still fits."""
    ends = {f"{n:,}": sweep.case(FIXED, n, limited=False) for n in (min(sweep.identities), max(sweep.identities))}
    compared = {"fixed container": ends} if len(ends) == 2 else {}
    if partial_fc := _peaks(cells, "partial_fc"):
        pair = ("partial_fc", FIXED)
        compared["against partial_fc"] = {column: sweep.case(column, max(partial_fc), limited=False) for column in pair}
    return compared


def _peaks(cells: list[Json], column: str) -> dict[int, float]:
    """Return the peak memory of a head alone by the number of identities, where it fits."""
    return {
        cell["case"]["identities"]: cell["peak_bytes"]
        for cell in cells
        if (cell["mode"], cell["column"], cell["fits"]) == ("head", column, True)
    }


def ratios(sweep: Sweep, cells: list[Json], turns: Json) -> list[Json]:
    """Return what the measured figures say when compared: `what` and `measured`; what to hope for is the reader's matter."""
    found: dict[str, float] = {}
    name, memory, partial_fc = sweep.columns(), _peaks(cells, FIXED), _peaks(cells, "partial_fc")
    if "fixed container" in turns:
        (few, quick), (many, slow) = turns["fixed container"]["seconds"].items()
        found[f"step of AttFC with {sweep.slots:,} slots at {many} identities / at {few}"] = slow / quick
        if memory:
            what = f"its memory, largest / smallest over all {len(memory)} sizes"
            found[what] = max(memory.values()) / min(memory.values())
    if "against partial_fc" in turns:
        at, seconds = max(partial_fc), turns["against partial_fc"]["seconds"]
        pair = f"of {name[FIXED]} / of {name['partial_fc']}, heads alone, {at:,} identities"
        found[f"step {pair}"] = seconds[FIXED] / seconds["partial_fc"]
        if at in memory:
            found[f"memory {pair}"] = memory[at] / partial_fc[at]
    agree = sum(cell["planned"]["fits"] is cell["fits"] for cell in cells)
    found["cells in which trying contradicted the planner"] = len(cells) - agree
    return [{"what": what, "measured": measured} for what, measured in found.items()]
