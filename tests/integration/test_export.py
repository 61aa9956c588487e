"""`attfc export`: what is written opens again, embeds alike and gives the same figures; what does not agree is not written.

Real exports through torch's exporter are all in this file, of the tiny network: the first in a process takes about 15 s, others 3 s.
"""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import attfc
from attfc.backbones import backbone_names, create_backbone
from attfc.config import config_to_yaml, load_config
from attfc.data import SyntheticFaces
from attfc.errors import UserError
from attfc.evaluation.bootstrap import Interval
from attfc.export import Colours, export, export_onnx, open_model
from attfc.export.colours import fed_as
from attfc.export.cost import Cost
from attfc.export.int8 import to_int8
from attfc.training.model_files import save_model

from .commands import run_main
from .protocol_folder import write_bin, write_templates

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

UNSEEN = "synthetic:identities=8,images=4,seed=0,first=1000"
BGR = {"colour_order": "BGR", "mean": [103.5, 116.3, 123.7], "std": [57.4, 57.1, 58.4]}


def faces(size: int = 56) -> torch.Tensor:
    """(10, 3, size, size) RGB in [-1, 1]."""
    pixels = SyntheticFaces(5, 2, seed=9).images(np.arange(10), size).pixels
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127.5) / 127.5


def saved(folder: Path, image_size: int = 56, **config: object) -> Path:
    """A run's folder with the tiny network, its BatchNorm statistics those of faces, so that embeddings differ as trained ones do."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = create_backbone("r6_tiny", embedding_size=32, image_size=image_size)
    with torch.no_grad():
        for _ in range(20):
            network.train()(faces(image_size))
    training_data = {"root": "rendered faces", "licence": "drawn | by numbers"}
    save_model(folder / "model", network.eval(), {"training_data": training_data, **config})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("runs") / "demo-001")


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> tuple[Path, dict[str, object]]:
    """The ONNX file of `run`, and what the export says of it."""
    path = tmp_path_factory.mktemp("onnx") / "new folder" / "model.onnx"
    model, facts = open_model(run)
    return path, export_onnx(model, facts, path).to_dict()


def numbers(values: object, at: str = "") -> dict[str, float]:
    """Return every number of nested figures by its path."""
    if isinstance(values, dict):
        return {name: number for key, value in values.items() for name, number in numbers(value, f"{at}/{key}").items()}
    return {at: float(values)} if isinstance(values, int | float) and not isinstance(values, bool) else {}


def evaluated(monkeypatch, capsys, target: Path, model: Path, *more: object) -> dict[str, float]:
    options = ("--device", "cpu", "--json", target)
    status, _, err = run_main(monkeypatch, capsys, "evaluate", model, *more, *options)
    assert status == 0, err
    found = numbers(json.loads(target.read_text(encoding="utf-8")))
    return {name: number for name, number in found.items() if "second" not in name}


def test_an_exported_file_gives_the_same_figures_as_the_run(tmp_path, run, exported, monkeypatch, capsys) -> None:
    protocol = ("held-out", UNSEEN, "--generated-pairs", "60")
    of_run = evaluated(monkeypatch, capsys, tmp_path / "run.json", run, *protocol)
    of_file = evaluated(monkeypatch, capsys, tmp_path / "file.json", exported[0], *protocol)
    assert 0.5 < of_run["/accuracy"] < 1  # figures that another model would not give
    assert len(of_run) > 10
    assert of_file == pytest.approx(of_run, abs=1e-5)


@pytest.mark.parametrize("protocol", ["lfw", "ijbc"])
def test_pairs_and_templates_of_an_exported_file_are_those_of_the_run(
    protocol, tmp_path, run, exported, monkeypatch, capsys
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    more: tuple[object, ...] = ("--resamples", 0)
    if protocol == "lfw":
        write_bin(data / "lfw.bin")
    else:
        write_templates(data / "IJBC")
        more = (*more, "--embeddings", tmp_path / "cache", "--broken-limit", 0.1)
    of_run = evaluated(monkeypatch, capsys, tmp_path / "run.json", run, protocol, data, *more)
    of_file = evaluated(monkeypatch, capsys, tmp_path / "file.json", exported[0], protocol, data, *more)
    assert len(of_run) > 10
    assert of_file == pytest.approx(of_run, abs=1e-5)


def test_the_file_says_what_it_is(exported) -> None:
    path, done = exported
    proto = onnx.load(path)
    said = {pair.key: pair.value for pair in proto.metadata_props}
    assert said == {
        "attfc": version("attfc"),
        "network": "r6_tiny",
        "embedding_size": "32",
        "image_size": "56",
        "colour_order": "RGB",
        "mean": "127.5",
        "std": "127.5",
        "precision": "float32",
        "training_data": "rendered faces",
        "training_data_licence": "drawn | by numbers",
    }
    (given,), (gives,) = proto.graph.input, proto.graph.output
    assert (given.name, gives.name) == ("input", "embedding")
    shape = given.type.tensor_type.shape.dim
    assert shape[0].dim_param
    assert [size.dim_value for size in shape[1:]] == [3, 56, 56]
    # Nothing of the machine that wrote it, or of its source files.
    content = path.read_bytes()
    assert str(Path(attfc.__file__).parent).encode() not in content
    assert b"site-packages" not in content
    assert (done["format"], done["opset"], done["images"], done["bytes"]) == ("onnx", 18, 32, len(content))
    assert done["least_cosine"] >= 0.99999
    assert done["norm_error"] < 1e-4
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("count", [1, 3, 10])
def test_any_batch_embeds_alike(run, exported, count) -> None:
    images = faces()[:count]
    model, _ = open_model(run)
    reopened, facts = open_model(exported[0])
    assert (facts.kind, facts.network, facts.embedding_size, facts.image_size) == ("ONNX", "r6_tiny", 32, 56)
    assert facts.notes == ()
    with torch.no_grad():
        assert torch.allclose(reopened(images), model(images), rtol=1e-4, atol=1e-4)


class Projected(nn.Module):
    """The smallest network there is, since torch's exporter takes its time for each layer."""

    name, image_size, embedding_size = "projected", 8, 16

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(16, 192, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T


def test_a_model_with_other_colours_is_exported_to_take_ours(tmp_path, run) -> None:
    colours = Colours.read(BGR, "BGR")
    model = fed_as(Projected(), colours)
    facts = replace(
        open_model(run)[1], network="projected", image_size=8, embedding_size=16, colours=colours, options={}
    )
    export_onnx(model, facts, tmp_path / "model.onnx")
    reopened, found = open_model(tmp_path / "model.onnx")
    assert found.colours.to_dict() == {"colour_order": "RGB", "mean": 127.5, "std": 127.5}
    images = faces(8)
    pixels = (127.5 * images + 127.5).flip(1)
    pixels = (pixels - torch.tensor(BGR["mean"]).view(3, 1, 1)) / torch.tensor(BGR["std"]).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(reopened(images), Projected()(pixels), rtol=1e-3, atol=1e-3)


def test_export_command_with_half_on_images_of_a_folder(
    tmp_path, run, exported, face_folder, monkeypatch, capsys
) -> None:
    path = tmp_path / "half.onnx"
    monkeypatch.setattr(
        export, "_to_onnx", lambda _model, _facts: onnx.load(exported[0])
    )  # as torch's exporter made it
    arguments = ("export", run, path, "--half", "--check-images", face_folder, "--json", tmp_path / "e.json")
    status, out, err = run_main(monkeypatch, capsys, *arguments)
    assert status == 0, err
    done = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
    assert done["images"] == 32
    assert "Bilder und Gesichter" in done["images_from"]
    assert 0.9995 <= done["least_cosine"] < 1
    assert done["precision"] == "float16"
    assert f"{path}: r6_tiny, float16, opset 18" in out
    assert f"on 32 images of {done['images_from']}" in out
    assert {tensor.data_type for tensor in onnx.load(path).graph.initializer} <= {7, 10}  # int64, float16
    model, _ = open_model(path)
    rows = model(faces())
    assert rows.dtype == torch.float32


def test_hub_folder_loads_without_loss(tmp_path, run, monkeypatch, capsys) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()  # an empty one is taken
    status, out, err = run_main(monkeypatch, capsys, "export", run, folder, "--format", "hf")
    assert status == 0, err
    assert f"{folder}: r6_tiny, float32, " in out
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [file.name for file in tmp_path.iterdir()] == ["hub"]
    images, (model, _) = faces(), open_model(run)
    loaded = attfc.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    assert not loaded.training
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: attfc\n")
    assert "| trained on | rendered faces |" in card
    assert "| licence of the training data | drawn \\| by numbers |" in card
    assert "`attfc evaluate` measures them" in card


def test_an_export_of_a_run_is_checked_on_the_faces_that_it_was_evaluated_on(
    tmp_path, face_folder, monkeypatch, capsys
) -> None:
    people = tmp_path / "people"
    shutil.copytree(face_folder, people)
    run = saved(tmp_path / "runs" / "one")

    def checked_on(name: str, *overrides: str) -> str:
        config = load_config("demo", ["eval.root=null", "eval.share=0", f"data.root={people}", *overrides])
        (run / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
        status, out, err = run_main(monkeypatch, capsys, "export", run, tmp_path / name, "--format", "hf")
        assert status == 0, err
        return out + err

    assert "images of synthetic:identities=4,images=3" in checked_on(
        "other", "eval.root=synthetic:identities=4,images=3"
    )
    assert "32 images of people\n" in checked_on("trained")
    people.rename(tmp_path / "gone")
    said = " ".join(checked_on("gone-hub").split())
    assert "the run's images cannot be opened" in said
    assert "of synthetic faces" in said


def test_hub_folder_in_half_keeps_colours_and_figures(tmp_path) -> None:
    run = saved(tmp_path / "run", **BGR)
    (run / "evaluation.json").write_text(
        json.dumps({"accuracy": 0.8125, "images": 32, "pair_source": "40 generated\n# pairs", "auc": "high"}), "utf-8"
    )
    model, facts = open_model(run)
    done = attfc.export.export_hub_folder(model, facts, tmp_path / "hub", half=True)
    assert (done.opset, done.precision) == (None, "float16")
    assert done.bytes < 0.6 * sum(file.stat().st_size for file in (run / "model").iterdir())
    loaded, found = open_model(tmp_path / "hub")
    assert found.colours == facts.colours
    with torch.no_grad():
        rows, expected = loaded(faces()), model(faces())
    assert rows.dtype == torch.float32
    assert float(torch.nn.functional.cosine_similarity(rows, expected).min()) > 0.9995
    card = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    assert "(32 images; pairs: 40 generated # pairs):" in card
    assert "| accuracy, 10 folds | 0.8125 |" in card
    assert "area under" not in card


# What is not written.


@pytest.mark.parametrize(("name", "format_name"), [("model.onnx", "onnx"), ("hub", "hf")])
def test_nothing_is_left_where_embeddings_differ(
    tmp_path, run, exported, monkeypatch, capsys, name, format_name
) -> None:
    """The export is made to disagree by what reads it back: a model that turns every embedding a little."""

    def turned(path: Path) -> tuple[torch.nn.Module, object]:
        model, facts = open_model(path)
        model.register_forward_hook(lambda _module, _input, rows: rows + 0.02 * rows.norm(dim=1, keepdim=True))
        return model, facts

    monkeypatch.setattr(export, "open_model", turned)
    if format_name == "onnx":  # the graph of `exported`, not a second run of the exporter
        monkeypatch.setattr(export, "_to_onnx", lambda _model, _facts: onnx.load(exported[0]))
    status, out, err = run_main(monkeypatch, capsys, "export", run, tmp_path / name, "--format", format_name)
    assert (status, out) == (1, "")
    assert "(float32) differs from the torch module: cosine 0." in err
    assert "needed are 0.99999: nothing was written" in err
    assert list(tmp_path.iterdir()) == []


def test_metadata_that_misstates_the_colours_are_not_written(tmp_path, run, exported, monkeypatch) -> None:
    """The file is read back by what it says of itself, so words that do not fit the weights show in the embeddings."""
    describe = export._describe

    def misstated(proto, facts, precision) -> None:
        describe(proto, facts, precision)
        next(pair for pair in proto.metadata_props if pair.key == "colour_order").value = "BGR"

    monkeypatch.setattr(export, "_to_onnx", lambda _model, _facts: onnx.load(exported[0]))
    monkeypatch.setattr(export, "_describe", misstated)
    model, facts = open_model(run)
    with pytest.raises(UserError, match="differs from the torch module: cosine"):
        export_onnx(model, facts, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_exports_that_are_refused(tmp_path, run, exported, monkeypatch, capsys) -> None:
    taken, full = tmp_path / "taken.onnx", tmp_path / "full"
    taken.write_bytes(b"mine")
    full.mkdir()
    (full / "a").touch()
    empty = tmp_path / "no images"
    empty.mkdir()
    for arguments, text in [
        ((run, taken), f"{taken} exists: name another, or remove it first"),
        ((run, full, "--format", "hf"), f"{full} exists: name another, or remove it first"),
        ((run, tmp_path / "hub"), f"{tmp_path / 'hub'} does not end in .onnx: name the file, such as"),
        ((run, tmp_path / "a.onnx", "--format", "tflite"), "unknown format 'tflite': use one of onnx, hf"),
        ((exported[0], tmp_path / "a.onnx"), f"{exported[0]} is an ONNX file already: export the run"),
        ((exported[0], tmp_path / "hub", "--format", "hf"), "is an ONNX file, which has no state dict"),
        (
            (tmp_path / "nothing", tmp_path / "a.onnx"),
            f"{tmp_path / 'nothing'} does not exist: a model is a run's folder",
        ),
        ((run, tmp_path / "a.onnx", "--check-images", empty), f"{empty}"),
    ]:
        status, out, err = run_main(monkeypatch, capsys, "export", *arguments)
        assert (status, out, len(err.strip().splitlines())) == (1, "", 1), err
        assert text in err
    assert taken.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "no images", "taken.onnx"]


def test_a_model_that_diverged_is_not_exported(tmp_path, run) -> None:
    model, facts = open_model(run)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="gives NaN, infinity or zeros on the images to check with: it has diverged"):
        export_onnx(model, facts, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_a_model_started_from_goes_with_every_export(tmp_path, run, exported, monkeypatch) -> None:
    monkeypatch.setattr(export, "_to_onnx", lambda _model, _facts: onnx.load(exported[0]))
    weights = {"source": "backbone.pth", "root": "MS1MV3", "licence": "research only"}
    model, facts = open_model(run)
    facts = replace(facts, training_data={"root": "ours", "licence": "MIT", "start_weights": weights})
    export_onnx(model, facts, tmp_path / "model.onnx")
    told = "backbone.pth (trained on MS1MV3, licence: research only)"
    expected = {"root": "ours", "licence": "MIT", "start_weights": told}
    assert open_model(tmp_path / "model.onnx")[1].training_data == expected
    export.export_hub_folder(model, facts, tmp_path / "hub")
    again = open_model(tmp_path / "hub")[1]
    assert again.training_data == facts.training_data
    export_onnx(model, again, tmp_path / "again.onnx")
    assert open_model(tmp_path / "again.onnx")[1].training_data == expected
    card = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    assert f"| started from | {told} |" in card
    assert "license_name: 'MIT; start weights: research only'" in card


# docs/export.md

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_python_of_the_page_runs(tmp_path, run, exported, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(exported[0], "model.onnx")
    shutil.copytree(run / "model", "hub")
    here = [snippet for snippet in SNIPPETS if "insightface" not in snippet]
    assert (len(here), len(SNIPPETS)) == (3, 4)
    names: dict[str, object] = {}
    for snippet in here:
        exec(compile(snippet, "export.md", "exec"), names)
    assert -1 <= names["cosine"] <= 1


@pytest.mark.slow  # an environment of its own with packages from the registry: a minute, and a network
def test_insightface_gives_the_same_embeddings(tmp_path) -> None:
    """The page's snippet, in the released package: its public get_model, its own preparation of the pixels."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, tmp_path / "venv"], check=True, timeout=120)
    packages = ["insightface", "onnxruntime"]
    subprocess.run([uv, "pip", "install", "-q", "--python", python, *packages], check=True, timeout=900)

    model, facts = open_model(saved(tmp_path / "run", image_size=112))
    export_onnx(model, facts, tmp_path / "model.onnx")
    crops = SyntheticFaces(3, 2, seed=9).images(np.arange(6), 112).pixels  # RGB
    np.save(tmp_path / "bgr.npy", crops[..., ::-1])
    (snippet,) = [snippet for snippet in SNIPPETS if "insightface" in snippet]
    *head, last = snippet.strip().splitlines()
    script = "\n".join(
        [
            *("import numpy", *head, "rows = []", "for aligned_bgr_112 in numpy.load('bgr.npy'):"),
            *(f"    {last}", "    rows.append(embedding.ravel())", "print(type(recognizer).__name__)"),
            "numpy.save('rows.npy', numpy.stack(rows))",
        ]
    )
    done = subprocess.run(
        [python, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ArcFaceONNX" in done.stdout
    images = (torch.from_numpy(crops).permute(0, 3, 1, 2).float() - 127.5) / 127.5
    with torch.no_grad():
        expected = model(images)
    rows = torch.from_numpy(np.load(tmp_path / "rows.npy"))
    assert rows.shape == (6, 32)
    assert float(torch.nn.functional.cosine_similarity(rows, expected).min()) > 0.9999


@pytest.mark.slow  # thirteen networks through torch's exporter, up to r200 and vit_l: 9 minutes
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", backbone_names())
def test_every_network_can_be_exported(tmp_path, name) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create_backbone(name)
        # Statistics of one batch of faces: with those that BatchNorm begins with, r100 and r200 overflow.
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None
        with torch.no_grad():
            network.train()(faces(network.image_size))
    save_model(tmp_path / "run" / "model", network.eval())
    model, facts = open_model(tmp_path / "run")
    done = export_onnx(model, facts, tmp_path / "model.onnx")
    assert done.least_cosine >= 0.99999


PEOPLE = "synthetic:identities=30,images=4,seed=0,first=2000"


def test_int8_says_what_it_costs_and_is_what_it_says(run: Path, tmp_path, monkeypatch, capsys) -> None:
    out, shown = tmp_path / "small.onnx", ("--calibration", UNSEEN, "--check-images", PEOPLE)
    asked = ("--fmr", 0.01, "--most-loss", 5, "--json", tmp_path / "e.json")
    status, text, err = run_main(monkeypatch, capsys, "export", run, out, "--int8", *shown, *asked)
    assert status == 0, err
    said = json.loads((tmp_path / "e.json").read_text())
    proto = onnx.load(out)
    stated = {pair.key: pair.value for pair in proto.metadata_props}
    cost = json.loads(stated["int8"])
    assert stated["precision"] == said["precision"] == "int8"
    assert cost == {**said["cost"], "calibrated_on": cost["calibrated_on"]}
    quantized = {node.op_type for node in proto.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    assert quantized == {"QuantizeLinear", "DequantizeLinear"}
    weights = [tensor for tensor in proto.graph.initializer if len(tensor.dims) > 1 and np.prod(tensor.dims) > 400]
    assert len(weights) > 4
    sees_pixels = [tensor.data_type for tensor in weights if tensor.dims[1] == 3]
    assert sees_pixels == [1]  # FLOAT
    assert {tensor.data_type for tensor in weights if tensor.dims[1] != 3} == {3}  # INT8
    assert 0.2 < cost["bytes"] / cost["bytes_before"] < 0.5
    assert out.stat().st_size == pytest.approx(cost["bytes"], abs=2000)  # the cost itself is in it
    # From the embeddings, pair by pair.
    store = SyntheticFaces(30, 4, seed=0, first_identity=2000)
    embedded = [attfc.evaluation.embed_store(open_model(file)[0], store).vectors for file in (run, out)]
    one, other = np.triu_indices(120, 1)
    same = one // 4 == other // 4
    before, after = ((rows[one] * rows[other]).sum(axis=1) for rows in embedded)
    threshold = np.sort(before[~same])[-1 - int(0.01 * (~same).sum())]
    assert cost["threshold"] == pytest.approx(threshold, abs=1e-4)
    assert cost["fnmr_before"] == pytest.approx(np.mean(before[same] <= threshold), abs=0.01)
    assert cost["fnmr"] == pytest.approx(np.mean(after[same] <= threshold), abs=0.01)
    assert cost["fmr_after"] == pytest.approx(np.mean(after[~same] > threshold), abs=0.002)
    assert cost["loss"]["value"] == pytest.approx(cost["fnmr"] - cost["fnmr_before"])
    own = np.sort(after[~same])[-1 - int(0.01 * (~same).sum())]
    lost = np.mean(after[same] <= own) - np.mean(before[same] <= threshold)
    assert cost["loss_at_fmr"]["value"] == pytest.approx(lost, abs=0.01)
    for name in ("loss", "loss_at_fmr"):
        low, high = cost[name]["interval"]
        assert low <= cost[name]["value"] <= high
    assert (cost["faces"], cost["people"], cost["fmr"]) == (120, 30, 0.01)
    assert cost["milliseconds"] > 0 < cost["milliseconds_before"]
    assert f"FNMR {100 * cost['fnmr']:.2f} % (float32 {100 * cost['fnmr_before']:.2f} %)" in text
    assert "ms per face (float32 " in text
    again, facts = open_model(out)
    assert facts.network == "r6_tiny"
    assert torch.nn.functional.cosine_similarity(again(faces()), open_model(run)[0](faces())).min() > 0.9


def test_int8_that_costs_too_much_is_not_written(run: Path, tmp_path, monkeypatch, capsys) -> None:
    def blinded(*arguments: object) -> object:
        proto = to_int8(*arguments)  # type: ignore[arg-type]
        for tensor in proto.graph.initializer:
            if tensor.data_type == 3 and len(tensor.dims) == 4:
                tensor.raw_data = bytes(len(tensor.raw_data))
        return proto

    monkeypatch.setattr("attfc.export.export.to_int8", blinded)
    out, shown = tmp_path / "small.onnx", ("--calibration", UNSEEN, "--check-images", PEOPLE)
    status, _, err = run_main(monkeypatch, capsys, "export", run, out, "--int8", *shown, "--fmr", 0.01)
    assert status == 1
    assert re.search(
        r"in int8 raises the FNMR by more than 0.2 points, or doubles the FMR: FNMR [\d.]+ % \(float32 [\d.]+ %\) at threshold .* rises by "
        r"-?[\d.]+ \[.*\] points, -?[\d.]+ \[.*\] at equal FMR. Measured on 120 faces of 30 people of .*\. Nothing was written: export it without",
        err,
    ), err
    assert [line[:6] for line in err.splitlines() if not line.startswith("faces: ")] == ["error:"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--int8",), "--int8 needs faces, and those of {run} were not found: give --calibration STORE"),
        (("--int8", "--calibration", UNSEEN), "--int8 needs faces, and those of {run} were not found: give --check-images STORE"),
        (("--int8", "--half"), "--int8 needs --format onnx and no --half"),
        (("--int8", "--format", "hf"), "--int8 needs --format onnx and no --half"),
        (("--int8", "--fmr", 2), "--fmr 2 is not a false match rate: give a number above 0 and below 1"),
        (("--int8", "--most-loss", -1), "--most-loss -1: give percentage points from 0 to 100"),
        (
            ("--int8", "--calibration", UNSEEN, "--check-images", PEOPLE, "--fmr", "1e-6"),
            "FMR 1e-06 needs at least 1,000,000 pairs of different people, and there are 6,960: give more people (--check-images)",
        ),
    ],
)  # fmt: skip
def test_int8_without_what_it_needs_is_one_line(
    run: Path, tmp_path, monkeypatch, capsys, options, message: str
) -> None:
    status, _, err = run_main(monkeypatch, capsys, "export", run, tmp_path / "small.onnx", *options)
    assert status == 1
    assert message.format(run=run) in err
    assert [line[:6] for line in err.splitlines() if not line.startswith("faces: ")] == ["error:"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("loss", "at_fmr", "fmr_after", "accepted"),
    [
        ((0.001, -0.001, 0.003), (0.0, -0.001, 0.001), 0.001, True),
        ((0.0019, 0.0005, 0.003), (0.0, None, None), 0.001, True),  # certain, and small
        ((0.003, -0.0001, 0.006), (0.0, -0.001, 0.001), 0.001, True),  # beyond, and not certain
        ((0.003, 0.0001, 0.006), (0.0, -0.001, 0.001), 0.001, False),
        ((0.0, -0.001, 0.001), (0.003, 0.0001, 0.006), 0.001, False),
        ((0.003, None, None), (0.0, None, None), 0.001, False),  # too few people to say
        ((-0.2, -0.3, -0.1), (0.0, -0.001, 0.001), 0.0021, False),  # scores rose
    ],
)
def test_which_costs_are_accepted(loss, at_fmr, fmr_after: float, accepted: bool) -> None:
    numbers = {"threshold": 0.3, "fnmr": 0.1, "fnmr_before": 0.1, "milliseconds": 1.0, "milliseconds_before": 2.0}
    cost = Cost(
        faces=10, people=5, source="people", fmr=0.001, fmr_before=0.001, fmr_after=fmr_after, bytes=1, bytes_before=4,
        loss=Interval(*loss), loss_at_fmr=Interval(*at_fmr), **numbers,
    )  # fmt: skip
    assert cost.accepted(0.2) is accepted
    assert "points" in cost.text()
    json.dumps(cost.to_dict())


def test_the_operating_point_of_int8_is_the_calibrated_one(run: Path, tmp_path, monkeypatch, capsys) -> None:
    model, out = tmp_path / "run", tmp_path / "small.onnx"
    shutil.copytree(run, model)
    people = ("synthetic:identities=64,images=2,seed=5", "--device", "cpu")
    status, _, err = run_main(monkeypatch, capsys, "calibrate", model, *people, "--fmr", 0.2)
    assert status == 0, err
    point = json.loads((model / "model" / "operating_point.json").read_text())
    shown = ("--int8", "--calibration", UNSEEN, "--check-images", PEOPLE, "--most-loss", 100)
    for asked, threshold in (((), point["threshold"]), (("--fmr", 0.2), None)):
        status, text, err = run_main(monkeypatch, capsys, "export", model, out, *shown, *asked)
        assert status == 0, err
        stated = {pair.key: pair.value for pair in onnx.load(out).metadata_props}
        cost = json.loads(stated["int8"])
        assert cost["fmr"] == 0.2
        assert (cost["threshold"] == point["threshold"]) == (threshold is not None)
        assert json.loads(stated["operating_point"])["threshold"] == point["threshold"]
        assert f"at threshold {cost['threshold']:.4f}, " in text
        out.unlink()
