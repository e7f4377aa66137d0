"""What each run saw, published or not: serving.run_metrics, which limits of drift are learned from.

Belongs here: that table. Does not belong here: what is measured and how it is judged
(`orchestration/drift.py`). No row names a user, so erasures and the clean-up of versions leave it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import date, datetime

import duckdb

from ml_assets.warehouse import transaction


@dataclass(frozen=True)
class RunMetric:
    """One figure of one run: a row of serving.run_metrics. Times are naive UTC.

    Attributes:
        run_number: Counts runs; a clock that is set back must not change which is the latest.
        run_id: Of Dagster.
        happened_at: When it was measured.
        as_of: The day the figure is about.
        version: The version that the run published; None if it did not.
        check_name: The check that looks at the figure.
        metric: What was counted.
        value: None where there was nothing to count.
        lowest: What was expected at least; None for no bound.
        highest: Likewise at most.
        outcome: passed, warned, blocked, accepted, not judged, or noted for what later runs ask.
        accepted: Who let a figure through that was out of range, and why.
        is_published: Whether the run got as far as to let readers see its version.
    """

    run_number: int
    run_id: str
    happened_at: datetime
    as_of: date
    version: str | None
    check_name: str
    metric: str
    value: float | None
    lowest: float | None
    highest: float | None
    outcome: str
    accepted: str | None
    is_published: bool


_COLUMNS = ", ".join(field.name for field in fields(RunMetric))

_TABLE = """
create schema if not exists serving;
create table if not exists serving.run_metrics (
    run_number bigint, run_id varchar, happened_at timestamp, as_of date, version varchar,
    check_name varchar, metric varchar, value double, lowest double, highest double,
    outcome varchar, accepted varchar, is_published boolean
)
"""


def published_metrics(connection: duckdb.DuckDBPyConnection) -> list[RunMetric]:
    """What published runs saw, in their order: of a day that several published, the last figures.

    `accepted` is there if any of them was accepted.
    """
    connection.execute(_TABLE)
    columns = _COLUMNS.replace(
        "accepted",
        "max(accepted) over (partition by check_name, metric, as_of) as accepted",
    )
    rows = connection.execute(
        f"select {columns} from serving.run_metrics where is_published"
        " qualify row_number() over"
        " (partition by check_name, metric, as_of order by run_number desc) = 1"
        " order by run_number, check_name, metric"
    ).fetchall()
    return [RunMetric(*row) for row in rows]


def number_of_run(connection: duckdb.DuckDBPyConnection, run_id: str) -> int:
    """The run's number, the next one if it has no rows yet."""
    connection.execute(_TABLE)
    ((number,),) = connection.execute(
        "select coalesce(max(run_number) filter (run_id = $run_id), max(run_number) + 1, 1)"
        " from serving.run_metrics",
        {"run_id": run_id},
    ).fetchall()
    return int(number)


def record(connection: duckdb.DuckDBPyConnection, rows: Sequence[RunMetric]) -> None:
    """Write what a step of a run saw, instead of what the same step wrote before."""
    with transaction(connection):
        connection.execute(_TABLE)
        for run_id, check in sorted({(row.run_id, row.check_name) for row in rows}):
            connection.execute(
                "delete from serving.run_metrics where run_id = ? and check_name = ?",
                (run_id, check),
            )
        marks = ", ".join("?" for _ in fields(RunMetric))
        for row in rows:
            connection.execute(
                f"insert into serving.run_metrics ({_COLUMNS}) values ({marks})", astuple(row)
            )


def mark_published(
    connection: duckdb.DuckDBPyConnection, run_ids: Iterable[str], version: str
) -> None:
    """From now on limits are learned from these runs: the one that published, and those it repeats.

    A run that is started again from its failed step has no figures of the steps before it.
    """
    connection.execute(_TABLE)
    connection.execute(
        "update serving.run_metrics set is_published = true, version = $version"
        " where list_contains($run_ids, run_id) and outcome <> 'blocked'",
        {"version": version, "run_ids": sorted(run_ids)},
    )
