"""Going back to a version that was live before: the job `roll_back`, and `make rollback`.

Belongs here: how people start it. Does not belong here: what it does (`exports/publish.py`).
"""

import argparse
import sys
import time
from pathlib import Path

import dagster as dg
import duckdb

from exports import publish, versions
from exports.assets import LIVE_KEY, TTL_SECONDS, Publishing
from exports.errors import PseudonymError, PublishError
from exports.home import keep_private
from exports.redis_server import address
from exports.versions import Version
from ml_assets.warehouse import Warehouse, WarehouseBusyError, now
from orchestration.settings import from_environment


class RollbackConfig(dg.Config):
    """Where to.

    Attributes:
        version: One of serving.versions that is kept and was live. Empty: the one live before.
    """

    version: str = ""


@dg.op(description="Let tables, snapshot and Redis show a version again that was live before.")
def switch_back(
    context: dg.OpExecutionContext,
    config: RollbackConfig,
    warehouse: dg.ResourceParam[Warehouse],
    publishing: dg.ResourceParam[Publishing],
) -> None:
    """Switch, and note it with the asset serving/live."""
    try:
        with warehouse.connect() as connection:
            _, live = _switch_back(
                connection,
                config.version,
                published_dir=publishing.published,
                redis_url=publishing.connect_redis(),
                run_id=context.run_id,
            )
    except PublishError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None
    # Observed, not materialized: nothing fresh is served.
    context.log_event(
        dg.AssetObservation(
            LIVE_KEY,
            description="Rolled back.",
            metadata={"version": live.version, "as_of": str(live.as_of)},
        )
    )


@dg.job(
    description="Back to a version that was live before, in under a second and without training:"
    " ops > switch_back > config > version, or nothing for the one before. The next run of the line"
    " publishes anew: turn its schedules off until the cause is mended."
)
def roll_back() -> None:
    """One switch."""
    switch_back()


def _switch_back(
    connection: duckdb.DuckDBPyConnection,
    version: str,
    *,
    published_dir: Path,
    redis_url: str | None,
    run_id: str,
) -> tuple[Version | None, Version]:
    """The versions that were live before and after."""
    versions.ensure_schema(connection)
    before = versions.live_version(connection)
    live = publish.roll_back(
        connection,
        version or versions.version_before(connection),
        published_dir=published_dir,
        redis_url=redis_url,
        ttl_seconds=TTL_SECONDS,
        run_id=run_id,
        happened_at=now(),
    )
    return before, live


def main() -> int:
    """Roll back and say what is live; 1 if that cannot be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("version", nargs="?", default="", help="the one that was live before")
    version = parser.parse_args().version
    keep_private()
    try:
        settings = from_environment()
        if not settings.warehouse.path.exists():
            # Before a folder, a warehouse and a Redis are made there.
            raise PublishError(
                f"There is no warehouse {settings.warehouse.path}, so nothing was published from "
                "there: correct RECMART_HOME."
            )
        redis_url = address(settings.redis_url, settings.home)
        with settings.warehouse.held(), settings.warehouse.connect() as connection:
            started = time.perf_counter()
            before, live = _switch_back(
                connection,
                version,
                published_dir=settings.published,
                redis_url=redis_url,
                run_id="make rollback",
            )
            milliseconds = 1e3 * (time.perf_counter() - started)
            kept = versions.kept_versions(connection)
    except (PublishError, PseudonymError, WarehouseBusyError) as error:
        print(error, file=sys.stderr)
        return 1
    if before is not None and before.version == live.version:
        print(f"Version {live.version} was live already.")
    else:
        print(f"Live since now, after {milliseconds:.0f} ms: version {live.version}.")
    for each in kept:
        print(f"  {each.version}  {each.state:<9}  of {each.as_of}, {each.n_users:,} users")
    print("The next run publishes anew: turn schedules off until the cause is mended.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
