"""What a cell of a study says of its people: figures over all of them, and each person's hits, so that two cells can be compared person by person.

Of each person with two or more images a cell keeps the genuine pairs accepted at each FAR (thresholds are those of all impostor pairs) and the
images whose nearest other image shows them. Pairs and searches follow from the number of images. Counts are int32, deflated, in base64: 3 kB per
cell for 2,000 people, where plain lists take 17.
"""

import base64
import zlib

import numpy as np

from attfc.evaluation.protocols.all_pairs_scores import AllPairs
from attfc.evaluation.protocols.search import RankOne
from attfc.typing import Int64, Json

__all__ = ["figures_of", "packed", "people_of", "unpacked"]


def figures_of(pairs: AllPairs, search: RankOne) -> dict[str, float]:
    """Return "tar_at_far/F", "person_balanced_tar_at_far/F" (each person weighs alike, same thresholds) and "rank_one"."""
    kinds = {
        "tar_at_far": pairs.tar_at_far,
        "person_balanced_tar_at_far": pairs.person_balanced_tar_at_far,
    }
    stated = {f"{kind}/{far:g}": tar for kind, tars in kinds.items() for far, tar in tars.items() if tar is not None}
    return {**stated, "rank_one": search.rate}


def people_of(pairs: AllPairs, search: RankOne) -> Json:
    """Return counts of each person with two or more images, by the order of the labels, `packed`.

    {"images": of each person, "accepted": {"0.01": genuine pairs accepted, ...}, "rank_one": images found}
    """
    thresholds = {far: threshold for far, threshold in pairs.threshold_at_far.items() if threshold is not None}
    return {
        "images": packed(pairs.identity_images[pairs.identity_images > 1]),
        "accepted": {f"{far:g}": packed(pairs.accepted_pairs(threshold)) for far, threshold in thresholds.items()},
        "rank_one": packed(np.bincount(search.labels, search.hits)[np.unique(search.labels)]),
    }


def packed(counts_P: Int64) -> str:
    """Return counts below 2^31 as text.

    >>> unpacked(packed(np.array([3, 0, 70_000]))).tolist()
    [3, 0, 70000]
    """
    return base64.b64encode(zlib.compress(counts_P.astype("<i4").tobytes(), 9)).decode()


def unpacked(text: str) -> Int64:
    """Return the counts that `packed` wrote."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<i4").astype(np.int64)
