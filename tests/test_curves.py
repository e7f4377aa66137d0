"""The curves run through the figures of METRICS; the examples are nobody's choice."""

from datetime import date, datetime
from functools import cache

import polars as pl
import pytest
from frames_for_tests import SETTINGS, checkerboard, popularity_of, products_of, quiet, signals_of
from polars.testing import assert_frame_equal

from ml_assets.backtest import backtest, learn, look_back
from ml_assets.curves import curves
from ml_assets.frames import BLEND_CURVE, DATED_SIGNALS, HOLDOUT, LEARNING_CURVE, RECOMMENDATIONS

DAY = date(2024, 6, 1)
N = 30
PRODUCTS = products_of({f"{i:03}": f"{'odd' if i % 2 else 'even'} n{i % 7}" for i in range(N)})
FIGURES = ["target", "metric", "value", "low", "high", "n_users"]


def shop(**changes):
    """Half of everybody's signals are three months old, the others a week."""
    signals = signals_of(checkerboard(N)).with_columns(
        last_at=pl.when(pl.col("product_id") < "015")
        .then(datetime(2024, 3, 1))
        .otherwise(datetime(2024, 5, 25))
    )
    pairs = [(f"{i:03}", f"{i:03}") for i in range(N)] + [("000", "003"), ("001", "003")]
    holdout = pl.DataFrame(
        {
            "user_id": [user for user, _ in pairs],
            "product_id": [product for _, product in pairs],
            "n_purchases": 1,
            "is_new": [user != "001" or product == "001" for user, product in pairs],
            "first_at": datetime(2024, 6, 3),
        },
        schema_overrides=HOLDOUT,
    )
    settings = {**SETTINGS, "cf_model": "item_item", "w_cf": 0.6, "w_content": 0.4, **changes}
    ids = PRODUCTS["product_id"].to_list()
    return {
        "signals": signals.match_to_schema(DATED_SIGNALS),
        "holdout": holdout,
        "products": PRODUCTS,
        "popularity": popularity_of(popular=ids, last_28_days=ids[:9]),
        "holdout_from": DAY,
        "as_of": date(2024, 6, 29),
        "settings": settings,
    }


def curves_of(shop):
    past = look_back(**shop)
    return curves(
        past,
        learn(past, shop["settings"]),
        signals=shop["signals"],
        products=shop["products"],
        holdout_from=DAY,
        settings=shop["settings"],
        progress=quiet,
    )


@cache
def plain(cf_model="item_item"):
    return curves_of(shop(cf_model=cf_model))


@cache
def figures_of(model, cf_model="item_item"):
    """What METRICS says of a model, of those figures that curves have."""
    asked = shop(cf_model=cf_model)
    past, settings = look_back(**asked), asked["settings"]
    metrics = backtest(past, learn(past, settings), settings=settings, progress=quiet).metrics
    known = metrics.filter(pl.col("metric").str.ends_with("@20"), model=model, segment="known")
    return known.select(FIGURES).filter(pl.col("metric").is_in(plain().blend["metric"].implode()))


def same(found, expected):
    """Whether the figures are the same, in whatever order."""
    order = ["target", "metric"]
    assert len(expected) == 12
    assert_frame_equal(found.select(FIGURES).sort(order), expected.sort(order))
    return True


@pytest.mark.parametrize("cf_model", ["item_item", "als"])
def test_the_blend_curve_runs_through_the_blend_and_its_models(cf_model):
    curve = plain(cf_model).blend

    assert curve.schema == BLEND_CURVE
    assert curve["w_cf"].unique().sort().to_list() == [i / 10 for i in range(11)]
    assert (curve["w_cf"] + curve["w_content"] - 1).abs().max() < 1e-12
    assert same(curve.filter(w_cf=0.6), figures_of("hybrid", cf_model))
    best = curve.filter(target="new_products", metric="ndcg@20")["value"]
    assert best.n_unique() > 1


def test_without_one_of_the_models_there_is_nothing_to_blend():
    without_text = {**shop(), "products": PRODUCTS.with_columns(text=pl.lit(None, pl.String))}

    found = curves_of(without_text)

    assert found.blend.is_empty() and found.blend.schema == BLEND_CURVE
    assert not found.learning.is_empty()


@pytest.mark.parametrize("cf_model", ["item_item", "als"])
def test_all_days_of_history_give_the_figures_of_the_blend(cf_model):
    curve = plain(cf_model).learning

    assert curve.schema == LEARNING_CURVE
    # 92 days from the first of March to the first of June, and the day itself.
    assert curve["n_days"].unique().sort().to_list() == [28, 56, 93]
    assert same(curve.filter(n_days=93), figures_of("hybrid", cf_model))


def test_a_short_history_is_all_that_models_and_users_have():
    whole = shop()
    recent = whole["signals"].filter(pl.col("last_at") > datetime(2024, 5, 5))
    (n_signals,) = plain().learning.filter(n_days=28)["n_signals"].unique()
    recall = dict(
        plain()
        .learning.filter(target="new_products", metric="recall@20")
        .select("n_days", "value")
        .iter_rows()
    )

    assert n_signals == len(recent) < len(whole["signals"])
    # What only old signals speak of is found by its text or by popularity alone.
    assert recall[28] == recall[56] <= recall[93]


def test_examples_are_lists_as_they_are_published_of_the_same_users_each_time():
    found = plain().examples

    assert found.schema == RECOMMENDATIONS
    assert found["user_id"].n_unique() == 5
    assert found.group_by("user_id").len()["len"].to_list() == [SETTINGS["top_n"]] * 5
    bought = shop()["signals"].select("user_id", "product_id")
    assert found.join(bought, on=["user_id", "product_id"]).is_empty()
    turned = shop()
    again = curves_of({**turned, "signals": turned["signals"].reverse()})
    assert_frame_equal(again.examples, found)
    assert_frame_equal(again.blend, plain().blend)
