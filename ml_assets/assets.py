"""The models and lists as Dagster assets: thin, each a call of a function next door."""

from collections.abc import Iterator
from datetime import date
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from ml_assets.backtest import backtest
from ml_assets.content import product_vectors as vectors_of_texts
from ml_assets.evaluation import metric_table
from ml_assets.frames import HOLDOUT, METRICS, POPULARITY, PRODUCTS, SIGNALS, USERS
from ml_assets.models import FactorModel, fit_model, rows_with_values, user_profiles
from ml_assets.recommend import Hybrid, candidate_frame, propose, recommend
from ml_assets.recommend import similar_products as nearest_products
from ml_assets.signal_matrix import (
    SignalMatrix,
    TooLittleDataError,
    available_items,
    build_signal_matrix,
)
from ml_assets.warehouse import Warehouse


class RecommenderSettings(dg.ConfigurableResource):
    """Every setting of the models and lists, in one place.

    Attributes:
        cf_model: Name of the collaborative model in `ml_assets.models.MODELS`.
        factors: Length of its user and item vectors.
        regularization: Of the least squares; found on folds before the holdout, where 30 beat
            implicit's default of 0.01 clearly.
        alpha: Confidence per unit of weight.
        iterations: Alternating passes over users and items.
        content_dimensions: Length of the product vectors.
        w_cf: Weight of the collaborative score, normalised per user.
        w_content: Weight of the content score, normalised per user.
        top_n: Rows per user.
        candidates: Rows per user in `ml.candidates`, at least `top_n`.
        similar: Similar products per product.
        evaluated_users: Most users asked in the holdout, a seeded sample above it.
        block_megabytes: Memory for one block of scores.
        seed: Of everything random.
    """

    cf_model: str = "als"
    factors: int = 64
    regularization: float = 30.0
    alpha: float = 1.0
    iterations: int = 15
    content_dimensions: int = 256
    w_cf: float = 0.7
    w_content: float = 0.3
    top_n: int = 20
    candidates: int = 50
    similar: int = 20
    evaluated_users: int = 50_000
    block_megabytes: int = 256
    seed: int = 20111209

    def as_settings(self) -> dict[str, Any]:
        """Plain values for the pure functions."""
        return {
            **{name: getattr(self, name) for name in type(self).model_fields},
            "block_bytes": self.block_megabytes << 20,
        }

    def checked(self) -> "RecommenderSettings":
        """Itself.

        Raises:
            dg.Failure: naming the setting that makes no sense.
        """
        wrong = {
            "top_n": self.top_n < 1 and "must be at least 1",
            "candidates": self.candidates < self.top_n and f"must be at least top_n, {self.top_n}",
            "factors": self.factors < 1 and "must be at least 1",
            "content_dimensions": self.content_dimensions < 1 and "must be at least 1",
            "iterations": self.iterations < 1 and "must be at least 1",
            "regularization": not self.regularization >= 0 and "must not be negative",
            "alpha": not self.alpha > 0 and "must be above 0",
            "w_cf": not self.w_cf >= 0 and "must not be negative",
            "w_content": (
                not (self.w_content >= 0 and self.w_cf + self.w_content > 0)
                and "must not be negative, nor both weights 0"
            ),
            "block_megabytes": self.block_megabytes < 1 and "must be at least 1",
        }
        complaints = [
            f"{name} {text}, got {getattr(self, name)}" for name, text in wrong.items() if text
        ]
        if complaints:
            raise dg.Failure(
                description=f"recommender settings: {'; '.join(complaints)}. Change the run's "
                "config under resources > recommender.",
                allow_retries=False,
            )
        return self


def _table(*key: str, frame: pl.Schema | None = None) -> dg.AssetIn:
    return dg.AssetIn(list(key), metadata={"columns": frame.names()} if frame else None)


def _vectors(frame: pl.DataFrame, ids: pl.Series, column: str) -> np.ndarray | None:
    """Rows of a factor table in the order of `ids`, zeros where there is none; None if empty."""
    if frame.is_empty():
        return None
    stored = frame[column].to_numpy().astype(np.float32)
    vectors = np.zeros((len(ids), stored.shape[1]), dtype=np.float32)
    known = frame.with_row_index("row").join(
        pl.DataFrame({frame.columns[0]: ids}).with_row_index("place"), on=frame.columns[0]
    )
    vectors[known["place"].to_numpy()] = stored[known["row"].to_numpy()]
    return vectors


def _factor_frame(ids: pl.Series, name: str, vectors: np.ndarray, column: str) -> pl.DataFrame:
    """One row per id with an opinion; a vector of zeros is none."""
    keep = vectors.any(axis=1)
    array = pl.Series(column, np.ascontiguousarray(vectors[keep], dtype=np.float32))
    width = max(1, vectors.shape[1])
    return pl.DataFrame({name: ids.filter(pl.Series(keep)), column: array}).with_columns(
        pl.col(column).cast(pl.Array(pl.Float32, width))
    )


@dg.multi_asset(
    outs={
        "user_factors": dg.AssetOut(
            key=["ml", "user_factors"],
            description="The collaborative model's vector of each user. One row per user.",
            group_name="ml",
            kinds={"python", "duckdb"},
        ),
        "item_factors": dg.AssetOut(
            key=["ml", "item_factors"],
            description="The collaborative model's vector of each product. One row per product; "
            "`array_inner_product` with a user's vector is the raw score.",
            group_name="ml",
            kinds={"python", "duckdb"},
        ),
    },
    ins={
        "signals": _table("marts", "signals", frame=SIGNALS),
        "users": _table("marts", "users", frame=USERS),
        "products": _table("marts", "products", frame=PRODUCTS),
    },
)
def collaborative_model(
    context: dg.AssetExecutionContext,
    signals: pl.DataFrame,
    users: pl.DataFrame,
    products: pl.DataFrame,
    recommender: RecommenderSettings,
) -> Iterator[dg.Output]:
    """Learn what users with similar taste go for."""
    settings = recommender.checked().as_settings()
    matrix = build_signal_matrix(
        signals, user_ids=users["user_id"], product_ids=products["product_id"]
    )
    context.log.info(f"fitting {recommender.cf_model} on {len(signals):,} signals")
    metadata: dict[str, Any] = {"model": recommender.cf_model, "seed": recommender.seed}
    try:
        model = fit_model(recommender.cf_model, matrix, settings=settings, seed=recommender.seed)
        user_factors, item_factors = model.user_factors, model.item_factors
    except TooLittleDataError as reason:
        context.log.warning(f"skipped: {reason}")
        metadata["skipped"] = str(reason)
        user_factors = np.zeros((len(users), 1), np.float32)
        item_factors = np.zeros((len(products), 1), np.float32)
    yield dg.Output(
        _factor_frame(matrix.user_ids, "user_id", user_factors, "factors"),
        "user_factors",
        metadata=metadata,
    )
    yield dg.Output(
        _factor_frame(matrix.product_ids, "product_id", item_factors, "factors"),
        "item_factors",
        metadata=metadata,
    )


@dg.asset(
    key=["ml", "product_vectors"],
    group_name="ml",
    kinds={"python", "scikitlearn", "duckdb"},
    ins={"products": _table("marts", "products", frame=PRODUCTS)},
)
def product_vectors(
    context: dg.AssetExecutionContext, products: pl.DataFrame, recommender: RecommenderSettings
) -> dg.Output[pl.DataFrame]:
    """What each product's text says, as a vector. One row per product that has text."""
    products = products.sort("product_id")
    n_without_text = products["text"].null_count()
    metadata: dict[str, Any] = {"products_without_text": n_without_text}
    try:
        vectors = vectors_of_texts(
            products["text"],
            dimensions=recommender.checked().content_dimensions,
            seed=recommender.seed,
        )
    except TooLittleDataError as reason:
        context.log.warning(f"skipped: {reason}")
        metadata["skipped"] = str(reason)
        vectors = np.zeros((len(products), 1), np.float32)
    return dg.Output(
        _factor_frame(products["product_id"], "product_id", vectors, "vector"), metadata=metadata
    )


@dg.multi_asset(
    outs={
        "candidates": dg.AssetOut(
            key=["ml", "candidates"],
            description="What the models propose to each user, with each model's score "
            "normalised per user. One row per (user, rank), best first.",
            group_name="ml",
            kinds={"python", "duckdb"},
        ),
        "recommendations": dg.AssetOut(
            key=["ml", "recommendations"],
            description="The list of every user, filled by the fallback chain where the models "
            "know too little, with a reason for each row. One row per (user, rank).",
            group_name="ml",
            kinds={"python", "duckdb"},
        ),
    },
    ins={
        "signals": _table("marts", "signals", frame=SIGNALS),
        "users": _table("marts", "users", frame=USERS),
        "products": _table("marts", "products", frame=PRODUCTS),
        "popularity": _table("marts", "popularity", frame=POPULARITY),
        "user_factors": _table("ml", "user_factors"),
        "item_factors": _table("ml", "item_factors"),
        "vectors": _table("ml", "product_vectors"),
    },
)
def lists(
    context: dg.AssetExecutionContext,
    signals: pl.DataFrame,
    users: pl.DataFrame,
    products: pl.DataFrame,
    popularity: pl.DataFrame,
    user_factors: pl.DataFrame,
    item_factors: pl.DataFrame,
    vectors: pl.DataFrame,
    recommender: RecommenderSettings,
) -> Iterator[dg.Output]:
    """Blend the models, rank every user's products, fill up, explain."""
    settings = recommender.checked()
    matrix = build_signal_matrix(
        signals, user_ids=users["user_id"], product_ids=products["product_id"]
    )
    hybrid = _hybrid(matrix, user_factors, item_factors, vectors, settings)
    eligible = available_items(products, matrix.product_ids)
    proposed = propose(
        hybrid,
        k=settings.candidates,
        exclude=matrix.bought,
        eligible=eligible,
        block_bytes=settings.block_megabytes << 20,
        progress=context.log.info,
    )
    candidates = candidate_frame(proposed, matrix)
    yield dg.Output(candidates, "candidates")
    recommendations = recommend(
        proposed,
        matrix=matrix,
        hybrid=hybrid,
        users=users,
        products=products,
        popularity=popularity,
        top_n=settings.top_n,
    )
    sources = recommendations.group_by("source").len("rows").sort("rows", descending=True)
    yield dg.Output(
        recommendations,
        "recommendations",
        metadata={
            "users": recommendations["user_id"].n_unique(),
            "rows_by_source": dg.MetadataValue.md(markdown_table(sources)),
            "sample": dg.MetadataValue.md(markdown_table(sample(recommendations, products))),
        },
    )


def _hybrid(
    matrix: SignalMatrix,
    user_factors: pl.DataFrame,
    item_factors: pl.DataFrame,
    vectors: pl.DataFrame,
    settings: RecommenderSettings,
) -> Hybrid:
    users = _vectors(user_factors, matrix.user_ids, "factors")
    items = _vectors(item_factors, matrix.product_ids, "factors")
    texts = _vectors(vectors, matrix.product_ids, "vector")
    cf = None
    if users is not None and items is not None:
        cf = FactorModel(users, items, rows_with_values(users), rows_with_values(items))
    return Hybrid(
        cf=cf,
        content=None if texts is None else user_profiles(matrix, texts),
        w_cf=settings.w_cf,
        w_content=settings.w_content,
    )


@dg.asset(
    key=["ml", "similar_products"],
    group_name="ml",
    kinds={"python", "duckdb"},
    ins={
        "products": _table("marts", "products", frame=PRODUCTS),
        "item_factors": _table("ml", "item_factors"),
        "vectors": _table("ml", "product_vectors"),
    },
)
def similar_products(
    context: dg.AssetExecutionContext,
    products: pl.DataFrame,
    item_factors: pl.DataFrame,
    vectors: pl.DataFrame,
    recommender: RecommenderSettings,
) -> pl.DataFrame:
    """Products like this one, by text and by who wants them. One row per (product, rank)."""
    settings = recommender.checked()
    product_ids = products["product_id"].sort()
    models = [
        (matrix, weight)
        for matrix, weight in (
            (_vectors(item_factors, product_ids, "factors"), settings.w_cf),
            (_vectors(vectors, product_ids, "vector"), settings.w_content),
        )
        if matrix is not None and weight > 0
    ]
    return nearest_products(
        models,
        products=products,
        product_ids=product_ids,
        k=settings.similar,
        block_bytes=settings.block_megabytes << 20,
        progress=context.log.info,
    )


@dg.asset(
    key=["ml", "offline_metrics"],
    group_name="ml",
    kinds={"python", "duckdb"},
    deps=[["intermediate", "int_as_of"]],
    ins={
        "signals": _table("marts", "backtest_signals", frame=SIGNALS),
        "holdout": _table("marts", "holdout", frame=HOLDOUT),
        "popularity": _table("marts", "backtest_popularity", frame=POPULARITY),
        "products": _table("marts", "products", frame=PRODUCTS),
    },
)
def offline_metrics(
    context: dg.AssetExecutionContext,
    signals: pl.DataFrame,
    holdout: pl.DataFrame,
    popularity: pl.DataFrame,
    products: pl.DataFrame,
    recommender: RecommenderSettings,
    warehouse: dg.ResourceParam[Warehouse],
) -> dg.Output[pl.DataFrame]:
    """How well each model would have done on the last weeks. One row per (fold, model, metric)."""
    holdout_from, as_of = _days(warehouse)
    try:
        metrics, skipped = backtest(
            signals=signals,
            holdout=holdout,
            products=products,
            popularity=popularity,
            holdout_from=holdout_from,
            as_of=as_of,
            k=recommender.top_n,
            settings=recommender.checked().as_settings(),
            progress=context.log.info,
        )
    except TooLittleDataError as reason:
        context.log.warning(f"not evaluated: {reason}")
        return dg.Output(pl.DataFrame(schema=METRICS), metadata={"skipped": str(reason)})
    return dg.Output(
        metrics,
        metadata={
            "fold": f"trained up to {holdout_from}, asked about the days after it up to {as_of}",
            "users": int(metrics["n_users"][0]),
            "metrics": dg.MetadataValue.md(metric_table(metrics)),
            **{f"skipped_{name}": reason for name, reason in skipped.items()},
        },
    )


def _days(warehouse: Warehouse) -> tuple[date, date]:
    with warehouse.connect() as connection:
        row = connection.execute(
            "select holdout_from, as_of from intermediate.int_as_of"
        ).fetchone()
    assert row is not None
    return row


def sample(
    recommendations: pl.DataFrame, products: pl.DataFrame, *, n_users: int = 3, n_rows: int = 5
) -> pl.DataFrame:
    """The head of a few lists, the first user of each source first, with titles."""
    firsts = recommendations.unique("source", keep="first", maintain_order=True)["user_id"]
    chosen = pl.concat([firsts, recommendations["user_id"].unique(maintain_order=True)])
    chosen = chosen.unique(maintain_order=True).head(n_users)
    return (
        recommendations.filter(
            pl.col("user_id").is_in(chosen.implode()) & (pl.col("rank") <= n_rows)
        )
        .join(products.select("product_id", "title"), on="product_id", how="left")
        .sort("user_id", "rank")
        .select("user_id", "rank", "title", pl.col("score").round(2), "source", "reason")
    )


def markdown_table(frame: pl.DataFrame) -> str:
    """A small frame as Markdown."""
    lines = ["| " + " | ".join(frame.columns) + " |", "|---" * len(frame.columns) + "|"]
    for row in frame.iter_rows():
        cells = ["" if cell is None else str(cell).replace("|", "\\|") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
