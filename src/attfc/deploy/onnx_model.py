"""An ONNX file as a torch module: checked before it is loaded, run by onnxruntime, with the facts that it states about itself.

The file may come from a stranger. Its protobuf is parsed with sizes bounded; weights that it keeps in other files must lie in its own
folder; it needs one image input and one embedding output. A graph runs no code of its own, but it may take any amount of time and memory
once it runs, as a program may. Cost of loading: the file is parsed twice (once here, once by onnxruntime).

What the pixels should be is read from the file's metadata (`colour_order`, `mean`, `std`, as `attfc export` writes them), else from the
graph: networks converted from MXNet begin with Sub and Mul of constants, that is, they want values 0 to 255. Where neither says it, it is
unknown, and said so.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from attfc.deploy.colours import Colours
from attfc.errors import UserError

__all__ = ["OnnxFacts", "OnnxModel", "read_onnx_facts"]

LARGEST_FILE, LARGEST_WEIGHTS = 2**31 - 1, 16 * 2**30  # protobuf's own limit; of weights in other files
LARGEST_IMAGE, LARGEST_EMBEDDING, LARGEST_TEXT = 4_096, 65_536, 2**16
RAW = Colours("RGB", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
FLOATS: dict[int, np.dtype[Any]] = {1: np.dtype(np.float32), 10: np.dtype(np.float16)}  # TensorProto's numbers


@dataclass(frozen=True)
class OnnxFacts:
    """What an ONNX file says about itself.

    Attributes:
        input_name, output_name: of the one image input and the one embedding output.
        dtype: of the input.
        channels_last: the input is (B, S, S, 3), not (B, 3, S, S).
        batch: fixed number of images of a run, None = any.
        image_size: S in pixels, None = any, or not stated.
        embedding_size: None = not stated; the first run tells.
        opset: of the operators of ONNX itself.
        colours: None = not stated.
        colours_from: where they are stated, for messages.
        metadata: the file's own key-value pairs, texts.
    """

    input_name: str
    output_name: str
    dtype: np.dtype[Any]
    channels_last: bool
    batch: int | None
    image_size: int | None
    embedding_size: int | None
    opset: int
    colours: Colours | None
    colours_from: str
    metadata: Mapping[str, str]


class OnnxModel(nn.Module):
    """Embed faces with an ONNX file.

    Args:
        path: of the file.
        facts: of `read_onnx_facts`, which checks the file.
        image_size: S in pixels, where the file leaves it open.
        device: "cpu", or "cuda" with a build of onnxruntime that has it.

    Input (B, 3, S, S) float, in the colours of `facts`, which `FedAs` converts to; output (B, embedding_size) float32 on the input's device.
    Evaluation only: no parameter, no gradient.

    Raises:
        UserError: onnxruntime cannot load or run it, or what comes out is not (B, D) finite numbers.
    """

    def __init__(self, path: Path, facts: OnnxFacts, image_size: int, device: str = "cpu") -> None:
        super().__init__()
        self.path, self.facts, self.image_size = Path(path), facts, image_size
        self.name = f"onnx:{self.path.name}"
        ort = _onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        options.intra_op_num_threads = torch.get_num_threads()
        providers = ["CPUExecutionProvider"]
        if device == "cuda" and "CUDAExecutionProvider" in ort.get_available_providers():
            providers.insert(0, "CUDAExecutionProvider")
        try:
            self.session = ort.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:  # onnxruntime's own classes have no common base but Exception
            raise UserError(f"{self.path} cannot be loaded by onnxruntime: {_first_line(error)}") from None
        probe = self.forward(torch.zeros(1, 3, image_size, image_size))
        self.embedding_size = probe.shape[1]
        if facts.embedding_size not in (None, self.embedding_size):
            raise UserError(
                f"{self.path} says embedding_size {facts.embedding_size}, but gives {self.embedding_size} numbers an image"
            )

    def forward(self, x: Tensor) -> Tensor:
        images = x.detach().to("cpu", torch.float32).numpy()
        if self.facts.channels_last:
            images = images.transpose(0, 2, 3, 1)
        images = np.ascontiguousarray(images, dtype=self.facts.dtype)
        step = self.facts.batch or max(len(images), 1)
        rows = [self._run(images[start : start + step], step) for start in range(0, len(images), step)]
        return torch.from_numpy(np.concatenate(rows)).to(x.device)

    def _run(self, images: npt.NDArray[Any], step: int) -> npt.NDArray[np.float32]:
        count = len(images)
        if self.facts.batch is not None and count < step:
            images = np.concatenate([images, np.zeros((step - count, *images.shape[1:]), images.dtype)])
        try:
            (rows,) = self.session.run([self.facts.output_name], {self.facts.input_name: images})
        except Exception as error:  # see above
            raise UserError(
                f"{self.path} fails on {len(images)} images of shape {images.shape[1:]}: {_first_line(error)}"
            ) from None
        if rows.ndim != 2 or len(rows) != len(images) or not 1 <= rows.shape[1] <= LARGEST_EMBEDDING:
            raise UserError(
                f"{self.path} gives {rows.shape} for {len(images)} images: an embedding is one row an image"
            )
        return np.asarray(rows[:count], dtype=np.float32)


def read_onnx_facts(path: Path) -> OnnxFacts:
    """Parse an ONNX file without loading its weights' files or running it.

    Raises:
        UserError: no such file, larger than 2 GiB, no ONNX, weights outside its folder, other inputs or outputs than an image and an embedding,
            metadata that is damaged.
    """
    path = Path(path)
    model = _parse(path)
    _check_external(path, model)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    outputs = list(graph.output)
    shape = _shape(inputs[0]) if len(inputs) == 1 else ()
    channels_last = len(shape) == 4 and shape[1] != 3 and shape[3] == 3
    image_shape = len(shape) == 4 and 3 in (shape[1], shape[3])
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type not in FLOATS or not image_shape:
        raise UserError(
            f"{path} takes {_listed(inputs)}: a face network takes one float input of images, (batch, 3, size, size) or (batch, size, size, 3)"
        )
    if (
        len(outputs) != 1
        or outputs[0].type.tensor_type.elem_type not in FLOATS
        or len(_shape(outputs[0])) not in (0, 2)
    ):
        raise UserError(
            f"{path} gives {_listed(outputs)}: a face network gives one float output, (batch, embedding_size)"
        )
    sides = shape[1:3] if channels_last else shape[2:4]
    if None not in sides and sides[0] != sides[1]:
        raise UserError(f"{path} takes images of {sides[0]} x {sides[1]} pixels: attfc aligns faces to squares")
    metadata = {pair.key[:80]: pair.value[:LARGEST_TEXT] for pair in list(model.metadata_props)[:256]}
    colours, colours_from = _colours(path, metadata, graph)
    size = next((side for side in sides if side is not None), None) or _number(
        path, metadata, "image_size", LARGEST_IMAGE
    )
    if size is not None and size > LARGEST_IMAGE:
        raise UserError(f"{path} takes images of {size} pixels: the largest attfc feeds are {LARGEST_IMAGE}")
    out = _shape(outputs[0])
    return OnnxFacts(
        input_name=inputs[0].name,
        output_name=outputs[0].name,
        dtype=FLOATS[inputs[0].type.tensor_type.elem_type],
        channels_last=channels_last,
        batch=shape[0],
        image_size=size,
        embedding_size=out[1]
        if out and out[1] is not None
        else _number(path, metadata, "embedding_size", LARGEST_EMBEDDING),
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0),
        colours=colours,
        colours_from=colours_from,
        metadata=metadata,
    )


def _parse(path: Path) -> Any:
    onnx = _onnx()
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise UserError(
                f"{path} has {size:,} bytes: an ONNX file has at most {LARGEST_FILE:,}, larger weights stand in files beside it"
            )
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError, and what hostile bytes lead to
        raise UserError(f"{path} is no ONNX file, or damaged: {_first_line(error)}") from None
    if not model.graph.node or not model.ir_version:
        raise UserError(f"{path} is no ONNX file: there is no graph in it")
    return model


def _check_external(path: Path, model: Any) -> None:
    """Refuse weights that are kept anywhere but in plain files of the model's own folder."""
    folder, total = path.parent.resolve(), 0
    for tensor in _tensors(model):
        if tensor.data_location != 1:  # TensorProto.EXTERNAL
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
            raise UserError(f"{where} at a place that is no number") from None
        if offset < 0 or length < 0 or offset + length > target.stat().st_size:
            raise UserError(f"{where} at {offset:,} + {length:,} bytes, the file has {target.stat().st_size:,}")
        total += length or target.stat().st_size
        if total > LARGEST_WEIGHTS:
            raise UserError(f"{path}: its weights have more than {LARGEST_WEIGHTS:,} bytes: no face network has that")


def _tensors(model: Any) -> Iterator[Any]:
    """Yield every tensor of a model: of its graph, of graphs inside nodes, of functions, of attributes."""
    graphs = [
        model.graph,
        *(info.initialization for info in model.training_info),
        *(info.algorithm for info in model.training_info),
    ]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
        else:
            for attribute in nodes.pop().attribute:
                yield from (attribute.t, *attribute.tensors)
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)
                graphs.extend(graph for graph in (attribute.g, *attribute.graphs) if graph.node or graph.initializer)


def _colours(path: Path, metadata: Mapping[str, str], graph: Any) -> tuple[Colours | None, str]:
    if "colour_order" in metadata and "mean" in metadata and "std" in metadata:
        values: dict[str, Any] = {"colour_order": metadata["colour_order"]}
        for name in ("mean", "std"):
            try:
                values[name] = json.loads(metadata[name])
            except (ValueError, RecursionError):
                values[name] = metadata[name]
        return Colours.read(values, f"{path}, metadata"), "its metadata"
    if _normalizes_itself(graph):
        return RAW, "its first nodes, which subtract and scale"
    return None, ""


def _normalizes_itself(graph: Any) -> bool:
    """Whether the image goes through Sub and Mul (or Div) of single numbers first, as in networks converted from MXNet."""
    single = {tensor.name for tensor in graph.initializer if not [size for size in tensor.dims if size != 1]}
    single |= {name for node in graph.node[:16] if node.op_type == "Constant" for name in node.output}
    value, found = (
        next((item.name for item in graph.input if item.name not in {t.name for t in graph.initializer}), ""),
        [],
    )
    for node in graph.node[:16]:
        if value in node.input and node.op_type in ("Sub", "Mul", "Div", "Cast", "Identity"):
            others = [name for name in node.input if name != value]
            if any(name not in single for name in others):
                break
            found.append(node.op_type)
            value = node.output[0]
    return "Sub" in found and ("Mul" in found or "Div" in found)


def _shape(value: Any) -> tuple[int | None, ...]:
    """Return the sizes of an input or output; None = any; () = unknown."""
    return tuple(size.dim_value if size.dim_value > 0 else None for size in value.type.tensor_type.shape.dim)


def _number(path: Path, metadata: Mapping[str, str], name: str, largest: int) -> int | None:
    if name not in metadata:
        return None
    text = metadata[name]
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:10]) <= largest:
        raise UserError(f"{path}, metadata: {name} {text[:80]!r} is no whole number from 1 to {largest}")
    return int(text)


def _listed(values: list[Any]) -> str:
    shown = [f"{value.name[:40]} ({', '.join(str(size or '?') for size in _shape(value))})" for value in values[:4]]
    return ", ".join(shown) + (f" and {len(values) - 4} more" if len(values) > 4 else "") or "nothing"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _onnx() -> Any:
    try:
        import onnx
    except ImportError:
        raise UserError("ONNX files need onnx: pip install 'attfc[onnx]'") from None
    return onnx


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UserError("ONNX files need onnxruntime: pip install 'attfc[onnx]'") from None
    return onnxruntime
