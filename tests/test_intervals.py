"""Intervals that hold what they promise, and comparisons of the same users."""

import numpy as np
import polars as pl
import pytest

from ml_assets.evaluation import PerUser
from ml_assets.intervals import (
    N_BUNDLES,
    draw_users,
    pool,
    resample,
    same_users,
)


def figures(*columns):
    names = tuple(f"f{i}" for i in range(len(columns)))
    return PerUser(names, np.column_stack([np.asarray(column, float) for column in columns]))


def of_one_fold(values, *, seed=0, n_draws=1000):
    draws = draw_users(np.arange(len(values.values)), seed=seed, n_draws=n_draws)
    return resample([values], draws)[0]


def width(resampled):
    low, high = resampled.interval()
    return float(high[0] - low[0])


def test_the_value_is_the_mean_and_the_interval_lies_around_it():
    found = of_one_fold(figures([0, 0, 1, 1, 1], [2, np.nan, 4, np.nan, np.nan]))

    assert found.value.tolist() == pytest.approx([3 / 5, 3])
    assert found.n_users.tolist() == [5, 2]
    low, high = found.interval()
    assert (low < found.value).all() and (found.value < high).all()


def test_draws_are_with_replacement_as_many_as_there_are_users():
    draws = draw_users(np.arange(7), seed=0, n_draws=50)

    assert (draws.weights.sum(axis=1) == 7).all()
    assert draws.weights.max() > 1
    assert sorted(draws.bundle_of_user) == list(range(7))


@pytest.mark.parametrize("n_users", [200, 3 * N_BUNDLES + 5])
def test_an_interval_is_as_wide_as_the_theory_of_the_mean_says(n_users):
    values = np.random.default_rng(1).exponential(size=n_users)

    # Two times 1.96 standard errors, for many users.
    expected = 2 * 1.96 * values.std() / np.sqrt(n_users)
    assert width(of_one_fold(figures(values))) == pytest.approx(expected, rel=0.12)


def test_nineteen_of_twenty_intervals_hold_the_truth():
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(200):
        low, high = of_one_fold(figures(rng.random(150) < 0.3), seed=seed, n_draws=300).interval()
        hits += low[0] <= 0.3 <= high[0]

    # Within three standard errors of 95 %, and the percentile interval is a little too narrow.
    assert 0.89 <= hits / 200 <= 0.99


def test_a_paired_difference_is_surer_than_the_two_figures_are():
    rng = np.random.default_rng(3)
    hard = rng.normal(size=400)
    draws = draw_users(np.arange(400), seed=0)
    one, other = resample([figures(hard + 0.1 + rng.normal(size=400) / 20), figures(hard)], draws)

    low, high = one.minus(other).interval()

    assert one.minus(other).value[0] == pytest.approx(one.value[0] - other.value[0])
    assert 0 < low[0] < 0.1 < high[0]
    assert one.interval()[0][0] < other.interval()[1][0]


def test_a_model_compared_with_itself_differs_by_nothing():
    found = of_one_fold(figures([0, 1, 1]))

    assert found.minus(found).interval() == (0, 0)


def test_different_figures_cannot_be_compared():
    one, other = (of_one_fold(PerUser((name,), np.ones((3, 1)))) for name in "ab")

    with pytest.raises(ValueError, match="only the same figures"):
        one.minus(other)


def test_the_same_user_in_four_folds_is_one_fact_and_not_four():
    values = np.random.default_rng(4).random(300)
    ids = pl.Series([f"u{i:03}" for i in range(300)])
    user_of_row, pooled = pool([(ids, figures(values))] * 4)

    clustered = resample([pooled], draw_users(user_of_row, seed=0))[0]

    once = of_one_fold(figures(values))
    assert clustered.n_users.tolist() == [300]
    assert clustered.value[0] == pytest.approx(once.value[0])
    assert width(clustered) == pytest.approx(width(once))
    independent = of_one_fold(pooled)
    assert width(independent) == pytest.approx(width(once) / 2, rel=0.1)


def test_folds_are_joined_by_user_whatever_their_order():
    numbers = same_users([pl.Series(["b", "a"]), pl.Series(["c", "b"])])

    assert numbers.tolist() == [1, 0, 2, 1]


def test_folds_with_other_figures_cannot_be_pooled():
    ids = pl.Series(["a"])

    with pytest.raises(ValueError, match="2 different sets of figures"):
        pool([(ids, PerUser(("a",), np.ones((1, 1)))), (ids, PerUser(("b",), np.ones((1, 1))))])


def test_one_user_has_a_value_but_no_interval():
    found = of_one_fold(figures([1, np.nan, np.nan], [1, 2, 3]))

    low, high = found.interval()
    assert found.value[0] == 1
    assert np.isnan([low[0], high[0]]).all()
    assert not np.isnan([low[1], high[1]]).any()


def test_a_figure_that_nobody_has_is_undefined():
    found = of_one_fold(figures([np.nan, np.nan]))

    assert np.isnan(found.value[0]) and found.n_users[0] == 0
    assert np.isnan(found.interval()).all()


def test_figures_side_by_side_are_those_of_each_alone():
    draws = draw_users(np.arange(60), seed=5)
    rng = np.random.default_rng(6)
    some = [
        figures(rng.random(60)),
        figures(rng.random(60), np.where(rng.random(60) < 0.5, 1, np.nan)),
    ]

    together = resample(some, draws)

    for alone, found in zip(some, together, strict=True):
        np.testing.assert_allclose(resample([alone], draws)[0].draws, found.draws, rtol=1e-13)


def test_the_same_seed_gives_the_same_bits_and_another_one_others():
    values = figures(np.random.default_rng(7).random(5000))

    assert of_one_fold(values).draws.tobytes() == of_one_fold(values).draws.tobytes()
    assert of_one_fold(values).draws.tobytes() != of_one_fold(values, seed=1).draws.tobytes()


def test_a_few_users_among_many_have_an_interval_though_draws_miss_them():
    values = np.full(3000, np.nan)
    values[:2] = 0, 1

    found = of_one_fold(figures(values))

    assert np.isnan(found.draws).any()
    assert [bound[0] for bound in found.interval()] == [0, 1]


def test_nobody_cannot_be_drawn():
    with pytest.raises(ValueError, match="nobody to draw from"):
        draw_users(np.arange(0), seed=0)


def test_rows_that_are_not_those_of_the_draws_are_refused():
    with pytest.raises(ValueError, match="2 rows of figures, draws of 3"):
        resample([figures([1, 2])], draw_users(np.arange(3), seed=0))
