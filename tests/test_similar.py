"""What stands beside a product that nothing is like."""

import polars as pl

from ml_assets.frames import SIMILAR_PRODUCTS
from ml_assets.similar import fill_from_category

PRODUCTS = pl.DataFrame(
    {
        "product_id": ["alike", "alone", "lamp", "new", "tea"],
        "category": ["food", "garden", None, "food", "food"],
    }
)
POPULARITY = pl.DataFrame(
    [
        ("global", "all", "all_time", 1, "lamp", 9.0),
        ("category", "food", "all_time", 1, "lamp", 9.0),
        ("category", "food", "last_28_days", 1, "tea", 4.0),
        ("category", "food", "last_28_days", 2, "alike", 3.0),
        ("category", "food", "last_28_days", 3, "new", 2.0),
        ("category", "garden", "all_time", 1, "alone", 1.0),
    ],
    schema=["segment_type", "segment", "time_window", "rank", "product_id", "score"],
    orient="row",
).with_columns(pl.col("rank").cast(pl.Int32))
SIMILAR = pl.DataFrame(
    {"product_id": ["alike"], "rank": [1], "similar_product_id": ["tea"], "score": [0.5]},
    schema=SIMILAR_PRODUCTS,
)


def filled(k):
    rows = fill_from_category(SIMILAR, products=PRODUCTS, popularity=POPULARITY, k=k)
    return rows.rows()


def test_a_product_that_nothing_is_like_gets_its_categorys_popular_ones_without_itself():
    assert filled(k=2) == [
        ("alike", 1, "tea", 0.5, "similar"),
        ("new", 1, "tea", 4.0, "category"),
        ("new", 2, "alike", 3.0, "category"),
        ("tea", 1, "alike", 3.0, "category"),
        ("tea", 2, "new", 2.0, "category"),
    ]


def test_one_without_category_or_alone_in_it_gets_none():
    assert not {"lamp", "alone"} & {product_id for product_id, *_ in filled(k=9)}


def test_the_list_is_cut():
    assert [row[:2] for row in filled(k=1)] == [("alike", 1), ("new", 1), ("tea", 1)]


def test_without_any_model_every_product_of_a_category_is_filled():
    nothing = pl.DataFrame(schema=SIMILAR_PRODUCTS)
    rows = fill_from_category(nothing, products=PRODUCTS, popularity=POPULARITY, k=1)
    assert rows["product_id"].to_list() == ["alike", "new", "tea"]
