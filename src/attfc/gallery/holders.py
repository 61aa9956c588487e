"""Where else a person may be: runs whose data hold one of the person's photos, and models that were exported from them.

What can be known is what was written down: a run's `config.yaml` names its data, a model's `config.json` or ONNX metadata the data of its training.
Packed sets, conversions, backups and copies are not found. Reads no image; opens no network.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attfc.errors import UserError
from attfc.export.onnx_model import OnnxFacts
from attfc.export.origins import training_data_of
from attfc.files import read_json
from attfc.run.saved import saved_configuration, with_found_data
from attfc.training.model_files import CONFIG

__all__ = ["holders"]

LARGEST = 2**20


def holders(sources: Iterable[str], folder: Path) -> dict[Path, str]:
    """Return the runs and models below a folder that were made from data with one of the files in it, each with its data.

    Args:
        sources: paths of a person's images, as `Removed` has them.
        folder: of runs and exports.
    """
    found: dict[Path, str] = {}
    asked = [os.path.realpath(source) for source in sources]
    for path, roots in _made_from(folder):
        for root in roots:
            whole = os.path.realpath(os.path.expanduser(root))
            if any(source == whole or source.startswith((whole + os.sep, whole + ": ")) for source in asked):
                found.setdefault(path, root)
    return found


def _made_from(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    for path in sorted(folder.rglob("*")):
        try:
            if path.name == "config.yaml":
                config = with_found_data(saved_configuration(path.parent), path.parent)[0]
                roots = (config.data.root, *(one.root for one in config.data.sources), config.eval.root)
                yield path.parent, [root for root in roots if root]
            elif path.name == CONFIG and path.parent.name not in ("model", "best"):
                stated: Any = read_json(path, LARGEST, "no model of attfc has that")
                yield path.parent, [training_data_of(stated.get("training_data"))[0]]
            elif path.suffix == ".onnx":
                yield path, [OnnxFacts(path).metadata.get("training_data", "")]
        except (UserError, OSError, AttributeError):  # not one of ours, damaged, or without its data
            continue
