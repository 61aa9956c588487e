"""An ONNX file as a torch module: checked before it is loaded, run by onnxruntime, with the facts that it states about itself.

The file may come from a stranger. Its protobuf is parsed with sizes bounded; weights that it keeps in other files must lie in its own
folder; it needs one image input and one embedding output. A graph runs no code of its own, but it may take any amount of time and memory
once it runs, as a program may. Cost of loading: the file is parsed twice (once here, once by onnxruntime).

What the pixels should be is read from the file's metadata (`colour_order`, `mean`, `std`, as `attfc export` writes them). Where that has no
mean and deviation the graph may tell: networks converted from MXNet begin with Sub and Mul of constants, which centre values 0 to 255, others
with constants that centre 0 to 1. What neither says is unknown, and said so.
"""

import importlib
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attfc.errors import UserError, first_line
from attfc.export.colours import COLOUR_KEYS, OURS, Colours
from attfc.training.model_files import LARGEST_EMBEDDING, LARGEST_IMAGE
from attfc.typing import Array, Float32, Float64

__all__ = ["OnnxFacts", "OnnxModel"]

LARGEST_FILE, LARGEST_WEIGHTS = 2**31 - 1, 16 * 2**30  # protobuf's own limit; of weights in other files
LARGEST_TEXT = 2**16
LARGEST_RUN = 2**28  # numbers in the images of one run, where the file fixes the batch
AFFINE = {"Sub": "shift", "Add": "shift", "Mul": "scale", "Div": "scale"}
EXTERNAL = 1  # TensorProto's number, as those below
FLOATS: dict[int, np.dtype[Any]] = {1: np.dtype(np.float32), 10: np.dtype(np.float16)}


class OnnxFacts:
    """What an ONNX file says about itself: it is parsed, without loading its weights' files or running it.

    Args:
        path: of the file.

    Attributes:
        input_name, output_name: of the one image input and the one embedding output.
        dtype: of the input.
        channels_last: the input is (B, S, S, 3), not (B, 3, S, S).
        batch: fixed number of images of a run, None = any.
        image_size: S in pixels, None = any, or not stated.
        embedding_size: None = not stated; the first run tells.
        stated: those of "colour_order", "mean" and "std" that the file states, as a configuration holds them.
        stated_by: what in the file states them, for messages.
        metadata: the file's own key-value pairs, texts.

    Raises:
        UserError: no such file, larger than 2 GiB, no ONNX, weights outside its folder, other inputs or outputs than an image and an embedding,
            metadata that is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path = Path(path)
        model = _parse(path)
        self.external = _check_external(path, model)
        graph = model.graph
        weights = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in weights]
        outputs = list(graph.output)
        shape = _shape(inputs[0]) if len(inputs) == 1 else ()
        if len(shape) != 4 or 3 not in (shape[1], shape[3]) or inputs[0].type.tensor_type.elem_type not in FLOATS:
            raise UserError(
                f"{path} takes {_listed(inputs)}: a face network takes one float input of images, (batch, 3, size, size) or (batch, size, size, 3)"
            )
        out = _shape(outputs[0]) if len(outputs) == 1 else (None,)
        if len(out) not in (0, 2) or outputs[0].type.tensor_type.elem_type not in FLOATS:
            raise UserError(
                f"{path} gives {_listed(outputs)}: a face network gives one float output, (batch, embedding_size)"
            )
        self.channels_last = shape[1] != 3
        sides = shape[1:3] if self.channels_last else shape[2:4]
        if None not in sides and sides[0] != sides[1]:
            raise UserError(f"{path} takes images of {sides[0]} x {sides[1]} pixels: attfc aligns faces to squares")
        self.metadata = metadata = {
            pair.key[:80]: pair.value[:LARGEST_TEXT] for pair in list(model.metadata_props)[:256]
        }
        stated: dict[str, Any] = {name: metadata[name] for name in COLOUR_KEYS if name in metadata}
        for name in stated.keys() & {"mean", "std"}:
            with suppress(
                ValueError, RecursionError
            ):  # what is not JSON is refused in a moment, as the text that it is
                stated[name] = json.loads(metadata[name])
        colours = Colours.read({**OURS.to_dict(), **stated}, f"{path}, metadata").to_dict()
        self.stated, self.stated_by = {name: colours[name] for name in stated}, "its metadata"
        if not stated.keys() & {"mean", "std"} and (largest := _largest_pixel(graph)) is not None:
            self.stated_by = "its first nodes, which subtract and scale" + (", and its metadata" if stated else "")
            self.stated |= {"mean": 0.0, "std": 255.0 / largest}
        size = self._number("image_size", LARGEST_IMAGE, next((side for side in sides if side), None))
        if size is not None and size > LARGEST_IMAGE:
            raise UserError(f"{path} takes images of {size} pixels: the largest attfc feeds are {LARGEST_IMAGE}")
        self.image_size, self.batch = size, shape[0]
        self.embedding_size = self._number("embedding_size", LARGEST_EMBEDDING, out[1] if out else None)
        self.input_name, self.output_name = str(inputs[0].name), str(outputs[0].name)
        self.dtype = FLOATS[inputs[0].type.tensor_type.elem_type]

    def _number(self, name: str, largest: int, of_graph: int | None) -> int | None:
        """Return what the graph and the metadata say, who must agree; None = neither says it."""
        if name not in self.metadata:
            return of_graph
        text = self.metadata[name]
        if not text.isascii() or not text.isdigit() or len(text) > 10 or not 1 <= int(text) <= largest:
            raise UserError(f"{self.path}, metadata: {name} {text[:80]!r} is not a whole number from 1 to {largest}")
        if of_graph not in (None, int(text)):
            raise UserError(
                f"{self.path}, metadata: {name} is {text}, but its graph has {of_graph}: it was changed after export"
            )
        return int(text)


class OnnxModel(nn.Module):
    """Embed faces with an ONNX file.

    Args:
        facts: of the file, checked.
        image_size: S in pixels, where the file leaves it open.
        device: "cpu", or "cuda" with a build of onnxruntime that has it.

    Input (B, 3, S, S) float, in the colours that the file wants, which `FedAs` converts to; output (B, embedding_size) float32 on the input's
    device. Evaluation only: no parameter, no gradient.

    Raises:
        UserError: onnxruntime cannot load or run it, what comes out is not one row per image, or a fixed batch is more than memory is for.
    """

    def __init__(self, facts: OnnxFacts, image_size: int, device: str) -> None:
        super().__init__()
        self.path, self.facts, self.image_size = facts.path, facts, image_size
        self.name = f"onnx:{self.path.name}"
        if (facts.batch or 1) * 3 * image_size**2 > LARGEST_RUN:
            raise UserError(
                f"{self.path} runs batches of {facts.batch:,} images of {image_size} pixels only, more than {LARGEST_RUN:,} numbers: export it "
                "with a dynamic batch"
            )
        ort = _imported("onnxruntime")
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        options.intra_op_num_threads = torch.get_num_threads()
        providers = ["CPUExecutionProvider"]
        if device == "cuda" and "CUDAExecutionProvider" in ort.get_available_providers():
            providers.insert(0, "CUDAExecutionProvider")
        try:
            self.session = ort.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:  # onnxruntime's own classes have no common base but Exception
            raise UserError(f"{self.path} cannot be loaded by onnxruntime: {first_line(error)}") from None
        probe = self.forward(torch.zeros(1, 3, image_size, image_size))
        self.embedding_size = probe.shape[1]
        if facts.embedding_size not in (None, self.embedding_size):
            raise UserError(
                f"{self.path} says embedding_size {facts.embedding_size}, but gives {self.embedding_size} numbers per image"
            )

    def forward(self, x: Tensor) -> Tensor:
        if not len(x):
            return x.new_zeros((0, self.embedding_size), dtype=torch.float32)
        images = x.detach().to("cpu", torch.float32).numpy()
        if self.facts.channels_last:
            images = images.transpose(0, 2, 3, 1)
        images = np.ascontiguousarray(images, dtype=self.facts.dtype)
        step = self.facts.batch or len(images)
        rows = [self._run(images[start : start + step], step) for start in range(0, len(images), step)]
        return torch.from_numpy(np.concatenate(rows)).to(x.device)

    def _run(self, images: Array, step: int) -> Float32:
        count = len(images)
        if self.facts.batch is not None and count < step:
            images = np.concatenate([images, np.zeros((step - count, *images.shape[1:]), images.dtype)])
        try:
            (rows,) = self.session.run([self.facts.output_name], {self.facts.input_name: images})
        except Exception as error:  # see above
            raise UserError(
                f"{self.path} fails on {len(images)} images of shape {images.shape[1:]}: {first_line(error)}"
            ) from None
        if rows.ndim != 2 or len(rows) != len(images) or not 1 <= rows.shape[1] <= LARGEST_EMBEDDING:
            raise UserError(
                f"{self.path} gives {rows.shape} for {len(images)} images: an embedding is one row per image"
            )
        return np.asarray(rows[:count], dtype=np.float32)


def _parse(path: Path) -> Any:
    onnx = _imported("onnx")
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise UserError(
                f"{path} has {size:,} bytes: an ONNX file has at most {LARGEST_FILE:,}, larger weights belong into files beside it"
            )
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError, and what hostile bytes lead to
        raise UserError(f"{path} is not an ONNX file, or damaged: {first_line(error)}") from None
    if not model.graph.node or not model.ir_version:
        raise UserError(f"{path} is not an ONNX file: there is no graph in it")
    return model


def _check_external(path: Path, model: Any) -> tuple[Path, ...]:
    """Return the other files that hold weights, sorted; refuse any but plain files of the model's own folder."""
    folder, total, found = path.parent.resolve(), 0, set()
    for tensor in _tensors(model):
        if tensor.data_location != EXTERNAL:
            continue
        entries = {pair.key: pair.value for pair in tensor.external_data}
        location = entries.get("location", "")
        where = f"{path}: weight {tensor.name[:80]!r} is kept in {location[:160]!r}"
        target = (folder / location).resolve() if "\0" not in location else folder
        if not location or Path(location).is_absolute() or "\\" in location or not target.is_relative_to(folder):
            raise UserError(f"{where}, outside the model's folder: refused")
        if not target.is_file():
            raise UserError(f"{where}, which is missing: copy it beside the model")
        try:
            offset, length = (int(entries.get(key, "0")) for key in ("offset", "length"))
        except ValueError:
            raise UserError(f"{where} at a place that is not a number") from None
        if offset < 0 or length < 0 or offset + length > target.stat().st_size:
            raise UserError(f"{where} at {offset:,} + {length:,} bytes, the file has {target.stat().st_size:,}")
        total += length or target.stat().st_size
        if total > LARGEST_WEIGHTS:
            raise UserError(f"{path}: its weights have more than {LARGEST_WEIGHTS:,} bytes: no face network has that")
        found.add(target)
    return tuple(sorted(found))


def _tensors(message: Any) -> Iterator[Any]:
    """Yield every tensor in a protobuf message: of its graph, of graphs inside nodes, of functions, of attributes."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in [value] if hasattr(value, "ListFields") else value:
            if field.message_type.name == "TensorProto":
                yield part
            else:
                yield from _tensors(part)


@np.errstate(all="ignore")  # strange constants centre nothing
def _largest_pixel(graph: Any) -> int | None:
    """Return 255 or 1, where the graph begins with an affine map of constants that centres values 0 to 255 or 0 to 1; None = it does not say."""
    constants, kinds = _small_constants(graph), set()
    value = next(item.name for item in graph.input if item.name not in {tensor.name for tensor in graph.initializer})
    factor, offset = np.ones(1), np.zeros(1)  # of each channel: what the nodes so far make of x is factor x + offset
    for node in graph.node[:16]:
        if value not in node.input:
            continue
        kind = node.op_type
        if kind not in ("Cast", "Identity", "Transpose"):
            others = [name for name in node.input if name != value]
            constant = constants.get(others[0]) if len(others) == 1 else None
            turned = node.input[0] != value  # constant - x, constant / x
            if constant is None or kind not in AFFINE or (kind == "Div" and turned):
                break
            kinds.add(AFFINE[kind])
            if kind in ("Mul", "Div"):
                by = 1 / constant if kind == "Div" else constant
                factor, offset = factor * by, offset * by
            elif turned and kind == "Sub":
                factor, offset = -factor, constant - offset
            else:
                offset = offset - constant if kind == "Sub" else offset + constant
        value = node.output[0]
    if len(kinds) < 2 or not factor.all():
        return None
    centre = -offset / factor
    if ((centre >= 32) & (centre <= 224)).all():
        return 255
    return 1 if ((centre >= 0.25) & (centre <= 0.75)).all() else None


def _small_constants(graph: Any) -> dict[str, Float64]:
    """Return the constants of one number or three, finite, by name; those kept in other files are not read."""
    from onnx import numpy_helper

    tensors = [(tensor.name, tensor) for tensor in graph.initializer]
    for node in graph.node[:16]:
        if node.op_type == "Constant" and len(node.output) == 1:
            tensors += [(node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value"]
    found = {}
    for name, tensor in tensors:
        if math.prod(tensor.dims) not in (1, 3) or tensor.data_location == EXTERNAL:
            continue
        try:
            values = np.asarray(numpy_helper.to_array(tensor), dtype=np.float64).ravel()
        except Exception:  # damaged, or not of numbers: onnxruntime says so, if the graph uses it
            continue
        if np.isfinite(values).all():
            found[name] = values
    return found


def _shape(value: Any) -> tuple[int | None, ...]:
    """Return the sizes of an input or output; None = any; () = unknown."""
    return tuple(size.dim_value if size.dim_value > 0 else None for size in value.type.tensor_type.shape.dim)


def _listed(values: list[Any]) -> str:
    shown = [f"{value.name[:40]!r} ({', '.join(str(size or '?') for size in _shape(value))})" for value in values[:4]]
    return ", ".join(shown) + (f" and {len(values) - 4} more" if len(values) > 4 else "") or "nothing"


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"ONNX files need {name}: pip install 'attfc[onnx]'") from None
