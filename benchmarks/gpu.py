"""What a GPU must show, without set-up: `make gpu`, or `make gpu GPU_PYTHON=python3` where torch is there already.

Four parts in order of worth, each of cells in order of worth: `tests` (tests/gpu), `heads` (step and memory from 125 thousand to 29 million
identities, container softmax against its floor), `networks` (passes of r50 and r100), `train` (`attfc train` from a packed set, and the demo).
All of them end within nine minutes; `make gpu PART=heads` gives one part nearly eight. A cell has a limit of time and a process of its own, and
FOLDER/PART.json is written anew as it ends: card, versions, commit, configuration, figures. A cell that fails writes its error there and the
others still run; the exit status is then 1. What the time did not suffice for is listed, not guessed.
`--device cpu --toy` runs the same at toy size, which tells whether a call on a GPU would be wasted.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from common import RESULTS, write_result

ROOT = Path(__file__).resolve().parent.parent
GRACE = 15.0  # seconds between the interrupt that a command gets at its limit and its end
LEAST = 10.0  # seconds: no cell is begun with less
ALONE = 465.0  # seconds for a part that runs alone
TAIL = 60  # lines of output kept of a command that did not end well

PACKED = "packed"  # the data set of the part `train`, in the scratch folder
STEP = [
    *("schedule.warmup_epochs=0", "eval.root=null", "eval.every=0", "checkpoint.every=0", "optimizer.accumulation=1"),
    *(
        "log.tensorboard=false",
        "log.every=10",
        "report.write=false",
        "data.decoded_cache_mib=0",
        "precision.amp=bfloat16",
    ),
]
TRAIN = {
    "AttFC, r50": [],
    "Partial FC 0.1, r50": ["head=partial_fc", "head.share=0.1"],
    "full FC, r50": ["head=full_fc"],
    "AttFC as published, r50": ["profile=published", "negatives.share=0.1"],
    "AttFC, r100": ["backbone.name=r100"],
}
TOY_TRAIN = {name: more for name, more in TRAIN.items() if "r100" not in name}
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


@dataclass(frozen=True)
class Cell:
    """One thing to find out: its name, what finds it within a number of seconds, at most `longest`, and what it is about."""

    name: str
    run: Callable[[Job, float], dict[str, Any]]
    longest: float = 60.0
    about: dict[str, Any] = field(default_factory=dict)


def measured(function: str, *arguments: Any) -> Callable[[Job, float], dict[str, Any]]:
    """Return what calls a function of gpu_cells.py in a process of its own."""

    def run(job: Job, seconds: float) -> dict[str, Any]:
        import gpu_cells

        from attfc.lab.children import in_child

        try:
            return in_child(gpu_cells.told, getattr(gpu_cells, function), *arguments, seconds=seconds)
        except TimeoutError as late:
            return {"status": "cut", "error": str(late)}

    return run


def tests(job: Job) -> list[Cell]:
    """A call of pytest for each file of tests/gpu."""
    files = ("test_waits", "test_equals_cpu", "test_resumes")
    return [Cell(name, lambda job, seconds, name=name: run_tests(job, seconds, name), ALONE) for name in files]


def run_tests(job: Job, seconds: float, name: str) -> dict[str, Any]:
    """One file of tests/gpu, with pytest's own defaults: of this project's configuration, an interpreter that is just there may lack the plugins."""
    xml = job.scratch / f"{name}.xml"
    ended = job.run(
        [
            *("-m", "pytest", "-c", os.devnull, f"--rootdir={ROOT}", f"--confcutdir={ROOT}", "-p", "no:cacheprovider"),
            *("-rfE", "--tb=short", "-W", "ignore::pytest.PytestUnknownMarkWarning"),
            *(f"--junitxml={xml}", str(ROOT / "tests" / "gpu" / f"{name}.py")),
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
    return ended.figures(ended.status == 0 and found["passed"] > 0, found)


def heads(job: Job) -> list[Cell]:
    """Heads alone and with r50 at 1.4 million identities, container softmax, then the other sizes."""
    on_card = job.device.startswith("cuda")
    total = torch.cuda.get_device_properties(0).total_memory if on_card else 1 << 30
    usual: dict[str, Any] = {"device": job.device, "batch": 128, "steps": 9}
    usual["budget_bytes"] = int(0.9 * total)  # all but what contexts (this process has one too) and libraries take
    middle, sizes, network, side = 1_400_000, (125_000, 5_500_000, 8_000_000, 16_000_000, 29_000_000), "r50", 8192
    if job.toy:
        usual.update(batch=8, steps=2)
        middle, sizes, network, side = 1000, (300, 3000), "r6_tiny", 256

    def usual_place(identities: int) -> str:  # where a run keeps its table of centers (config/choose.py)
        return "device" if identities * 1024 <= total / 10 else "host"

    def cell(kind: str, identities: int, **more: Any) -> Cell:
        options = {**usual, "identities": identities, **more}
        name = f"{identities:,} identities, {kind}"
        if kind == "default":
            options.setdefault("place", usual_place(identities))
            name += f", table on the {options['place']}"
        elif "place" in options:
            name += f", rows on the {options['place']}"
        if kind == "published":
            options["slots"] = max(identities // 10, usual["batch"])
        name += f", with {more['network']}" if "network" in more else ""
        return Cell(name, measured("head", kind, options), about={"kind": "head", "head": kind, **options})

    def softmax(slots: int, rows: str) -> Cell:
        about = {"kind": "container", "slots": slots, "rows": rows}
        return Cell(f"container softmax, {slots:,} slots, {rows}", measured("container", slots, rows, job.device, side), about=about)  # fmt: skip

    first, others = ("default", "partial_fc"), ("published", "full_fc", "dense", "cut_cross_entropy")
    return [
        *(cell(kind, middle) for kind in first),
        *(cell(kind, middle, network=network) for kind in first),
        *(softmax(middle // 10, rows) for rows in ("bfloat16", "float32", "int8")),
        *(cell(kind, middle) for kind in others),
        cell("default", middle, place="host" if usual_place(middle) == "device" else "device"),
        cell("partial_fc", middle, place="host"),
        *(cell(kind, size) for size in sizes for kind in (*first, *others)),
        softmax(middle, "bfloat16"),
    ]


def networks(job: Job) -> list[Cell]:
    """Passes of r50 and r100 at 112 pixels."""
    names, batches, backend = ("r50", "r100"), (128, 256), "inductor"
    if job.toy:  # no compiler, which takes longer than all else here
        names, batches, backend = ("r6_tiny", "r10_tiny"), (2, 3), "eager"

    def cell(name: str, batch: int, dtype: str, channels_last: bool = True, backend: str | None = None) -> Cell:
        about = {"network": name, "batch": batch, "dtype": dtype, "channels_last": channels_last, "compile": backend}
        shown = f"{name}, batch {batch}, {dtype}" + ("" if channels_last else ", contiguous")
        arguments = (name, batch, dtype, channels_last, backend, job.device)
        longest = 60.0 if backend is None else 180.0
        return Cell(shown + (", compiled" if backend else ""), measured("network", *arguments), longest, about)

    few, many = batches
    small, large = names
    return [
        *(cell(name, batch, "bfloat16") for batch in batches for name in names),
        cell(small, few, "float16"),
        cell(small, few, "bfloat16", channels_last=False),
        cell(small, few, "bfloat16", backend=backend),
        *(cell(large, few, "float16"), cell(small, many, "float16"), cell(large, many, "float16")),
        *(cell(name, few, "bfloat16", channels_last=False) for name in (large,)),
        cell(small, few, "float32"),
    ]


def train(job: Job) -> list[Cell]:
    """`attfc train` from a packed set of rendered faces, its loader alone, and the demo with its evaluation."""
    size = ["data.workers=8", "batch_size=256", "schedule.max_steps=110"]
    if job.toy:
        size = ["data.workers=2", "batch_size=8", "schedule.max_steps=40", "threads=1"]
    where = [f"data.root={job.scratch / PACKED}", f"device={job.device}"]
    usual = [*where, *size, *STEP, *(["backbone.name=r6_tiny"] if job.toy else [])]
    cells = [
        Cell(
            name,
            lambda job, seconds, more=more: run_train(job, seconds, [*usual, *more]),
            90.0,
            {"options": [*STEP, *size, *more]},
        )
        for name, more in (TOY_TRAIN if job.toy else TRAIN).items()
    ]
    alone = measured("loader", [*usual, f"output={job.scratch / 'loader'}"], 20 if job.toy else 200)
    return [
        Cell("packed set", make_set, 120.0),
        *cells[:2],
        Cell("loader alone", alone),
        *cells[2:],
        Cell("the demo", run_demo, 150.0),
    ]


def make_set(job: Job, seconds: float) -> dict[str, Any]:
    """Render faces into a folder, and pack it."""
    identities, images, workers = (40, 6, 2) if job.toy else (4000, 6, len(os.sched_getaffinity(0)))
    folder = job.scratch / "faces"
    begun = time.monotonic()
    found = measured("render", str(folder), identities, images, workers)(job, seconds)
    if "status" in found:
        return found
    left = seconds - (time.monotonic() - begun)
    ended = job.run(["-m", "attfc", "data", "convert", str(folder), str(job.scratch / PACKED)], left)
    return ended.figures(ended.status == 0, {"rendered": found, "identities": identities})


def run_train(job: Job, seconds: float, options: list[str]) -> dict[str, Any]:
    """The whole step of a run: images/s between the lines of its log, the first two of which do not count."""
    with tempfile.TemporaryDirectory(dir=job.scratch) as output:
        ended = job.run(["-m", "attfc", "train", "ms1mv3_attfc_r50", *options, f"output={output}"], seconds)
        records = [
            record
            for log in Path(output).glob("*/metrics.jsonl")
            for record in read_lines(log)
            if record["kind"] == "train"
        ]
    rates = [record["images_per_second"] for record in records if record["images_per_second"] is not None][2:]
    found: dict[str, Any] = {"records": records}
    if rates:
        found["images_per_second"] = statistics.median(rates)
    return ended.figures(ended.status == 0 and bool(rates), found)


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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; none where there is no file, and not the line in which its writer was ended."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


PARTS: dict[str, tuple[Callable[[Job], list[Cell]], float]] = {
    "tests": (tests, 180.0),
    "heads": (heads, 150.0),
    "networks": (networks, 60.0),
    "train": (train, 120.0),
}
"""In order of worth, each with its longest time in seconds where all run."""


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


def run_cells(job: Job, cells: list[Cell], limit: float, write: Callable[[dict[str, Any]], Path]) -> dict[str, Any]:
    """Run the cells in order until `limit`, in seconds, and write what is there after each."""
    begun = time.monotonic()
    results: dict[str, Any] = {"status": "done", "seconds": 0.0, "cells": [], "left_out": []}
    for cell in cells:
        start = time.monotonic()
        left = limit - (start - begun)
        if cell.about.get("head") == "cut_cross_entropy" and importlib.util.find_spec("cut_cross_entropy") is None:
            results["left_out"].append(f"{cell.name}: cut_cross_entropy is not installed")
            continue
        if left < LEAST and not job.toy:
            results["left_out"].append(f"{cell.name}: {max(left, 0):.0f} s were left of {limit:.0f}")
            results["status"] = "cut" if results["status"] == "done" else results["status"]
            continue
        try:
            found = cell.run(job, min(cell.longest, left) if not job.toy else cell.longest)
        except Exception as error:  # a cell that fails is a result, and the others are still worth their time
            found = {
                "status": "failed",
                "error": f"{type(error).__name__}: {error}",
                "output": traceback.format_exc().splitlines(),
            }
        found = {"name": cell.name, **cell.about, "status": "done", "took_seconds": time.monotonic() - start, **found}
        results["cells"].append(found)
        if found["status"] == "failed":
            results["status"] = "failed"
        results["seconds"] = time.monotonic() - begun
        write(results)
        print(f"  {found['status']:<7} {found['took_seconds']:6.1f} s  {cell.name}", flush=True)
        if found["status"] == "failed":
            print("\n".join([found["error"], *found["output"][-12:]]), flush=True)
    if not results["cells"]:
        results["status"] = "left out"
    write(results)
    return results


def run_parts(job: Job, budget: float, commit: str | None, parts: list[str]) -> bool:
    """Run them in order of worth, and return whether nothing failed."""
    begun = time.monotonic()
    well = True
    for name in [name for name in PARTS if name in parts]:
        cells_of, longest = PARTS[name]
        left = budget - (time.monotonic() - begun)
        limit = left if len(parts) == 1 else min(longest, left)
        config = {"device": job.device, "toy": job.toy, "budget_seconds": budget, "longest_seconds": limit}
        if commit is not None:
            config["commit"] = commit
        print(f"{name}, at most {max(limit, 0):.0f} s", flush=True)

        def write(results: dict[str, Any], name: str = name, config: dict[str, Any] = config) -> Path:
            return write_result(name, config, results, job.folder)

        results = run_cells(job, cells_of(job), limit, write)
        well = well and results["status"] != "failed"
        path = job.folder / f"{name}.json"
        print(f"{name:<8} {results['status']:<9} {results['seconds']:6.1f} s  {path}", flush=True)
        for text in results["left_out"]:
            print(f"  left out: {text}", flush=True)
    return well


def main() -> None:
    """Read the options, refuse what cannot work, run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda (default) or cpu")
    parser.add_argument("--toy", action="store_true", help="everything at toy size")
    parser.add_argument("--budget", type=float, help="seconds for all parts together (default 510; one part alone 465)")
    parser.add_argument("--output", type=Path, help="folder of the JSON files")
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
    # Figures of toy size are nobody's results.
    output = arguments.output or (Path(tempfile.gettempdir()) / "attfc-gpu-toy" if arguments.toy else RESULTS / "gpu")
    output.mkdir(parents=True, exist_ok=True)
    parts = arguments.only or list(PARTS)
    budget = arguments.budget or (ALONE if len(parts) == 1 else 510.0)
    with tempfile.TemporaryDirectory(prefix="attfc-gpu-") as scratch:
        environment = environment_of_children(Path(scratch)) | {"ATTFC_TEST_DEVICE": arguments.device}
        os.environ.update(environment)  # of the cells' processes
        sys.path.insert(0, str(ROOT / "src"))
        job = Job(arguments.device, arguments.toy, output.resolve(), Path(scratch), environment)
        well = run_parts(job, budget, arguments.commit, parts)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
