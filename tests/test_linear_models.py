"""The filters and regressions against their formulas in plain numpy, dense and slow."""

import numpy as np
import polars as pl
import pytest
from frames_for_tests import SETTINGS, signals_of
from references import largest_absolute

from ml_assets import linear_models, threads
from ml_assets.learning import TooMuchMemoryError
from ml_assets.linear_models import filter_coefficients
from ml_assets.models import fit_model
from ml_assets.signal_matrix import build_signal_matrix

LINEAR = ["graph_filter"]
N_USERS, N_ITEMS = 17, 41


def drawn_signals(seed):
    """Users and products with any weights, one of each without signals, one outlier."""
    rng = np.random.default_rng(seed)
    pairs = [
        (f"{user:02}", f"{product:02}")
        for user in range(1, N_USERS)
        for product in range(1, N_ITEMS)
        if rng.random() < 0.3
    ]
    signals = signals_of(pairs).with_columns(
        weight=pl.Series(rng.uniform(0.1, 1, len(pairs))),
        relative_weight=pl.Series(rng.uniform(1, 4, len(pairs))),
        is_training=pl.col("user_id") != "05",
    )
    return build_signal_matrix(
        signals,
        user_ids=pl.Series("u", [f"{user:02}" for user in range(N_USERS)]),
        product_ids=pl.Series("p", [f"{product:02}" for product in range(N_ITEMS)]),
    )


def fit(name, matrix, **settings):
    return fit_model(name, matrix, settings={**SETTINGS, "neighbours": N_ITEMS, **settings}, seed=0)


def learned_from(matrix):
    """R, and the share of each product's history that is left today."""
    history, today = (
        each.toarray().astype(float) for each in (matrix.training_history, matrix.training)
    )
    before = history.sum(axis=0)
    return np.sqrt(history), np.divide(today.sum(axis=0), before, where=before > 0, out=before * 0)


def inverse_power(numbers, exponent):
    return np.array([0.0 if number == 0 else number**-exponent for number in numbers])


def normalised(ratings, *, user_power, item_power):
    return (
        inverse_power(ratings.sum(axis=1), user_power)[:, None]
        * ratings
        * inverse_power(ratings.sum(axis=0), item_power)
    )


def graph_filter_by_hand(ratings, settings):
    """D_i^-x f(P) D_i^y with f applied to the eigenvalues of P."""
    a = normalised(
        ratings,
        user_power=settings["filter_user_power"],
        item_power=settings["filter_item_power"],
    )
    a /= np.linalg.svd(a)[1].max()
    values, vectors = np.linalg.eigh(a.T @ a)
    c = filter_coefficients(settings["filter_degree"], settings["filter_gamma"])
    f = sum(c[k - 1] * values**k for k in range(1, settings["filter_degree"] + 1))
    d = ratings.sum(axis=0)
    return (
        inverse_power(d, settings["filter_source_power"])[:, None]
        * (vectors * f @ vectors.T)
        * inverse_power(d, -settings["filter_target_power"])
    )


BY_HAND = {"graph_filter": graph_filter_by_hand}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("seed", range(3))
def test_the_model_is_its_formula_without_the_diagonal(name, seed):
    matrix = drawn_signals(seed)

    model = fit(name, matrix)

    ratings, left_today = learned_from(matrix)
    expected = BY_HAND[name](ratings, SETTINGS) * left_today
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(
        model.follows.toarray(), expected, atol=2e-5 * np.abs(expected).max()
    )
    assert (model.history != np.sqrt(matrix.history)).nnz == 0
    assert model.follows.has_sorted_indices and model.follows.dtype == np.float32


@pytest.mark.parametrize("name", LINEAR)
def test_a_row_keeps_the_largest_whatever_their_sign(name):
    matrix = drawn_signals(4)

    whole, cut = fit(name, matrix), fit(name, matrix, neighbours=5)

    assert (cut.follows.toarray() == largest_absolute(whole.follows.toarray(), 5)).all()


@pytest.mark.parametrize("name", LINEAR)
def test_the_bits_do_not_depend_on_threads_or_blocks(name, monkeypatch):
    matrix = drawn_signals(5)
    whole = fit(name, matrix).follows

    for n_threads, width in ((1, 32), (2, 4), (2, 7)):
        monkeypatch.setattr(threads, "n_threads", lambda n=n_threads: n)
        monkeypatch.setattr(linear_models, "_WIDTH", width)
        again = fit(name, matrix).follows
        assert (again.indices == whole.indices).all() and (again.data == whole.data).all()


@pytest.mark.parametrize("name", LINEAR)
def test_a_model_that_would_not_fit_says_what_it_needs_and_what_to_do(name):
    with pytest.raises(TooMuchMemoryError, match=r"needs \d+ MB and memory_megabytes allows 0: "):
        fit(name, drawn_signals(0), memory_megabytes=0)


def test_the_polynomial_of_the_graph_filter_follows_the_curve_the_closer_the_higher_its_degree():
    points = np.linspace(0.05, 1, 50)
    curve = points * 1.3 / (points + 0.3)

    errors = []
    for degree in (1, 3, 6):
        c = filter_coefficients(degree, 0.3)
        polynomial = sum(c[k - 1] * points**k for k in range(1, degree + 1))
        errors.append(np.abs(polynomial - curve).max())

    assert errors[0] > 5 * errors[1] > 25 * errors[2]
