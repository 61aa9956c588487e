"""One name for any trained model: a run, a folder with safetensors, a bare state dict of arcface_torch, an ONNX file.

What comes back takes RGB in [-1, 1] whatever the model itself wants, and says what it found. Three kinds of statement are kept apart: what
the model says of itself, what the caller says of it, and what nobody said, which is assumed and noted. The caller fills gaps; where both
speak they must agree.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from torch import nn

from attfc.errors import UserError, nearest
from attfc.evaluation.embedding_cache import CacheKey, model_digest
from attfc.evaluation.operating_point.point import METADATA
from attfc.export.colours import COLOUR_KEYS, OURS, Colours, fed_as
from attfc.export.onnx_model import OnnxFacts, OnnxModel
from attfc.export.state_dicts import read_state_dict, recognise_network
from attfc.training.model_files import CONFIG, WEIGHTS, load_model, model_folder
from attfc.typing import Json

__all__ = ["ModelFacts", "contents_digest", "open_model", "read_statements"]

STATE_DICTS = (".pt", ".pth", ".safetensors")
KEYS = ("network", "image_size", "embedding_size", "colour_order", "mean", "std", "training_data", "licence")


@dataclass(frozen=True)
class ModelFacts:
    """What `open_model` found.

    Attributes:
        path: the file, or the folder with the two files.
        kind: "folder", "state dict" or "ONNX".
        network: the network's name, "onnx:FILE" where there is only a graph.
        options: of the network.
        embedding_size, image_size: numbers and pixels.
        colours: what the model itself wants.
        training_data: what it was trained on: {"root": ..., "licence": ...}, or a text; with "start_weights", the same of the weights that it
            started from.
        notes: what a reader of its figures should know: what was assumed, converted or removed.
        operating_point: of an ONNX file, the JSON text in its metadata.
        external: of an ONNX file, the other files that hold its weights.
    """

    path: Path
    kind: str
    network: str
    options: Mapping[str, Any]
    embedding_size: int
    image_size: int
    colours: Colours
    training_data: Any
    notes: tuple[str, ...]
    operating_point: str = ""
    external: tuple[Path, ...] = ()

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of its file: of the weights, or the graph with the weights that it keeps in other files."""
        path = self.path / WEIGHTS if self.path.is_dir() else self.path
        return _hash_of((path, *self.external), "sha256").hex()

    def to_dict(self) -> Json:
        """Return the facts as plain JSON types."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "network": self.network,
            "options": dict(self.options),
            "embedding_size": self.embedding_size,
            "image_size": self.image_size,
            **self.colours.to_dict(),
            "training_data": self.training_data,
            "notes": list(self.notes),
        }


def read_statements(pairs: Iterable[str]) -> dict[str, Any]:
    """Read ``key=value`` texts about a model, for `open_model`.

    >>> read_statements(["network=r50", "colour_order=BGR", "mean=[123.7,116.3,103.5]"])
    {'network': 'r50', 'colour_order': 'BGR', 'mean': [123.7, 116.3, 103.5]}

    Raises:
        UserError: no ``=``, or an unknown key.
    """
    statements: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or key not in KEYS:
            raise UserError(
                f"{pair!r} says nothing about a model{nearest(key, KEYS)}: use KEY=VALUE with one of {', '.join(KEYS)}"
            )
        try:
            statements[key] = (
                text if key in ("network", "colour_order", "training_data", "licence") else json.loads(text)
            )
        except (ValueError, RecursionError):
            raise UserError(f"{pair[:80]!r}: {key} is a number, or for mean and std [three, of, them]") from None
    return statements


def contents_digest(module: nn.Module, facts: ModelFacts) -> str:
    """Return a digest of what `open_model` opened: network, colours and weights, as keys of kept embeddings need it."""
    key = CacheKey(facts.network, facts.colours, sorted(facts.options.items()))
    if facts.kind != "ONNX":
        return key.add("weights", model_digest(module).encode()).digest
    return key.add("file", _hash_of((facts.path, *facts.external), "blake2b")).digest


def _hash_of(paths: Iterable[Path], kind: str) -> bytes:
    """Return the hash of files, one after the other."""
    hasher = hashlib.new(kind)
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                hasher.update(piece)
    return hasher.digest()


def open_model(
    path: Path | str, statements: Mapping[str, Any] | None = None, *, device: str = "cpu"
) -> tuple[nn.Module, ModelFacts]:
    """Open a trained model of any kind for evaluation.

    Args:
        path: one of
            - a run's folder (its `model/` is taken), or a folder with model.safetensors and config.json;
            - a `.pt`, `.pth` or `.safetensors` state dict of arcface_torch or attfc; the network is recognised by names and shapes;
            - an `.onnx` file with one image input and one embedding output (extra ``attfc[onnx]``).
        statements: what the caller knows about the model: "network", "image_size", "embedding_size", "colour_order", "mean", "std", "training_data",
            "licence". They fill what the model leaves open; where it says otherwise, that is an error.
        device: "cuda" lets an ONNX file run there, if the onnxruntime installed can; torch's modules are on the CPU in any case.

    Returns:
        The module in eval mode: (B, 3, image_size, image_size) float32 RGB, ``(x - 127.5) / 127.5`` -> (B, embedding_size) float32, with
        attributes `name`, `image_size` and `embedding_size`; and the facts.

    Raises:
        UserError: nothing there, damaged, hostile, too large, of an unknown network, or against `statements`. Nothing in a file is executed.
    """
    path, said = Path(path), dict(statements or {})
    for key in said:
        if key not in KEYS:
            raise UserError(f"{key!r} says nothing about a model{nearest(key, KEYS)}: use one of {', '.join(KEYS)}")
    if path.is_dir():
        return _open_folder(model_folder(path), said)
    if not path.exists():
        raise UserError(
            f"{path} does not exist: a model is a run's folder, a folder with {WEIGHTS} and {CONFIG}, a state dict "
            f"({', '.join(STATE_DICTS)}) or an .onnx file"
        )
    if path.suffix == ".onnx":
        return _open_onnx(path, said, device)
    if path.name == WEIGHTS and (path.parent / CONFIG).exists():
        return _open_folder(path.parent, said)
    if path.suffix in STATE_DICTS:
        return _open_state_dict(path, said)
    raise UserError(f"{path}: attfc opens folders, {', '.join(STATE_DICTS)} and .onnx; rename it if it is one of these")


def _open_folder(folder: Path, said: Mapping[str, Any]) -> tuple[nn.Module, ModelFacts]:
    backbone, config = load_model(folder, any_colours=True)
    where = str(folder / CONFIG)
    colours = Colours.read(config, where)
    _agree(where, {key: config[key] for key in ("network", "image_size", "embedding_size")} | colours.to_dict(), said)
    training_data = _training_data(config.get("training_data", "unknown"), said)
    notes = _colour_notes(colours, where)
    return _found(folder, "folder", config["network"], backbone, colours, training_data, notes, config["options"])


def _open_state_dict(path: Path, said: Mapping[str, Any]) -> tuple[nn.Module, ModelFacts]:
    tensors, notes = read_state_dict(path)
    size = said.get("image_size")
    _check_image_size(size)
    backbone = recognise_network(path, tensors, said.get("network"), size)
    _agree(str(path), {"embedding_size": backbone.embedding_size}, said)
    name = str(backbone.name)
    if counters := sum(key not in tensors for key in backbone.state_dict()):
        notes = (*notes, f"set {counters} counters of BatchNorm (num_batches_tracked), which it lacks, to 0")
    if "network" not in said:
        notes = (f"recognised as {name} by the names and shapes of its {len(tensors)} tensors", *notes)
    colours, more = _said_colours(path, "a state dict", said, "what arcface_torch trains with")
    return _found(path, "state dict", name, backbone, colours, _training_data("unknown", said), (*notes, *more))


def _open_onnx(path: Path, said: Mapping[str, Any], device: str) -> tuple[nn.Module, ModelFacts]:
    facts = OnnxFacts(path)
    size = facts.image_size if facts.image_size is not None else said.get("image_size")
    if size is None:
        raise UserError(f"{path} takes images of any size: say which it was trained on, image_size=112")
    _check_image_size(size)
    _agree(str(path), {"image_size": size}, said)
    _agree(f"{path}, {facts.stated_by}", facts.stated, said)
    colours, notes = _said_colours(
        path, "the file", said, "what the insightface package feeds", facts.stated, facts.stated_by
    )
    model, metadata = OnnxModel(facts, size, device), facts.metadata
    _agree(str(path), {"embedding_size": model.embedding_size}, said)
    if "network" in metadata:
        _agree(f"{path}, its metadata", {"network": metadata["network"]}, said)
    stated: Any = metadata.get("training_data", "unknown")
    if "training_data_licence" in metadata:
        stated = {"root": stated, "licence": metadata["training_data_licence"]}
        if "start_weights" in metadata:
            stated["start_weights"] = metadata["start_weights"]
    if facts.batch is not None:
        notes = (*notes, f"the file runs batches of {facts.batch} only: images are fed in such batches")
    network = metadata.get("network", model.name)
    module, found = _found(path, "ONNX", network, model, colours, _training_data(stated, said), notes)
    return module, replace(found, operating_point=metadata.get(METADATA, ""), external=facts.external)


def _found(
    path: Path,
    kind: str,
    network: str,
    model: nn.Module,
    colours: Colours,
    training_data: Any,
    notes: tuple[str, ...],
    options: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, ModelFacts]:
    """Return the model as it is fed, and its facts."""
    sizes = cast(int, model.embedding_size), cast(int, model.image_size)
    facts = ModelFacts(path, kind, network, options or {}, *sizes, colours, training_data, notes)
    return fed_as(model, colours).eval(), facts


def _said_colours(
    path: Path, what: str, said: Mapping[str, Any], habit: str, stated: Mapping[str, Any] | None = None, by: str = ""
) -> tuple[Colours, tuple[str, ...]]:
    """Return the colours that the model states, else the caller, else ours; and a note of what was assumed."""
    words = {key: said[key] for key in COLOUR_KEYS if key in said}
    Colours.read({**OURS.to_dict(), **words}, "the statements")
    known = {**words, **(stated or {})}
    colours = Colours.read({**OURS.to_dict(), **known}, str(path))
    missing = [key for key in COLOUR_KEYS if key not in known]
    notes = _colour_notes(colours, " and ".join([by] * bool(stated) + ["you"] * bool(words))) if known else ()
    if missing:
        notes = (
            *notes,
            f"{what} does not state its {', '.join(missing)}: assumed {colours}, {habit}; if it was trained otherwise its metrics are wrong, "
            f"say so with {missing[0]}=...",
        )
    return colours, notes


def _colour_notes(colours: Colours, where: str) -> tuple[str, ...]:
    return () if colours == OURS else (f"fed with {colours}, as stated by {where}; attfc's own models take {OURS}",)


def _agree(where: str, stated: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Refuse what the caller says otherwise than the model."""
    for key, value in stated.items():
        given = said.get(key, value)
        one, other = (each if isinstance(each, list) else [each] * 3 for each in (value, given))
        if one != other:
            raise UserError(f"{where}: {key} is {value!r}, you said {given!r}: leave it out, or correct the model")


def _check_image_size(size: Any) -> None:
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 4_096):
        raise UserError(f"image_size {str(size)[:80]!r} is not a whole number of pixels from 1 to 4096")


def _training_data(stated: Any, said: Mapping[str, Any]) -> Any:
    """Return what the model was trained on, with the caller's words where the model is silent."""
    known = stated if isinstance(stated, Mapping) else {"root": stated}
    silent = (None, "", "unknown")
    root, licence = (
        said.get(word, "unknown") if known.get(key) in silent else known[key]
        for key, word in (("root", "training_data"), ("licence", "licence"))
    )
    if licence in silent and known is not stated:
        return root
    behind = {key: known[key] for key in ("start_weights", "teacher") if key in known}
    return {"root": root, "licence": licence, **behind}
