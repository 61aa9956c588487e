"""Speed tables: cells in child processes under a limit, nothing of the size of the identities, resuming, tables and figure."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from typer.testing import CliRunner

from attfc.cli import app
from attfc.errors import UserError
from attfc.lab import head_speed
from attfc.lab.calibration import measure_heads
from attfc.lab.children import in_child
from attfc.lab.head_cell import Case, measure, rehearse
from attfc.lab.head_speed import Sweep, ratios, run_sweep
from attfc.lab.pages import speed_figure, speed_tables
from attfc.plan import NOTHING, _Live

MIB = 2**20
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")


def one(head: str, identities: int, **options: Any) -> dict[str, Any]:
    return in_child(measure, Case(head, identities, batch=32, steps=2, **options))  # type: ignore[arg-type]


@linux
def test_a_full_fc_takes_three_times_its_rows_and_no_less_will_do() -> None:
    rows = 20_000 * 512 * 4
    found = one("full_fc", 20_000, budget_bytes=6 * rows)
    assert found["fits"]
    assert len(found["seconds_each"]) == 2
    assert found["samples_per_second"] == pytest.approx(32 / found["seconds"])
    # Rows, gradient, momentum; the logits and what a thread keeps beside.
    assert 3 * rows < found["peak_bytes"] < 3 * rows + 32 * MIB
    short = one("full_fc", 20_000, budget_bytes=2 * rows)
    assert (short["fits"], "can't allocate memory" in short["why"]) == (False, True)


@linux
def test_attfc_allocates_nothing_of_the_size_of_the_identities() -> None:
    budget = 60 * MIB  # less than a byte an identity
    found = one("attfc", 100_000_000, slots=2000, budget_bytes=budget)
    assert found["fits"], found
    assert found["key_seconds"] == 0.0  # keys are given, no network embeds them
    with_network = one("attfc", 100_000_000, slots=500, network="r6_tiny", budget_bytes=300 * MIB)
    assert 0 < with_network["key_seconds"] < with_network["seconds"]
    assert one("partial_fc", 100_000_000, budget_bytes=budget)["fits"] is False


def test_a_rehearsal_takes_what_the_step_takes() -> None:
    row = 512 * 4
    for case, rows in (
        (Case("full_fc", 50_000, device="meta"), 4 * 50_000),
        (Case("partial_fc", 50_000, sample_rate=0.1, device="meta"), 2 * 50_000 + 5000),
        (Case("attfc", 10**8, slots=50_000, device="meta"), 50_000),
    ):
        with _Live() as live:  # counts the shapes' own tensors too: the rows once more
            rehearse(case)
        assert live.peak == pytest.approx((rows + 50_000) * row, rel=0.05), case.head


def test_rates_are_of_each_kind_and_leave_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    rates = measure_heads(torch.device("cpu"), 8, embedding_size=16, rows=256, repeats=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert min(rates.container, rates.pool, rates.dense, rates.sampled) > 0


@linux
def test_the_command_writes_json_tables_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    json_file, table, figure = tmp_path / "speed.json", tmp_path / "speed.md", tmp_path / "speed.svg"
    options = ["--identities", "300, 20000", "--slots", "200", "--batch", "16", "--steps", "2", "--network", "none"]
    outputs = ["--json", str(json_file), "--markdown", str(table), "--figure", str(figure)]
    monkeypatch.setattr(head_speed, "TURNS", {"fixed container": 3, "against partial_fc": 2})
    done = CliRunner().invoke(app, ["bench", "heads", "--budget-gib", "0.08", "--device", "cpu", *options, *outputs])
    assert done.exit_code == 0, done.output
    found = json.loads(json_file.read_text(encoding="utf-8"))
    assert not list(tmp_path.glob("*.cells.jsonl"))
    fits = {(cell["column"], cell["case"]["identities"]): cell["fits"] for cell in found["cells"]}
    assert fits[("full_fc", 300)] is True
    assert fits[("full_fc", 20_000)] is False
    assert fits[("attfc fixed", 20_000)] is True
    assert len(found["in_turns"]["fixed container"]["seconds_each"]["300"]) == 3
    assert set(found["in_turns"]["against partial_fc"]["seconds"]) == {"partial_fc", "attfc fixed"}
    assert table.read_text(encoding="utf-8").strip() in done.stdout
    assert "| 20,000 | - |" in done.stdout
    ElementTree.parse(figure)


def test_words_that_are_no_number_are_refused() -> None:
    done = CliRunner().invoke(app, ["bench", "heads", "--identities", "1000,many"])
    assert isinstance(done.exception, UserError)
    assert str(done.exception).startswith("--identities has 'many': give whole numbers with commas between")


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"100 slots are fewer than the batch \(128\): raise --slots"):
        Sweep(slots=100)
    with pytest.raises(UserError, match=r"identities \(100, 2000\) must each be at least the batch \(128\)"):
        Sweep(identities=(100, 2000))


SWEEP = Sweep(identities=(1000, 2_000_000), slots=200, network="r6_tiny")


def answer(function: Any, asked: Any, *rest: Any) -> dict[str, Any]:
    """Stands for the child: AttFC takes a second at any size, Partial FC four; rows do not fit at two millions."""
    del rest
    if isinstance(asked, dict):
        seconds = {name: 4.0 if case.head == "partial_fc" else 1.0 for name, case in asked.items()}
        return {"seconds": seconds, "processor_seconds": seconds, "seconds_each": {}}
    if asked.head == "full_fc" and asked.identities > 1000:
        return {"fits": False, "why": "can't allocate memory"}
    seconds = 4.0 if asked.head == "partial_fc" else 1.0
    keys = 0.25 if asked.network and asked.head == "attfc" else 0.0
    figures = {"seconds": seconds, "samples_per_second": 128 / seconds, "key_seconds": keys}
    return {
        "fits": True,
        "peak_bytes": 8.0 * MIB * asked.identities / 1000 if not asked.slots else 2.0 * MIB,
        **figures,
    }


@linux
def test_an_interrupted_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = tmp_path / "lines"
    calls: list[Any] = []

    def interrupted(function: Any, asked: Any, *rest: Any) -> dict[str, Any]:
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(asked)
        return answer(function, asked)

    monkeypatch.setattr(head_speed, "in_child", interrupted)
    monkeypatch.setattr(head_speed, "_encoder", lambda sweep: NOTHING)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(SWEEP, lines, lambda text: None)
    with lines.open("a", encoding="utf-8") as file:
        file.write('{"key": {"case"')  # a line cut short
    monkeypatch.setattr(head_speed, "in_child", lambda *a: (calls.append(a[1]), answer(*a))[1])
    results = run_sweep(SWEEP, lines, lambda text: None)
    assert len(calls) == 16 + 2  # 2 modes x 2 sizes x 4 columns, and two comparisons: none of them twice
    assert len(results["cells"]) == 16


def results_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    monkeypatch.setattr(head_speed, "in_child", answer)
    monkeypatch.setattr(head_speed, "_encoder", lambda sweep: NOTHING)
    return run_sweep(SWEEP, tmp_path / "lines", lambda text: None)


@linux
def test_ratios_are_given_without_a_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = results_of(monkeypatch, tmp_path)
    rows = {row["what"].split(",")[0]: row["measured"] for row in ratios(SWEEP, results["cells"], results["in_turns"])}
    assert rows["step of AttFC with 200 slots at 2"] == 1.0
    assert rows["step of AttFC"] == 0.25
    assert rows["memory of AttFC"] < 0.1
    tables = speed_tables(vars(SWEEP), SWEEP.columns(), results)
    assert "| 2,000,000 | - | 32 | 128 | 128 |" in tables
    assert "| 1,000 | none of 1.00 | none of 4.00 | 0.25 of 1.00 | 0.25 of 1.00 |" in tables
    assert re.search(r"of Partial FC 0\.1, heads alone, 2,000,000 identities \| 0\.25 \|", tables)
    assert not re.search("promised|at most|met|missed", tables)


def test_the_documents_judge_our_own_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = module_of_tables()
    record = tables.load("head_speed")
    record["results"]["ratios"] = [{"what": "step of AttFC, 100 slots / of Partial FC 0.1", "measured": 0.25}]
    monkeypatch.setattr(tables, "load", lambda name: record)
    assert "| step of AttFC, 100 slots / of Partial FC 0.1 | 0.2 | 0.25 | **missed** by 0.05 |" in tables.head_speed()


@linux
def test_the_figure_is_a_function_of_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = results_of(monkeypatch, tmp_path)
    svg = speed_figure(vars(SWEEP), SWEEP.columns(), results)
    assert svg == speed_figure(vars(SWEEP), SWEEP.columns(), results)
    words = "".join(ElementTree.fromstring(svg).itertext())
    for title in (*SWEEP.columns().values(), "with r6_tiny", "budget 16 GiB", "1,000 identities: 128 samples/s"):
        assert title in " ".join(words.split())


ROOT = Path(__file__).resolve().parents[2]


def module_of_tables() -> Any:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    return tables


def test_the_page_shows_what_the_json_says() -> None:
    tables = module_of_tables()
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"<!-- table (.+?) -->\n(.*?)\n?<!-- end -->", page, flags=re.DOTALL))
    assert set(shown) == {"head_speed", "planning", "freed_memory"}
    for name, table in shown.items():
        if (ROOT / "benchmarks" / "results" / f"{name}.json").exists():
            assert table == tables.TABLES[name](), f"docs/speed.md: {name} is not that of its JSON: make docs"
