"""Search of a gallery of 1,000,000 templates of 512 numbers: ours, a bare float32 product, faiss and usearch; and what add and remove cost.

Templates are unit vectors in clusters: 4 per person around the person's own direction, and a tenth of the people are near-duplicates of another
(cosine 0.97 between their directions). Queries are half new views of enrolled people, a quarter the near-duplicates themselves, a quarter strangers.

    pip install faiss-cpu usearch        # optional: without them their rows are left out
    python benchmarks/gallery.py [--templates 1000000] [--queries 1000] [--repeats 5] [--clock wall|cpu] [--threads 2]

On a shared machine take --clock cpu --threads 1. Writes results/gallery.json: milliseconds per query alone and in batches of 64, how many of the
queries (of a fifth, for the libraries) give the template of the float32 product, seconds to add, remove and open, MiB on disk.
"""

import argparse
import importlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line does, see benchmarks/waiting_threads.py

import numpy as np
import torch
from common import median_seconds_each, write_result

from attfc.gallery.database import Facts
from attfc.gallery.templates import Template, TemplateStore

BATCH, PER_PERSON, ADDED = 64, 4, 50_000
Rows = np.ndarray[Any, Any]


def unit(rows: Rows) -> Rows:
    """Bring rows to length 1."""
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def make(templates: int, size: int, queries: int) -> tuple[Rows, Rows]:
    """Return templates and queries; see the header."""
    chance = np.random.default_rng(0)
    people = templates // PER_PERSON

    def noise(count: int) -> Rows:
        return unit(chance.standard_normal((count, size), dtype=np.float32))

    centers = noise(people)
    twins = people // 10
    centers[:twins] = unit(centers[twins : 2 * twins] + 0.25 * noise(twins))
    rows = np.empty((templates, size), np.float32)
    for start in range(0, templates, ADDED):
        owner = np.arange(start, min(start + ADDED, templates)) % people
        rows[start : start + ADDED] = unit(centers[owner] + 0.8 * noise(len(owner)))
    views = centers[chance.integers(0, people, queries // 2)]
    near = rows[chance.integers(0, twins, queries // 4)]
    rest = queries - len(views) - len(near)
    return rows, np.concatenate(
        [unit(views + 0.9 * noise(len(views))), unit(near + 0.05 * noise(len(near))), noise(rest)]
    )


def exact_best(rows: Rows, queries: Rows) -> tuple[Rows, Rows]:
    """Return the best template of each query by the float32 product, and its cosine."""
    scores, places = [], []
    for start in range(0, len(queries), BATCH):
        found = (torch.from_numpy(rows) @ torch.from_numpy(queries[start : start + BATCH]).T).max(0)
        scores.append(found.values.numpy())
        places.append(found.indices.numpy())
    return np.concatenate(places), np.concatenate(scores)


def timed(search: Callable[[Rows], Rows], queries: Rows, repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Return milliseconds of one query, and per query of a batch."""
    turns = iter(range(10**6))
    few = {"": lambda: search(queries[(n := next(turns) % len(queries)) : n + 1])}
    one = median_seconds_each(few, 4 * repeats, clock=clock)[""]
    many = median_seconds_each({"": lambda: search(queries[:BATCH])}, repeats, clock=clock)[""]
    return {"ms_one_query": 1e3 * one, "ms_per_query_of_64": 1e3 * many / min(BATCH, len(queries))}


def agreement(search: Callable[[Rows], Rows], rows: Rows, queries: Rows, best: Rows, score: Rows) -> dict[str, float]:
    """Count queries whose template is that of the float32 product, or one with the same cosine to 1e-6."""
    found = np.concatenate([search(queries[start : start + BATCH]) for start in range(0, len(queries), BATCH)])
    cosine = np.einsum("qd,qd->q", rows[np.maximum(found, 0)], queries)
    return {
        "equal": int(((found == best) | ((found >= 0) & (np.abs(cosine - score) < 1e-6))).sum()),
        "of": len(queries),
    }


def ours(rows: Rows, folder: Path) -> tuple[TemplateStore, dict[str, float]]:
    """Fill a gallery and time what changes it."""
    facts = Facts(
        model="m", network="n", digest="0" * 64, embedding_size=rows.shape[1], image_size=112, colours={}, flip=True,
        created="", changed="",
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    store = TemplateStore.create(folder, facts)
    start = time.perf_counter()
    for first in range(0, len(rows), ADDED):
        part = rows[first : first + ADDED]
        store.add(
            [
                Template(f"person {n}", row, {n.to_bytes(16, "big"): f"/data/faces/aligned/person {n}/0001.jpg"})
                for n, row in enumerate(part, first)
            ]
        )
    cost = {"add_all_s": time.perf_counter() - start}

    def clock(name: str, act: Callable[[], object]) -> None:
        begun = time.perf_counter()
        act()
        cost[name] = time.perf_counter() - begun

    clock("remove_one_s", lambda: store.remove(["person 17"]))
    clock("add_one_s", lambda: store.add([Template("person 17", rows[17], {b"17": "/data/17.jpg"})]))
    store.close()
    clock("open_s", lambda: TemplateStore(folder).close())
    store = TemplateStore(folder)
    clock("first_search_s", lambda: store.search(rows[:1], 1))
    for path in folder.iterdir():
        cost[f"{path.name}_mib"] = path.stat().st_blocks / 2048
    return store, cost


def others(rows: Rows) -> dict[str, Callable[[Rows], Rows]]:
    """Return the libraries' searches of the same rows, those that are installed; approximate ones rerank their best 1,000 in float32."""

    def reranked(found: Rows, queries: Rows) -> Rows:
        best = [ids[np.argmax(rows[ids] @ query)] for ids, query in zip(found, queries, strict=True)]
        return np.array(best)

    made: dict[str, Callable[[Rows], Rows]] = {}
    size = rows.shape[1]
    try:
        faiss = importlib.import_module("faiss")
        faiss.omp_set_num_threads(torch.get_num_threads())
        flat = faiss.IndexFlatIP(size)
        flat.add(rows)
        made["faiss IndexFlatIP"] = lambda queries: flat.search(queries, 1)[1][:, 0]
        coarse = faiss.IndexScalarQuantizer(size, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        coarse.train(rows[:100_000])
        coarse.add(rows)
        made["faiss SQ8, 1,000 reranked"] = lambda queries: reranked(coarse.search(queries, 1000)[1], queries)
    except ImportError:
        print("faiss is not installed")
    try:
        usearch = importlib.import_module("usearch.index")
        numbers = np.clip(np.rint(rows * (127 / 0.3)), -127, 127).astype(np.int8)

        def by_usearch(queries: Rows) -> Rows:
            rounded = np.clip(np.rint(queries * (127 / 0.3)), -127, 127).astype(np.int8)
            found = usearch.search(
                numbers, rounded, 1000, usearch.MetricKind.IP, exact=True, threads=torch.get_num_threads()
            )
            return reranked(np.atleast_2d(found.keys), queries)

        made["usearch exact i8, 1,000 reranked"] = by_usearch
    except ImportError:
        print("usearch is not installed")
    return made


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--templates", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "gallery-bench")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--only-ours", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[given.clock]
    rows, queries = make(given.templates, given.size, given.queries)
    best, score = exact_best(rows, queries)
    store, cost = ours(rows, given.folder)

    def gallery(asked: Rows) -> Rows:
        return np.array([int(answer[0][0].split()[1]) for answer in store.search(asked, 1)])

    searches: dict[str, Callable[[Rows], Rows]] = {
        "attfc gallery": gallery,
        "float32 product": lambda asked: exact_best(rows, asked)[0],
    }
    if not given.only_ours:
        searches |= others(rows)
    found: dict[str, dict[str, float]] = {}
    for name, search in searches.items():
        few = slice(None, None, 1 if name in ("attfc gallery", "float32 product") else 5)
        found[name] = agreement(search, rows, queries[few], best[few], score[few])
        print(name, found[name], flush=True)
    print("timing", flush=True)
    for name, search in searches.items():
        found[name] |= timed(search, queries, given.repeats, clock)
        print(name, found[name], flush=True)
    results: dict[str, Any] = {"changes": cost, "search": found}
    print(cost)
    versions = {}
    for package in ("faiss-cpu", "usearch"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    config = {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()} | versions
    print(write_result("gallery", config, results))
    store.close()
    shutil.rmtree(given.folder)


if __name__ == "__main__":
    main()
