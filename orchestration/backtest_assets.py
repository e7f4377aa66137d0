"""What looks at days of the past, by hand or at times: backtests and the search for settings."""

import json
from collections.abc import Iterator
from datetime import date, timedelta
from functools import partial
from typing import Any

import dagster as dg
import duckdb
import polars as pl
from pydantic import Field

from ml_assets.assets import CF_MODELS, RecommenderSettings
from ml_assets.folds import Fold
from ml_assets.tuning import BLEND_SPACE, SPACES, TRIALS, best_trial, search
from ml_assets.warehouse import MissingTableError, Warehouse, read_table
from orchestration.backtests import get_fold, recommend_as_of
from orchestration.settings import Settings

# Any day of which there are events can be asked; a shop's first days have no past to learn from.
DAYS = dg.DailyPartitionsDefinition(start_date="2000-01-01")


class BacktestConfig(dg.Config):
    """How a backtest asks.

    Attributes:
        n_days: Days after the partition's day in which the answers lie.
    """

    n_days: int = 28


@dg.asset(
    key=["ml", "backtest_metrics"],
    group_name="backtests",
    kinds={"python", "duckdb"},
    partitions_def=DAYS,
    deps=[["raw", "events"]],
)
def backtest_metrics(
    context: dg.AssetExecutionContext,
    config: BacktestConfig,
    settings: dg.ResourceParam[Settings],
    recommender: RecommenderSettings,
    warehouse: dg.ResourceParam[Warehouse],
) -> dg.MaterializeResult:
    """How good the published lists would have been, made as of the partition's day.

    The whole line runs as of that day in a warehouse of its own. METRICS of one fold per partition.
    """
    from ml_assets.backtest import judge_published, look_back

    day = date.fromisoformat(context.partition_key)
    fold = get_fold(settings, day, n_days=config.n_days, progress=context.log.info)
    in_force = recommender.in_force(warehouse)
    changed = {
        name: value
        for name, value in in_force.model_dump().items()
        if value != type(in_force).model_fields[name].default
    }
    published = recommend_as_of(settings, day, recommender=changed, progress=context.log.info)
    past = look_back(**fold.as_arguments, settings=in_force.as_settings())
    metrics = judge_published(past, published, seed=in_force.seed)
    with warehouse.connect() as connection:
        connection.execute("create schema if not exists ml")
        connection.register("fold", metrics.to_arrow())
        connection.execute("create table if not exists ml.backtest_metrics as from fold limit 0")
        connection.execute(
            "delete from ml.backtest_metrics where fold = $fold", {"fold": past.fold}
        )
        connection.execute("insert into ml.backtest_metrics by name from fold")
    headline = metrics.filter(
        (pl.col("segment") == "known")
        & pl.col("metric").is_in(["recall@20", "ndcg@20", "hit_rate@20"])
    )
    return dg.MaterializeResult(
        metadata={
            "fold": past.fold,
            **{
                f"{row['target']} {row['metric']}": row["value"]
                for row in headline.iter_rows(named=True)
            },
        }
    )


class TuningConfig(dg.Config):
    """How long to search, and on what.

    Attributes:
        models: Collaborative models to try, each in a study of its own.
        members: Of the model ensemble, whose weights are learned; one that cannot be fitted is
            left out.
        n_trials: Trials of each model, those of earlier runs on the same data included.
        seconds: Seconds for each model; no trial starts after them.
        n_folds: Folds of the past, one before the other, all before the one that judges.
        n_days: Days of answers in each.
        seed: Of the search.
    """

    # The others take minutes a trial on a large shop, as the members do.
    models: list[str] = Field(default=["item_item", "als", "ensemble"])
    members: list[str] = Field(default=["item_item", "gf_cf", "graph_filter"])
    n_trials: int = 25
    seconds: float = 900.0
    n_folds: int = 2
    n_days: int = 28
    seed: int = 20111209


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            ["ml", "tuning_trials"],
            deps=[["intermediate", "int_as_of"]],
            description="Settings that were tried, and how good they were on folds before the "
            "holdout. One row per (study, trial).",
            group_name="tuning",
            kinds={"python", "duckdb"},
        ),
        dg.AssetSpec(
            ["ml", "tuned_settings"],
            deps=[["ml", "tuning_trials"]],
            description="The best of the latest search, which every run takes unless it is told "
            "use_tuned: false. One row, or none before the first search.",
            group_name="tuning",
            kinds={"python", "duckdb"},
        ),
    ]
)
def tuning(
    context: dg.AssetExecutionContext,
    config: TuningConfig,
    settings: dg.ResourceParam[Settings],
    recommender: RecommenderSettings,
    warehouse: dg.ResourceParam[Warehouse],
) -> Iterator[dg.MaterializeResult]:
    """Search settings on days of the past; the fold that judges versions is not among them."""
    from ml_assets.backtest import look_back
    from ml_assets.comparison import evaluate_settings, learn_ensemble

    unknown = sorted(set(config.models) - set(CF_MODELS))
    if unknown:
        raise dg.Failure(
            description=f"there is no model {', '.join(unknown)}; choose from "
            f"{', '.join(CF_MODELS)}.",
            allow_retries=False,
        )
    recommender.model_copy(update={"ensemble": dict.fromkeys(config.members, 1.0)}).checked()
    start = recommender.checked().as_settings()
    folds = [
        get_fold(settings, day, n_days=config.n_days, progress=context.log.info)
        for day in _validation_days(warehouse, config)
    ]
    pasts = [look_back(**fold.as_arguments, settings=start) for fold in folds]
    names = " ".join(past.fold for past in pasts)
    searched = f" on {names}, {_fingerprint(folds)}"
    done = _trials(warehouse)
    for model in config.models:
        study = f"{model}{searched}"
        learned: dict[str, Any] = {}
        if model == "ensemble":
            learned = learn_ensemble(pasts, config.members, start)
            context.log.info(f"ensemble: learned {json.dumps(learned)}")
        for row in search(
            model,
            study=study,
            space={**SPACES[model], **BLEND_SPACE},
            start={**start, **learned},
            fixed={"ensemble": learned["ensemble"]} if learned else {},
            evaluate=partial(evaluate_settings, pasts, {**start, "cf_model": model}),
            n_trials=config.n_trials,
            seconds=config.seconds,
            seed=config.seed,
            done=done,
        ):
            # Row by row: a search that is stopped loses at most the trial it was at.
            _append(warehouse, row)
            done = pl.concat([done, row])
            value = row["value"][0]
            context.log.info(
                f"{model}, trial {row['trial'][0]}: "
                + (f"{value:.4f}" if value is not None else str(row["reason"][0]))
            )
    trials = done.filter(pl.col("study").str.ends_with(searched))
    tuned = _tuned(trials, names)
    with warehouse.connect() as connection:
        connection.register("tuned", tuned.to_arrow())
        connection.execute("create or replace table ml.tuned_settings as from tuned")
    yield dg.MaterializeResult(
        asset_key=["ml", "tuning_trials"],
        metadata={"trials": len(trials), "folds": names},
    )
    yield dg.MaterializeResult(
        asset_key=["ml", "tuned_settings"],
        metadata={
            name: str(value) for row in tuned.iter_rows(named=True) for name, value in row.items()
        },
    )


def _validation_days(warehouse: Warehouse, config: TuningConfig) -> list[date]:
    """The last days that models may see, latest first: all answers lie before the holdout."""
    with warehouse.connect() as connection:
        try:
            ((holdout_from,),) = connection.execute(
                "select holdout_from from intermediate.int_as_of"
            ).fetchall()
        except duckdb.CatalogException as error:
            raise dg.Failure(
                description="nothing to search on yet: run daily_recommendations once first.",
                allow_retries=False,
            ) from error
    return [
        holdout_from - timedelta(days=config.n_days * (number + 1))
        for number in range(config.n_folds)
    ]


def _fingerprint(folds: list[Fold]) -> str:
    """Changes when the folds say something else: trials on other data are no trials on these."""
    total = 0
    for fold in folds:
        for table in (fold.signals, fold.holdout, fold.products):
            total = (total * 31 + int(table.hash_rows(seed=7).sum())) % (1 << 64)
    return f"{total:016x}"


def _trials(warehouse: Warehouse) -> pl.DataFrame:
    with warehouse.connect() as connection:
        try:
            return read_table(connection, "ml.tuning_trials", TRIALS.names()).match_to_schema(
                TRIALS
            )
        except MissingTableError:
            return pl.DataFrame(schema=TRIALS)


def _append(warehouse: Warehouse, row: pl.DataFrame) -> None:
    with warehouse.connect() as connection:
        connection.register("trial", row.to_arrow())
        connection.execute("create schema if not exists ml")
        connection.execute("create table if not exists ml.tuning_trials as from trial limit 0")
        connection.execute("insert into ml.tuning_trials by name from trial")


def _tuned(trials: pl.DataFrame, folds: str) -> pl.DataFrame:
    best = best_trial(trials)
    rows = []
    if best is not None:
        first = trials.filter((pl.col("model") == best["model"]) & (pl.col("trial") == 0))
        rows.append(
            {
                "settings": json.dumps(
                    {**json.loads(best["settings"]), "cf_model": best["model"]}, sort_keys=True
                ),
                "metric": best["metric"],
                "value": best["value"],
                "value_before": first["value"][0],
                "n_users": best["n_users"],
                "folds": folds,
                "study": best["study"],
                "trial": best["trial"],
            }
        )
    return pl.DataFrame(
        rows,
        schema={
            "settings": pl.String,
            "metric": pl.String,
            "value": pl.Float64,
            "value_before": pl.Float64,
            "n_users": pl.Int64,
            "folds": pl.String,
            "study": pl.String,
            "trial": pl.Int32,
        },
    )
