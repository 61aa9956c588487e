"""All of cleaning in one call: `attfc data clean`. What is wrong with a set is found in this order, and nothing is deleted.

Broken images and copies (`duplicates`), wrong labels (`label_cleaning`, with embeddings), near copies and labels that are one person
(`people`, with embeddings), people of the evaluation set (`evaluation_people`, and by their faces in `people`), identities that have become
too small. Later steps see only what earlier ones left.
"""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from attfc.data.cleaning.duplicates import AcrossIdentities, Contents, find_duplicates, read_contents
from attfc.data.cleaning.evaluation_people import (
    leave_out_copied_people,
    leave_out_named_people,
    note_people,
    note_people_of_several,
)
from attfc.data.cleaning.findings import CleaningReport, Findings, small_identities
from attfc.data.cleaning.label_cleaning import check_cosine, mislabelled
from attfc.data.cleaning.people import Faces
from attfc.data.stores.combined import CombinedStore
from attfc.data.stores.store import Store
from attfc.errors import UserError
from attfc.typing import Array, Bools, Progress

__all__ = ["clean"]


def clean(
    store: Store,
    *,
    broken: bool = True,
    duplicates: AcrossIdentities | None = "drop_all",
    fewest: int = 1,
    against: Store | None = None,
    names: bool = True,
    embeddings: Array | None = None,
    against_embeddings: Array | None = None,
    threshold: float | None = 0.3,
    margin: float | None = None,
    policy: Literal["drop", "move"] = "drop",
    move_threshold: float = 0.7,
    overlap_threshold: float | None = None,
    people: bool = False,
    merge: bool = False,
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    examples: int = 20,
    most_comments: int = 2_000_000,
) -> CleaningReport:
    """Look for everything that is asked for, in the order above, and return the edit list and the report. Deletes nothing.

    Args:
        store: the training set.
        broken: decode every image and leave out those that fail.
        duplicates: what to do with equal images across identities (`find_duplicates`); None: do not look for copies.
        fewest: leave out identities with fewer images than this; 1: none.
        against: the evaluation set, whose people must not be in the training set. Left out with all their images are identities
            that hold the same bytes as one of its images (unless duplicates is None) or match by name or embedding. A `CombinedStore`: a note says
            who is in several of its sets.
        names: compare identity names with those of `against`; names that are mere numbers are not compared.
        embeddings: (N, D) of all images of the store, in order (zeros for broken ones): looks for wrong labels.
        against_embeddings: (M, D) of `against`, of the same model: looks for its people by their centers.
        threshold, margin, policy, move_threshold: of `mislabelled`; threshold None: do not look for wrong labels.
        overlap_threshold: cosine from which two labels are one person; None: one that few strangers reach
            (`same_people`), 0.7 where there are fewer than 20 people.
        people: with embeddings, look also for near copies and for labels of the store that are one person.
        merge: give labels that are one person the label with the most images; False: report them.
        workers, device: processes that read images, and where nearest centers are computed.
        progress: called as (done, total) in images, all passes together.
        examples, most_comments: of `Findings.report`.

    Raises:
        UserError: an argument that does not fit the others or the store.
    """
    _check_arguments(store, against, embeddings, against_embeddings, fewest)
    _check_people(embeddings, people or merge, overlap_threshold)
    reads = broken or duplicates is not None
    images = len(store) * (reads + (embeddings is not None and threshold is not None))
    images += len(against) if against is not None and duplicates is not None else 0
    steps = _Progress(progress, images)
    findings = Findings(store)
    contents = read_contents(store, decode=broken, workers=workers, progress=steps.next(len(store))) if reads else None
    if contents is not None:
        findings.leave_out("broken", np.flatnonzero(~contents.sound), contents.reasons.__getitem__)
        if duplicates is not None:
            _leave_out_copies(findings, contents, duplicates)
    faces = None
    if embeddings is not None:
        keeps = 0.3 if threshold is None else threshold
        faces = Faces(findings, embeddings, against, against_embeddings, keeps, overlap_threshold, device)
    if faces is not None and people and duplicates is not None:
        faces.leave_out_near_copies(duplicates)
    if embeddings is not None and threshold is not None:
        options = {"margin": margin, "policy": policy, "move_threshold": move_threshold, "device": device}
        _change_mislabelled(findings, embeddings, threshold, steps.next(len(store)), options)
    if faces is not None and (people or merge):
        faces.find_doubles(merge)
    if against is not None:
        theirs = None
        if contents is not None and duplicates is not None:
            theirs = read_contents(against, decode=False, workers=workers, progress=steps.next(len(against)))
        _leave_out_evaluated(findings, against, names, contents, theirs, faces, people)
    _leave_out_small(findings, fewest)
    report = findings.report(examples=examples, most_comments=most_comments)
    return report if faces is None else replace(report, pairs=tuple(faces.pairs), borderline=tuple(faces.borderline))


def _check_people(embeddings: Array | None, people: bool, overlap_threshold: float | None) -> None:
    if overlap_threshold is not None:
        check_cosine("overlap_threshold", overlap_threshold)
    if people and embeddings is None:
        raise UserError("people are compared by their faces: embeddings of the store are needed, all images in order")


def _check_arguments(
    store: Store,
    against: Store | None,
    embeddings: Array | None,
    against_embeddings: Array | None,
    fewest: int,
) -> None:
    if fewest < 1:
        raise UserError(f"fewest={fewest}: a number of images from 1 is needed")
    if against_embeddings is not None and (against is None or embeddings is None):
        raise UserError("against_embeddings need the evaluation set (against) and embeddings of the training set")
    for which, rows in ((store, embeddings), (against, against_embeddings)):
        if which is not None and rows is not None and (rows.ndim != 2 or len(rows) != len(which)):
            raise UserError(
                f"{which.name}: embeddings of shape {rows.shape} for {len(which)} images: embed all images of the store, in order"
            )


def _leave_out_copies(findings: Findings, contents: Contents, policy: AcrossIdentities) -> None:
    found = find_duplicates(findings.store, across=policy, contents=contents, labels=findings.labels)

    def leave_out(reason: str, chosen: Bools) -> None:
        copy_of = found.copy_of[chosen]
        findings.leave_out(
            reason, found.positions[chosen], lambda i: f"same bytes as {findings.store.where(int(copy_of[i]))}"
        )

    leave_out("duplicate_within", ~found.across)
    leave_out("duplicate_across", found.across)
    if policy == "report" and found.images_across:
        findings.note(
            f"{found.images_across:,} images under several identities ({found.groups_across:,} different ones) are left as they are"
        )
    for one, two, groups in found.shared[:10]:
        if groups > 1:
            findings.note(
                f"{findings.name(one)} and {findings.name(two)} share {groups:,} images: one person under two names?"
            )


def _change_mislabelled(
    findings: Findings, embeddings: Array, threshold: float, progress: Progress | None, options: dict[str, Any]
) -> None:
    wrong = mislabelled(embeddings, findings.labels, threshold, progress=progress, **options)
    stays, goes = np.flatnonzero(wrong.moved_to < 0), np.flatnonzero(wrong.moved_to >= 0)

    def why(row: int) -> str:
        own = f"cosine {wrong.cosines[row]:.2f} to the center of {findings.name(wrong.labels[row])}"
        other = f"{wrong.nearest_cosines[row]:.2f}"
        if wrong.moved_to[row] >= 0:
            return f"{own}, moved to {findings.name(wrong.moved_to[row])} ({other})"
        return own if wrong.nearest[row] < 0 else f"{own}, {other} to {findings.name(wrong.nearest[row])}"

    findings.leave_out("mislabelled", wrong.positions[stays], lambda i: why(stays[i]))
    findings.move("moved", wrong.positions[goes], wrong.moved_to[goes], lambda i: why(goes[i]))
    if len(wrong.unclear):
        some = ", ".join(map(findings.store.identity_name, wrong.unclear[:5].tolist()))
        findings.note(
            f"{len(wrong.unclear):,} identities are left unchanged: too few of their images reach a cosine of {threshold:g} to the rest, "
            f"so it is unclear which are wrong: {some}{' ...' if len(wrong.unclear) > 5 else ''}"
        )
    if wrong.compared and len(wrong.positions) > 0.2 * wrong.compared:
        findings.note(
            f"{len(wrong.positions) / wrong.compared:.0%} of the images are below {threshold:g}: is the model good enough, the threshold too "
            "high? Cosines to the own center: "
            + ", ".join(f"{share:.0%} below {cosine:.2f}" for share, cosine in wrong.quantiles.items())
        )


def _leave_out_evaluated(
    findings: Findings,
    against: Store,
    names: bool,
    contents: Contents | None,
    theirs: Contents | None,
    faces: Faces | None,
    images_too: bool,
) -> None:
    before, alike = findings.labels.copy(), np.zeros((0, 2), np.int64)
    if contents is not None and theirs is not None:
        leave_out_copied_people(findings, contents, against, theirs)
    if names:
        leave_out_named_people(findings, against)
    if faces is not None and faces.their_embeddings is not None:
        alike = faces.leave_out_people(images_too)
    note_people(findings, before, against)
    if isinstance(against, CombinedStore):
        note_people_of_several(findings, against, theirs, alike)


def _leave_out_small(findings: Findings, fewest: int) -> None:
    small = small_identities(findings.labels, fewest)
    counts = np.bincount(findings.labels[findings.labels >= 0])
    findings.leave_out_identities(
        "small_identity",
        small,
        lambda i: f"{findings.name(small[i])} has {counts[small[i]]} images left, fewer than {fewest}",
    )


class _Progress:
    """One running total over several passes."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def next(self, size: int) -> Progress | None:
        """Return the callback of the next pass, which is `size` of the total whatever it counts itself."""
        progress, before = self.progress, self.done
        self.done += size
        if progress is None:
            return None
        return lambda done, of: progress(before + size * done // max(of, 1), self.total)
