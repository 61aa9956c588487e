"""Configuration: order of precedence, refusals with the nearest name, and the round trip through a run's config.yaml."""

import pytest
import yaml

from attfc.config import Asked, apply_overrides, config_to_yaml, load_config, preset_names, read_preset
from attfc.config.arguments import read_words
from attfc.config.kinds import KINDS, common_options, kinds_with, model_of
from attfc.config.messages import keys_like
from attfc.config.overrides import dotted
from attfc.errors import UserError


def test_every_preset_resolves_and_is_listed() -> None:
    names = preset_names()
    assert {"demo", "faces112"} <= set(names)
    for name in names:
        assert load_config(name).name == name


def test_overrides_win_over_preset_which_wins_over_profile(tmp_path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("format: 2\nprofile: published\ncenter: {share: 0.25}\nbatch_size: 7\n")
    config = load_config(str(preset), ["batch_size=9", "margin.scale=16"])
    assert config.batch_size == 9
    assert config.margin.scale == 16.0
    assert config.center.get("share") == 0.25  # the preset's, over the profile's 0
    assert config.key_encoder.momentum == 0.999  # the profile's
    assert config.margin.get("gradient") == "straight_through"


def test_a_profile_on_the_command_line_means_all_of_it_but_sizes() -> None:
    for preset in preset_names():
        before, config = load_config(preset), load_config(preset, ["profile=published"])
        if config.head.kind != "attfc":
            assert config.negatives is None
            continue
        assert config.center == model_of("center", "key_attention")()
        assert (config.in_batch, config.stored) == ("none", None)
        assert config.key_encoder.model_dump() == {
            **{"momentum": 0.999, "momentum_schedule": "constant", "batch_norm": "batch", "distinct_keys": False}
        }
        assert config.negatives.options == {
            **{"share": before.negatives.get("share"), "count": before.negatives.get("count")},
            **{"policy": "fifo", "dtype": "float32", "initial": "empty"},
        }
        assert config.margin.get("gradient") == "straight_through"
        assert config.margin.get("beyond_pi", "wrap") == "wrap"
        assert (config.margin.get("scale"), config.margin.kind) == (before.margin.get("scale"), before.margin.kind)


def test_resolved_configuration_reads_back_equal() -> None:
    config = load_config("demo", ["augment.crop_scale=[0.8, 1.0]", "name=Zoë runs"])
    again = apply_overrides(yaml.safe_load(config_to_yaml(config)), [], "config.yaml")
    assert again == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rat=0.1", "unknown key 'optimizer.learning_rat'; did you mean 'optimizer.learning_rate'?"),
        ("momentum_schedule=ramp", "did you mean 'key_encoder.momentum_schedule'?"),
        ("centr.share=0.1", "unknown key 'centr'; did you mean 'center'?"),
        ("teachr=x", "unknown key 'teachr'; did you mean 'teacher'?"),
        ("batch_size=many", "batch_size='many'"),
        ("batch_size=0", "batch_size=0"),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate=nan"),
        ("profile=published center.keys=0", "center.keys=0: input should be greater than or equal to 1"),
        ("center=key_attention center.keys=-1", "center.keys=-1: input"),
        ("profile=publishd", "profile='publishd' is unknown: choose one of published, or null for the defaults"),
        ("batch_size", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("head=atfc", "head.kind='atfc': choose one of attfc, full_fc, partial_fc, dcq, dcp; did you mean 'attfc'?"),
        ("learning_rate=0.1", "did you mean 'optimizer.learning_rate'?"),
        ("optimizer.lr=0.1", "did you mean 'optimizer.learning_rate'?"),
        ("optimizer.epochs=5", "did you mean 'schedule.epochs'?"),
        ("head.scal=32", "did you mean 'margin.scale'?"),
        ("eval.batchsize=32", "did you mean 'eval.batch_size'?"),
        ("epoch=5", "did you mean 'epochs'?"),
        ("momentum=0.5", "did you mean 'key_encoder.momentum' or 'optimizer.momentum'?"),
        ("zzz=1", "unknown key 'zzz' (attfc options lists the known ones)"),
        (
            "margin=arcfase",
            "margin.kind='arcfase': choose one of cosface, arcface, combined, adaface; did you mean 'arcface'?",
        ),
        ("center=full_fc", "center.kind='full_fc': choose one of own_embedding, key_attention, pairs, other_images"),
        ("margin=0.3", "write margin.margin=0.3 (attfc options margin lists them)"),
        ("data=faces", "write data.root=faces"),
        ("report=false", "write report.write=false"),
        ("batch_size=1", "batch_size=1: BatchNorm needs at least 2 images per process; set batch_size to 2 or more"),
        ("eval.share=0.1", "set one of them"),
        ("seed=99999999999999999999", "seed=99999999999999999999: input should be less than"),
        ("negatives.count=true", "negatives.count='true': input should be a valid integer"),
        ("threads=true", "threads='true': input should be a valid integer"),
        ("lr=true", "optimizer.learning_rate='true': input should be a valid number"),
        ("center.share=false", "center.share='false': input should be a valid number"),
        ("margin_scale=3", "unknown key 'margin_scale'; did you mean 'margin.scale'?"),
    ],
)
def test_wrong_override_is_one_clear_error(override, message) -> None:
    with pytest.raises(UserError) as caught:
        load_config("demo", override.split(" "))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [  # its own section before every other
        ("augment.crop", ["augment.crop_scale"]),
        ("augment.flp", ["augment.flip"]),
        ("augment.flip_probability", ["augment.flip"]),
        ("eval.batchsize", ["eval.batch_size"]),
        ("data.num_workers", ["data.workers"]),
        ("data.cache", ["data.index_cache", "data.decoded_cache_mib"]),
        ("center.temp", ["center.temperature"]),
        ("margin.s", ["margin.scale"]),
        ("backbone.size", ["backbone.embedding_size", "backbone.image_size"]),
        ("schedule.warmup", ["schedule.warmup_epochs"]),
        ("checkpoints.every", ["checkpoint.every"]),
        ("optimiser.momentum", ["optimizer.momentum"]),
        # nothing there: the same word elsewhere, then one that is spelled like it
        ("head.scale", ["margin.scale"]),
        ("schedule.lr", ["optimizer.learning_rate"]),
        ("data.flip", ["augment.flip", "eval.flip"]),
        ("optimizer.epochs", ["schedule.epochs"]),
        # no section
        ("warmup", ["schedule.warmup_epochs"]),
        ("num_workers", ["data.workers"]),
        ("wandb", ["log.wandb"]),
        ("out", ["output"]),
        ("batchsize", ["batch_size"]),
        # nothing is near
        *((word, []) for word in ("condition", "dropout", "student", "gpus", "xyz", "data.path", "augment.colour")),
        *((word, []) for word in ("eval.interval", "negatives.size", "backbone.dropout", "foo.bar", "margin.qqq")),
    ],
)
def test_a_mistyped_key_is_answered_with_what_is_near_or_with_nothing(typed: str, meant: list[str]) -> None:
    assert keys_like(typed) == meant


def test_override_inside_a_plain_value_is_refused() -> None:
    with pytest.raises(UserError, match="which an earlier override set to a plain value"):
        load_config("demo", ["seed=1", "seed.value=1"])


def test_short_names_are_the_keys_they_stand_for() -> None:
    config = load_config("demo", ["lr=0.05", "epochs=3", "max_steps=7", "backbone=r50", "head=full_fc"])
    assert (config.optimizer.learning_rate, config.schedule.epochs, config.schedule.max_steps) == (0.05, 3, 7)
    assert (config.backbone.name, config.head.kind) == ("r50", "full_fc")
    assert load_config("demo", ["head={kind: dcp, enter_first: 0.5}"]).head.get("enter_first") == 0.5
    assert load_config("demo", ["head=dcp", "head.enter_first=0.5"]).head.kind == "dcp"


def test_a_section_with_a_plain_value_in_a_file_says_what_goes_there(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("format: 2\ndata: faces\n")
    with pytest.raises(UserError, match=r"mine\.yaml: data=faces: data is a section .* write data\.root=faces"):
        load_config(str(path))


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
        for section, values in load_config("demo", ["center=key_attention", "negatives=recent_centers"])
        .model_dump()
        .items()
        if isinstance(values, dict)
        for key in values
    }
    for name in (
        "center.temperature",
        "center.include_stored",
        "center.share",
        "key_encoder.momentum_schedule",
        "negatives.policy",
        "negatives.dtype",
        "key_encoder.distinct_keys",
        "key_encoder.batch_norm",
        "margin.gradient",
    ):
        assert name in flat  # the names of docs/heads.md


def test_a_profile_asked_for_by_name_replaces_a_resolved_one(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config_to_yaml(load_config("demo")))
    config = load_config(str(path), ["profile=published", "negatives.policy=unique"])
    assert config.key_encoder.momentum == 0.999
    assert config.center.get("share") == 0.0
    assert config.negatives.get("policy") == "unique"


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
    with pytest.raises(UserError, match=r"no such file or folder|is not a folder here"):
        read_words([word])


def test_a_folder_called_like_a_file_is_data(tmp_path, monkeypatch) -> None:
    (tmp_path / "faces.yaml").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_words(["faces.yaml"]).given()["data.root"] == "faces.yaml"


# Sections that have kinds


def resolved(*overrides: str, preset: str = "demo") -> dict[str, object]:
    return dotted(load_config(preset, list(overrides)).model_dump(mode="json"))


def test_another_kind_replaces_what_lies_below_but_for_what_all_kinds_have(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "format: 2\ncenter: {kind: own_embedding, share: 0.3}\nnegatives: {kind: center_table, count: 77, place: device}\n"
        "margin: {scale: 16, margin: 0.1}\nhead: {filter_above: 0.5}\n"
    )
    found = resolved("center=key_attention", "negatives=recent_centers", "margin=arcface", preset=str(path))
    assert (found["center.share"], found["negatives.count"]) == (0.0, 77)
    assert (found["margin.scale"], found["margin.margin"]) == (16.0, 0.5)
    assert "negatives.place" not in found
    assert resolved("head=partial_fc", preset=str(path))["head.filter_above"] == 0.5
    assert resolved("center.share=0.4", preset=str(path))["center.share"] == 0.4
    assert (
        resolved("negatives.share=0.4", preset=str(path))["negatives.count"] is None
    )  # one size in place of the other
    assert resolved("head=dcq", preset=str(path))["head.count"] == 77  # a size goes with the negatives
    assert common_options("negatives") == {"share", "count"}
    assert common_options("center") == set()


def test_kinds_come_first_whatever_their_order_on_the_line() -> None:
    for order in (1, -1):
        assert resolved(*["center.keys=3", "center=key_attention"][::order])["center.keys"] == 3


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("center.keys=3", "center.keys=3: center.kind=own_embedding has no option keys; center=key_attention has one"),
        ("negatives.policy=fifo", "negatives.kind=center_table has no option policy; negatives=recent_centers has one"),
        (
            "head=full_fc head.share=0.3",
            "head.kind=full_fc has no option share; head=partial_fc, head=dcq or head=dcp has one",
        ),
        ("margin.beyond_pi=wrap", "margin=arcface or margin=combined has one"),
        ("head=full_fc center.share=0.5", "center.share=0.5: head.kind=full_fc has no center; head=attfc has"),
        ("head=dcp in_batch=push", "in_batch=push: head.kind=dcp has no in_batch; head=attfc has"),
        (
            "head=partial_fc negatives=recent_centers",
            "negatives.kind=recent_centers: head.kind=partial_fc has no negatives",
        ),
        (
            "key_encoder.momentum=0.9",
            "no keys are embedded with head.kind=attfc and center.kind=own_embedding; they are with",
        ),
        ("negatives.share=0.2 negatives.count=9", "negatives.share=0.2 and negatives.count=9: give one of them"),
        ("negatives.place=file", "negatives.place=file needs negatives.folder, a folder on a fast disk"),
        ("center.share=1", "center.share=1: input should be less than 1"),
        ("head.identities=9", "unknown key 'head.identities'"),
        ("negatives.seed=9", "unknown key 'negatives.seed'; did you mean 'seed'?"),
        ("center=other_images center.images=9", "unknown key 'center.images'"),
        ("in_batch=off", "in_batch='off': input should be 'push', 'fixed' or 'none'"),
        ("head={count: 3}", "head.kind=attfc has no option count"),
    ],
)
def test_a_typed_option_that_the_final_kind_lacks_is_refused_with_the_kinds_that_have_it(typed, message) -> None:
    with pytest.raises(UserError) as caught:
        load_config("demo", typed.split(" ") if "{" not in typed else [typed])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250  # one fault, and not one for each kind


def test_an_inherited_option_that_the_final_kind_lacks_is_dropped() -> None:
    assert "margin.beyond_pi" not in resolved("profile=published")
    assert resolved("profile=published", "margin=arcface")["margin.beyond_pi"] == "wrap"
    found = load_config("wf4m_attfc_r100", ["head=full_fc"]).model_dump()
    assert not {"center", "negatives", "stored", "in_batch", "key_encoder"} & set(found)


@pytest.mark.parametrize(
    ("text", "typed", "message"),
    [
        ("head: full_fc\ncenter: pairs", "", "center.kind=pairs: head.kind=full_fc has no center; head=attfc has"),
        ("center: pairs\nhead: {kind: dcp}\n", "", "center.kind=pairs: head.kind=dcp has no center; head=attfc has"),
        ("head: full_fc\nin_batch: fixed", "seed=3", "in_batch=fixed: head.kind=full_fc has no in_batch"),
        ("center: pairs\nkey_encoder: {momentum: 0.9}", "", "no keys are embedded with head.kind=attfc and center.kind=pairs"),
        ("head: full_fc\ncenter: pairs", "head=dcq", None),
        ("head: full_fc\ncenter: pairs", "head=attfc", None),
        ("center: pairs", "head=full_fc", None),
        ("center: pairs\nkey_encoder: {momentum: 0.9}", "center=key_attention", None),
        ("head: dcq\nkey_encoder: {momentum: 0.9}", "", None),
        ("profile: published\nhead: full_fc", "", None),
    ],
)  # fmt: skip
def test_a_file_that_names_a_part_beside_a_head_without_it_is_refused_and_an_inherited_part_is_dropped(
    tmp_path, text: str, typed: str, message: str | None
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"format: 2\n{text}\n")
    if message is None:
        assert load_config(str(path), typed.split()).head.kind in ("attfc", "full_fc", "dcq")
    else:
        with pytest.raises(UserError, match=message):
            load_config(str(path), typed.split())


def test_what_does_not_go_with_the_center_gives_way_unless_it_was_typed() -> None:
    others = resolved("center=other_images")
    assert (others["negatives.kind"], others["negatives.share"], others["in_batch"]) == ("image_memory", 1.0, "push")
    assert resolved("center=key_attention")["in_batch"] == "fixed"
    assert (
        resolved("center=key_attention", "in_batch=push")["in_batch"] == "push"
    )  # refused by the head, which names both


def test_words_of_yaml_that_are_no_texts() -> None:
    assert resolved("in_batch=none")["in_batch"] == "none"
    assert resolved("stored=none")["stored"] is None
    assert resolved("center.share=1e-1")["center.share"] == 0.1
    assert resolved("negatives.share=1") == resolved("negatives.share=1.0")
    assert resolved("stored=center_table", "negatives=recent_centers")["stored.place"] == "host"


def test_a_configuration_of_this_version_says_so_and_every_kind_reads_back_equal() -> None:
    for section in ("head", "margin", "center", "negatives"):
        for kind in KINDS[section]:
            remembers = ["center=other_images"] if kind == "image_memory" else []
            config = load_config("demo", [f"{section}={kind}", *remembers])
            written = yaml.safe_load(config_to_yaml(config))
            assert written["format"] == 2
            assert Asked(written).resolve() == config
    assert kinds_with("negatives", "folder") == ["center_table", "image_memory"]


@pytest.mark.parametrize(
    ("typed", "instead"),
    [
        ("head.name=dcq container.ratio=0.3", "head=dcq head.share=0.3"),
        ("center.source=keys keys.per_query=1", "center=key_attention center.share=0.6 center.keys=1"),
        ("center.source=others", "center=other_images negatives=image_memory"),
        ("center.blend=0.4", "center.share=0.4"),
        ("negatives.in_batch=false", "in_batch=none"),
        ("negatives.in_batch_gradient=false", "in_batch=fixed"),
        ("container.slots=500", "negatives.count=500"),
        ("center.table=none", "negatives=recent_centers negatives.policy=unique"),
        ("negatives.source=container", "negatives=recent_centers stored=center_table negatives.policy=unique"),
        ("center.table=file center.table_folder=/x", "negatives.place=file negatives.folder=/x"),
        ("head.name=partial_fc head.sample_rate=0.3", "head=partial_fc head.share=0.3"),
        ("head.name=full_fc head.rows=host", "head=partial_fc head.share=1 head.place=host"),
        ("margin.name=arcface", "margin=arcface margin.margin=0.4"),
        ("keys.sampling=with_replacement", "data.sampling=with_replacement"),
        ("profile=published center.blend=0.2 negatives.in_batch=true", "center.share=0.2 in_batch=fixed"),
        ("head={name: dcp, enter_first: 0.5}", "head=dcp head.enter_first=0.5"),
        ("margin_name=arcface", "margin=arcface margin.margin=0.4"),
        ("keys_per_query=1 center_source=keys", "center=key_attention center.share=0.6 center.keys=1"),
    ],
)
def test_a_key_of_0_1_is_refused_with_what_to_type_instead(typed, instead) -> None:
    with pytest.raises(UserError) as caught:
        load_config("faces112", typed.split(" ") if "{" not in typed else [typed])
    assert str(caught.value).endswith(f": the spelling of attfc 0.1; write {instead}")
    load_config("faces112", [each for each in typed.split(" ") if each.startswith("profile")] + instead.split(" "))


@pytest.mark.parametrize("typed", ["profile=tuned", "container.policy=fifo", "keys.distinct=false"])
def test_a_key_of_0_1_that_says_nothing_is_told_so(typed) -> None:
    with pytest.raises(UserError, match="it says nothing here, leave it out"):
        load_config("demo", [typed])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format: 3\nhead: new", "format=3: this version reads format: 2, and files of attfc 0.1, which have none"),
        ("format: two", "format='two': this version reads format: 2"),
        ("format: 2\nhead: null", "head.kind=None: choose one of attfc, full_fc"),
        ("format: 2\nmargin: null", "margin.kind=None: choose one of cosface, arcface, combined, adaface"),
        ("format: 2\nstored: off", "stored.kind=False: choose one of center_table"),
        ("format: 2\ncenter: 3", "center.kind=3: choose one of own_embedding"),
        ("format: 2\ncenter: [pairs]", "center.kind=['pairs']: choose one of own_embedding"),
        ("format: 2\nhead: {kind: {a: 1}}", "head.kind={'a': 1}: choose one of attfc"),
        ("format: 2\nprofile: [published]", "profile=['published'] is unknown"),
        ("profile: foo", "profile='foo' is unknown: choose one of published"),
        ("1: 2\nseed: 3", "x.yaml holds the key 1, which is not a name, expected a mapping of sections"),
        ("backbone: {mean: [1, 2]}", "backbone.mean=[1, 2]: input should be one number, or three"),
        (
            "format: 2\nhead: {name: full_fc}",
            "x.yaml: head.name=full_fc: the spelling of attfc 0.1; write head=full_fc",
        ),
        (
            "format: 2\ncontainer: {ratio: 0.3}",
            "container.ratio=0.3: the spelling of attfc 0.1; write negatives.share=0.3",
        ),
        (
            "format: 2\nnegatives: {kind: center_table, policy: fifo}",
            "negatives.kind=center_table has no option policy",
        ),
        ("head: {name: foo}", "head.name=foo: choose one of attfc, full_fc"),
        ("margin: {name: [1]}", "margin.name=[1]: choose one of cosface"),
        ("center: {source: {a: 1}}", "center.source={a: 1}: choose one of query, keys, batch, others"),
        ("negatives: {source: foo}", "negatives.source=foo: choose one of table, container"),
    ],
)
def test_a_fault_in_a_file_is_one_line_that_names_it(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "did you mean 'combined'" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("head=null", "head.kind=None: choose one of attfc"),
        ("head.name=bla", "head.name=bla: choose one of attfc"),
        ("head=AttFC", "did you mean 'attfc'?"),
        ("profile={a: b}", "profile={'a': 'b'} is unknown"),
        ("head=dcq negatives.count=5", "head.kind=dcq has no negatives; head=attfc has, and dcq has head.count"),
        ("center=other_images center.images=9", "unknown key 'center.images': the run supplies it, from the data"),
    ],
)
def test_a_word_that_is_no_part_is_refused(typed: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config("demo", [typed] if "{" in typed else typed.split(" "))
    assert message in str(caught.value)


def test_null_leaves_a_part_to_the_head() -> None:
    for section in ("center", "negatives"):
        assert load_config("demo", [f"{section}=null"]) == load_config("demo")
    assert load_config("demo", ["head=full_fc", "center={}"]) == load_config("demo", ["head=full_fc"])


def test_an_inherited_stored_bank_goes_where_it_no_longer_fits(tmp_path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("format: 2\nnegatives: recent_centers\nstored: center_table\n")
    assert load_config(str(path)).stored is not None
    for typed in (["negatives=center_table"], ["center=key_attention"], ["center=pairs", "center.share=0"]):
        assert load_config(str(path), typed).stored is None
    path.write_text("format: 2\nnegatives: recent_centers\nstored: none\n")
    assert load_config(str(path)).stored is None


@pytest.mark.parametrize(
    ("text", "taken"),
    [  # what tells the versions apart: nothing, an option of today, one of 0.1, the line
        ("batch_size: 64", "negatives.share=0.1"),
        ("profile: published\nmargin: {scale: 32}", "negatives.share=0.1"),
        ("data: {root: faces}\nstart_from: w.pt", "finetune.batch_norm=adapted negatives.share=0.1"),
        ("negatives: {count: 100}", None),
        ("center: {memory: 0.1}\nstart_from: w.pt", None),
        ("finetune: {batch_norm: kept}\nstart_from: w.pt", None),
        ("head: full_fc\nstart_from: w.pt", None),
        ("head: {name: attfc}", None),
        ("profile: tuned", None),
        ("container: {ratio: 0.3}", None),
        ("format: 2\nstart_from: w.pt", None),
    ],
)
def test_a_file_that_may_be_of_either_version_is_read_as_0_1_with_a_note(tmp_path, text: str, taken: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    notes = read_preset(str(path)).notes
    assert read_words([str(path), "synthetic:identities=9,images=2,seed=0"]).notes == notes
    if taken is None:
        assert notes == ()
        return
    said = f"{path} has no line 'format: 2', so it is read as attfc 0.1 did, with {taken}: add the line for the defaults of today"
    assert notes == (said,)
    config = load_config(str(path))
    for each in taken.split():
        key, _, value = each.partition("=")
        assert str(dotted(config.model_dump(mode="json"))[key]) == value
    path.write_text(f"format: 2\n{text}")  # as the note says
    assert read_preset(str(path)).notes == ()
    assert load_config(str(path), ["start_from=null"]) != load_config(str(path), ["start_from=null", *taken.split()])


def test_an_option_of_today_alone_says_that_a_file_is_of_today(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("negatives: {count: 100}\nstart_from: w.pt")  # 0.1 had no such option
    config = load_config(str(path))
    assert (config.negatives.get("share"), config.negatives.get("count")) == (None, 100)
    assert config.finetune.batch_norm == "kept"


def test_the_spelling_that_a_message_gives_is_accepted() -> None:
    with pytest.raises(UserError) as caught:
        load_config("demo", ["center=key_attention", "negatives.source=container"])
    written = str(caught.value).partition("write ")[2].split(" ")
    config = load_config("demo", ["center=key_attention", *written])
    assert config.negatives.kind == "recent_centers"
    assert config.stored is None  # this rule asks for nothing that is stored
