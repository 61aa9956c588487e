"""An operating point of a model on a set of people: embed, score, choose and measure, put together.

Failures to acquire are images that give no embedding: broken ones, and photos without a face. They are left out and counted, or count as FRTE counts
them: a comparison with one is a non-match, so they raise FNMR, and FMR is a share of more comparisons.

Source: ISO/IEC 19795-1 (failure to acquire); NIST FRTE 1:1, which scores a failed template as a non-match.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata

import numpy as np

from attfc.data.stores.store import Store
from attfc.evaluation.embed import Embedder
from attfc.evaluation.operating_point.calibrating import SPLITS, calibrate_scores, check_groups, check_people
from attfc.evaluation.operating_point.point import OperatingPoint
from attfc.evaluation.operating_point.scores import scores_of_people
from attfc.evaluation.protocols.all_pairs import Groups
from attfc.typing import Progress

__all__ = ["Measuring", "check_request"]


def check_request(store: Store, fmr: float, groups: Groups | None) -> None:
    """Refuse, before anything is embedded, an FMR that the people of a store cannot support, and a group of one person."""
    present = store.identities.counts() > 0
    check_people(int(present.sum()), fmr, store.name)
    if groups is not None:
        check_groups(groups.of_label[present], store.name)


@dataclass(frozen=True)
class Measuring:
    """How an operating point is measured.

    Attributes:
        fmr: false match rate asked for.
        groups: of the people, or None.
        count_failures: whether failures to acquire are non-matches; else they are left out.
        splits, seed: of the people, into a half that chooses and a half that is measured.
        broken_limit: largest share of failures that is left out, not refused.
        budget: bytes for embeddings and scores.
    """

    fmr: float
    groups: Groups | None = None
    count_failures: bool = False
    splits: int = SPLITS
    seed: int = 0
    broken_limit: float = 0.01
    budget: int = 4 * 2**30

    def of(
        self,
        embedder: Embedder,
        store: Store,
        *,
        network: str,
        digest: str,
        aligned: bool = False,
        notes: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> OperatingPoint:
        """Measure a model.

        Args:
            embedder: the model.
            store: people whom it was not trained on.
            network, digest: name of the network, SHA-256 of the model's file.
            aligned: whether the store finds the faces.
            notes: to keep with the figures.
            progress: called as (done, of all) of images, of pairs, of splits.

        Raises:
            UserError: too few people for the FMR, a group of one person, too many failures.
        """
        found = embedder.embed_within(store, None, 1.0 if self.count_failures else self.broken_limit, progress=progress)
        label_N = store.labels(found.positions)
        counted_N = label_N if self.count_failures else label_N[found.valid]
        labels, images = np.unique(counted_N, return_counts=True)
        scores = scores_of_people(
            found.vectors[found.valid],
            label_N[found.valid],
            self.fmr,
            dict(zip(labels.tolist(), images.tolist(), strict=True)),
            self.seed,
            budget=self.budget,
            device=embedder.on,
            progress=progress,
        )
        group_I = None if self.groups is None else self.groups.of_label[labels]
        measured = calibrate_scores(
            scores,
            self.fmr,
            where=store.name,
            group_I=group_I,
            splits=self.splits,
            seed=self.seed,
            progress=progress,
        )
        notes = [*notes, *(self.groups.notes if self.groups else ()), *measured.pop("notes")]
        return OperatingPoint(
            attfc=metadata.version("attfc"),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            network=network,
            digest=digest,
            store=store.name,
            images=len(found.positions),
            flip=embedder.flip,
            aligned=aligned,
            failures=len(found.broken),
            failures_counted=self.count_failures,
            notes=tuple(note[:1000] for note in notes),
            **measured,
        )
