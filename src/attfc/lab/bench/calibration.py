"""How long the heads take a row here: each trained a few steps at a small size, with its optimizer.

A full FC spends as much on its optimizer, and on memory that is new in every step, as on its matrix products; a rate of products alone says little.
So the heads themselves are timed, at sizes beyond the processor's caches, and extended in proportion to the rows. Cost: a few seconds and
some hundred MiB.
"""

import statistics
import time
from collections.abc import Callable
from typing import Literal

import torch

from attfc.heads import DCP, AttFC, FullFC, Head, KeyAttention, PartialFC, RecentCenters
from attfc.heads.options import RowType
from attfc.losses import CosFace
from attfc.plan import HeadRates
from attfc.training.optimizers import build_optimizer, parameter_groups
from attfc.training.step import Inputs, head_alone

__all__ = ["measure_heads"]

ROWS = 20_480  # 40 MiB at D = 512: beyond the caches, and large enough that the system hands out new pages for each such tensor


def measure_heads(
    device: torch.device,
    batch: int,
    *,
    embedding_size: int = 512,
    keys: int = 2,
    dtype: RowType = "float32",
    optimizer: Literal["sgd", "adamw"] = "sgd",
    rows: int = ROWS,
    repeats: int = 2,
) -> HeadRates:
    """Time the heads on `device` at that batch.

    Args:
        batch: queries that meet each row: those of all ranks.
        dtype: of the container's rows.
        rows: slots or identities worked on in a timed step; more than the batch.
        repeats: timed steps, of which the median counts, after one that does not.
    """
    margin = CosFace(64.0, 0.4)
    rows = max(rows, 2 * batch)
    size = embedding_size
    heads: dict[str, Callable[[], Head]] = {
        "container": lambda: AttFC(
            size,
            margin,
            identities=None,
            center=KeyAttention(keys=keys, share=0.8),
            negatives=RecentCenters(count=rows, policy="unique", dtype=dtype, initial="random"),
            in_batch="fixed",
        ),
        "pool": lambda: DCP(size, margin, count=rows, dtype=dtype, initial="random"),
        "dense": lambda: FullFC(size, rows, margin),
        "sampled": lambda: PartialFC(size, 2 * rows, margin, share=0.5),
    }
    with torch.random.fork_rng():  # a plan leaves the generator of its caller alone
        seconds = {
            name: _step_seconds(build().to(device), rows, device, batch, optimizer, repeats)
            for name, build in heads.items()
        }
    return HeadRates(**{name: taken / rows for name, taken in seconds.items()})


def _step_seconds(
    head: Head, rows: int, device: torch.device, batch: int, optimizer: Literal["sgd", "adamw"], repeats: int
) -> float:
    trained = (
        build_optimizer(optimizer, parameter_groups([head]), learning_rate=1e-3) if list(head.parameters()) else None
    )
    take_step = head_alone(head, trained, device)
    size = head.embedding_size
    taken = []
    for _ in range(1 + repeats):
        embeddings = torch.randn(batch, size, device=device, requires_grad=True)
        keys = torch.randn(batch, head.keys_per_query, size, device=device) if head.keys_per_query else None
        labels = torch.randint(rows, (batch,), device=device)
        start = time.perf_counter()
        take_step([Inputs(embeddings, labels, keys)])
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])
