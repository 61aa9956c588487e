"""All pairs of 160,000 images of 24,000 identities, against the bare matrix products of the same run.

Embeddings are generated: a direction for each identity, 512 numbers, an angle of its own for each image. After every fourth
block of rows the same block is multiplied once more with nothing else done: both kinds of work see the same machine, so
their ratio holds on a busy one. The extrapolation to MFR-ALL multiplies seconds a pair by its pairs; nothing of that
size was run.

    python benchmarks/all_pairs.py [--images 160000] [--identities 24000] [--budget-gib 2]
"""

import argparse
import resource
import time
from typing import Any

import numpy as np
import torch
from common import write_result

from attfc.evaluation import ALL_PAIRS_FARS, score_all_pairs
from attfc.evaluation.protocols.highest_impostors import COLUMNS, ROWS

DIMENSION = 512
MFR_IMAGES, MFR_IDENTITIES = 1_624_305, 242_143


def generated(images: int, identities: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, 512) float32 and (N,) labels; every identity has an image, the rest fall anywhere."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.concatenate([np.arange(identities), rng.integers(0, identities, images - identities)]))
    centers = rng.standard_normal((identities, DIMENSION), dtype=np.float32)
    noise = rng.standard_normal((images, DIMENSION), dtype=np.float32)
    # Lengths of the noise between 0.5 and 2.5 times that of the center: cosines of one person from 0.9 down to 0.14.
    noise *= rng.uniform(0.5, 2.5, (images, 1)).astype(np.float32)
    noise += centers[labels]
    return noise, labels


class BareProducts:
    """Called after each block of rows; multiplies every fourth one again, into the same kind of buffer."""

    def __init__(self, rows: np.ndarray, every: int = 4) -> None:
        self.rows = torch.from_numpy(rows)
        self.height, self.width, self.every = ROWS["cpu"], COLUMNS["cpu"], every
        self.buffer = torch.empty(self.height * self.width)
        self.block = self.pairs = 0
        self.seconds = self.processor_seconds = 0.0

    def __call__(self, done: int, total: int) -> None:
        start = self.block * self.height
        self.block += 1
        if self.block % self.every:
            return
        wall, processor = time.perf_counter(), time.process_time()
        images = len(self.rows)
        stop = min(start + self.height, images)
        for left in range(start, images, self.width):
            right = min(left + self.width, images)
            out = self.buffer[: (stop - start) * (right - left)].view(stop - start, right - left)
            torch.mm(self.rows[start:stop], self.rows[left:right].T, out=out)
        self.pairs += (stop - start) * (images - stop) + (stop - start) * (stop - start - 1) // 2
        self.seconds += time.perf_counter() - wall
        self.processor_seconds += time.process_time() - processor


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=160_000)
    parser.add_argument("--identities", type=int, default=24_000)
    parser.add_argument("--budget-gib", type=float, default=2.0)
    parser.add_argument("--name", default="all_pairs")
    options = parser.parse_args()
    rows, labels = generated(options.images, options.identities)
    budget = int(options.budget_gib * 2**30)
    bare = BareProducts(rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    wall, processor = time.perf_counter(), time.process_time()
    found = score_all_pairs(rows, labels, fars=ALL_PAIRS_FARS, budget=budget, progress=bare)
    wall, processor = (
        time.perf_counter() - wall - bare.seconds,
        time.process_time() - processor - bare.processor_seconds,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pairs = options.images * (options.images - 1) // 2
    share = pairs / bare.pairs
    products, products_processor = bare.seconds * share, bare.processor_seconds * share
    mfr_pairs = MFR_IMAGES * (MFR_IMAGES - 1) // 2
    results: dict[str, Any] = {
        "pairs": pairs,
        "seconds": wall,
        "bare_products_seconds": products,
        "ratio_to_bare_products": wall / products,
        "processor_seconds": processor,
        "bare_products_processor_seconds": products_processor,
        "processor_ratio_to_bare_products": processor / products_processor,
        "gflops_of_bare_products": 2e-9 * DIMENSION * pairs / products,
        "bare_products_were_measured_on_a_share_of": bare.pairs / pairs,
        "peak_bytes_above_the_input": peak - before,
        "budget_bytes": budget,
        "scored_again": found.verified,
        "figures": found.figures(),
        "extrapolation_to_mfr_all": {
            "images": MFR_IMAGES,
            "identities": MFR_IDENTITIES,
            "pairs": mfr_pairs,
            "arithmetic": "seconds x pairs of MFR-ALL / pairs measured; the genuine pairs and kept impostors grow more slowly",
            "hours": wall * mfr_pairs / pairs / 3600,
        },
    }
    config = {**vars(options), "dimension": DIMENSION, "fars": ALL_PAIRS_FARS, "precision": found.precision}
    print(write_result(options.name, config, results))
    print({name: value for name, value in results.items() if name != "figures"})
    print(results["figures"])


if __name__ == "__main__":
    main()
