"""A trained backbone for the world: `model.safetensors` beside `config.json`.

The weights are plain safetensors under the backbone's own state_dict names (arcface_torch's, where the network is one of theirs); the
configuration says what goes in (size, colour order, mean and deviation), what comes out, and under which licence the training data was.
Both files may come from a stranger: nothing in them is executed, sizes are bounded, and the shapes are compared on the meta device before
any memory is taken. Each file is replaced by one rename, the weights first: a crash leaves the old or the new weights, never half of them.
"""

import json
import math
import re
import shlex
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from attfc.backbones import create_backbone
from attfc.backbones.shapes import shapes_only
from attfc.errors import UserError
from attfc.files import read_json, replacing
from attfc.training.checkpoints.checkpoint import latest_checkpoint
from attfc.training.checkpoints.weights import open_weights
from attfc.training.interruption import resume_command
from attfc.typing import Json

__all__ = ["check_colours", "load_model", "model_folder", "save_model", "to_save"]

WEIGHTS, CONFIG = "model.safetensors", "config.json"
MAX_CONFIG_BYTES = 2**20
COLOURS: Json = {"colour_order": "RGB", "mean": 127.5, "std": 127.5}
NETWORK = re.compile(r"(timm:)?[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
LARGEST_EMBEDDING, LARGEST_IMAGE, LARGEST_COLOUR = 65_536, 4_096, 1e6


def save_model(folder: Path, backbone: nn.Module, config: Mapping[str, Any] | None = None) -> Path:
    """Write `backbone` to ``folder/model.safetensors`` and ``folder/config.json``.

    Args:
        folder: made if missing; a model that is there is replaced.
        backbone: of `create_backbone`; needs its attributes `name`, `embedding_size` and `image_size`. Behind a conversion of colours
            (`attfc.load(...).module`) it is saved without it, and the colours it wants go into config.json.
        config: more for config.json, JSON-able: "network" and "options" for `create_backbone` (default: the backbone's name, none) and
            "training_data" (what it was trained on, and its licence). "colour_order", "mean" and "std" where they are not ours
            (`check_colours`). Anything else.

    Returns:
        The folder.

    Raises:
        UserError: it could not be written; a model that was there stands.
    """
    folder = Path(folder)
    backbone, written = to_save(backbone, config)
    text = json.dumps(written, indent=2, ensure_ascii=False) + "\n"
    # Copies: tensors that share memory (tied weights) stand for themselves in the file.
    tensors = {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in backbone.state_dict().items()
        if isinstance(value, Tensor)
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The weights take their place first.
        with replacing(folder / CONFIG) as configuration, replacing(folder / WEIGHTS) as weights:
            configuration.write(text.encode())
            weights.write(save(tensors, {"format": "pt"}))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot save the model to {folder}: {reason}; make room or permission there") from error
    return folder


def to_save(backbone: nn.Module, config: Mapping[str, Any] | None) -> tuple[nn.Module, Json]:
    """Return the network whose weights `save_model` would write, and config.json; asked before a training too, whose model must be savable.

    Raises:
        UserError: no model can be of that, such as an embedding of 100,000 numbers.
    """
    backbone = getattr(backbone, "_orig_mod", backbone)  # what torch.compile(module) wraps
    if colours := getattr(backbone, "colours", None):  # `FedAs`: the network behind it is saved, and says what it wants
        backbone, config = cast(nn.Module, backbone.model), {**(config or {}), **colours.to_dict()}
    written = {
        "network": str(getattr(backbone, "name", "")),
        "options": {},
        "training_data": "unknown",
        **COLOURS,
        **(config or {}),
        "embedding_size": int(getattr(backbone, "embedding_size", 0)),
        "image_size": int(getattr(backbone, "image_size", 0)),
        "attfc": metadata.version("attfc"),
    }
    _check_config(written, "the model", any_colours=True)
    return backbone, written


def load_model(folder: Path, *, any_colours: bool = False) -> tuple[nn.Module, Json]:
    """Build the backbone of ``folder/config.json`` and fill it from ``folder/model.safetensors``.

    Args:
        folder: with both files, or a run's, whose `model/` is taken.
        any_colours: take a model that wants other colours than RGB, ``(x - 127.5) / 127.5``; the caller feeds it as its configuration says.

    Returns:
        The backbone on the CPU, in eval mode, float32: (B, 3, image_size, image_size) RGB, ``(x - 127.5) / 127.5`` -> (B, embedding_size);
        and the configuration. No random generator is moved.

    Raises:
        UserError: a file is missing, damaged or too large, the configuration asks for what this attfc lacks, or the weights are of
            another network. The message names the file, both values and the tensor.
    """
    folder = model_folder(Path(folder))
    path, weights = folder / CONFIG, folder / WEIGHTS
    if not path.exists():
        raise UserError(f"{path} is missing: a model is a folder with {WEIGHTS} and {CONFIG}")
    config = read_json(path, MAX_CONFIG_BYTES, "no model of attfc has that", damaged="is not JSON")
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a JSON object")
    _check_config(config, str(path), any_colours)
    network = str(config["network"])
    # Weights come from the file: a network that started from timm's must not be downloaded again.
    options = {name: value for name, value in config["options"].items() if name != "pretrained"}
    sizes = {"embedding_size": config["embedding_size"], "image_size": config["image_size"]}
    if not weights.is_file():
        raise UserError(f"{weights} is missing: a model is a folder with {WEIGHTS} and {CONFIG}")
    try:
        with shapes_only():
            expected = create_backbone(network, **sizes, **options).state_dict()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: network {network!r} cannot be built with {options}: {error}") from None
    with open_weights(weights) as file:
        _check_shapes(weights, network, expected, {name: file.get_slice(name) for name in file.keys()})  # noqa: SIM118
        tensors = {name: file.get_tensor(name) for name in expected}
    with torch.random.fork_rng(devices=[]):
        backbone = create_backbone(network, **sizes, **options)
    backbone.load_state_dict(tensors, strict=True)
    return backbone.eval(), config


def model_folder(folder: Path) -> Path:
    """Return the folder that holds a model: `folder` itself, or `model/` of a run.

    Raises:
        UserError: a run that has saved no model yet.
    """
    if (folder / "model").is_dir() and not (folder / CONFIG).is_file():
        return folder / "model"
    if (folder / "config.yaml").is_file() and not (folder / CONFIG).is_file():
        best = f", or take its best evaluation so far, {folder / 'best'}" if (folder / "best").is_dir() else ""
        if latest_checkpoint(folder / "checkpoints") is None and not best:
            raise UserError(
                f"{folder} is a run without a model or a checkpoint: start it again with attfc train {shlex.quote(str(folder / 'config.yaml'))}"
            )
        raise UserError(f"{folder} is a run that has saved no model yet: finish it with {resume_command(folder)}{best}")
    return folder


def check_colours(values: Mapping[str, Any], where: str) -> None:
    """Raise UserError unless `values` hold a "colour_order" (RGB or BGR), a "mean" and a "std": a number or one for each channel, std > 0."""
    if values["colour_order"] not in ("RGB", "BGR"):
        raise UserError(f"{where}: colour_order is {_short(values['colour_order'])}: use 'RGB' or 'BGR'")
    for name in ("mean", "std"):
        value = values[name]
        numbers = value if isinstance(value, list | tuple) and len(value) == 3 else [value]
        for number in numbers:
            sound = isinstance(number, int | float) and not isinstance(number, bool) and abs(number) <= LARGEST_COLOUR
            if not sound or (name == "std" and number <= 0):
                kind = "numbers above 0" if name == "std" else "numbers"
                raise UserError(
                    f"{where}: {name} is {_short(value)}: use one or three {kind}, in units of pixel values 0 to 255"
                )


def _check_config(config: Json, where: str, any_colours: bool) -> None:
    for name in ("network", "embedding_size", "image_size", *COLOURS):
        if name not in config:
            raise UserError(f"{where} has no {name!r}")
    network = config["network"]
    if not isinstance(network, str) or not NETWORK.fullmatch(network):
        raise UserError(f"{where}: network {_short(network)} is not the name of a network")
    for name, largest in (("embedding_size", LARGEST_EMBEDDING), ("image_size", LARGEST_IMAGE)):
        value = config[name]
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
            raise UserError(f"{where}: {name} {_short(value)} is not a whole number from 1 to {largest}")
    if any_colours:
        check_colours(config, where)
    for name, only in ({} if any_colours else COLOURS).items():
        if config[name] != only or isinstance(config[name], bool):
            raise UserError(
                f"{where}: {name} is {_short(config[name])}, this attfc feeds every network RGB as (x - 127.5) / 127.5: use {only!r}"
            )
    options = config.setdefault("options", {})
    if not isinstance(options, dict) or len(options) > 64:
        raise UserError(f"{where}: options is not a JSON object of at most 64 entries")
    for name, value in options.items():
        plain = isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
        if not plain or not name.isidentifier() or name in ("name", "embedding_size", "image_size"):
            raise UserError(f"{where}: option {name[:80]!r} = {_short(value)} is not one a network takes")


def _check_shapes(path: Path, network: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    fits = f"{path} does not fit network {network!r} of {CONFIG}"
    for name, tensor in expected.items():
        if name not in found:
            raise UserError(f"{fits}: it has no {name!r}; is it of another network?")
        shape = tuple(found[name].get_shape())
        if shape != tuple(tensor.shape):
            raise UserError(f"{fits}: {name!r} is {shape}, the network needs {tuple(tensor.shape)}")
        if found[name].get_dtype().startswith(("F", "BF")) != tensor.dtype.is_floating_point:
            raise UserError(f"{fits}: {name!r} is {found[name].get_dtype()}, the network needs {tensor.dtype}")
    for name in found:
        if name not in expected:
            raise UserError(f"{fits}: it has {name[:80]!r}, which the network lacks; is it of another network?")


def _short(value: object) -> str:
    return repr(value)[:80]
