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
        "negatives with a cosine above this are treated as wrongly labelled images of the same person",
        unit="cosine",
        null="keep all negatives",
        gt=-1,
        le=1,
    ),
]
Filtering = Annotated[
    Literal["drop", "zero"],
    Option(
        "what happens to these negatives. drop: they leave the softmax; zero: they count with cosine 0, as in arcface_torch",
        acts="head.filter_above!=null",
    ),
]
FilterGap = Annotated[
    float | None,
    Option(
        "leave out images nearer to a negative above head.filter_above than to their own center, by more than this. It begins with the second epoch, "
        "if a tenth of the images are so. Then half of it counts for centers made of embeddings",
        unit="cosine",
        null="filter negatives, not images",
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
        "part of an epoch that the stored center of an identity with many images averages over; the share decides for others, and with 0 for all",
        unit="epochs",
        ge=0,
    ),
]
DrawnShare = Annotated[
    float | None, Option("centers drawn per step, as a share of the identities", null="use count", gt=0, le=1)
]
DrawnCount = Annotated[
    int | None,
    Option(
        "centers drawn per step",
        null="use share; if that is null too, a tenth of the identities, 200 to 20,000",
        ge=1,
    ),
]
SlotShare = Annotated[float | None, Option("slots as a share of the identities", null="use count", gt=0, le=1)]
SlotCount = Annotated[
    int | None,
    Option("slots: how many centers it holds", null="use share; if that is null too, a tenth of the identities", ge=1),
]
RowType = Annotated[Literal["float32", "bfloat16", "int8"], Option("type of the stored numbers: 4, 2 or 1 bytes each")]
InitialRows = Annotated[
    Literal["empty", "random"],
    Option("content of unused slots: nothing, or random centers as negatives (as in the published code)"),
]
Folder = Annotated[str | Path | None, Option("folder on a fast disk for place=file", null="none; place=file needs one")]
