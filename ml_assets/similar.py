"""Similar products for every product: what the models leave without, its category fills.

Belongs here: what is shown beside a product that nothing is like. Does not belong here: how like
products are (`model_tables.py`), ranking them (`recommend.py`).
"""

import polars as pl

from ml_assets.frames import SIMILAR_LISTS

# A category's list of late first, as in the fallback chain.
_WINDOWS = ("last_28_days", "all_time")


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
        .filter(pl.col("window") == pl.col("window").min().over("segment"))
        .select("rank", "score", category="segment", similar_product_id="product_id")
    )
    filled = (
        lonely.join(chosen, on="category")
        .filter(pl.col("product_id") != pl.col("similar_product_id"))
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
