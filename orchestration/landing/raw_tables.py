"""The schema raw: its tables, and how rows of a file get into them.

What is a customer's is hidden or left out here, so that nothing else has to think of it.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from exports import erasure, pseudonyms
from exports.erasure import ERASED_LINE, ERASED_ROW, is_erased, names_erased
from exports.pseudonyms import pseudonym_sql
from orchestration.landing.contract import ENTITIES, Entity, LandingFile

# What raw.malformed_lines keeps of a line: enough to recognise it.
KEPT_OF_MALFORMED_LINE = 10_000


@dataclass(frozen=True)
class Counts:
    """What a way of reading found in a file."""

    n_rows: int
    n_malformed: int = 0


@dataclass(frozen=True)
class Relation:
    """Something to insert from: SQL expressions over what follows `from`."""

    sql: str
    row: str
    columns: Mapping[str, str]
    attributes: str = "null"
    parameters: dict[str, Any] = field(default_factory=dict)


class NotPlainError(Exception):
    """The quick way of reading cannot vouch for every line of this file."""


def insert_rows(
    connection: duckdb.DuckDBPyConnection,
    entity: Entity,
    relation: Relation,
    source_file: str,
    *,
    source_file_sql: str = "$source_file",
) -> int:
    """Append a relation to the entity's raw table and return the number of rows."""
    is_hidden = _hides(connection, entity)
    values = ", ".join(
        f'{_hidden(value) if is_hidden and column in _IDS else value} as "{column}"'
        for column in entity.columns
        for value in [
            f"nullif({relation.columns[column]}, '')"
            if column in relation.columns
            else "null::varchar"
        ]
    )
    attributes = relation.attributes
    if is_hidden and attributes != "null":
        # A hash tells rows apart as the columns did.
        attributes = (
            f"case when {attributes} is not null "
            f"then json_object('hidden', {pseudonym_sql(attributes)})::varchar end"
        )
    rows = (
        f"select {source_file_sql} as source_file, {relation.row} as source_row, {values}, "
        f"{attributes} as attributes from {relation.sql}"
    )
    if "user_id" in entity.columns and connection.execute("from raw.erased_users").fetchone():
        # Whoever was erased stays so: the row is counted, and nothing of it is kept.
        emptied = ", ".join(
            f'case when not is_gone then "{column}" end as "{column}"' for column in entity.columns
        )
        rows = (
            f"select source_file, source_row, {emptied}, case when is_gone then '{ERASED_ROW}' "
            f"else attributes end from (select *, coalesce({is_erased('user_id')}, false) as "
            f"is_gone from ({rows}))"
        )
    return connection.execute(
        f"insert into raw.{entity.name} {rows}",
        # DuckDB refuses a parameter that the statement does not name.
        relation.parameters
        | ({"source_file": source_file} if "$source_file" in source_file_sql else {}),
    ).fetchall()[0][0]


# What names a customer, or a visit or order of one: everything that is compared and not computed
# with, but for products and types.
_IDS = ("user_id", "event_id", "session_id", "order_id")


def _hides(connection: duckdb.DuckDBPyConnection, entity: Entity) -> bool:
    """Whether ids of this entity are replaced by pseudonyms."""
    return "user_id" in entity.columns and pseudonyms.is_on(connection)


def _hidden(value: str) -> str:
    """The SQL of an id's pseudonym. Blanks are no id, and staging has to see that."""
    return (
        f"case when trim({value}, e' \\t\\r\\n') = '' then {value} else {pseudonym_sql(value)} end"
    )


def insert_malformed(
    connection: duckdb.DuckDBPyConnection, file: LandingFile, relation: str, **parameters: Any
) -> int:
    """Append (line_number, line, error) to raw.malformed_lines, return how many there were."""
    line = "left(line, $kept)"
    if _hides(connection, file.entity):
        line = f"'(not kept: ' || {pseudonym_sql('line')} || ')'"
    elif connection.execute("from raw.erased_users").fetchone():
        line = f"case when {names_erased('line')} then '{ERASED_LINE}' else {line} end"
    return connection.execute(
        f"insert into raw.malformed_lines "
        f"select $source_file, $entity, line_number, {line}, error from {relation}",
        {
            "source_file": file.source_file,
            "entity": file.entity.name,
            **({"kept": KEPT_OF_MALFORMED_LINE} if "$kept" in line else {}),
            **parameters,
        },
    ).fetchall()[0][0]


def table_relation(
    sql: str,
    *,
    row: str,
    matched: Mapping[str, int],
    header: Sequence[str],
    types: Sequence[str] | None = None,
    skip: Iterable[int] = (),
    parameters: Mapping[str, Any],
) -> Relation:
    """Describe a relation whose columns are c0, c1, ... in the order of the header.

    Args:
        sql: The relation.
        row: Expression for source_row.
        matched: Contract column -> position.
        header: Names; those at positions neither matched nor skipped become attributes.
        types: DuckDB types of the columns; None means that they all are text.
        skip: Positions that are neither.
        parameters: Of the sql.
    """
    known = {*matched.values(), *skip}
    further = [position for position in range(len(header)) if position not in known]
    types = types or ["VARCHAR"] * len(header)
    names = {
        f"attribute_{position}": header[position].strip() or f"column_{position + 1}"
        for position in further
    }
    members = ", ".join(
        f"$attribute_{position}, {_as_json(f'c{position}', types[position])}"
        for position in further
    )
    all_blank = " and ".join(
        f"{_as_json(f'c{position}', types[position])} is null" for position in further
    )
    return Relation(
        sql=sql,
        row=row,
        columns={column: _as_text(f"c{at}", types[at]) for column, at in matched.items()},
        attributes=(
            f"case when not ({all_blank}) then json_object({members})::varchar end"
            if further
            else "null"
        ),
        parameters={**parameters, **names},
    )


def _as_text(column: str, data_type: str) -> str:
    """Cast to text; what has members becomes JSON, because DuckDB's own notation is no format."""
    is_nested = data_type.endswith("]") or data_type.startswith(("STRUCT", "MAP", "UNION"))
    return f"to_json({column})::varchar" if is_nested else f"{column}::varchar"


def _as_json(column: str, data_type: str) -> str:
    if data_type == "VARCHAR":
        return f"nullif({column}, '')"
    if data_type in ("FLOAT", "DOUBLE"):
        # DuckDB writes NaN and Infinity bare, which no other JSON parser reads.
        return (
            f"case when isfinite({column}) then to_json({column}) "
            f"else to_json({column}::varchar) end"
        )
    return column


def literal_path(path: Path) -> str:
    """Return a path that DuckDB takes literally: it reads [, * and ? in file names as patterns."""
    return re.sub(r"([*?\[])", r"[\1]", str(path.absolute()))


def create_raw_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Create what is not there yet of the schema raw."""
    connection.execute("create schema if not exists raw")
    erasure.create_tables(connection)
    pseudonyms.create_table(connection)
    connection.execute(
        """
        create table if not exists raw.landing_files (
            source_file varchar,
            entity varchar,
            content_sha256 varchar,
            n_bytes bigint,
            n_rows bigint,
            n_malformed bigint,
            received_at timestamp,
            same_content_as varchar
        )
        """
    )
    connection.execute(
        """
        create table if not exists raw.adapter_files (
            source_file varchar, content_sha256 varchar, n_bytes bigint, received_at timestamp
        )
        """
    )
    connection.execute(
        """
        create table if not exists raw.malformed_lines (
            source_file varchar,
            entity varchar,
            line_number bigint,
            line varchar,
            error varchar
        )
        """
    )
    for entity in ENTITIES.values():
        columns = ", ".join(f'"{column}" varchar' for column in (*entity.columns, "attributes"))
        connection.execute(
            f"create table if not exists raw.{entity.name} "
            f"(source_file varchar, source_row bigint, {columns})"
        )


@contextlib.contextmanager
def changed_settings(connection: duckdb.DuckDBPyConnection, **settings: object) -> Iterator[None]:
    """Change settings of the connection for a while."""
    former = {}
    for name, value in settings.items():
        row = connection.execute(f"select current_setting('{name}')").fetchone()
        assert row is not None  # a select of a function has a row
        former[name] = row[0]
        connection.execute(f"set {name} = ?", [value])
    try:
        yield
    except duckdb.Error:
        # After an error, a transaction takes nothing but its end.
        with contextlib.suppress(duckdb.Error):
            connection.execute("rollback")
        raise
    finally:
        for name, value in former.items():
            connection.execute(f"set {name} = ?", [value])


@contextlib.contextmanager
def registered(connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> Iterator[None]:
    """Let SQL read an Arrow table for a while."""
    connection.register(name, table)
    try:
        yield
    finally:
        connection.unregister(name)
