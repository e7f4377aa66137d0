"""Publishing as Dagster assets: stage, copy to files and Redis, switch. See `publish.py`."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb

from exports import run_history, versions
from exports.errors import PublishError, RedisAwayError
from exports.origins import Ingredient, ingredients_now, kind_of_run, pairs_learned
from exports.redis_server import address
from exports.versions import Version
from ml_assets.assets import RecommenderSettings
from ml_assets.promotion import judge_promotion
from ml_assets.threads import n_threads
from ml_assets.warehouse import Warehouse, now, read_table

# Keys of a version that is never replaced, because the line stopped running, go away in the end.
TTL_SECONDS = 30 * 24 * 3600
POPULAR_DEPTH = 100
LIVE_KEY = dg.AssetKey(["serving", "live"])
# A night and a half: one missed run is seen before the second.
SERVED_FOR = timedelta(hours=36)
# Of a Redis that does not answer: restarts take seconds, and whatever lasts longer is for people.
REDIS_RETRIES = 2


@dataclass(frozen=True)
class Publishing:
    """Where versions go, and what is recorded of how they were made.

    Attributes:
        home: Folder of the embedded Redis.
        published: Folder of the files that readers open.
        redis_url: A server's URL, `embedded`, or `off`.
        retain: Versions kept for a rollback, the live one included.
        repository: Where the code is.
        code_version: Of recmart.
        config_files: Files whose content is part of the configuration.
        redis_retry_seconds: How long to wait before a Redis that does not answer is asked again.
    """

    home: Path
    published: Path
    redis_url: str
    retain: int
    repository: Path
    code_version: str
    config_files: tuple[Path, ...]
    redis_retry_seconds: float

    def connect_redis(self) -> str | None:
        """The URL to load, the embedded server started if need be; None if Redis is off.

        Raises:
            PublishError: if the embedded server cannot be started.
        """
        return address(self.redis_url, self.home)

    def config_hash(self, recommender: RecommenderSettings) -> str:
        """Changes with every setting of a recommendation, but for variables given to dbt."""
        digest = hashlib.sha256(json.dumps(recommender.as_settings(), sort_keys=True).encode())
        for path in self.config_files:
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    def ingredients(self, *, made_by: str, variables: Mapping[str, Any]) -> list[Ingredient]:
        """What a version is made of here and now; variables are those given to dbt."""
        return ingredients_now(
            made_by=made_by,
            n_threads=n_threads(),
            variables={name: json.dumps(value) for name, value in variables.items()},
            repository=self.repository,
            config_files=self.config_files,
        )


def _failure(error: PublishError) -> dg.Failure:
    # Not retried: what is wrong here stays wrong until somebody mends it.
    return dg.Failure(description=str(error), allow_retries=False)


def _retry_if_away(
    context: dg.AssetExecutionContext, publishing: Publishing, error: PublishError
) -> None:
    """Ask Dagster to do the step again where that can help: Redis restarts, bad data does not."""
    if isinstance(error, RedisAwayError) and context.retry_number < REDIS_RETRIES:
        context.log.warning(
            f"{error} The step is tried again in {publishing.redis_retry_seconds:g} s "
            f"({context.retry_number + 1} of {REDIS_RETRIES})."
        )
        raise dg.RetryRequested(REDIS_RETRIES, publishing.redis_retry_seconds) from error


class CandidateConfig(dg.Config):
    """What a run can be told of the version it makes.

    Attributes:
        force: Who wants it published although it is worse, and why; kept with the version. Empty:
            a version that is refused stays unpublished.
    """

    force: str = ""


@dg.asset(
    key=["serving", "candidate"],
    group_name="serving",
    kinds={"duckdb"},
    deps=[
        ["ml", "recommendations"],
        ["ml", "similar_products"],
        ["ml", "offline_metrics"],
        ["marts", "product_pairs"],
        ["marts", "popularity"],
        ["marts", "products"],
        ["marts", "buy_again"],
        ["marts", "anchors"],
        ["marts", "bought"],
        ["marts", "on_sale"],
        ["intermediate", "int_as_of"],
        ["intermediate", "int_basket_counts"],
        ["intermediate", "int_pair_counts"],
    ],
)
def candidate(
    context: dg.AssetExecutionContext,
    config: CandidateConfig,
    warehouse: dg.ResourceParam[Warehouse],
    publishing: dg.ResourceParam[Publishing],
    recommender: RecommenderSettings,
) -> dg.MaterializeResult:
    """The next version: all surfaces in `serving.*` under one version id, seen by nobody yet."""
    recommender = recommender.in_force(warehouse)
    with warehouse.connect() as connection:
        ((as_of, variables),) = connection.execute(
            "select as_of, variables from intermediate.int_as_of"
        ).fetchall()
        promotion = judge_promotion(read_table(connection, "ml.offline_metrics"))
        if config.force.strip():
            promotion = promotion.forced_by(config.force.strip())
        try:
            version = versions.stage_version(
                connection,
                as_of=as_of,
                run_id=context.run.run_id,
                seed=recommender.seed,
                config_hash=publishing.config_hash(recommender),
                settings=json.dumps(recommender.as_settings(), sort_keys=True),
                promotion=promotion,
                code_version=publishing.code_version,
                origin=[
                    *publishing.ingredients(
                        made_by=kind_of_run(
                            key.path for key in context.job_def.asset_layer.selected_asset_keys
                        ),
                        variables=json.loads(variables),
                    ),
                    pairs_learned(connection),
                ],
                created_at=now(),
                top_n=recommender.top_n,
                popular_depth=POPULAR_DEPTH,
            )
        except PublishError as error:
            raise _failure(error) from None
    context.log.info(f"version {version.version} is {version.state}, {promotion.decision}")
    return dg.MaterializeResult(
        metadata={
            "version": version.version,
            "state": version.state,
            "content_hash": version.content_hash,
            "promotion": f"{version.decision}: {version.verdict}",
            "dagster/row_count": version.n_rows,
            "users": version.n_users,
        }
    )


@dg.asset(
    key=["serving", "files"],
    group_name="serving",
    kinds={"parquet", "duckdb"},
    deps=[candidate],
)
def version_files(
    warehouse: dg.ResourceParam[Warehouse], publishing: dg.ResourceParam[Publishing]
) -> dg.MaterializeResult:
    """The version as Parquet files and a read-only DuckDB snapshot, beside the live ones."""
    from exports import files

    with warehouse.connect() as connection:
        try:
            version = versions.staged_version(connection)
            manifest = files.write_version_files(connection, version, publishing.published)
        except PublishError as error:
            raise _failure(error) from None
    folder = files.version_dir(publishing.published, version.version)
    return dg.MaterializeResult(
        metadata={
            "version": version.version,
            "folder": dg.MetadataValue.path(str(folder)),
            "megabytes": round(sum(manifest.n_bytes.values()) / 1e6, 1),
            "rows": dg.MetadataValue.json(manifest.n_rows),
        }
    )


@dg.asset(
    key=["serving", "redis"],
    group_name="serving",
    kinds={"redis"},
    deps=[candidate, version_files],
)
def redis_lists(
    context: dg.AssetExecutionContext,
    warehouse: dg.ResourceParam[Warehouse],
    publishing: dg.ResourceParam[Publishing],
) -> dg.MaterializeResult:
    """The version in Redis under its own prefix, verified against the tables."""
    # Imported here, as in `ml_assets.assets`: it compiles.
    from exports import redis_load

    with warehouse.connect() as connection:
        version = versions.staged_version(connection)
        try:
            url = publishing.connect_redis()
            if url is None:
                return dg.MaterializeResult(metadata={"skipped": "REDIS_URL=off"})
            report = redis_load.load_version(
                connection,
                version,
                redis_url=url,
                ttl_seconds=TTL_SECONDS,
                progress=lambda done, total: context.log.info(
                    f"loaded {done:,} of {total:,} lists"
                ),
            )
        except PublishError as error:
            _retry_if_away(context, publishing, error)
            if versions.live_version(connection) is not None:
                raise _failure(
                    PublishError(f"{error} The last published version stays live.")
                ) from None
            # The first run: there is nothing that other surfaces could go on showing.
            _switch(context, connection, publishing, version, redis_url=None)
            raise _failure(
                PublishError(
                    f"{error} Tables and files of version {version.version} are published."
                )
            ) from None
    return dg.MaterializeResult(
        metadata={
            "version": version.version,
            "lists": dg.MetadataValue.json(report.n_lists),
            "megabytes": round(report.n_bytes / 1e6, 1),
        }
    )


@dg.asset(
    key=LIVE_KEY,
    group_name="serving",
    kinds={"duckdb", "redis"},
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=SERVED_FOR),
    deps=[candidate, version_files, redis_lists],
)
def live(
    context: dg.AssetExecutionContext,
    warehouse: dg.ResourceParam[Warehouse],
    publishing: dg.ResourceParam[Publishing],
) -> dg.MaterializeResult:
    """Which version readers see: switched here for tables, snapshot and Redis."""
    from exports import publish

    with warehouse.connect() as connection:
        version, before = versions.staged_version(connection), versions.live_version(connection)
        try:
            redis_url = publishing.connect_redis()
            changes = _changes(connection, before, version)
            now_live = _switch(context, connection, publishing, version, redis_url=redis_url)
            removed = publish.remove_old(
                connection,
                published_dir=publishing.published,
                redis_url=redis_url,
                retain=publishing.retain,
                happened_at=now(),
            )
        except PublishError as error:
            _retry_if_away(context, publishing, error)
            raise _failure(error) from None
    metadata: dict[str, Any] = {
        "version": now_live.version,
        "as_of": str(now_live.as_of),
        "content_hash": now_live.content_hash,
        "removed_versions": ", ".join(removed) or "none",
        "changes": dg.MetadataValue.md(changes),
    }
    return dg.MaterializeResult(metadata=metadata)


def _changes(
    connection: duckdb.DuckDBPyConnection, before: Version | None, version: Version
) -> str:
    """What the switch changes for readers, as Markdown."""
    if before is None or before.version == version.version:
        return "nothing was live before" if before is None else "nothing: it is live already"
    counted = connection.execute(
        "select change, cause, n_rows, n_users from serving.version_changes($before, $after)",
        {"before": before.version, "after": version.version},
    ).fetchall()
    lines = [
        f"since {before.version}",
        "",
        "| change | cause | rows | users |",
        "|---|---|--:|--:|",
    ]
    lines += [
        f"| {change} | {cause} | {rows:,} | {users:,} |" for change, cause, rows, users in counted
    ]
    return "\n".join(lines)


def _switch(
    context: dg.AssetExecutionContext,
    connection: duckdb.DuckDBPyConnection,
    publishing: Publishing,
    version: Version,
    *,
    redis_url: str | None,
) -> Version:
    from exports import publish

    live = publish.switch_live(
        connection,
        version.version,
        published_dir=publishing.published,
        redis_url=redis_url,
        run_id=context.run.run_id,
        happened_at=now(),
    )
    # A run that was started again from a failed step goes on where its parents stopped.
    runs = {context.run.run_id, context.run.parent_run_id, context.run.root_run_id} - {None}
    run_history.mark_published(connection, [str(each) for each in runs], live.version)
    return live
