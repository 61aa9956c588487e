"""The state of every random generator, as tensors and plain values that a checkpoint can hold without pickle.

Python's `random`, numpy's legacy global generator, torch on the processor and on every device of the current accelerator. Generators that
somebody made for themselves are theirs to save; the loader needs none (its choices are a function of seed, epoch and position).
"""

import random
from typing import Any

import numpy as np
import torch

__all__ = ["rng_state", "set_rng_state"]


def rng_state() -> dict[str, Any]:
    """Return the state of all global generators: tensors and plain values only."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": {"version": version, "numbers": torch.tensor(numbers, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "kind": str(kind),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "accelerator": None,
    }
    device_type = _accelerator()
    if device_type is not None:
        module = torch.get_device_module(device_type)
        devices = range(torch.accelerator.device_count())
        state["accelerator"] = {
            "type": device_type,
            "devices": [module.get_rng_state(index).cpu() for index in devices],
        }
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put all global generators back to a state of `rng_state`.

    A checkpoint of another kind or number of accelerators restores those that both have.
    """
    python, numbers = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["numbers"].tolist()), python["gauss"]))
    np.random.set_state(
        (
            numbers["kind"],
            numbers["keys"].cpu().numpy().astype(np.uint32),
            numbers["position"],
            numbers["has_gauss"],
            numbers["cached"],
        )
    )
    torch.set_rng_state(state["torch"].cpu())
    device_type, saved = _accelerator(), state["accelerator"]
    if device_type is not None and saved is not None and saved["type"] == device_type:
        module = torch.get_device_module(device_type)
        for index, device_state in enumerate(saved["devices"][: torch.accelerator.device_count()]):
            module.set_rng_state(device_state.cpu(), index)


def _accelerator() -> str | None:
    """Return the type of the accelerator that is present and keeps a random state, without starting it where there is none."""
    if not torch.accelerator.is_available():
        return None
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or not hasattr(torch.get_device_module(accelerator.type), "get_rng_state"):
        return None
    return accelerator.type
