"""How long commands take that compute next to nothing, beside `import torch` alone and with torch's compiler.

    python benchmarks/start_up.py [--repeats 5] [--source OTHER/src]

`--source` takes the `src` of another checkout, whose commands run in turns with ours. Processor seconds of whole processes, because imports
are work for one core and that figure bears a busy machine; wall time is beside it. `attfc train` imports torch's compiler, as every optimizer
of torch does when it is made. Writes results/start_up.json.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import write_result

OURS = Path(__file__).resolve().parent.parent / "src"
FACES = "synthetic:identities=5,images=3"
TORCH = {
    "import torch": ["-c", "import torch"],
    "import torch and its compiler": ["-c", "import torch, torch._dynamo"],
}
COMMANDS = {
    "attfc --help": ["--help"],
    "attfc options margin": ["options", "margin"],
    "attfc backbones": ["backbones"],
    "attfc data inspect": ["data", "inspect", FACES, "--workers", "0"],
    "attfc plan demo --no-calibrate": ["plan", "demo", "--no-calibrate"],
}


def seconds(arguments: list[str], source: Path) -> tuple[float, float]:
    """Run Python to its end with that attfc: processor seconds of it and its children, wall seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    env = {**os.environ, "PYTHONPATH": str(source)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # the first turn compiles what is not yet
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.perf_counter() - start


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--source", type=Path, help="src of another checkout, measured beside this one")
    options = parser.parse_args()
    sources = [OURS, *([options.source.resolve()] if options.source else [])]
    cases = [(name, arguments, OURS) for name, arguments in TORCH.items()]
    cases += [(name, ["-m", "attfc", *rest], source) for name, rest in COMMANDS.items() for source in sources]
    taken: list[list[tuple[float, float]]] = [[] for _ in cases]
    for turn in range(1 + options.repeats):
        for (_, arguments, source), times in zip(cases, taken, strict=True):
            found = seconds(arguments, source)
            if turn:  # the first reads from disk
                times.append(found)
    results = []
    for (name, _, source), times in zip(cases, taken, strict=True):
        processor, wall = (statistics.median(values) for values in zip(*times, strict=True))
        torch = results[0]["seconds"] if results else processor
        row = {"command": name, "seconds": processor, "wall_seconds": wall, "beyond_torch": processor - torch}
        results.append(row | {"source": "this" if source == OURS else "other"})
        print(f"{name:32}{results[-1]['source']:6}{processor:7.2f} s  {processor - torch:+6.2f}  wall {wall:.2f}")
    other = commit(options.source) if options.source else None
    print(write_result("start_up", {"repeats": options.repeats, "other_commit": other}, results))


def commit(source: Path) -> str:
    """Commit of a checkout."""
    asked = ["git", "-C", str(source), "rev-parse", "HEAD"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
