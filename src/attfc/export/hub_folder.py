"""A model in the layout of the Hugging Face hub: model.safetensors, config.json and README.md, the model card.

The card opens with the YAML that the hub reads, then says what goes in and comes out, how to load it, what it was trained on, which figures
it reached (from the run's evaluation.json, if there is one) and what nobody has measured. Loading needs no network and executes nothing.
"""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from attfc.errors import UserError
from attfc.export.face_model import load
from attfc.export.model_inputs import ModelFacts
from attfc.export.origins import licences, start_weights_text, training_data_of

__all__ = ["from_pretrained", "model_card"]

MOST_JSON = 2**24


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
            f"{folder} is no folder here: attfc downloads nothing; fetch it first (hf download NAME --local-dir FOLDER), then give the folder"
        )
    return load(folder, device="cpu").module


def model_card(facts: ModelFacts, precision: str) -> str:
    """Return the text of README.md for a model."""
    root, licence = map(_line, training_data_of(facts.training_data))
    started = start_weights_text(facts.training_data)
    front = {
        "library_name": "attfc",
        "pipeline_tag": "image-feature-extraction",
        # The hub knows only names of its own list; what the weights may be used for follows from the data's terms.
        "license": "other",
        "license_name": _line(licences(facts.training_data)),
        "tags": ["face-recognition", "face-verification", "image-embedding", "arcface", _line(facts.network)],
    }
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {_line(facts.network)}: a face embedding network",
        "",
        "| | |",
        "| --- | --- |",
        f"| in | {facts.image_size} x {facts.image_size} pixels, {facts.colours}; five landmarks warped to the ArcFace template |",
        f"| out | {facts.embedding_size} numbers per image; compare two by their cosine |",
        f"| weights | {precision}, safetensors |",
        f"| trained on | {root} |",
        f"| licence of the training data | {licence} |",
        *([f"| started from | {_line(started)} |"] if started else []),
        f"| written by | attfc {metadata.version('attfc')} |",
        "",
        "```python",
        "import attfc",
        "",
        'model = attfc.load("FOLDER")  # this folder; nothing is downloaded',
        f'embeddings = model.embed(["a.jpg", "b.jpg"])  # aligned faces -> (2, {facts.embedding_size}), unit length',
        "cosine = embeddings[0] @ embeddings[1]",
        "# model.module is the network: float32 RGB, (x - 127.5) / 127.5,",
        f"# (B, 3, {facts.image_size}, {facts.image_size}) -> (B, {facts.embedding_size})",
        "```",
        "",
        "## Figures",
        "",
        *_figures(facts.path),
        "",
        "## Before it is used on people",
        "",
        "- Measure it on the people and cameras it will meet; error rates differ between groups of people, and this card states them for none.",
        "- An embedding identifies a person: it is biometric data, and in many places the law treats it as such.",
        "- A score is no proof of identity; choose the threshold by the rate of false accepts that the use allows.",
        "",
    ]
    return "\n".join(lines)


def _figures(folder: Path) -> list[str]:
    """Return the rows of a run's evaluation.json (beside the model's folder), or a line that says there are none."""
    try:
        with (folder.parent / "evaluation.json").open("rb") as file:
            found: Any = json.loads(file.read(MOST_JSON))
    except (OSError, ValueError, RecursionError):
        found = None
    names = {
        "accuracy": "accuracy, 10 folds",
        "auc": "area under the ROC",
        "eer": "equal error rate",
        "rank_one": "rank-1 identification",
    }
    rows = []
    if isinstance(found, dict):
        rows = [
            f"| {title} | {found[name]:.4f} |" for name, title in names.items() if isinstance(found.get(name), float)
        ]
    if not rows:
        return ["None were found beside the model; `attfc evaluate` measures them."]
    pairs = found.get("pair_source")
    source = f"On people it was not trained on ({found.get('images', 0):,} images; pairs: {_line(pairs)}):"
    return [source, "", "| figure | value |", "| --- | --- |", *rows]


def _line(value: object) -> str:
    """Return `value` as one line that cannot leave its cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")[:300]
