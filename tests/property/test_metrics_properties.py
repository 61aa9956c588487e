"""What must hold for any scores: bounds, monotony, and nothing but the order matters."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attfc.data.index import IdentityIndex
from attfc.evaluation.metrics import area_under_roc, equal_error_rate, evaluate_scores, roc
from attfc.evaluation.protocols.pair_lists import generate_pairs
from attfc.evaluation.rates import tar_at_far


@st.composite
def scored_pairs(draw):
    """Scores on a coarse lattice (many ties) with both kinds of pairs, in any order."""
    genuine = draw(st.lists(st.integers(-8, 8), min_size=1, max_size=40))
    impostor = draw(st.lists(st.integers(-8, 8), min_size=1, max_size=40))
    order = draw(st.permutations(range(len(genuine) + len(impostor))))
    scores = np.array(genuine + impostor)[order] / 8
    same = np.array([True] * len(genuine) + [False] * len(impostor))[order]
    return scores, same


@settings(max_examples=60, deadline=None)
@given(scored_pairs())
def test_bounds_and_symmetry(pairs) -> None:
    scores, same = pairs
    curve = roc(scores, same)
    assert (np.diff(curve.far) >= 0).all()
    assert (np.diff(curve.tar) >= 0).all()
    assert (curve.far[-1], curve.tar[-1]) == (1.0, 1.0)
    auc = area_under_roc(scores, same)
    assert abs(auc + area_under_roc(-scores, same) - 1) < 1e-12
    assert abs(auc - np.trapezoid(curve.tar, curve.far)) < 1e-12
    eer = equal_error_rate(scores, same)
    assert 0 <= eer <= 1
    assert abs(np.interp(eer, curve.far, curve.tar) - (1 - eer)) < 1e-9 or (np.diff(curve.far) == 0).any()
    assert abs(eer + equal_error_rate(-scores, same) - 1) < 1e-9


@settings(max_examples=60, deadline=None)
@given(scored_pairs())
def test_only_the_order_of_scores_matters(pairs) -> None:
    scores, same = pairs
    bent = np.exp(3 * scores) - 7
    before, after = evaluate_scores(scores, same, 2), evaluate_scores(bent, same, 2)
    assert before.auc == after.auc
    assert before.eer == after.eer
    assert before.tar_at_far == after.tar_at_far
    assert np.all((scores >= before.threshold) == (bent >= after.threshold))


@settings(max_examples=60, deadline=None)
@given(scored_pairs(), st.floats(0.01, 1.0))
@example((np.zeros(2), np.array([True, False])), 0.9999999999999999)
def test_tar_at_far_keeps_its_promise(pairs, far) -> None:
    scores, same = pairs
    genuine, impostor = scores[same], scores[~same]
    tar = tar_at_far(genuine, impostor, (far,))[far]
    # The same slack as there: a FAR of 0.1 allows one in ten, though 0.1 * 10 may be a little below 1.
    within = [cut for cut in [np.inf, *scores] if np.sum(impostor >= cut) <= far * len(impostor) + 1e-9]
    expected = max(float(np.mean(genuine >= cut)) for cut in within)
    if far * len(impostor) < 1 - 1e-9:
        assert tar is None
    else:
        assert tar == expected
    rates = tar_at_far(genuine, impostor, (0.25, 0.5, 1.0))
    known = [value for value in rates.values() if value is not None]
    assert known == sorted(known)
    assert rates[1.0] == 1.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=30).filter(lambda n: max(n) >= 3 and sum(c > 0 for c in n) >= 2),
    st.integers(4, 200),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_generated_pairs_are_balanced_distinct_and_right(counts, pairs, seed, shuffler) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    shuffler.shuffle(labels)
    index = IdentityIndex.from_labels(np.array(labels), identities=len(counts))
    found = generate_pairs(index, pairs, seed)
    labels = np.array(labels)
    assert (found.first != found.second).all()
    np.testing.assert_array_equal(labels[found.first] == labels[found.second], found.same)
    assert int(found.same.sum()) * 2 == len(found)
    assert len({frozenset(p) for p in zip(found.first.tolist(), found.second.tolist(), strict=True)}) == len(found)
    possible = sum(c * (c - 1) // 2 for c in counts)
    between = len(labels) * (len(labels) - 1) // 2 - possible
    assert len(found) // 2 == min(pairs // 2, possible, between)
    for fold in np.unique(found.fold):
        assert set(found.same[found.fold == fold].tolist()) == {True, False}
    if possible <= between:  # spread evenly: nobody gives a pair more than somebody who still had one to give
        given_by = np.bincount(labels[found.first[found.same]], minlength=len(counts))
        left = [g for g, c in zip(given_by, counts, strict=True) if g < c * (c - 1) // 2]
        assert not left or given_by.max() <= min(left) + 1
