"""The words of `attfc train`: what is data, a preset, a file, an override; and what a configuration means for few people."""

from pathlib import Path

import pytest
import torch

from attfc.config.arguments import read_words, short_overrides
from attfc.config.translate import translate
from attfc.data import SyntheticFaces
from attfc.distributed import ALONE, Ranks
from attfc.errors import UserError
from attfc.run.automatic import _machine, choose_configuration
from attfc.run.resolved import fewest_steps_notes, resolve, rows_as_negatives

CPU = torch.device("cpu")


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("faces", "demo", "a=b", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "two.yaml").write_text("data: {sources: [{root: other}], workers: 3}\n")
    return tmp_path


def root(*words: str) -> object:
    return read_words(words).given().get("data.root")


def test_each_word_is_what_it_looks_like_in_this_order(here: Path) -> None:
    assert root("faces", "epochs=5") == root("epochs=5", "faces") == "faces"
    assert root("./demo") == "./demo"
    assert str(root("demo")).startswith("synthetic:")  # the preset, though a folder of that name lies here
    assert root("a=b") == "a=b"  # a folder that exists, not an override
    assert root("synthetic:identities=20,images=3,seed=0") == "synthetic:identities=20,images=3,seed=0"
    assert read_words(["faces", "demo"]).given()["backbone.name"] == "r6_tiny"
    assert [read_words(words).automatic for words in (["faces"], ["demo"], ["faces", "demo"], ["data.root=faces"])] == [
        True,
        False,
        True,
        True,
    ]


def test_data_beside_a_file_takes_the_place_of_its_sources(here: Path) -> None:
    config = read_words(["two.yaml", "faces"]).resolve()
    assert (config.data.root, config.data.sources, config.data.workers) == ("faces", [], 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["faces", "other"], "faces and other are two sets of data"),
        (["demo", "two.yaml"], "demo and two.yaml are two configurations"),
        (["faces", "data.root=other"], "faces and data.root= both name the data"),
        (["faces", "data.sources=[{root: other}]"], "faces and data.sources= both name the data"),
        ([], "no data and no preset: write attfc train FOLDER"),
        (["./nowhere"], "./nowhere: no such file or folder"),
        (["demmo"], "'demmo' is not a folder here, a preset or key=value; presets near it: demo"),
    ],
)
def test_words_that_cannot_be_are_refused_by_name(here: Path, words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        read_words(words)
    assert said in str(error.value)


def test_arguments_of_python_are_overrides() -> None:
    assert short_overrides({"epochs": 2, "output": Path("runs"), "start_from": None}) == [
        "epochs=2",
        "output=runs",
        "start_from=null",
    ]
    with pytest.raises(UserError, match=r"train\(\) has no argument 'epoch'; did you mean 'epochs'\?"):
        short_overrides({"epoch": 2})


def test_what_a_head_keeps_fits_the_people() -> None:
    def settled(*overrides: str):
        return resolve(read_words(["demo", "batch_size=32", *overrides]).resolve(), 50)

    drawn, notes = settled("negatives.count=null", "negatives.share=1")
    assert (drawn.negatives.count, notes) == (50, [])  # rows drawn from a table: nobody twice
    kept, notes = settled("head=dcq", "head.count=null", "head.share=0.1")
    assert kept.head.count == 32
    assert notes == ["head.share=0.1 of 50 identities is less than one batch: the container has 32 slots"]
    assert rows_as_negatives(kept, 50) == 32
    with pytest.raises(UserError, match=r"head.count=31 is smaller than batch_size=32, .*: set head.count=32"):
        settled("head=dcq", "head.count=31")
    assert settled("in_batch=none")[0].in_batch == "none"
    assert settled()[0].in_batch == "push"


def test_advice_about_a_short_run_names_the_key_that_makes_it_short() -> None:
    config = read_words(["demo", "batch_size=32"]).resolve()
    assert fewest_steps_notes(config, 3200, 100) == []
    (by_epochs,) = fewest_steps_notes(config, 320, 10)
    assert by_epochs.endswith("set epochs=2 or more")
    config.schedule.max_steps = 1_000  # not what makes it short
    assert fewest_steps_notes(config, 320, 10) == [by_epochs]
    config.schedule.max_steps = 10
    (by_steps,) = fewest_steps_notes(config, 3200, 10)
    assert by_steps.endswith("set schedule.max_steps=20 or more, or null")
    few, _ = fewest_steps_notes(config, 20, 10)
    assert few == "20 images are fewer than the 32 of one step, so each step sees images twice: set batch_size=4"


def test_saved_runs_of_0_1_are_told_by_the_option_that_they_lack() -> None:
    old = {"eval": {}, "backbone": {"name": "vit_b", "options": {"drop_path": 0.2}}}
    assert translate(old, saved=True)["backbone"]["options"] == {"drop_path": 0.2, "mask_ratio": 0.05}
    assert old["backbone"]["options"] == {"drop_path": 0.2}
    new = {"eval": {"share": 0.0}, "backbone": {"name": "vit_b"}}
    assert translate(new, None, ["head/container.rows"], saved=True)["backbone"] == {"name": "vit_b"}
    table = {"eval": {}, "center": {"table": "host"}, "container": {"ratio": 1.0}}
    container = {"kind": "recent_centers", "share": 1.0, "policy": "unique"}
    for known in ({"tensors": ["head/container.rows"]}, {"identities": 50}, {}):
        assert translate(table, saved=True, **known)["negatives"] == container
        assert "stored" not in translate(table, saved=True, **known)
    drawn = {"share": 1.0, "place": "host"}
    assert translate(table, tensors=["head/table.rows"], saved=True)["negatives"] == drawn | {"kind": "center_table"}


def test_fine_tuning_before_there_was_a_choice_adapted_its_statistics() -> None:
    adapted = {"batch_norm": "adapted"}
    old, saved = {"head": {"name": "full_fc"}, "start_from": "base.pt"}, {"format": 2, "start_from": "base.pt"}
    assert translate(old)["finetune"] == translate(saved, saved=True)["finetune"] == adapted
    chosen = saved | {"finetune": {"batch_norm": "kept"}}
    assert translate(chosen, saved=True)["finetune"] == {"batch_norm": "kept"}
    assert "finetune" not in translate(saved) | translate(old | {"start_from": None})


def test_several_processes_choose_for_the_smallest_of_them() -> None:
    class Two(Ranks):
        def objects(self, said):
            return [said, (1.0, 2.0)]

    machine = _machine(torch.device("cpu"), Two())
    assert (machine.memory_gib, machine.host_gib) == (1.0, 2.0)


def test_people_of_one_image_are_not_counted_as_people_to_keep_aside() -> None:
    store = SyntheticFaces(30, 1)
    _, rows = choose_configuration(read_words(["synthetic:identities=30,images=1,seed=0"]), store, None, CPU, ALONE)
    assert rows[0].why.startswith(
        "no evaluation: nobody has two or more images, from which a model learns what one person looks like, 20 are needed"
    )
    with pytest.raises(UserError, match=r"holds too few images to train on \(1\): at least 2 images of 2 people are"):
        choose_configuration(read_words(["synthetic"]), SyntheticFaces(1, 1), None, CPU, ALONE)


def test_a_batch_that_does_not_fit_is_cut_unless_its_size_or_parts_were_typed(monkeypatch) -> None:
    monkeypatch.setattr("attfc.run.automatic.Planner.passes_that_fit", lambda *_: 4)
    store = SyntheticFaces(100, 20)

    def chosen(*overrides: str) -> tuple[int, int, str]:
        words = read_words(["synthetic:identities=100,images=20,seed=0", "backbone=r18", *overrides])
        config, rows = choose_configuration(words, store, None, CPU, ALONE)
        return config.batch_size, config.optimizer.accumulation, rows[-1].what

    assert chosen() == (16, 4, "cut to fit")
    assert chosen("batch_size=32") == (32, 1, "scale, margin")
    assert chosen("optimizer.accumulation=2") == (32, 2, "scale, margin")


def test_spaces_around_the_sign_are_named(tmp_path) -> None:
    with pytest.raises(UserError, match="options are written without spaces around the sign: epochs=3, not epochs = 3"):
        read_words(["synthetic:", "=", "3"])
