"""What the steps of a cleaning find, gathered into an edit list (`attfc.data.stores.edits`) with a reason for each image.

Nothing is deleted: every store honours an edit list. Memory: 9 bytes per image, and what the steps hold.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

from attfc.data.preview import draw_sheet
from attfc.data.stores.edits import LEFT_OUT, Edits
from attfc.data.stores.store import Store
from attfc.errors import UserError
from attfc.typing import Int64, Json

__all__ = ["PAIR_IMAGES", "REASONS", "CleaningReport", "Findings", "Pair", "first_of", "small_identities"]

PAIR_IMAGES = 4
"""Images of each label of a pair that a sheet shows."""

REASONS = {
    "broken": "broken images",
    "duplicate_within": "copies within an identity (the first is kept)",
    "duplicate_across": "copies under several identities",
    "near_copy": "near copies: the same photograph in another encoding or size",
    "evaluation_copy": "images of identities that hold a copy of an image of the evaluation set",
    "mislabelled": "images far from their identity's center",
    "moved": "images moved to the identity whose center is clearly closer",
    "one_person": "images moved to another label of the same person",
    "evaluation_name": "images of identities that have a name of the evaluation set",
    "evaluation_face": "images of identities that have a face of the evaluation set",
    "evaluation_image": "single images that look like somebody of the evaluation set",
    "small_identity": "images of identities that are too small",
}
"""Why an image is in an edit list, in the order in which `clean` looks."""


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


@dataclass(frozen=True)
class Pair:
    """Two labels that may be one person.

    Attributes:
        labels: of the training set; or of the training and of the evaluation set, where `between`.
        names: theirs. cosine: of their closest centers or images. threshold: from which they count as one person.
        positions: a few images of each, in their sets.
    """

    labels: tuple[int, int]
    names: tuple[str, str]
    cosine: float
    threshold: float
    between: bool
    positions: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    @property
    def found(self) -> bool:
        """Whether it is at or above the threshold."""
        return self.cosine >= self.threshold


@dataclass(frozen=True, eq=False)
class CleaningReport:
    """What cleaning found.

    Attributes:
        edits: the edit list, for `write_edits` and `EditedStore`.
        counts: reason (the keys of `REASONS`) -> images; an image counts once, under the last step that changed it.
        examples: reason -> some of the comments.
        images, identities: of the store, and after the edits.
        notes: what was found and left as it is.
        pairs: labels that look like one person, surest first; borderline: the pairs nearest to the threshold.
    """

    name: str
    edits: Edits
    counts: dict[str, int]
    examples: dict[str, list[str]]
    images: tuple[int, int]
    identities: tuple[int, int]
    notes: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()
    borderline: tuple[Pair, ...] = ()

    def to_dict(self) -> Json:
        """Return plain values for JSON, without the edits themselves."""
        facts = {**vars(self), "changes": len(self.edits), "pairs": [vars(pair) for pair in self.pairs]}
        del facts["edits"], facts["borderline"]
        return facts

    def sheet(self, store: Store, against: Store | None) -> Image:
        """Draw the pairs nearest to the threshold, surest first: images of the one label, then of the other. It shows people.

        Raises:
            UserError: there are no pairs.
        """
        if not self.borderline:
            raise UserError(f"{self.name}: no two labels were compared by their faces: there is no pair to draw")
        rows = []
        for pair in sorted(self.borderline, key=lambda pair: -pair.cosine):
            verdict = "one person" if pair.found else "two people"
            stores = (store, against if pair.between and against is not None else store)
            shown = [(of, np.array(positions)) for of, positions in zip(stores, pair.positions, strict=True)]
            title = f"{' / '.join(pair.names)}  cosine {pair.cosine:.2f}, threshold {pair.threshold:.2f}: {verdict}"
            rows.append((title, shown))
        return draw_sheet(rows, 2 * PAIR_IMAGES)

    def to_text(self, lines_each: int = 5) -> str:
        """Return the report for a terminal, at most `lines_each` examples of each reason."""
        lines = [
            f"{self.name}: {self.images[0]:,} images of {self.identities[0]:,} identities; "
            f"after the edits {self.images[1]:,} of {self.identities[1]:,}"
        ]
        for reason, count in self.counts.items():
            if count:
                lines.append(f"{REASONS[reason]}: {count:,}")
                lines += first_of(self.examples.get(reason, []), count, lines_each)
        if not any(self.counts.values()):
            lines.append("nothing to change")
        lines.extend(self.notes)
        return "\n".join(lines)


def first_of(cases: list[str], total: int, limit: int) -> list[str]:
    """Return indented lines for at most `limit` of the cases known, and one that says how many more of the total there are."""
    shown = cases[:limit]
    return [f"  {case}" for case in shown] + [f"  ... and {total - len(shown):,} more"] * (total > len(shown))


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

    def name(self, label: int) -> str:
        """Return an identity's name in quotation marks."""
        return repr(self.store.identity_name(int(label)))

    def leave_out(self, reason: str, positions: Int64, detail: Callable[[int], str], *, again: bool = False) -> None:
        """Leave images out; `detail(i)` says why, of the i-th of `positions` (called for the comments, at the end).

        `again`: the reason counts for images too that an earlier step left out.
        """
        self.move(reason, positions, np.full(len(positions), LEFT_OUT, np.int64), detail, again=again)

    def leave_out_identities(self, reason: str, labels: Int64, detail: Callable[[int], str]) -> None:
        """Leave out whatever is left of identities (rising labels); `detail(i)` of the i-th label."""
        if len(labels):
            place = np.minimum(np.searchsorted(labels, self.labels), len(labels) - 1)
            positions = np.flatnonzero(labels[place] == self.labels)
            of = place[positions]
            self.leave_out(reason, positions, lambda i: detail(int(of[i])))

    def move(
        self, reason: str, positions: Int64, labels: Int64, detail: Callable[[int], str], *, again: bool = False
    ) -> None:
        """Give images other labels."""
        assert reason in REASONS
        left = np.arange(len(positions)) if again else np.flatnonzero(self.labels[positions] >= 0)
        self.labels[positions[left]] = labels[left]
        self._steps.append(_Step(reason, positions[left], lambda i: detail(int(left[i]))))

    def note(self, text: str) -> None:
        """Add a line to the report about something that is left as it is."""
        self._notes.append(text)

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
        comments, commented = [""] * len(changed), len(changed) <= most_comments
        if not commented:
            self.note(f"the edit list has {len(changed):,} lines and therefore no comments (at most {most_comments:,})")
        for number, step in enumerate(self._steps, start=1):
            final = np.flatnonzero(last[step.positions] == number)
            counts[step.reason] += len(final)
            listed = shown.setdefault(step.reason, [])
            listed += [self._comment(step, i) for i in final[: examples - len(listed)].tolist()]
            for i, row in enumerate(np.searchsorted(changed, step.positions).tolist() if commented else ()):
                comments[row] = f"{comments[row]}; {_line(step.detail(i))}" if comments[row] else self._comment(step, i)
        return CleaningReport(
            self.store.name,
            Edits(
                len(self.before),
                len(self.store.identities),
                changed,
                self.labels[changed],
                comments if commented else None,
            ),
            counts,
            examples={reason: texts for reason, texts in shown.items() if texts},
            images=(len(self.before), int((self.labels >= 0).sum())),
            identities=(len(self.store.identities), len(np.unique(self.labels[self.labels >= 0]))),
            notes=tuple(self._notes),
        )

    def _comment(self, step: _Step, i: int) -> str:
        return _line(f"{self.store.where(int(step.positions[i]))}: {step.detail(i)}")


def _line(text: str) -> str:
    return " ".join(text.split())
