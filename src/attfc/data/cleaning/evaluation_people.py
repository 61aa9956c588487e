"""People of an evaluation set who are in a training set too: found by copied images or by name, left out with all their images.

A network that was trained on other photographs of a person knows the face: to leave out the copied photographs alone would leave
the evaluation as it was. Faces are compared by `attfc.data.cleaning.label_cleaning`.
"""

import re
import unicodedata
from collections.abc import Iterator

import numpy as np

from attfc.data.cleaning.duplicates import Contents
from attfc.data.cleaning.findings import Findings
from attfc.data.stores.combined import CombinedStore
from attfc.data.stores.store import Store
from attfc.typing import Int64

__all__ = [
    "comparable_name",
    "leave_out_copied_people",
    "leave_out_named_people",
    "normal_name",
    "note_people",
    "note_people_of_several",
    "overlap_by_name",
]

_LISTED = 10

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


def leave_out_copied_people(findings: Findings, contents: Contents, against: Store, theirs: Contents) -> None:
    """Leave out every identity that holds the same bytes as an image of `against`.

    A copy that an earlier step left out counts too, under the label that it had.

    Args:
        findings: of the training set, after the steps before.
        contents: of the training set.
        against, theirs: the evaluation set and its contents.
    """
    their_places = np.flatnonzero(theirs.sound)
    if not len(their_places):
        return
    their_places = their_places[np.argsort(theirs.hashes[their_places], kind="stable")]
    ordered = theirs.hashes[their_places]
    place = np.minimum(np.searchsorted(ordered, contents.hashes), len(ordered) - 1)
    copies = np.flatnonzero(contents.sound & (ordered[place] == contents.hashes))
    copy_of = their_places[place[copies]]
    labels = np.where(findings.labels[copies] >= 0, findings.labels[copies], findings.before[copies])
    people, first = np.unique(labels, return_index=True)

    def same(i: int) -> str:
        return f"same bytes as {against.where(int(copy_of[i]))} of {against.name}"

    def of_person(i: int) -> str:
        copy = int(first[i])
        return f"{findings.name(people[i])} has {findings.store.where(int(copies[copy]))}, {same(copy)}"

    findings.leave_out("evaluation_copy", copies, same)
    findings.leave_out_identities("evaluation_copy", people, of_person)


def leave_out_named_people(findings: Findings, against: Store) -> None:
    """Leave out every identity that has a name of `against` (`overlap_by_name`)."""
    pairs = overlap_by_name(findings.store, against)
    findings.leave_out_identities(
        "evaluation_name",
        pairs[:, 0],
        lambda i: f"{against.name} has a {against.identity_name(int(pairs[i, 1]))!r} too",
    )


def note_people(findings: Findings, labels_before: Int64, against: Store) -> None:
    """Add to the report who was left out since `labels_before` were the labels, and how many images of each."""
    gone = labels_before[(labels_before >= 0) & (findings.labels < 0)]
    people, images = np.unique(gone, return_counts=True)
    if not len(people):
        return
    shown = [f"{findings.name(label)} ({count:,})" for label, count in zip(people[:_LISTED], images, strict=False)]
    more = f" and {len(people) - _LISTED:,} more" if len(people) > _LISTED else ""
    findings.note(
        f"{len(people):,} people are in {against.name} too and are left out with all their images, {len(gone):,} in all: "
        f"{', '.join(shown)}{more}"
    )


def note_people_of_several(findings: Findings, against: CombinedStore, theirs: Contents | None, alike: Int64) -> None:
    """Add to the report who is in several evaluation sets, by name, copied images or faces. Nothing is changed: these sets are not what is cleaned.

    Args:
        theirs: contents of the evaluation sets, if copies are looked for. alike: (n, 2) labels of them that look like one person.
    """
    index = against.identities
    set_of, _ = against.source_of(index.positions_of_slots(np.minimum(index.offsets[:-1], len(against) - 1)))
    first: dict[str, int] = {}
    named = [(first.setdefault(name, label), label) for name, label in _names(against, numbers=False)]
    copied = np.zeros((0, 2), np.int64)
    if theirs is not None:
        order = np.flatnonzero(theirs.sound)
        order = order[np.argsort(theirs.hashes[order], kind="stable")]
        again = np.flatnonzero(theirs.hashes[order[1:]] == theirs.hashes[order[:-1]])
        copied = against.labels(np.stack([order[again], order[again + 1]], axis=1))
    pairs = np.sort(np.concatenate([np.array(named, np.int64).reshape(-1, 2), copied, alike]), axis=1)
    pairs = np.unique(pairs[set_of[pairs[:, 0]] != set_of[pairs[:, 1]]], axis=0)
    if not len(pairs):
        return

    def said(label: int) -> str:
        return f"{against.identity_name(label)!r} of {against.names[set_of[label]]}"

    shown = [f"{said(one)} = {said(other)}" for one, other in pairs[:_LISTED].tolist()]
    more = f" and {len(pairs) - _LISTED:,} more" if len(pairs) > _LISTED else ""
    verb = "people are" if len(pairs) > 1 else "person is"
    findings.note(f"{len(pairs):,} {verb} in two of the evaluation sets: {', '.join(shown)}{more}")
