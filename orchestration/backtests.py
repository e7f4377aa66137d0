"""The line as it would have run on an earlier day: a backtest is production in the past.

The same assets run on the same raw rows as of that day, in a warehouse of their own, so that
nothing that is served is touched. What they recommend is then held against what users went for
afterwards.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import polars as pl

from ml_assets.folds import TABLES, Fold, read_fold, write_fold
from ml_assets.frames import RECOMMENDATIONS
from ml_assets.warehouse import Warehouse, path_literal, read_table
from orchestration.settings import DBT_PROJECT_DIR, Settings

Progress = Callable[[str], None]

# The tables of a fold stand in a line as of its last day, which looks back like this.
_SOURCES = {
    "signals": "marts.backtest_signals",
    "popularity": "marts.backtest_popularity",
    "products": "marts.products",
    "users": "marts.users",
    "holdout": "marts.holdout",
}
_LANDING = dg.AssetSelection.groups("raw")
_FOLD = dg.AssetSelection.assets(*(name.split(".") for name in _SOURCES.values())).upstream()
_LISTS = (
    dg.AssetSelection.assets(["ml", "recommendations"]).required_multi_asset_neighbors().upstream()
)


def get_fold(
    settings: Settings,
    day: date,
    *,
    n_days: int,
    progress: Progress,
    variables: Mapping[str, Any] | None = None,
) -> Fold:
    """What was known at the end of a day, and what users went for in the days after it.

    Kept under `RECMART_HOME/folds` and read again as long as the raw rows and the dbt project are
    the same.

    Args:
        settings: Of the line whose raw rows are taken.
        day: The last day that models see.
        n_days: Days of the answers.
        progress: Told what is being done.
        variables: Of dbt_project.yml, where others are to be tried: such a fold is kept apart.

    Raises:
        dg.Failure: if nothing has landed, the days after are not over, or a step fails.
    """
    last = _latest_day(settings.warehouse)
    if day + timedelta(days=n_days) > last:
        raise dg.Failure(
            description=f"the {n_days} days after {day} are not over: the latest event is of "
            f"{last}. Choose a day up to {last - timedelta(days=n_days)}.",
            allow_retries=False,
        )
    on_trial = json.dumps(variables or {}, sort_keys=True)
    name = f"{day}-{n_days}"
    if variables:
        name += f"-{hashlib.sha256(on_trial.encode()).hexdigest()[:12]}"
    folder = settings.home / "folds" / name
    made_from = _made_from(settings.warehouse, on_trial)
    kept = read_fold(folder, made_from=made_from)
    if kept is not None:
        return kept
    progress(f"the shop as it was on {day}, and the {n_days} days after it")
    with _scratch(settings, day) as scratch:
        run_as_of(
            scratch,
            _FOLD,
            as_of=day + timedelta(days=n_days),
            variables={**(variables or {}), "holdout_days": n_days},
            recommender={},
        )
        with scratch.warehouse.connect() as connection:
            tables = {
                name: read_table(connection, source, TABLES[name].names())
                for name, source in _SOURCES.items()
            }
    fold = Fold(day=day, n_days=n_days, **tables)
    write_fold(fold, folder, made_from=made_from)
    return fold


def recommend_as_of(
    settings: Settings, day: date, *, recommender: dict[str, Any], progress: Progress
) -> pl.DataFrame:
    """RECOMMENDATIONS as the line would have made them at the end of a day.

    Args:
        settings: Of the line whose raw rows are taken.
        day: The last day that it sees.
        recommender: Settings of RecommenderSettings that differ from the defaults.
        progress: Told what is being done.

    Raises:
        dg.Failure: if nothing has landed, or a step fails.
    """
    _latest_day(settings.warehouse)
    progress(f"recommendations as of {day}")
    with _scratch(settings, day) as scratch:
        run_as_of(scratch, _LISTS, as_of=day, variables={}, recommender=recommender)
        with scratch.warehouse.connect() as connection:
            return read_table(connection, "ml.recommendations", RECOMMENDATIONS.names())


def _latest_day(warehouse: Warehouse) -> date:
    with warehouse.connect() as connection:
        try:
            found = connection.execute("select max(event_on) from staging.stg_events").fetchone()
        except duckdb.CatalogException:
            found = None
    if found is None or found[0] is None:
        raise dg.Failure(
            description="there is no past yet: no event has landed. Run daily_recommendations.",
            allow_retries=False,
        )
    latest: date = found[0]
    return latest


def _made_from(warehouse: Warehouse, variables: str) -> str:
    """Changes with the raw rows, and with the SQL, variables and columns that make folds."""
    digest = hashlib.sha256(f"{TABLES!r}{variables}".encode())
    with warehouse.connect() as connection:
        files = connection.execute("select * from raw.landing_files order by all").fetchall()
    digest.update(repr(files).encode())
    for path in sorted(DBT_PROJECT_DIR.rglob("*")):
        parts = path.relative_to(DBT_PROJECT_DIR).parts
        if path.is_file() and parts[0] in {"macros", "models", "seeds", "dbt_project.yml"}:
            digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _scratch(settings: Settings, day: date) -> Iterator[Settings]:
    """Settings of a home with the raw rows of this one; removed afterwards."""
    folder = settings.home / "backtests"
    # Of any day: one that was killed left all raw rows, and one run at a time works in a home.
    shutil.rmtree(folder, ignore_errors=True)
    home = folder / day.isoformat()
    home.mkdir(parents=True)
    try:
        _copy_raw(settings.warehouse, home / settings.warehouse.path.name)
        yield replace(settings, home=home, redis_url="off")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy_raw(warehouse: Warehouse, path: Path) -> None:
    with warehouse.connect() as connection:
        connection.execute(f"attach {path_literal(path)} as past")
        connection.execute("create schema past.raw")
        tables = connection.execute(
            "select table_name from information_schema.tables"
            " where table_catalog = current_database() and table_schema = 'raw'"
            " order by table_name"
        ).fetchall()
        for (table,) in tables:
            connection.execute(f'create table past.raw."{table}" as from raw."{table}"')
        connection.execute("detach past")


def run_as_of(
    scratch: Settings,
    selection: dg.AssetSelection,
    *,
    as_of: date,
    variables: dict[str, Any],
    recommender: dict[str, Any],
) -> None:
    """Run a part of the line, without landing and gates, in a home whose raw rows are there.

    Args:
        scratch: Of that home.
        selection: The assets.
        as_of: The last day that it sees.
        variables: Of dbt_project.yml, where they differ from what stands there.
        recommender: Settings of RecommenderSettings that differ from the defaults.

    Raises:
        dg.Failure: if a step fails.
    """
    # Imported here: the definitions hold the assets that call this.
    from orchestration.definitions import build_definitions
    from orchestration.failures import sentences

    definitions = build_definitions(scratch)
    # Gates guard what is published, and judged these rows when they were.
    job = definitions.resolve_job_def("daily_recommendations").get_subset(
        asset_selection=(selection - _LANDING).resolve(definitions.resolve_asset_graph()),
        asset_check_selection=set(),
    )
    dbt = {"as_of": as_of.isoformat(), "variables": json.dumps(variables)}
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(
            instance=instance,
            raise_on_error=False,
            run_config={
                "ops": {"dbt_models": {"config": dbt}},
                "resources": {"recommender": {"config": recommender}},
                "loggers": {"short": {}},
            },
        )
    if not result.success:
        raise dg.Failure(
            description=f"the line as of {as_of} failed: "
            + "; ".join(sentences(result.all_events)),
            allow_retries=False,
        )
