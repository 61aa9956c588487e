"""What a training step of each head of a study of faces costs: processor seconds of the whole step, the heads in turns in one process.

The cells of a study may have shared their machine, so their seconds are no measure. Here every variant of STUDY takes the same kind of step on as
many people: augmentation, passes, head, optimizer. Decoding is not in it. The ratio to the reference is that of the medians.

    python benchmarks/study_seconds.py [benchmarks/studies/faces_seeds.yaml] [--repeats 30]
"""

import argparse
import functools
import tempfile
import time
from pathlib import Path

import torch
from common import RESULTS, median_seconds_each, write_result

from attfc.config import load_config
from attfc.lab.study import read_study
from attfc.run.build import new_run

IDENTITIES, IMAGES = 2360, 8  # as in the people of faces_seeds.yaml, on the mean


def main() -> None:
    """Measure and write benchmarks/results/study_seconds.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="?", default=RESULTS.parent / "studies" / "faces_seeds.yaml")
    parser.add_argument("--repeats", type=int, default=30)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    study = read_study(asked.study)
    common = [each for each in study.overrides if "{" not in each]
    common += [f"data.root=synthetic:identities={IDENTITIES},images={IMAGES},seed=0", "eval.root=null", "eval.share=0"]
    common += ["data.decoded_cache_mib=0", "log.tensorboard=false", "threads=1", "device=cpu"]
    steps, images = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, overrides in study.variants.items():
            trainer = new_run(load_config(study.preset, [*common, *overrides, f"output={folder}"])).trainer
            batch = next(iter(trainer.loader))
            steps[name], images[name] = functools.partial(trainer.train_step, [batch]), len(batch.queries)
        seconds = median_seconds_each(steps, asked.repeats, warmup=3, clock=time.process_time)
    reference = seconds[study.reference or next(iter(seconds))]
    results = [
        {"variant": name, "step_seconds": took, "times_reference": took / reference, "images": images[name]}
        for name, took in seconds.items()
    ]
    config = {"study": study.name, "reference": study.reference, "identities": IDENTITIES, "repeats": asked.repeats}
    print(write_result("study_seconds", config, results))
    for row in results:
        print(
            f"{row['variant']}: {1000 * row['step_seconds']:.1f} ms, {row['times_reference']:.2f} of {study.reference}"
        )


if __name__ == "__main__":
    main()
