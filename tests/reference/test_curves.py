"""The curves of saved scores, each point against a count."""

import numpy as np
import pytest

from attfc.evaluation.metrics import evaluate_scores
from attfc.evaluation.protocols.search import identify, search_sample
from attfc.evaluation.report.curves import curves_of
from attfc.evaluation.samples import PairListSample
from attfc.evaluation.tail_sample import TailSample


@pytest.mark.parametrize("kind", ["list", "tail"])
def test_every_point_of_a_roc_is_a_count(kind) -> None:
    rng = np.random.default_rng(4)
    same = rng.random(3000) < 0.3
    scores = np.where(same, rng.normal(0.4, 0.2, 3000), rng.normal(0.1, 0.2, 3000)).round(2)
    first = rng.integers(50, size=3000)
    second = np.where(same, first, (first + 1) % 50)
    sample = (
        PairListSample.of(evaluate_scores(scores, same, np.arange(3000) % 2), first, second)
        if kind == "list"
        else TailSample.of_list(scores, same, first, second, fars=(0.1,))
    )
    drawn = {name: curves[0] for name, curves in curves_of({"model": [sample]}).items()}
    highest = np.sort(scores[~same])[::-1]
    for far, tar in zip(drawn["roc"].x.tolist(), drawn["roc"].y.tolist(), strict=True):
        allowed = round(far * len(highest))
        barred = highest[allowed] if allowed < len(highest) else -2.0
        assert tar == pytest.approx(np.mean(scores[same] > barred))
    np.testing.assert_allclose(drawn["det"].y, 1 - drawn["roc"].y)


def test_every_point_of_cmc_and_dir_is_a_count() -> None:
    rng = np.random.default_rng(5)
    people = rng.normal(size=(30, 8))
    labels = rng.integers(0, 30, 200)
    found = identify(people[:20], np.arange(20), people[labels] + rng.normal(size=(200, 8)), labels)
    drawn = {name: curves[0] for name, curves in curves_of({"model": [search_sample([found])]}).items()}
    for rank, rate in zip(drawn["cmc"].x.tolist(), drawn["cmc"].y.tolist(), strict=True):
        assert rate == pytest.approx(np.mean(found.probe_ranks <= rank))
    others = np.sort(found.stranger_scores)[::-1]
    for fpir, tpir in zip(drawn["dir"].x.tolist(), drawn["dir"].y.tolist(), strict=True):
        allowed = round(fpir * len(others))
        barred = others[allowed] if allowed < len(others) else -2.0
        assert tpir == pytest.approx(np.mean((found.mate_scores > barred) & (found.probe_ranks == 1)))
