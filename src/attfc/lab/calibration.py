"""How long the heads take a row here: each trained a few steps at a small size, with its optimizer.

A full FC spends as much on its optimizer, and on memory that is new in every step, as on its matrix products; a rate of products alone says little.
So the heads themselves are timed, at sizes beyond the processor's caches, and extended in proportion to the rows. Cost: a few seconds and
some hundred MiB.
"""

import statistics
from collections.abc import Callable
from typing import Literal

import torch

from attfc.heads import DCP, AttFC, FullFC, Head, KeyAttention, PartialFC, RecentCenters
from attfc.heads.options import RowType
from attfc.lab.head_cell import Case, Training
from attfc.losses import CosFace
from attfc.plan import HeadRates

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
    margin, size = CosFace(64.0, 0.4), embedding_size
    rows = max(rows, 2 * batch)
    center = KeyAttention(keys=keys, share=0.8)
    heads: dict[str, Callable[[], Head]] = {
        "container": lambda: AttFC(
            size,
            margin,
            identities=None,
            center=center,
            negatives=RecentCenters(count=rows, policy="unique", dtype=dtype),
            in_batch="fixed",
        ),
        "pool": lambda: DCP(size, margin, count=rows, dtype=dtype, initial="random"),
        "dense": lambda: FullFC(size, rows, margin),
        "sampled": lambda: PartialFC(size, 2 * rows, margin, share=0.5),
    }
    case = Case("attfc", rows, batch=batch, embedding_size=size, device=str(device))
    rates = {}
    with torch.random.fork_rng():  # a plan leaves the generator of its caller alone
        for name, build in heads.items():
            training = Training(case, build, optimizer)
            seconds = [training.step().seconds for _ in range(1 + repeats)]
            rates[name] = statistics.median(seconds[1:]) / rows
    return HeadRates(**rates)
