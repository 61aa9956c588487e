"""Saved configurations of earlier versions, as this one reads them: the only place that knows what has changed.

A run's `config.yaml` names every option. One without `eval.share` is of version 0.1, which
- kept a container with a slot for everyone, and no table of centers, where the configuration said a table and a container ratio of 1;
- gave vision transformers a drop path rate of 0.05, and masked 5 % of the tokens of `vit_b` and `vit_l`, where no option said otherwise.
"""

from collections.abc import Collection
from typing import Any

__all__ = ["translate"]

OLD_VIT = {
    "vit_t": {"drop_path": 0.05, "mask_ratio": 0.0},
    "vit_s": {"drop_path": 0.05, "mask_ratio": 0.0},
    "vit_b": {"drop_path": 0.05, "mask_ratio": 0.05},
    "vit_l": {"drop_path": 0.05, "mask_ratio": 0.05},
}


def translate(values: dict[str, Any], tensors: Collection[str] = ()) -> dict[str, Any]:
    """Return the values of a saved run's `config.yaml` as this version would have saved them.

    Args:
        values: of the file; not changed.
        tensors: names of the tensors in the run's newest checkpoint.
    """
    if not isinstance(values.get("eval"), dict) or "share" in values["eval"]:
        return values
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    backbone = values.get("backbone", {})
    if backbone.get("name") in OLD_VIT:
        backbone["options"] = OLD_VIT[backbone["name"]] | (backbone.get("options") or {})
    if any(name.startswith("head/container.") for name in tensors):
        values.setdefault("negatives", {})["source"] = "container"
        if not any(name.startswith(("head/table.", "head/memory.")) for name in tensors):
            values.setdefault("center", {})["table"] = "none"
    return values
