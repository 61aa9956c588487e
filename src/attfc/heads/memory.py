"""What a head takes: bytes by what they are for, from the sizes of what it holds and of what a step works on.

Every head says it of itself (`Head.footprint`), on the meta device too, where nothing is allocated: so a plan builds the head and asks.
"""

from dataclasses import dataclass
from typing import Literal

from attfc.losses.class_softmax import KEPT_MIB
from attfc.losses.streaming_pass import LARGEST_BLOCK

__all__ = ["HeadMemory", "block_bytes", "class_softmax_bytes"]


@dataclass(frozen=True)
class HeadMemory:
    """Bytes of a head on one rank, and how many rows a step works on in which way (a field of `HeadRates`).

    Attributes:
        rows: what it holds.
        gradient: of trained rows. Each state of the optimizer takes as much ("sampled": as the rows).
        working: of forward and backward.
        keys_per_query: key images that a query brings.
        streamed: rows that a step passes over.
        kind: how; the rows of "dense" and "sampled" are trained, all that it holds.
        dense: rows that a step trains beside those.
    """

    rows: float
    gradient: float
    working: float
    keys_per_query: int
    streamed: int
    kind: Literal["container", "pool", "dense", "sampled"]
    dense: int = 0


def block_bytes(rows: int, bytes_a_row: float, block_mib: float, cached: bool) -> float:
    """Return the bytes of the largest block of a pass over `rows`: see `attfc.losses.streaming_pass.row_blocks`."""
    return min(block_mib * 2**20, (min(rows, LARGEST_BLOCK) if cached else rows) * bytes_a_row)


def class_softmax_bytes(rows: int, batch: int, block_mib: float, cached: bool, gathered: int = 0) -> float:
    """Return the bytes that `class_softmax` works with over so many float32 rows: the logits where it keeps them, a block, a length per row.

    `gathered`: numbers per row that are copied for a block, where the rows are some of a larger weight.
    """
    logits = 4.0 * batch * rows
    kept = logits if logits <= KEPT_MIB * 2**20 else 0.0
    return kept + block_bytes(rows, 8.0 * batch, block_mib, cached) * (1 + gathered / (2 * batch)) + 4.0 * rows
