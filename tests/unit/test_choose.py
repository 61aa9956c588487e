"""What `attfc train PATH` chooses: the promised rows, more memory never a smaller model, an override moves only what hangs on it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attfc.backbones import create_backbone
from attfc.backbones.shapes import shapes_only
from attfc.config import Asked
from attfc.config.arguments import read_words
from attfc.config.choose import Data, Machine, choose
from attfc.config.kinds import KINDS
from attfc.config.overrides import dotted
from attfc.data.people.kept_aside import people_kept_aside
from attfc.heads import AttFC
from attfc.heads.centers import OtherImages
from attfc.run.build import new_run, settle

CPU = Machine("cpu", 24, 24)


def card(gib: float, ranks: int = 1) -> Machine:
    return Machine("cuda", gib, 128, ranks)


def data(people: int, images: int, with_pairs: int) -> Data:
    """A set from which people with as many images as the others were kept aside."""
    kept = people_kept_aside(with_pairs, 0.1)
    left = images * (people - kept) / people
    return Data(people - kept, int(left), with_pairs, kept, images - int(left))


def chosen(facts: Data, machine: Machine, **typed: Any) -> dict[str, Any]:
    given = {key.replace("__", "."): value for key, value in typed.items()}
    return {key: value for row in choose(facts, machine, given) for key, value in row.values.items()}


FACES60, TAIL = data(60, 1_240, 60), data(5_343, 12_500, 1_700)
FACES112, MS1MV3 = data(2_360, 18_924, 741), data(93_431, 5_179_510, 93_431)
GLINT, WEBFACE = data(360_232, 17_091_657, 360_232), data(2_059_906, 42_474_557, 2_059_906)

# kept, network, batch, accumulation, epochs, steps, rate, scale, push, negatives, table
GOLDEN = {
    "60 people": (FACES60, CPU, 8, "r6_tiny", 64, 1, 25, 419, 0.05, 32, True, 52, "host"),
    "tail": (TAIL, CPU, 170, "r10_tiny", 128, 1, 13, 1_229, 0.1, 32, False, 517, "host"),
    "faces112": (FACES112, card(24), 74, "r18", 128, 1, 40, 5_728, 0.025, 32, True, 228, "device"),
    "MS1MV3": (MS1MV3, card(8), 1_000, "r50", 128, 4, 20, 200_159, 0.1, 64, True, 9_243, "device"),
    "Glint360K": (GLINT, card(24), 1_000, "r100", 128, 4, 20, 665_789, 0.1, 64, True, 20_000, "device"),
    "WebFace42M, 8 GiB": (WEBFACE, card(8), 1_000, "r50", 128, 4, 20, 1_658_356, 0.1, 64, True, 20_000, "host"),
    "WebFace42M, 80 GiB": (WEBFACE, card(80), 1_000, "r100", 512, 1, 20, 1_658_356, 0.1, 64, True, 20_000, "device"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_promised_rows(name: str) -> None:
    facts, machine, kept, network, batch, accumulation, epochs, steps, rate, scale, push, negatives, place = GOLDEN[
        name
    ]
    found = chosen(facts, machine)
    assert facts.kept_people == kept
    assert (found["backbone.name"], found["batch_size"], found["optimizer.accumulation"]) == (
        network,
        batch,
        accumulation,
    )
    assert found["schedule.epochs"] == epochs
    assert int(epochs * facts.images / (batch * accumulation)) == pytest.approx(steps, abs=1)
    assert found["optimizer.learning_rate"] == pytest.approx(rate)
    assert (found["margin.kind"], found["margin.scale"], found["margin.margin"]) == ("cosface", scale, 0.4)
    assert found["in_batch"] == ("push" if push else "fixed")
    assert (found["center.memory"], found["head.filter_above"], found["head.filter_gap"]) == (0.1, 0.3, 0.2)
    assert (found["negatives.count"], found["negatives.place"]) == (negatives, place)
    assert found["schedule.warmup_epochs"] == (1.0 if machine.card else 0.5 if epochs >= 5 else epochs / 10)
    assert found["head.kind"] == "attfc"


def test_full_fc_is_named_where_its_rows_fit_and_people_have_many_images() -> None:
    def said(facts: Data, machine: Machine) -> bool:
        return any("full_fc is worth a try" in row.why for row in choose(facts, machine, {}))

    assert said(FACES60, CPU)
    assert said(MS1MV3, card(8))
    assert not said(TAIL, CPU)
    assert not said(GLINT, card(24))


def test_below_6_gib_and_on_accelerators_without_a_test_it_is_as_on_a_processor() -> None:
    as_processor = chosen(FACES112, CPU)
    assert chosen(FACES112, card(4)) == as_processor
    assert chosen(FACES112, Machine("mps", 64, 24)) == as_processor
    assert chosen(FACES112, card(5.4)) == as_processor
    assert chosen(FACES112, card(5.6))["backbone.name"] == "r18"  # sold as 6


def test_nobody_is_kept_aside_below_20_people_of_two_images_and_a_sentence_says_so() -> None:
    row = choose(Data(19, 100, 19), CPU, {})[0]
    assert row.shown == "nobody"
    assert row.why == "no evaluation: 19 people have two or more images, 20 are needed; give eval.root=OTHER_PEOPLE"
    assert choose(Data(60, 1_240, 60), CPU, {"eval.share": 0})[0].why == "no evaluation: as given"
    assert choose(Data(60, 1_240, 60), CPU, {"eval.root": "other"})[0].shown == "other"


OF_OWN_EMBEDDING = ("center.memory", "head.filter_above", "head.filter_gap")
DEPENDENTS = {
    "batch_size": (64, {"optimizer.learning_rate"}),
    "backbone.name": ("r50", {"optimizer.learning_rate"}),
    "schedule.epochs": (3, {"schedule.warmup_epochs"}),
    "schedule.max_steps": (100, {"schedule.warmup_epochs"}),
    "optimizer.learning_rate": (0.2, set()),
    "margin.scale": (64.0, set()),
    "margin.kind": ("arcface", {"margin.margin"}),
    "negatives.count": (500, set()),
    "negatives.place": ("device", set()),
    "start_from": ("weights", {"optimizer.learning_rate", "schedule.epochs", "schedule.warmup_epochs"}),
    "head.kind": ("full_fc", {"negatives.count", "in_batch", "negatives.place", *OF_OWN_EMBEDDING}),
    "center.memory": (0.0, set()),
    "head.filter_above": (0.5, set()),
}


@pytest.mark.parametrize("key", DEPENDENTS)
def test_an_override_moves_only_what_depends_on_it(key: str) -> None:
    value, dependents = DEPENDENTS[key]
    before, after = chosen(TAIL, CPU), chosen(TAIL, CPU, **{key.replace(".", "__"): value})
    moved = {name for name in before | after if before.get(name) != after.get(name)} - {key}
    assert moved <= dependents, moved
    if key not in ("start_from", "schedule.max_steps"):
        assert after[key] == value


def test_people_of_many_images_have_trained_centers_within_a_budget() -> None:
    def trained(people: int, frequent: int, **typed: Any) -> int | None:
        found: int | None = chosen(Data(people, 20 * people, people, frequent=frequent), CPU, **typed).get(
            "negatives.trained"
        )
        return found

    assert trained(2_286, 115) == 115
    assert trained(92, 92) == 92  # everybody: a full classifier
    assert trained(90_000, 80_000) == 15_000  # a sixth of the people: the trained rows take as much as the table
    assert trained(2_000_000, 900_000) == 20_000
    assert trained(2_286, 0) is None
    assert trained(2_286, 115, negatives__kind="recent_centers") is None
    assert trained(2_286, 115, negatives__trained=7) == 7


def test_a_batch_of_half_the_size_has_half_the_rate_and_weights_to_start_from_a_tenth() -> None:
    assert chosen(TAIL, CPU, batch_size=64)["optimizer.learning_rate"] == pytest.approx(0.05)
    assert chosen(TAIL, CPU, start_from="run")["optimizer.learning_rate"] == pytest.approx(0.01)
    assert chosen(TAIL, CPU, start_from="run")["schedule.epochs"] == 13 / 4


def test_what_hangs_on_an_override_is_right_for_it() -> None:
    assert chosen(FACES60, CPU, head__kind="dcq")["head.count"] == 64  # a whole batch enters a container
    with_keys = chosen(FACES60, CPU, center__kind="key_attention")
    assert with_keys["in_batch"] == "fixed"
    assert not set(OF_OWN_EMBEDDING) & set(with_keys)
    assert "head.filter_gap" not in chosen(FACES60, CPU, head__filter_above=None)
    assert chosen(TAIL, CPU, optimizer__name="adamw")["optimizer.learning_rate"] == pytest.approx(0.001)
    assert chosen(TAIL, CPU, margin__kind="arcface")["margin.margin"] == 0.5
    assert "negatives.count" not in chosen(TAIL, CPU, negatives__share=0.5)
    one_pass = chosen(MS1MV3, card(8), batch_size=512)
    assert (one_pass["optimizer.accumulation"], one_pass["optimizer.learning_rate"]) == (1, pytest.approx(0.1))
    together = chosen(MS1MV3, card(8, ranks=4))
    assert (together["batch_size"], together["optimizer.accumulation"]) == (512, 1)


@pytest.mark.parametrize(
    "typed",
    [
        *([f"{section}={kind}"] for section in ("head", "center", "margin") for kind in KINDS[section]),
        ["negatives=recent_centers"],
        ["center=pairs", "center.group=4", "negatives=center_table"],
        ["center=other_images", "negatives=recent_centers"],
        ["teacher.model=somewhere", "teacher.centers=fixed"],
    ],
    ids=" ".join,
)
def test_a_row_of_the_table_is_what_the_run_has(typed: list[str]) -> None:
    settled = settle(read_words(["synthetic:identities=30,images=4-30", *typed]))
    values = dotted(settled.config.model_dump(mode="json"))
    assert {key: values[key] for row in settled.choices for key in row.values} == {
        key: value for row in settled.choices for key, value in row.values.items()
    }
    fixed = "teacher.centers=fixed" in typed  # they are a teacher's: the head refuses to train some of them
    assert bool(settled.config.negatives and settled.config.negatives.get("trained")) == (
        not fixed and values.get("center.kind") == "own_embedding" and "recent_centers" not in str(typed)
    )


def test_the_memory_of_images_is_counted_by_image() -> None:
    rows = {row.what: row for row in choose(WEBFACE, card(80), {"center.kind": "other_images"})}
    assert rows["memory of images"].values["negatives.place"] == "file"  # 44 GiB, more than a quarter of the host's
    assert f"{(1024 * WEBFACE.images + 2052 * WEBFACE.identities) / 2**20:,.1f} MiB" in rows["memory of images"].why
    head = AttFC.default(512, 30, center=OtherImages(200))
    assert head.stored.memory_bytes() == 1024 * 200 + 2052 * 30


def test_a_table_that_fits_no_memory_lies_in_a_file_beside_the_runs() -> None:
    small = Machine("cuda", 8, 4)
    assert (chosen(WEBFACE, small)["negatives.place"], chosen(WEBFACE, small)["negatives.folder"]) == ("file", "runs")
    assert chosen(WEBFACE, small, output="elsewhere")["negatives.folder"] == "elsewhere"
    assert "negatives.folder" not in chosen(WEBFACE, small, negatives__place="host")


def test_steps_that_end_a_run_early_shorten_its_warmup_and_are_named_beside_the_epochs() -> None:
    rows, images = {row.what: row for row in choose(FACES60, CPU, {"schedule.max_steps": 50})}, FACES60.images
    assert rows["warm-up"].values["schedule.warmup_epochs"] == pytest.approx(50 * 64 / images / 10)
    assert rows["epochs"].why.endswith(f"; max_steps=50 ends it after {50 * 64 / images:.3g}")
    assert (
        "max_steps" not in {row.what: row for row in choose(FACES60, CPU, {"schedule.max_steps": 9999})}["epochs"].why
    )


def test_every_rank_has_at_least_two_images() -> None:
    found = chosen(data(60, 300, 60), Machine("cpu", 24, 24, ranks=12))
    assert found["batch_size"] % 12 == 0
    assert found["batch_size"] >= 24


NETWORKS = ["r6_tiny", "r10_tiny", "r18", "r50", "r100"]
SETS = st.tuples(st.integers(2, 3_000_000), st.floats(1, 60)).map(lambda d: Data(d[0], max(2, int(d[0] * d[1])), 0))


@settings(max_examples=300, deadline=None)
@given(SETS, st.floats(1, 200), st.floats(1, 200))
def test_more_memory_is_never_a_smaller_network_or_fewer_images_per_step(facts: Data, one: float, other: float) -> None:
    small, large = (chosen(facts, card(gib)) for gib in sorted((one, other)))
    assert NETWORKS.index(small["backbone.name"]) <= NETWORKS.index(large["backbone.name"])
    step = [each["batch_size"] * each["optimizer.accumulation"] for each in (small, large)]
    assert step[0] <= step[1]
    assert chosen(facts, card(one)) == chosen(facts, card(one))
    assert 1 <= small["negatives.count"] <= max(facts.identities, 1)


def test_the_table_is_made_without_torch() -> None:
    code = (
        "import sys; from attfc.config.choose import *; choose(Data(60, 1240, 60), Machine('cpu', 24, 24), {}); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", GOLDEN)
def test_every_row_builds_and_takes_two_steps_at_toy_size(name: str, tmp_path: Path) -> None:
    facts, machine, *_ = GOLDEN[name]
    values = chosen(facts, machine)
    with shapes_only():
        create_backbone(values["backbone.name"], embedding_size=512)
    toy = {
        "backbone.name": "r6_tiny",
        "batch_size": 8,
        "negatives.count": min(values["negatives.count"], 12),
        "eval.share": 0.0,
    }
    typed = (
        "data.root=synthetic:identities=12,images=4",
        "data.workers=0",
        "threads=1",
        "log.tensorboard=false",
        "log.every=1",
    )
    typed += ("schedule.max_steps=2", "report.write=false", "checkpoint.every=0", "device=cpu", f"output={tmp_path}")
    config = Asked(overrides=typed).resolve(values | toy)
    for key, value in (values | toy).items():  # what is chosen is what is built
        section, _, last = key.rpartition(".")
        assert getattr(getattr(config, section) if section else config, last) == value
    run = new_run(config)
    run.trainer.train()
    assert run.trainer.step == 2
    assert run.trainer.accumulation == values["optimizer.accumulation"]
