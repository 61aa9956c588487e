"""The arguments of `AttFC.default`: the method that `attfc train` builds unless told otherwise, by identities alone.

The latest center of every identity is kept in a table, in host memory unless `rows` says where. A query's positive is its identity's stored center;
afterwards its own embedding is blended into that center. Negatives are centers drawn from the table, anew in each step, and those of the batch.
Cost: N x 2D bytes of table; a step streams `negatives` + B rows. Sources of the numbers: docs/study.md.
"""

from collections.abc import Mapping
from typing import Any, TypedDict, get_type_hints

from attfc.distributed import ALONE, Ranks
from attfc.errors import UserError, nearest
from attfc.heads.banks.row_store import RowStore
from attfc.heads.banks.table import CenterTable
from attfc.losses.container_softmax import Filtering
from attfc.losses.margins import CosFace, Margin

__all__ = ["Changes", "default_arguments", "default_margin", "default_negatives"]

CENTER_BLEND = 0.6
MANY_IDENTITIES = 50_000  # from here on the scale is 64, as the published presets have it


class Changes(TypedDict, total=False):
    """What `AttFC.default` lets you change; meanings and defaults stand there."""

    margin: Margin
    negatives: int
    center_blend: float
    in_batch_negatives: bool
    in_batch_gradient: bool
    interclass_filtering_threshold: float | None
    filtering: Filtering
    rows: RowStore
    block_mib: float
    seed: int
    ranks: Ranks


def default_margin(identities: int) -> Margin:
    """Return CosFace 0.4 at scale 32, or 64 from 50,000 identities on."""
    return CosFace(32.0 if identities < MANY_IDENTITIES else 64.0, 0.4)


def default_negatives(identities: int) -> int:
    """Return the centers drawn in a step: a tenth of the identities, at least 1,000, at most 20,000, never more than there are.

    >>> [default_negatives(identities) for identities in (60, 9_000, 92_431, 2_000_000)]
    [60, 1000, 9243, 20000]
    """
    return min(identities, max(1000, min(20_000, identities // 10)))


def default_arguments(
    embedding_size: int, identities: int, changes: Mapping[str, Any], known: tuple[str, ...]
) -> dict[str, Any]:
    """Return the keyword arguments of `AttFC`.

    Args:
        changes: `Changes`, not checked yet.
        known: all arguments of `AttFC`, to tell a misspelled name from one that belongs to another method.

    Raises:
        UserError: fewer than two identities, an unknown change, or fewer than one negative.
    """
    options = tuple(get_type_hints(Changes))
    for name in changes:
        if name not in options:
            elsewhere = ", which belongs to another method: build that one with AttFC(...)"
            hint = elsewhere if name in known else nearest(name, options)
            raise UserError(f"AttFC.default has no option {name!r}{hint} (options: {', '.join(options)})")
    if identities < 2:
        raise UserError(f"identities is {identities}: training tells identities apart, so it needs at least 2")
    negatives = changes.get("negatives", default_negatives(identities))
    if not isinstance(negatives, int) or negatives < 1:
        raise UserError(f"negatives is {negatives!r}: give the number of centers drawn in a step, 1 or more")
    in_batch = changes.get("in_batch_negatives", True)
    ranks = changes.get("ranks", ALONE)
    table = CenterTable(identities, embedding_size, place=changes.get("rows"), seed=changes.get("seed", 0), ranks=ranks)
    arguments = {
        "slots": negatives,
        "margin": changes.get("margin") or default_margin(identities),
        "center_source": "query",
        "center_blend": CENTER_BLEND,
        "in_batch_negatives": in_batch,
        "in_batch_gradient": in_batch,
        "table": table,
        "negatives": "table",
    }
    replaced = {"margin", "negatives", "rows", "seed"}
    return arguments | {name: value for name, value in changes.items() if name not in replaced}
