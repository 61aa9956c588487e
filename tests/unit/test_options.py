"""What options say about themselves: complete, true, and the same in a terminal, in docs/options.md and in `--print-config`."""

import importlib.util
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner

from attfc.cli import app
from attfc.commands.help import EXAMPLES, USES
from attfc.commands.options import completions, written_as_flag
from attfc.config import RunConfig, SourceConfig, apply_overrides, load_config, preset_names, read_preset
from attfc.config.describe import (
    Option,
    acts,
    all_options,
    commented_yaml,
    find_options,
    option_rows,
    section_title,
    without_effect,
)
from attfc.config.kinds import KINDS
from attfc.config.option import clauses
from attfc.errors import UserError
from attfc.heads.banks.kept_rows import KeptRows
from attfc.run.components import build_head
from attfc.run.resolved import identity_share, queries_in_a_row

ROOT = Path(__file__).resolve().parents[2]
HEADS = ("attfc", "full_fc", "partial_fc", "dcq", "dcp")
KEYS = {option.key for option in all_options()}
SECTIONS = ("head", "margin", "center", "negatives", "key_encoder")


def test_every_option_has_a_description_that_a_reader_understands() -> None:
    assert len({(option.key, kind) for option in all_options() for kind in option.kinds or [""]}) > 110
    assert len(KEYS) > 90
    for option in all_options():
        assert len(option.meaning) > 10, option.key
        assert not option.meaning.startswith("of "), option.key
        assert not option.meaning.endswith("."), option.key
        assert len(option.meaning.split()) <= 45 or option.key.endswith(".kind"), option.key
        assert not {"push", "world", "unseen"} & set(option.meaning.split()), option.key
        assert (option.default is None) <= (option.null is not None), f"{option.key}: what does null mean?"
        assert option.takes, option.key
        for key, _, values in itertools.chain.from_iterable(clauses(option.acts) if option.acts else []):
            assert key in KEYS, f"{option.key} acts with {key}"
            assert values, option.key
    assert all(field.description for field in SourceConfig.model_fields.values())
    assert all(section_title(section) for section in {option.section for option in all_options()})


def test_the_pages_of_options_and_commands_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "benchmarks" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == reference.options_page(), "run make docs"
    commands = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    assert commands == reference.commands_page(), "run make docs"
    sections = {option.section for option in all_options()}
    assert set(reference.EXPLAINED) <= sections | KEYS, "a page explains a section that is not there"
    assert {command for use in USES.values() for command in use} <= set(
        re.findall(r"^### `attfc (\w+)`", commands, re.M)
    )


def test_rows_fit_a_terminal_of_80_columns() -> None:
    for option in all_options():
        for row in option_rows(option):
            assert len(row) <= 80, row
    for line in CliRunner().invoke(app, ["options"]).stdout.splitlines():
        assert len(line) <= 80, line


def test_a_word_finds_keys_sections_short_names_and_descriptions() -> None:
    assert [option.key for option in find_options("lr")] == ["optimizer.learning_rate"]
    assert [option.key for option in find_options("checkpoint")] == ["checkpoint.every", "checkpoint.keep"]
    assert {option.section for option in find_options("head")} == {"head"}
    assert find_options("margin.scale")[0].key == "margin.scale"
    assert {option.key for option in find_options("MIRROR")} == {"augment.flip", "eval.flip"}
    with pytest.raises(
        UserError, match=r"no option has 'centr' in its name or description; near it: center \(sections: data, "
    ):
        find_options("centr")
    with pytest.raises(UserError, match=r"no option has 'learning_rat!'.*; near it: optimizer\.learning_rate "):
        find_options("learning_rat!")


def test_options_tell_defaults_of_both_profiles_units_and_when_they_act() -> None:
    shown = CliRunner().invoke(app, ["options", "key_encoder.momentum"]).stdout
    assert "  key_encoder.momentum=0  (number from 0 to 1)\n" in shown
    assert "With profile=published the default is 0.999." in shown
    shown = CliRunner().invoke(app, ["options", "negatives.place"]).stdout
    assert "Only where negatives.kind=center_table." in shown
    assert "Only where negatives.kind=image_memory." in shown
    shown = CliRunner().invoke(app, ["options", "head"]).stdout
    assert "Only where head.kind=partial_fc." in shown
    assert "Only where head.kind=dcq|dcp." in shown
    shown = CliRunner().invoke(app, ["options", "decoded_cache_mib"]).stdout
    assert "(MiB)" in shown
    shown = CliRunner().invoke(app, ["options", "eval.pairs"]).stdout
    assert "null: generate pairs." in shown
    assert "Only where eval.root is set, or where eval.share is above 0." in shown


# --print-config


@pytest.mark.parametrize("head", HEADS)
def test_the_printed_configuration_reads_back_equal_in_all_that_acts(tmp_path, head) -> None:
    for preset in preset_names():
        config = load_config(preset, [f"head={head}", "name=Zoë's run", "data.licence='with: colon # and sign'"])
        text = commented_yaml(config)
        path = tmp_path / "printed.yaml"
        path.write_text(text, encoding="utf-8")
        again = load_config(str(path))
        values, read = config.model_dump(mode="json"), again.model_dump(mode="json")
        for option in all_options():
            if acts(option, values):
                assert value_of(read, option) == value_of(values, option), (preset, option.key)
        assert commented_yaml(again) == text
        assert all(len(line) <= 80 or not line.lstrip().startswith("#") for line in text.splitlines())


def test_the_printed_configuration_leaves_out_what_does_nothing() -> None:
    printed = yaml.safe_load(commented_yaml(load_config("demo", ["head=full_fc", "eval.root=null"])))
    assert not {"center", "negatives", "stored", "in_batch", "key_encoder"} & set(printed)
    assert set(printed["eval"]) == {"root", "share"}
    assert set(printed["head"]) == {"kind", "subcenters", "past", "filter_above", "block_mib"}
    filtered = yaml.safe_load(commented_yaml(load_config("demo", ["head.filter_above=0.4"])))
    assert filtered["head"]["filtering"] == "drop"
    text = commented_yaml(load_config("demo"))
    assert (
        "  # Share of the stored center in the new one; the rest is the new\n  # embedding's.\n  share: 0.6\n" in text
    )
    assert "# Processor threads of the training process. null: torch's default.\nthreads: null\n" in text


def test_an_option_that_does_nothing_is_told_so_unless_it_is_inherited(tmp_path) -> None:
    def notes(*typed: str, preset: str = "demo") -> list[str]:
        asked = read_preset(preset, list(typed))
        return without_effect(asked, asked.resolve())

    said = "head.filtering={} has no effect: it acts only where head.filter_above is set"
    assert notes("head.filtering=zero") == [said.format("zero")]
    assert notes("head.filtering=drop") == [said.format("drop")]
    assert notes("head.filtering=zero", "head.filter_above=0.4") == []
    assert notes("optimizer.name=adamw", "optimizer.momentum=0.5") == [
        "optimizer.momentum=0.5 has no effect: it acts only where optimizer.name=sgd"
    ]
    path = tmp_path / "mine.yaml"
    path.write_text("format: 2\nhead: {filtering: zero}\noptimizer: {momentum: 0.5}\n")
    assert notes(preset=str(path)) == [said.format("zero")]
    assert notes("optimizer.name=adamw", "head.filter_above=0.4", preset=str(path)) == []  # inherited: dropped silently
    assert all(notes(preset=preset) == [] for preset in preset_names())


def test_the_stored_bank_stands_among_the_options(tmp_path) -> None:
    listed = {option.key: option for option in find_options("stored")}
    assert {"stored.kind", "stored.place", "stored.folder"} <= set(listed)
    assert (listed["stored.kind"].default, listed["stored.kind"].short) == (None, "stored")
    assert completions([], "stored=") == [f"stored={kind}" for kind in (*KINDS["stored"], "null")]
    assert "stored" not in yaml.safe_load(commented_yaml(load_config("demo")))
    path = tmp_path / "printed.yaml"
    config = load_config("demo", ["negatives=recent_centers", "stored=center_table", "stored.place=device"])
    path.write_text(commented_yaml(config))
    assert yaml.safe_load(path.read_text())["stored"] == {"kind": "center_table", "place": "device", "folder": None}
    assert load_config(str(path)).stored == config.stored


# Conditions against what is built


def value_of(values: dict[str, Any], option: Option) -> Any:
    section, _, name = option.key.rpartition(".")
    return (values[section] if section else values)[name]


def situations() -> Iterator[RunConfig]:
    """Small configurations of every kind of head, margin, center rule and bank."""
    small = ["batch_size=4", "backbone.embedding_size=4"]
    for profile in ("published", "null"):
        yield load_config("demo", [*small, f"profile={profile}", "negatives.count=8"])
    for head in HEADS[1:]:
        for margin in ("cosface", "combined"):
            sized = ["head.count=8"] if head.startswith("dc") else []
            yield load_config("demo", [*small, f"head={head}", f"margin={margin}", *sized])
    for center in ("key_attention", "own_embedding", "pairs", "other_images"):
        table = "image_memory" if center == "other_images" else "center_table"
        for negatives in ("recent_centers", table):
            yield load_config("demo", [*small, f"center={center}", f"negatives={negatives}", "negatives.count=8"])
    for margin in ("adaface", "arcface"):
        yield load_config("demo", [*small, f"margin={margin}", "negatives.count=8", "head.filter_above=0.4"])


def built(config: RunConfig) -> dict[str, Any]:
    """Everything that a head and its loader are told, as plain values."""
    head = build_head(config, 40, images=80, image_counts=range(40))
    found: dict[str, Any] = {
        f"{name}.{key}": value
        for name, module in head.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int | float | str | bool | None)
    }
    found |= {
        "type": type(head).__name__,
        "rule": type(getattr(head, "center", None)).__name__,
        "kept": [bank.store.place for bank in getattr(head, "banks", []) if isinstance(bank, KeptRows)],
        **head.streaming,
        "rows": getattr(head, "rows", None) and head.rows.place,
        "in a row": queries_in_a_row(config),
        "mix": identity_share(config),
    }
    return found | ({} if config.key_encoder is None else config.key_encoder.model_dump())


def others(values: dict[str, Any], option: Option) -> Iterator[str]:
    """Overrides that set an option to something else; as long as there is none of another kind among them."""
    value = value_of(values, option)
    if option.takes == "true or false":
        yield f"{option.key}={str(not value).lower()}"
    elif " | " in option.takes:
        yield from (f"{option.key}={choice}" for choice in option.takes.split(" | ") if choice not in (value, "file"))
    elif isinstance(value, int):
        yield from (f"{option.key}={value + more}" for more in (1, 1000))
    elif isinstance(value, float):
        yield f"{option.key}={value * 0.75 + 0.01}"
    elif value is None and option.takes.startswith("number"):
        yield f"{option.key}=0.3"


def test_every_option_of_a_part_changes_what_is_built() -> None:
    options = [option for option in all_options() if option.section in SECTIONS or option.key == "in_batch"]
    acted, changed = set(), set()
    for config in situations():
        values = config.model_dump(mode="json")
        as_is = built(config)
        for option in options:
            if not acts(option, values):
                continue
            for override in others(values, option):
                try:
                    after = built(apply_overrides(values, [override], "situation"))
                except UserError:
                    continue  # refused: it says so itself
                acted.add((option.key, option.kinds))
                changed |= {(option.key, option.kinds)} if after != as_is else set()
    assert acted - changed == set()
    missing = {key for key, _ in {(option.key, option.kinds) for option in options} - acted}
    assert missing <= {"head.folder", "negatives.folder"}


# The command line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["demo", "--epochs", "3"],
            "there is no --epochs: options of a run are written without dashes; write epochs=3",
        ),
        (["demo", "--learning-rate=0.1"], "write optimizer.learning_rate=0.1"),
        (["demo", "--lr", "0.1", "--resume", "x"], "write optimizer.learning_rate=0.1"),
        (["demo", "--margin.scale", "seed=1"], "write margin.scale=VALUE"),
        (["demo", "--print-config", "seed=1"], None),
        (["demo", "--resum", "x"], None),
        (["demo", "-h"], None),
        (["demo", "-epochs", "3"], "there is no -epochs: options of a run are written without dashes; write epochs=3"),
        (["demo", "--margin-scale=3"], "write margin.scale=3"),
        (
            ["demo", "--qqqq"],
            "there is no --qqqq: options of a run are written without dashes, as KEY=VALUE; attfc options lists them",
        ),
    ],
)
def test_an_option_typed_as_a_flag_is_told_how_to_write_it(words, said) -> None:
    found = written_as_flag(words, {"--resume", "--print-config", "--help", "--debug"})
    assert (
        found is None
        if said is None
        else found is not None and said in found.replace("write lr=", "write optimizer.learning_rate=")
    )


def test_shells_complete_presets_and_options() -> None:
    assert completions([], "fac") == ["faces112"]
    assert completions([], "head.ki") == [f"head.kind={head}" for head in HEADS]
    assert completions([], "head=d") == ["head=dcq", "head=dcp"]
    assert completions([], "center=p") == ["center=pairs"]
    assert completions([], "in_batch=f") == ["in_batch=fixed"]
    assert completions([], "epo") == ["epochs=20"]
    assert {"margin.m1=1", "margin.m2=0.5"} <= set(completions([], "margin.m"))
    assert completions(["demo", "head.kind"], "") == list(HEADS)  # as bash hands it on
    assert completions(["demo", "head.kind", "="], "dc") == ["dcq", "dcp"]
    assert completions(["demo", "lr", "="], "") == ["0.1"]
    assert len(completions(["demo"], "")) > 90
    code = (
        "import sys; from attfc.commands.options import completions; from attfc.cli import app; "
        "completions([], 'h'); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_lists_every_command_by_use_and_its_examples_are_accepted() -> None:
    shown = CliRunner().invoke(app, ["--help"], terminal_width=80).stdout
    command = typer.main.get_command(app)
    assert "More:" not in shown
    for use, names in USES.items():
        assert f"\n{use}:\n" in shown
        assert sum(f"\n  {name} " in shown for name in names) >= 1
    assert set(command.commands) <= {name for names in USES.values() for name in names}
    for line, _ in EXAMPLES:
        name, *words = line.split()[1:]
        assert line in shown
        command.commands[name].make_context(name, list(words), resilient_parsing=False)
    assert all(len(line) <= 80 for line in shown.splitlines())


def helps() -> Iterator[tuple[str, str]]:
    def of(command: Any, path: str) -> Iterator[tuple[str, str]]:
        yield path, command.help or ""
        for parameter in command.params:
            yield f"{path} {parameter.name}", getattr(parameter, "help", "") or ""
        for name, below in getattr(command, "commands", {}).items():
            yield from of(below, f"{path} {name}")

    yield from of(typer.main.get_command(app), "attfc")


def test_help_begins_with_a_verb_or_a_noun() -> None:
    texts = list(helps())
    assert len(texts) > 100
    for path, text in texts:
        assert text, f"{path} has no help"
        assert not text.startswith(("of ", "in ", "to ")), f"{path}: {text}"


def test_heads_of_this_file_are_those_of_the_schema() -> None:
    assert list(HEADS) == list(KINDS["head"])
    assert torch.get_num_threads() >= 1
