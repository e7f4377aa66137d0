"""What every model owes, and what each one does."""

import numpy as np
import polars as pl
import pytest
from frames_for_tests import SETTINGS, checkerboard, signals_of
from polars.testing import assert_series_equal

from ml_assets.content import product_vectors
from ml_assets.models import MODELS, fit_model, user_profiles
from ml_assets.signal_matrix import (
    BOUGHT,
    LOOKED_AT,
    PUT_IN_CART,
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


def test_the_one_item_held_out_from_each_user_scores_highest_of_the_new_ones():
    matrix = matrix_of(checkerboard(20))

    model = fit("als", matrix)

    scores = model.user_factors @ model.item_factors.T
    scores[matrix.touched.toarray() > 0] = -np.inf
    assert scores.argmax(axis=1).tolist() == list(range(20))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_gives_the_same_factors_for_the_same_input_in_another_order(name):
    pairs = checkerboard(12)
    first, second = fit(name, matrix_of(pairs)), fit(name, matrix_of(pairs[::-1]))

    assert (first.user_factors == second.user_factors).all()
    assert (first.item_factors == second.item_factors).all()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_has_a_row_for_every_user_and_product(name):
    matrix = matrix_of(checkerboard(6), users=["cold"], products=["new"])

    model = fit(name, matrix)

    assert len(model.user_factors) == len(model.knows_user) == len(matrix.user_ids)
    assert len(model.item_factors) == len(model.knows_item) == len(matrix.product_ids)
    assert np.isfinite(model.user_factors).all() and np.isfinite(model.item_factors).all()


def test_als_has_no_opinion_about_users_and_products_it_never_saw():
    matrix = matrix_of(checkerboard(6), users=["cold"], products=["new"])

    model = fit("als", matrix)

    assert matrix.user_ids.filter(~pl.Series(model.knows_user)).to_list() == ["cold"]
    assert matrix.product_ids.filter(~pl.Series(model.knows_item)).to_list() == ["new"]


def test_als_does_not_learn_from_an_outlier_but_scores_them():
    pairs = checkerboard(12)
    signals = signals_of(pairs).with_columns(is_training=pl.col("user_id") != "000")
    ids = {"user_ids": signals["user_id"], "product_ids": signals["product_id"]}

    with_outlier = fit("als", build_signal_matrix(signals, **ids))
    more = pl.concat(
        [
            signals,
            signals_of([("000", "001"), ("000", "003")]).with_columns(is_training=pl.lit(False)),
        ]
    )
    with_more = fit("als", build_signal_matrix(more, **ids))

    assert with_outlier.knows_user.all() and with_outlier.user_factors[0].any()
    assert (with_outlier.item_factors == with_more.item_factors).all()


@pytest.mark.parametrize(
    "pairs", [[("u", "p")], [("u", "p"), ("u", "q")], [("u", "p"), ("v", "p")]]
)
def test_als_says_what_it_lacks_when_there_is_one_user_or_one_product(pairs):
    with pytest.raises(TooLittleDataError, match="two users and two products"):
        fit("als", matrix_of(pairs))


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
            signals_of([("u", "in cart"), ("u", "seen")], bought=False),
        ]
    ).with_columns(n_carts=pl.when(pl.col("product_id") == "in cart").then(1).otherwise(0))

    matrix = build_signal_matrix(
        signals, user_ids=signals["user_id"], product_ids=signals["product_id"]
    )

    assert_series_equal(matrix.product_ids, pl.Series("product_id", ["bought", "in cart", "seen"]))
    assert matrix.kinds.tolist() == [BOUGHT, PUT_IN_CART, LOOKED_AT]
    assert matrix.bought.toarray().tolist() == [[1, 0, 0]]
    assert matrix.touched.toarray().tolist() == [[1, 1, 1]]


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
