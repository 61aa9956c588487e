"""A model in the layout of the Hugging Face hub: model.safetensors, config.json and README.md, the model card.

The card opens with the YAML that the hub reads, then says what goes in and comes out, how to load it, what it was trained on, which figures
it reached (from the run's evaluation.json, if there is one) and what nobody has measured. Loading needs no network and executes nothing.
"""

import json
from importlib import metadata
from pathlib import Path

import yaml
from torch import nn

from attfc.errors import UserError
from attfc.evaluation.operating_point.point import OperatingPoint
from attfc.export.face_model import load
from attfc.export.model_inputs import ModelFacts
from attfc.export.origins import licences, start_weights_text, training_data_of
from attfc.templates import filled_in
from attfc.typing import Json

__all__ = ["from_pretrained", "model_card"]

MOST_JSON = 2**24
FIGURES = {
    "accuracy": "accuracy, 10 folds",
    "auc": "area under the ROC",
    "eer": "equal error rate",
    "rank_one": "rank-1 identification",
}


def from_pretrained(folder: Path | str) -> nn.Module:
    """Load a model from a folder of `attfc export --format hf`, or of a run.

    Args:
        folder: on this machine; nothing is downloaded.

    Returns:
        The model on the CPU, in eval mode: (B, 3, image_size, image_size) float32 RGB, ``(x - 127.5) / 127.5`` -> (B, embedding_size); with
        attributes `name`, `image_size` and `embedding_size`. Weights load strictly: every name and shape must fit.

    Raises:
        UserError: no such folder, or what is in it is damaged, hostile or of another network.
    """
    if not Path(folder).is_dir():
        raise UserError(
            f"{folder} is not a folder here: attfc downloads nothing; fetch it first (hf download NAME --local-dir FOLDER), then give the folder"
        )
    return load(folder, device="cpu").module


def model_card(facts: ModelFacts, precision: str, point: OperatingPoint | None = None) -> str:
    """Return the text of README.md for a model, with its operating point if it has one."""
    root, licence = map(_line, training_data_of(facts.training_data))
    front = {
        "library_name": "attfc",
        "pipeline_tag": "image-feature-extraction",
        # The hub knows only names of its own list; what the weights may be used for follows from the data's terms.
        "license": "other",
        "license_name": _line(licences(facts.training_data)),
        "tags": ["face-recognition", "face-verification", "image-embedding", "arcface", _line(facts.network)],
    }
    evaluation = _evaluation(facts.path)
    return filled_in(
        Path(__file__).with_name("model_card.md"),
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        facts=facts,
        network=_line(facts.network),
        precision=precision,
        root=root,
        licence=licence,
        started=_line(start_weights_text(facts.training_data) or ""),
        version=metadata.version("attfc"),
        images=evaluation.get("images", 0),
        pair_source=_line(evaluation.get("pair_source")),
        point=point,
        measured_on=_line(point.store if point else ""),
        figures=[(name, evaluation[key]) for key, name in FIGURES.items() if isinstance(evaluation.get(key), float)],
    )


def _evaluation(folder: Path) -> Json:
    """Return a run's evaluation.json, beside the model's folder; empty if there is none that can be read."""
    try:
        with (folder.parent / "evaluation.json").open("rb") as file:
            found = json.loads(file.read(MOST_JSON))
    except (OSError, ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def _line(value: object) -> str:
    """Return `value` as one line that cannot leave its cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")[:300]
