"""What is wrong with a data set and can be told without a model: broken images, copies, people of the evaluation set, tiny identities.

Nothing is deleted: each function returns arrays of positions or labels, and `Findings` gathers them into an edit list
(`attfc.data.stores.edits`) that every store honours, with a reason for each image. What takes embeddings (wrong labels, the same
person under two names) and the whole of `attfc data clean` is in `attfc.data.cleaning.label_cleaning`.

Cost: every image is read once and, to find broken ones, decoded in full (0.2 to 0.6 ms each); memory some 40 bytes per image. A copy is
the same encoded bytes (`content_hash`), not the same photograph in another size.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from attfc.data.content_hash import content_hash, equal_groups, examine_chunks
from attfc.data.images import BrokenImageError, image_facts
from attfc.data.stores.edits import LEFT_OUT, Edits
from attfc.data.stores.store import Store
from attfc.errors import UserError, nearest

__all__ = [
    "REASONS",
    "AcrossIdentities",
    "CleaningReport",
    "Contents",
    "Duplicates",
    "Findings",
    "comparable_name",
    "find_duplicates",
    "overlap_by_name",
    "read_contents",
    "small_identities",
]

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Progress = Callable[[int, int], None]

AcrossIdentities = Literal["drop_all", "keep_first", "report"]

REASONS = {
    "broken": "broken images",
    "duplicate_within": "copies within an identity (the first is kept)",
    "duplicate_across": "copies under several identities",
    "evaluation_copy": "images of identities that hold a copy of an image of the evaluation set",
    "mislabelled": "images far from their identity's center",
    "moved": "images moved to the identity whose center is clearly closer",
    "evaluation_name": "images of identities that have a name of the evaluation set",
    "evaluation_face": "images of identities that have a face of the evaluation set",
    "small_identity": "images of identities that are too small",
}
"""Why an image is in an edit list, in the order in which `clean` looks."""

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

    hashes: npt.NDArray[np.uint64]
    sound: Bool
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
    across: Bool
    groups_within: int
    groups_across: int
    images_across: int
    shared: tuple[tuple[int, int, int], ...]


def read_contents(store: Store, *, decode: bool = True, workers: int = 0, progress: Progress | None = None) -> Contents:
    """Read every image of a store once: its content hash, and whether it is broken.

    Args:
        decode: decode each image in full, to find damaged ones; False: only what cannot be read is broken, in a tenth of the time.
        workers: processes that read; 0: this one.
        progress: called as (images done, images).
    """
    total = len(store)
    hashes, sound = np.zeros(total, np.uint64), np.ones(total, np.bool_)
    reasons: list[str] = []
    known: dict[str, str] = {}  # a million images with one fault share one string
    done = 0
    for found, broken in examine_chunks(store, _examine if decode else _hash_only, workers=workers):
        hashes[done : done + len(found)] = found
        for row, reason in broken:
            sound[done + row] = False
            reasons.append(
                known.setdefault(reason, reason) if len(known) < _DISTINCT_REASONS else known.get(reason, "broken")
            )
        done += len(found)
        if progress is not None:
            progress(done, total)
    return Contents(hashes, sound, reasons)


_Examined = tuple[npt.NDArray[np.uint64], list[tuple[int, str]]]


def _examine(store: Store, positions: range) -> _Examined:
    return _hash_each(store, positions, decode=True)


def _hash_only(store: Store, positions: range) -> _Examined:
    return _hash_each(store, positions, decode=False)


def _hash_each(store: Store, positions: range, *, decode: bool) -> _Examined:
    hashes = np.zeros(len(positions), np.uint64)
    broken: list[tuple[int, str]] = []
    for row, position in enumerate(positions):
        try:
            encoded, _ = store.read(position)
            if decode:
                image_facts(encoded)
        except BrokenImageError as error:
            broken.append((row, str(error)))
        except OSError as error:
            broken.append((row, f"cannot be read ({error.strerror or error})"))
        else:
            hashes[row] = content_hash(encoded)
    return hashes, broken


def find_duplicates(
    store: Store,
    *,
    across: AcrossIdentities = "drop_all",
    workers: int = 0,
    progress: Progress | None = None,
    contents: Contents | None = None,
    labels: npt.ArrayLike | None = None,
) -> Duplicates:
    """Find images with the same encoded bytes. Within an identity the first is kept.

    Args:
        across: what to leave out of equal images under several identities, of which at least one label is wrong. "drop_all": all of
            them, the default: nothing says which label is right, one image less costs little, and a wrong label teaches
            the model that one face is two people. "keep_first": all but the first, where the order means trust. "report": none, but
            copies within each of the identities.
        workers, progress: of `read_contents`.
        contents: of `read_contents`, if the store was read already.
        labels: (N,) the labels to compare; negative: not part of it; None: the store's.
    """
    if across not in get_args(AcrossIdentities):
        raise UserError(
            f"duplicates={across!r}: one of {', '.join(get_args(AcrossIdentities))}{nearest(across, get_args(AcrossIdentities))}"
        )
    if contents is None:
        contents = read_contents(store, decode=False, workers=workers, progress=progress)
    label_of = store.identities.labels() if labels is None else np.asarray(labels, np.int64)
    order, starts, lengths = equal_groups(contents.hashes, contents.sound & (label_of >= 0))
    # Members of all groups one after the other, with the number of their group.
    firsts = np.cumsum(lengths) - lengths
    group = np.repeat(np.arange(len(lengths)), lengths)
    member = order[starts[group] + np.arange(len(group)) - firsts[group]] if len(group) else group
    label, first = label_of[member], member[firsts]
    differs = label != label_of[first][group]
    mixed = np.add.reduceat(differs, firsts, dtype=np.int64) > 0 if len(firsts) else np.zeros(0, np.bool_)
    # Of each group the first member that has another label than the first one.
    other = first.copy()
    foreign = np.flatnonzero(differs)
    groups_of_foreign, place = np.unique(group[foreign], return_index=True)
    other[groups_of_foreign] = member[foreign[place]]
    is_first = np.zeros(len(member), np.bool_)
    is_first[firsts] = True
    by_label = np.lexsort((label, group))  # stable: positions keep rising within a label
    new = np.ones(len(member), np.bool_)
    new[1:] = (group[by_label][1:] != group[by_label][:-1]) | (label[by_label][1:] != label[by_label][:-1])
    first_of_label = np.empty(len(member), np.int64)
    first_of_label[by_label] = member[by_label[np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))]]
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


def small_identities(labels: npt.ArrayLike, fewest: int) -> Int64:
    """Return the labels that have images, but fewer than `fewest`: int64, rising.

    Args:
        labels: (N,) after every other step; negative: left out.

    >>> small_identities([0, 0, 1, -1, 2, 2, 2], 2)
    array([1])
    """
    asked = np.asarray(labels, np.int64)
    present, counts = np.unique(asked[asked >= 0], return_counts=True)
    return present[counts < fewest]


_SPACES = re.compile(r"[\s_]+")
_NUMBER = re.compile(r"((identity|id|person|subject|class|label|new)[_-]*)?\d+")


def normal_name(name: str) -> str:
    """Return a name for comparing: case, spaces and underscores make no difference.

    >>> normal_name(" Ann  LEE") == normal_name("ann_lee")
    True
    """
    return _SPACES.sub("_", unicodedata.normalize("NFKC", name).casefold()).strip("_")


def comparable_name(name: str) -> str | None:
    """Return `normal_name`, or None for a mere number ("17", "identity 17"), which says nothing about who is in other data."""
    normal = normal_name(name)
    return None if not normal or _NUMBER.fullmatch(normal) else normal


def overlap_by_name(train: Store, evaluation: Store, *, numbers: bool = False) -> Int64:
    """Find identities of the training set that have the name of one of the evaluation set.

    Args:
        numbers: compare names that are mere numbers too ("17", "identity 17"); RecordIO sets count their identities each for itself,
            so equal numbers mean nothing unless both sets come from one.

    Returns:
        (n, 2) int64: label in `train`, label in `evaluation` (the first of that name), in the order of the former.
    """
    names: dict[str, int] = {}
    for name, label in _names(evaluation, numbers):
        names.setdefault(name, label)
    pairs = [(label, names[name]) for name, label in _names(train, numbers) if name in names]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _names(store: Store, numbers: bool) -> Iterator[tuple[str, int]]:
    for label in range(len(store.identities)):
        own = store.identity_name(label)
        name = normal_name(own) if numbers else comparable_name(own)
        if name:
            yield name, label


@dataclass(frozen=True, eq=False)
class CleaningReport:
    """What cleaning found.

    Attributes:
        edits: the edit list, for `write_edits` and `EditedStore`.
        counts: reason (the keys of `REASONS`) -> images; an image counts once, under the last step that changed it.
        examples: reason -> some of the comments.
        images, identities: of the store, and after the edits.
        notes: what was found and left as it is.
    """

    name: str
    edits: Edits
    counts: dict[str, int]
    examples: dict[str, list[str]]
    images: tuple[int, int]
    identities: tuple[int, int]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the edits themselves."""
        return {
            "name": self.name,
            "images": list(self.images),
            "identities": list(self.identities),
            "changes": len(self.edits),
            "counts": dict(self.counts),
            "examples": {reason: list(texts) for reason, texts in self.examples.items()},
            "notes": list(self.notes),
        }

    def to_text(self, lines_each: int = 5) -> str:
        """Return the report for a terminal, at most `lines_each` examples of each reason."""
        lines = [
            f"{self.name}: {self.images[0]:,} images of {self.identities[0]:,} identities; "
            f"after the edits {self.images[1]:,} of {self.identities[1]:,}"
        ]
        for reason, count in self.counts.items():
            if not count:
                continue
            lines.append(f"{REASONS[reason]}: {count:,}")
            shown = self.examples.get(reason, [])[:lines_each]
            lines.extend(f"  {example}" for example in shown)
            if count > len(shown):
                lines.append(f"  ... and {count - len(shown):,} more")
        if not any(self.counts.values()):
            lines.append("nothing to change")
        lines.extend(self.notes)
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class _Step:
    reason: str
    positions: Int64
    detail: Callable[[int], str]


class Findings:
    """Gathers what the steps of a cleaning find, in their order, and makes the edit list and the report of it.

    An image that one step left out is no matter of a later one. Memory: 9 bytes per image, and what the steps hold.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.before = store.identities.labels()
        self.labels = self.before.copy()
        self._steps: list[_Step] = []
        self._notes: list[str] = []

    def leave_out(self, reason: str, positions: Int64, detail: Callable[[int], str]) -> None:
        """Leave images out; `detail(i)` says why, of the i-th of `positions` (called for the comments, at the end)."""
        self._change(reason, positions, np.full(len(positions), LEFT_OUT, np.int64), detail)

    def leave_out_identities(self, reason: str, labels: Int64, detail: Callable[[int], str]) -> None:
        """Leave out whatever is left of identities (rising labels); `detail(i)` of the i-th label."""
        if len(labels):
            place = np.minimum(np.searchsorted(labels, self.labels), len(labels) - 1)
            positions = np.flatnonzero(labels[place] == self.labels)
            of = place[positions]
            self.leave_out(reason, positions, lambda i: detail(int(of[i])))

    def move(self, reason: str, positions: Int64, labels: Int64, detail: Callable[[int], str]) -> None:
        """Give images other labels."""
        self._change(reason, positions, labels, detail)

    def note(self, text: str) -> None:
        """Add a line to the report about something that is left as it is."""
        self._notes.append(text)

    def _change(self, reason: str, positions: Int64, labels: Int64, detail: Callable[[int], str]) -> None:
        assert reason in REASONS
        left = np.flatnonzero(self.labels[positions] >= 0)
        self.labels[positions[left]] = labels[left]
        self._steps.append(_Step(reason, positions[left], lambda i: detail(int(left[i]))))

    def report(self, *, examples: int = 20, most_comments: int = 2_000_000) -> CleaningReport:
        """Make the edit list and the report.

        Args:
            examples: most comments of each reason in the report.
            most_comments: a longer edit list goes without comments (some 150 bytes each in memory and in the file).
        """
        changed = np.flatnonzero(self.labels != self.before)
        last = np.zeros(len(self.labels), np.uint8)  # the number of the step that changed an image last, from 1
        for number, step in enumerate(self._steps, start=1):
            last[step.positions] = number
        counts = dict.fromkeys(REASONS, 0)
        shown: dict[str, list[str]] = {}
        for number, step in enumerate(self._steps, start=1):
            final = np.flatnonzero(last[step.positions] == number)
            counts[step.reason] += len(final)
            listed = shown.setdefault(step.reason, [])
            listed.extend(self._comment(step, i) for i in final[: examples - len(listed)].tolist())
        comments: list[str] | None = None
        if len(changed) <= most_comments:
            comments = [""] * len(changed)
            for step in self._steps:
                for i, row in enumerate(np.searchsorted(changed, step.positions).tolist()):
                    comments[row] = (
                        f"{comments[row]}; {_line(step.detail(i))}" if comments[row] else self._comment(step, i)
                    )
        else:
            self.note(f"the edit list has {len(changed):,} lines and therefore no comments (at most {most_comments:,})")
        return CleaningReport(
            name=self.store.name,
            edits=Edits(len(self.before), len(self.store.identities), changed, self.labels[changed], comments),
            counts=counts,
            examples={reason: texts for reason, texts in shown.items() if texts},
            images=(len(self.before), int((self.labels >= 0).sum())),
            identities=(len(self.store.identities), _distinct(self.labels)),
            notes=tuple(self._notes),
        )

    def _comment(self, step: _Step, i: int) -> str:
        return _line(f"{self.store.where(int(step.positions[i]))}: {step.detail(i)}")


def _line(text: str) -> str:
    return " ".join(text.split())


def _distinct(labels: Int64) -> int:
    return len(np.unique(labels[labels >= 0]))
