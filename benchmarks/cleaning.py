"""How many wrong labels and leaked people cleaning finds on real faces, what it loses, and what it costs.

    python benchmarks/cleaning.py --train FACES/train --evaluation FACES/val --model RUN/model [--embeddings FILE.npy]

Labels are flipped by hand in two ways: "exchange" gives the flipped images each other's labels (every identity keeps its size),
"identity" gives each of them any other identity at random, as the noise generator does (with many tiny identities most land
where nobody can tell). Leakage: half of the images of some people play the evaluation set. The embeddings are those of the model given,
whatever it was trained on; a model that saw the images with their right labels flatters the figures. Writes
results/cleaning.json: counts and shares only, no name and no image.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import write_result

from attfc.data import open_store
from attfc.data.cleaning.duplicates import find_duplicates, read_contents
from attfc.data.cleaning.identity_centers import center_blocks, identity_centers
from attfc.data.cleaning.label_cleaning import Mislabelled, mislabelled
from attfc.data.cleaning.same_people import alike
from attfc.data.content_hash import equal_groups
from attfc.evaluation import embed_store, evaluate_pairs, generate_pairs
from attfc.training.model_files import load_model

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

SHARE, SEEDS = 0.05, (0, 1, 2)
THRESHOLDS, MARGINS = (0.1, 0.2, 0.3, 0.4, 0.5), (None, 0.3, 0.4, 0.5)


def flipped(labels: Int64, kind: str, seed: int) -> Int64:
    """Return the labels with 5 % of them wrong."""
    draw = np.random.default_rng(seed)
    chosen = np.flatnonzero(draw.random(len(labels)) < SHARE)
    wrong = labels.copy()
    if kind == "exchange":
        wrong[chosen] = labels[draw.permutation(chosen)]
    else:
        identities = int(labels.max()) + 1
        wrong[chosen] = (labels[chosen] + draw.integers(1, identities, len(chosen))) % identities
    return wrong


def average_precision(scores: Float32, wrong: npt.NDArray[np.bool_]) -> float:
    """Return the mean precision over the wrong images, most suspicious (lowest score) first."""
    hits = wrong[np.argsort(scores, kind="stable")]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def wrong_labels(embeddings: Float32, labels: Int64) -> dict[str, Any]:
    """Precision and recall of `mislabelled`, means over the seeds."""
    results: dict[str, Any] = {}
    for kind in ("exchange", "identity"):
        rows: dict[tuple[float, float | None], list[list[float]]] = {}
        ranking: list[list[float]] = []
        for seed in SEEDS:
            given = flipped(labels, kind, seed)
            wrong = given != labels
            ranking.append(robust_against_plain(embeddings, given, wrong))
            for threshold in THRESHOLDS:
                found = mislabelled(embeddings, given, threshold, margin=-2.0)  # nearest centers without a condition
                unclear = np.isin(given, found.unclear) | (np.bincount(given)[given] < 2)
                for margin in MARGINS:
                    kept = closer(found, margin)
                    hits = int(wrong[kept].sum())
                    rows.setdefault((threshold, margin), []).append(
                        [
                            len(kept),
                            hits / max(len(kept), 1),
                            hits / wrong.sum(),
                            hits / (wrong & ~unclear).sum(),
                            (len(kept) - hits) / (~wrong).sum(),
                        ]
                    )
        names = ("found", "precision", "recall", "recall_in_clear_identities", "sound_images_lost")
        results[kind] = {
            "wrong": int(np.mean([(flipped(labels, kind, seed) != labels).sum() for seed in SEEDS])),
            "average_precision_robust_center": round(float(np.mean([r[0] for r in ranking])), 3),
            "average_precision_plain_mean": round(float(np.mean([r[1] for r in ranking])), 3),
            "settings": [
                {"threshold": threshold, "margin": margin}
                | dict(zip(names, (round(float(v), 4) for v in np.mean(values, axis=0)), strict=True))
                for (threshold, margin), values in rows.items()
            ],
        }
    results["no_flips"] = [
        {"threshold": t, "margin": m, "found": len(closer(found, m))}
        for t in THRESHOLDS
        for found in (mislabelled(embeddings, labels, t, margin=-2.0),)
        for m in MARGINS
    ]
    return results


def closer(found: Mislabelled, margin: float | None) -> Int64:
    """Return the images that `mislabelled` would have found with this margin."""
    if margin is None:
        return found.positions
    return found.positions[found.nearest_cosines >= found.cosines + margin]


def robust_against_plain(embeddings: Float32, given: Int64, wrong: npt.NDArray[np.bool_]) -> list[float]:
    """Average precision of the robust leave-one-out cosine and of the cosine to the plain mean, identities of 3 and more images."""
    robust = np.full(len(given), np.nan, np.float32)
    for block in center_blocks(embeddings, given, 0.3):
        robust[block.rows] = block.cosines
    sums = np.zeros((int(given.max()) + 1, embeddings.shape[1]))
    np.add.at(sums, given, embeddings)
    plain = np.einsum("nd,nd->n", embeddings, sums[given]) / np.linalg.norm(sums[given], axis=1)
    large = np.bincount(given)[given] >= 3
    return [average_precision(score[large], wrong[large]) for score in (robust, plain)]


def moves(embeddings: Float32, labels: Int64) -> list[dict[str, float]]:
    """Where `policy="move"` sends images: how many were flipped, how many come home."""
    results = []
    for move_threshold in (0.5, 0.6, 0.65, 0.7, 0.75):
        counts = []
        for seed in SEEDS:
            given = flipped(labels, "exchange", seed)
            found = mislabelled(embeddings, given, 0.3, policy="move", move_threshold=move_threshold)
            goes = found.moved_to >= 0
            at, to = found.positions[goes], found.moved_to[goes]
            counts.append([len(at), (given[at] != labels[at]).mean(), (to == labels[at]).mean()])
        moved, was_wrong, home = np.mean(counts, axis=0)
        results.append(
            {
                "threshold": 0.3,
                "move_threshold": move_threshold,
                "moved": round(moved, 1),
                "share_that_was_wrong": round(was_wrong, 3),
                "share_moved_home": round(home, 3),
            }
        )
    return results


def leakage(embeddings: Float32, labels: Int64) -> list[dict[str, float]]:
    """Recall and false alarms of `alike`.

    People with at least 4 images. Every third is in both sets with half of the images each; the rest alternate between the sets.
    """
    counts = np.bincount(labels)
    results = []
    for low, high in ((4, 9), (10, 10_000)):
        people = np.flatnonzero((counts >= low) & (counts <= high))
        train, evaluation = np.full(len(labels), -1, np.int64), np.full(len(labels), -1, np.int64)
        for number, label in enumerate(people.tolist()):
            images = np.flatnonzero(labels == label)
            if number % 3 == 0:
                train[images[::2]], evaluation[images[1::2]] = number, number
            else:
                (train if number % 3 == 1 else evaluation)[images] = number
        ours, theirs = (identity_centers(embeddings, side, len(people), 0.3) for side in (train, evaluation))
        leaked, in_train = np.arange(0, len(people), 3), np.unique(train[train >= 0])
        for threshold in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
            found = alike(ours, theirs, threshold)
            right = int((found.found == found.best[found.found]).sum())
            results.append(
                {
                    "images_per_person": f"{low}-{high}" if high < 10_000 else f"{low}+",
                    "threshold": threshold,
                    "leaked": len(leaked),
                    "found": right,
                    "others_in_train": len(in_train) - len(leaked),
                    "others_dropped": int(np.setdiff1d(found.found, leaked).size),
                }
            )
    return results


def costs(store: Any) -> dict[str, Any]:
    """Speed of reading and of centers, memory beside the mapped embeddings."""
    results: dict[str, Any] = {}
    for name, decode in (("decoded", True), ("hashed_only", False)):
        began = time.perf_counter()
        contents = read_contents(store, decode=decode)
        results[f"{name}_images_per_second"] = round(len(store) / (time.perf_counter() - began))
    found = find_duplicates(store, contents=contents)
    results["copies_in_the_set"] = {"within": int((~found.across).sum()), "across": int(found.across.sum())}
    with tempfile.TemporaryDirectory() as folder:
        rows, identities = 400_000, 20_000
        path = Path(folder) / "embeddings.npy"
        mapped = np.lib.format.open_memmap(path, "w+", np.float16, (rows, 512))
        draw = np.random.default_rng(0)
        for start in range(0, rows, 20_000):
            mapped[start : start + 20_000] = draw.standard_normal((20_000, 512), np.float32)
        labels = np.arange(rows) * identities // rows
        mapped = np.load(path, mmap_mode="r")
        before = anonymous_mib()
        peaks = [before]
        began = time.perf_counter()
        mislabelled(mapped, labels, 0.3, progress=lambda done, total: peaks.append(anonymous_mib()))
        results["centers_images_per_second_float16_map"] = round(rows / (time.perf_counter() - began))
        results["centers_mib_between_blocks"] = round(max(peaks) - before)
    images = 42_000_000
    hashes = np.random.default_rng(0).integers(0, 2**63, images).astype(np.uint64)
    began = time.perf_counter()
    equal_groups(hashes)
    results["groups_of_42_million_hashes_seconds"] = round(time.perf_counter() - began, 1)
    results["peak_resident_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return results


def anonymous_mib() -> float:
    """Memory of this process without the pages of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--train", required=True, help="folder of identities")
    parser.add_argument("--evaluation", required=True, help="folder of other identities, to say how good the model is")
    parser.add_argument("--model", required=True, type=Path, help="folder with model.safetensors")
    parser.add_argument("--model-note", default="", help="what the model was trained on and for how long")
    parser.add_argument("--index-cache", default=None)
    parser.add_argument("--embeddings", type=Path, default=None, help="where the embeddings are kept between runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    store = open_store(arguments.train, cache=arguments.index_cache)
    labels = store.identities.labels()
    if arguments.embeddings is not None and arguments.embeddings.exists():
        embeddings = np.load(arguments.embeddings)
    else:
        embeddings = embed_store(load_model(arguments.model)[0], store).vectors
        if arguments.embeddings is not None:
            np.save(arguments.embeddings, embeddings)
    unseen = open_store(arguments.evaluation, cache=arguments.index_cache)
    theirs = embed_store(load_model(arguments.model)[0], unseen).vectors
    pairs = generate_pairs(unseen.identities, 6000)
    rows = np.stack([pairs.first, pairs.second], axis=1).ravel()
    counts = np.bincount(labels)
    results = {
        "pair_accuracy_of_the_model_on_other_people": round(
            evaluate_pairs(theirs[rows], pairs.same, pairs.fold, thresholds="exact").accuracy, 3
        ),
        "wrong_labels": wrong_labels(embeddings, labels),
        "moves": moves(embeddings, labels),
        "leakage": leakage(embeddings, labels),
        "costs": costs(store),
    }
    config = {
        "images": len(store),
        "identities": len(counts),
        "identities_of_1_2_and_more_images": [
            int((counts == 1).sum()),
            int((counts == 2).sum()),
            int((counts > 2).sum()),
        ],
        "model": arguments.model_note,
        "share_flipped": SHARE,
        "seeds": list(SEEDS),
    }
    print(write_result("cleaning", config, results))


if __name__ == "__main__":
    main()
