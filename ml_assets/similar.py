"""Similar products for every product: what the models leave without, its category fills.

Belongs here: what is shown beside a product that nothing is like, and how long what was found alike
is kept. Does not belong here: how like products are (`model_tables.py`), ranking them
(`recommend.py`).
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import duckdb
import polars as pl

from ml_assets import recommend
from ml_assets.frames import (
    PRODUCTS,
    PRODUCTS_BY_CATEGORY,
    SCORED_POPULARITY,
    SIMILAR_LISTS,
    SIMILAR_PRODUCTS,
)
from ml_assets.model_tables import likeness_of
from ml_assets.warehouse import read_table, table_hash

# What decides which products are alike, beside the settings.
_MADE_FROM: dict[str, list[str] | None] = {
    "marts.products": PRODUCTS.names(),
    "ml.item_factors": None,
    "ml.item_neighbours": None,
    "ml.content_neighbours": None,
}

# A category's list of late first, as in the fallback chain.
_WINDOWS = ("last_28_days", "all_time")


def similar_lists(
    connection: duckdb.DuckDBPyConnection, *, settings: Mapping[str, Any]
) -> tuple[pl.DataFrame, bool]:
    """Today's lists, and whether what is alike was kept as it was found before.

    It is kept while models, catalogue and settings are the same, which the column inputs_hash
    tells; the popular products of a category are those of today in any case.

    Args:
        connection: The warehouse.
        settings: `similar`, `similar_w_content`, `content_neighbours`, `block_bytes`, and whatever
            else decides.

    Returns:
        SIMILAR_LISTS with inputs_hash (the same in every row), and whether it was kept.

    Raises:
        MissingTableError: if the models or the catalogue are not there yet.
    """
    products = read_table(connection, "marts.products", PRODUCTS_BY_CATEGORY.names())
    popularity = read_table(connection, "marts.popularity", SCORED_POPULARITY.names())
    made_from = _inputs_hash(connection, settings)
    kept = _found_before(connection, made_from)
    similar = _compared(connection, products, settings) if kept is None else kept
    lists = fill_from_category(
        similar, products=products, popularity=popularity, k=settings["similar"]
    )
    return lists.with_columns(inputs_hash=pl.lit(made_from, pl.UInt64)), kept is not None


def _inputs_hash(connection: duckdb.DuckDBPyConnection, settings: Mapping[str, Any]) -> int:
    # Another release of DuckDB may hash otherwise.
    what = f"{duckdb.__version__}\n{json.dumps(dict(settings), sort_keys=True)}"
    digest = hashlib.blake2b(what.encode(), digest_size=8)
    for table, columns in _MADE_FROM.items():
        digest.update(f"\n{table} {table_hash(connection, table, columns)}".encode())
    return int.from_bytes(digest.digest(), "little")


def _found_before(connection: duckdb.DuckDBPyConnection, inputs_hash: int) -> pl.DataFrame | None:
    try:
        found = connection.sql(
            f"select {', '.join(SIMILAR_PRODUCTS.names())} from ml.similar_products"
            " where source = 'similar' and inputs_hash = ?",
            params=[inputs_hash],
        ).pl()
    except (duckdb.CatalogException, duckdb.BinderException):
        # A first run, or a warehouse from before there was such a column.
        return None
    return None if found.is_empty() else found


def _compared(
    connection: duckdb.DuckDBPyConnection, products: pl.DataFrame, settings: Mapping[str, Any]
) -> pl.DataFrame:
    product_ids = products["product_id"].sort()
    likeness = likeness_of(
        product_ids,
        item_factors=read_table(connection, "ml.item_factors"),
        item_neighbours=read_table(connection, "ml.item_neighbours"),
        content_neighbours=read_table(connection, "ml.content_neighbours"),
        k=settings["content_neighbours"],
        block_bytes=settings["block_bytes"],
        w_cf=1 - settings["similar_w_content"],
        w_content=settings["similar_w_content"],
    )
    return recommend.similar_products(
        likeness, products=products, product_ids=product_ids, k=settings["similar"]
    )


def fill_from_category(
    similar: pl.DataFrame, *, products: pl.DataFrame, popularity: pl.DataFrame, k: int
) -> pl.DataFrame:
    """Give each product without similar ones the popular ones of its category.

    Args:
        similar: SIMILAR_PRODUCTS.
        products: PRODUCTS_BY_CATEGORY; the category may be null.
        popularity: SCORED_POPULARITY.
        k: Rows a product, at most.

    Returns:
        SIMILAR_LISTS, sorted by product and rank; source is 'similar' or 'category', one for all
        rows of a product. The score of the latter is the popularity's. A product without category,
        or alone in it, has no rows.
    """
    lonely = products.select("product_id", "category").join(similar, on="product_id", how="anti")
    chosen = (
        popularity.filter(
            (pl.col("segment_type") == "category") & pl.col("time_window").is_in(_WINDOWS)
        )
        .join(
            pl.DataFrame({"time_window": _WINDOWS}).with_row_index("window"),
            on="time_window",
        )
        .select("window", "rank", "score", category="segment", similar_product_id="product_id")
    )
    filled = (
        lonely.join(chosen, on="category")
        .filter(pl.col("product_id") != pl.col("similar_product_id"))
        # Of late, unless that is the product alone.
        .filter(pl.col("window") == pl.col("window").min().over("product_id"))
        .sort("product_id", "rank")
        # A product of the list itself leaves a gap.
        .with_columns(
            rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over("product_id"),
            source=pl.lit("category"),
        )
        .filter(pl.col("rank") <= k)
    )
    return (
        pl.concat(
            [
                similar.with_columns(source=pl.lit("similar")).select(SIMILAR_LISTS.names()),
                filled.select(SIMILAR_LISTS.names()),
            ]
        )
        .sort("product_id", "rank")
        .match_to_schema(SIMILAR_LISTS)
    )
