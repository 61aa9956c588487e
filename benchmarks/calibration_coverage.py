"""How often the bounds of `attfc calibrate` hold, and what the two usual ways to choose a threshold really give, on people whose rates are known.

    python benchmarks/calibration_coverage.py [--runs 500] [--only plain] [--people 40]

Generated people: a direction each, images around it, 1 to 20 per person, some people blurred more than others. `plain` people look alike by chance
alone; of `alike` people some share a common look, so that few of them cause most false matches ("wolves"); of `much alike` people a few percent do.
Their true FMR and FNMR at any threshold are those of a population of 300,000. Each run draws people, calibrates, and asks whether the true FMR of the
threshold given is below the bound stated (95 % should be), and the true FNMR within its interval.

Beside it, on the same sets: the threshold of best accuracy on as many nonmated as mated pairs, with the FMR of these pairs; and the threshold at the
asked FAR on all pairs, judged on the same pairs. Writes results/calibration_coverage.json.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import numpy.typing as npt
from common import RESULTS, write_result

from attfc.errors import UserError
from attfc.evaluation.operating_point.bounds import rate_bounds
from attfc.evaluation.operating_point.calibrating import calibrate_scores
from attfc.evaluation.operating_point.scores import Scores, scores_of_people

Float = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

DIMENSION, POPULATION, BINS = 48, 300_000, 20_000
ALIKE = {"plain": 0.0, "alike": 0.25, "much alike": 0.4}
CASES = ((40, 5e-2), (100, 1e-2), (400, 5e-4))  # people, asked FMR
SPLITS = 50


class People:
    """A population: draws people and their images, and knows its error rates.

    Args:
        alike: how much people differ in how far they have the common look; 0: there is none.
    """

    def __init__(self, alike: float) -> None:
        self.alike = alike
        self.spread = np.exp(-np.arange(DIMENSION) / 24)
        self.spread /= np.linalg.norm(self.spread)
        draw = np.random.default_rng([9, int(1000 * alike)])
        self.edges = np.linspace(-1, 1, BINS + 1)
        counts = np.zeros(BINS, dtype=np.int64)
        for _ in range(
            POPULATION // 2000
        ):  # all pairs of 2,000 people at a time: what counts is how many people there are
            faces = self.images(draw, np.ones(2000, dtype=np.int64)).astype(np.float32)
            scores = (faces @ faces.T)[np.tri(2000, k=-1, dtype=np.bool_)]
            counts += np.bincount(((scores + 1) * (BINS / 2)).astype(np.int32), minlength=BINS)[:BINS]
        self.above = np.append(counts[::-1].cumsum()[::-1] / counts.sum(), 0.0)
        pairs = self.images(draw, np.full(200_000, 2)).reshape(-1, 2, DIMENSION)
        self.mated = np.sort((pairs[:, 0] * pairs[:, 1]).sum(axis=1))

    def images(self, draw: np.random.Generator, images_I: Int64) -> Float:
        """Return unit embeddings of new people with so many images each, (N, D)."""
        people = len(images_I)
        look = draw.standard_normal((people, DIMENSION)) * self.spread
        look[:, 0] += self.alike * draw.standard_normal(people)
        look /= np.linalg.norm(look, axis=1, keepdims=True)
        blur = np.exp(draw.normal(np.log(0.7), 0.25, people)) / np.sqrt(DIMENSION)
        of_N = np.repeat(np.arange(people), images_I)
        faces = look[of_N] + blur[of_N, None] * draw.standard_normal((len(of_N), DIMENSION))
        return np.asarray(faces / np.linalg.norm(faces, axis=1, keepdims=True))

    def fmr(self, threshold: float) -> float:
        """The true false match rate."""
        return float(np.interp(threshold, self.edges, self.above))

    def fnmr(self, threshold: float) -> float:
        """The true false non-match rate."""
        return float(np.searchsorted(self.mated, threshold, side="right") / len(self.mated))


def best_accuracy(scores: Scores, draw: np.random.Generator) -> tuple[float, float]:
    """Return the threshold of best accuracy on all mated and as many nonmated pairs, and the FMR of these pairs."""
    nonmated = draw.choice(scores.sampled, len(scores.mated), replace=len(scores.mated) > len(scores.sampled))
    both = np.concatenate([scores.mated, nonmated])
    order = np.argsort(both, kind="stable")
    rejected_same = np.cumsum(order < len(scores.mated))
    rejected_other = np.cumsum(order >= len(scores.mated))
    threshold = float(both[order][np.argmax(rejected_other - rejected_same)])
    return threshold, float(np.mean(nonmated > threshold))


def same_pairs(scores: Scores, fmr: float) -> tuple[float, float, int]:
    """Return the threshold at a FAR of all pairs of images, the bound of its FAR as if they were independent, and their number."""
    images = int(scores.images_I.sum())
    pairs = images * (images - 1) // 2 - int(scores.mated_pairs.sum())
    allowed = int(fmr * pairs + 1e-9)
    return float(scores.tail.scores[allowed]), rate_bounds(allowed / pairs, pairs, 1e7)[1], pairs


def run_case(world: People, people: int, fmr: float, runs: int) -> dict[str, Any]:
    """Draw people `runs` times, calibrate, and compare what is stated with what is true."""
    found: dict[str, list[float]] = {}

    def note(**values: float) -> None:
        for name, value in values.items():
            found.setdefault(name, []).append(float(value))

    start = time.perf_counter()
    for run in range(runs):
        draw = np.random.default_rng([people, run, int(1000 * world.alike)])
        images_I = 1 + np.minimum(draw.geometric(0.3, people) - 1, 19)
        labels = np.repeat(np.arange(people), images_I)
        scores = scores_of_people(world.images(draw, images_I).astype(np.float32), labels, fmr, seed=run)
        try:
            point = calibrate_scores(scores, fmr, where="generated people", splits=SPLITS, seed=run)
        except UserError:  # these people depend on each other too much for the FMR
            note(refused_holds=1)
            continue
        note(refused_holds=0)
        true, missed = world.fmr(point["threshold"]), world.fnmr(point["threshold"])
        low, high = point["threshold_interval"]
        right = float(np.interp(-fmr, -world.above, world.edges))
        note(
            bound_holds=true <= point["fmr_upper"],
            fnmr_holds=point["fnmr"].low <= missed <= point["fnmr"].high,
            threshold_holds=(low is None or low <= right) and (high is None or right <= high),
            true_over_asked=true / fmr,
            stated_over_true=point["fmr"] / true,
            bound_over_asked=point["fmr_upper"] / fmr,
            worth_of_a_pair=point["worth"] / point["comparisons"],
        )
        threshold, stated = best_accuracy(scores, draw)
        note(accuracy_holds=world.fmr(threshold) <= stated, accuracy_over_asked=world.fmr(threshold) / fmr)
        threshold, bound, _ = same_pairs(scores, fmr)
        true = world.fmr(threshold)
        note(same_holds=true <= fmr, same_bound_holds=true <= bound, same_over_asked=true / fmr)
    row: dict[str, Any] = {"people": people, "fmr": fmr, "runs": runs, "seconds": time.perf_counter() - start}
    for name, values in found.items():
        if name.endswith("holds"):
            row[name] = float(np.mean(values))
        else:
            row[name] = dict(
                zip(("low", "median", "high"), np.quantile(values, (0.05, 0.5, 0.95)).tolist(), strict=True)
            )
    return row


def main() -> None:
    """Run the cases asked for and write the JSON; what it holds of other cases stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--only", choices=[*ALIKE], help="one kind of people")
    parser.add_argument("--people", type=int, help="one number of people")
    asked = parser.parse_args()
    file = RESULTS / "calibration_coverage.json"
    kept = json.loads(file.read_text())["results"] if file.is_file() else []
    rows = {(row["kind"], row["people"]): row for row in kept}
    for kind in [asked.only] if asked.only else ALIKE:
        world = People(ALIKE[kind])
        for people, fmr in CASES:
            if asked.people in (None, people):
                rows[kind, people] = {"kind": kind, **run_case(world, people, fmr, asked.runs)}
                print(rows[kind, people], flush=True)
    order = [rows[kind, people] for kind in ALIKE for people, _ in CASES if (kind, people) in rows]
    config = {"dimension": DIMENSION, "population": POPULATION, "splits": SPLITS, "alike": ALIKE}
    print(write_result("calibration_coverage", config, order))


if __name__ == "__main__":
    main()
