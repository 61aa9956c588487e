"""The steps of cleaning that compare people by their faces: near copies, labels that are one person, people and images of the evaluation set.

What each finds goes into `Findings` with its cosine, the threshold, and the pairs nearest to it, which a person should look at. Memory: both sets'
centers (2 x D bytes per identity) and what `same_people` holds; never all embeddings at once.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from attfc.data.cleaning.findings import PAIR_IMAGES, Findings, Pair
from attfc.data.cleaning.identity_centers import identity_centers
from attfc.data.cleaning.same_people import Alike, alike, near_copies
from attfc.data.stores.combined import CombinedStore
from attfc.data.stores.store import Store
from attfc.typing import Array, Int64

__all__ = ["Faces"]

_SHOWN_PAIRS, _NAMED = 12, 10


@dataclass
class Faces:
    """Embeddings of both sets and what is found with them.

    Attributes:
        findings: of the training set, which the steps add to.
        embeddings: (N, D) of the training set. against, their_embeddings: the evaluation set, if any, and its embeddings (M, D).
        keeps: cosine from which an image counts for its identity's center.
        threshold: cosine of one person; None: one that few strangers reach (`same_people`).
        device: where products are computed.
        pairs: one person under two labels, at or above the threshold, surest first; borderline: those nearest to the threshold.
    """

    findings: Findings
    embeddings: Array
    against: Store | None
    their_embeddings: Array | None
    keeps: float
    threshold: float | None
    device: torch.device | str
    pairs: list[Pair] = field(default_factory=list)
    borderline: list[Pair] = field(default_factory=list)

    def _centers(self) -> Array:
        store, labels = self.findings.store, self.findings.labels
        return identity_centers(self.embeddings, labels, len(store.identities), self.keeps, dtype=np.float16)

    def leave_out_near_copies(self, policy: Literal["drop_all", "keep_first", "report"]) -> None:
        """Leave out the same photographs in another encoding: within an identity all but the first, across identities by the policy."""
        store, labels = self.findings.store, self.findings.labels
        images = alike(self.embeddings, self._centers(), 1.0, own=labels, device=self.device)
        guests = np.where(labels >= 0, images.best, -1)
        for name, groups in (("one label", labels), ("two labels", guests)):
            first, second = near_copies((store, store), (self.embeddings, self.embeddings), (groups, labels))
            within = groups is labels
            if within:
                first, second = np.where(first < second, second, first), np.where(first < second, first, second)
            elif policy == "keep_first":
                later = first > second
                first, second = first[later], second[later]
            elif policy == "report":
                self.findings.note(f"{len(np.unique(first)):,} near copies under {name} are left as they are")
                continue
            else:
                first, second = np.concatenate([first, second]), np.concatenate([second, first])
            positions, rows = np.unique(first, return_index=True)
            self._leave_out_copies(positions, second[rows])

    def _leave_out_copies(self, positions: Int64, originals: Int64) -> None:
        where = self.findings.store.where
        self.findings.leave_out("near_copy", positions, lambda i: f"near copy of {where(int(originals[i]))}")

    def find_doubles(self, merge: bool) -> None:
        """Find labels of the training set that are one person; `merge`: give them the label with the most images."""
        centers = self._centers()
        found = alike(centers, centers, self.threshold, own=np.arange(len(centers)), device=self.device)
        rows = found.found
        self._keep(found, rows, between=False)
        if not len(rows):
            return
        labels = self.findings.labels
        images = np.bincount(labels[labels >= 0], minlength=len(centers))
        head = _groups(rows, found.best[rows], images)
        moved = np.flatnonzero(head != np.arange(len(centers)))
        names = [
            f"{self.findings.name(label)} = {self.findings.name(head[label])}" for label in moved[:_NAMED].tolist()
        ]
        more = " ..." if len(moved) > _NAMED else ""
        self.findings.note(
            f"{len(moved):,} labels look like a person of another label (cosine from {found.threshold:.2f}"
            f"{', which few strangers reach' if found.by_chance else ''}): {', '.join(names)}{more}"
            + ("" if merge else "; --merge gives both one label")
        )
        if merge:
            positions = np.flatnonzero(np.isin(labels, moved))
            self.findings.move(
                "one_person",
                positions,
                head[labels[positions]],
                lambda i: f"moved to {self.findings.name(head[self.findings.before[positions[i]]])}, the same person",
            )

    def leave_out_people(self, images_too: bool) -> Int64:
        """Leave out people of the evaluation set; `images_too`: and single images of them under other labels.

        Returns:
            (n, 2) labels of the evaluation set that look like one person, where it is of several sets.
        """
        against, theirs = self.against, self.their_embeddings
        assert against is not None
        assert theirs is not None
        ours, their_labels = self._centers(), against.identities.labels()
        their_centers = identity_centers(theirs, their_labels, len(against.identities), self.keeps)
        centers = alike(ours, their_centers, self.threshold, device=self.device)
        faces = alike(theirs, ours, self.threshold, device=self.device)
        self._keep(centers, centers.found, between=True)
        cosine, whom = centers.cosines.copy(), centers.best.copy()
        people = np.zeros(len(ours), np.bool_)
        people[centers.found] = True
        for row in faces.found.tolist():  # an image of theirs finds a center of ours that its own center misses
            label = int(faces.best[row])
            if not people[label] or cosine[label] < faces.cosines[row]:
                cosine[label], whom[label] = faces.cosines[row], their_labels[row]
            people[label] = True
        found = np.flatnonzero(people)
        if len(found) > 0.1 * len(ours):
            self.findings.note(
                f"{len(found):,} of {len(ours):,} identities look like one of {against.name} at a cosine of {centers.threshold:g}: is the "
                "model good enough, the threshold too low?"
            )
        self.findings.leave_out_identities(
            "evaluation_face",
            found,
            lambda i: (
                f"cosine {cosine[found[i]]:.2f} between the centers of {self.findings.name(found[i])} and "
                f"{against.identity_name(int(whom[found[i]]))!r} of {against.name}"
            ),
        )
        if isinstance(against, CombinedStore):
            own = np.arange(len(their_centers))
            doubled = alike(their_centers, their_centers, self.threshold, own=own, device=self.device)
            both = np.stack([doubled.found, doubled.best[doubled.found]], axis=1)
        else:
            both = np.zeros((0, 2), np.int64)
        if not images_too:
            return both
        images = alike(self.embeddings, their_centers, self.threshold, device=self.device)
        single = images.found[~people[self.findings.before[images.found]]]
        self.findings.leave_out(
            "evaluation_image",
            single,
            lambda i: (
                f"cosine {images.cosines[single[i]]:.2f} to {against.identity_name(int(images.best[single[i]]))!r} of {against.name}"
            ),
            again=True,
        )
        return both

    def _keep(self, found: Alike, rows: Int64, *, between: bool) -> None:
        surest = rows[np.argsort(-found.cosines[rows], kind="stable")]
        for kept, chosen in ((self.pairs, surest), (self.borderline, found.borderline(2 * _SHOWN_PAIRS))):
            seen: set[tuple[int, int]] = set()
            for row in chosen.tolist():
                labels = (row, int(found.best[row]))
                if between or labels[::-1] not in seen:
                    seen.add(labels)
                    kept.append(self._pair(labels, float(found.cosines[row]), found.threshold, between))

    def _pair(self, labels: tuple[int, int], cosine: float, threshold: float, between: bool) -> Pair:
        store = self.findings.store
        other = self.against if between and self.against is not None else store
        return Pair(
            labels,
            (store.identity_name(labels[0]), other.identity_name(labels[1])),
            round(cosine, 4),
            round(threshold, 4),
            between,
            (
                tuple(store.identities.of(labels[0])[:PAIR_IMAGES].tolist()),
                tuple(other.identities.of(labels[1])[:PAIR_IMAGES].tolist()),
            ),
        )


def _groups(one: Int64, two: Int64, images: Int64) -> Int64:
    """Return for each label the label with the most images among all that are joined to it."""
    head = np.arange(len(images))

    def root(label: int) -> int:
        while head[label] != label:
            label = int(head[label])
        return label

    for a, b in zip(one.tolist(), two.tolist(), strict=True):
        first, second = root(a), root(b)
        if (images[first], -first) < (images[second], -second):
            first, second = second, first
        head[second] = first
    return np.array([root(label) for label in range(len(images))])
