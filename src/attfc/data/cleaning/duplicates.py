"""Images that are broken and images that are there twice: told by reading the store once, without a model.

Cost: every image is read once and, to find broken ones, decoded in full (0.2 to 0.6 ms each); memory some 40 bytes per image. A copy is
the same encoded bytes (`content_hash`), not the same photograph in another size.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from attfc.data.content_hash import content_hash, equal_groups, examine_chunks
from attfc.data.images import BrokenImageError, ImageFacts, image_facts, reason_of
from attfc.data.stores.store import Store
from attfc.errors import UserError, nearest
from attfc.typing import Bools, Int64, Progress, UInt64

__all__ = ["AcrossIdentities", "Contents", "Duplicates", "Examined", "find_duplicates", "read_contents"]

AcrossIdentities = Literal["drop_all", "keep_first", "report"]

_CHUNK = 256
_DISTINCT_REASONS = 10_000
_LISTED_PAIRS = 1_000


@dataclass(frozen=True, eq=False)
class Contents:
    """What reading a store once tells.

    Attributes:
        hashes: (N,) uint64 content hash; 0 for broken images.
        sound: (N,) false for images that cannot be read or, if they were decoded, cannot be decoded.
        reasons: one line for each position that is not sound, in order.
    """

    hashes: UInt64
    sound: Bools
    reasons: list[str]


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Images whose bytes are in the store more than once.

    Attributes:
        positions: (n,) int64 rising: the images to leave out.
        copy_of: (n,) int64 another image with the same bytes: the one that is kept, or one of another identity.
        across: (n,) whether an image of another identity has the same bytes and that is why.
        groups_within, groups_across: groups of equal images in one identity / in several.
        images_across: images in the latter groups, left out or not.
        shared: (label, label, groups they share), the most first: many shared groups mean one person under two names.
    """

    positions: Int64
    copy_of: Int64
    across: Bools
    groups_within: int
    groups_across: int
    images_across: int
    shared: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Examined:
    """What reading some neighbours tells: their hashes, what was decoded, (row, reason) of each that is broken."""

    hashes: UInt64
    facts: Counter[ImageFacts] = field(default_factory=Counter)
    broken: list[tuple[int, str]] = field(default_factory=list)


def read_contents(
    store: Store,
    *,
    decode: bool = True,
    workers: int = 0,
    progress: Progress | None = None,
    tally: Callable[[int, Examined], None] = lambda *_: None,
) -> Contents:
    """Read every image of a store once: its content hash, and whether it is broken.

    Args:
        decode: decode each image in full, to find damaged ones; False: only what cannot be read is broken, in a tenth of the time.
        workers: processes that read; 0: this one.
        progress: called as (images done, images).
        tally: called with the first position of some neighbours and what was found there.
    """
    total = len(store)
    hashes, sound = np.zeros(total, np.uint64), np.ones(total, np.bool_)
    reasons: list[str] = []
    known: dict[str, str] = {}  # a million images with one fault share one string
    done = 0
    for found in examine_chunks(store, partial(_examine, decode=decode), chunk=_CHUNK, workers=workers):
        hashes[done : done + len(found.hashes)] = found.hashes
        for row, reason in found.broken:
            sound[done + row] = False
            reasons.append(
                known.setdefault(reason, reason) if len(known) < _DISTINCT_REASONS else known.get(reason, "broken")
            )
        tally(done, found)
        done += len(found.hashes)
        if progress is not None:
            progress(done, total)
    return Contents(hashes, sound, reasons)


def _examine(store: Store, positions: range, *, decode: bool) -> Examined:
    found = Examined(np.zeros(len(positions), np.uint64))
    for row, position in enumerate(positions):
        try:
            encoded, _ = store.read(position)
            if decode:
                found.facts[image_facts(encoded)] += 1
        except (OSError, BrokenImageError) as error:
            found.broken.append((row, reason_of(error)))
        else:
            found.hashes[row] = content_hash(encoded)
    return found


def find_duplicates(
    store: Store,
    *,
    across: AcrossIdentities = "drop_all",
    contents: Contents | None = None,
    labels: npt.ArrayLike | None = None,
) -> Duplicates:
    """Find images with the same encoded bytes. Within an identity the first is kept.

    Args:
        across: what to leave out of equal images under several identities, of which at least one label is wrong. "drop_all": all of
            them, the default: nothing says which label is right, one image less costs little, and a wrong label teaches
            the model that one face is two people. "keep_first": all but the first, where the order means trust. "report": none, but
            copies within each of the identities.
        contents: of `read_contents`, if the store was read already.
        labels: (N,) the labels to compare; negative: not part of it; None: the store's.
    """
    if across not in get_args(AcrossIdentities):
        raise UserError(
            f"duplicates={across!r}: one of {', '.join(get_args(AcrossIdentities))}{nearest(across, get_args(AcrossIdentities))}"
        )
    if contents is None:
        contents = read_contents(store, decode=False)
    label_of = store.identities.labels() if labels is None else np.asarray(labels, np.int64)
    order, starts, lengths = equal_groups(contents.hashes, contents.sound & (label_of >= 0))
    # Members of all groups one after the other, with the number of their group.
    firsts = np.cumsum(lengths) - lengths
    group = np.repeat(np.arange(len(lengths)), lengths)
    member = order[(starts - firsts)[group] + np.arange(len(group))]
    label, first = label_of[member], member[firsts]
    differs = label != label_of[first][group]
    foreign = np.flatnonzero(differs)
    # Of each group the first member that has another label than the first one.
    mixed_groups, place = np.unique(group[foreign], return_index=True)
    other, mixed = first.copy(), np.zeros(len(first), np.bool_)
    other[mixed_groups], mixed[mixed_groups] = member[foreign[place]], True
    is_first = member == first[group]
    _, row, place = np.unique(group * (1 + label.max(initial=0)) + label, return_index=True, return_inverse=True)
    first_of_label = member[row][place]
    if across == "drop_all":
        out, by_identity = mixed[group] | ~is_first, mixed[group]
    elif across == "keep_first":
        out, by_identity = ~is_first, differs
    else:
        out, by_identity = first_of_label != member, np.zeros(len(member), np.bool_)
    copy_of = np.where(by_identity, np.where(differs, first[group], other[group]), first_of_label)
    rising = np.flatnonzero(out)
    rising = rising[np.argsort(member[rising])]
    return Duplicates(
        positions=member[rising],
        copy_of=copy_of[rising],
        across=by_identity[rising],
        groups_within=int((~mixed).sum()),
        groups_across=int(mixed.sum()),
        images_across=int(lengths[mixed].sum()),
        shared=_shared(group[foreign], label_of[first][group[foreign]], label[foreign]),
    )


def _shared(group: Int64, one: Int64, two: Int64) -> tuple[tuple[int, int, int], ...]:
    """Count the groups that pairs of identities have in common; the pairs with the most."""
    rows = np.unique(np.stack([np.minimum(one, two), np.maximum(one, two), group], axis=1), axis=0)
    pairs, counts = np.unique(rows[:, :2], axis=0, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:_LISTED_PAIRS]
    return tuple((*pairs[i].tolist(), int(counts[i])) for i in most.tolist())
