"""Models side by side on folds: what is asked, who is paired with whom."""

from dataclasses import replace
from datetime import date

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from frames_for_tests import SETTINGS, checkerboard, popularity_of, products_of, signals_of
from test_backtest import OWN_NUMBER

from ml_assets.backtest import look_back
from ml_assets.comparison import (
    answers,
    compare,
    evaluate_settings,
    fit_sources,
    learn_blend,
    learn_ensemble,
    lists_of,
    lists_of_each,
    opinions_on,
)
from ml_assets.signal_matrix import TooLittleDataError
from ml_assets.tuning import Outcome

N = 12
PRODUCTS = products_of({f"{i:03}": f"{'odd' if i % 2 else 'even'} n{i}" for i in range(N)})


@pytest.fixture
def past():
    return look_back(
        signals=signals_of(checkerboard(N)),
        holdout=OWN_NUMBER,
        products=PRODUCTS,
        popularity=popularity_of(popular=PRODUCTS["product_id"].to_list()),
        holdout_from=date(2024, 6, 1),
        as_of=date(2024, 6, 29),
        settings=SETTINGS,
    )


def test_asking_leaves_the_fold_as_it_was(past):
    before = past.questions.relevant.copy()

    answers(past, "new_products")

    assert (past.questions.relevant != before).nnz == 0
    assert past.questions.relevant.nnz == before.nnz


def test_sources_of_every_kind_are_blended_and_found_what_they_know(past):
    names = ["item_item", "als", "content", "popular", "trending"]
    models, skipped = fit_sources(past, names, SETTINGS)
    fold = opinions_on(past, models, SETTINGS)

    weights = learn_blend([fold])
    learned = lists_of(fold, weights.of_users(fold.history_size))
    each = lists_of_each(past, models, SETTINGS)

    assert list(models) == names and skipped == {}
    assert weights.names == tuple(names)
    users = past.questions.matrix.user_ids
    found = compare(
        [(users, answers(past, "new_products"), {**each, "learned": learned})],
        beside="learned",
        seed=1,
    )
    recall = dict(found.filter(pl.col("metric") == "recall@5").select("model", "value").iter_rows())
    # What is learned on a fold and asked about the same can only be as good or better.
    assert recall["learned"] >= recall["popular"]
    assert recall["item_item"] == 1.0


def test_an_ensemble_is_learned_from_what_its_members_find(past):
    learned = learn_ensemble([past, past], ["item_item", "rp3beta"], SETTINGS)

    assert set(learned["ensemble"]) <= {"item_item", "rp3beta"}
    assert sum(learned["ensemble"].values()) == pytest.approx(1)
    assert learned["w_cf"] + learned["w_content"] == pytest.approx(1)
    start = {**SETTINGS, "cf_model": "ensemble"}
    # The right answer is the first of all, so nothing is better than what was learned.
    assert evaluate_settings([past], start, learned).value == pytest.approx(1)
    with pytest.raises(TooLittleDataError, match="no member"):
        learn_ensemble([past], ["ease"], {**SETTINGS, "memory_megabytes": 0})


def test_settings_cannot_be_judged_where_nobody_went_for_anything_new(past):
    questions = replace(past.questions, is_new=np.zeros_like(past.questions.is_new))
    start = {**SETTINGS, "cf_model": "item_item"}

    outcome = evaluate_settings([replace(past, questions=questions)], start, {})

    assert outcome == Outcome(None, 0, "nobody went for anything new")


def test_a_source_that_cannot_be_fitted_is_left_out_with_the_reason(past):
    without_text = replace(past, terms=None, no_terms="no product has text")

    models, skipped = fit_sources(without_text, ["content", "popular"], SETTINGS)

    assert list(models) == ["popular"]
    assert skipped == {"content": "no product has text"}


def test_a_difference_is_taken_user_by_user_over_all_folds():
    users = pl.Series([f"u{i}" for i in range(40)])
    relevant = sp.csr_matrix(np.ones((40, 1), np.float32))
    hits, misses = np.zeros((40, 1), np.int32), np.full((40, 1), -1, np.int32)
    half = np.where(np.arange(40)[:, None] < 20, hits, misses)

    found = compare(
        [(users, relevant, {"a": hits, "b": half}), (users, relevant, {"a": hits, "b": misses})],
        beside="a",
        seed=1,
    ).filter(pl.col("metric") == "recall@20")

    (a, b) = found.sort("model").to_dicts()
    assert (a["value"], b["value"], b["n_users"]) == (1.0, 0.25, 40)
    assert b["difference"] == 0.75
    assert 0.6 < b["difference_low"] < 0.75 < b["difference_high"] < 0.9
    assert a["difference"] == a["difference_low"] == a["difference_high"] == 0
