"""IJB-C's size on generated embeddings: pooling, 15.7 million scores, ROC, 1:N; seconds and resident memory.

469,375 faces of 512 numbers in memory-mapped files, as the cache leaves them, 23,124 templates (3,531 enrolled in two galleries, 19,593 probes),
15,658,489 pairs in random order, 19,557 of them genuine. Everything is made by seed in a temporary folder (1.9 GB); only the embedding is left out.
Run: python benchmarks/templates.py [--scale 0.1]
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from common import write_result

from attfc.evaluation.protocols.template_lists import SubjectList, TemplatePairs, read_template_lists
from attfc.evaluation.protocols.template_pooling import pool_templates
from attfc.evaluation.protocols.template_scores import search_templates, verify_templates

FACES, ENROLLED, PROBES, PAIRS, GENUINE, SIZE = 469_375, 3_531, 19_593, 15_658_489, 19_557, 512


class Clock:
    """Wall and processor seconds of named steps, and the largest resident memory so far in MiB."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, float]] = {}

    def __call__(self, name: str) -> "Clock":
        self._name = name
        return self

    def __enter__(self) -> None:
        self._begin = time.perf_counter(), time.process_time()

    def __exit__(self, *error: object) -> None:
        self.steps[self._name] = {
            "wall_s": round(time.perf_counter() - self._begin[0], 2),
            "processor_s": round(time.process_time() - self._begin[1], 2),
            "peak_resident_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        print(self._name, self.steps[self._name], flush=True)


def write_embeddings(folder: Path, subjects_N: npt.NDArray[np.int64], rng: np.random.Generator) -> None:
    """A center a subject, plus noise that leaves the protocol neither solved nor hopeless."""
    centers = rng.standard_normal((ENROLLED, SIZE), dtype=np.float32)
    for name in ("image.npy", "mirror.npy"):
        file = np.lib.format.open_memmap(folder / name, "w+", np.float32, (len(subjects_N), SIZE))
        for start in range(0, len(subjects_N), 8192):
            part = subjects_N[start : start + 8192]
            file[start : start + 8192] = centers[part] + 5 * rng.standard_normal((len(part), SIZE), dtype=np.float32)
        file.flush()


def main() -> None:
    """Generate, measure, write benchmarks/results/templates.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of faces and pairs, for trying")
    scale = parser.parse_args().scale
    faces, pairs, genuine = int(FACES * scale), int(PAIRS * scale), int(GENUINE * scale)
    rng = np.random.default_rng(0)
    subject_of = np.concatenate(
        [np.arange(ENROLLED), rng.integers(0, ENROLLED, PROBES)]
    )  # templates 0 ... ENROLLED - 1 are enrolled
    templates_N = np.sort(
        np.append(np.arange(len(subject_of)), rng.integers(0, len(subject_of), faces - len(subject_of)))
    )
    medias_N = rng.integers(0, 8, faces)
    scores_N = rng.uniform(0.3, 1.0, faces)
    clock = Clock()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_embeddings(folder, subject_of[templates_N], rng)
        probe = rng.choice(PROBES, genuine, replace=False) + ENROLLED
        first = np.concatenate([subject_of[probe], rng.integers(0, ENROLLED, pairs - genuine)])
        second = np.concatenate([probe, rng.integers(ENROLLED, len(subject_of), pairs - genuine)])
        order = rng.permutation(pairs)
        first, second = first[order], second[order]
        listed = TemplatePairs(first, second, subject_of[first] == subject_of[second])
        half = ENROLLED // 2
        galleries = [
            SubjectList("G1", np.arange(half), np.arange(half)),
            SubjectList("G2", np.arange(half, ENROLLED), np.arange(half, ENROLLED)),
        ]
        probes = SubjectList("mixed", np.arange(ENROLLED, len(subject_of)), subject_of[ENROLLED:])
        image, mirror = (np.load(folder / file, mmap_mode="r") for file in ("image.npy", "mirror.npy"))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        with clock("pooling"):
            templates = pool_templates(image, templates_N, medias_N, mirror=mirror, weights=scores_N)
        with clock("scores and ROC of 1:1"):
            verification = verify_templates(templates, listed)
        with clock("1:N, two galleries and both joined"):
            search = search_templates(templates, galleries, probes)
        write_lists(folder, listed)
        with clock("reading the list of pairs"):
            read = read_template_lists(folder, "ijbc")
        assert read.pairs is not None
        assert np.array_equal(read.pairs.first, first)
    one = sum(clock.steps[step]["wall_s"] for step in ("pooling", "scores and ROC of 1:1"))
    results = {
        "steps": clock.steps,
        "pooling_scoring_roc_wall_s": round(one, 2),
        "peak_resident_before_mib": before,
        "figures": {
            "verification": verification.figures(),
            "search": {**search.figures(), "galleries": None, "published": None},
        },
    }
    config = {
        "faces": faces,
        "templates": len(subject_of),
        "pairs": pairs,
        "genuine_pairs": verification.genuine_pairs,
        "embedding_size": SIZE,
        "gallery": ENROLLED,
        "probes": PROBES,
    }
    if scale == 1.0:
        print(write_result("templates", config, results))
    else:
        print(results)


def write_lists(folder: Path, pairs: TemplatePairs) -> None:
    """As much of a released folder as the reader needs; the list of pairs in full."""
    (folder / "loose_crop").mkdir()
    (folder / "meta").mkdir()
    (folder / "meta" / "ijbc_name_5pts_score.txt").write_text("1.jpg 38 51 73 51 56 71 41 92 70 92 0.9\n")
    (folder / "meta" / "ijbc_face_tid_mid.txt").write_text("1.jpg 1 1\n")
    with (folder / "meta" / "ijbc_template_pair_label.txt").open("w") as file:
        for start in range(0, len(pairs), 1_000_000):
            part = slice(start, start + 1_000_000)
            rows = zip(pairs.first[part].tolist(), pairs.second[part].tolist(), pairs.same[part].tolist(), strict=True)
            file.write("".join(f"{a} {b} {int(same)}\n" for a, b, same in rows))


if __name__ == "__main__":
    main()
