"""Options that several heads, rules and banks have: their types, bounds and meanings, said once."""

from pathlib import Path
from typing import Annotated, Literal

from attfc.config.option import Option

__all__ = [
    "BlockMib",
    "DrawnCount",
    "DrawnShare",
    "FilterAbove",
    "FilterGap",
    "Filtering",
    "Folder",
    "InitialRows",
    "MemoryEpochs",
    "RowType",
    "SlotCount",
    "SlotShare",
    "StoredShare",
]

FilterAbove = Annotated[
    float | None,
    Option(
        "negatives with a larger cosine than this are taken for wrong labels",
        unit="cosine",
        null="no negative is taken for a wrong label",
        gt=-1,
        le=1,
    ),
]
Filtering = Annotated[
    Literal["drop", "zero"],
    Option(
        "what happens to these negatives: they leave the softmax (drop) or count with cosine 0 (zero, as arcface_torch)",
        acts="head.filter_above!=null",
    ),
]
FilterGap = Annotated[
    float | None,
    Option(
        "a negative is taken for a wrong label only if it is nearer to the image than its own center by more than this",
        unit="cosine",
        null="whatever its own center is like",
        acts="head.filter_above!=null",
        ge=0,
        lt=2,
    ),
]
BlockMib = Annotated[float, Option("working memory for the pass over the class centers", unit="MiB", gt=0)]
StoredShare = Annotated[
    float, Option("share of the stored center in the new one; the rest is the new embedding's", ge=0, lt=1)
]
MemoryEpochs = Annotated[
    float,
    Option(
        "how much of an epoch the stored center of an identity with many images averages over; for others the share decides; 0: it decides for all",
        unit="epochs",
        ge=0,
    ),
]
DrawnShare = Annotated[
    float | None, Option("share of the identities that is drawn per step", null="count says it", gt=0, le=1)
]
DrawnCount = Annotated[
    int | None,
    Option(
        "centers drawn per step", null="share says it; without one a tenth of the identities, 1,000 to 20,000", ge=1
    ),
]
SlotShare = Annotated[float | None, Option("slots as a share of the identities", null="count says it", gt=0, le=1)]
SlotCount = Annotated[
    int | None,
    Option("slots: how many centers it holds", null="share says it; without one a tenth of the identities", ge=1),
]
RowType = Annotated[
    Literal["float32", "bfloat16", "int8"], Option("how the container stores numbers: 4, 2 or 1 bytes each")
]
InitialRows = Annotated[
    Literal["empty", "random"],
    Option("what unused slots hold: nothing, or random centers as negatives (as the published code)"),
]
Folder = Annotated[str | Path | None, Option("folder on a fast disk for these rows", null="none; place=file needs one")]
