"""Model files: what is saved loads with the same embeddings; what does not fit, or is hostile, is refused by name."""

import copy
import json
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from attfc.backbones import create_backbone
from attfc.errors import UserError
from attfc.training.checkpoints.random_state import rng_state, set_rng_state
from attfc.training.model_files import load_model, save_model

INFO = {"training_data": {"root": "faces", "licence": "CC0"}, "note": "ä"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    backbone = create_backbone("r6_tiny", embedding_size=32)
    with torch.no_grad():
        backbone.train()(torch.randn(4, 3, 56, 56))  # running statistics that are not the initial ones
    return save_model(tmp_path_factory.mktemp("saved"), backbone, INFO), backbone


@pytest.fixture
def model(saved, tmp_path):
    folder, backbone = saved
    return Path(shutil.copytree(folder, tmp_path / "model")), copy.deepcopy(backbone)


def edit(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def test_same_embeddings_and_config(model):
    folder, backbone = model
    state = torch.get_rng_state()
    loaded, config = load_model(folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in loaded.modules())
    images = torch.randn(2, 3, 56, 56)
    assert torch.equal(loaded(images), backbone.eval()(images))
    assert config["network"] == "r6_tiny"
    assert config["training_data"] == INFO["training_data"]
    assert config["note"] == "ä"
    assert (config["embedding_size"], config["image_size"]) == (32, 56)
    assert (config["colour_order"], config["mean"], config["std"]) == ("RGB", 127.5, 127.5)
    assert config["attfc"][0].isdigit()
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_channels_last_and_compiled_backbones(tmp_path, model):
    _, backbone = model
    wrapped = torch.compile(backbone.to(memory_format=torch.channels_last), backend="eager")
    save_model(tmp_path / "again", wrapped)
    loaded, _ = load_model(tmp_path / "again")
    for name, value in backbone.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_failed_save_keeps_the_old_model(model, monkeypatch):
    folder, backbone = model
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("attfc.files.os.fsync", full)
    with torch.no_grad():
        next(backbone.parameters()).add_(1)
    with pytest.raises(UserError, match=r"cannot save the model to .*model: No space left on device"):
        save_model(folder, backbone)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file(model, name):
    folder, _ = model
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_model(folder)


def test_weights_of_another_network(model):
    folder, _ = model
    edit(folder, embedding_size=64)
    with pytest.raises(UserError, match=r"does not fit network 'r6_tiny' of config.json: .*32.*the network needs .*64"):
        load_model(folder)
    edit(folder, embedding_size=32, network="r10_tiny")
    with pytest.raises(UserError, match=r"does not fit network 'r10_tiny'"):
        load_model(folder)


def test_more_or_fewer_tensors(model):
    folder, _ = model
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "extra": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="it has 'extra', which the network lacks"):
        load_model(folder)
    first, *rest = tensors
    save_file({name: tensors[name] for name in rest}, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"it has no '{first}'"):
        load_model(folder)
    weight = next(name for name, value in tensors.items() if value.is_floating_point())
    save_file({**tensors, weight: tensors[weight].long()}, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"'{weight}' is I64"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"network": "no_such"}, "config.json: no backbone is called 'no_such'"),
        ({"network": "timm:hf_hub:somebody/weights"}, "is not the name of a network"),
        ({"network": "../../r50"}, "is not the name of a network"),
        ({"network": 3}, "network 3 is not the name"),
        ({"network": ...}, "has no 'network'"),
        ({"embedding_size": "512"}, "embedding_size '512' is not a whole number"),
        ({"embedding_size": 10**12}, "is not a whole number from 1 to 65536"),
        ({"image_size": True}, "image_size True is not a whole number"),
        ({"colour_order": "BGR"}, "colour_order is 'BGR'"),
        ({"mean": [0.5, 0.5, 0.5]}, r"mean is \[0.5"),
        ({"options": [1]}, "options is not a JSON object"),
        ({"options": {"a": {}}}, "option 'a' = {} is not one"),
        ({"options": {"no_such": 1}}, "no option 'no_such'"),
        ({"options": {"name": "r50"}}, "option 'name'"),
    ],
)
def test_bad_config(model, changes, text):
    folder, _ = model
    edit(folder, **changes)
    with pytest.raises(UserError, match=text):
        load_model(folder)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"a": "' + "x" * 2**20 + '"}', "\ufeff"])
def test_config_that_is_none(model, text):
    folder, _ = model
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(folder)


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_pickled_weights_do_not_run(model, tmp_path):
    folder, _ = model
    for data in (pickle.dumps(Payload(tmp_path / "ran")), b"", b"\xff" * 64):
        (folder / "model.safetensors").write_bytes(data)
        with pytest.raises(UserError, match="damaged or no safetensors file"):
            load_model(folder)
    torch.save(Payload(tmp_path / "ran"), folder / "model.safetensors")
    with pytest.raises(UserError, match="damaged or no safetensors file"):
        load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_random_state_returns():
    state = rng_state()
    first = random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()
    odd = rng_state()  # numpy and python each hold half a pair of normal numbers now
    second = random.gauss(0, 1), np.random.randn()
    set_rng_state(state)
    assert (random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()) == first
    set_rng_state(odd)
    assert (random.gauss(0, 1), np.random.randn()) == second


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_files_have_the_mode_that_the_umask_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = save_model(tmp_path / "model", create_backbone("r6_tiny", embedding_size=16))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == {"model.safetensors": 0o666 & ~umask, "config.json": 0o666 & ~umask}
