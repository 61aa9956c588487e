"""What every benchmark shares: a timer, a record of the machine, a JSON beside the scripts.

`write_result("container_softmax", config, results)` writes benchmarks/results/container_softmax.json: the machine, the
processor, versions and commit, the configuration and the figures. A figure on a busy or unknown machine means little
alone: time the alternatives in turns (`median_seconds_each`) and report their ratio.
"""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

__all__ = ["environment", "median_seconds", "median_seconds_each", "write_result"]

RESULTS = Path(__file__).resolve().parent / "results"


def median_seconds(fn: Callable[[], object], repeats: int = 5, warmup: int = 1) -> float:
    """Median wall time of `fn()` in seconds over `repeats` calls, after `warmup` calls that do not count."""
    return median_seconds_each({"fn": fn}, repeats, warmup)["fn"]


def median_seconds_each(
    fns: dict[str, Callable[[], object]],
    repeats: int = 5,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median time of each function, called in turns so that a busy moment hits all of them alike.

    `clock` = time.process_time counts processor seconds instead of wall time, for a machine that others use too.
    """
    seconds: dict[str, list[float]] = {name: [] for name in fns}
    for turn in range(warmup + repeats):
        for name, fn in fns.items():
            _synchronize()
            start = clock()
            fn()
            _synchronize()
            if turn >= warmup:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def environment() -> dict[str, Any]:
    """Where a figure was measured: host system, processor, cores, accelerator, versions, commit, load."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "commit_dirty": bool(_git("status", "--porcelain", "--", "src", "benchmarks/*.py")),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        **_accelerator(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write_result(name: str, config: dict[str, Any], results: Any, folder: Path = RESULTS) -> Path:
    """Write `results` (anything JSON can hold) with configuration and environment to <folder>/<name>.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    record = {"name": name, "environment": environment(), "config": config, "results": results}
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path


def _accelerator() -> dict[str, Any]:
    """Name of the card, its memory, and what lies between it and torch; `accelerator` is None without one."""
    if not torch.cuda.is_available():
        return {"accelerator": None}
    return {
        "accelerator": torch.cuda.get_device_name(),
        "accelerator_gib": torch.cuda.get_device_properties(0).total_memory / 2**30,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=RESULTS.parent.parent, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
