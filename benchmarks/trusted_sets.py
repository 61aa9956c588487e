"""How many planted doubles, leaks, wrong labels and near copies `attfc data clean` finds, and what of it was not planted.

    python benchmarks/trusted_sets.py plant --faces FACES112 --work WORK
    attfc train WORK/train.tsv backbone.name=r10_tiny epochs=6 eval.root=WORK/val.tsv output=WORK/runs
    python benchmarks/trusted_sets.py faces --work WORK --run WORK/runs/NAME
    python benchmarks/trusted_sets.py generate --work VECTORS --images 1000000
    python benchmarks/trusted_sets.py vectors --work VECTORS

`plant` writes two list files in which people are split into two labels, people and single images of the evaluation set stand in the
training set under other names, labels are exchanged, and images are re-encoded. All names are numbered anew, so nothing is found by name.
What faces112 holds by itself counts as a false find. Writes results/trusted_sets.json: counts only, no name and no image.
"""

import argparse
import io
import json
import resource
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import RESULTS, write_result
from PIL import Image

from attfc.data import FolderStore, IdentityIndex, Store, open_store
from attfc.data.cleaning.clean import clean
from attfc.data.cleaning.findings import CleaningReport
from attfc.data.cleaning.identity_centers import BLOCK_ROWS, identity_centers
from attfc.data.cleaning.same_people import alike
from attfc.data.stores.store import IndexedStore
from attfc.evaluation import embed_store, evaluate_pairs, generate_pairs
from attfc.export import load

Int64 = npt.NDArray[np.int64]
Float = npt.NDArray[np.floating[Any]]

DIMENSIONS = 128
PER_IMAGE, PER_IDENTITY = 80, 100
BLOCKS = 64 * 2**20 + 3 * BLOCK_ROWS * DIMENSIONS * 4
DOUBLES, LEAKS, SINGLE_LEAKS, WRONG, COPIES = 40, 30, 30, 400, 200


def plant(faces: Path, work: Path, seed: int = 0) -> dict[str, Any]:
    """Write the two lists and what was planted into them; return the latter."""
    draw = np.random.default_rng(seed)
    train, val = FolderStore(faces / "train"), FolderStore(faces / "val")
    counts = train.identities.counts()
    names = [str(number) for number in draw.permutation(9 * 10**5)[: len(counts) + 1000]]
    own = names[: len(counts)]
    free = iter(names[len(counts) :])
    label = [own[int(each)] for each in train.identities.labels()]
    planted: dict[str, Any] = {"doubles": [], "leaked_people": [], "leaked_images": [], "wrong": [], "copies": []}
    for person in draw.permutation(np.flatnonzero(counts >= 8))[:DOUBLES].tolist():
        other = next(free)
        planted["doubles"].append([own[person], other])
        for position in draw.permutation(train.identities.of(person))[: counts[person] // 2].tolist():
            label[position] = other
    exchanged = draw.permutation(np.flatnonzero(counts[train.identities.labels()] >= 5))[:WRONG]
    rows = [(train.image_path(position), label[position]) for position in range(len(train))]
    for position, other in zip(exchanged.tolist(), np.roll(exchanged, 1).tolist(), strict=True):
        if train.labels(position) != train.labels(other):
            planted["wrong"].append(position)
            rows[position] = (rows[position][0], label[other])
    evaluated = [(val.image_path(position), f"e{int(val.labels(position)):05d}") for position in range(len(val))]
    several = np.flatnonzero(val.identities.counts() >= 4)
    leaked = draw.permutation(several)[: LEAKS + SINGLE_LEAKS].tolist()
    hosts = draw.permutation(np.flatnonzero(counts >= 8))[:SINGLE_LEAKS].tolist()
    gone = set()
    for number, person in enumerate(leaked):
        moved = draw.permutation(val.identities.of(person))
        moved = moved[: len(moved) // 2] if number < LEAKS else moved[:1]
        target = next(free) if number < LEAKS else own[hosts[number - LEAKS]]
        if number < LEAKS:
            planted["leaked_people"].append(target)
        else:
            planted["leaked_images"].append(len(rows))
        rows += [(evaluated[position][0], target) for position in moved.tolist()]
        gone.update(moved.tolist())
    (work / "copies").mkdir(parents=True, exist_ok=True)
    for number, position in enumerate(draw.permutation(len(train))[:COPIES].tolist()):
        image = Image.open(io.BytesIO(train.read(position)[0]))
        image = image.resize((104, 104)).resize((112, 112)) if number % 2 else image
        path = work / "copies" / f"{number}.jpg"
        image.save(path, "JPEG", quality=50 + number % 40)
        planted["copies"].append([len(rows), position])
        rows.append(
            (bytes(path.absolute()), rows[position][1] if number < COPIES // 2 else own[int(draw.integers(len(own)))])
        )
    keep = [row for position, row in enumerate(evaluated) if position not in gone]
    for name, lines in (("train", rows), ("val", keep)):
        (work / f"{name}.tsv").write_bytes(b"".join(path + b"\t" + to.encode() + b"\n" for path, to in lines))
    (work / "planted.json").write_text(json.dumps(planted), "utf-8")
    return planted


def rates(found: set[Any], planted: set[Any], known: set[Any] | None = None) -> dict[str, float | int]:
    """Return counts, recall and precision; `known`: what may be found and is not counted, such as the other side of a pair."""
    right = len(found & planted)
    others = len(found - planted - (known or set()))
    return {
        "planted": len(planted),
        "found": right,
        "others_found": others,
        "recall": round(right / max(len(planted), 1), 4),
        "precision": round(right / max(right + others, 1), 4),
    }


def by_reason(report: CleaningReport) -> dict[str, set[int]]:
    """Return the positions that were changed for each reason, told by their comments."""
    marks = {
        "near_copy": "near copy of ",
        "wrong": " to the center of ",
        "person": " between the centers of ",
        "image": "of val",
    }
    found: dict[str, set[int]] = {reason: set() for reason in marks}
    assert report.edits.comments is not None
    for position, comment in zip(report.edits.positions.tolist(), report.edits.comments, strict=True):
        for reason, mark in marks.items():
            if mark in comment and (reason != "image" or " between the centers of " not in comment):
                found[reason].add(position)
    return found


def of_pairs(report: CleaningReport, planted: list[list[str]]) -> dict[str, Any]:
    """Return how the pairs of labels that are one person compare with those planted."""
    pairs = [pair for pair in report.pairs if not pair.between]
    threshold = {"threshold": pairs[0].threshold} if pairs else {}
    return rates({frozenset(pair.names) for pair in pairs}, set(map(frozenset, planted))) | threshold


def faces(work: Path, run: Path) -> dict[str, Any]:
    """Clean the planted list with a model and compare what is found with what was planted."""
    planted = json.loads((work / "planted.json").read_text("utf-8"))
    train, val = open_store(work / "train.tsv"), open_store(work / "val.tsv")

    model = load(run, device="cpu")
    embeddings, theirs = (embed_store(model.module, store).vectors.astype(np.float16) for store in (train, val))
    begun = time.perf_counter()
    report = clean(train, broken=False, against=val, embeddings=embeddings, against_embeddings=theirs, people=True)
    seconds = time.perf_counter() - begun
    found = by_reason(report)
    labels = {train.identity_name(label): label for label in range(len(train.identities))}
    people = {int(train.labels(position)) for position in found["person"]}
    leaked = {labels[name] for name in planted["leaked_people"]}
    copies = {position for pair in planted["copies"] for position in pair}
    hit = {pair[0] for pair in planted["copies"] if found["near_copy"] & set(pair)}
    keeps = (
        identity_centers(rows, store.identities.labels(), len(store.identities), 0.3)
        for rows, store in ((embeddings, train), (theirs, val))
    )
    means = alike(*keeps).found
    results = {
        "images": len(train),
        "evaluation_images": len(val),
        "seconds_of_cleaning": round(seconds, 1),
        "labels that are one person": of_pairs(report, planted["doubles"]),
        "people of the evaluation set": rates(people, leaked),
        "the same, mean against mean": rates(set(means.tolist()), leaked),
        "single images of evaluation people": rates(found["image"], set(planted["leaked_images"])),
        "wrong labels, threshold 0.3": rates(
            found["wrong"], set(planted["wrong"]), set(planted["leaked_images"]) | copies
        ),
        "near copies": rates(
            hit | {-1 - p for p in found["near_copy"] - copies}, {pair[0] for pair in planted["copies"]}
        ),
    }
    careful = by_reason(clean(train, broken=False, duplicates=None, embeddings=embeddings, margin=0.5))["wrong"]
    results["wrong labels, margin 0.5"] = rates(careful, set(planted["wrong"]), set(planted["leaked_images"]) | copies)
    pairs = evaluate_pairs_of(theirs, val)
    return {**results, "model": pairs}


def evaluate_pairs_of(embeddings: Float, store: Store) -> dict[str, float]:
    """Return how good the model is on the people of the evaluation set."""
    pairs = generate_pairs(store.identities, 2000, 0)
    rows = embeddings.astype(np.float32)[np.stack([pairs.first, pairs.second], axis=1).ravel()]
    found = evaluate_pairs(rows, pairs.same)
    return {"accuracy": round(float(found.accuracy), 4)}


class Vectors(IndexedStore):
    """A store without images: who is who, for embeddings that are generated."""

    def __init__(self, labels: Int64, prefix: str) -> None:
        self._index, self.prefix = IdentityIndex.from_labels(labels), prefix
        self.path = Path(prefix)
        self.name = prefix

    @property
    def identities(self) -> IdentityIndex:
        """Who is who."""
        return self._index

    def labels(self, positions: npt.ArrayLike) -> Int64:
        """Return the labels of positions."""
        return self._index.labels()[positions]

    def identity_name(self, label: int) -> str:
        """Return a name that is made of the number."""
        return f"{self.prefix}{label}"

    def where(self, position: int) -> str:
        """Return the number."""
        return f"{self.prefix} {position}"


def generate(folder: Path, images: int, seed: int = 0) -> dict[str, Any]:
    """Write embeddings of `images` images, 20 a person, of a person's with a cosine of 0.4 to each other; plant doubles, leaks, wrong labels."""
    draw = np.random.default_rng(seed)
    people, each, evaluated = images // 20, 20, 1000
    rows = np.lib.format.open_memmap(folder / "rows.npy", "w+", np.float16, (images, DIMENSIONS))
    directions = draw.standard_normal((people + evaluated, DIMENSIONS)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    labels = np.repeat(np.arange(people), each)
    of = labels.copy()  # whose face it is in truth
    doubles = draw.permutation(people)[: people // 100]
    labels[np.isin(labels, doubles) & (np.arange(images) % each >= each // 2)] += people
    labels = np.unique(labels, return_inverse=True)[1]
    wrong = draw.permutation(images)[: images // 100]
    of[wrong] = draw.integers(0, people, len(wrong))
    persons = draw.permutation(np.setdiff1d(np.arange(people), doubles))
    leaked, hosts = persons[:200], persons[200:400]
    base = np.repeat(np.arange(people), each)
    for number, person in enumerate(leaked.tolist()):
        of[base == person] = people + number
    single = np.array([int(np.flatnonzero(base == person)[0]) for person in hosts.tolist()])
    of[single] = people + 200 + np.arange(200)
    for start in range(0, images, 65_536):
        part = of[start : start + 65_536]
        rows[start : start + 65_536] = noisy(directions[part], draw)
    theirs = np.repeat(np.arange(evaluated), 4)
    np.save(folder / "theirs.npy", noisy(directions[people + theirs], draw).astype(np.float16))
    np.savez(
        folder / "who.npz",
        labels=labels,
        theirs=theirs,
        base=base,
        doubles=doubles,
        wrong=np.setdiff1d(wrong, single),
        leaked=leaked,
        single=single,
    )
    return {"people": people, "images": images, "dimensions": DIMENSIONS}


def noisy(directions: Float, draw: np.random.Generator) -> Float:
    """Return unit rows whose cosine to each other, for one direction, is 0.4 on average."""
    rows = directions + draw.standard_normal(directions.shape).astype(np.float32) * np.sqrt(1.5 / DIMENSIONS)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Peak(threading.Thread):
    """The highest anonymous memory of this process, in bytes, looked at 100 times per second; pages of mapped files do not count."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.begin = self.highest = self.now()
        self.start()

    @staticmethod
    def now() -> int:
        """Return the anonymous memory of now."""
        (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    def run(self) -> None:
        """Look, for as long as the process lives."""
        while True:
            self.highest = max(self.highest, self.now())
            time.sleep(0.01)


def vectors(folder: Path) -> dict[str, Any]:
    """Clean generated embeddings and compare what is found with what was planted; memory beside what docs/formats.md allows."""
    who = np.load(folder / "who.npz")
    labels, single = who["labels"], set(who["single"].tolist())
    store, against = Vectors(labels, "t"), Vectors(who["theirs"], "val")
    rows, theirs = (np.load(folder / name, mmap_mode="r") for name in ("rows.npy", "theirs.npy"))
    identities = len(store.identities)
    kept = PER_IMAGE * len(rows) + (PER_IDENTITY + 4 * DIMENSIONS) * identities
    peak, begun = Peak(), time.perf_counter()
    report = clean(
        store,
        broken=False,
        duplicates=None,
        against=against,
        names=False,
        embeddings=rows,
        against_embeddings=theirs,
        people=True,
    )
    seconds = time.perf_counter() - begun
    found = by_reason(report)
    firsts = np.searchsorted(who["base"], who["doubles"])
    halves = [[f"t{labels[first]}", f"t{labels[first + 10]}"] for first in firsts.tolist()]
    leaked = set(labels[np.searchsorted(who["base"], who["leaked"])].tolist())
    people = {int(label) for label in labels[sorted(found["person"])]}
    return {
        "seconds": round(seconds, 1),
        "memory_mib": round((peak.highest - peak.begin) / 2**20),
        "budget_mib": round((BLOCKS + kept) / 2**20),
        "kept_mib": round(kept / 2**20),
        "process_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "embeddings_mib": round(rows.nbytes / 2**20),
        "labels that are one person": of_pairs(report, halves),
        "people of the evaluation set": rates(people, leaked),
        "single images of evaluation people": rates(found["image"], single),
        "wrong labels, threshold 0.3": rates(found["wrong"], set(who["wrong"].tolist()), single),
    }


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("plant", "faces", "generate", "vectors"))
    parser.add_argument("--faces", type=Path, help="faces112, for plant")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--run", type=Path, help="trained on WORK/train.tsv, for faces")
    parser.add_argument("--images", type=int, default=1_000_000)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    if asked.part == "plant":
        plant(asked.faces, asked.work)
    elif asked.part == "generate":
        generate(asked.work, asked.images)
    else:
        result = faces(asked.work, asked.run) if asked.part == "faces" else vectors(asked.work)
        name = "faces" if asked.part == "faces" else f"vectors_{len(np.load(asked.work / 'rows.npy', mmap_mode='r'))}"
        kept = RESULTS / "trusted_sets.json"
        before = json.loads(kept.read_text("utf-8"))["results"] if kept.exists() else {}
        write_result("trusted_sets", {"seed": 0}, {**before, name: result})
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
