"""Everything Dagster knows of recmart, assembled in one place."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from exports import assets as export_assets
from exports.assets import Publishing
from exports.home import keep_private
from ml_assets import assets as model_assets
from ml_assets.assets import RecommenderSettings
from ml_assets.warehouse import Warehouse
from orchestration import (
    alerts,
    backtest_assets,
    checks,
    dbt_assets,
    drift_checks,
    erasure_assets,
    landing_assets,
    rollback,
    schedules,
)
from orchestration.console import short_console
from orchestration.io_manager import WarehouseIOManager
from orchestration.settings import (
    CONFIG_FILES,
    DBT_PROJECT_DIR,
    PARSED_DBT,
    REPOSITORY,
    Settings,
    code_version,
    from_environment,
)


def build_definitions(settings: Settings) -> dg.Definitions:
    """The assets, checks and jobs on the places of these settings."""
    return dg.Definitions(
        assets=dg.load_assets_from_modules(
            [
                landing_assets,
                dbt_assets,
                model_assets,
                export_assets,
                backtest_assets,
                erasure_assets,
            ]
        ),
        asset_checks=dg.load_asset_checks_from_modules([checks, drift_checks]),
        jobs=[
            schedules.daily_recommendations,
            schedules.refresh_recommendations,
            schedules.tune_settings,
            schedules.backtest,
            schedules.erase_users,
            rollback.roll_back,
        ],
        schedules=[schedules.nightly, schedules.hourly],
        sensors=[
            schedules.new_landing_files,
            alerts.alert_on_failure,
            alerts.alert_on_old_recommendations,
        ],
        resources={
            "settings": settings,
            "warehouse": _held_by_one_run(settings.warehouse),
            "io_manager": WarehouseIOManager(settings.warehouse),
            "publishing": Publishing(
                home=settings.home,
                published=settings.published,
                redis_url=settings.redis_url,
                retain=3,
                repository=REPOSITORY,
                code_version=code_version(),
                config_files=CONFIG_FILES,
                redis_retry_seconds=settings.redis_retry_seconds,
            ),
            "recommender": RecommenderSettings(),
            "dbt": dbt_assets.InstalledDbt(
                project_dir=str(DBT_PROJECT_DIR),
                profiles_dir=str(DBT_PROJECT_DIR),
                dbt_executable=str(PARSED_DBT),
            ),
        },
        loggers={"console": dg.colored_console_logger, "short": short_console},
        # DuckDB takes one writing process, and every new process pays seconds of imports.
        executor=dg.in_process_executor,
    )


def _held_by_one_run(warehouse: Warehouse) -> dg.ResourceDefinition:
    """The warehouse, from the first step of a run to its last closed to other runs."""

    @dg.resource
    @contextmanager
    def held(_: dg.InitResourceContext) -> Iterator[Warehouse]:
        with warehouse.held():
            yield warehouse

    return held


keep_private()
defs = build_definitions(from_environment())
