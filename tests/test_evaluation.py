"""Metrics one can redo by hand, and a backtest that sees nothing of the future."""

from datetime import date, datetime

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from frames_for_tests import (
    SETTINGS,
    checkerboard,
    popularity_of,
    products_of,
    signals_of,
)

from ml_assets.backtest import backtest
from ml_assets.evaluation import metric_rows, metric_table, ranking_metrics
from ml_assets.frames import METRICS
from ml_assets.scoring import NOTHING
from ml_assets.signal_matrix import TooLittleDataError


def log2(x):
    return np.log2(x)


def test_metrics_of_one_list_are_the_arithmetic_of_the_textbook():
    best = np.array([[7, 1, 3]], np.int32)
    relevant = sp.csr_matrix(np.isin(np.arange(9), [1, 3, 5, 8])[None].astype(float))

    metrics = ranking_metrics(best, relevant, n_eligible=9)

    ideal = 1 / log2(2) + 1 / log2(3) + 1 / log2(4)
    assert metrics == {
        "recall@3": pytest.approx(2 / 4),
        "ndcg@3": pytest.approx((1 / log2(3) + 1 / log2(4)) / ideal),
        "hit_rate@3": 1.0,
        "coverage@3": pytest.approx(3 / 9),
    }


def test_users_with_nothing_to_find_do_not_count():
    best = np.array([[0], [1], [2]], np.int32)
    relevant = sp.csr_matrix(np.array([[1, 0, 0], [0, 0, 0], [1, 0, 0]], float))

    metrics = ranking_metrics(best, relevant, n_eligible=3)

    assert metrics["recall@1"] == 1 / 2
    assert metrics["coverage@1"] == 2 / 3


def test_an_empty_place_is_no_hit():
    best = np.full((1, 2), NOTHING, np.int32)
    # Position -1 must not be read as the last product.
    relevant = sp.csr_matrix(np.array([[0, 1.0]]))

    assert ranking_metrics(best, relevant, n_eligible=2)["recall@2"] == 0


def test_a_holdout_with_nothing_to_find_is_an_error():
    with pytest.raises(ValueError, match="anything to find"):
        ranking_metrics(np.zeros((1, 1), np.int32), sp.csr_matrix((1, 1)), n_eligible=1)


def test_the_table_has_a_row_per_model():
    rows = metric_rows("f", "als", "t", {"recall@20": 0.5, "ndcg@20": 0.25}, 3)

    assert metric_table(rows).splitlines()[-1] == "| als | 0.5000 | 0.2500 |"


DAY = date(2024, 6, 1)
BACKTEST_SETTINGS = {**SETTINGS, "factors": 4, "iterations": 30}


def run_backtest(**changes):
    n = 12
    pairs = checkerboard(n)
    products = products_of({f"{i:03}": f"{'odd' if i % 2 else 'even'} n{i}" for i in range(n)})
    arguments = {
        "signals": signals_of(pairs),
        "holdout": pl.DataFrame(
            {"user_id": [f"{i:03}" for i in range(n)], "product_id": [f"{i:03}" for i in range(n)]}
        ).with_columns(is_new=True),
        "products": products,
        "popularity": popularity_of(
            popular=products["product_id"].to_list(),
            last_28_days=products["product_id"].to_list()[:4],
        ),
        "holdout_from": DAY,
        "as_of": date(2024, 6, 29),
        "k": 1,
        "settings": BACKTEST_SETTINGS,
        "progress": lambda _: None,
    }
    return backtest(**{**arguments, **changes})


def value(metrics, model, metric="recall@1"):
    return metrics.filter((pl.col("model") == model) & (pl.col("metric") == metric))["value"][0]


@pytest.mark.parametrize("cf_model", ["als", "item_item"])
def test_a_backtest_measures_baselines_models_and_hybrid_side_by_side(cf_model):
    metrics, skipped = run_backtest(settings={**BACKTEST_SETTINGS, "cf_model": cf_model})

    assert metrics.schema == METRICS and not skipped
    assert metrics["model"].unique(maintain_order=True).to_list() == [
        "random",
        "popular",
        "popular_28_days",
        cf_model,
        "content",
        "hybrid",
    ]
    assert value(metrics, cf_model) == value(metrics, "hybrid") == 1
    assert value(metrics, "random") < 1
    assert set(metrics["fold"]) == {"2024-06-01/2024-06-29"}
    assert set(metrics["n_users"]) == {12}


def test_products_added_after_the_cutoff_can_neither_be_asked_about_nor_shown():
    late = products_of({"late": "even n0 n2"}).with_columns(
        added_at=pl.lit(datetime(2024, 6, 2)).cast(pl.Datetime("us"))
    )
    products = products_of({f"{i:03}": f"{'odd' if i % 2 else 'even'} n{i}" for i in range(12)})
    holdout = pl.DataFrame(
        {"user_id": ["000", "001"], "product_id": ["late", "001"], "is_new": [True, True]}
    )

    metrics, _ = run_backtest(products=pl.concat([products, late]), holdout=holdout)

    assert set(metrics["n_users"]) == {1}
    without, _ = run_backtest(holdout=holdout.tail(1))
    assert metrics.equals(without)


def test_a_text_that_is_written_later_changes_no_figure():
    products = products_of({f"{i:03}": f"{'odd' if i % 2 else 'even'} n{i}" for i in range(12)})
    late = products_of({"late": "even odd n1 n2 n3 n4"}).with_columns(
        added_at=pl.lit(datetime(2024, 6, 20)).cast(pl.Datetime("us"))
    )

    assert run_backtest(products=pl.concat([products, late]))[0].equals(run_backtest()[0])


def test_a_sample_of_users_is_asked_when_there_are_many():
    metrics, _ = run_backtest(settings={**SETTINGS, "evaluated_users": 5})

    assert set(metrics["n_users"]) == {5}


def test_models_without_enough_data_are_left_out_with_the_reason():
    products = products_of({f"{i:03}": None for i in range(12)})

    metrics, skipped = run_backtest(products=products)

    assert "hybrid" not in set(metrics["model"])
    assert "two products with text" in skipped["content"]


def test_a_holdout_of_strangers_is_too_little_data():
    strangers = pl.DataFrame({"user_id": ["x"], "product_id": ["000"], "is_new": [True]})

    with pytest.raises(TooLittleDataError, match="no user has signals up to 2024-06-01"):
        run_backtest(holdout=strangers)
