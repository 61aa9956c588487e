"""Planning: bytes against closed forms and against the head's own tensors; the watched bytes against a network that can be added up by hand."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from attfc.cli import app
from attfc.config import load_config
from attfc.distributed import Ranks
from attfc.heads import DCP, AttFC, CenterTable, FullFC, Head, KeyAttention, PartialFC, RecentCenters
from attfc.heads.memory import HeadMemory
from attfc.lab import calibration
from attfc.losses import CosFace
from attfc.plan import NOTHING, Encoder, HeadRates, Plan, Ways, advice, answer, measure_encoder, plan_step
from attfc.run.planning import Planner, ways_to_save

CPU = torch.device("cpu")


class Squares(nn.Module):
    """sin(sin(a x)) of each number, flattened, through a linear layer: two inputs of sin and one of the layer are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.linear = nn.Linear(3 * 8 * 8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear((x * self.scale).sin().sin().flatten(1))


@pytest.fixture(scope="module")
def squares() -> Encoder:
    return measure_encoder(Squares(), 8, device=CPU, channels_last=False)


def test_saved_bytes_are_those_of_the_tensors_that_backward_needs(squares: Encoder) -> None:
    image = 3 * 8 * 8 * 4
    assert squares.saved.per_image == 3 * image + 4 * 4  # a x, sin(a x), sin(sin(a x)), and the output
    assert squares.saved.fixed == 0
    assert squares.parameters == squares.trained == (3 * 8 * 8 * 4 + 4 + 1) * 4
    assert squares.keys.per_image < squares.forward.per_image  # without gradient what is used is freed
    assert squares.backward.at(4) > squares.saved.at(4)
    assert squares.train_seconds > 0
    assert squares.key_seconds > 0


def test_a_view_is_not_counted_twice() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.scale).flatten(1).view(len(x), -1)[:, :3]

    assert measure_encoder(Views(), 8, device=CPU, channels_last=False).saved.per_image == 3 * 8 * 8 * 4


def test_a_plan_of_remembered_images_wants_their_number() -> None:
    asked = ["plan", "wf42m_attfc_r100", "--identities", "5000", "center=other_images"]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code
    assert "the number of images is not known: add --images" in refused.output + str(refused.exception)


def test_a_plan_of_trained_rows_counts_them_and_says_how_to_have_fewer() -> None:
    """Beside every other head: that with keys has none, for they do not go together."""
    asked = ["plan", "demo", "--identities", "50000", "--no-calibrate", "--memory", "0.1", "negatives.count=1000"]
    plain, mixed = (CliRunner().invoke(app, [*asked, f"negatives.trained={count}"]) for count in (0, 5000))
    memory = []  # parameters, gradients, optimizer, activations, rows, working
    for plan in (plain, mixed):
        assert plan.exit_code == 0, plan.output
        lines = [line for line in plan.stdout.splitlines() if line.startswith("attfc, ")]
        memory.append([[int(each.replace(",", "")) for each in line.split()[-6:]] for line in lines[2:]])
    size = 5000 * load_config("demo").backbone.embedding_size * 4 / 2**20
    assert memory[0][0] == memory[1][0]  # with keys
    more = [now - before for before, now in zip(memory[0][1], memory[1][1], strict=True)]
    assert more == pytest.approx([0, size, size, 0, size, 4 * size], abs=1.01)
    assert "Its largest part is the head's rows" in mixed.stdout
    assert ": lower negatives.trained, or keep them in a file: negatives.place=file" in mixed.stdout


def test_a_plan_says_what_is_kept_besides_and_what_the_other_form_would_keep(tmp_path) -> None:
    asked = [
        "plan",
        "demo",
        "--identities",
        "5000000",
        "negatives.place=file",
        f"negatives.folder={tmp_path}",
        "negatives.share=0.1",
        "--no-calibrate",
    ]
    table = CliRunner().invoke(app, [*asked, "--images", "42000000"])
    assert "table of centers: 4.8 GiB per process besides" in table.stdout
    assert "(center=other_images, mostly more accurate: 49.6 GiB)" in table.stdout
    memory = CliRunner().invoke(app, [*asked, "--images", "42000000", "center=other_images"])
    assert (
        "memory of images: 49.6 GiB per process besides, negatives.place=file (center=own_embedding: 4.8 GiB)"
        in memory.stdout
    )


def footprint(name: str, identities: int = 10**6, slots: int = 50_000, ranks: int = 1) -> HeadMemory:
    """What a head says of itself at 128 queries per rank."""
    with torch.device("meta"):
        margin, at = CosFace(), {"ranks": Ranks(0, ranks)}
        recent = {"negatives": RecentCenters(count=slots), "identities": identities, "in_batch": "none", **at}
        head: Head = {
            "full_fc": lambda: FullFC(512, identities, margin, **at),
            "partial_fc": lambda: PartialFC(512, identities, margin, **at),
            "attfc": lambda: AttFC(512, margin, center=KeyAttention(), **recent),
            "attfc, no key passes": lambda: AttFC(512, margin, **recent),
            "drawn": lambda: AttFC(512, margin, identities=identities, negatives=CenterTable(count=slots)),
            "dcp": lambda: DCP(512, margin, count=slots, **at),
        }[name]()  # type: ignore[operator]
    return head.footprint(128)


def test_time_is_the_networks_and_the_rows_that_a_step_works_on() -> None:
    encoder = replace(NOTHING, train_seconds=0.01, key_seconds=0.002)
    rates = HeadRates(container=1e-6, pool=3e-6, dense=5e-6, sampled=7e-6)
    for name, seconds in (
        ("attfc", 128 * (0.01 + 2 * 0.002) + 0.05),
        ("attfc, no key passes", 128 * 0.01 + 0.05),
        ("dcp", 128 * (0.01 + 0.002) + 0.15),
        ("full_fc", 128 * 0.01 + 5.0),
        ("partial_fc", 128 * 0.01 + 0.7),
    ):
        head = footprint(name)
        assert plan_step(name, encoder, head, 128, rates=rates).step_seconds == pytest.approx(seconds), name
    assert plan_step("attfc", encoder, head, 128).step_seconds is None


def test_full_fc_takes_three_times_its_rows_and_a_fourth_time_where_the_optimizer_is_not_fused() -> None:
    size, head = 10**6 * 512 * 4, footprint("full_fc")
    kept_logits = 10**6 * 128 * 4
    fused = plan_step("full_fc", NOTHING, head, 128).peak  # rows, gradient, momentum
    assert fused == pytest.approx(3 * size + kept_logits, rel=0.02)
    peak = plan_step("full_fc", NOTHING, head, 128, fused=False).peak
    assert peak == pytest.approx(4 * size, rel=0.01)  # and gradient + decay x rows
    assert plan_step("full_fc", NOTHING, head, 128, weight_decay=False, fused=False).peak == fused
    assert footprint("full_fc", ranks=8).rows == size / 8


def test_a_fixed_container_takes_the_same_whatever_the_identities() -> None:
    small, large = (footprint("attfc", identities, slots=100_000) for identities in (125_000, 100_000_000))
    assert small == large
    partial = plan_step("partial_fc", NOTHING, footprint("partial_fc", 2_000_000), 128).peak
    assert plan_step("attfc", NOTHING, small, 128).peak < partial / 10


def test_fewer_drawn_negatives_take_less() -> None:
    few, many = (footprint("drawn", 1000, slots=slots) for slots in (100, 500))
    assert plan_step("attfc", NOTHING, few, 128).peak < plan_step("attfc", NOTHING, many, 128).peak


def line(head: str, peak: float, fits: bool) -> Plan:
    return Plan(head, 0, 0, 0, 0, 0, peak, fits, None, None)


def test_advice_follows_what_fits() -> None:
    full, partial, ours = line("full_fc", 4, True), line("partial_fc 0.1", 3, True), line("attfc, 10 slots", 2, True)
    assert advice([full, partial, ours], 100_000).startswith("full_fc: it fits")
    assert advice([full, partial, ours], 600_000).startswith("both partial_fc and attfc fit")
    few = advice([full, partial, ours], 100_000, 250_000)
    assert few.startswith("attfc: people have 2.5 images each")
    assert advice([full, partial], 100_000, 250_000).startswith("full_fc")
    assert advice([partial], 600_000) == "partial_fc: the only one that fits."
    two = [line("full_fc", 9, False), line("dcq, 5 slots", 2, True), line("dcp, 5 slots", 3, True)]
    assert advice(two, 600_000) == "dcq and dcp: the only ones that fit."
    no_rows = [line("full_fc", 4, False), line("partial_fc 0.1", 3, False), ours]
    assert advice(no_rows, 50_000_000).startswith("attfc: partial_fc does not fit")
    assert advice([line("full_fc", 4, False)], 10**6).startswith(
        "None fits; full_fc needs the least. Its largest part is "
    )


def test_the_answer_is_about_the_head_that_was_asked_about() -> None:
    gib = 2**30
    mine = replace(line("attfc, no key passes", 7.1 * gib, True), step_seconds=0.5)
    quick = replace(line("full_fc", 8 * gib, True), step_seconds=0.2)
    quickest_but_too_large = replace(line("partial_fc 0.1", 11 * gib, False), step_seconds=0.1)
    alike = replace(line("dcq, 5 slots", 5 * gib, True), step_seconds=0.49)
    plans = [quick, quickest_but_too_large, mine, alike]
    assert answer(plans, mine.head, 10 * gib) == [
        "yours (attfc, no key passes): fits, 71 % of the memory, 0.5 s per step",
        "faster: full_fc, 80 % of the memory, 0.2 s per step",
    ]
    assert answer(plans, quick.head, 10 * gib) == ["yours (full_fc): fits, 80 % of the memory, 0.2 s per step"]
    assert answer([line("dcp, 5 slots", gib, True)], "dcp, 5 slots", 4 * gib) == [
        "yours (dcp, 5 slots): fits, 25 % of the memory"
    ]


def test_little_spare_memory_is_a_warning_with_the_largest_term_and_its_way_out() -> None:
    mib = 2**20
    activations = replace(
        line("full_fc", 950 * mib, True), activations=500 * mib, rows=100 * mib, parameters=40 * mib, network=40 * mib
    )
    (_, warning) = answer([activations], "full_fc", 1000 * mib)
    assert warning.startswith("warning: 5 % of the memory is spare, and workspace inside kernels")
    assert "Its largest part is activations, 500 MiB: halve batch_size and double optimizer.accumulation" in warning
    assert len(answer([activations], "full_fc", 1100 * mib)) == 1
    rows = replace(
        activations,
        rows=200 * mib,
        gradients=220 * mib,
        optimizer=220 * mib,
        network=80 * mib,
        ways=Ways(" with gradients and optimizer state: head=attfc trains none"),
    )
    (no,) = answer([replace(rows, fits=False)], "full_fc", 900 * mib)
    assert no.startswith(
        "yours (full_fc): does not fit, 106 % of the memory. Its largest part is the head's rows, 600 MiB with"
    )
    assert no.endswith("head=attfc trains none.")
    work = replace(rows, working=700 * mib, ways=Ways(work=": lower head.count"))
    assert answer([work], work.head, 900 * mib)[0].endswith(
        "the head's work on the rows of a step, 700 MiB: lower head.count."
    )
    network = replace(activations, network=800 * mib)
    assert (
        "Its largest part is the network's parameters, 800 MiB: take a smaller one (attfc backbones)"
        in answer([network], "full_fc", 1000 * mib)[1]
    )


IN_A_FILE = "negatives.place=file negatives.folder=FOLDER"


def test_advice_names_the_head_that_fits_with_its_rows_elsewhere() -> None:
    gib, ways = 2**30, Ways(outside=IN_A_FILE)
    ours = replace(line("attfc, 10 slots", 90 * gib, False), rows=80 * gib, ways=ways)
    slots = line("dcq, 10 slots", 3 * gib, True)
    moved = f"attfc fits with its rows elsewhere (head=attfc {IN_A_FILE}): 81,920 MiB there, 42 % of the memory here."
    assert advice([ours, slots], 10**8, None, 24 * gib) == f"dcq: the only one that fits as it is. {moved}"
    assert advice([ours], 10**8, None, 24 * gib) == f"None fits as it is. {moved}"
    assert advice([ours, slots], 10**8, None, 9 * gib) == "dcq: the only one that fits."
    assert advice([ours], 10**8, None, 9 * gib).startswith("None fits; attfc, 10 slots needs the least. Its largest")


@pytest.mark.parametrize(
    ("overrides", "device", "rows", "work"),
    [
        ("", "cpu", f": keep them in a file: {IN_A_FILE}", ": lower negatives.share, or halve batch_size"),
        ("negatives.count=900", "cuda", "", ": lower negatives.count, or halve batch_size"),  # the host has them
        ("negatives.place=device", "cuda", f": keep them in a file: {IN_A_FILE}", None),
        (IN_A_FILE, "cpu", "", None),
        ("negatives=recent_centers negatives.share=0.1", "cpu", ": lower negatives.share", None),
        (
            "negatives=recent_centers stored=center_table",
            "cpu",
            ": lower negatives.share, or keep them in a file: stored.place=file stored.folder=FOLDER",
            None,
        ),
        ("head=dcp head.count=900", "cpu", ": lower head.count", ": lower head.count, or halve batch_size"),
        (
            "head=full_fc",
            "cpu",
            " with gradients and optimizer state: head=attfc trains none",
            ": halve batch_size",
        ),
        (
            "head=partial_fc",
            "cpu",
            " with gradients and optimizer state: head=attfc trains none, or keep them in a file: head.place=file head.folder=FOLDER",
            ": lower head.share, or halve batch_size",
        ),
    ],
)
def test_ways_to_save_are_options_that_the_head_has(overrides: str, device: str, rows: str, work: str | None) -> None:
    ways = ways_to_save(load_config("demo", overrides.split()), torch.device(device))
    assert ways.rows == rows
    assert work is None or ways.work == work
    assert (ways.outside != "") == ("FOLDER" in rows)


def test_at_a_hundred_million_people_the_answer_is_about_rows() -> None:
    gib, overrides = 2**30, ["batch_size=128", "negatives.share=0.01"]
    for typed, part in (
        ([], f": keep them in a file: {IN_A_FILE}."),
        (IN_A_FILE.split(), "lower negatives.share, or halve batch_size."),
    ):
        config = load_config("demo", [*overrides, *typed, "backbone.embedding_size=512"])
        (plan,) = [
            plan
            for plan in Planner(10**8, None, CPU, gib, 1).plans(config, NOTHING, None)
            if plan.head == "attfc, no key passes"
        ]
        said = answer([plan], plan.head, gib)[0]
        assert said.endswith(part)
        assert "Its largest part is the head's " in said


@pytest.mark.parametrize(
    ("override", "title"),
    [
        ("center=own_embedding negatives.count=205991", "attfc, no key passes"),
        ("center=key_attention negatives.count=205991", "attfc, key passes"),
        ("profile=published negatives.count=205991", "attfc, 205,991 slots"),
        ("head=partial_fc", "partial_fc 0.1"),
        ("head=full_fc", "full_fc"),
        ("head=dcq head.count=205991", "dcq, 205,991 slots"),
        ("head=dcp head.count=205991", "dcp, 205,991 slots"),
    ],
)
def test_plan_answers_for_every_head(override: str, title: str) -> None:
    options = ["backbone.name=r6_tiny", "batch_size=16", "--memory", "40", "--no-calibrate"]
    done = CliRunner().invoke(app, ["plan", "wf42m_attfc_r100", *override.split(), *options])
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert f"yours ({title}): fits, " in done.stdout
    assert "measuring r6_tiny on cpu: a few steps of small batches" in done.stderr


def test_plan_as_a_user_types_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "measure_heads", partial(calibration.measure_heads, rows=512, repeats=1))
    file = tmp_path / "plan.json"
    options = ["backbone.name=r6_tiny", "batch_size=16", "--memory", "2", "--ranks", "2", "--json", str(file)]
    done = CliRunner().invoke(app, ["plan", "wf42m_attfc_r100", *options])
    assert done.exit_code == 0, done.output
    assert "r6_tiny, 2,059,906 identities, 2 x 8 images per pass" in done.stdout
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert (figures["identities"], figures["images"]) == (2_059_906, 42_474_557)
    fits = {plan["head"].split(",")[0]: plan["fits"] for plan in figures["plans"]}
    assert fits["full_fc"] is False
    assert fits["attfc"] is True
    assert fits["dcp"] is True
    assert all(plan["epoch_hours"] > 0 for plan in figures["plans"])
    # Two thirds of a batch are drawn by identity for dcp: three times the steps until every image was a query.
    steps = {plan["head"].split(",")[0]: plan["epoch_hours"] * 3600 / plan["step_seconds"] for plan in figures["plans"]}
    assert steps["attfc"] == pytest.approx(42_474_557 / (16 * load_config("wf42m_attfc_r100").optimizer.accumulation))
    assert steps["dcp"] == pytest.approx(3 * steps["attfc"])
