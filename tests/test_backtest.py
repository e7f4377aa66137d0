"""A backtest that sees nothing of the future, and the segments its figures are taken over."""

from datetime import date, datetime
from functools import cache

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

from ml_assets import threads
from ml_assets.backtest import backtest, learn, look_back
from ml_assets.frames import HOLDOUT, METRICS
from ml_assets.judging import metric_table, segment_table
from ml_assets.promotion import ACCEPTED, judge_promotion
from ml_assets.recommend import random_lists
from ml_assets.scoring import NOTHING
from ml_assets.segments import light_users, product_segments, weeks_after
from ml_assets.signal_matrix import TooLittleDataError

DAY = date(2024, 6, 1)
N = 12
BACKTEST_SETTINGS = {**SETTINGS, "factors": 4, "iterations": 30}
PRODUCTS = products_of({f"{i:03}": f"{'odd' if i % 2 else 'even'} n{i}" for i in range(N)})


def holdout_of(pairs, *, new=True, bought=True, day=date(2024, 6, 3)):
    """HOLDOUT: each pair once, all alike."""
    return pl.DataFrame(
        {
            "user_id": [user for user, _ in pairs],
            "product_id": [product for _, product in pairs],
            "n_purchases": int(bought),
            "is_new": new,
            "first_at": datetime(day.year, day.month, day.day, 12),
        },
        schema_overrides=HOLDOUT,
    )


OWN_NUMBER = holdout_of([(f"{i:03}", f"{i:03}") for i in range(N)])


def past_of(**changes):
    arguments = {
        "signals": signals_of(checkerboard(N)),
        "holdout": OWN_NUMBER,
        "products": PRODUCTS,
        "popularity": popularity_of(
            popular=PRODUCTS["product_id"].to_list(),
            last_28_days=PRODUCTS["product_id"].to_list()[:4],
        ),
        "holdout_from": DAY,
        "as_of": date(2024, 6, 29),
        "settings": BACKTEST_SETTINGS,
        **changes,
    }
    return look_back(**arguments)


def run_backtest(settings=BACKTEST_SETTINGS, **changes):
    past = past_of(settings=settings, **changes)
    return backtest(past, learn(past, settings), settings=settings, progress=lambda _: None)


@cache
def plain():
    """METRICS of the shop as it stands above."""
    return run_backtest().metrics


def row(metrics, **keys):
    given = {"target": "new_products", "segment": "known", "metric": "recall@5", **keys}
    (found,) = metrics.filter(**given).iter_rows(named=True)
    return found


def segments_of(metrics, model, target="new_products"):
    return set(metrics.filter(model=model, target=target)["segment"])


@pytest.mark.parametrize("cf_model", ["als", "item_item"])
def test_a_backtest_measures_baselines_models_and_hybrid_side_by_side(cf_model):
    found = run_backtest(settings={**BACKTEST_SETTINGS, "cf_model": cf_model})

    assert found.metrics.schema == METRICS and not found.skipped
    assert found.metrics["model"].unique(maintain_order=True).to_list() == [
        "random",
        "popular",
        "popular_28_days",
        cf_model,
        "content",
        "hybrid",
    ]
    for model in (cf_model, "hybrid"):
        assert row(found.metrics, model=model, metric="mrr@5")["value"] == 1
    assert row(found.metrics, model="random", metric="mrr@5")["value"] < 1
    assert set(found.metrics["fold"]) == {"2024-06-01/2024-06-29"}
    assert set(found.metrics.filter(segment="known")["n_users"]) == {N}


def test_every_row_is_one_figure_of_one_model_target_and_segment():
    metrics = plain()

    keys = ["fold", "model", "target", "segment", "metric"]
    assert not metrics.select(keys).is_duplicated().any()
    bounded = metrics.drop_nulls("low")
    assert (bounded["low"] <= bounded["high"]).all()
    assert not metrics.select(pl.col(pl.Float64).is_nan().any()).row(0).count(True)


def test_figures_are_compared_with_the_hybrid_on_the_same_users():
    metrics = plain()

    popular = row(metrics, model="popular", metric="mrr@5")
    hybrid = row(metrics, model="hybrid", metric="mrr@5")
    assert popular["compared_with"] == "hybrid"
    assert popular["difference"] == pytest.approx(popular["value"] - hybrid["value"])
    assert popular["difference_low"] < popular["difference"] < popular["difference_high"] < 0
    assert popular["is_different"]
    assert hybrid["compared_with"] is None and hybrid["is_different"] is None
    als = row(metrics, model="als", metric="mrr@5")
    assert als["difference"] == 0 and not als["is_different"]


def test_repeats_are_the_answer_to_what_comes_next_but_not_to_what_is_new():
    repeats = holdout_of([("000", "002"), ("001", "003")], new=False)

    metrics = run_backtest(holdout=pl.concat([OWN_NUMBER, repeats])).metrics

    # The list of all products names both, the one without what they had cannot.
    assert row(metrics, model="popular", target="any_next", metric="recall@50")["value"] == 1
    assert row(metrics, model="popular", metric="recall@50")["value"] == 1
    only = run_backtest(holdout=repeats).metrics
    assert set(only["target"]) == {"any_next"}


def test_a_product_with_a_signal_that_weighs_nothing_is_not_new():
    had = holdout_of([("000", "002")], new=True)

    assert set(run_backtest(holdout=had).metrics["target"]) == {"any_next"}


def test_users_without_a_past_are_asked_of_whoever_can_answer_them():
    strangers = holdout_of([("x", "000"), ("y", "011")])

    found = run_backtest(holdout=pl.concat([OWN_NUMBER, strangers]))

    for model in ("random", "popular", "popular_28_days", "hybrid"):
        assert "cold" in segments_of(found.metrics, model)
    for model in ("als", "content"):
        assert "cold" not in segments_of(found.metrics, model)
    # 000 leads the popularity list, 011 ends it: of twelve products, both are on a list of 50.
    for model in ("popular", "hybrid"):
        assert row(found.metrics, model=model, segment="cold", metric="mrr@50")[
            "value"
        ] == pytest.approx((1 + 1 / 12) / 2)
    assert row(found.metrics, model="hybrid", segment="cold", metric="fallback_share@5")[
        "value"
    ] == pytest.approx(1)
    assert found.facts["not_asked_about_cold_users"] == "als, content"
    assert found.facts["users"] == "12 with a past, 2 without (cold)"


def test_users_without_a_past_change_no_figure_of_those_with_one():
    strangers = holdout_of([("x", "000")])

    def known(**changes):
        metrics = run_backtest(**changes).metrics.filter(pl.col("segment") != "cold")
        # Another user, other draws: the figures stay, their bounds need not.
        return metrics.select("model", "target", "segment", "metric", "value", "n_users").filter(
            pl.col("model") != "random"
        )

    assert known(holdout=pl.concat([OWN_NUMBER, strangers])).equals(known())


def test_purchases_weeks_and_kinds_of_products_are_segments():
    looked_at = holdout_of([("000", "001")], bought=False, day=date(2024, 6, 9))

    metrics = run_backtest(holdout=pl.concat([OWN_NUMBER, looked_at])).metrics

    segments = segments_of(metrics, "popular")
    assert {"head", "tail", "purchases", "week_1", "week_2"} <= segments
    assert not {"new", "cold", "week_3"} & segments
    assert row(metrics, model="popular", segment="week_2")["n_users"] == 1
    assert row(metrics, model="popular", segment="week_2")["low"] is None
    # Bought was only the product of their own number: the best one there is.
    assert row(metrics, model="als", segment="purchases", metric="recall@5")["value"] == 1
    assert row(metrics, model="als", segment="purchases", metric="precision@5")[
        "value"
    ] == pytest.approx(1 / 5)


def test_products_added_after_the_cutoff_can_neither_be_asked_about_nor_shown():
    late = products_of({"late": "even n0 n2"}).with_columns(
        added_at=pl.lit(datetime(2024, 6, 2)).cast(pl.Datetime("us"))
    )
    holdout = holdout_of([("000", "late"), ("001", "001")])

    metrics = run_backtest(products=pl.concat([PRODUCTS, late]), holdout=holdout).metrics

    assert set(metrics["n_users"]) == {1}
    assert metrics.equals(run_backtest(holdout=holdout.tail(1)).metrics)


def test_a_text_that_is_written_later_changes_no_figure():
    late = products_of({"late": "even odd n1 n2 n3 n4"}).with_columns(
        added_at=pl.lit(datetime(2024, 6, 20)).cast(pl.Datetime("us"))
    )

    with_late = run_backtest(products=pl.concat([PRODUCTS, late])).metrics

    assert with_late.equals(plain())


def test_a_sample_of_users_is_asked_when_there_are_many():
    metrics = run_backtest(settings={**SETTINGS, "evaluated_users": 5}).metrics

    assert set(metrics.filter(segment="known")["n_users"]) == {5}


def test_models_without_enough_data_are_left_out_with_the_reason():
    found = run_backtest(products=products_of({f"{i:03}": None for i in range(N)}))

    assert "content" not in set(found.metrics["model"])
    assert "two products with text" in found.skipped["content"]
    # What would be published is of the other model alone, and is judged all the same.
    hybrid, als = (row(found.metrics, model=model)["value"] for model in ("hybrid", "als"))
    assert hybrid == als > 0
    assert judge_promotion(found.metrics).decision == ACCEPTED


def test_a_holdout_of_strangers_is_too_little_data():
    with pytest.raises(TooLittleDataError, match="no user has signals up to 2024-06-01"):
        run_backtest(holdout=holdout_of([("x", "000")]))


def test_a_holdout_in_which_nothing_happened_is_too_little_data():
    with pytest.raises(TooLittleDataError, match="no user has signals up to 2024-06-01"):
        run_backtest(holdout=OWN_NUMBER.clear())


def test_the_tables_show_each_model_with_its_interval_and_whether_it_differs():
    metrics = plain()

    table = metric_table(metrics, target="new_products").splitlines()
    assert table[0] == "| model | recall@20 | ndcg@20 | map@20 | mrr@20 | hit_rate@20 |"
    popular = next(line for line in table if line.startswith("| popular |"))
    found = row(metrics, model="popular", metric="ndcg@20")
    bounds = f"({found['low']:.4f} to {found['high']:.4f})"
    assert f" {found['value']:.4f} {bounds} ▼ |" in popular
    by_segment = segment_table(metrics, target="new_products", metric="ndcg@20").splitlines()
    assert by_segment[0].startswith("| model | known | light |")
    assert len(by_segment) == 2 + 6


def test_light_users_are_those_up_to_the_median_of_the_known():
    is_light, most = light_users(np.array([0, 1, 2, 2, 5, 9, 0]))

    assert most == 2
    assert is_light.tolist() == [False, True, True, True, False, False, False]


def test_without_known_users_nobody_is_light():
    assert not light_users(np.zeros(3))[0].any()


def test_head_products_are_the_fewest_that_make_up_half_of_the_interactions():
    segments = product_segments(np.array([1, 6, 3, 0, 2]))

    # 6 of 12 are half.
    assert {name: np.flatnonzero(is_in).tolist() for name, is_in in segments.items()} == {
        "head": [1],
        "tail": [0, 2, 4],
        "new": [3],
    }


def test_products_nobody_touched_are_all_new():
    assert product_segments(np.zeros(2, int))["new"].all()


def test_weeks_are_counted_from_the_day_after_the_fold():
    moments = pl.Series(
        [
            datetime(2024, 6, 2),
            datetime(2024, 6, 8, 23),
            datetime(2024, 6, 9),
            datetime(2024, 6, 29),
        ]
    )

    assert weeks_after(moments, DAY).tolist() == [1, 1, 2, 4]


def drawn(**changes):
    arguments = {
        "k": 3,
        "exclude": sp.csr_matrix((9_000, 8), dtype=np.float32),
        "eligible": np.ones(8, dtype=bool),
        "seed": 0,
    }
    return random_lists(**{**arguments, **changes})


def test_random_lists_show_every_product_as_often():
    lists = drawn()

    assert (np.diff(np.sort(lists, axis=1), axis=1) > 0).all()
    for place in lists.T:
        # 9,000 / 8 each, within four standard deviations.
        assert np.abs(np.bincount(place) - 1125).max() < 4 * np.sqrt(9000 / 8 * 7 / 8)


def test_random_lists_leave_out_what_they_may_not_show_and_end_when_nothing_is_left():
    exclude = sp.csr_matrix(np.array([[1, 1, 0, 0, 1, 0, 0, 0]] * 20, np.float32))
    eligible = np.array([1, 1, 1, 1, 1, 0, 0, 0], bool)

    lists = drawn(exclude=exclude, eligible=eligible)

    assert {tuple(sorted(row)) for row in lists.tolist()} == {(NOTHING, 2, 3)}
    assert (lists[:, 2] == NOTHING).all()


def test_random_lists_do_not_depend_on_the_threads(monkeypatch):
    found = []
    for n in (1, 3):
        monkeypatch.setattr(threads, "n_threads", lambda n=n: n)
        found.append(drawn().tobytes())
    assert found[0] == found[1]
    assert drawn(seed=1).tobytes() != found[0]


def test_asking_fewer_gives_the_figures_of_those_who_are_asked():
    past = past_of(holdout=pl.concat([OWN_NUMBER, holdout_of([("000", "003"), ("x", "004")])]))
    few = past.ask_fewer(7, seed=3)

    users = few.questions.matrix.user_ids
    assert len(users) == 7 and users.is_sorted() and few.ask_fewer(7, seed=4) is few
    row = past.questions.matrix.user_ids.index_of
    for i, user in enumerate(users):
        whole = past.questions.for_users(np.array([row(user)]))
        one = few.questions.for_users(np.array([i]))
        assert (one.relevant != whole.relevant).nnz == 0 and one.relevant.nnz > 0
        for name in ("is_new", "is_purchase", "week"):
            assert getattr(one, name).tolist() == getattr(whole, name).tolist()
