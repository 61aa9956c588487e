"""What a GPU must show, in under nine minutes and without set-up: `make gpu`, or `make gpu GPU_PYTHON=python3` where torch is there already.

In order of worth: the tests of tests/gpu, the demo on the device, `attfc bench heads` at three sizes. Each part is a process of its own with a
limit of time, and writes FOLDER/PART.json as soon as it ends: card, versions, commit, configuration, figures. A part that fails writes
its error there and the others still run; the exit status is then 1. What the time did not suffice for is listed, not guessed.
`--device cpu --toy` runs the same at toy size, which tells whether a call on a GPU would be wasted.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from common import RESULTS, write_result

ROOT = Path(__file__).resolve().parent.parent
GRACE = 15.0  # seconds between the interrupt that a part gets at its limit and its end
LEAST = 20.0  # seconds: no part is begun with less
TAIL = 60  # lines of output kept of a part that did not end well

TOY_DEMO = [
    *(
        "data.root=synthetic:identities=40,images=6,seed=0",
        "eval.root=synthetic:identities=24,images=4,seed=0,first=1000",
    ),
    *(
        "data.workers=0",
        "batch_size=32",
        "schedule.max_steps=40",
        "schedule.warmup_epochs=0",
        "eval.generated_pairs=40",
    ),
    *("eval.every=0", "log.every=5", "threads=1"),
]
HEADS = ["--identities", "125000,1000000,4000000", "--network", "r50", "--batch", "128", "--steps", "9"]
TOY_HEADS = [
    *("--identities", "300,1000,3000", "--network", "r6_tiny", "--batch", "8", "--steps", "2"),
    *("--slots", "100", "--budget-gib", "0.5"),
]


@dataclass(frozen=True)
class Job:
    """What the parts share: the device, where results go, a folder to throw away, the children's environment."""

    device: str
    toy: bool
    folder: Path
    scratch: Path
    environment: dict[str, str]

    def run(self, arguments: list[str], seconds: float) -> "Ended":
        """Run `python ARGUMENTS`; at its limit interrupt it, then kill it with all its children."""
        log = self.scratch / "log.txt"
        with log.open("w", encoding="utf-8") as output:
            child = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            cut = False
            try:
                child.wait(max(seconds - GRACE, 1.0))
            except subprocess.TimeoutExpired:
                cut = True
                child.send_signal(signal.SIGINT)  # attfc and pytest write what they have
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(GRACE)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        return Ended(child.returncode, cut, log.read_text(encoding="utf-8", errors="replace"))


@dataclass(frozen=True)
class Ended:
    """How a child ended; `cut`: at its limit of time."""

    status: int
    cut: bool
    output: str

    def figures(self, succeeded: bool, found: dict[str, Any]) -> dict[str, Any]:
        """Put `found` behind how it ended: the last lines of output too, where that was not well."""
        status = "cut" if self.cut else "done" if succeeded else "failed"
        ending: dict[str, Any] = {"status": status}
        if status == "failed":
            ending["error"] = f"exit status {self.status}"
        if status != "done":
            ending["output"] = self.output.splitlines()[-TAIL:]
        return {**ending, **found}


def run_tests(job: Job, seconds: float) -> dict[str, Any]:
    """tests/gpu, with pytest's own defaults: of this project's configuration, an interpreter that is just there may lack the plugins."""
    xml = job.scratch / "tests.xml"
    ended = job.run(
        [
            *("-m", "pytest", "-c", os.devnull, f"--rootdir={ROOT}", f"--confcutdir={ROOT}", "-p", "no:cacheprovider"),
            *("-rfE", "--tb=short", "-W", "ignore::pytest.PytestUnknownMarkWarning"),
            *(f"--junitxml={xml}", str(ROOT / "tests" / "gpu")),
        ],
        seconds,
    )
    found: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "tests": {}}
    if xml.exists():
        for case in ElementTree.parse(xml).getroot().iter("testcase"):
            fault = next((case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None), None)
            skipped = case.find("skipped")
            how = "failed" if fault is not None else "skipped" if skipped is not None else "passed"
            found[how] += 1
            found["tests"][case.get("name", "")] = {
                "how": how,
                "seconds": float(case.get("time", 0)),
                **({} if fault is None else {"error": (fault.text or fault.get("message") or "")[-4000:]}),
                **({} if skipped is None else {"why": skipped.get("message")}),
            }
    if collected := re.search(r"^collected (\d+) item", ended.output, re.MULTILINE):
        found["left_out"] = int(collected[1]) - len(found["tests"])
    nothing_ran = not found["passed"] and not found["failed"] and job.device != "cpu"
    return ended.figures(ended.status == 0 and not nothing_ran, found)


def run_demo(job: Job, seconds: float) -> dict[str, Any]:
    """`attfc train demo` on the device: the run's records, its last evaluation and its peak memory."""
    options = [f"device={job.device}", f"output={job.scratch / 'runs'}", "log.tensorboard=false", "report.write=false"]
    options += TOY_DEMO if job.toy else []
    ended = job.run(["-m", "attfc", "train", "demo", *options], seconds)
    found: dict[str, Any] = {"command": ["attfc", "train", "demo", *options]}
    for run in (job.scratch / "runs").glob("*"):
        if (run / "config.yaml").exists():
            found["configuration"] = (run / "config.yaml").read_text(encoding="utf-8")
        if (run / "metrics.jsonl").exists():
            found["records"] = read_lines(run / "metrics.jsonl")
        if (run / "evaluation.json").exists():
            found["evaluation"] = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    return ended.figures(ended.status == 0 and "evaluation" in found, found)


def run_heads(job: Job, seconds: float) -> dict[str, Any]:
    """`attfc bench heads`; where it is cut, the cells done so far, and which are missing."""
    json_file = job.folder / "heads_command.json"
    lines = json_file.with_name(json_file.name + ".cells.jsonl")
    lines.unlink(missing_ok=True)  # of a call that was ended in the middle: another commit, perhaps
    options = [*(TOY_HEADS if job.toy else HEADS), "--device", job.device]
    if job.device == "cuda":
        # All but what contexts (this process has one too) and libraries take.
        budget = 0.85 * torch.cuda.get_device_properties(0).total_memory / 2**30
        options += ["--budget-gib", f"{budget:.1f}"]
    ended = job.run(["-m", "attfc", "bench", "heads", *options, "--json", str(json_file)], seconds)
    found: dict[str, Any] = {"command": ["attfc", "bench", "heads", *options]}
    if json_file.exists():
        found.update(json.loads(json_file.read_text(encoding="utf-8")))
    else:
        found["cells_so_far"] = read_lines(lines)
        found["left_out"] = _missing(options, [record["key"].get("case") for record in found["cells_so_far"]])
    for path in (json_file, lines):
        path.unlink(missing_ok=True)
    return ended.figures(ended.status == 0, found)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; none where there is no file, and not the line in which its writer was ended."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def _missing(options: list[str], done: list[dict[str, Any] | None]) -> dict[str, int]:
    """How many of the four heads are missing, by network and number of identities."""
    sizes, network = options[options.index("--identities") + 1], options[options.index("--network") + 1]
    missing = {}
    for where in (None, network):
        for size in map(int, sizes.split(",")):
            there = sum(case is not None and (case["network"], case["identities"]) == (where, size) for case in done)
            if there < 4:
                missing[f"{where or 'heads alone'}, {size:,} identities"] = 4 - there
    return missing


PARTS: dict[str, tuple[Callable[[Job, float], dict[str, Any]], float]] = {
    "tests": (run_tests, 180.0),
    "demo": (run_demo, 150.0),
    "heads": (run_heads, 240.0),
}
"""In order of worth, each with its longest time in seconds."""


def environment_of_children(scratch: Path) -> dict[str, str]:
    """This process's, with src first on the path; where attfc is not installed, with its version for those who ask."""
    paths = [str(ROOT / "src")]
    try:
        metadata.version("attfc")
    except metadata.PackageNotFoundError:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        known = scratch / "path" / f"attfc-{project['version']}.dist-info"
        known.mkdir(parents=True)
        (known / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: attfc\nVersion: {project['version']}\n", encoding="utf-8"
        )
        paths.append(str(known.parent))
    paths += [path for path in [os.environ.get("PYTHONPATH")] if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def lacking() -> list[str]:
    """Packages that attfc or the tests need and this interpreter does not have, so that one look tells."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    modules = {"pillow": "PIL", "pyyaml": "yaml"}
    names = [re.split(r"[<>=!~;\[ ]", text)[0] for text in project["dependencies"]] + ["pytest"]
    return [name for name in names if importlib.util.find_spec(modules.get(name, name)) is None]


def run_parts(job: Job, budget: float, commit: str | None, parts: list[str]) -> bool:
    """Run them in order, write a JSON for each, and return whether none failed."""
    begun = time.monotonic()
    well = True
    for name in PARTS:
        if name not in parts:
            continue
        run, longest = PARTS[name]
        left = budget - (time.monotonic() - begun)
        start = time.monotonic()
        if left < LEAST and not job.toy:
            results: dict[str, Any] = {"status": "left out", "why": f"{max(left, 0):.0f} s were left of {budget:g}"}
        else:
            try:
                results = run(job, min(longest, left))
            except Exception as error:  # a part that fails is a result, and the others are still worth their time
                results = {
                    "status": "failed",
                    "error": f"{type(error).__name__}: {error}",
                    "output": traceback.format_exc().splitlines(),
                }
        results = {"seconds": time.monotonic() - start, **results}
        config = {"device": job.device, "toy": job.toy, "budget_seconds": budget, "longest_seconds": longest}
        if commit is not None:
            config["commit"] = commit
        path = write_result(name, config, results, job.folder)
        well = well and results["status"] != "failed"
        print(f"{name:<6} {results['status']:<9} {results['seconds']:6.1f} s  {path}", flush=True)
        if results["status"] == "failed":
            print("\n".join([results["error"], *results["output"][-12:]]), flush=True)
    return well


def main() -> None:
    """Read the options, refuse what cannot work, run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda (default) or cpu")
    parser.add_argument("--toy", action="store_true", help="everything at toy size")
    parser.add_argument("--budget", type=float, default=510.0, help="seconds for all parts together (default 510)")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu", help="folder of the JSON files")
    parser.add_argument(
        "--only", action="append", choices=list(PARTS), help="a part to run; may be given several times"
    )
    parser.add_argument("--commit", help="of the source, for a copy that has no git repository")
    arguments = parser.parse_args()
    if missing := lacking():
        sys.exit(f"{sys.executable} lacks {', '.join(missing)}: install it, or run make gpu without GPU_PYTHON")
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(
            f"torch {torch.__version__} finds no GPU with CUDA here; on a processor: benchmarks/gpu.py --device cpu --toy"
        )
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that children are ended too
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="attfc-gpu-") as scratch:
        job = Job(
            device=arguments.device,
            toy=arguments.toy,
            folder=arguments.output.resolve(),
            scratch=Path(scratch),
            environment=environment_of_children(Path(scratch)),
        )
        well = run_parts(job, arguments.budget, arguments.commit, arguments.only or list(PARTS))
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
