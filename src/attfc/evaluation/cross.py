"""A new model in an old gallery: may probes of the one be compared with what the other has enrolled, at the threshold that was set then?

One image of each person who has two is enrolled, all other images are probes; three ways to embed them: old x old, new x old (probes by the new
model, the gallery as it is) and new x new. Scores are those of all probes with all of the gallery, exact as everywhere (`exact_scores`). Each way has
TAR at a FAR at its own threshold, and at the one that gives old x old this FAR, AUC, EER and rank-1; the same people are drawn for all three.
Cost: both models embed every image; a product of probes and gallery, at most 6,000 images: 0.1 GB and some seconds of resampling.
Source: the cross test of backward-compatible training (Shen et al., arXiv 2003.11942).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from attfc.data.stores.store import Store
from attfc.errors import UserError
from attfc.evaluation.bootstrap import FigurePath, Interval, Resampled, Sample, interval_of_difference, resample
from attfc.evaluation.embed import Embedder
from attfc.evaluation.exact_scores import block_scores
from attfc.evaluation.people import few_people
from attfc.evaluation.protocols.held_out import gallery_of
from attfc.evaluation.protocols.identification import choose_gallery
from attfc.evaluation.protocols.search import identify, search_sample
from attfc.evaluation.rates import allowed_weight, pairs_needed
from attfc.evaluation.samples import ShareSample
from attfc.evaluation.tail_sample import TailSample
from attfc.typing import Progress

__all__ = ["DIFFERENCES", "WAYS", "Cross", "differences", "evaluate_cross"]

WAYS = {"old x old": (1, 1), "new x old": (0, 1), "new x new": (0, 0)}
"""Which model embeds probes and gallery: 0 the new one, 1 the old one."""
DIFFERENCES = (("new x old", "old x old"), ("new x new", "old x old"), ("new x new", "new x old"))

MOST_IMAGES, EXACT = 6_000, 2**16
TAR_AT_OLD = "tar_at_old_threshold"


@dataclass(frozen=True, eq=False)
class Cross:
    """What `evaluate_cross` found.

    Attributes:
        far, threshold: of old x old.
        samples: the scores behind the figures of each way.
        far_at_threshold: of each way, at the threshold of old x old.
        counts: how many are enrolled and searched. notes: what a reader should know.
    """

    far: float
    threshold: float
    samples: Mapping[str, Sequence[Sample]]
    far_at_threshold: Mapping[str, float]
    counts: Mapping[str, int]
    notes: tuple[str, ...]

    def resampled(self, resamples: int, confidence: float, seed: int) -> dict[str, dict[FigurePath, Resampled]]:
        """Return the figures of each way over the same resamples of identities."""
        drawn: dict[str, dict[FigurePath, Resampled]] = {}
        for way, samples in self.samples.items():
            several = [resample(sample, resamples, confidence, seed) for sample in samples]
            drawn[way] = {path: one for one in several for path in one.values}
        return drawn


def differences(
    drawn: Mapping[str, Mapping[FigurePath, Resampled]], one: str, other: str
) -> dict[FigurePath, Interval]:
    """Return the figures of one way minus those of another, the same people drawn for both."""
    return {path: interval_of_difference(found, drawn[other][path], path) for path, found in drawn[one].items()}


def evaluate_cross(
    new: Embedder,
    old: Embedder,
    store: Store,
    *,
    far: float = 0.01,
    seed: int = 0,
    broken_limit: float = 0.01,
    progress: Progress | None = None,
) -> Cross:
    """Embed a store of unseen identities with two models, enroll one image of each person and search the others.

    Args:
        new, old: of equal embedding sizes.
        far: false accept rate of the old threshold.
        seed: draws who is used, of more than 6,000 images, and which image is enrolled.
        broken_limit: the largest share of broken images that is left out and counted.
        progress: called as (images done, images), for each model.

    Raises:
        UserError: other embedding sizes, no probe of an enrolled person, or too few pairs of different people for the FAR.
    """
    sizes = [getattr(embedder.model, "embedding_size", None) for embedder in (new, old)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"the new model gives {sizes[0]} numbers per image and the old one {sizes[1]}: their embeddings cannot be compared, --cross "
            "is for models of one embedding size"
        )
    positions, note = gallery_of(store, MOST_IMAGES, seed)
    notes = (
        []
        if note is None
        else [f"{len(positions):,} of {len(store):,} images were used, those of identities drawn by --seed"]
    )
    found = [embedder.embed_within(store, positions, broken_limit, progress=progress) for embedder in (new, old)]
    valid = found[0].valid & found[1].valid
    if not valid.all():
        notes.append(f"{int((~valid).sum()):,} of {len(valid):,} images are broken and left out")
    chosen = np.isin(positions, choose_gallery(store.identities, 1.0, 1, seed))
    gallery, probes = np.flatnonzero(chosen & valid), np.flatnonzero(~chosen & valid)
    labels = np.unique(store.labels(positions), return_inverse=True)[1].astype(np.int64)
    first, second = (each.ravel() for each in np.meshgrid(labels[probes], labels[gallery], indexing="ij"))
    same = first == second
    genuine, impostors = int(same.sum()), int((~same).sum())
    if not genuine or impostors < pairs_needed(far):
        raise UserError(
            f"{store.name}: {genuine:,} mated and {impostors:,} non-mated pairs of probes and gallery; --cross needs people with two images, and "
            f"{pairs_needed(far):,} non-mated pairs for FAR {far:g}"
        )
    vectors = [torch.from_numpy(each.vectors).double() for each in found]
    samples: dict[str, list[Sample]] = {}
    accepted: dict[str, float] = {}
    threshold = 0.0
    for way, (probe, enrolled) in WAYS.items():
        sides = vectors[probe][probes], vectors[enrolled][gallery]
        scores = block_scores(*sides).numpy().ravel()
        if way == "old x old":
            threshold = float(np.sort(scores[~same])[::-1][allowed_weight(far, impostors)])
        searched = identify(sides[1], labels[gallery], sides[0], labels[probes], ranks=(1,), fpirs=())
        samples[way] = [
            TailSample.of_list(scores, same, first, second, fars=(far,), exact=max(EXACT, impostors // 50)),
            ShareSample(TAR_AT_OLD, scores[same] > threshold, first[same]),
            search_sample([searched]),
        ]
        accepted[way] = float((scores[~same] > threshold).mean())
    people = len(np.unique(first[same]))
    counts = {"enrolled": len(gallery), "probes": len(probes), "mated_probes": genuine, "people": people}
    return Cross(far, threshold, samples, accepted, counts, (*few_people(people), *notes))
