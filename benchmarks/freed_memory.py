"""What a processor pays for memory that is given back and asked for again: training passes, with glibc as it is and told to keep what is freed.

glibc takes blocks above 32 MiB from the system and gives them back when they are freed; the next step's first touch of each of their pages is a
page fault. `keep` sets MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_=17179869184. Each measurement is a process of its own; all take turns.

    python benchmarks/freed_memory.py [--threads 2] [--repeats 3]

Writes results/freed_memory.json: per case and setting seconds, page faults, share of system time, peak MiB; for networks also seconds in
convolutions and in BatchNorm, by torch's profiler.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from common import write_result

SETTINGS: dict[str, dict[str, str]] = {
    "plain": {},
    "keep": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 << 30)},
}
CASES = [
    *(f"{name} {dtype} {batch}" for name in ("r6_tiny", "r10_tiny") for batch in (128, 512) for dtype in ("float32", "bfloat16")),
    "full_fc float32 128",
    "partial_fc float32 128",
]  # fmt: skip
ROWS = 280_000  # of the heads, in a step


def network(name: str, dtype: str, batch: int) -> Callable[[], None]:
    """Forward and backward of a network."""
    import torch

    from attfc.backbones import create_backbone
    from attfc.precision import autocast

    model = create_backbone(name).to(memory_format=torch.channels_last)
    size = int(model.image_size)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    weights = torch.randn(batch, 512) / batch

    def passes() -> None:
        with autocast(images.device, None if dtype == "float32" else torch.bfloat16):
            embeddings = model(images)
        (embeddings * weights).sum().backward()
        model.zero_grad()

    return passes


def head(name: str, batch: int) -> Callable[[], None]:
    """Forward and backward of a head with as many rows in a step."""
    import torch

    from attfc import CosFace, FullFC, PartialFC

    margin = CosFace(64.0, 0.4)
    made = FullFC(512, ROWS, margin) if name == "full_fc" else PartialFC(512, 10 * ROWS, margin, 0.1)
    embeddings, labels = torch.randn(batch, 512), torch.randint(0, ROWS, (batch,))

    def passes() -> None:
        made(embeddings.requires_grad_(), labels).backward()
        made.weight.grad = embeddings.grad = None

    return passes


def measured(case: str, threads: int) -> dict[str, float]:
    """In this process: medians of three passes after two."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    name, dtype, batch = case.split()
    of_head = name.endswith("_fc")
    passes = head(name, int(batch)) if of_head else network(name, dtype, int(batch))
    rows = []
    for _ in range(5):
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        passes()
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        system = (after.ru_stime - before.ru_stime) / busy
        rows.append({"seconds": seconds, "page_faults": after.ru_minflt - before.ru_minflt, "system_share": system})
    found = {key: statistics.median(row[key] for row in rows[2:]) for key in rows[0]}
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if not of_head:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            passes()
        for kind in ("convolution", "batch_norm"):
            of_kind = [row.self_cpu_time_total for row in profile.key_averages() if kind in row.key]
            found[f"{kind}_seconds"] = sum(of_kind) / 1e6
    return found


def main() -> None:
    """Measure all cases and settings in turns, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help="used by this script on itself")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured(options.child, options.threads)))
        return
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        for case in CASES:
            for setting, words in SETTINGS.items():
                command = [sys.executable, __file__, "--child", case, "--threads", str(options.threads)]
                threads = {
                    "OMP_NUM_THREADS": str(options.threads),
                    "GOMP_SPINCOUNT": "10000",
                }  # the latter as `attfc` sets it
                env = {**os.environ, **words, **threads}
                said = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
                found.setdefault((case, setting), []).append(json.loads(said.splitlines()[-1]))
    results = []
    for (case, setting), rows in found.items():
        name, dtype, batch = case.split()
        row = {key: statistics.median(each[key] for each in rows) for key in rows[0]}
        results.append({"what": name, "dtype": dtype, "batch": int(batch), "setting": setting, **row})
        print(f"{case:24}{setting:6}{int(batch) / row['seconds']:7.0f} images/s  {row['page_faults']:9,.0f} faults")
    print(write_result("freed_memory", {"threads": options.threads, "repeats": options.repeats, "rows": ROWS}, results))


if __name__ == "__main__":
    main()
