"""A trained model out of attfc: one ONNX file, or a folder in the layout of the Hugging Face hub.

Nothing is written before it is proven: the file is made beside its place, opened again the way `attfc evaluate` opens it, and its
embeddings are compared with those of the torch module, in a batch and alone. Only then one rename puts it there. Cost: torch's exporter
takes about 15 s the first time in a process (it loads its tables of operators), then 3 s for a tiny network; see docs/export.md.
"""

import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attfc.data.index import spread
from attfc.data.stores.store import Store
from attfc.data.stores.synthetic import SyntheticFaces
from attfc.errors import UserError, first_line
from attfc.evaluation.operating_point.point import METADATA, beside, point_of
from attfc.export.colours import FedAs
from attfc.export.cost import Cost, Terms, measure_cost
from attfc.export.half import to_float16
from attfc.export.hub_folder import model_card
from attfc.export.int8 import BEFORE, to_int8
from attfc.export.model_inputs import ModelFacts, open_model
from attfc.export.origins import start_weights_text, training_data_of
from attfc.files import replacing
from attfc.training.model_files import save_model
from attfc.typing import Json

__all__ = ["OPSET", "Exported", "export_hub_folder", "export_onnx"]

OPSET = 18  # the first that torch's exporter writes without conversion; onnxruntime has it since 1.14
LEAST_COSINE = {"float32": 0.99999, "float16": 0.9995, "int8": -1.0}  # what int8 costs is measured on faces
CHECK_IMAGES, CALIBRATION_IMAGES = 32, 256


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and how well it agrees with the torch module.

    Attributes:
        path: file or folder. bytes: of all files.
        format: "onnx" or "hf". precision: of the weights, "float32", "float16" or "int8". opset: of the ONNX file, None for "hf".
        images, images_from: how many images were compared, and of what.
        least_cosine, mean_cosine: between the embeddings of both.
        norm_error: largest relative difference of the embeddings' lengths.
        cost: what int8 costs; None for the others.
    """

    path: Path
    bytes: int
    format: str
    precision: str
    opset: int | None
    images: int
    images_from: str
    least_cosine: float
    mean_cosine: float
    norm_error: float
    cost: Cost | None = None

    def to_dict(self) -> Json:
        """Return it as plain JSON types."""
        return {**asdict(self), "path": str(self.path), "cost": self.cost and self.cost.to_dict()}


def export_onnx(
    model: nn.Module,
    facts: ModelFacts,
    path: Path,
    *,
    half: bool = False,
    int8: Terms | None = None,
    check_images: Store | None = None,
) -> Exported:
    """Write `model` as one ONNX file (opset 18): input "input" (batch, 3, S, S), output "embedding" (batch, D), both float32, any batch.

    The graph takes RGB as (x - 127.5) / 127.5 and says so in its metadata, beside embedding size, image size, network, precision, training
    data and its licence, and attfc's version. The insightface package feeds it the same pixels (its rule looks for nodes named "Sub" and
    "Mul", which do not occur).

    Args:
        model, facts: of `open_model`.
        path: ends in .onnx; must not exist.
        half: weights and products in float16.
        int8: weights and products in 8 bits, on these terms; the metadata then say what it costs, as JSON under "int8".
        check_images: a store whose images are compared (up to 32); None: synthetic faces.

    Raises:
        UserError: the extra ``attfc[onnx]`` is missing, the path exists, the model is ONNX already, a cosine below 0.99999 (float32) or
            0.9995 (float16), int8 costs more than its terms allow. No file is left then.
    """
    path = Path(path)
    if half and int8 is not None:
        raise UserError("half and int8: a file has one precision, leave one out")
    if facts.kind == "ONNX":
        raise UserError(f"{facts.path} is an ONNX file already: export the run or the state dict that it came from")
    if path.suffix != ".onnx":
        raise UserError(f"{path} does not end in .onnx: name the file, such as {path / 'model.onnx'}")

    def write(folder: Path, precision: str) -> Path:
        proto = _to_onnx(model, facts)
        if half:
            to_float16(proto)
        if int8 is not None:
            _describe(proto, facts, "float32")
            faces, _ = _images(int8.calibration, facts.image_size, CALIBRATION_IMAGES)
            proto = to_int8(proto, faces.numpy(), folder)
        _describe(proto, facts, precision)
        return _saved(proto, folder / path.name)

    def accept(written: Path, terms: Terms) -> Cost:
        before = written.with_name(BEFORE)
        sizes = before.stat().st_size, written.stat().st_size
        cost = measure_cost(open_model(before)[0], open_model(written)[0], terms, sizes)
        if not cost.accepted(terms.most_loss):
            raise UserError(
                f"{facts.path} in int8 raises the FNMR by more than {terms.most_loss:g} points, or doubles the FMR: {cost.text()}. Nothing was "
                "written: export it without --int8, give more --calibration faces of its kind, or a higher --most-loss"
            )
        import onnx

        proto = onnx.load(written)
        proto.metadata_props.add(
            key="int8", value=json.dumps({**cost.to_dict(), "calibrated_on": terms.calibration.name})
        )
        _saved(proto, written)
        return cost

    asked = None if int8 is None else lambda written: accept(written, int8)
    precision = "int8" if int8 is not None else "float16" if half else "float32"
    return _export(write, model, facts, path, precision, check_images, OPSET, asked)


def export_hub_folder(
    model: nn.Module, facts: ModelFacts, path: Path, *, half: bool = False, check_images: Store | None = None
) -> Exported:
    """Write `model` as a folder for the Hugging Face hub: model.safetensors, config.json and a model card, README.md.

    `attfc.from_pretrained(folder)` and `attfc evaluate` open it. With `half` the weights are stored in float16 and computed with in float32.

    Args:
        model, facts: of `open_model`.
        path: a folder that does not exist or is empty.
        half, check_images: as in `export_onnx`.

    Raises:
        UserError: as in `export_onnx`. No folder is left then.
    """
    if facts.kind == "ONNX":
        raise UserError(
            f"{facts.path} is an ONNX file, which has no state dict: export the run or the state dict that it came from"
        )

    def write(folder: Path, precision: str) -> Path:
        config = {
            "model_type": "attfc",
            "network": facts.network,
            "options": dict(facts.options),
            "training_data": facts.training_data,
            "weights_precision": precision,
            **facts.colours.to_dict(),
        }
        backbone = model.model if isinstance(model, FedAs) else model
        if half:
            backbone = copy.deepcopy(backbone).half()
            for name, value in backbone.state_dict().items():
                if value.is_floating_point() and not torch.isfinite(value).all():
                    raise UserError(
                        f"{facts.path}: {name!r} is beyond float16's 65504: export it in float32, without --half"
                    )
        written = save_model(folder / "model", backbone, config)
        point = point_of(facts)
        if point is not None:
            digest = replace(facts, path=written, external=()).digest
            point.model_copy(update={"digest": digest}).write(beside(written))
        (written / "README.md").write_text(model_card(facts, precision, point), encoding="utf-8")
        return written

    return _export(write, model, facts, Path(path), "float16" if half else "float32", check_images)


def _export(
    write: Callable[[Path, str], Path],
    model: nn.Module,
    facts: ModelFacts,
    path: Path,
    precision: str,
    check_images: Store | None,
    opset: int | None = None,
    accept: Callable[[Path], Cost] | None = None,
) -> Exported:
    """Write into a folder beside `path`, open what was written, compare its embeddings, ask whether it costs too much, and put it at `path`."""
    images, images_from = _images(check_images, facts.image_size)
    with torch.no_grad():
        expected: Tensor = model.eval()(images).double()
    if not torch.isfinite(expected).all() or not (torch.linalg.vector_norm(expected, dim=1) > 0).all():
        raise UserError(
            "the model gives NaN, infinity or zeros on the images to check with: it has diverged, there is nothing to export"
        )
    if path.exists() and (opset is not None or not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists: name another, or remove it first")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".exporting_", dir=path.parent) as folder:
            written = write(Path(folder), precision)
            what = f"{facts.path} as {'a folder' if opset is None else 'ONNX'} ({precision})"
            figures = _compare(open_model(written)[0], images, expected, LEAST_COSINE[precision], what)
            cost = None if accept is None else accept(written)
            size = sum(file.stat().st_size for file in (written.iterdir() if written.is_dir() else [written]))
            if path.is_dir():
                path.rmdir()  # empty, or it would have been refused
            written.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; make room or permission there") from error
    kind = "hf" if opset is None else "onnx"
    return Exported(path, size, kind, precision, opset, len(images), images_from, *figures, cost)


def _to_onnx(model: nn.Module, facts: ModelFacts) -> Any:
    """Return the ModelProto of `model`, without the traces of this machine that torch's exporter leaves in it."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX export needs {error.name}: pip install 'attfc[onnx]'") from None
    size = facts.image_size
    example = torch.zeros(2, 3, size, size)
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                model.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["embedding"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(
            f"network {facts.network} cannot be written as ONNX by torch {torch.__version__}: {first_line(error)}"
        ) from error
    assert program is not None
    try:
        proto = program.model_proto
    except ValueError as error:  # protobuf's limit
        raise UserError(f"network {facts.network} does not fit into one ONNX file of 2 GiB: try --half") from error
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    return proto


def _describe(proto: Any, facts: ModelFacts, precision: str) -> None:
    """Write the facts into the graph, and check it."""
    root, licence = training_data_of(facts.training_data)
    started = start_weights_text(facts.training_data)
    version = metadata.version("attfc")
    values = {
        "attfc": version,
        "network": facts.network,
        "embedding_size": facts.embedding_size,
        "image_size": facts.image_size,
        # Of the graph's input, which FedAs has made ours, whatever the network inside wants.
        "colour_order": "RGB",
        "mean": 127.5,
        "std": 127.5,
        "precision": precision,
        "training_data": root,
        "training_data_licence": licence,
        **({"start_weights": started} if started else {}),
        **({METADATA: point.text()} if (point := point_of(facts)) else {}),
    }
    del proto.metadata_props[:]
    for key, value in values.items():
        proto.metadata_props.add(key=key, value=str(value))
    proto.producer_name, proto.producer_version = "attfc", version
    proto.doc_string = (
        "Face embedding: RGB, (x - 127.5) / 127.5, aligned to the ArcFace template; compare embeddings by cosine."
    )
    proto.graph.name = facts.network

    import onnx

    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise UserError(f"network {facts.network} gives a graph that ONNX refuses: {first_line(error)}") from error
    # insightface takes a graph whose first eight nodes are named Sub... and Mul... for one that normalizes its pixels itself.
    names = [node.name for node in proto.graph.node[:8]]
    assert not any(name.startswith(("Sub", "_minus", "Mul", "_mul")) for name in names), names


def _saved(proto: Any, path: Path) -> Path:
    with replacing(path) as file:
        file.write(proto.SerializeToString())
    return path


def _images(store: Store | None, size: int, most: int = CHECK_IMAGES) -> tuple[Tensor, str]:
    """Return up to `most` images (N, 3, S, S), RGB in [-1, 1], spread over the store."""
    source = SyntheticFaces(CHECK_IMAGES // 2, 2, seed=0) if store is None else store
    positions = spread(len(source), most)
    if not len(positions):
        raise UserError(f"{source.name}: no images to check the export with")
    images = source.images(positions, size)
    sound = [row for row in range(len(positions)) if row not in images.broken]
    if not sound:
        raise UserError(f"{source.name}: all {len(positions)} images taken to check the export are broken")
    pixels = torch.from_numpy(images.pixels)[sound]
    images_NCSS: Tensor = (pixels.permute(0, 3, 1, 2).float() - 127.5) / 127.5
    return images_NCSS, "synthetic faces" if store is None else source.name


def _compare(
    model: nn.Module, images: Tensor, expected: Tensor, needed: float, what: str
) -> tuple[float, float, float]:
    """Return least cosine, mean cosine and largest relative difference of lengths; batches of all images and of one."""
    with torch.no_grad():
        rows = torch.cat([model(images), model(images[:1])]).double()
    expected = torch.cat([expected, expected[:1]])
    cosines = torch.nn.functional.cosine_similarity(rows, expected, dim=1)
    lengths = torch.linalg.vector_norm(rows, dim=1) / torch.linalg.vector_norm(expected, dim=1)
    least = float(cosines.min())
    if not least >= needed:  # also where it is NaN
        hint = (
            "; its numbers leave float16's range, export it without --half" if needed == LEAST_COSINE["float16"] else ""
        )
        raise UserError(
            f"{what} differs from the torch module: cosine {least:.6f} on image {int(cosines.argmin())} of {len(images)}, needed are "
            f"{needed}: nothing was written{hint}"
        )
    return least, float(cosines.mean()), float((lengths - 1).abs().max())
