"""The curves that the scores of a result allow: ROC and DET of pairs, CMC and DIR of searches, a curve per model.

Numbers of false accepts are spread evenly over the logarithm; each point is exact as far as single scores are kept, then stands at the ranks kept.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from attfc.evaluation.bootstrap import Sample
from attfc.evaluation.report.plots import CERTAIN_FALSE_ACCEPTS, Curve, CurveKind, read_at, roc_of_list
from attfc.evaluation.samples import PairListSample, SearchSample
from attfc.evaluation.tail_sample import TailSample
from attfc.typing import Float64, Int64

__all__ = ["HINTS", "curves_of", "result_of"]

_POINTS = 400
_CMC_RANKS = 50
_PALE = "pale: fewer than 30 errors, uncertain"
HINTS: dict[CurveKind, str] = {
    "roc": f"ROC: FAR is the share of non-mated pairs accepted; {_PALE}",
    "det": f"DET: the same as errors, lower is better, axes in normal deviates; {_PALE}",
    "cmc": "CMC: probes whose person is enrolled",
    "dir": f"DIR: FPIR is the share of strangers taken for somebody; {_PALE}",
}
"""What a reader of a figure should know."""
_RESULTS: dict[CurveKind, str] = {
    "roc": "Mated pairs accepted at FAR {:g}",
    "det": "Mated pairs rejected at FAR {:g}",
    "cmc": "Probes found at rank {:g}",
    "dir": "Probes found at FPIR {:g}",
}


def result_of(kind: CurveKind, curves: Sequence[Curve]) -> str:
    """Return what a figure of these curves shows, the best first, as its title."""
    place = read_at(curves, kind)
    rates = sorted(((curve.at(place), curve.name) for curve in curves), reverse=kind != "det")
    return f"{_RESULTS[kind].format(place)}: {', '.join(f'{name} {100 * rate:.1f} %' for rate, name in rates)}"


def curves_of(samples: Mapping[str, Sequence[Sample]]) -> dict[CurveKind, list[Curve]]:
    """Return the curves of each figure that the samples of the models allow."""
    found: dict[CurveKind, list[Curve]] = {kind: [] for kind in HINTS}
    for model, several in samples.items():
        for sample in several:
            if isinstance(sample, PairListSample | TailSample):
                far, tar, impostors = _list_roc(sample) if isinstance(sample, PairListSample) else _tail_roc(sample)
                certain = CERTAIN_FALSE_ACCEPTS / impostors
                found["roc"].append(Curve(model, far, tar, certain))
                found["det"].append(Curve(model, far, 1.0 - tar, certain))
            elif isinstance(sample, SearchSample):
                found["cmc"].append(_cmc(model, sample))
                found["dir"] += _dir(model, sample)
    return {kind: curves for kind, curves in found.items() if curves}


def _list_roc(sample: PairListSample) -> tuple[Float64, Float64, int]:
    return *roc_of_list(sample.scores, sample.same), int((~sample.same).sum())


def _tail_roc(sample: TailSample) -> tuple[Float64, Float64, int]:
    falling, total = sample.impostor_scores, sample.impostor_pairs
    most = len(falling) - 1 if len(falling) < total else total
    accepts = _spread(most)
    barred = np.append(falling, -2.0)[accepts]
    deep = sample.deep_counts > most
    far = np.concatenate([accepts, sample.deep_counts[deep]]) / total
    barred = np.concatenate([barred, sample.deep_scores[deep]])
    accepted = len(sample.genuine_scores) - np.searchsorted(sample.genuine_scores, barred, side="right")
    return far, accepted / len(sample.genuine_scores), total


def _spread(most: int) -> Int64:
    return np.unique(np.geomspace(1, max(most, 1), _POINTS).astype(np.int64))


def _over_galleries(sample: SearchSample, curve: Callable[[int], Float64]) -> Float64:
    galleries = int(sample.probe_gallery.max()) + 1
    return np.asarray(np.mean([curve(gallery) for gallery in range(galleries)], axis=0), dtype=np.float64)


def _cmc(model: str, sample: SearchSample) -> Curve:
    ranks = np.arange(1, _CMC_RANKS + 1)

    def rates(gallery: int) -> Float64:
        found = np.sort(sample.ranks[sample.probe_gallery == gallery])
        return np.searchsorted(found, ranks, side="right") / len(found)

    return Curve(model, ranks.astype(np.float64), _over_galleries(sample, rates))


def _dir(model: str, sample: SearchSample) -> list[Curve]:
    """The curve, none where a gallery was searched for no stranger."""
    fewest = int(np.bincount(sample.stranger_gallery, minlength=int(sample.probe_gallery.max()) + 1).min())
    if not fewest:
        return []
    fpirs = _spread(fewest) / fewest

    def rates(gallery: int) -> Float64:
        strangers = np.sort(sample.strangers[sample.stranger_gallery == gallery])[::-1]
        mine = sample.probe_gallery == gallery
        found = np.sort(np.where(sample.ranks <= sample.worst_rank, sample.mates, -np.inf)[mine])
        allowed = np.floor(fpirs * len(strangers) + 1e-9).astype(np.int64)
        barred = np.append(strangers, -2.0)[np.minimum(allowed, len(strangers))]
        return 1.0 - np.searchsorted(found, barred, side="right") / len(found)

    return [Curve(model, fpirs, _over_galleries(sample, rates), CERTAIN_FALSE_ACCEPTS / fewest)]
