"""A first look at a set before training: the sizes of a few pictures by their headers, and whether they can be aligned faces.

Aligned faces are square and of one size. What a header cannot show is whether eyes and mouth stand where the template has them:
`attfc data preview` shows that to a person. Cost: one read of each picture looked at, 200 of them some 20 ms from a disk.
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass

from attfc.data.images import BrokenImageError, image_size, reason_of
from attfc.data.index import spread
from attfc.data.stores.store import Store
from attfc.typing import Json

__all__ = ["ImageSizes", "image_sizes"]

_MOSTLY = 0.95  # of the pictures: a few strays in a good set are no reason for advice
_KEPT = 5
_ALIGNED = 112  # pixels a side of the ArcFace template; whole photographs are larger


@dataclass(frozen=True)
class ImageSizes:
    """What the headers of some pictures say.

    Attributes:
        looked_at: pictures that were read.
        unreadable: of these, without a usable header; `example` says which and why.
        square: readable ones whose width is their height.
        different: how many sizes there are.
        sizes: "112 x 112" -> pictures, the five most frequent first.
        advice: one sentence where the pictures cannot all be aligned faces, else None.
    """

    looked_at: int
    unreadable: int
    square: int
    different: int
    sizes: dict[str, int]
    example: str | None = None
    advice: str | None = None

    def to_dict(self) -> Json:
        """Return plain values for JSON."""
        return asdict(self)


def image_sizes(store: Store, count: int = 200) -> ImageSizes:
    """Read the headers of up to `count` pictures, spread evenly over a store.

    >>> from attfc.data import SyntheticFaces
    >>> image_sizes(SyntheticFaces(3, 2)).sizes
    {'112 x 112': 6}
    """
    positions = spread(len(store), count).tolist()
    found: Counter[tuple[int, int]] = Counter()
    example: str | None = None
    for position, encoded in zip(positions, store.read_many(positions), strict=True):
        try:
            if isinstance(encoded, Exception):
                raise encoded
            found[image_size(encoded)] += 1
        except (OSError, BrokenImageError) as error:
            example = example or f"{store.where(position)}: {reason_of(error)}"
    readable = sum(found.values())
    square = sum(number for (width, height), number in found.items() if width == height)
    return ImageSizes(
        looked_at=len(positions),
        unreadable=len(positions) - readable,
        square=square,
        different=len(found),
        sizes={f"{width} x {height}": number for (width, height), number in found.most_common(_KEPT)},
        example=example,
        advice=_advice(found, readable, square),
    )


def _advice(found: Counter[tuple[int, int]], readable: int, square: int) -> str | None:
    if not readable:
        return None
    way = "align faces to the ArcFace template first (docs/formats.md, section Aligned faces)"
    if square < _MOSTLY * readable:
        (width, height), _ = next(entry for entry in found.most_common() if entry[0][0] != entry[0][1])
        return f"{readable - square:,} of {readable:,} pictures looked at are not square, as {width} x {height}: {way}"
    (width, height), most = found.most_common(1)[0]
    if most < _MOSTLY * readable:
        low, high = min(found, key=math.prod), max(found, key=math.prod)
        return (
            f"the {readable:,} pictures looked at have {len(found):,} sizes, {low[0]} x {low[1]} to {high[0]} x {high[1]}: "
            f"if they are not aligned, {way}"
        )
    if width > _ALIGNED:
        return (
            f"the {readable:,} pictures looked at are {width} x {height}, larger than aligned faces of {_ALIGNED} x {_ALIGNED}: "
            f"if they are not aligned, {way}"
        )
    return None
