"""Predicted against measured peak memory, and time, of real training steps on the processor.

The measure is the trainer itself on synthetic faces, in a child process: what its resident peak (without mapped files) rises over what it
held after imports, and the median time of a step after a warm-up, decoding left out. Twice: with an allocator that gives freed memory
back at once, which is what the plan speaks of, and as it is. The prediction is that of `attfc plan`, in another
process, so that neither warms the other. Target: memory within 10 %.
"""

import argparse
import contextlib
import ctypes
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, environment, write_result

from attfc.lab.children import in_child
from attfc.lab.head_cell import ResidentPeak, warm_up

TINY = ["backbone.name=r10_tiny"]
SLOTS = [
    *("negatives=recent_centers", "negatives.policy=unique"),
    "negatives.initial=random",
]  # full, as after many steps
KEYS = ["center=key_attention", "center.share=0.6"]
CONTAINER = ["negatives.count=100000", *KEYS, *SLOTS]
CASES = {
    "r10_tiny x 128, attfc": [*TINY, "batch_size=128", *CONTAINER],
    "r10_tiny x 128, attfc, no key passes": [
        *TINY,
        "batch_size=128",
        "negatives.count=100000",
        *SLOTS,
    ],
    "r10_tiny x 128, attfc, no key passes, table": [*TINY, "batch_size=128", "negatives.count=20000"],
    "r10_tiny x 128, dcq": [
        "backbone.name=r10_tiny",
        "batch_size=128",
        "head=dcq",
        "head.count=100000",
        "head.initial=random",
    ],
    "r10_tiny x 128, dcp": [
        "backbone.name=r10_tiny",
        "batch_size=128",
        "head=dcp",
        "head.count=100000",
        "head.initial=random",
    ],
    "r10_tiny x 128, partial_fc": ["backbone.name=r10_tiny", "batch_size=128", "head=partial_fc"],
    "r10_tiny x 128, full_fc": ["backbone.name=r10_tiny", "batch_size=128", "head=full_fc"],
    "r10_tiny x 512, attfc": [*TINY, "batch_size=512", *CONTAINER],
    "mbf x 64, attfc bfloat16 rows": [
        *(
            "backbone.name=mbf",
            "batch_size=64",
            "negatives.count=200000",
            "negatives.dtype=bfloat16",
            *KEYS,
            *SLOTS,
        ),
    ],
    "r18 x 32, attfc": ["backbone.name=r18", "batch_size=32", *CONTAINER],
    "r18 x 32, full_fc, adamw": ["backbone.name=r18", "batch_size=32", "head=full_fc", "optimizer.name=adamw"],
    "r18 x 16 x 2, partial_fc": [
        *("backbone.name=r18", "batch_size=16", "head=partial_fc", "optimizer.accumulation=2"),
    ],
    "r50 x 16, partial_fc": ["backbone.name=r50", "batch_size=16", "head=partial_fc"],
    "vit_t x 32, full_fc": ["backbone.name=vit_t", "batch_size=32", "head=full_fc"],
}
IDENTITIES = 200_000
STEPS = 3


def measured(overrides: list[str], gives_back: bool) -> dict[str, Any]:
    """Bytes by which the peak rises, and seconds of a step; runs in a child.

    `gives_back`: glibc returns each tensor's memory when it is freed. By default it keeps what is below 32 MiB for later, in pieces that later
    tensors do not all fit: memory that no tensor holds, which a plan cannot know.
    """
    import torch

    if gives_back:
        ctypes.CDLL(None).mallopt(-3, 1 << 17)  # M_MMAP_THRESHOLD; given once, it no longer grows

    from attfc.config import load_config
    from attfc.run.build import new_run

    warm_up(torch.device("cpu"))
    peak = ResidentPeak()
    with tempfile.TemporaryDirectory() as folder:
        trainer = new_run(load_config("faces112", [*common(overrides), f"output={folder}"])).trainer
        batches = iter(trainer.loader)
        trainer.pair.query.train()
        seconds = []
        for _ in range(STEPS):
            group = [next(batches) for _ in range(trainer.accumulation)]
            start = time.perf_counter()
            trainer.train_step(group)
            seconds.append(time.perf_counter() - start)
            trainer.step += 1
            if (
                trainer.step == 1
            ):  # momentum of rows that no step has named yet is not resident, in a long training it is
                for state in trainer.optimizer.state.values():
                    for tensor in state.values():
                        if isinstance(tensor, torch.Tensor):
                            tensor.mul_(1)
    return {"peak": peak.peak(), "step_seconds": statistics.median(seconds[1:])}


def common(overrides: list[str]) -> list[str]:
    """Settings of every case."""
    data = [
        f"data.root=synthetic:identities={IDENTITIES},images=2,seed=0",
        "data.workers=0",
        "data.decoded_cache_mib=0",
    ]
    return [*data, "precision.amp=none", "log.tensorboard=false", "report.write=false", *overrides]


def predicted(case: str, overrides: list[str], with_time: bool) -> dict[str, Any]:
    """The line of `attfc plan` for the head of the case; runs in a child too."""
    from attfc.cli import app

    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        size = ["--identities", str(IDENTITIES), "--images", str(2 * IDENTITIES), "--json", file.name]
        size += [] if with_time else ["--no-calibrate"]
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            app(["plan", "faces112", *common(overrides), *size], standalone_mode=False)
        plans = json.loads(Path(file.name).read_text(encoding="utf-8"))["plans"]
    head = next((value.split("=")[1] for value in overrides if value.startswith("head=")), "attfc,")
    if "no key passes" in case:
        head = "attfc, no key passes"
    line: dict[str, Any] = next(plan for plan in plans if plan["head"].startswith(head))
    return line


def earlier(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows that are there already by case, if they were measured with this configuration: some cases run again replace theirs."""
    path = RESULTS / "planning.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {row["case"]: row for row in record["results"]} if record.get("config") == config else {}


def main() -> None:
    """Run every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--no-time", action="store_true", help="memory alone: on a busy machine a time says nothing")
    parser.add_argument("--dry", action="store_true", help="print, write no JSON")
    arguments = parser.parse_args()
    config = {"identities": IDENTITIES, "steps": STEPS, "amp": "none"}
    results = {} if arguments.cases == list(CASES) else earlier(config)
    for case in arguments.cases:
        line = in_child(predicted, case, CASES[case], not arguments.no_time)
        exact = in_child(measured, CASES[case], True)["peak"]
        found = in_child(measured, CASES[case], False)
        seconds = None if arguments.no_time else found["step_seconds"]
        row = {
            "case": case,
            "commit": environment()["commit"],
            "overrides": CASES[case],
            "measured": exact,
            "predicted": line["peak"],
            "ratio": line["peak"] / exact,
        }
        row |= {"measured_as_it_is": found["peak"], "measured_seconds": seconds, "plan": line}
        results[case] = row
        print(
            f"{case:<38} measured {exact / 2**20:7.0f} MiB  planned {line['peak'] / 2**20:7.0f}  ratio {row['ratio']:.3f}  "
            f"with what glibc keeps {found['peak'] / 2**20:7.0f}"
            + ("" if seconds is None else f"   step {seconds:6.2f} s  planned {line['step_seconds']:6.2f}"),
            flush=True,
        )
        if not arguments.dry:
            write_result("planning", config, [results[name] for name in CASES if name in results])


if __name__ == "__main__":
    main()
