"""What the report tells, gathered from the warehouse."""

from dataclasses import dataclass
from datetime import date

import duckdb
import polars as pl

from ml_assets.frames import BLEND_CURVE, LEARNING_CURVE, METRICS
from ml_assets.segments import product_segments
from ml_assets.warehouse import read_table


@dataclass(frozen=True)
class Findings:
    """A run's figures.

    Attributes:
        as_of: The day the run is about.
        run_id: Of Dagster.
        metrics: METRICS.
        blend_curve: BLEND_CURVE.
        learning_curve: LEARNING_CURVE.
        w_cf: Weight of the collaborative model in this run.
        w_content: Weight of the content model.
        exposure: A row per segment of products (head, tail, new): n_products, n_interactions,
            n_recommended, all counted today.
        examples: Lists made before the fold: user_id, rank, product_id, title, reason, is_hit.
        answers: What the same users went for in it: user_id, product_id, title, is_new.
        versions: Earlier versions, latest first: version, created_at, state, decision, verdict.
    """

    as_of: date
    run_id: str
    metrics: pl.DataFrame
    blend_curve: pl.DataFrame
    learning_curve: pl.DataFrame
    w_cf: float
    w_content: float
    exposure: pl.DataFrame
    examples: pl.DataFrame
    answers: pl.DataFrame
    versions: pl.DataFrame


_TOUCHED = """
    select
        product_id,
        coalesce(n_interactions, 0) as n_interactions,
        coalesce(n_recommended, 0) as n_recommended
    from marts.products
    left join (
        select product_id, count(*) as n_interactions from marts.signals group by product_id
    ) using (product_id)
    left join (
        select product_id, count(*) as n_recommended from ml.recommendations group by product_id
    ) using (product_id)
    order by product_id
"""

_EXAMPLES = """
    select
        lists.user_id,
        lists.rank,
        product_id,
        coalesce(products.title, product_id) as title,
        lists.reason,
        holdout.user_id is not null as is_hit
    from ml.backtest_examples as lists
    left join marts.products as products using (product_id)
    left join marts.holdout as holdout using (user_id, product_id)
    order by lists.user_id, lists.rank
"""

_ANSWERS = """
    select
        user_id,
        product_id,
        coalesce(products.title, product_id) as title,
        is_new
    from marts.holdout as holdout
    left join marts.products as products using (product_id)
    where user_id in (select user_id from ml.backtest_examples)
    order by user_id, first_at, product_id
"""

_VERSIONS = """
    select version, created_at, state, decision, verdict
    from serving.versions
    order by created_at desc, version
    limit 10
"""
VERSIONS = ("version", "created_at", "state", "decision", "verdict")


def read_findings(
    connection: duckdb.DuckDBPyConnection, *, run_id: str, w_cf: float, w_content: float
) -> Findings:
    """Read what there is.

    Args:
        connection: The warehouse.
        run_id: Of Dagster.
        w_cf: As the run's settings have it.
        w_content: Likewise.
    """
    ((as_of,),) = connection.execute("select as_of from intermediate.int_as_of").fetchall()
    try:
        versions = connection.sql(_VERSIONS).pl()
    except (duckdb.CatalogException, duckdb.BinderException):
        # Before the first version.
        versions = pl.DataFrame(schema=list(VERSIONS))
    return Findings(
        as_of=as_of,
        run_id=run_id,
        metrics=read_table(connection, "ml.offline_metrics", METRICS.names()),
        blend_curve=read_table(connection, "ml.blend_curve", BLEND_CURVE.names()),
        learning_curve=read_table(connection, "ml.learning_curve", LEARNING_CURVE.names()),
        w_cf=w_cf,
        w_content=w_content,
        exposure=exposure(connection.sql(_TOUCHED).pl()),
        examples=connection.sql(_EXAMPLES).pl(),
        answers=connection.sql(_ANSWERS).pl(),
        versions=versions,
    )


def exposure(products: pl.DataFrame) -> pl.DataFrame:
    """What each segment of products gets: see `Findings.exposure`.

    Args:
        products: product_id, n_interactions, n_recommended.
    """
    n_interactions = products["n_interactions"].to_numpy()
    rows = []
    for name, is_in in product_segments(n_interactions).items():
        members = products.filter(pl.Series(is_in))
        rows.append(
            {
                "segment": name,
                "n_products": len(members),
                "n_interactions": members["n_interactions"].sum(),
                "n_recommended": members["n_recommended"].sum(),
            }
        )
    return pl.DataFrame(rows)
