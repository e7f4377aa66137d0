"""JSON lines -> schema raw, quickly where DuckDB finds every line, else line by line."""

import json
from collections.abc import Iterable, Mapping

import duckdb
import pyarrow as pa

from orchestration.landing.contract import (
    Entity,
    LandingError,
    LandingFile,
    canonical,
    readable,
    require_columns,
)
from orchestration.landing.lines import (
    NumberedLines,
    compression,
    count_plain_lines,
    problem_with_line,
)
from orchestration.landing.raw_tables import (
    Counts,
    NotPlainError,
    Relation,
    insert_malformed,
    insert_rows,
    literal_path,
    registered,
)


def read_plain_json_lines(connection: duckdb.DuckDBPyConnection, file: LandingFile) -> Counts:
    """Read JSON lines with DuckDB's CSV reader: one column, and a delimiter no JSON contains."""
    n_lines = count_plain_lines(file, quotes_count=False)
    lines = (
        "(select row_number() over () as line_number, line, null::varchar as error "
        "from read_csv($path, auto_detect = false, header = false, delim = '\0', quote = '', "
        f"escape = '', compression = '{compression(file)}', hive_partitioning = false, "
        "columns = {'line': 'VARCHAR'}))"
    )
    path = {"path": literal_path(file.path)}
    try:
        n_found = connection.execute(f"select count(*) from {lines}", path).fetchall()[0][0]
    except (duckdb.InvalidInputException, duckdb.IOException) as error:
        raise NotPlainError from error
    if n_found != n_lines:
        raise NotPlainError
    return _insert_json_lines(connection, file, lines, path)


def read_json_lines_carefully(connection: duckdb.DuckDBPyConnection, file: LandingFile) -> Counts:
    """Read JSON lines one by one, so that a line that is no text costs no other."""
    connection.execute(
        "create or replace temp table landing_lines "
        "(line_number bigint, line varchar, error varchar)"
    )
    lines = NumberedLines(file)
    while lines.fetch():
        first_number = lines.number + 1
        block = lines.take_all()
        table = pa.table(
            {
                "line_number": range(first_number, first_number + len(block)),
                "line": [readable(line.rstrip("\r\n")) for line in block],
                "error": pa.array([problem_with_line(line, 1, 1) for line in block], pa.string()),
            }
        )
        with registered(connection, "landing_block", table):
            connection.execute("insert into landing_lines from landing_block")
    counts = _insert_json_lines(connection, file, "landing_lines", {})
    connection.execute("drop table landing_lines")
    return counts


# A case, because DuckDB may evaluate the sides of an `and` in any order.
_IS_JSON_OBJECT = (
    "case when error is null and json_valid(line) then json_type(line) = 'OBJECT' else false end"
)


def _insert_json_lines(
    connection: duckdb.DuckDBPyConnection, file: LandingFile, lines: str, path: Mapping[str, str]
) -> Counts:
    """Insert from a relation of (line_number, line, error)."""
    keys = connection.execute(
        f"select distinct unnest(json_keys(line)) as key from {lines} where {_IS_JSON_OBJECT} "
        "order by key",
        path,
    ).fetchall()
    if not keys:
        raise LandingError(
            f"{file.source_file} is not JSON lines: none of its lines is a JSON object with "
            "members. Write one object a line, without brackets or commas around them."
        )
    spellings = _spellings(file.entity, [key for (key,) in keys])
    require_columns(file.entity, spellings, [key for (key,) in keys], source_file=file.source_file)
    known = [key for names in spellings.values() for key in names]
    columns = {
        column: f"coalesce({', '.join(f'v[{known.index(key) + 1}]' for key in names)})"
        for column, names in spellings.items()
    }
    relation = Relation(
        sql=(
            "(select line_number, line, json_extract_string(line, $pointers) as v "
            f"from {lines} where {_IS_JSON_OBJECT})"
        ),
        row="line_number",
        columns=columns,
        # A merge patch removes the members that it names with null (RFC 7396).
        attributes=(
            "nullif(json_merge_patch(line, $known)::varchar, '{}')"
            if len(known) < len(keys)
            else "null"
        ),
        parameters={
            **path,
            "pointers": [f"/{key}" for key in known],
            **({"known": json.dumps(dict.fromkeys(known))} if len(known) < len(keys) else {}),
        },
    )
    n_rows = insert_rows(connection, file.entity, relation, file.source_file)
    n_malformed = insert_malformed(
        connection,
        file,
        "(select line_number, line, coalesce(error, case when json_valid(line) "
        "then 'The line is JSON, but not an object.' else 'The line is not valid JSON.' end) "
        f"as error from {lines} where trim(line, e' \\t\\r') <> '' and not {_IS_JSON_OBJECT})",
        **path,
    )
    return Counts(n_rows, n_malformed)


def _spellings(entity: Entity, keys: Iterable[str]) -> dict[str, list[str]]:
    """Group keys by the contract column they mean; where a line has several, the first counts.

    The contract's own spelling comes first, then the order of the keys.
    """
    spellings: dict[str, list[str]] = {}
    for key in keys:
        column = canonical(entity, key)
        if column:
            spellings.setdefault(column, []).append(key)
    for column, names in spellings.items():
        names.sort(key=column.__ne__)
    return spellings
