"""Runs a list of training variants on real faces and collects their figures: the script behind docs/study.md.

Each variant is the command a user would type (`attfc train faces112 KEY=VALUE ...`), run in its own process with
`--threads` processor threads and `--parallel` of them at a time. Results are appended to a JSON-lines file as they come,
so an interrupted study goes on where it stopped: a variant x seed that is already there is not run again. `--summary` folds the lines into
one JSON with means and spreads. `{without_singles}` in a variant stands for an edit list that leaves out people of one image.

    python benchmarks/study.py tune --faces ../shared/faces112
    python benchmarks/study.py final --faces ../shared/faces112 --seeds 0 1 2
    python benchmarks/study.py final --summary
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from common import write_result

from attfc.data import open_store, write_edits
from attfc.data.cleaning.clean import clean

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def without_singles(faces: Path, place: Path) -> Path:
    """Write the edit list that leaves out the people of a single image."""
    path = place / "without_singles.tsv"
    cache = Path.home() / ".cache/attfc"
    store = open_store(faces / "train", cache=cache)
    report = clean(store, broken=False, duplicates=None, fewest=2, names=False)
    write_edits(path, report.edits, store.name)
    return path


def run_variant(study: str, name: str, overrides: list[str], seed: int, faces: Path, threads: int) -> dict[str, Any]:
    """Train one variant and return its figures, or the error it ended with."""
    asked = overrides
    with tempfile.TemporaryDirectory(prefix="attfc-study-") as scratch:
        if any("{without_singles}" in override for override in overrides):
            edits = without_singles(faces, Path(scratch))
            overrides = [override.replace("{without_singles}", str(edits)) for override in overrides]
            scratch = str(Path(scratch) / "runs")
        command = [
            *(
                sys.executable,
                "-m",
                "attfc",
                "train",
                "faces112",
                f"data.root={faces / 'train'}",
                f"eval.root={faces / 'val'}",
            ),
            *(f"eval.pairs={faces / 'val_pairs.txt'}", f"data.index_cache={Path.home() / '.cache/attfc'}"),
            *(
                f"eval.index_cache={Path.home() / '.cache/attfc'}",
                f"output={scratch}",
                f"seed={seed}",
                f"threads={threads}",
            ),
            *("data.workers=0", "report.write=false", "checkpoint.every=0", "log.tensorboard=false", "log.every=20"),
            *overrides,
        ]
        started = time.time()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
            # wait4 tells the processor time of this run alone: wall clock counts what other jobs took from it.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            errors.seek(0)
            complaint = errors.read().strip()
        result: dict[str, Any] = {
            "study": study,
            "name": name,
            "seed": seed,
            "overrides": asked,
            "wall_seconds": round(time.time() - started, 1),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        }
        if process.returncode:
            return {**result, "error": complaint.splitlines()[-1] if complaint else f"status {process.returncode}"}
        run = next(Path(scratch).iterdir())
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        last = [line for line in lines if line["kind"] == "train"][-1]
        return {
            **result,
            "steps": last["step"],
            "train_seconds": round(last["seconds"], 1),
            "images_per_second": round(last["step"] * 128 / last["seconds"], 1),
            "memory_mib": round(last["memory_mib"], 1),
            "last_train": {key: value for key, value in last.items() if key != "kind"},
            "evaluation": json.loads((run / "evaluation.json").read_text(encoding="utf-8")),
        }


def main() -> None:
    """Run or summarize a study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a list of variants: benchmarks/studies/STUDY.yaml")
    parser.add_argument("--faces", type=Path, help="folder with train/, val/ and val_pairs.txt")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="names of variants")
    parser.add_argument("--summary", action="store_true", help="write the summary of what has been run")
    arguments = parser.parse_args()
    lines_path = RESULTS / f"study_{arguments.study}.jsonl"
    variants: dict[str, list[str]] = yaml.safe_load(
        (HERE / "studies" / f"{arguments.study}.yaml").read_text(encoding="utf-8")
    )
    if arguments.summary:
        summarize(arguments.study, variants, lines_path)
        return
    known = {(line["name"], line["seed"]) for line in read_lines(lines_path) if "error" not in line}
    wanted = [
        (name, overrides, seed)
        for seed in arguments.seeds
        for name, overrides in variants.items()
        if (name, seed) not in known and (not arguments.only or name in arguments.only)
    ]

    def work(item: tuple[str, list[str], int]) -> None:
        name, overrides, seed = item
        result = run_variant(arguments.study, name, overrides, seed, arguments.faces.resolve(), arguments.threads)
        with lines_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(describe(result), flush=True)

    with ThreadPoolExecutor(arguments.parallel) as pool:
        list(pool.map(work, wanted))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Results so far."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def figure(evaluation: dict[str, Any], path: str) -> float | None:
    """One figure by its dotted path."""
    value: Any = evaluation
    for part in path.split("/"):
        value = value.get(part) if isinstance(value, dict) else None
    return value


FIGURES = (
    "accuracy",
    "auc",
    "eer",
    "tar_at_far/0.01",
    "all_pairs/tar_at_far/0.01",
    "all_pairs/tar_at_far/0.001",
    "rank_one",
)


def describe(result: dict[str, Any]) -> str:
    """One line of a result."""
    if "error" in result:
        return f"{result['name']} seed {result['seed']}: {result['error']}"
    figures = "  ".join(
        f"{name} {value:.4f}" for name in FIGURES if (value := figure(result["evaluation"], name)) is not None
    )
    return f"{result['name']} seed {result['seed']}: {figures}  {result['train_seconds']:.0f} s  {result['images_per_second']:.0f}/s"


def summarize(study: str, variants: dict[str, list[str]], lines_path: Path) -> None:
    """Mean and spread over seeds of every variant, as one JSON."""
    rows = []
    for name, overrides in variants.items():
        results = [line for line in read_lines(lines_path) if line["name"] == name and "error" not in line]
        if not results:
            continue
        row: dict[str, Any] = {"name": name, "overrides": overrides, "seeds": [result["seed"] for result in results]}
        for path in FIGURES:
            values = [value for result in results if (value := figure(result["evaluation"], path)) is not None]
            if values:
                row[path] = {
                    "mean": statistics.mean(values),
                    "std": statistics.stdev(values) if len(values) > 1 else None,
                    "values": values,
                }
        row["train_seconds"] = statistics.median(result["train_seconds"] for result in results)
        row["images_per_second"] = statistics.median(result["images_per_second"] for result in results)
        if all("cpu_seconds" in result for result in results):
            row["cpu_seconds"] = statistics.median(result["cpu_seconds"] for result in results)
        row["steps"] = results[0]["steps"]
        rows.append(row)
        print(
            name,
            {
                path: (round(row[path]["mean"], 4), row[path]["std"] and round(row[path]["std"], 4))
                for path in FIGURES
                if path in row
            },
        )
    write_result(f"study_{study}", {"preset": "faces112", "variants": variants}, rows)


if __name__ == "__main__":
    main()
