"""The paired difference of two variants over seeds x people, and its word."""

from typing import Any

import numpy as np
import pytest

from attfc.errors import UserError
from attfc.lab.pages import FIGURES, study_table
from attfc.lab.study_people import packed
from attfc.lab.study_verdict import Difference, difference

IMAGES = np.array([2] * 90 + [8] * 10)
PAIRS = IMAGES * (IMAGES - 1) // 2
FIGURE = "tar_at_far/0.01"


def cell(variant: str, seed: int, accepted: Any, found: Any = IMAGES, images: Any = IMAGES) -> dict[str, Any]:
    """A cell in which people have these genuine pairs accepted and these images found."""
    accepted, made = np.asarray(accepted), np.asarray(images) * (np.asarray(images) - 1) // 2
    people = {"images": packed(images), "accepted": {"0.01": packed(accepted)}, "rank_one": packed(found)}
    figures = {
        FIGURE: accepted.sum() / made.sum(),
        "person_balanced_tar_at_far/0.01": np.mean(accepted / made),
        "rank_one": found.sum() / images.sum(),
    }
    rates = {"steps": 1, "seconds": 1.0, "samples_per_second": 1.0, "commit": "abc"}
    return {"variant": variant, "seed": seed, "people": {"all": people}, "figures": {"all": figures}, **rates}


def drawn(variant: str, rate: float, rng: np.random.Generator, seeds: int = 5) -> list[dict[str, Any]]:
    return [cell(variant, seed, rng.binomial(PAIRS, rate), rng.binomial(IMAGES, rate)) for seed in range(seeds)]


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.03, -0.006, "behind"),
        (-0.009, -0.006, "behind"),  # within a point, too: the stricter word
        (-0.03, -0.004, "open"),
        (-0.009, 0.009, "level"),
        (-0.004, 0.012, "open"),
        (0.004, 0.012, "open"),
        (0.006, 0.012, "ahead"),
    ],
)
def test_words(low: float, high: float, word: str) -> None:
    assert Difference((low + high) / 2, low, high).word == word


def test_the_value_is_the_difference_of_the_figures_and_each_kind_weighs_people_its_own_way() -> None:
    one = [cell("a", seed, np.where(IMAGES == 8, PAIRS, 0), np.where(IMAGES == 8, 8, 0)) for seed in range(3)]
    other = [cell("b", seed, 0 * PAIRS, 0 * IMAGES) for seed in range(3)]
    values = {
        figure: difference(one, other, figure, "all").value  # type: ignore[union-attr]
        for figure in (FIGURE, "person_balanced_tar_at_far/0.01", "rank_one")
    }
    assert values[FIGURE] == pytest.approx(280 / 370)
    assert values["person_balanced_tar_at_far/0.01"] == pytest.approx(0.1)
    assert values["rank_one"] == pytest.approx(80 / 260)


@pytest.mark.parametrize(
    ("rounds", "width"),
    [
        (1, 0.16),  # 2 x 1.96 x the true deviation of 0.032 is 0.127
        (3, 0.085),  # 2 x 1.96 x 0.019 is 0.073
    ],
)
def test_folds_hold_the_truth(rounds: int, width: float) -> None:
    """Six folds of other people, judged by as many seeds; persons, each side's liking of them, and seeds move the difference."""
    rng, held, widths = np.random.default_rng(1), 0, []
    for _ in range(200):
        one, other = [], []
        for fold, count in enumerate((100, 80, 90, 95, 70, 99)):
            images = IMAGES[-count:]
            pairs = images * (images - 1) // 2
            ease = rng.uniform(-0.2, 0.2, count)
            for seed in range(fold, 6 * rounds, 6):
                luck = rng.normal(0, 0.02, 2)
                sides = [rng.binomial(pairs, np.clip(0.5 + ease + luck[side], 0, 1)) for side in (0, 1)]
                for cells, accepted in zip((one, other), sides, strict=True):
                    cells.append(cell("ab"[cells is other], seed, accepted, images, images))
        found = difference(one, other, "person_balanced_tar_at_far/0.01", "all", resamples=200)
        assert found is not None
        held += found.low <= 0 <= found.high
        widths.append(found.high - found.low)
    assert 185 <= held <= 199
    assert np.median(widths) < width


def test_folds_that_some_seeds_have_not_judged_yet_are_as_their_means() -> None:
    rng = np.random.default_rng(0)
    cells = {side: [] for side in "ab"}
    for side, seed in ((side, seed) for side in "ab" for seed in range(4)):
        images = IMAGES[seed % 3 :]
        cells[side].append(cell(side, seed, rng.binomial(images, 0.5), rng.binomial(images, 0.5), images))
    found = difference(cells["a"], cells["b"], "rank_one", "all")
    rates = {side: [one["figures"]["all"]["rank_one"] for one in those] for side, those in cells.items()}
    by_seed = np.subtract(rates["a"], rates["b"])
    assert found is not None
    assert found.value == pytest.approx(np.mean([by_seed[[0, 3]].mean(), by_seed[1], by_seed[2]]))


def test_seeds_alone_give_the_width_of_students_t() -> None:
    """All people alike: the interval is that of a mean of five numbers, a little short, as percentiles of five numbers are."""
    images = np.full(100, 30)
    one, other = (
        [cell(name, seed, np.full(100, 200 + step * seed), images, images) for seed in range(5)]
        for name, step in (("a", 4), ("b", 0))
    )
    found = difference(one, other, "person_balanced_tar_at_far/0.01", "all", resamples=5000)
    by_t = 2 * 2.776 * np.std(4 * np.arange(5) / 435, ddof=1) / np.sqrt(5)
    assert found is not None
    assert 0.86 * by_t < found.high - found.low < by_t


def test_equal_cells_are_level_without_a_width() -> None:
    cells = drawn("a", 0.5, np.random.default_rng(0))
    found = difference(cells, cells, FIGURE, "all")
    assert found == Difference(0.0, 0.0, 0.0)
    assert found.word == "level"


def test_one_person_gives_no_interval() -> None:
    one, other = (
        [cell(name, seed, PAIRS[:1] - (seed + more) % 3, IMAGES[:1], IMAGES[:1]) for seed in range(5)]
        for more, name in enumerate("ab")
    )
    assert difference(one, other, FIGURE, "all") is None


def test_intervals_hold_the_truth() -> None:
    """Persons, seeds, and both together move the difference of two variants of equal rates; nominal 95 % of 200 intervals."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        ease, luck = rng.uniform(-0.2, 0.2, (2, 1, 100)), rng.normal(0, 0.02, (2, 5, 1))
        accepted = rng.binomial(PAIRS, np.clip(0.5 + ease + luck, 0, 1))
        one, other = ([cell("ab"[side], seed, accepted[side, seed]) for seed in range(5)] for side in (0, 1))
        found = difference(one, other, "person_balanced_tar_at_far/0.01", "all", resamples=200)
        assert found is not None
        held += found.low <= 0 <= found.high
    assert 180 <= held <= 199


def test_more_seeds_and_a_larger_gap_make_it_sure() -> None:
    rng = np.random.default_rng(0)
    better, worse = drawn("a", 0.7, rng), drawn("b", 0.5, rng)
    assert difference(better, worse, "rank_one", "all").word == "ahead"  # type: ignore[union-attr]
    assert difference(worse, better, "rank_one", "all").word == "behind"  # type: ignore[union-attr]


def test_two_seeds_old_cells_and_other_people() -> None:
    cells = drawn("a", 0.5, np.random.default_rng(0))
    assert difference(cells[:2], cells, FIGURE, "all") is None
    assert difference(cells, cells, FIGURE, "test") is None
    assert difference([{"variant": "old", "seed": seed} for seed in range(5)], cells, FIGURE, "all") is None
    assert difference(cells, cells, "tar_at_far/0.1", "all") is None
    others = [cell("b", seed, PAIRS[:50], IMAGES[:50], IMAGES[:50]) for seed in range(5)]
    with pytest.raises(UserError, match="a and b were judged on other people"):
        difference(cells, others, FIGURE, "all")


def test_the_table_has_the_balanced_column_and_the_verdicts() -> None:
    rng = np.random.default_rng(0)
    records = [*drawn("full_fc", 0.5, rng), *drawn("attfc", 0.8, rng)]
    table = study_table(records, FIGURES["faces"], "full_fc")
    assert "| variant | TAR at FAR 1e-2 | person-balanced, 1e-2 | rank-1 | seeds |" in table
    assert "| less full_fc, points | TAR at FAR 1e-2 | person-balanced, 1e-2 | rank-1 |" in table
    assert "ahead |" in table.splitlines()[7]
    without = [{key: value for key, value in record.items() if key != "people"} for record in records]
    assert "points" not in study_table(without, FIGURES["faces"], "full_fc")
