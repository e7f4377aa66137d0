"""The filters and regressions against their formulas in plain numpy, dense and slow."""

import numpy as np
import polars as pl
import pytest
from frames_for_tests import SETTINGS, signals_of
from references import largest_absolute

from ml_assets import graph_filters, linear_models, threads
from ml_assets.graph_filters import filter_coefficients
from ml_assets.models import fit_model
from ml_assets.signal_matrix import CannotFitError, build_signal_matrix

LINEAR = ["bspm", "ease", "gf_cf", "graph_filter", "item_knn", "rp3beta"]
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
    """R, and the square of the share of each product's history that is left today."""
    history, today = (
        each.toarray().astype(float) for each in (matrix.training_history, matrix.training)
    )
    before = history.sum(axis=0)
    left = np.divide(today.sum(axis=0), before, where=before > 0, out=before * 0)
    return np.sqrt(history), left**2


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


def gf_cf_by_hand(ratings, settings):
    """P + a D_i^-1/2 V V' D_i^1/2, from the whole decomposition."""
    a = normalised(ratings, user_power=0.5, item_power=0.5)
    first = np.linalg.svd(a)[2][: settings["low_pass_factors"]]
    d = ratings.sum(axis=0)
    low_pass = inverse_power(d, 0.5)[:, None] * (first.T @ first) * np.sqrt(d)
    return a.T @ a + settings["low_pass_weight"] * low_pass


def runge_kutta(state, slope, step):
    """The classical method, as in any textbook."""
    one = slope(state)
    two = slope(state + step / 2 * one)
    three = slope(state + step / 2 * two)
    four = slope(state + step * three)
    return state + step / 6 * (one + 2 * two + 2 * three + four)


def bspm_by_hand(ratings, settings):
    """GF-CF, then Euler's steps dS = -S P dt."""
    a = normalised(ratings, user_power=0.5, item_power=0.5)
    state = gf_cf_by_hand(ratings, settings)
    for _ in range(settings["sharpening_steps"]):
        state = runge_kutta(
            state, lambda s: -s @ a.T @ a, settings["sharpening"] / settings["sharpening_steps"]
        )
    return state


def cosines(columns):
    lengths = inverse_power(np.linalg.norm(columns, axis=0), 1)
    return lengths[:, None] * (columns.T @ columns) * lengths


def rp3beta_by_hand(ratings, settings):
    """Of each pair of products the chances of all walks through a user."""
    d_user, d_item = ratings.sum(axis=1), ratings.sum(axis=0)
    to_user = np.array([row * inverse_power(d_item, 1) for row in ratings])
    from_user = inverse_power(d_user, 1)[:, None] * ratings
    walks = (to_user ** settings["walk_power"]).T @ from_user ** settings["walk_power"]
    return walks * inverse_power(d_item, settings["walk_popularity_power"])


def ease_by_hand(ratings, settings):
    """Every product regressed on the others, one after another: the closed form is the same."""
    g = settings["ease_regularization"] * (ratings[ratings > 0] ** 2).mean()
    n = ratings.shape[1]
    b = np.zeros((n, n))
    for product in np.flatnonzero(ratings.any(axis=0)):
        others = np.delete(np.arange(n), product)
        x = ratings[:, others]
        b[others, product] = np.linalg.solve(x.T @ x + g * np.eye(n - 1), x.T @ ratings[:, product])
    return b


BY_HAND = {
    "bspm": bspm_by_hand,
    "ease": ease_by_hand,
    "gf_cf": gf_cf_by_hand,
    "graph_filter": graph_filter_by_hand,
    "item_knn": lambda ratings, _: cosines(ratings),
    "rp3beta": rp3beta_by_hand,
}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("seed", range(3))
def test_the_model_is_its_formula_without_the_diagonal(name, seed):
    matrix = drawn_signals(seed)

    model = fit(name, matrix)

    ratings, season = learned_from(matrix)
    expected = BY_HAND[name](ratings, SETTINGS) * season
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(
        model.follows.toarray(), expected, atol=2e-5 * np.abs(expected).max()
    )
    assert (model.history != np.sqrt(matrix.history)).nnz == 0
    assert model.follows.has_sorted_indices and model.follows.dtype == np.float32


@pytest.mark.parametrize("name", ["gf_cf", "bspm"])
@pytest.mark.parametrize("n_factors", [2, 3, 30])
def test_a_low_pass_filter_has_no_more_factors_than_there_are_tastes(name, n_factors):
    # Two tastes, which share a product; the decomposition is asked for more.
    tastes = {"a": "pqrs", "b": "pqrs", "c": "st", "d": "st", "e": "st"}
    signals = signals_of([(user, product) for user in tastes for product in tastes[user]])
    matrix = build_signal_matrix(
        signals,
        user_ids=signals["user_id"],
        product_ids=pl.concat([signals["product_id"], pl.Series(["nobody's"])]),
    )

    model = fit(name, matrix, low_pass_factors=n_factors)

    ratings, _ = learned_from(matrix)
    expected = BY_HAND[name](ratings, {**SETTINGS, "low_pass_factors": 2})
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(model.follows.toarray(), expected, atol=1e-5)


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
        # The low-pass filters ask BLAS, whose last bits depend on the width, which is fixed.
        if name not in ("gf_cf", "bspm"):
            monkeypatch.setattr(graph_filters, "_WIDTH", width)
        monkeypatch.setattr(linear_models, "_ROWS_PER_BLOCK", width)
        again = fit(name, matrix).follows
        assert (again.indices == whole.indices).all() and (again.data == whole.data).all()


@pytest.mark.parametrize("weighting", ["tfidf", "bm25"])
def test_texts_of_users_are_weighted_as_search_engines_do(weighting):
    matrix = drawn_signals(6)

    model = fit("item_knn", matrix, knn_weighting=weighting)

    counts = matrix.training_history.toarray().astype(float)
    # A user's products are the texts a word is in.
    rarity = np.log(N_ITEMS) - np.log1p((counts > 0).sum(axis=1, keepdims=True))
    if weighting == "tfidf":
        expected = cosines(np.sqrt(counts) * rarity)
    else:
        length = counts.sum(axis=0) / counts.sum(axis=0).mean()
        weighted = counts * 2.2 / (1.2 * (0.25 + 0.75 * length) + counts) * rarity
        expected = weighted.T @ weighted
    np.fill_diagonal(expected, 0)
    expected = expected * learned_from(matrix)[1]
    np.testing.assert_allclose(model.follows.toarray(), expected, atol=1e-5 * expected.max())


def test_a_weighting_there_is_not_is_refused_by_name():
    with pytest.raises(ValueError, match="no weighting 'idf'; choose one of cosine, bm25, tfidf"):
        fit("item_knn", drawn_signals(0), knn_weighting="idf")


def test_products_of_the_same_users_have_no_regression_without_regularisation():
    twins = [(user, product) for user in "uvw" for product in ("a", "b", user)]
    signals = signals_of(twins)
    matrix = build_signal_matrix(
        signals, user_ids=signals["user_id"], product_ids=signals["product_id"]
    )

    with pytest.raises(CannotFitError, match="raise ease_regularization"):
        fit("ease", matrix, ease_regularization=0.0)


def test_the_polynomial_of_the_graph_filter_follows_the_curve_the_closer_the_higher_its_degree():
    points = np.linspace(0.05, 1, 50)
    curve = points * 1.3 / (points + 0.3)

    errors = []
    for degree in (1, 3, 6):
        c = filter_coefficients(degree, 0.3)
        polynomial = sum(c[k - 1] * points**k for k in range(1, degree + 1))
        errors.append(np.abs(polynomial - curve).max())

    assert errors[0] > 5 * errors[1] > 25 * errors[2]
