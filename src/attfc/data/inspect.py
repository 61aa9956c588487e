"""What is in a store: counts, images per identity, sizes and modes, broken files, files that are there twice.

Every image is read, decoded in full and hashed once, by several processes. Memory: 9 bytes per image while reading (a
64-bit hash of the encoded bytes, see `content_hash`; a flag), some 40 for the moment of sorting; lists in the report are
capped, counts are not.
"""

from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np

from attfc.data.cleaning.duplicates import Contents, Examined, read_contents
from attfc.data.cleaning.findings import first_of
from attfc.data.content_hash import equal_groups
from attfc.data.stores.store import Store
from attfc.typing import Int64, Json, Progress

__all__ = ["BrokenFile", "StoreReport", "inspect_store"]

_BIN_STARTS = (0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
_DISTINCT_SIZES = 10_000  # loose crops may have a size each: count the rest together


@dataclass(frozen=True)
class BrokenFile:
    """An image that cannot be used."""

    position: int
    where: str
    reason: str


@dataclass(frozen=True)
class StoreReport:
    """The inspection's findings; lists hold the first `list_limit` cases, counts all of them.

    Attributes:
        histogram: (fewest, most or None, identities) of each range of images per identity that occurs.
        sizes: "112 x 112" -> images, the most frequent first; modes and formats likewise (Pillow's names: RGB, L ...).
        duplicate_images: images beyond the first of each group of equal files, within one identity / across identities;
            a group that spans identities counts as across.
        duplicates_within, duplicates_across: such groups, each a tuple of places.
        ignored: files that the store left out, by kind.
    """

    name: str
    identities: int
    images: int
    images_per_identity: dict[str, float]
    single_image_identities: int
    histogram: tuple[tuple[int, int | None, int], ...]
    sizes: dict[str, int]
    modes: dict[str, int]
    formats: dict[str, int]
    broken_images: int
    broken: tuple[BrokenFile, ...]
    duplicate_images_within: int
    duplicate_images_across: int
    duplicates_within: tuple[tuple[str, ...], ...]
    duplicates_across: tuple[tuple[str, ...], ...]
    ignored: dict[str, int]

    def to_dict(self) -> Json:
        """Return plain values for JSON."""
        return asdict(self)

    def to_text(self, lines_each: int = 10) -> str:
        """Return the report for a terminal, at most `lines_each` cases of each list."""
        each = self.images_per_identity
        lines = [
            f"{self.name}: {self.identities:,} identities, {self.images:,} images",
            f"images per identity: min {each['min']:,.0f}, median {each['median']:g}, mean {each['mean']:.2f}, "
            f"max {each['max']:,.0f}",
            f"identities with a single image: {self.single_image_identities:,}",
        ]
        widest = max((count for _, _, count in self.histogram), default=1)
        for low, high, count in self.histogram:
            span = f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"
            lines.append(f"  {span:>9}  {count:>10,}  {'#' * max(1, round(40 * count / widest))}")
        for title, counts in (("sizes", self.sizes), ("modes", self.modes), ("formats", self.formats)):
            lines.append(f"{title}: " + (", ".join(f"{key} ({n:,})" for key, n in counts.items()) or "none"))
        if any(self.ignored.values()):
            kinds = (f"{kind.replace('_', ' ')} ({count:,})" for kind, count in self.ignored.items() if count)
            lines.append("ignored: " + ", ".join(kinds))
        lines.append(f"broken images: {self.broken_images:,}")
        broken = [f"{file.where}: {file.reason}" for file in self.broken]
        lines += first_of(broken, self.broken_images, lines_each)
        for title, surplus, groups in (
            ("within an identity", self.duplicate_images_within, self.duplicates_within),
            ("across identities", self.duplicate_images_across, self.duplicates_across),
        ):
            lines.append(f"duplicate files {title}: {surplus:,} beyond the first of each")
            lines += first_of([" = ".join(group) for group in groups], len(groups), lines_each)
        return "\n".join(lines)


def inspect_store(
    store: Store,
    *,
    workers: int = 0,
    progress: Progress | None = None,
    list_limit: int = 1000,
) -> StoreReport:
    """Read and decode every image of a store once and report what is there.

    Args:
        store: any store.
        workers: processes that read and decode; 0: this one.
        progress: called as (images done, images).
        list_limit: most cases that each list of the report names; counts are complete.

    Raises:
        BrokenProcessPool: a worker was killed, e.g. for its memory.
    """
    sizes, modes, formats = Counter[str](), Counter[str](), Counter[str]()
    broken: list[BrokenFile] = []

    def tally(start: int, found: Examined) -> None:
        for facts, count in found.facts.items():
            size = f"{facts.width} x {facts.height}"
            sizes[size if size in sizes or len(sizes) < _DISTINCT_SIZES else "other"] += count
            modes[facts.mode] += count
            formats[facts.format] += count
        listed = found.broken[: list_limit - len(broken)]
        broken.extend(BrokenFile(start + row, store.where(start + row), reason) for row, reason in listed)

    contents = read_contents(store, workers=workers, progress=progress, tally=tally)
    total = len(store)
    counts = store.identities.counts()
    return StoreReport(
        name=store.name,
        identities=len(counts),
        images=total,
        images_per_identity={
            "min": float(counts.min(initial=total)),
            "median": float(np.median(counts)) if len(counts) else 0.0,
            "mean": float(counts.mean()) if len(counts) else 0.0,
            "max": float(counts.max(initial=0)),
        },
        single_image_identities=int((counts == 1).sum()),
        histogram=_histogram(counts),
        sizes=dict(sizes.most_common(20)),
        modes=dict(modes.most_common()),
        formats=dict(formats.most_common()),
        broken_images=len(contents.reasons),
        broken=tuple(broken),
        **_duplicates(store, contents, list_limit),
        ignored=dict(getattr(store, "ignored", {})),
    )


def _histogram(counts: Int64) -> tuple[tuple[int, int | None, int], ...]:
    identities, _ = np.histogram(counts, [*_BIN_STARTS, np.inf])
    lasts = [*(after - 1 for after in _BIN_STARTS[1:]), None]
    return tuple(row for row in zip(_BIN_STARTS, lasts, identities.tolist(), strict=True) if row[2])


def _duplicates(store: Store, contents: Contents, limit: int) -> Json:
    """Return the report's fields about duplicates: images beyond the first of their group, and the first groups."""
    order, starts, lengths = equal_groups(contents.hashes, contents.sound)
    surplus = Counter[str]()
    groups: dict[str, list[tuple[int, tuple[str, ...]]]] = {"within": [], "across": []}
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        positions = order[start : start + length]
        labels = store.labels(positions)
        kind = "across" if (labels != labels[0]).any() else "within"
        surplus[kind] += length - 1
        if len(groups[kind]) < limit:
            # A group may be one black image a million times over: the report names its first hundred.
            groups[kind].append((int(positions[0]), tuple(store.where(p) for p in positions[:100].tolist())))
    return {f"duplicate_images_{kind}": surplus[kind] for kind in groups} | {
        f"duplicates_{kind}": tuple(places for _, places in sorted(found)) for kind, found in groups.items()
    }
