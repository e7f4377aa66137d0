"""A learned order: what it looks at, that it learns from it, and that it can be repeated."""

from datetime import date

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from frames_for_tests import SETTINGS, checkerboard, popularity_of, products_of, signals_of
from learned_ranker import Examples, examples, fit_ranker, ranked_lists
from test_backtest import OWN_NUMBER

from ml_assets.backtest import look_back
from ml_assets.comparison import fit_sources, opinions_on
from ml_assets.item_item import NOTHING
from ml_assets.signal_matrix import TooLittleDataError

N = 12
PRODUCTS = products_of({f"{i:03}": f"{'odd' if i % 2 else 'even'} n{i}" for i in range(N)})
ATTRIBUTES = PRODUCTS.with_columns(
    category=pl.when(pl.int_range(pl.len()) % 2 == 1).then(pl.lit("odd")).otherwise(None),
    brand=pl.lit(None, pl.String),
    price=pl.int_range(pl.len()).cast(pl.Float64),
    added_at=pl.when(pl.int_range(pl.len()) == 3).then(pl.datetime(2024, 5, 22)).otherwise(None),
)


@pytest.fixture(scope="module")
def fold():
    past = look_back(
        signals=signals_of(checkerboard(N), weight=2.0),
        holdout=OWN_NUMBER,
        products=PRODUCTS,
        popularity=popularity_of(popular=PRODUCTS["product_id"].to_list()),
        holdout_from=date(2024, 6, 1),
        as_of=date(2024, 6, 29),
        settings=SETTINGS,
    )
    models, _ = fit_sources(past, ["item_item", "popular"], SETTINGS)
    return past, opinions_on(past, models, SETTINGS)


def test_a_candidate_is_described_by_what_models_say_and_by_who_and_what_it_is(fold):
    past, opinions = fold

    found = examples(past, opinions, ATTRIBUTES)

    user = np.repeat(np.arange(len(found.n_of_user)), found.n_of_user)
    rows = pl.DataFrame(found.features, schema=list(found.names)).with_columns(
        user=user, item=found.items, is_relevant=found.is_relevant
    )
    # User 1 likes odd products and has all of them but their own.
    own = rows.row(by_predicate=(pl.col("user") == 1) & (pl.col("item") == 1), named=True)
    assert own["is_relevant"]
    assert own["item_item"] == rows.filter(pl.col("user") == 1)["item_item"].max()
    assert (own["user_n_products"], own["user_n_bought"], own["user_weight"]) == (5, 5, 10)
    assert (own["product_n_users"], own["product_weight"], own["product_price"]) == (5, 10, 1)
    assert own["user_freshness"] == own["product_freshness"] == 1
    assert own["pair_category_share"] == 1
    assert own["pair_weight"] == 0
    assert "pair_brand_share" not in rows.columns
    even = rows.filter((pl.col("user") == 1) & (pl.col("item") % 2 == 0))
    assert even["pair_category_share"].is_nan().all()
    ages = dict(rows.select("item", "product_age_days").iter_rows())
    assert ages[3] == 10 and np.isnan(ages[4])


def taught(n_users: int, *, seed: int) -> Examples:
    """Half of the users follow the first model, half the second; a feature tells which."""
    rng = np.random.default_rng(seed)
    n_items = 30
    user = np.repeat(np.arange(n_users), n_items)
    trusts_second = rng.random(n_users) < 0.5
    said = rng.normal(size=(len(user), 2)).astype(np.float32)
    heard = np.where(trusts_second[user], said[:, 1], said[:, 0]).reshape(n_users, n_items)
    best = np.argsort(-heard, axis=1)[:, :3]
    is_relevant = np.zeros((n_users, n_items), dtype=bool)
    is_relevant[np.arange(n_users)[:, None], best] = True
    return Examples(
        ("first", "second", "which"),
        np.column_stack([said, trusts_second[user]]).astype(np.float32),
        np.tile(np.arange(n_items, dtype=np.int32), n_users),
        np.full(n_users, n_items),
        is_relevant.ravel(),
    )


def test_a_ranker_learns_whom_to_trust_where_no_weights_can():
    ranker = fit_ranker([taught(400, seed=1), taught(400, seed=2)], seed=3)
    asked = taught(200, seed=4)

    lists = ranked_lists(ranker, asked, k=3)

    relevant = asked.is_relevant.reshape(200, 30)
    hits = relevant[np.arange(200)[:, None], lists].mean()
    blend = asked.features[:, :2].sum(axis=1).reshape(200, 30)
    blended = relevant[np.arange(200)[:, None], np.argsort(-blend, axis=1)[:, :3]].mean()
    assert hits > 0.85 > 0.6 > blended
    assert sum(ranker.importance().values()) == pytest.approx(1)


def test_the_same_folds_and_seed_give_the_same_lists():
    asked = taught(50, seed=4)

    first, second = (
        ranked_lists(fit_ranker([taught(200, seed=1)], seed=3), asked, k=30) for _ in range(2)
    )

    assert (first == second).all()


def test_users_without_candidates_have_empty_lists():
    asked = taught(3, seed=4)
    nobody = Examples(
        asked.names,
        asked.features[30:],
        asked.items[30:],
        np.array([0, 30, 30]),
        asked.is_relevant[30:],
    )

    lists = ranked_lists(fit_ranker([taught(200, seed=1)], seed=3), nobody, k=40)

    assert (lists[0] == NOTHING).all()
    assert (np.sort(lists[1, :30]) == np.arange(30)).all()
    assert (lists[1, 30:] == NOTHING).all()


def test_a_fold_without_answers_teaches_nothing():
    silent = taught(5, seed=1)
    silent.is_relevant[:] = False

    with pytest.raises(TooLittleDataError, match="no user"):
        fit_ranker([silent], seed=0)


def test_what_is_asked_stays_as_it_was(fold):
    past, opinions = fold
    before = sp.csr_matrix(opinions.relevant, copy=True)

    examples(past, opinions, ATTRIBUTES)

    assert (before != opinions.relevant).nnz == 0
