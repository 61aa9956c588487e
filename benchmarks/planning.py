"""Predicted against measured peak memory of real training steps on the processor.

The measure is the rise of a child process's resident peak (VmHWM) over what it held after imports, over three steps of the trainer
itself, on synthetic faces. The prediction is made in another child, so that neither warms the other. Target: within 10 %.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CASES = {
    "r10_tiny, batch 128, attfc": ["backbone.name=r10_tiny", "batch_size=128", "container.slots=100000"],
    "r10_tiny, batch 128, partial_fc": ["backbone.name=r10_tiny", "batch_size=128", "head.name=partial_fc"],
    "r10_tiny, batch 128, full_fc": ["backbone.name=r10_tiny", "batch_size=128", "head.name=full_fc"],
    "r18, batch 32, attfc": ["backbone.name=r18", "batch_size=32", "container.slots=100000"],
    "vit_t, batch 32, full_fc": ["backbone.name=vit_t", "batch_size=32", "head.name=full_fc"],
    "r50, batch 16, partial_fc": ["backbone.name=r50", "batch_size=16", "head.name=partial_fc"],
}
IDENTITIES = 200_000


def measured(overrides: list[str]) -> float:
    """Bytes by which the peak rises; runs in a child."""
    import torch

    from attfc.build import new_run
    from attfc.config import load_config

    torch.nn.functional.conv2d(torch.zeros(1, 3, 8, 8, requires_grad=True), torch.zeros(4, 3, 3, 3)).sum().backward()
    before = status("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        run = new_run(load_config("faces112", [*common(overrides), f"output={folder}"]))
        trainer = run.trainer
        batches = iter(trainer.loader)
        trainer.pair.query.train()
        for _ in range(3):
            trainer.train_step([next(batches)])
            trainer.step += 1
        return status("VmHWM") - before


def common(overrides: list[str]) -> list[str]:
    """Settings of every case."""
    data = [
        f"data.root=synthetic:identities={IDENTITIES},images=2,seed=0",
        "data.workers=0",
        "data.decoded_cache_mib=0",
    ]
    return [*data, "precision.amp=none", "log.tensorboard=false", "report.write=false", *overrides]


def status(name: str) -> float:
    """Bytes of a line of /proc/self/status."""
    with open("/proc/self/status", encoding="utf-8") as lines:
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def predicted(overrides: list[str]) -> dict[str, Any]:
    """The line of `attfc plan` for the head of the case."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        size = ["--identities", str(IDENTITIES), "--images", str(2 * IDENTITIES), "--no-calibrate", "--json", file.name]
        command = [sys.executable, "-m", "attfc", "plan", "faces112", *common(overrides), *size]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        plans = json.loads(Path(file.name).read_text(encoding="utf-8"))["plans"]
    head = next((value.split("=")[1] for value in overrides if value.startswith("head.name=")), "attfc")
    line: dict[str, Any] = next(plan for plan in plans if plan["head"].startswith(head))
    return line


def main() -> None:
    """Run every case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", nargs="+")
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    arguments = parser.parse_args()
    if arguments.child:
        print(measured(arguments.child))
        return
    from common import write_result

    results = []
    for case in arguments.cases:
        done = subprocess.run(
            [sys.executable, __file__, "--child", *CASES[case]], check=True, capture_output=True, text=True
        )
        peak, line = float(done.stdout.split()[-1]), predicted(CASES[case])
        results.append(
            {"case": case, "measured": peak, "predicted": line["peak"], "ratio": line["peak"] / peak, "plan": line}
        )
        print(
            f"{case:<36} measured {peak / 2**20:8.0f} MiB   predicted {line['peak'] / 2**20:8.0f}   {line['peak'] / peak:.3f}",
            flush=True,
        )
        write_result("planning", {"identities": IDENTITIES, "steps": 3, "amp": "none"}, results)


if __name__ == "__main__":
    main()
