"""The models and lists as Dagster assets: thin, each a call of a function next door."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from functools import cache, partial
from typing import Any

import dagster as dg
import duckdb
import numpy as np
import polars as pl
from pydantic import Field

from ml_assets.frames import (
    BLEND_CURVE,
    DATED_SIGNALS,
    HOLDOUT,
    LEARNING_CURVE,
    LIST_TABLES,
    MARGIN_CURVE,
    METRICS,
    NEIGHBOURS,
    POPULARITY,
    PRODUCTS,
    RECOMMENDATIONS,
    RULE_COST,
    SIGNALS,
    USERS,
)
from ml_assets.warehouse import MissingTableError, Warehouse, read_table

# What computes is imported inside the step that needs it: compilers and models take seconds, and
# whoever only looks at the assets needs none of them. See `orchestration.gates.import_early`.

# Models that can be kept while users' lists are made again; the baselines are for comparison.
CF_MODELS = (
    "item_item",
    "als",
    "graph_filter",
    "gf_cf",
    "bspm",
    "item_knn",
    "rp3beta",
    "ease",
    "ensemble",
)

USERS_OF_A_CURVE = 5_000

# What lists are made from; None for all columns.
LISTS_FROM: dict[str, list[str] | None] = {
    "marts.signals": SIGNALS.names(),
    "marts.users": USERS.names(),
    "marts.products": PRODUCTS.names(),
    "marts.popularity": POPULARITY.names(),
    "staging.merchandising_rules": None,
    "ml.user_factors": None,
    "ml.item_factors": None,
    "ml.item_neighbours": None,
    "ml.product_vectors": None,
    "ml.content_neighbours": None,
}


class RecommenderSettings(dg.ConfigurableResource):
    """Every setting of the models and lists, in one place.

    Attributes:
        cf_model: The collaborative model, one of `CF_MODELS`.
        neighbours: Of all but als: products that follow from one.
        user_power: Of item_item: how much less a user with many products says about each.
        source_power: Of item_item: how much less a popular product says about taste.
        target_power: Of item_item: how much less a popular product is proposed.
        shrinkage: Of item_item: what a product's degree is raised by, so that one that was
            touched twice is not taken for a rarity.
        history_cap: Of item_item: most products of a user that are learned from, those that count
            most in their history; 0 for all. Time to learn grows with its square. Lists are made
            from all of them in any case.
        factors: Of als: length of its user and item vectors.
        regularization: Of als: of the least squares; found on folds before the holdout, where 30
            beat implicit's default of 0.01 clearly.
        regularization_power: Of als: how much more a user or product with much history is
            regularised; above 0 a good `regularization` is far smaller.
        alpha: Of als: confidence per unit of weight.
        iterations: Of als: alternating passes over users and items.
        filter_user_power: Of graph_filter: how much less a user with many products says about each.
        filter_item_power: Of graph_filter: how much less a popular product counts in the graph.
        filter_source_power: Of graph_filter: how much less a popular product says about taste.
        filter_target_power: Of graph_filter: how much more a popular product is proposed.
        filter_degree: Of graph_filter: steps through the graph, the degree of its polynomial.
        filter_gamma: Of graph_filter: how sharp it is; the smaller, the more faint tastes count.
        low_pass_factors: Of gf_cf and bspm: singular vectors of the low-pass filter.
        low_pass_weight: Of gf_cf and bspm: what the low-pass filter counts beside one step.
        sharpening: Of bspm: how long tastes are sharpened; its authors had 2.5 on Gowalla.
        sharpening_steps: Of bspm: in how many steps.
        knn_weighting: Of item_knn: `cosine`, `bm25` or `tfidf`.
        walk_power: Of rp3beta: of the chances of each step.
        walk_popularity_power: Of rp3beta: how much less a popular product is proposed.
        ease_regularization: Of ease: the larger, the less rare coincidences count.
        ensemble: Of ensemble: the weight of each member, any of the models but als; the job
            tune_settings learns them.
        memory_megabytes: Most memory of one model while it is learned, beside the signals; one
            that needs more is left out with a reason.
        content_neighbours: Products whose texts are most like one's, kept for each product.
        content_dimensions: Of als: length of the product vectors.
        w_cf: Weight of the collaborative score, normalised per user.
        w_content: Weight of the content score, normalised per user.
        top_n: Rows per user.
        candidates: Rows per user in `ml.candidates`, at least `top_n`.
        similar: Similar products per product.
        similar_w_content: Of similar products: what being alike by text counts, from 0 to 1; the
            rest is who wants them. Beside a product people look for others of its kind: with taste
            first, thin data put a socket beside bananas.
        evaluated_users: Most users asked in the holdout, a seeded sample above it; of 20,000 the
            means are known to 0.003 (Recall@20, new products) or 0.004 (any next).
        users_per_part: Users whose lists are made and written at a time, which bounds memory.
        block_megabytes: Memory for scores of factor models, all threads together.
        seed: Of everything random.
        use_tuned: Whether the settings that the job tune_settings found replace those above.
    """

    cf_model: str = "item_item"
    neighbours: int = 200
    user_power: float = 0.9
    source_power: float = 0.4
    target_power: float = 0.4
    shrinkage: float = 5.0
    history_cap: int = 0
    factors: int = 64
    regularization: float = 30.0
    regularization_power: float = 0.0
    alpha: float = 1.0
    iterations: int = 15
    filter_user_power: float = 0.1
    filter_item_power: float = 0.45
    filter_source_power: float = 0.1
    filter_target_power: float = 0.3
    filter_degree: int = 4
    filter_gamma: float = 0.05
    low_pass_factors: int = 256
    low_pass_weight: float = 0.3
    sharpening: float = 0.5
    sharpening_steps: int = 1
    knn_weighting: str = "tfidf"
    walk_power: float = 0.7
    walk_popularity_power: float = 0.3
    ease_regularization: float = 250.0
    ensemble: dict[str, float] = Field(default={"item_item": 0.5, "gf_cf": 0.5})
    memory_megabytes: int = 4096
    content_neighbours: int = 50
    content_dimensions: int = 256
    w_cf: float = 0.7
    w_content: float = 0.3
    top_n: int = 20
    candidates: int = 50
    similar: int = 20
    similar_w_content: float = 0.7
    evaluated_users: int = 20_000
    users_per_part: int = 25_000
    block_megabytes: int = 16
    seed: int = 20111209
    use_tuned: bool = True

    def as_settings(self) -> dict[str, Any]:
        """Plain values for the pure functions."""
        return {
            **self.model_dump(exclude={"use_tuned"}),
            "block_bytes": self.block_megabytes << 20,
        }

    def in_force(self, warehouse: Warehouse) -> "RecommenderSettings":
        """The settings to run with: these, or where a search found better ones, those.

        Raises:
            dg.Failure: naming the setting that makes no sense.
        """
        if not self.use_tuned:
            return self.checked()
        with warehouse.connect() as connection:
            try:
                tuned = connection.execute("select settings from ml.tuned_settings").fetchall()
            except duckdb.CatalogException:
                tuned = []
        found = json.loads(tuned[0][0]) if tuned else {}
        unknown = sorted(set(found) - set(type(self).model_fields))
        if unknown:
            raise dg.Failure(
                description=f"ml.tuned_settings has {', '.join(unknown)}, which this release does "
                "not know. Run the job tune_settings again, or set use_tuned: false.",
                allow_retries=False,
            )
        return self.model_copy(update=found).checked()

    def checked(self) -> "RecommenderSettings":
        """Itself.

        Raises:
            dg.Failure: naming the setting that makes no sense.
        """
        from ml_assets.linear_models import KNN_WEIGHTINGS
        from ml_assets.models import ENSEMBLE_MEMBERS

        wrong: dict[str, str | bool] = {
            name: not np.isfinite(value) and "must be a number"
            for name, value in self.model_dump().items()
            if isinstance(value, float)
        }
        wrong |= {
            "cf_model": self.cf_model not in CF_MODELS and f"must be one of {', '.join(CF_MODELS)}",
            "neighbours": self.neighbours < 1 and "must be at least 1",
            "content_neighbours": self.content_neighbours < 1 and "must be at least 1",
            "shrinkage": not self.shrinkage >= 0 and "must not be negative",
            "history_cap": self.history_cap < 0 and "must not be negative",
            "filter_degree": not 1 <= self.filter_degree <= 12 and "must be from 1 to 12",
            "filter_gamma": not self.filter_gamma > 0 and "must be above 0",
            "low_pass_factors": self.low_pass_factors < 1 and "must be at least 1",
            "sharpening_steps": self.sharpening_steps < 0 and "must not be negative",
            "knn_weighting": self.knn_weighting not in KNN_WEIGHTINGS
            and f"must be one of {', '.join(KNN_WEIGHTINGS)}",
            "walk_power": not self.walk_power > 0 and "must be above 0",
            "ease_regularization": not self.ease_regularization > 0 and "must be above 0",
            "ensemble": not (
                set(self.ensemble) <= set(ENSEMBLE_MEMBERS)
                and all(weight >= 0 for weight in self.ensemble.values())
                and any(weight > 0 for weight in self.ensemble.values())
            )
            and f"must give weights, one of them above 0, to some of {', '.join(ENSEMBLE_MEMBERS)}",
            "memory_megabytes": self.memory_megabytes < 1 and "must be at least 1",
            "users_per_part": self.users_per_part < 1 and "must be at least 1",
            "evaluated_users": self.evaluated_users < 1 and "must be at least 1",
            "similar": self.similar < 1 and "must be at least 1",
            "top_n": self.top_n < 1 and "must be at least 1",
            "candidates": self.candidates < self.top_n and f"must be at least top_n, {self.top_n}",
            "factors": self.factors < 1 and "must be at least 1",
            "content_dimensions": self.content_dimensions < 1 and "must be at least 1",
            "iterations": self.iterations < 1 and "must be at least 1",
            "regularization": not self.regularization >= 0 and "must not be negative",
            "regularization_power": not self.regularization_power >= 0 and "must not be negative",
            "alpha": not self.alpha > 0 and "must be above 0",
            "w_cf": not self.w_cf >= 0 and "must not be negative",
            "w_content": (
                not (self.w_content >= 0 and self.w_cf + self.w_content > 0)
                and "must not be negative, nor both weights 0"
            ),
            "similar_w_content": not 0 <= self.similar_w_content <= 1 and "must be from 0 to 1",
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


@dg.multi_asset(
    outs={
        "item_factors": dg.AssetOut(
            key=["ml", "item_factors"],
            description="als: its vector of each product, one row per product; "
            "`array_inner_product` with a user's vector is the raw score. Empty for the others.",
            group_name="ml",
            kinds={"python", "duckdb"},
        ),
        "item_neighbours": dg.AssetOut(
            key=["ml", "item_neighbours"],
            description="All models but als: which products follow from one, a row per product; "
            "`other_items` are values of `item`, and the weighted sum of `weights` over a user's "
            "history is the raw score. Empty for als.",
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
    warehouse: dg.ResourceParam[Warehouse],
) -> Iterator[dg.Output]:
    """Learn what users with similar taste go for."""
    from ml_assets.item_item import ItemItemModel
    from ml_assets.model_tables import factor_frame, neighbour_frame
    from ml_assets.models import FactorModel, Model, fit_model
    from ml_assets.signal_matrix import CannotFitError, build_signal_matrix

    recommender = recommender.in_force(warehouse)
    settings = recommender.as_settings()
    matrix = build_signal_matrix(
        signals, user_ids=users["user_id"], product_ids=products["product_id"]
    )
    context.log.info(f"fitting {recommender.cf_model} on {len(signals):,} signals")
    metadata: dict[str, Any] = {"model": recommender.cf_model, "seed": recommender.seed}
    model: Model | None = None
    try:
        model = fit_model(recommender.cf_model, matrix, settings=settings, seed=recommender.seed)
    except CannotFitError as reason:
        context.log.warning(f"skipped: {reason}")
        metadata["skipped"] = str(reason)
    is_item_item = isinstance(model, ItemItemModel)
    factors = np.zeros((len(products), 1), np.float32)
    if isinstance(model, FactorModel):
        factors = model.item_factors
    yield dg.Output(
        factor_frame(matrix.product_ids, "product_id", factors, "factors"),
        "item_factors",
        metadata={} if is_item_item else metadata,
    )
    yield dg.Output(
        neighbour_frame(matrix.product_ids, model.follows, model.knows_item)
        if isinstance(model, ItemItemModel)
        else pl.DataFrame(schema=NEIGHBOURS),
        "item_neighbours",
        metadata=metadata if is_item_item else {},
    )


@dg.asset(
    key=["ml", "user_factors"],
    group_name="ml",
    kinds={"python", "duckdb"},
    deps=[["marts", "signals"], ["marts", "users"], ["marts", "products"], ["ml", "item_factors"]],
)
def user_factors(
    recommender: RecommenderSettings, warehouse: dg.ResourceParam[Warehouse]
) -> pl.DataFrame:
    """als: its vector of each user, solved from their signals of today. One row per user."""
    from ml_assets.model_tables import factor_frame, vectors_of
    from ml_assets.models import als_user_factors
    from ml_assets.signal_matrix import build_signal_matrix

    with warehouse.connect() as connection:
        table = _read_all(connection, {"marts.products": PRODUCTS.names(), "ml.item_factors": None})
        product_ids = table["marts.products"]["product_id"]
        items = vectors_of(table["ml.item_factors"], product_ids.sort(), "factors")
        if items is None:
            # Without reading millions of signals for nothing.
            return pl.DataFrame(schema={"user_id": pl.String, "factors": pl.Array(pl.Float32, 1)})
        table = _read_all(
            connection, {"marts.signals": SIGNALS.names(), "marts.users": USERS.names()}
        )
    matrix = build_signal_matrix(
        table["marts.signals"], user_ids=table["marts.users"]["user_id"], product_ids=product_ids
    )
    settings = recommender.in_force(warehouse).as_settings()
    vectors = als_user_factors(items, matrix.history, settings=settings)
    return factor_frame(matrix.user_ids, "user_id", vectors, "factors")


@dg.multi_asset(
    outs={
        "product_vectors": dg.AssetOut(
            key=["ml", "product_vectors"],
            description="als: what each product's text says, as a vector, one row per product "
            "that has text. Empty for the others, which compare the words themselves.",
            group_name="ml",
            kinds={"python", "scikitlearn", "duckdb"},
        ),
        "content_neighbours": dg.AssetOut(
            key=["ml", "content_neighbours"],
            description="Which products' texts are alike, one row per product; `other_items` are "
            "values of `item`, `weights` cosines.",
            group_name="ml",
            kinds={"python", "duckdb"},
        ),
    },
    ins={"products": _table("marts", "products", frame=PRODUCTS)},
)
def content_model(
    context: dg.AssetExecutionContext,
    products: pl.DataFrame,
    recommender: RecommenderSettings,
    warehouse: dg.ResourceParam[Warehouse],
) -> Iterator[dg.Output]:
    """Learn which products' texts are alike."""
    from ml_assets.content import product_vectors, text_neighbours, tfidf
    from ml_assets.model_tables import factor_frame, neighbour_frame
    from ml_assets.signal_matrix import TooLittleDataError

    products = products.sort("product_id")
    settings = recommender.in_force(warehouse)
    metadata: dict[str, Any] = {"products_without_text": products["text"].null_count()}
    vectors = np.zeros((len(products), 1), np.float32)
    frame = pl.DataFrame(schema=NEIGHBOURS)
    try:
        terms = tfidf(products["text"])
        alike = text_neighbours(terms, k=settings.content_neighbours)
        frame = neighbour_frame(products["product_id"], alike, np.diff(terms.indptr) > 0)
        if settings.cf_model == "als":
            vectors = product_vectors(
                products["text"], dimensions=settings.content_dimensions, seed=settings.seed
            )
    except TooLittleDataError as reason:
        context.log.warning(f"skipped: {reason}")
        metadata["skipped"] = str(reason)
    yield dg.Output(
        factor_frame(products["product_id"], "product_id", vectors, "vector"),
        "product_vectors",
        metadata=metadata,
    )
    yield dg.Output(frame, "content_neighbours")


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            ["ml", table],
            # The last one for a macro that explains them.
            deps=[name.split(".") for name in (*LISTS_FROM, "marts.signal_days")],
            description=description,
            group_name="ml",
            kinds={"python", "duckdb"},
        )
        for table, description in LIST_TABLES.items()
    ]
)
def lists(
    context: dg.AssetExecutionContext,
    recommender: RecommenderSettings,
    warehouse: dg.ResourceParam[Warehouse],
) -> Iterator[dg.MaterializeResult]:
    """Blend the models, rank the products of every user who is touched, fill up, explain."""
    from ml_assets.content import terms_or_reason
    from ml_assets.explain import create_macros
    from ml_assets.lists import make_lists
    from ml_assets.model_tables import hybrid_of
    from ml_assets.rule_set import RulesError, days_between
    from ml_assets.rules import (
        LAST_DONE,
        active_rules,
        compile_rules,
        make_relations,
        problems_to_come,
        write_rules,
    )
    from ml_assets.signal_matrix import build_signal_matrix

    settings = recommender.in_force(warehouse)
    _, as_of = _days(warehouse)
    with warehouse.connect() as connection:
        table = _read_all(connection, LISTS_FROM)
        # Popped: the tables of millions of rows are given back before lists take their memory.
        matrix = build_signal_matrix(
            table.pop("marts.signals"),
            user_ids=table["marts.users"]["user_id"],
            product_ids=table["marts.products"]["product_id"],
        )
        hybrid = hybrid_of(
            matrix,
            user_factors=table.pop("ml.user_factors"),
            item_factors=table.pop("ml.item_factors"),
            item_neighbours=table.pop("ml.item_neighbours"),
            vectors=table.pop("ml.product_vectors"),
            content_neighbours=table.pop("ml.content_neighbours"),
            w_cf=settings.w_cf,
            w_content=settings.w_content,
        )
        texts = table["marts.products"].sort("product_id")["text"]
        written = table["staging.merchandising_rules"]
        # Once for the rules of the day and those to come.
        relations = cache(partial(make_relations, connection, as_of))
        try:
            active = active_rules(written, as_of=as_of)
            rules = compile_rules(
                connection,
                active,
                matrix=matrix,
                relations=relations,
                days_since=lambda: days_between(matrix, connection.sql(LAST_DONE).pl(), day=as_of),
                terms=lambda: terms_or_reason(texts)[0],
                top_n=settings.top_n,
                seed=settings.seed,
            )
        except RulesError as error:
            raise dg.Failure(
                description=f"merchandising rules: {error}. Correct "
                "dbt_project/seeds/merchandising_rules.csv and run again; what is published stays.",
                allow_retries=False,
            ) from None
        for problem in problems_to_come(connection, written, as_of=as_of, relations=relations):
            context.log.warning(problem)
        report = make_lists(
            connection,
            matrix=matrix,
            hybrid=hybrid,
            users=table["marts.users"],
            products=table["marts.products"],
            popularity=table["marts.popularity"],
            settings=settings.as_settings(),
            progress=context.log.info,
            rules=rules,
        )
        write_rules(connection, active)
        create_macros(connection, hybrid, settings=settings.as_settings())
        sources = connection.sql(
            "select source, count(*) as rows from ml.recommendations group by all order by 2 desc"
        ).pl()
        example = sample(connection)
    for name in LIST_TABLES:
        metadata: dict[str, Any] = {"dagster/row_count": report.n_rows[name]}
        if name == "recommendations":
            metadata |= {
                "users": report.n_users,
                "users_scored": report.n_scored,
                "why": str(report.touched),
                "rules_in_force": ", ".join(rule.rule_id for rule in active) or "none",
                "rows_by_source": dg.MetadataValue.md(markdown_table(sources)),
                "sample": dg.MetadataValue.md(markdown_table(example)),
            }
        yield dg.MaterializeResult(asset_key=["ml", name], metadata=metadata)


def _read_all(
    connection: duckdb.DuckDBPyConnection, tables: Mapping[str, list[str] | None]
) -> dict[str, pl.DataFrame]:
    with failed_if_missing():
        return {name: read_table(connection, name, columns) for name, columns in tables.items()}


@contextmanager
def failed_if_missing() -> Iterator[None]:
    """A table that is not there yet ends the step with its sentence; trying again will not help."""
    try:
        yield
    except MissingTableError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None


@dg.asset(
    key=["ml", "similar_products"],
    group_name="ml",
    kinds={"python", "duckdb"},
    deps=[
        ["marts", "products"],
        ["marts", "popularity"],
        ["ml", "item_factors"],
        ["ml", "item_neighbours"],
        ["ml", "content_neighbours"],
    ],
)
def similar_products(
    context: dg.AssetExecutionContext,
    recommender: RecommenderSettings,
    warehouse: dg.ResourceParam[Warehouse],
) -> pl.DataFrame:
    """Products like this one, by text and by who wants them; else popular ones of its category.

    One row per (product, rank).
    """
    from ml_assets.similar import similar_lists

    settings = recommender.in_force(warehouse).as_settings()
    with warehouse.connect() as connection, failed_if_missing():
        lists, is_kept = similar_lists(connection, settings=settings)
    if is_kept:
        context.log.info("models and catalogue are as before: what is alike was kept")
    return lists


# The tables of the backtest by name: schema, columns and description.
_BACKTEST: dict[str, tuple[str, pl.Schema, str]] = {
    "offline_metrics": (
        "ml",
        METRICS,
        "How well each model would have done on the last weeks, and how sure that is. One row per"
        " (fold, model, target, segment, metric).",
    ),
    "blend_curve": (
        "ml",
        BLEND_CURVE,
        "How good the blend would be with other weights, on the fold of offline_metrics. One row"
        " per (w_cf, target, metric).",
    ),
    "learning_curve": (
        "ml",
        LEARNING_CURVE,
        "How good the blend would be, had the shop's records begun so many days before the fold."
        " One row per (n_days, target, metric).",
    ),
    "backtest_examples": (
        "ml",
        RECOMMENDATIONS,
        "Lists of a few users as they would have been made before the fold of offline_metrics. One"
        " row per (user, rank).",
    ),
    "rule_cost": (
        "marts",
        RULE_COST,
        "What each merchandising rule did to today's lists, and what lists of the fold of"
        " offline_metrics find, show and earn with and without it. One row per rule.",
    ),
    "margin_curve": (
        "ml",
        MARGIN_CURVE,
        "What lists would find and earn if margins counted so much beside taste, on the fold of"
        " offline_metrics. One row per weight.",
    ),
}


@dg.multi_asset(
    outs={
        name: dg.AssetOut(
            key=[schema, name],
            description=says,
            group_name="ml",
            kinds={"python", "duckdb"},
            is_required=False,
        )
        for name, (schema, _, says) in _BACKTEST.items()
    },
    can_subset=True,
    deps=[
        ["intermediate", "int_as_of"],
        ["intermediate", "int_daily_signals"],
        ["intermediate", "int_backtest_undone_days"],
        ["ml", "rule_ledger"],
    ],
    ins={
        "signals": _table("marts", "backtest_signals", frame=DATED_SIGNALS),
        "holdout": _table("marts", "holdout", frame=HOLDOUT),
        "popularity": _table("marts", "backtest_popularity", frame=POPULARITY),
        "products": _table("marts", "products", frame=PRODUCTS),
    },
)
def backtest_of_last_weeks(
    context: dg.AssetExecutionContext,
    signals: pl.DataFrame,
    holdout: pl.DataFrame,
    popularity: pl.DataFrame,
    products: pl.DataFrame,
    recommender: RecommenderSettings,
    warehouse: dg.ResourceParam[Warehouse],
) -> Iterator[dg.Output[pl.DataFrame]]:
    """Learn from all but the last weeks and ask about them: as it is, otherwise, and from less."""
    from ml_assets.backtest import backtest, learn, look_back
    from ml_assets.curves import curves
    from ml_assets.rule_cost import price_warehouse
    from ml_assets.signal_matrix import CannotFitError

    holdout_from, as_of = _days(warehouse)
    settings = recommender.in_force(warehouse).as_settings()
    live = _live_settings(warehouse)
    asked = set(context.op_execution_context.selected_output_names)
    try:
        past = look_back(
            signals=signals,
            holdout=holdout,
            products=products,
            popularity=popularity,
            holdout_from=holdout_from,
            as_of=as_of,
            settings=settings,
        )
    except CannotFitError as reason:
        context.log.warning(f"not evaluated: {reason}")
        for name in sorted(asked):
            nothing = pl.DataFrame(schema=_BACKTEST[name][1])
            yield dg.Output(nothing, name, metadata={"skipped": str(reason)})
        return
    learned = learn(past, settings)
    few = past.ask_fewer(USERS_OF_A_CURVE, seed=settings["seed"])
    how: dict[str, Any] = {"settings": settings, "progress": context.log.info}
    frames: dict[str, pl.DataFrame] = {}
    metadata: dict[str, dict[str, Any]] = {}
    if "offline_metrics" in asked:
        found = backtest(past, learned, live=live if live != settings else None, **how)
        frames["offline_metrics"] = found.metrics
        metadata["offline_metrics"] = {
            "fold": f"trained up to {holdout_from}, asked about the days after it up to {as_of}",
            "how_to_read": "intervals hold 95 % of resampled users; marked figures differ from the "
            "hybrid's: the interval of the difference on the same users excludes zero",
            **found.facts,
            **{f"skipped_{name}": reason for name, reason in found.skipped.items()},
            **_metric_tables(found.metrics),
        }
    if asked & {"blend_curve", "learning_curve", "backtest_examples"}:
        drawn = curves(
            few, learned, signals=signals, products=products, holdout_from=holdout_from, **how
        )
        frames |= {
            "blend_curve": drawn.blend,
            "learning_curve": drawn.learning,
            "backtest_examples": drawn.examples,
        }
    if asked & {"rule_cost", "margin_curve"}:
        with warehouse.connect() as connection:
            prices = price_warehouse(
                connection,
                few,
                learned,
                signals=signals,
                holdout_from=holdout_from,
                as_of=as_of,
                **how,
            )
        frames |= {"rule_cost": prices.rules, "margin_curve": prices.margin}
        shown = prices.rules.select(
            "rule_id", "action", "n_kept_off", "n_moved", "n_placed",
            pl.col("^(ndcg|diversity|margin)_(with|without)$").round(4),
        )  # fmt: skip
        curve = prices.margin.select(pl.all().round(4))
        metadata["rule_cost"] = {
            "rules": dg.MetadataValue.md(markdown_table(shown)),
            **{f"not_priced_{name}": why for name, why in prices.skipped.items()},
        }
        metadata["margin_curve"] = {"curve": dg.MetadataValue.md(markdown_table(curve))}
    for name in sorted(asked):
        yield dg.Output(frames[name], name, metadata=metadata.get(name))


def _metric_tables(metrics: pl.DataFrame) -> dict[str, Any]:
    from ml_assets.judging import TARGETS, metric_table, segment_table

    tables = {}
    for target in TARGETS:
        by_segment = segment_table(metrics, target=target, metric="ndcg@20")
        tables[target] = dg.MetadataValue.md(metric_table(metrics, target=target))
        tables[f"{target}_by_segment"] = dg.MetadataValue.md(by_segment)
    return tables


@dg.asset(
    key=["ml", "report"],
    group_name="ml",
    kinds={"python", "html"},
    deps=[
        ["ml", "offline_metrics"],
        ["ml", "blend_curve"],
        ["ml", "learning_curve"],
        ["ml", "backtest_examples"],
        ["ml", "recommendations"],
        ["marts", "holdout"],
    ],
)
def report(
    context: dg.AssetExecutionContext,
    recommender: RecommenderSettings,
    warehouse: dg.ResourceParam[Warehouse],
) -> dg.MaterializeResult:
    """How good the recommendations are, for people: one HTML file that needs no network."""
    from ml_assets.findings import read_findings
    from ml_assets.report import make_report

    settings = recommender.in_force(warehouse)
    with warehouse.connect() as connection:
        findings = read_findings(
            connection, run_id=context.run.run_id, w_cf=settings.w_cf, w_content=settings.w_content
        )
    made = make_report(findings)
    folder = warehouse.path.parent / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{findings.as_of}-{context.run.run_id[:8]}.html"
    for each in (path, folder / "latest.html"):
        # Renamed when it is whole: a run that is killed must not leave half a page.
        unfinished = folder / ".unfinished.html"
        unfinished.write_text(made.html, encoding="utf-8")
        unfinished.replace(each)
    return dg.MaterializeResult(
        metadata={
            "path": dg.MetadataValue.path(str(path)),
            **{
                name: dg.MetadataValue.md(f"![{name}]({picture})")
                for name, picture in made.pictures.items()
            },
        }
    )


def _live_settings(warehouse: Warehouse) -> dict[str, Any] | None:
    """The settings of the version that readers see; None before the first, or if none are kept."""
    with warehouse.connect() as connection:
        try:
            kept = connection.execute(
                "select settings from serving.versions where state = 'live'"
            ).fetchall()
        except (duckdb.CatalogException, duckdb.BinderException):
            return None
    if not kept or kept[0][0] is None:
        return None
    settings: dict[str, Any] = json.loads(kept[0][0])
    # A version from before a setting was there had today's default.
    return {**RecommenderSettings().as_settings(), **settings}


def _days(warehouse: Warehouse) -> tuple[date, date]:
    with warehouse.connect() as connection:
        row = connection.execute(
            "select holdout_from, as_of from intermediate.int_as_of"
        ).fetchone()
    assert row is not None
    return row


def sample(
    connection: duckdb.DuckDBPyConnection, *, n_users: int = 3, n_rows: int = 5
) -> pl.DataFrame:
    """The head of a few lists, the first user of each source first, with titles.

    Users are numbered: what a run logs outlives an erasure.
    """
    return connection.sql(
        """
        with chosen as (
            select user_id from ml.recommendations where rank = 1
            order by row_number() over (partition by source order by user_id) > 1, user_id
            limit $n_users
        )
        select dense_rank() over (order by user_id) as user, rank, title,
            round(score, 2) as score, source, reason
        from ml.recommendations semi join chosen using (user_id)
        left join (select product_id, title from marts.products) using (product_id)
        where rank <= $n_rows
        order by user_id, rank
        """,
        params={"n_users": n_users, "n_rows": n_rows},
    ).pl()


def markdown_table(frame: pl.DataFrame) -> str:
    """A small frame as Markdown; line ends in a cell become blanks, because they end its row."""
    lines = ["| " + " | ".join(frame.columns) + " |", "|---" * len(frame.columns) + "|"]
    for row in frame.iter_rows():
        texts = ("" if cell is None else str(cell).replace("|", "\\|") for cell in row)
        cells = [" ".join(text.splitlines()) for text in texts]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
