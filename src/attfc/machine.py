"""What machine this is: its memory, and with the versions of the packages what a record of a run says of both."""

import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["available_memory", "environment"]

DISTRIBUTIONS = ("attfc", "torch", "numpy", "pillow", "pydantic", "safetensors", "matplotlib")


def available_memory(swap: bool = False) -> int | None:
    """Return the bytes of host memory that a program could take now; None where the system does not say (not Linux).

    Args:
        swap: with the free swap space.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        kilobytes = {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}
        return (kilobytes["MemAvailable"] + (kilobytes["SwapFree"] if swap else 0)) * 1024
    except (OSError, ValueError, IndexError, KeyError):
        return None


def environment(device: "torch.device") -> dict[str, Any]:
    """Versions and machine, as `environment.json` keeps them."""
    import torch

    versions = {name: metadata.version(name) for name in DISTRIBUTIONS}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "machine": {
            "platform": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "device": str(device)
            if device.type == "cpu"
            else torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else device.type,
            "threads": torch.get_num_threads(),
        },
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
