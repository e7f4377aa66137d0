"""`make demo`: the whole line on the bundled shop, in one process, and where to look at it."""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

import duckdb

from exports.errors import PseudonymError, SettingError
from exports.home import keep_private
from orchestration.failures import MAKE_ROOM, sentences
from orchestration.processes import end_process, imported_at_once
from orchestration.settings import REPOSITORY, Settings, from_environment

TITLES = """
    select
        lists.user_id,
        lists.rank,
        coalesce(products.title, lists.product_id),
        lists.source,
        lists.reason
    from serving.recommendations as lists
    join serving.products as products using (product_id)
    where lists.user_id in (
        select user_id from serving.recommendations group by user_id order by md5(user_id) limit 2
    )
    and lists.rank <= 5
    order by lists.user_id, lists.rank
"""

METRICS = """
    select
        model,
        max(value) filter (metric = 'recall@20'),
        max(low) filter (metric = 'recall@20'),
        max(high) filter (metric = 'recall@20'),
        max(value) filter (metric = 'ndcg@20'),
        max(low) filter (metric = 'ndcg@20'),
        max(high) filter (metric = 'ndcg@20')
    from ml.offline_metrics
    where target = 'new_products' and segment = 'known'
    group by model
    order by 2
"""


def main() -> int:
    """Run a job, print the results; 1 if the run failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    # The jobs that publish, which is what is reported of.
    jobs = ("daily_recommendations", "refresh_recommendations")
    parser.add_argument("--job", default=jobs[0], choices=jobs)
    job = parser.parse_args().job
    try:
        settings = from_environment()
    except (PseudonymError, SettingError) as error:
        print(error, file=sys.stderr)
        return 1
    keep_private()
    dagster_home = Path(os.environ.setdefault("DAGSTER_HOME", str(settings.home / "dagster")))
    dagster_home.mkdir(parents=True, exist_ok=True)
    if not (dagster_home / "dagster.yaml").exists():
        shutil.copyfile(
            REPOSITORY / "orchestration" / "dagster.yaml", dagster_home / "dagster.yaml"
        )
    # Imported here: DAGSTER_HOME must be set first, and the import takes seconds.
    with imported_at_once():
        import dagster as dg
        from sqlalchemy.exc import OperationalError

        from orchestration.definitions import defs

    started = time.monotonic()
    try:
        with dg.DagsterInstance.get() as instance:
            result = defs.resolve_job_def(job).execute_in_process(
                instance=instance,
                raise_on_error=False,
                run_config={"loggers": {"short": {}}},
                # By it the UI finds the runs of a job; it gives it to those that it starts.
                tags={".dagster/repository": "__repository__@orchestration.definitions"},
            )
    except OperationalError as error:
        print(
            f"\nThe run failed: Dagster could not write its history in {dagster_home}: "
            f"{error.orig}. {MAKE_ROOM}",
            file=sys.stderr,
        )
        return 1
    seconds = time.monotonic() - started
    if not result.success:
        print(f"\nThe run failed after {seconds:.0f} s:", file=sys.stderr)
        for line in sentences(result.all_events):
            print(f"  {line}", file=sys.stderr)
        return 1
    print(report(settings, seconds))
    return 0


def report(settings: Settings, seconds: float) -> str:
    """What was made and where it is, with a few lists to read."""
    snapshot = settings.published / "current.duckdb"
    with duckdb.connect(str(snapshot), read_only=True) as connection:
        version = connection.execute(
            "select version, n_users, n_rows from serving.versions"
        ).fetchone()
        rows = connection.execute(TITLES).fetchall()
    with settings.warehouse.connect() as connection:
        metrics = connection.execute(METRICS).fetchall()
        types = connection.execute(
            "select event_type, count(*) from staging.stg_events group by 1 order by 2 desc"
        ).fetchall()
        refused = connection.execute(
            "select count(*), (select count(*) from staging.repaired_values)"
            " from staging.rejected_rows"
        ).fetchone()
    assert version is not None and refused is not None
    name, n_users, n_rows = version
    n_refused, n_left_out = refused
    # Of another home everything has to be told.
    home = "" if settings.home == REPOSITORY / "var" else f"RECMART_HOME={settings.home} "
    lines = [
        "",
        f"Done in {seconds:.0f} s: version {name}, {n_users:,} users, {n_rows:,} rows.",
        f"  Shop           {settings.data}",
        "  Events         " + ", ".join(f"{n:,} {kind}" for kind, n in types),
    ]
    if {kind for kind, _ in types} <= {"purchase", "return"}:
        lines.append(
            "                 This shop logs purchases and returns only: no views, no carts."
        )
    if n_refused or n_left_out:
        lines.append(
            f"  Left out       {n_refused:,} rows, {n_left_out:,} values: staging.rejected_rows and"
            " repaired_values in warehouse.duckdb say why"
        )
    lines += [
        f"  Snapshot       {snapshot}  (tables serving.*, open it read-only)",
        f"  Parquet        {settings.published / 'versions' / name}",
        f"  Redis          {redis_line(settings, home)}",
        f"  Report         {settings.home / 'reports' / 'latest.html'}",
        f"  Data Docs      {settings.home / 'gx' / 'uncommitted' / 'data_docs' / 'local_site'}",
        f"  Dagster UI     {home}make ui",
        "",
        "Asked what new products its last four weeks would bring (95 % of resampled users):",
        *(
            f"  {model:<16} Recall@20 {figure(*numbers[:3])}  NDCG@20 {figure(*numbers[3:])}"
            for model, *numbers in metrics
        ),
        "",
        "Two customers' lists:",
        *(
            f"  {user:>8} {rank:>2}. {title:<38} [{source}] {reason}"
            for user, rank, title, source, reason in rows
        ),
    ]
    return "\n".join(lines)


def figure(value: float, low: float | None, high: float | None) -> str:
    """A value with its interval; of a single user there is none."""
    return f"{value:.4f}" if low is None else f"{value:.4f} ({low:.4f} to {high:.4f})"


def redis_line(settings: Settings, home: str) -> str:
    """How to ask the Redis that was loaded."""
    if settings.redis_url == "off":
        return "off (REDIS_URL=off)"
    if settings.redis_url != "embedded":
        return "the server of REDIS_URL"
    url = (settings.home / "redis" / "url").read_text().strip()
    ask = f".venv/bin/python -m exports.reader USER --redis {url}"
    return f"{url}  ({ask}; {home}make stop ends it)"


if __name__ == "__main__":
    end_process(main())
