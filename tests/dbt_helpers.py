"""Runs the real dbt project on a small warehouse of a test's own.

A test writes the rows it needs as dicts, builds the models it is about, and asks for rows back.
What the landing step does with files does not belong here: the raw tables are made directly.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import yaml
from dbt.adapters.duckdb.connections import DuckDBConnectionManager
from dbt.cli.main import dbtRunner

PROJECT_DIR = Path(__file__).resolve().parents[1] / "dbt_project"

# The files' own columns, after source_file and source_row. All of them arrive as text.
RAW_COLUMNS = {
    "events": [
        *("user_id", "product_id", "event_type", "event_ts", "event_id", "rating", "quantity"),
        *("price", "session_id", "order_id", "version", "rank", "variant", "attributes"),
    ],
    "products": [
        *("product_id", "title", "category", "brand", "description", "price", "margin", "img_url"),
        *("available_from", "available_until", "in_stock", "added_at", "attributes"),
    ],
    "users": ["user_id", "country", "age_band", "gender", "attributes"],
}

RECEIVED_AT = "2030-01-01 00:00:00"

Row = Mapping[str, Any]


class DbtFailedError(AssertionError):
    """A dbt command that did not succeed; the text holds the message of every failed node."""


def write_raw(
    warehouse: Path,
    *,
    events: Sequence[Row] = (),
    products: Sequence[Row] = (),
    users: Sequence[Row] = (),
    malformed: Sequence[Row] = (),
    received_at: str = RECEIVED_AT,
) -> None:
    """Create (or replace) the raw schema, as the landing step would leave it.

    Args:
        warehouse: The DuckDB file; made when missing.
        events: One dict a row; columns left out are NULL, values are turned into text.
            source_file is 'events/events.csv' and source_row counts from 1 unless given.
        products: Likewise, from 'products/products.csv'.
        users: Likewise, from 'users/users.csv'.
        malformed: Rows of raw.malformed_lines; entity is 'events' unless given, and line_number
            counts from 1001, behind every row.
        received_at: When every file arrived, naive UTC; later events are in the future.
    """
    with duckdb.connect(warehouse) as connection:
        write_raw_tables(
            connection,
            events=events,
            products=products,
            users=users,
            malformed=malformed,
            received_at=received_at,
        )


def write_raw_tables(
    connection: duckdb.DuckDBPyConnection,
    *,
    events: Sequence[Row] = (),
    products: Sequence[Row] = (),
    users: Sequence[Row] = (),
    malformed: Sequence[Row] = (),
    received_at: str = RECEIVED_AT,
) -> None:
    """Do what write_raw does, on an open connection: for compiled SQL in an in-memory DuckDB."""
    connection.execute("create schema if not exists raw")
    for entity, rows in {"events": events, "products": products, "users": users}.items():
        _write_entity(connection, entity, rows)
    _write_malformed(connection, malformed)
    _write_landing_files(connection, received_at)


def run_dbt(
    command: str,
    warehouse: Path,
    *,
    select: Sequence[str] = (),
    exclude: Sequence[str] = (),
    variables: Mapping[str, Any] | None = None,
) -> Any:
    """Run one dbt command (build, run, test, compile, parse ...) in this process.

    Args:
        command: What comes after `dbt`, for example 'build'.
        warehouse: The DuckDB file to build in; no connection of the test may be open on it.
        select: Selectors, as after `--select`: ['+int_as_of', 'staging'].
        exclude: Selectors, as after `--exclude`.
        variables: As after `--vars`: {'as_of': '2020-01-31'}.

    Returns:
        What dbtRunner returns as its result (run results, a manifest ...).

    Raises:
        DbtFailedError: if a node failed, with the messages of all that did.
    """
    arguments = [command, "--project-dir", str(PROJECT_DIR), "--profiles-dir", str(PROJECT_DIR)]
    # Buildable: a test that reads a model this command leaves out is left out too.
    arguments += ["--quiet", "--indirect-selection", "buildable"]
    if select:
        arguments += ["--select", *select]
    if exclude:
        arguments += ["--exclude", *exclude]
    if variables:
        arguments += ["--vars", yaml.safe_dump(dict(variables))]
    with _environment(
        RECMART_WAREHOUSE=str(warehouse),
        DBT_TARGET_PATH=str(_target_path()),
        DBT_LOG_PATH=str(_target_path()),
        DBT_SEND_ANONYMOUS_USAGE_STATS="false",
    ):
        try:
            outcome = dbtRunner().invoke(arguments)
        finally:
            _close_warehouse()
    if not outcome.success:
        raise DbtFailedError(_messages(outcome))
    return outcome.result


def query(warehouse: Path, sql: str) -> list[tuple[Any, ...]]:
    """Rows of one statement, read from the warehouse."""
    with duckdb.connect(warehouse, read_only=True) as connection:
        return connection.execute(sql).fetchall()


def compiled_sql(name: str) -> str:
    """The SQL a model or a singular test was compiled to by the last run_dbt that selected it.

    Compiled for a warehouse called memory.duckdb, it runs in an in-memory DuckDB as it is: both
    call their database `memory`.
    """
    paths = [
        path
        for path in (_target_path() / "compiled").rglob(f"{name}.sql")
        # Unit tests are compiled too, under the name of their YAML file.
        if not any(folder.suffix == ".yml" for folder in path.parents)
    ]
    if len(paths) != 1:
        raise FileNotFoundError(f"{name} is compiled {len(paths)} times: run_dbt('compile') first")
    return paths[0].read_text()


def _write_entity(connection: duckdb.DuckDBPyConnection, entity: str, rows: Sequence[Row]) -> None:
    columns = RAW_COLUMNS[entity]
    declared = ", ".join(f"{column} varchar" for column in columns)
    connection.execute(
        f"create or replace table raw.{entity} (source_file varchar, source_row bigint, {declared})"
    )
    values = []
    for position, row in enumerate(rows, start=1):
        unknown = set(row) - {"source_file", "source_row", *columns}
        if unknown:
            raise ValueError(f"raw.{entity} has no column {sorted(unknown)}")
        landed = [None if row.get(c) is None else str(row[c]) for c in columns]
        source = [row.get("source_file", f"{entity}/{entity}.csv"), row.get("source_row", position)]
        values.append(source + landed)
    if values:
        marks = f"({', '.join('?' * (len(columns) + 2))})"
        connection.execute(
            f"insert into raw.{entity} values {', '.join([marks] * len(values))}",
            list(chain.from_iterable(values)),
        )


def _write_malformed(connection: duckdb.DuckDBPyConnection, rows: Sequence[Row]) -> None:
    connection.execute(
        "create or replace table raw.malformed_lines (source_file varchar, entity varchar,"
        " line_number bigint, line varchar, error varchar)"
    )
    for position, row in enumerate(rows, start=1001):
        entity = row.get("entity", "events")
        connection.execute(
            "insert into raw.malformed_lines values (?, ?, ?, ?, ?)",
            [
                row.get("source_file", f"{entity}/{entity}.csv"),
                entity,
                row.get("line_number", position),
                row.get("line"),
                row.get("error", "unreadable"),
            ],
        )


def _write_landing_files(connection: duckdb.DuckDBPyConnection, received_at: str) -> None:
    landed = " union all ".join(
        f"select source_file, '{entity}' as entity, 1 as n_rows, 0 as n_malformed,"
        f" hash(landed) as content from raw.{entity} as landed"
        for entity in RAW_COLUMNS
    )
    connection.execute(
        f"""
        create or replace table raw.landing_files as
        select
            source_file,
            entity,
            md5(sum(content::hugeint)::varchar) as content_sha256,
            0::bigint as n_bytes,
            sum(n_rows)::bigint as n_rows,
            sum(n_malformed)::bigint as n_malformed,
            ?::timestamp as received_at,
            null::varchar as same_content_as
        from (
            {landed}
            union all
            select source_file, entity, 0, 1, hash(line) from raw.malformed_lines
        )
        group by source_file, entity
        """,
        [received_at],
    )


@cache
def _target_folder() -> tempfile.TemporaryDirectory[str]:
    """One folder for a whole test session: dbt parses the project once, not once a test."""
    return tempfile.TemporaryDirectory(prefix="recmart-dbt-")


def _target_path() -> Path:
    return Path(_target_folder().name)


def _close_warehouse() -> None:
    # dbt-duckdb keeps its connection for the next command of the process; as long as it is open,
    # a test can neither read the file with other settings nor see it checkpointed.
    environment = DuckDBConnectionManager._ENV
    if environment is not None:
        environment.close()
    DuckDBConnectionManager.close_all_connections()


@contextmanager
def _environment(**settings: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _messages(outcome: Any) -> str:
    if outcome.exception is not None:
        return str(outcome.exception)
    results = getattr(outcome.result, "results", None) or []
    failed = [r for r in results if str(r.status) in ("error", "fail", "runtime error")]
    return "\n".join(f"{r.node.unique_id}: {r.message}" for r in failed) or "dbt failed"
