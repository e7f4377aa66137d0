"""What every model owes, and what each one does."""

import re
import tracemalloc
from dataclasses import fields

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from frames_for_tests import SETTINGS, checkerboard, signals_of
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from polars.testing import assert_series_equal
from references import history_scores, inner_products

from ml_assets import content, graph_filters, linear_models, threads
from ml_assets.content import product_vectors, text_neighbours, tfidf
from ml_assets.item_item import ItemItemModel
from ml_assets.learning import TooMuchMemoryError, at_most
from ml_assets.models import (
    MODELS,
    als_user_factors,
    content_by_history,
    fit_model,
    user_profiles,
)
from ml_assets.signal_matrix import (
    BOUGHT,
    LOOKED_AT,
    PUT_IN_CART,
    RATED,
    CannotFitError,
    SignalMatrix,
    TooLittleDataError,
    build_signal_matrix,
)


def matrix_of(pairs, *, users=(), products=(), **kwargs):
    signals = signals_of(pairs, **kwargs)
    return build_signal_matrix(
        signals,
        user_ids=pl.concat([signals["user_id"], pl.Series(users, dtype=pl.String)]),
        product_ids=pl.concat([signals["product_id"], pl.Series(products, dtype=pl.String)]),
    )


def fit(name, matrix, seed=0):
    settings = {**SETTINGS, "popularity": np.arange(len(matrix.product_ids))}
    return fit_model(name, matrix, settings=settings, seed=seed)


BASELINES = ["popularity", "repeat", "trending"]
LEARNERS = [name for name in MODELS if name not in BASELINES]
# BPR has a vector only for those it was trained on.
SCORE_ANYONE = [name for name in LEARNERS if name != "bpr"]


def scores_of(model):
    """What a model of either family says of every pair, `(n_users, n_items)`."""
    if isinstance(model, ItemItemModel):
        return history_scores(model)
    return inner_products(model.user_factors, model.item_factors)


def arrays_of(model):
    """Everything a model is made of, dense."""
    parts = (getattr(model, field.name) for field in fields(model))
    return [part.toarray() if sp.issparse(part) else part for part in parts]


@pytest.mark.parametrize("name", LEARNERS)
def test_the_one_item_held_out_from_each_user_scores_highest_of_the_new_ones(name):
    matrix = matrix_of(checkerboard(20))

    scores = scores_of(fit(name, matrix))

    scores[matrix.touched.toarray() > 0] = -np.inf
    assert scores.argmax(axis=1).tolist() == list(range(20))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_is_the_same_for_the_same_input_in_another_order(name):
    pairs = checkerboard(12)
    first, second = fit(name, matrix_of(pairs)), fit(name, matrix_of(pairs[::-1]))

    for one, other in zip(arrays_of(first), arrays_of(second), strict=True):
        assert (one == other).all()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_has_a_score_for_every_user_and_product(name):
    matrix = matrix_of(checkerboard(6), users=["cold"], products=["new"])

    model = fit(name, matrix)

    shape = (len(matrix.user_ids), len(matrix.product_ids))
    assert scores_of(model).shape == (len(model.knows_user), len(model.knows_item)) == shape
    assert np.isfinite(scores_of(model)).all()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_can_be_cut_to_some_users(name):
    model = fit(name, matrix_of(checkerboard(6), users=["cold"]))
    some = np.array([6, 2, 0])

    cut = model.for_users(some)

    assert (scores_of(cut) == scores_of(model)[some]).all()
    assert (cut.knows_user == model.knows_user[some]).all()
    assert (cut.knows_item == model.knows_item).all()


@pytest.mark.parametrize("name", LEARNERS)
def test_a_model_has_no_opinion_about_users_and_products_it_never_saw(name):
    matrix = matrix_of(checkerboard(6), users=["cold"], products=["new"])

    model = fit(name, matrix)

    assert matrix.user_ids.filter(~pl.Series(model.knows_user)).to_list() == ["cold"]
    assert matrix.product_ids.filter(~pl.Series(model.knows_item)).to_list() == ["new"]


@pytest.mark.parametrize("name", SCORE_ANYONE)
def test_a_model_does_not_learn_from_an_outlier_but_scores_them(name):
    signals = signals_of(checkerboard(12)).with_columns(is_training=pl.col("user_id") != "000")
    ids = {"user_ids": signals["user_id"], "product_ids": signals["product_id"]}
    more = signals_of([("000", "001"), ("000", "003")]).with_columns(is_training=pl.lit(False))

    with_outlier = fit(name, build_signal_matrix(signals, **ids))
    with_more = fit(name, build_signal_matrix(pl.concat([signals, more]), **ids))

    assert with_outlier.knows_user.all() and scores_of(with_outlier)[0].any()
    learned = "follows" if isinstance(with_more, ItemItemModel) else "item_factors"
    assert (getattr(with_outlier, learned) != getattr(with_more, learned)).sum() == 0


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize(
    "pairs", [[], [("u", "p")], [("u", "p"), ("u", "q")], [("u", "p"), ("v", "p")]]
)
def test_a_model_says_what_it_lacks_when_there_is_one_user_or_one_product(name, pairs):
    with pytest.raises(TooLittleDataError, match="two users and two products"):
        fit(name, matrix_of(pairs, users=["u"], products=["p"]))


@pytest.mark.parametrize("name", SCORE_ANYONE)
def test_what_a_user_is_scored_from_stays_as_it_is_while_only_time_passes(name):
    signals = signals_of(checkerboard(8), weight=2.0)
    ids = {"user_ids": signals["user_id"], "product_ids": signals["product_id"]}

    today = fit(name, build_signal_matrix(signals, **ids))
    tomorrow = build_signal_matrix(signals.with_columns(pl.col("weight") / 2), **ids)

    if isinstance(today, ItemItemModel):
        assert (fit(name, tomorrow).history != today.history).nnz == 0
    else:
        kept = als_user_factors(today.item_factors, tomorrow.history, settings=SETTINGS)
        assert (kept == today.user_factors).all()


def test_the_vector_of_an_als_user_does_not_depend_on_other_users():
    rng = np.random.default_rng(0)
    items = rng.standard_normal((30, 8)).astype(np.float32)
    history = sp.csr_matrix(sp.random_array((20, 30), density=0.3, rng=rng, dtype=np.float32))

    whole = als_user_factors(items, history, settings=SETTINGS)

    for some in (np.array([7]), np.array([19, 0, 3])):
        alone = als_user_factors(items, history[some], settings=SETTINGS)
        assert (alone == whole[some]).all()


def test_an_als_user_without_history_has_no_vector():
    items = np.ones((2, 3), np.float32)

    vectors = als_user_factors(items, sp.csr_matrix((1, 2), dtype=np.float32), settings=SETTINGS)

    assert vectors.tolist() == [[0, 0, 0]]


SCALED = {"regularization": 0.3, "regularization_power": 0.7, "alpha": 5.0, "factors": 4}


def least_squares_by_hand(vectors, confidence, n_known):
    """Each row's exact vector: what it touched counts alpha x weight, all else 1."""
    solved = np.zeros((len(confidence), vectors.shape[1]))
    for row, weights in enumerate(confidence * SCALED["alpha"]):
        n = (weights > 0).sum()
        if n:
            penalty = SCALED["regularization"] * (n + n_known / SCALED["alpha"]) ** 0.7
            counts = np.where(weights > 0, weights, 1)
            left = (vectors.T * counts) @ vectors + penalty * np.eye(vectors.shape[1])
            solved[row] = np.linalg.solve(left, vectors.T @ weights)
    return solved


def test_the_regularisation_of_als_can_grow_with_what_a_user_touched():
    rng = np.random.default_rng(0)
    items = rng.standard_normal((30, 4)).astype(np.float32)
    items[-2:] = 0
    history = sp.csr_matrix(sp.random_array((20, 30), density=0.2, rng=rng, dtype=np.float32))
    history = sp.csr_matrix(history @ sp.diags_array(items.any(axis=1).astype(np.float32)))
    history.eliminate_zeros()

    users = als_user_factors(items, history, settings=SCALED)

    expected = least_squares_by_hand(items.astype(float), history.toarray().astype(float), 28)
    np.testing.assert_allclose(users, expected, rtol=1e-3, atol=1e-4)
    # A product that came since changes no vector.
    more = sp.hstack([history, sp.csr_matrix((20, 1), dtype=np.float32)], format="csr")
    with_more = als_user_factors(np.vstack([items, items[-1:]]), more, settings=SCALED)
    assert (with_more == users).all()


def test_als_with_growing_regularisation_minimises_what_it_should():
    matrix = matrix_of(checkerboard(10), users=["cold"], products=["new"])
    settings = {**SETTINGS, **SCALED, "iterations": 60}

    model = fit_model("als", matrix, settings=settings, seed=0)

    # Where alternating ends, users are the solution for the items and items that for the users.
    weights = matrix.weights.toarray().astype(float)
    users, items = model.user_factors.astype(float), model.item_factors.astype(float)
    np.testing.assert_allclose(users, least_squares_by_hand(items, weights, 10), atol=1e-3)
    np.testing.assert_allclose(items, least_squares_by_hand(users, weights.T, 10), atol=1e-3)
    assert users.any() and not users[-1].any() and not items[-1].any()


def test_als_with_growing_regularisation_is_the_same_on_any_number_of_threads(monkeypatch):
    matrix, found = matrix_of(checkerboard(12)[::3]), []

    for n_threads in (1, 2):
        monkeypatch.setattr(threads, "n_threads", lambda n=n_threads: n)
        found.append(fit_model("als", matrix, settings={**SETTINGS, **SCALED}, seed=0))

    assert (found[0].item_factors == found[1].item_factors).all()
    assert (found[0].user_factors == found[1].user_factors).all()


@pytest.mark.parametrize("name", LEARNERS)
def test_a_model_that_needs_more_memory_than_it_may_have_is_refused(name):
    with pytest.raises(TooMuchMemoryError, match="MB and memory_megabytes allows 0: "):
        fit_model(
            name, matrix_of(checkerboard(6)), settings={**SETTINGS, "memory_megabytes": 0}, seed=0
        )


# Users, products, signals a user, and what takes most memory there.
LARGE = {
    "signals": (8000, 300, 60, {"neighbours": 5, "factors": 4, "low_pass_factors": 4}),
    "products": (300, 3000, 40, {"neighbours": 200, "factors": 8, "low_pass_factors": 8}),
    "factors": (12_000, 250, 5, {"neighbours": 5, "factors": 64, "low_pass_factors": 64}),
}


@pytest.mark.parametrize("large", LARGE)
@pytest.mark.parametrize(
    ("name", "settings"),
    [(name, {}) for name in LEARNERS]
    + [
        ("als", {"regularization_power": 0.5}),
        ("item_knn", {"knn_weighting": "tfidf"}),
        ("item_item", {"history_cap": 20}),
    ],
)
def test_a_model_takes_no_more_memory_than_it_asks_for(name, settings, large, monkeypatch):
    n_users, n_items, n_each, more = LARGE[large]
    for module in (threads, graph_filters, linear_models):
        monkeypatch.setattr(module, "n_threads", lambda: 2)
    settings = {**SETTINGS, "iterations": 2, "bpr_iterations": 1, **settings, **more}
    matrix = shop_of(n_users, n_items, n_each)
    # Compiled and imported before anything is counted.
    fit_model(name, shop_of(20, 10, 4), settings=settings, seed=0)

    with pytest.raises(TooMuchMemoryError) as refused:
        fit_model(name, matrix, settings={**settings, "memory_megabytes": 0}, seed=0)
    asked_for = float(re.search(r"needs ([\d,]+) MB", str(refused.value))[1].replace(",", ""))
    tracemalloc.start()
    fit_model(name, matrix, settings={**settings, "memory_megabytes": 1000}, seed=0)
    _, taken = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    # The messages have whole megabytes, and nothing asks for the odd array of a number a user.
    assert taken / 2**20 < asked_for + 1.5


def shop_of(n_users, n_items, n_each):
    """Users with as many signals each, one of them an outlier."""
    rng = np.random.default_rng(0)
    signals = sp.random_array(
        (n_users, n_items), density=n_each / n_items, rng=rng, dtype=np.float32, format="csr"
    )
    signals.sort_indices()
    signals.indices, signals.indptr = (
        each.astype(np.int32) for each in (signals.indices, signals.indptr)
    )
    return SignalMatrix(
        user_ids=pl.Series("user_id", range(n_users)),
        product_ids=pl.Series("product_id", range(n_items)),
        weights=sp.csr_matrix(signals),
        history=sp.csr_matrix(signals),
        kinds=np.full(signals.nnz, BOUGHT, np.int8),
        trains_on_user=np.arange(n_users) > 0,
    )


def test_bpr_has_no_opinion_about_those_it_is_not_trained_on():
    signals = signals_of(checkerboard(12)).with_columns(is_training=pl.col("user_id") != "000")
    matrix = build_signal_matrix(
        signals, user_ids=signals["user_id"], product_ids=signals["product_id"]
    )

    model = fit("bpr", matrix)

    assert model.knows_user.tolist() == [False] + [True] * 11
    assert not model.user_factors[0].any()


def test_trending_is_what_is_popular_today_and_was_less_so_before():
    signals = signals_of([("u", "old"), ("v", "old"), ("w", "old"), ("w", "new")]).with_columns(
        weight=pl.Series([0.5, 0.5, 0.5, 1.0]), relative_weight=1.0
    )
    matrix = build_signal_matrix(
        signals, user_ids=signals["user_id"], product_ids=signals["product_id"]
    )

    model = fit("trending", matrix)

    # 1.5 of today, half of what there was, against 1 of today, all of what there was.
    assert dict(zip(matrix.product_ids, model.item_factors[:, 0].tolist(), strict=True)) == {
        "old": 1.5 * 1.5 / 3,
        "new": 1.0,
    }


def test_repeating_proposes_what_a_user_had_most():
    signals = signals_of([("u", "a"), ("u", "b"), ("v", "c")]).with_columns(
        relative_weight=pl.Series([1.0, 4.0, 1.0])
    )
    matrix = build_signal_matrix(
        signals, user_ids=signals["user_id"], product_ids=signals["product_id"]
    )

    assert history_scores(fit("repeat", matrix)).tolist() == [[1, 2, 0], [0, 0, 1]]


def item_item_by_hand(history, today, *, p, q, r, shrinkage):
    """W[j, i] = d_j^-q d_i^-r t_i sum over u of d_u^-p h_uj w_ui, dense, as the formula reads."""
    h = np.sqrt(history)
    d_user, d_item = h.sum(axis=1), h.sum(axis=0) / h[h > 0].mean() + shrinkage
    left = today.sum(axis=0) / history.sum(axis=0)
    follows = (h * d_user[:, None] ** -p).T @ today
    np.fill_diagonal(follows, 0)
    return d_item[:, None] ** -q * follows * (d_item**-r * left)


def test_the_item_item_model_is_its_formula():
    rng = np.random.default_rng(1)
    pairs = [(u, p) for u in "uvwxyz" for p in "abcde" if rng.random() < 0.6]
    signals = signals_of(pairs).with_columns(
        weight=pl.Series(rng.uniform(0.1, 1, len(pairs))),
        relative_weight=pl.Series(rng.uniform(1, 2, len(pairs))),
    )
    matrix = build_signal_matrix(
        signals, user_ids=signals["user_id"], product_ids=signals["product_id"]
    )

    model = fit("item_item", matrix)

    expected = item_item_by_hand(
        matrix.history.toarray().astype(float),
        matrix.weights.toarray().astype(float),
        p=SETTINGS["user_power"],
        q=SETTINGS["source_power"],
        r=SETTINGS["target_power"],
        shrinkage=SETTINGS["shrinkage"],
    )
    np.testing.assert_allclose(model.follows.toarray(), expected, rtol=1e-5)
    np.testing.assert_allclose(
        model.history.toarray(), np.sqrt(matrix.history.toarray()), rtol=1e-6
    )


def test_the_item_item_model_keeps_as_many_neighbours_as_it_is_told():
    matrix = matrix_of(checkerboard(12))

    model = fit_model("item_item", matrix, settings={**SETTINGS, "neighbours": 2}, seed=0)

    assert set(np.diff(model.follows.indptr)) == {2}


def small_shop(seed, n_users=7, n_items=12):
    """Users with any number of products; weights with many ties; one user is an outlier."""
    rng = np.random.default_rng(seed)
    wanted = (rng.random((n_users, n_items)) < 0.6) * rng.integers(1, 4, (n_users, n_items))
    history = sp.csr_matrix(wanted.astype(np.float32))
    fades = rng.choice([0.5, 1.0], history.nnz).astype(np.float32)
    today = sp.csr_matrix((history.data * fades, history.indices, history.indptr), history.shape)
    return SignalMatrix(
        user_ids=pl.Series("user_id", range(n_users)),
        product_ids=pl.Series("product_id", range(n_items)),
        weights=today,
        history=history,
        kinds=rng.integers(0, 3, history.nnz).astype(np.int8),
        trains_on_user=np.arange(n_users) > 0,
    )


def largest_by_hand(history, n):
    """Which entries are kept, as a mask; ties by the mixed bits of row and column."""
    kept = np.zeros(history.shape, bool)
    for user, row in enumerate(history):

        def by_weight(item, row=row, user=user):
            mixed = (user * 0x9E3779B9 ^ int(item)) % 2**32
            mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B % 2**32
            mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 % 2**32
            return -row[item], -(mixed ^ mixed >> 16)

        kept[user, sorted(np.flatnonzero(row), key=by_weight)[:n]] = True
    return kept


@examples(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000), n=st.integers(1, 12))
def test_the_most_of_a_history_are_those_of_a_full_sort(seed, n):
    shop = small_shop(seed)

    found = at_most(shop, n)

    kept = largest_by_hand(shop.history.toarray(), n)
    assert (found.history.toarray() == shop.history.toarray() * kept).all()
    assert (found.weights.toarray() == shop.weights.toarray() * kept).all()
    assert (found.kinds == shop.kinds[kept[shop.history.nonzero()]]).all()
    assert found.history.has_sorted_indices and found.history.indices.dtype == np.int32


@examples(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000), n=st.integers(2, 12))
def test_a_capped_item_item_model_is_that_of_users_who_have_no_more(seed, n):
    shop, capped = small_shop(seed), {**SETTINGS, "history_cap": n}

    model = fit_model("item_item", shop, settings=capped, seed=0)

    learned = at_most(shop, n)
    h = np.sqrt(learned.training_history.toarray().astype(float))
    today = learned.training.toarray().astype(float)
    p, q, r = (SETTINGS[f"{which}_power"] for which in ("user", "source", "target"))
    known = h.sum(axis=0) > 0
    d_user = np.maximum(h.sum(axis=1), 1e-9)
    d_item = h.sum(axis=0) / h[h > 0].mean() + SETTINGS["shrinkage"]
    left = today.sum(axis=0) / np.where(known, np.square(h).sum(axis=0), 1)
    follows = (h * d_user[:, None] ** -p).T @ today
    np.fill_diagonal(follows, 0)
    expected = d_item[:, None] ** -q * follows * (d_item**-r * left)
    np.testing.assert_allclose(model.follows.toarray(), expected, rtol=1e-5, atol=1e-9)
    assert (model.knows_item == known).all()
    # Everyone is scored by all they have.
    assert (model.history.toarray() == np.sqrt(shop.history.toarray())).all()


@pytest.mark.parametrize("cap", [0, 12, 1000])
def test_a_cap_that_nobody_reaches_changes_nothing(cap):
    shop = small_shop(3)

    assert at_most(shop, cap) is shop


def test_capped_histories_are_the_same_on_any_number_of_threads(monkeypatch):
    shop, found = shop_of(10_000, 50, 30), []

    for n_threads in (1, 2):
        monkeypatch.setattr(threads, "n_threads", lambda n=n_threads: n)
        found.append(at_most(shop, 7))

    assert (found[0].history != found[1].history).nnz == 0
    assert np.diff(found[0].history.indptr).max() == 7


def test_what_goes_out_of_season_is_proposed_less():
    signals = signals_of([(user, product) for user in "uvw" for product in "abc"])
    faded = pl.when(pl.col("product_id") == "c").then(0.1).otherwise("weight")
    matrix = build_signal_matrix(
        signals.with_columns(weight=faded),
        user_ids=pl.Series("u", list("uvw")),
        product_ids=pl.Series("p", list("abc")),
    )

    follows = fit("item_item", matrix).follows.toarray()

    # Once for the weights of today, once for the share of the history that is left.
    assert follows[0, 2] == pytest.approx(0.1 * 0.1 * follows[0, 1])


def test_a_model_nobody_registered_is_refused_by_name():
    with pytest.raises(ValueError, match=r"no model 'alz'; choose one of als, "):
        fit("alz", matrix_of(checkerboard(4)))


def test_a_user_is_the_weighted_mean_of_products_with_text():
    signals = pl.concat(
        [
            signals_of([("u", "a")], weight=3.0),
            signals_of([("u", "b"), ("u", "without text")], weight=1.0),
        ]
    )
    matrix = build_signal_matrix(
        signals, user_ids=signals["user_id"], product_ids=signals["product_id"]
    )
    vectors = np.array([[1, 0], [0, 1], [0, 0]], np.float32)

    profile = user_profiles(matrix, vectors)

    assert profile.user_factors.tolist() == [[0.75, 0.25]]
    assert profile.knows_item.tolist() == [True, True, False]


def test_a_user_who_touched_only_products_without_text_has_no_profile():
    matrix = matrix_of([("u", "a")])

    profile = user_profiles(matrix, np.zeros((1, 2), np.float32))

    assert not profile.knows_user.any() and not profile.user_factors.any()


def test_a_product_follows_from_those_whose_texts_are_most_like_it():
    # Rows of length one. c is most like b, and b most like a: kept by the one that follows.
    terms = sp.csr_matrix(np.array([[1, 0], [0.8, 0.6], [0, 1], [0, 0]], np.float32))

    follows = text_neighbours(terms, k=1)

    assert follows.toarray() == pytest.approx(
        np.array([[0, 0.8, 0, 0], [0.8, 0, 0.6, 0], [0] * 4, [0] * 4])
    )
    assert follows.has_sorted_indices


def test_texts_become_rows_of_length_one_and_no_text_an_empty_row():
    terms = tfidf(pl.Series(["red lamp", None, "red mug", ""]))

    lengths = np.linalg.norm(terms.toarray(), axis=1)
    assert lengths == pytest.approx(np.array([1, 0, 1, 0]))
    # "red" is in both and says less than the word that is in one.
    assert 0 < (terms @ terms.T)[0, 2] < 0.5


def test_a_word_that_thousands_of_products_have_says_nothing(monkeypatch):
    monkeypatch.setattr(content, "MOST_PRODUCTS_OF_A_TERM", 3)
    texts = pl.Series([f"thing {word}" for word in ("red", "red", "blue", "blue")])

    alike = text_neighbours(tfidf(texts), k=3).toarray()

    # "thing" is in four.
    assert (alike > 0).tolist() == [
        [False, True, False, False],
        [True, False, False, False],
        [False, False, False, True],
        [False, False, True, False],
    ]


def test_content_by_history_knows_products_like_others_and_users_who_touched_one():
    matrix = matrix_of(
        [("u", "lamp"), ("v", "plain")], products=["lamp two"], users=["cold"], weight=4.0
    )
    alike = sp.csr_matrix(np.array([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]], np.float32))

    model = content_by_history(matrix, alike)

    assert matrix.product_ids.to_list() == ["lamp", "lamp two", "plain"]
    assert model.knows_item.tolist() == [True, True, False]
    assert matrix.user_ids.filter(pl.Series(model.knows_user)).to_list() == ["u"]
    # A weight of 4 counts for its square root.
    assert history_scores(model)[1].tolist() == [0, 2 * 0.5, 0]


def test_titles_with_words_in_common_are_closer_than_others():
    texts = pl.Series(["red metal lantern", "blue metal lantern", "paper chain kit", None])

    vectors = product_vectors(texts, dimensions=100, seed=0)

    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert not vectors[3].any()


def test_folding_keeps_the_inner_products_of_a_small_catalogue():
    words = ["red", "blue", "tin", "glass", "paper", "lamp", "mug", "bowl"]
    texts = pl.Series([f"{a} {b}" for a in words for b in words if a != b][:30])

    full = product_vectors(texts, dimensions=10_000, seed=0)
    folded = product_vectors(texts, dimensions=30, seed=0)

    assert folded.shape[1] <= 30 < full.shape[1]
    np.testing.assert_allclose(folded @ folded.T, full @ full.T, atol=1e-5)


def test_a_large_catalogue_is_folded_to_the_dimensions_asked_for():
    rng = np.random.default_rng(0)
    texts = pl.Series([" ".join(rng.choice([f"w{i}" for i in range(80)], 4)) for _ in range(200)])

    first = product_vectors(texts, dimensions=8, seed=1)

    assert first.shape == (200, 8) and first.dtype == np.float32
    assert (first == product_vectors(texts, dimensions=8, seed=1)).all()


@pytest.mark.parametrize("texts", [[None, None], ["only one", None], ["?", "!"]])
def test_a_catalogue_without_words_is_too_little_data(texts):
    with pytest.raises(TooLittleDataError, match="content model"):
        product_vectors(pl.Series(texts, dtype=pl.String), dimensions=4, seed=0)


def test_the_strongest_thing_a_user_did_is_kept():
    signals = pl.concat(
        [
            signals_of([("u", "bought")]),
            signals_of([("u", "in cart"), ("u", "rated"), ("u", "seen")], bought=False),
        ]
    ).with_columns(
        n_carts=pl.when(pl.col("product_id") == "in cart").then(1).otherwise(0),
        is_only_rated=pl.col("product_id") == "rated",
    )

    matrix = build_signal_matrix(
        signals, user_ids=signals["user_id"], product_ids=signals["product_id"]
    )

    assert_series_equal(
        matrix.product_ids, pl.Series("product_id", ["bought", "in cart", "rated", "seen"])
    )
    assert matrix.kinds.tolist() == [BOUGHT, PUT_IN_CART, RATED, LOOKED_AT]
    assert matrix.bought.toarray().tolist() == [[1, 0, 0, 0]]
    assert matrix.touched.toarray().tolist() == [[1, 1, 1, 1]]


def test_weight_is_of_today_and_history_of_the_users_last_active_day():
    signals = signals_of([("u", "p"), ("u", "q"), ("v", "p")]).with_columns(
        weight=pl.Series([1.0, 2.0, 4.0]), relative_weight=pl.Series([3.0, 6.0, 5.0])
    )

    matrix = build_signal_matrix(
        signals, user_ids=signals["user_id"], product_ids=signals["product_id"]
    )

    assert matrix.weights.toarray().tolist() == [[1, 2], [4, 0]]
    assert matrix.history.toarray().tolist() == [[3, 6], [5, 0]]


def test_a_matrix_can_be_cut_to_some_users_in_any_order():
    signals = signals_of([("u", "p"), ("u", "q"), ("v", "p"), ("w", "q")]).with_columns(
        weight=pl.Series([1.0, 2.0, 4.0, 8.0]),
        relative_weight=pl.Series([3.0, 6.0, 5.0, 7.0]),
        n_purchases=pl.Series([0, 1, 1, 0], dtype=pl.Int32),
        is_training=pl.col("user_id") != "w",
    )
    whole = build_signal_matrix(
        signals, user_ids=signals["user_id"], product_ids=signals["product_id"]
    )

    cut = whole.for_users(np.array([2, 0]))

    assert cut.user_ids.to_list() == ["w", "u"]
    assert cut.weights.toarray().tolist() == [[0, 8], [1, 2]]
    assert cut.history.toarray().tolist() == [[0, 7], [3, 6]]
    assert cut.bought.toarray().tolist() == [[0, 0], [0, 1]]
    assert cut.trains_on_user.tolist() == [False, True]


def test_two_signals_of_a_user_for_one_product_are_refused_and_not_added_up():
    signals = signals_of([("u", "p"), ("v", "p"), ("u", "p")])

    with pytest.raises(ValueError, match="two signals for one product"):
        build_signal_matrix(signals, user_ids=signals["user_id"], product_ids=signals["product_id"])


def test_a_signal_about_a_product_outside_the_catalogue_is_named():
    with pytest.raises(ValueError, match="product_id 'ghost' has signals but is not in its mart"):
        build_signal_matrix(
            signals_of([("u", "ghost")]),
            user_ids=pl.Series("user_id", ["u"]),
            product_ids=pl.Series("product_id", ["p"]),
        )


def test_no_signals_make_an_empty_matrix():
    matrix = matrix_of([], users=["u"], products=["p"])

    assert matrix.weights.shape == (1, 1) and matrix.weights.nnz == 0
    assert matrix.bought.nnz == 0


def likes_of(n_users=60, n_items=25, seed=3):
    """Users of three tastes, who take other things too."""
    rng = np.random.default_rng(seed)
    likes = rng.random((n_users, n_items)) < 0.1
    taste, kind = rng.integers(3, size=n_users), rng.integers(3, size=n_items)
    likes |= (taste[:, None] == kind) & (rng.random(likes.shape) < 0.4)
    return [(f"u{user:03}", f"p{item:03}") for user, item in zip(*np.nonzero(likes), strict=True)]


def z_scores_of(model):
    scores = history_scores(model)
    return (scores - scores.mean(axis=1, keepdims=True)) / scores.std(axis=1, keepdims=True)


def ensemble_of(matrix, **weights):
    return fit_model("ensemble", matrix, settings={**SETTINGS, "ensemble": weights}, seed=0)


def test_an_ensemble_of_one_model_says_what_the_model_says():
    matrix = matrix_of(likes_of())

    alone = z_scores_of(ensemble_of(matrix, gf_cf=0.3))

    assert alone == pytest.approx(z_scores_of(fit("gf_cf", matrix)), abs=1e-4)


def test_members_of_an_ensemble_count_by_their_weights_whatever_their_scale():
    matrix = matrix_of(likes_of())
    one, other = (z_scores_of(fit(name, matrix)) for name in ("item_item", "gf_cf"))
    assert np.abs(one - other).mean() > 0.1

    both = z_scores_of(ensemble_of(matrix, item_item=0.6, gf_cf=0.4))

    blended = 0.6 * one + 0.4 * other
    assert np.corrcoef(both.ravel(), blended.ravel())[0, 1] > 0.995


def test_a_member_of_weight_0_is_not_fitted_and_a_failing_one_is_named():
    matrix = matrix_of(likes_of())
    tight = {**SETTINGS, "memory_megabytes": 0}

    with pytest.raises(TooMuchMemoryError, match="gf_cf, a member of the ensemble: "):
        fit_model(
            "ensemble",
            matrix,
            settings={**tight, "ensemble": {"gf_cf": 1.0, "item_item": 0.0}},
            seed=0,
        )
    with pytest.raises(CannotFitError, match="no member"):
        ensemble_of(matrix, ease=0.0)
