"""ONNX files made by hand: fed as they say, refused in one line where they are no face network or reach out of their folder."""

import hashlib
import os

import numpy as np
import pytest
import torch

from attfc.errors import UserError
from attfc.export import onnx_model, open_model
from attfc.export.model_inputs import contents_digest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402  after the check that it is there

FLOAT, FLOAT16, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8
SIZE = 4
PIXELS = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3)).astype(np.float32)  # RGB, 0 to 255
IMAGES = (torch.from_numpy(PIXELS).permute(0, 3, 1, 2) - 127.5) / 127.5
SQUARE = ("b", 3, SIZE, SIZE)


def written(
    path,
    *,
    shape=SQUARE,
    out=("b", 3 * SIZE * SIZE),
    first=(),
    constants=None,
    metadata=None,
    kind=FLOAT,
    inputs=1,
    outputs=1,
    edit=lambda model: None,
):
    """Write a file whose embedding is its input, after the nodes `first` (operator, constant), flattened."""
    nodes, value, weights = [], "data", []
    for number, (operator, constant) in enumerate(first):
        weights.append(numpy_helper.from_array(np.asarray(constant, np.float32), f"c{number}"))
        nodes.append(helper.make_node(operator, [value, f"c{number}"], [f"v{number}"]))
        value = f"v{number}"
    nodes.append(helper.make_node("Flatten", [value], ["embedding"]))
    given = [helper.make_tensor_value_info(name, kind, shape) for name in ("data", "more")[:inputs]]
    gives = [helper.make_tensor_value_info("embedding", kind, out)]
    if outputs == 2:
        nodes.append(helper.make_node("Identity", ["embedding"], ["again"]))
        gives.append(helper.make_tensor_value_info("again", kind, out))
    graph = helper.make_graph(nodes, "graph", given, gives, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    for key, text in (metadata or {}).items():
        model.metadata_props.add(key=key, value=text)
    edit(model)
    path.write_bytes(model.SerializeToString())
    return path


def embedded(path, said=None):
    model, facts = open_model(path, said)
    return model(IMAGES), facts


def fed(mean, std, order="RGB", last=False):
    """What a network is fed that wants `mean` and `std` in `order`, flattened."""
    pixels = (PIXELS[..., ::-1] if order == "BGR" else PIXELS) - np.asarray(mean, np.float32)
    pixels = pixels / np.asarray(std, np.float32)
    return torch.from_numpy((pixels if last else pixels.transpose(0, 3, 1, 2)).reshape(5, -1).copy())


def assert_close(rows, expected):
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-3 * float(expected.abs().max()))


# Colours.

MEAN, STD = [103.5, 116.3, 123.7], [57.4, 57.1, 58.4]


@pytest.mark.parametrize(
    ("metadata", "said", "expected", "notes"),
    [
        ({"colour_order": "BGR", "mean": str(MEAN), "std": str(STD)}, {}, fed(MEAN, STD, "BGR"), ["its metadata"]),
        ({"colour_order": "RGB", "mean": "127.5", "std": "127.5"}, {}, fed(127.5, 127.5), []),
        ({}, {}, fed(127.5, 127.5), ["does not state its colour_order, mean, std"]),
        # A part of it in the file: the rest from the caller, or assumed and said.
        ({"colour_order": "BGR"}, {}, fed(127.5, 127.5, "BGR"), ["its metadata", "does not state its mean, std"]),
        ({"mean": "0", "std": "255"}, {"colour_order": "BGR"}, fed(0, 255, "BGR"), ["stated by its metadata and you"]),
        ({"std": "128"}, {"mean": 127.5}, fed(127.5, 128), ["and you", "does not state its colour_order"]),
        ({}, {"colour_order": "BGR", "mean": MEAN, "std": STD}, fed(MEAN, STD, "BGR"), ["stated by you"]),
    ],
)
def test_fed_in_the_colours_that_the_file_or_the_caller_states(tmp_path, metadata, said, expected, notes):
    rows, facts = embedded(written(tmp_path / "a.onnx", metadata=metadata), said)
    assert_close(rows, expected)
    assert len(facts.notes) == len(notes)
    for note, text in zip(facts.notes, notes, strict=True):
        assert text in note


@pytest.mark.parametrize(
    ("first", "mean", "std"),
    [
        ([("Sub", [127.5]), ("Mul", [0.0078125])], 0, 1),  # as MXNet's networks of faces begin
        ([("Mul", [1 / 255]), ("Sub", np.reshape([0.485, 0.456, 0.406], (1, 3, 1, 1)))], 0, 1),
        ([("Add", -127.5), ("Div", 128.0)], 0, 1),
        ([("Sub", 0.5), ("Div", 0.5)], 0, 255),  # values 0 to 1
        ([("Sub", [127.5])], 127.5, 127.5),  # says nothing: only one of the two
        ([("Mul", 2.0), ("Add", 0.1)], 127.5, 127.5),  # centres neither
        ([("Sub", [127.5]), ("Mul", [0.0])], 127.5, 127.5),
        ([("Sub", [127.5]), ("Div", [0.0])], 127.5, 127.5),
    ],
)
def test_a_graph_that_subtracts_and_scales_is_fed_pixels(tmp_path, first, mean, std):
    path = written(tmp_path / "a.onnx", first=first)
    _, facts = open_model(path)
    assert facts.colours.to_dict() == {"colour_order": "RGB", "mean": mean, "std": std}
    told = any("its first nodes, which subtract and scale" in note for note in facts.notes)
    assert told == (mean == 0)
    # The order of the channels stays the caller's to say.
    _, facts = open_model(path, {"colour_order": "BGR"})
    assert facts.colours.order == "BGR"


def test_metadata_count_more_than_the_first_nodes(tmp_path):
    said = {"colour_order": "BGR", "mean": "127.5", "std": "127.5"}
    rows, _ = embedded(written(tmp_path / "a.onnx", first=[("Sub", 0.5), ("Mul", 2.0)], metadata=said))
    assert_close(rows, 2 * (fed(127.5, 127.5, "BGR") - 0.5))
    rows, facts = embedded(
        written(tmp_path / "b.onnx", first=[("Sub", 127.5), ("Mul", 0.1)], metadata={"colour_order": "BGR"})
    )
    assert_close(rows, fed(127.5, 10, "BGR"))
    assert "its first nodes, which subtract and scale, and its metadata" in facts.notes[0]


@pytest.mark.parametrize(
    ("metadata", "said", "text"),
    [
        ({"mean": "[1,2"}, {}, "a.onnx, metadata: mean is '[1,2': use one or three numbers"),
        ({"std": "0"}, {}, "a.onnx, metadata: std is 0: use one or three numbers above 0"),
        ({"colour_order": "GRB"}, {}, "a.onnx, metadata: colour_order is 'GRB': use 'RGB' or 'BGR'"),
        ({"colour_order": "BGR"}, {"colour_order": "RGB"}, "its metadata: colour_order is 'BGR', you said 'RGB'"),
        ({"mean": "127.5"}, {"mean": 0}, "its metadata: mean is 127.5, you said 0: leave it out"),
        ({}, {"std": -1}, "the statements: std is -1: use one or three numbers above 0"),
        ({"image_size": "112"}, {}, "metadata: image_size is 112, but its graph has 4: it was changed after export"),
        ({"embedding_size": "512"}, {}, "metadata: embedding_size is 512, but its graph has 48"),
        ({"embedding_size": "0000000001" + "9" * 5000}, {}, "is not a whole number from 1 to 65536"),
        ({}, {"embedding_size": 512}, "a.onnx: embedding_size is 48, you said 512"),
        ({}, {"image_size": 112}, "a.onnx: image_size is 4, you said 112"),
        ({"network": "r50"}, {"network": "r100"}, "a.onnx, its metadata: network is 'r50', you said 'r100'"),
    ],
)
def test_statements_that_do_not_fit(tmp_path, metadata, said, text):
    refused(written(tmp_path / "a.onnx", metadata=metadata), text, said)


def refused(path, text, said=None):
    with pytest.raises(UserError) as caught:
        open_model(path, said)
    message = str(caught.value)
    assert text in message
    assert path.name in message or "statements" in message
    assert len(message.splitlines()) == 1
    return message


# Shapes.


def test_channels_last_and_a_fixed_batch(tmp_path):
    path = written(tmp_path / "a.onnx", shape=(2, SIZE, SIZE, 3), out=(2, 48))
    model, facts = open_model(path)
    assert "runs batches of 2 only" in facts.notes[-1]
    for count in (5, 4, 1):  # padded, whole, less than one
        assert_close(model(IMAGES[:count]), fed(127.5, 127.5, last=True)[:count])
    assert model(IMAGES[:0]).shape == (0, 48)


def test_float16_images_and_sizes_that_only_the_metadata_say(tmp_path):
    path = written(tmp_path / "a.onnx", shape=("b", 3, "h", "w"), out=("b", "d"), kind=FLOAT16)
    refused(path, "takes images of any size: say which it was trained on, image_size=112")
    model, facts = open_model(path, {"image_size": SIZE})
    assert (facts.embedding_size, facts.image_size) == (48, SIZE)
    rows = model(IMAGES)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, fed(127.5, 127.5), rtol=2e-3, atol=2e-3)
    stated = written(tmp_path / "b.onnx", shape=("b", 3, "h", "w"), out=("b", "d"), metadata={"image_size": "4"})
    assert open_model(stated)[1].image_size == 4
    wrong = {"image_size": "4", "embedding_size": "7"}
    other = written(tmp_path / "c.onnx", shape=("b", 3, "h", "w"), out=("b", "d"), metadata=wrong)
    refused(other, "says embedding_size 7, but gives 48 numbers per image")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"inputs": 2},
            "takes 'data' (?, 3, 4, 4), 'more' (?, 3, 4, 4): a face network takes one float input of images",
        ),
        (
            {"shape": ("b", 1, 4, 4), "out": ("b", 16)},
            "takes 'data' (?, 1, 4, 4): a face network takes one float input",
        ),
        ({"shape": ("b", 48)}, "takes 'data' (?, 48): a face network takes one float input"),
        ({"shape": None, "out": None}, "takes 'data' (): a face network takes one float input"),
        ({"kind": UINT8}, "takes 'data' (?, 3, 4, 4): a face network takes one float input"),
        ({"outputs": 2}, "gives 'embedding' (?, 48), 'again' (?, 48): a face network gives one float output"),
        ({"out": ("b", 3, 4, 4)}, "gives 'embedding' (?, 3, 4, 4): a face network gives one float output"),
        ({"shape": ("b", 3, 4, 6)}, "takes images of 4 x 6 pixels: attfc aligns faces to squares"),
        ({"shape": ("b", 3, 5000, 5000)}, "takes images of 5000 pixels: the largest attfc feeds are 4096"),
        ({"shape": (2**40, 3, 4, 4), "out": (2**40, 48)}, "runs batches of 1,099,511,627,776 images of 4 pixels only"),
        ({"out": ("b", 40)}, "says embedding_size 40, but gives 48 numbers per image"),
        (
            {"out": None, "edit": lambda model: model.graph.node[0].attribute.add(name="axis", i=2, type=2)},
            "gives (3, 16) for 1 images: an embedding is one row per image",
        ),
        (
            {"edit": lambda model: setattr(model.graph.node[0], "op_type", "Nonsense")},
            "cannot be loaded by onnxruntime",
        ),
        (
            {
                "shape": ("b", 3, "h", "w"),
                "out": ("b", "d"),
                "metadata": {"image_size": "4"},
                "first": [("Add", np.zeros(7))],
            },
            "fails on 1 images of shape (3, 4, 4)",
        ),
        ({"edit": lambda model: setattr(model.graph.input[0], "name", "a\nb" * 30)}, "cannot be loaded by onnxruntime"),
    ],
)
def test_graphs_that_are_no_face_network(tmp_path, options, text):
    refused(written(tmp_path / "a.onnx", **options), text)


def test_files_that_are_no_onnx(tmp_path, monkeypatch):
    for name, content, text in [
        ("text", b"these are not bytes of protobuf", "is not an ONNX file, or damaged"),
        ("empty", b"", "is not an ONNX file: there is no graph in it"),
        ("cut", written(tmp_path / "whole.onnx").read_bytes()[:60], "is not an ONNX file"),
        ("zip", b"PK\x03\x04" + bytes(80), "is not an ONNX file"),
    ]:
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        refused(path, text)
    refused(tmp_path / "nowhere.onnx", "does not exist: a model is a run's folder")
    monkeypatch.setattr(onnx_model, "LARGEST_FILE", 100)
    refused(tmp_path / "whole.onnx", "bytes: an ONNX file has at most 100, larger weights belong into files beside it")


# Weights in other files.


def kept_in(location, **entries):
    """An edit that moves the constant of `Add` to the file `location`."""

    def edit(model):
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=str(value))

    return edit


def test_weights_beside_the_file_are_read(tmp_path):
    np.arange(3, dtype=np.float32).tofile(tmp_path / "weights.bin")
    edit = kept_in("weights.bin", offset=0, length=12)
    path = written(tmp_path / "a.onnx", first=[("Add", np.zeros((3, 1, 1)))], edit=edit)
    rows, _ = embedded(path)
    assert_close(rows, fed(127.5, 127.5) + torch.arange(3.0).repeat_interleave(16))


def test_a_digest_is_of_the_weights_beside_the_file_too(tmp_path):
    path = written(tmp_path / "a.onnx", first=[("Add", np.zeros((3, 1, 1)))], edit=kept_in("weights.bin", length=12))
    digests = set()
    for weights in (0.0, 1.0):
        np.full(3, weights, dtype=np.float32).tofile(tmp_path / "weights.bin")
        module, facts = open_model(path)
        digests |= {facts.digest, contents_digest(module, facts)}
    assert len(digests) == 4, "other weights, and the digest of these"
    plain = written(tmp_path / "b.onnx", first=[("Add", np.zeros((3, 1, 1)))])
    assert open_model(plain)[1].digest == hashlib.sha256(plain.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("location", "entries", "text"),
    [
        ("../secret.bin", {}, "outside the model's folder: refused"),
        ("sub/../../secret.bin", {}, "outside the model's folder: refused"),
        ("/etc/passwd", {}, "outside the model's folder: refused"),
        ("..\\secret.bin", {}, "outside the model's folder: refused"),
        ("", {}, "outside the model's folder: refused"),
        ("link.bin", {}, "outside the model's folder: refused"),
        ("weights\0.bin", {}, "is missing"),
        (".", {}, "is missing"),
        ("gone.bin", {}, "which is missing: copy it beside the model"),
        ("weights.bin", {"offset": 4, "length": 12}, "at 4 + 12 bytes, the file has 12"),
        ("weights.bin", {"offset": -4, "length": 4}, "at -4 + 4 bytes, the file has 12"),
        ("weights.bin", {"length": "all"}, "at a place that is not a number"),
    ],
)
@pytest.mark.parametrize("where", ["initializer", "attribute"])
def test_weights_elsewhere_are_refused(tmp_path, location, entries, text, where):
    (tmp_path / "secret.bin").write_bytes(bytes(12))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(bytes(12))
    os.symlink(tmp_path / "secret.bin", folder / "link.bin")

    def edit(model):
        kept_in(location, **entries)(model)
        if where == "attribute":  # the same tensor inside a Constant node
            tensor = model.graph.initializer.pop()
            node = helper.make_node("Constant", [], [tensor.name])
            node.attribute.add(name="value", type=4).t.CopyFrom(tensor)
            model.graph.node.insert(0, node)

    path = written(folder / "a.onnx", first=[("Add", np.zeros((3, 1, 1)))], edit=edit)
    message = refused(path, text)
    assert "weight 'c0' is kept in" in message


def test_weights_of_more_than_a_network_has_are_refused(tmp_path, monkeypatch):
    (tmp_path / "weights.bin").write_bytes(bytes(12))
    monkeypatch.setattr(onnx_model, "LARGEST_WEIGHTS", 11)
    path = written(tmp_path / "a.onnx", first=[("Add", np.zeros((3, 1, 1)))], edit=kept_in("weights.bin"))
    refused(path, "its weights have more than 11 bytes: no face network has that")
