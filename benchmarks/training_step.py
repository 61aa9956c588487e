"""What a training step costs beside its passes: (query forward + backward + key forward) / (whole step), at batch 128.

The whole step adds augmentation, the head (container pass and enqueue, or all FC rows), the key encoder's update, clipping and the
optimizer. Decoding is not in it: benchmarks/attention_loader.py measures that. The alternatives are timed in turns in one process.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import median_seconds_each, write_result
from torch import Tensor

from attfc.config import load_config
from attfc.run.build import new_run

BATCH = 128
IDENTITIES = 2360  # as in faces112/train


def measure(overrides: list[str], repeats: int) -> dict[str, Any]:
    """Median seconds of the step and of its passes for one configuration."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = new_run(
            load_config(
                "faces112",
                [
                    f"data.root=synthetic:identities={IDENTITIES},images=3,seed=0",
                    *(
                        "data.workers=0",
                        "data.decoded_cache_mib=0",
                        f"batch_size={BATCH}",
                        f"output={folder}",
                        "log.tensorboard=false",
                    ),
                    *overrides,
                ],
            )
        ).trainer
    batch = next(iter(trainer.loader))
    pair, keys = trainer.pair, trainer.head.keys_per_query
    pair.query.train()
    generator = torch.Generator().manual_seed(0)
    size = batch.queries.shape[-1]
    queries = torch.randn(BATCH, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    key_images = torch.randn(BATCH * keys, 3, size, size, generator=generator).contiguous(
        memory_format=torch.channels_last
    )
    gradient = torch.randn(BATCH, 512, generator=generator) / 512

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=trainer.take_step.autocast_dtype is not None)

    def embed() -> Tensor:
        with autocast():
            embeddings: Tensor = pair.query(queries)
        return embeddings

    def passes() -> None:
        if keys:
            with autocast():
                pair.embed_keys(key_images.view(BATCH, keys, *key_images.shape[1:]))
        embed().float().backward(gradient)
        pair.query.zero_grad(set_to_none=True)

    seconds = median_seconds_each(
        {"step": lambda: trainer.train_step([batch]), "passes": passes}, repeats=repeats, warmup=3
    )
    return {
        "overrides": overrides,
        "keys_per_query": keys,
        "step_seconds": seconds["step"],
        "passes_seconds": seconds["passes"],
        "passes_share_of_step": seconds["passes"] / seconds["step"],
        "images_per_second": BATCH / seconds["step"],
    }


def main() -> None:
    """Measure and write benchmarks/results/training_step.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    results = {}
    for name, overrides in {
        "attfc bfloat16": ["precision.amp=bfloat16"],
        "attfc float32": ["precision.amp=none"],
        "attfc bfloat16, 100,000 slots": [
            "precision.amp=bfloat16",
            "negatives=recent_centers",
            "negatives.count=100000",
            "negatives.initial=random",
        ],
        "full_fc bfloat16": ["precision.amp=bfloat16", "head=full_fc"],
        "full_fc float32": ["precision.amp=none", "head=full_fc"],
    }.items():
        results[name] = measure(overrides, repeats)
        print(
            f"{name}: passes are {results[name]['passes_share_of_step']:.1%} of the step, {results[name]['images_per_second']:.0f} images/s"
        )
    print(
        write_result(
            "training_step", {"batch": BATCH, "identities": IDENTITIES, "repeats": repeats}, results
        ).relative_to(Path.cwd())
    )


if __name__ == "__main__":
    main()
