"""What stands beside a product that nothing is like, and how long what was found alike is kept."""

from datetime import datetime

import duckdb
import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from frames_for_tests import SETTINGS
from polars.testing import assert_frame_equal

from ml_assets.frames import SIMILAR_PRODUCTS
from ml_assets.model_tables import factor_frame, neighbour_frame
from ml_assets.similar import fill_from_category, similar_lists
from ml_assets.warehouse import MissingTableError

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
        ("category", "toys", "last_28_days", 1, "ball", 2.0),
        ("category", "toys", "all_time", 1, "kite", 5.0),
        ("category", "toys", "all_time", 2, "ball", 2.0),
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


def test_a_category_of_which_only_the_product_itself_was_touched_of_late_gives_all_of_it():
    toys = pl.DataFrame({"product_id": ["ball", "kite"], "category": ["toys", "toys"]})
    nothing = pl.DataFrame(schema=SIMILAR_PRODUCTS)

    rows = fill_from_category(nothing, products=toys, popularity=POPULARITY, k=2)

    assert rows.select("product_id", "similar_product_id").rows() == [
        ("ball", "kite"),
        ("kite", "ball"),
    ]


def test_the_list_is_cut():
    assert [row[:2] for row in filled(k=1)] == [("alike", 1), ("new", 1), ("tea", 1)]


def test_without_any_model_every_product_of_a_category_is_filled():
    nothing = pl.DataFrame(schema=SIMILAR_PRODUCTS)
    rows = fill_from_category(nothing, products=PRODUCTS, popularity=POPULARITY, k=1)
    assert rows["product_id"].to_list() == ["alike", "new", "tea"]


# --- kept from run to run -----------------------------------------------------------------------


@pytest.fixture
def warehouse():
    ids = PRODUCTS["product_id"]
    products = PRODUCTS.with_columns(
        title=pl.col("product_id"),
        text=pl.col("product_id"),
        added_at=pl.lit(datetime(2020, 1, 1)),
        is_available=pl.lit(True),
    )
    # By text tea is like alike and new, and nobody is like alone and lamp.
    alike = np.zeros((5, 5), np.float32)
    alike[4, 0] = alike[0, 4] = 0.9
    alike[4, 3] = alike[3, 4] = 0.3
    tables = {
        "marts.products": products,
        "marts.popularity": POPULARITY,
        "ml.item_factors": factor_frame(ids, "product_id", np.zeros((5, 1), np.float32), "factors"),
        "ml.item_neighbours": neighbour_frame(ids, sp.csr_matrix((5, 5)), np.zeros(5, bool)),
        "ml.content_neighbours": neighbour_frame(ids, sp.csr_matrix(alike), np.ones(5, bool)),
    }
    with duckdb.connect() as connection:
        connection.execute("create schema marts; create schema ml")
        for name, frame in tables.items():
            write(connection, name, frame)
        yield connection


def write(warehouse, name, frame):
    warehouse.register("frame", frame.to_arrow())
    warehouse.execute(f"create or replace table {name} as from frame")


def refreshed(warehouse, **changes):
    settings = {**SETTINGS, "similar": 2, "similar_w_content": 0.7, **changes}
    lists, is_kept = similar_lists(warehouse, settings=settings)
    write(warehouse, "ml.similar_products", lists)
    return lists.drop("inputs_hash"), is_kept


def test_what_is_alike_is_kept_while_nothing_changes(warehouse):
    first, was_kept = refreshed(warehouse)
    # What is read again shows by a mark.
    warehouse.execute("update ml.similar_products set score = 0.25 where product_id = 'new'")

    second, is_kept = refreshed(warehouse)

    assert (was_kept, is_kept) == (False, True)
    marked = pl.when(product_id="new").then(0.25).otherwise("score").alias("score")
    assert_frame_equal(second, first.with_columns(marked))


def test_the_popular_ones_of_a_category_are_those_of_today_all_the_same(warehouse):
    refreshed(warehouse)
    warehouse.execute(
        "insert into marts.products by name select 'spade' as product_id, 'garden' "
        "as category, true as is_available"
    )
    refreshed(warehouse)
    warehouse.execute("update marts.popularity set product_id = 'spade' where segment = 'garden'")

    lists, is_kept = refreshed(warehouse)

    assert is_kept
    assert lists.filter(product_id="alone")["similar_product_id"].to_list() == ["spade"]


@pytest.mark.parametrize(
    "change",
    [
        "update marts.products set is_available = false where product_id = 'tea'",
        "update marts.products set title = 'tea' where product_id = 'alike'",
        "delete from marts.products where product_id = 'alike'",
        "update ml.content_neighbours set weights = [0.5::float] where product_id = 'new'",
        "update ml.item_neighbours set is_known = true, other_items = [4], weights = [1] "
        "where product_id = 'lamp'",
        "insert into ml.item_factors select product_id, [1::float]::float[1] from marts.products",
    ],
)
def test_models_and_catalogue_that_changed_are_compared_anew(warehouse, change):
    refreshed(warehouse)
    warehouse.execute(change)

    after, is_kept = refreshed(warehouse)
    warehouse.execute("drop table ml.similar_products")

    assert not is_kept
    assert_frame_equal(after, refreshed(warehouse)[0])


def test_what_two_products_exchange_is_seen(warehouse):
    warehouse.execute("update marts.products set is_available = product_id <> 'tea'")
    refreshed(warehouse)
    warehouse.execute("update marts.products set is_available = product_id <> 'alike'")

    assert not refreshed(warehouse)[1]


def test_another_setting_compares_anew(warehouse):
    refreshed(warehouse)

    assert not refreshed(warehouse, similar=1)[1]


def test_a_table_from_before_there_were_hashes_is_made_anew(warehouse):
    write(warehouse, "ml.similar_products", refreshed(warehouse)[0])

    assert not refreshed(warehouse)[1]


def test_without_models_the_run_is_told_what_to_do(warehouse):
    warehouse.execute("drop table ml.item_neighbours")

    with pytest.raises(MissingTableError, match=r"ml\.item_neighbours is not there yet"):
        refreshed(warehouse)
