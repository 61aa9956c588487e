"""Configuration: order of precedence, refusals with the nearest name, and the round trip through a run's config.yaml."""

import pytest
import yaml

from attfc.config import PROFILES, RunConfig, apply_overrides, config_to_yaml, load_config, preset_names, read_preset
from attfc.config.arguments import read_words
from attfc.errors import UserError


def test_every_preset_resolves_and_is_listed() -> None:
    names = preset_names()
    assert {"demo", "faces112"} <= set(names)
    for name in names:
        assert load_config(name).name == name


def test_overrides_win_over_preset_which_wins_over_profile(tmp_path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("profile: published\ncenter: {blend: 0.25}\nbatch_size: 7\n")
    config = load_config(str(preset), ["batch_size=9", "margin.scale=16"])
    assert config.batch_size == 9
    assert config.margin.scale == 16.0
    assert config.center.blend == 0.25  # the preset's, over the profile's 0
    assert config.key_encoder.momentum == 0.999  # the profile's
    assert config.margin.gradient == "straight_through"


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_a_profile_on_the_command_line_means_all_of_it(profile) -> None:
    for preset in preset_names():
        config = load_config(preset, [f"profile={profile}"]).model_dump()
        for section, values in PROFILES[profile].items():
            assert {key: config[section][key] for key in values} == values


def test_resolved_configuration_reads_back_equal() -> None:
    config = load_config("demo", ["augment.crop_scale=[0.8, 1.0]", "name=Zoë runs"])
    again = apply_overrides(yaml.safe_load(config_to_yaml(config)), [], "config.yaml")
    assert again == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rat=0.1", "unknown key 'optimizer.learning_rat'; did you mean 'optimizer.learning_rate'?"),
        ("momentum_schedule=ramp", "did you mean 'key_encoder.momentum_schedule'?"),
        ("contaner.ratio=0.1", "unknown key 'contaner'; did you mean 'container'?"),
        ("batch_size=many", "batch_size='many'"),
        ("batch_size=0", "batch_size=0"),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate=nan"),
        ("profile=published keys.per_query=0", "keys.per_query is 0"),
        ("center.source=keys keys.per_query=-1", "keys.per_query is -1"),
        ("profile=publishd", "profile='publishd' is unknown: choose one of published, tuned"),
        ("batch_size", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("head=atfc", "head.name='atfc': input should be 'attfc'"),
        ("learning_rate=0.1", "did you mean 'optimizer.learning_rate'?"),
        ("optimizer.lr=0.1", "did you mean 'optimizer.learning_rate'?"),
        ("optimizer.epochs=5", "did you mean 'schedule.epochs'?"),
        ("head.scal=32", "did you mean 'margin.scale'?"),
        ("eval.batchsize=32", "did you mean 'eval.batch_size'?"),
        ("epoch=5", "did you mean 'epochs'?"),
        ("momentum=0.5", "did you mean 'key_encoder.momentum' or 'optimizer.momentum'?"),
        ("zzz=1", "unknown key 'zzz' (attfc options lists the known ones)"),
        (
            "margin=arcface",
            "margin=arcface: margin is a section of options and takes no value itself; write margin.name=arcface",
        ),
        ("margin=0.3", "write margin.margin=0.3 (attfc options margin lists them)"),
        ("data=faces", "write data.root=faces"),
        ("keys=3", "write keys.per_query=3"),
        ("report=false", "write report.write=false"),
        ("attention=on", "write attention.include_stored_center=on"),
        ("batch_size=1", "batch_size=1: BatchNorm needs at least 2 images per process; set batch_size to 2 or more"),
        ("eval.share=0.1", "set one of them"),
        ("seed=99999999999999999999", "seed=99999999999999999999: input should be less than"),
    ],
)
def test_wrong_override_is_one_clear_error(override, message) -> None:
    with pytest.raises(UserError) as caught:
        load_config("demo", override.split(" "))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_override_inside_a_plain_value_is_refused() -> None:
    with pytest.raises(UserError, match="which an earlier override set to a plain value"):
        load_config("demo", ["seed=1", "seed.value=1"])


def test_short_names_are_the_keys_they_stand_for() -> None:
    config = load_config("demo", ["lr=0.05", "epochs=3", "max_steps=7", "backbone=r50", "head=full_fc"])
    assert (config.optimizer.learning_rate, config.schedule.epochs, config.schedule.max_steps) == (0.05, 3, 7)
    assert (config.backbone.name, config.head.name) == ("r50", "full_fc")
    assert load_config("demo", ["head={name: dcp, enter_first: 0.5}"]).head.enter_first == 0.5
    assert load_config("demo", ["head=dcp", "head.enter_first=0.5"]).head.name == "dcp"


def test_a_section_with_a_plain_value_in_a_file_says_what_goes_there(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("margin: arcface\n")
    with pytest.raises(
        UserError, match=r"mine\.yaml: margin=arcface: margin is a section .* write margin\.name=arcface"
    ):
        load_config(str(path))


def test_fc_head_needs_no_keys() -> None:
    assert load_config("demo", ["head.name=full_fc", "keys.per_query=0"]).keys.per_query == 0


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown preset 'ms1mv3'; did you mean ") as caught:
        load_config("ms1mv3")
    assert sum(f"'{name}'" in str(caught.value) for name in preset_names()) == 3
    assert "attfc presets lists them; a folder of faces is given by its path: attfc train FOLDER" in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "3", "1: 2"])
def test_preset_that_is_no_mapping_is_refused(tmp_path, text) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_config(str(path))


def test_missing_preset_file_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match=r"cannot read configuration .*nowhere\.yaml"):
        load_config(str(tmp_path / "nowhere.yaml"))


def test_every_field_is_reachable_by_its_dotted_name() -> None:
    flat = {
        f"{section}.{key}"
        for section, values in RunConfig().model_dump().items()
        if isinstance(values, dict)
        for key in values
    }
    for name in (
        "attention.temperature",
        "attention.include_stored_center",
        "center.blend",
        "key_encoder.momentum_schedule",
        "container.policy",
        "container.dtype",
        "negatives.in_batch",
        "keys.distinct",
        "key_encoder.batch_norm",
        "margin.gradient",
    ):
        assert name in flat  # the names of docs/heads.md


def test_a_profile_asked_for_by_name_replaces_a_resolved_one(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config_to_yaml(load_config("demo")))
    config = load_config(str(path), ["profile=published", "container.policy=unique"])
    assert config.key_encoder.momentum == 0.999
    assert config.center.blend == 0.0
    assert config.container.policy == "unique"


def test_overrides_of_text_are_taken_as_typed() -> None:
    assert load_config("demo", ["data.root=/faces #2"]).data.root == "/faces #2"
    assert load_config("demo", ["data.root=2024"]).data.root == "2024"
    assert load_config("demo", ["data.root='quoted'"]).data.root == "quoted"


def test_what_is_given_are_values_and_not_their_spelling() -> None:
    given = read_preset("demo", ["lr=1e-3", "epochs=2e0", "optimizer.accumulation='2'"]).given()
    assert given["optimizer.learning_rate"] == 0.001
    assert given["schedule.epochs"] == 2
    assert given["optimizer.accumulation"] == 2


@pytest.mark.parametrize("word", ["~nobody-here/faces", "a\0b", "name=" + "x" * 5000])
def test_a_word_that_no_path_can_be_is_no_data(word: str) -> None:
    if "=" in word:
        assert read_words(["synthetic:", word]).overrides == (word,)
        return
    with pytest.raises(UserError, match=r"no such file or folder|is no folder here"):
        read_words([word])


def test_a_folder_called_like_a_file_is_data(tmp_path, monkeypatch) -> None:
    (tmp_path / "faces.yaml").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_words(["faces.yaml"]).given()["data.root"] == "faces.yaml"
