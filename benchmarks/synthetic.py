"""Images/s of the synthetic faces on one core, through `images` (render + JPEG + decode) and by the renderer alone.

    python benchmarks/synthetic.py

Writes results/synthetic.json. One thread; processor seconds beside wall seconds, because a busy machine stretches the latter.
"""

import time

import numpy as np
import torch
from common import write_result

from attfc.data.stores.synthetic import SyntheticFaces
from attfc.synthetic.face_parameters import identity_keys, identity_traits, sample_conditions, sample_keys
from attfc.synthetic.face_renderer import render_faces

IMAGES, REPEATS = 256, 5


def main() -> None:
    """Measure and write the figures."""
    torch.set_num_threads(1)
    store = SyntheticFaces(identities=10_000, images_per_identity=20, seed=0)
    positions = np.random.default_rng(0).permutation(len(store))[:IMAGES]
    keys = identity_keys(0, store.labels(positions))
    traits = identity_traits(keys)
    conditions = sample_conditions(sample_keys(keys, positions % 20), traits)
    cases = {
        "images_112": lambda: store.images(positions, 112),
        "images_56": lambda: store.images(positions, 56),
        "render_only_112": lambda: render_faces(traits, conditions),
    }
    wall: dict[str, list[float]] = {name: [] for name in cases}
    processor: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(REPEATS + 1):
        for name, case in cases.items():
            began, busy = time.perf_counter(), time.process_time()
            case()
            if turn:
                wall[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - busy)
    began = time.perf_counter()
    for position in positions[:64].tolist():
        store.read(position)
    results = {
        f"{name}_per_second": {
            "wall_median": round(IMAGES / float(np.median(wall[name])), 1),
            "wall_best": round(IMAGES / min(wall[name]), 1),
            "processor_median": round(IMAGES / float(np.median(processor[name])), 1),
        }
        for name in cases
    }
    results["read_one_at_a_time_per_second"] = {"wall_median": round(64 / (time.perf_counter() - began), 1)}
    write_result("synthetic", {"images": IMAGES, "repeats": REPEATS, "threads": 1}, results)


if __name__ == "__main__":
    main()
