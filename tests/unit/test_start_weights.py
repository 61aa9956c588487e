"""`start_from=`: what the weights say becomes the run's, what contradicts is refused, where they come from stays known."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from attfc.backbones import create_backbone
from attfc.config import Asked, RunConfig, apply_overrides, load_config, read_preset
from attfc.data import SyntheticFaces
from attfc.errors import UserError
from attfc.export import load
from attfc.export.colours import OURS, FedAs
from attfc.export.hub_folder import model_card
from attfc.export.model_inputs import ModelFacts
from attfc.run import components
from attfc.run.build import new_run
from attfc.run.resuming import resume_run
from attfc.run.start_weights import Lineage, StartRecord, StartWeights, _resolved, lineage, read_record, read_start
from attfc.training.checkpoints.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from attfc.training.model_files import load_model, save_model
from attfc.training.momentum import MomentumPair

BGR = {"colour_order": "BGR", "mean": [103.5, 116.3, 123.7], "std": 57.4}
TINY = [
    "data.root=synthetic:identities=8,images=4,seed=0",
    "data.workers=0",
    "data.decoded_cache_mib=0",
    "batch_size=8",
    "schedule.epochs=1",
    "schedule.warmup_epochs=0",
    "eval.root=null",
    "log.tensorboard=false",
    "report.write=false",
    "precision.amp=none",
    "device=cpu",
    "threads=1",
]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_backbone("r6_tiny", embedding_size=24, image_size=32).eval()


def settled(config: list[str]) -> tuple[RunConfig, frozenset[str]]:
    return apply_overrides({}, config, "test"), Asked(overrides=tuple(config)).typed()


def written(path: Path, network: nn.Module, form: str) -> Path:
    """The same weights as arcface_torch and others leave them."""
    state = network.state_dict()
    bare = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    value = {
        "plain": state,
        "module": {f"module.{name}": tensor for name, tensor in state.items()},
        "state_dict": {"epoch": 2, "state_dict": {f"module.{name}": tensor for name, tensor in bare.items()}},
        "checkpoint": {
            "global_step": 5,
            "state_dict_backbone": state,
            "state_dict_softmax_fc": {"weight": torch.ones(3, 2)},
        },
        "uncounted": bare,
    }[form]
    torch.save(value, path)
    return path


@pytest.mark.parametrize("form", ["plain", "module", "state_dict", "checkpoint", "uncounted"])
def test_arcface_torch_files_in_every_form(tmp_path, form) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = create_backbone("mbf", embedding_size=64)
    path = written(tmp_path / "backbone.pth", network, form)
    preset = apply_overrides({"backbone": {"name": "r18"}}, [f"start_from={path}"], "test")
    config, start = read_start(preset)
    assert (config.backbone.name, config.backbone.embedding_size, config.backbone.image_size) == ("mbf", 64, 112)
    assert start.network is not None
    for name, value in network.state_dict().items():
        assert torch.equal(start.network.state_dict()[name], value), name
    assert not any(
        "network taken from the weights" in note for note in read_start(*settled([f"start_from={path}"]))[1].notes
    )
    said = " | ".join(start.notes)
    assert (
        "network taken from the weights: mbf, 64 numbers, 112 x 112 pixels; instead of r18, 512 numbers, 112 x 112 pixels"
        in said
    )
    assert "say so with backbone.colour_order=" in said
    assert ("num_batches_tracked), which it lacks, to 0" in said) == (form in ("state_dict", "uncounted"))
    if form == "checkpoint":
        assert "took 'state_dict_backbone' of the checkpoint, left 'global_step', 'state_dict_softmax_fc'" in said


@pytest.mark.parametrize("kind", ["run", "model", "file"])
def test_folders_say_their_colours_and_options(tmp_path, network, kind) -> None:
    folder = save_model(tmp_path / "r-001" / "model", network, {**BGR, "options": {"dropout": 0.2}})
    path = {"run": folder.parent, "model": folder, "file": folder / "model.safetensors"}[kind]
    config, start = read_start(*settled([f"start_from={path}"]))
    backbone = config.backbone
    assert (backbone.name, backbone.embedding_size, backbone.image_size) == ("r6_tiny", 24, 32)
    assert (backbone.colour_order, backbone.mean, backbone.std) == ("BGR", (103.5, 116.3, 123.7), 57.4)
    assert backbone.options == {"dropout": 0.2}
    assert isinstance(start.network, FedAs)
    mine, _ = read_start(*settled([f"start_from={path}", "backbone.options={checkpointing: true}"]))
    assert mine.backbone.options == {"dropout": 0.2, "checkpointing": True}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("backbone.name=r50", "has name r6_tiny, and backbone.name=r50 was asked for: leave backbone.name out"),
        ("backbone.embedding_size=512", "has embedding_size 24, and backbone.embedding_size=512 was asked for"),
        ("backbone.image_size=112", "has image_size 32, and backbone.image_size=112 was asked for"),
        ("backbone={name: r50, image_size: 32}", "has name r6_tiny, and backbone.name=r50 was asked for"),
        ("backbone.colour_order=RGB", "has colour_order BGR, and backbone.colour_order=RGB was asked for"),
        ("backbone.std=127.5", "has std 57.4, and backbone.std=127.5 was asked for"),
        ("backbone.std=0", "backbone: std is 0.0: use one or three numbers above 0"),
        ("start_licence=mine", "states the licence 'theirs', and start_licence='mine' was given: leave it out"),
    ],
)
def test_what_contradicts_is_refused_by_name(tmp_path, network, asked, message) -> None:
    folder = save_model(tmp_path / "model", network, {**BGR, "training_data": {"root": "x", "licence": "theirs"}})
    with pytest.raises(UserError, match=message):
        read_start(*settled([f"start_from={folder}", asked]))


def test_what_agrees_is_taken(tmp_path, network) -> None:
    folder = save_model(tmp_path / "model", network, BGR)
    agrees = [
        "backbone.name=r6_tiny",
        "backbone.image_size=32",
        "backbone.mean=[103.5, 116.3, 123.7]",
        "backbone.std=57.4",
    ]
    assert read_start(*settled([f"start_from={folder}", *agrees]))[0].backbone.embedding_size == 24


def test_what_a_state_dict_does_not_say_is_asked_for(tmp_path, network) -> None:
    path = written(tmp_path / "w.pt", network, "plain")
    with pytest.raises(
        UserError, match=r"image_size=S; here, state it with one of backbone\.name=, backbone\.image_size="
    ):
        read_start(*settled([f"start_from={path}"]))
    said = ["backbone.image_size=32", "backbone.colour_order=BGR", "start_licence=research only"]
    config, start = read_start(*settled([f"start_from={path}", *said]))
    assert (config.backbone.image_size, config.backbone.colour_order, config.backbone.mean) == (32, "BGR", 127.5)
    assert start.record.weights == {
        "source": "w.pt",
        "network": "r6_tiny",
        "root": "unknown",
        "licence": "research only",
    }
    torch.save({"weight": torch.ones(3, 3)}, tmp_path / "other.pt")
    with pytest.raises(
        UserError, match=r"is of no network that attfc knows: .*here, state it with one of backbone\.name="
    ):
        read_start(*settled([f"start_from={tmp_path / 'other.pt'}"]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.onnx", r"is an ONNX file, which cannot be trained: give the run, folder or state dict"),
        ("nothing", r"start_from: .*nothing does not exist: a model is a run's folder"),
        (
            "run",
            r"has no whole checkpoint \(looked in .*checkpoints\) and no model: let that run reach its first checkpoint",
        ),
    ],
)
def test_what_cannot_begin_a_run_is_refused_in_one_line(tmp_path, name, message) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: x\n")
    with pytest.raises(UserError, match=message) as caught:
        read_start(*settled([f"start_from={tmp_path / name}"]))
    assert "\n" not in str(caught.value)


def test_options_that_do_not_fit_the_weights_are_named(tmp_path, network) -> None:
    path = save_model(tmp_path / "model", network)
    for options, message in [("{nonsense: 1}", "has no option 'nonsense'"), ("{dropout: 0.5}", None)]:
        overrides = [*TINY, f"start_from={path}", f"backbone.options={options}", f"output={tmp_path}"]
        asked = read_preset("demo", overrides)
        if message is None:
            assert new_run(asked).config.backbone.options == {"dropout": 0.5}
        else:
            with pytest.raises(UserError, match=message):
                new_run(asked)


def test_a_run_in_foreign_colours_is_saved_resumed_and_started_from(tmp_path, network) -> None:
    """The whole life of one: the start file is gone after the first line."""
    folder = save_model(
        tmp_path / "theirs", network, {**BGR, "training_data": {"root": "faces of others", "licence": "research only"}}
    )
    first = [*TINY, f"output={tmp_path}", "data.licence=ours", "schedule.max_steps=2", "optimizer.learning_rate=1e-9"]
    first.append("center=key_attention")
    run = new_run(load_config("demo", [*first, f"start_from={folder}", "name=a"]))
    assert any("started from" in note and "64 tensors of r6_tiny" in note for note in run.notes)
    images = (
        torch.from_numpy(SyntheticFaces(2, 2, seed=1).images(np.arange(4), 32).pixels).permute(0, 3, 1, 2) / 127.5 - 1
    )
    with torch.no_grad():
        expected = load(folder, device="cpu").module(images)
        assert torch.equal(run.trainer.pair.query.eval()(images), expected)
        assert torch.equal(run.trainer.pair.key.eval()(images), expected)
    run.trainer.train()
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()

    started = {"source": "theirs", "network": "r6_tiny", "root": "faces of others", "licence": "research only"}
    of_run = {"root": "synthetic:identities=8,images=4,seed=0", "licence": "ours", "start_weights": started}
    config = load_model(run.folder, any_colours=True)[1]
    assert {key: config[key] for key in BGR} == BGR
    assert config["training_data"] == of_run
    resumed = resume_run(run.folder, ["schedule.max_steps=3"])
    resumed.trainer.train()
    opened = load(run.folder, device="cpu")
    assert opened.facts.training_data == of_run
    assert opened.facts.colours.to_dict() == BGR
    with torch.no_grad():
        assert torch.equal(opened.module(images), resumed.trainer.pair.query.eval()(images))

    second = new_run(load_config("demo", [*first, f"start_from={run.folder}", "name=b", "data.licence=ours too"]))
    assert second.config.backbone == resumed.config.backbone
    with torch.no_grad():
        assert torch.equal(second.trainer.pair.query.eval()(images), opened.module(images))
    record = read_record(second.folder)
    assert record is not None
    assert record.weights == {"source": run.folder.name, "network": "r6_tiny", **of_run}
    assert json.loads((second.folder / "start_weights.json").read_text())["kind"] == "run"
    for path in (second.folder, second.folder / "model"):
        (path / ".").mkdir(exist_ok=True)
        behind = lineage(path)
        assert [earlier.run for earlier in behind.runs] == [second.folder.name, run.folder.name]
        assert behind.foreign
        assert behind.runs[1].data.root == "synthetic:identities=8,images=4,seed=0"
        assert behind.runs[1].share == resumed.config.eval.share


def test_the_card_names_the_licence_of_what_a_model_started_from(tmp_path) -> None:
    weights = {"source": "r50.pth", "root": "MS1MV3", "licence": "research only"}
    data = {
        "root": "faces",
        "licence": "MIT",
        "start_weights": {"source": "a-001", "root": "x", "licence": "y", "start_weights": weights},
    }
    card = model_card(ModelFacts(tmp_path, "folder", "r50", {}, 512, 112, OURS, data, ()), "float32")
    assert "license_name: 'MIT; start weights: y, research only'" in card
    assert (
        "| started from | a-001 (trained on x, licence: y); which started from r50.pth (trained on MS1MV3, licence: research only) |"
        in card
    )
    assert "started from" not in model_card(
        ModelFacts(tmp_path, "folder", "r50", {}, 512, 112, OURS, "unknown", ()), "float32"
    )


def test_lineage_of_weights_from_elsewhere_and_of_runs_of_earlier_versions(tmp_path) -> None:
    for path in (tmp_path / "w.pt", tmp_path / "nothing"):
        assert (lineage(path).runs, lineage(path).foreign) == ([], True)
    for name, start in (("a", "null"), ("b", tmp_path / "a"), ("c", tmp_path / "gone"), ("d", tmp_path / "d")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(
            f"start_from: {start}\ndata: {{root: of-{name}}}\neval: {{share: 0.1}}\n"
        )
    found = {name: lineage(tmp_path / name) for name in "abcd"}
    assert [(earlier.data.root, earlier.share) for earlier in found["b"].runs] == [("of-b", 0.1), ("of-a", 0.1)]
    assert [found[name].foreign for name in "abcd"] == [False, False, True, True]  # d claims to start from itself
    assert len(found["d"].runs) == 1


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"source": 1}', b"\xff\xfe", b"[" * 100_000, b" " * 2**21])
def test_a_damaged_record_ends_in_one_line(tmp_path, content) -> None:
    (tmp_path / "start_weights.json").write_bytes(content)
    with pytest.raises(UserError, match=r"start_weights\.json is (damaged|larger)") as caught:
        read_record(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("moved", [True, False])
def test_the_key_encoder_of_a_run_is_taken_if_it_ever_moved_and_counts_its_steps_anew(tmp_path, moved) -> None:
    saved, fresh = (MomentumPair(create_backbone("r6_tiny", embedding_size=8), 0.9) for _ in range(2))
    saved.step = 3 if moved else 0
    torch.nn.init.constant_(next(saved.key.parameters()), 0.5)
    checkpoint = save_checkpoint(tmp_path, 3, {"pair": saved.state_dict()})
    record = StartRecord(source="run", kind="run", network="r6_tiny", weights={}, lineage=Lineage())
    (taken,) = StartWeights(record, (), checkpoint, "attfc", None).fill(fresh)
    assert ("and its key encoder" in taken) is moved
    assert fresh.step == 0
    expected = (saved.key if moved else saved.query).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in fresh.key.state_dict().items())


@pytest.mark.parametrize("old_copy", [False, True])
def test_a_run_with_keys_starts_from_one_without_and_the_other_way(tmp_path, monkeypatch, old_copy) -> None:
    common = [*TINY, f"output={tmp_path}", "schedule.max_steps=2"]
    if old_copy:  # earlier versions made the key encoder for every head, and saved it
        monkeypatch.setattr(components, "MomentumPair", partial(_with_a_key_encoder, MomentumPair))
    without = new_run(load_config("demo", [*common, "center=own_embedding"]))
    without.trainer.train()
    monkeypatch.undo()
    assert (without.trainer.pair.key is None) is not old_copy
    trained = without.trainer.pair.query.state_dict()
    saved = latest_checkpoint(without.folder / "checkpoints")
    assert any(name.startswith("key.") for name in load_checkpoint(saved, only=["pair"])["pair"]) is old_copy

    resumed = resume_run(without.folder, ["schedule.max_steps=3"])
    assert resumed.trainer.pair.key is None
    assert all(torch.equal(tensor, trained[name]) for name, tensor in resumed.trainer.pair.query.state_dict().items())

    with_keys = new_run(load_config("demo", [*common, "center=key_attention", f"start_from={without.folder}"]))
    assert "key encoder" not in next(note for note in with_keys.notes if note.startswith("started from"))
    pair = with_keys.trainer.pair
    for encoder in (pair.query, pair.key):
        assert all(torch.equal(tensor, trained[name]) for name, tensor in encoder.state_dict().items())
    with_keys.trainer.train()

    back = new_run(load_config("demo", [*common, "head=full_fc", f"start_from={with_keys.folder}"]))
    assert "key encoder" not in next(note for note in back.notes if note.startswith("started from"))
    assert back.trainer.pair.key is None
    again = with_keys.trainer.pair.query.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in back.trainer.pair.query.state_dict().items())
    back.trainer.train()


def _with_a_key_encoder(pair, *arguments, keys, **options):
    return pair(*arguments, **options)


def test_weights_of_timm_are_not_downloaded_a_second_time() -> None:
    options = [
        "backbone.name=timm:resnet18",
        "backbone.image_size=112",
        "backbone.options={pretrained: true, drop_rate: 0.1}",
    ]
    config = load_config("demo", [*options, "start_from=runs/before"])
    assert _resolved(config, config.backbone, ()).options == {"drop_rate": 0.1}
