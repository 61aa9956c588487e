"""How long OpenMP threads should wait actively: training passes alone and beside another busy process, by GOMP_SPINCOUNT.

A thread that waits for the others first spins. That saves a wake-up, but on a machine with other work it takes the processor
from the very thread it waits for. The command line sets the value that this script showed to be best (`attfc.cli`), unless the
user has set GOMP_SPINCOUNT or OMP_WAIT_POLICY. Each measurement is a process of its own; all take turns.

    python benchmarks/waiting_threads.py [--repeats 5]
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from common import write_result

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "1,000": {"GOMP_SPINCOUNT": "1000"},
    "10,000": {"GOMP_SPINCOUNT": "10000"},
    "100,000": {"GOMP_SPINCOUNT": "100000"},
}


def passes_per_second(batch_size: int = 64, passes: int = 10) -> float:
    """In this process: images/s of forward and backward passes of r10_tiny, median over passes."""
    import torch

    import attfc

    torch.set_num_threads(os.cpu_count() or 1)
    network = attfc.create_backbone("r10_tiny").to(memory_format=torch.channels_last)
    images = torch.randn(batch_size, 3, 56, 56).contiguous(memory_format=torch.channels_last)
    seconds = []
    for _ in range(passes + 2):
        start = time.perf_counter()
        network(images).sum().backward()
        seconds.append(time.perf_counter() - start)
    return batch_size / statistics.median(seconds[2:])


def measured(setting: dict[str, str]) -> float:
    """`passes_per_second` in a child with these environment variables."""
    clean = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, __file__, "--child"]
    return float(subprocess.run(command, env=clean | setting, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure all settings in turns, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", action="store_true", help="used by this script on itself")
    options = parser.parse_args()
    if options.child:
        print(passes_per_second())
        return
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.repeats):
        for load in ("alone", "beside a busy process"):
            busy = None if load == "alone" else subprocess.Popen([sys.executable, "-c", "while True: pass"])
            try:
                for name, setting in SETTINGS.items():
                    found.setdefault((load, name), []).append(measured(setting))
            finally:
                if busy is not None:
                    busy.kill()
                    busy.wait()
    results = [
        {
            "load": load,
            "setting": name,
            "images_per_second": statistics.median(values),
            "times_default": statistics.median(a / b for a, b in zip(values, found[load, "default"], strict=True)),
        }
        for (load, name), values in found.items()
    ]
    for result in results:
        print(result)
    print(write_result("waiting_threads", {"network": "r10_tiny", "batch_size": 64, **vars(options)}, results))


if __name__ == "__main__":
    main()
