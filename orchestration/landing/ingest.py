"""Landing files -> schema raw of the warehouse: every row as it arrived, every file once.

Nothing is judged here, so nothing is dropped: values stay text, a line that is no record goes to
raw.malformed_lines with its number, and deciding what is valid is staging's task (dbt_project/).
What the columns are called is in contract.py.

CSV and JSON lines are read quickly or carefully. DuckDB's reader is quick, but around a broken
quote it swallows the lines up to the next one and counts records, not lines. Hence its answer is
taken only where every line of the file became one row; any other file is read again line by line.
"""

import contextlib
import gzip
import hashlib
import io
import json
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from exports import erasure, pseudonyms
from exports.erasure import ERASED_LINE, ERASED_ROW, is_erased, names_erased
from exports.errors import PseudonymError
from exports.pseudonyms import pseudonym_sql
from ml_assets.warehouse import transaction
from orchestration.landing.contract import (
    ENTITIES,
    LAYOUT,
    Entity,
    LandingError,
    LandingFile,
    canonical,
    format_of,
    is_utf8,
    list_landing_files,
    match_columns,
    normalise,
    read_event_types,
    readable,
    require_columns,
    require_format,
)
from orchestration.landing.erasure import FOLDER as ERASURES

ADAPTER = "adapter.sql"

# Longer lines are no events. Bounds the memory a file without line ends can take.
_LONGEST_LINE = 16 * 2**20
# The longest value that Python's csv module takes is a bit longer.
_LONGEST_HEADER = 100_000
# Some ten thousand lines: few enough to be held as Python strings, many enough to insert at once.
_CHARACTERS_PER_BLOCK = 2 * 2**20
# A quote that is never closed gives back millions of lines at once.
_MALFORMED_PER_BLOCK = 100_000
# What raw.malformed_lines keeps of a line: enough to recognise it.
_KEPT_OF_MALFORMED_LINE = 10_000
_LONGEST_ERROR = 500
# What pyarrow raises for damage; the last for a column whose name is no text.
_PARQUET_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
_DELIMITERS = (",", ";", "\t", "|")
_SCRATCH = "recmart_adapter"

Outcome = Literal["loaded", "replaced", "unchanged", "same content"]


@dataclass(frozen=True)
class FileOutcome:
    """What became of one file (of an adapter: of one of its views)."""

    source_file: str
    entity: str
    outcome: Outcome
    n_rows: int
    n_malformed: int
    same_content_as: str | None = None


@dataclass(frozen=True)
class IngestSummary:
    """What one ingest did, a line per file in the order in which they were read."""

    files: tuple[FileOutcome, ...]

    @property
    def changed(self) -> tuple[FileOutcome, ...]:
        """The files whose rows were loaded or replaced by this ingest."""
        return tuple(file for file in self.files if file.outcome in ("loaded", "replaced"))

    @property
    def n_rows(self) -> int:
        """Rows that this ingest loaded."""
        return sum(file.n_rows for file in self.changed)

    @property
    def n_malformed(self) -> int:
        """Malformed lines that this ingest recorded."""
        return sum(file.n_malformed for file in self.changed)

    def as_markdown(self) -> str:
        """Return a table with a line per file."""
        lines = ["| file | what happened | rows | malformed lines |", "| --- | --- | ---: | ---: |"]
        for file in self.files:
            outcome = f"same content as {file.same_content_as}"
            lines.append(
                f"| {file.source_file} | {outcome if file.same_content_as else file.outcome} "
                f"| {file.n_rows:,} | {file.n_malformed:,} |"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class _Counts:
    n_rows: int
    n_malformed: int = 0


@dataclass(frozen=True)
class _Relation:
    """Something to insert from: SQL expressions over what follows `from`."""

    sql: str
    row: str
    columns: Mapping[str, str]
    attributes: str = "null"
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Arrived:
    """A new Parquet file."""

    file: LandingFile
    fingerprint: str
    n_bytes: int
    n_rows: int


_Reader = Callable[[duckdb.DuckDBPyConnection, LandingFile], _Counts]


class _NotPlainError(Exception):
    """The quick way of reading cannot vouch for every line of this file."""


class _OpenQuoteError(Exception):
    """The text ends inside a quoted value: it may go on in the next line."""


# ---------------------------------------------------------------- the two public functions


def ingest_folder(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    *,
    received_at: datetime,
    progress: Callable[[str], None],
    pseudonym_key: str | None = None,
) -> IngestSummary:
    """Load what is new in the landing folder into the schema raw.

    A file is known by its path and the SHA-256 of its bytes: unchanged content is not loaded
    again, changed content replaces the file's rows, and content that is already there under
    another name is only noted. Each file is one transaction, but new Parquet files with the same
    columns are one together: a single insert takes half the time of one for each. Rows of files
    that have left the folder stay, because shops archive what was loaded.

    source_row is the number of the line on which a record starts (the header is line 1), in
    Parquet the number of the row from 1. Rows of an adapter have the source_file and source_row
    that its view gives them; without, the name "adapter.sql#<view>" and a number in sorted order.

    Args:
        connection: The warehouse, writable, without an open transaction.
        folder: The landing folder; with an adapter.sql in it, only that is run.
        received_at: Noted with what is loaded; naive means UTC.
        progress: Called with a sentence before and after each file.
        pseudonym_key: Where it is given, ids of users, visits, orders and events are replaced by
            keyed hashes, and nothing is kept of further columns and malformed lines of events and
            users but a hash; see `exports/pseudonyms.py`.

    Returns:
        A line per file.

    Raises:
        LandingError: if the folder, or one or more of its files cannot be used. Former rows of
            these files are still there, and all other files are loaded. Or if the key is not the
            one that the warehouse was filled with.
    """
    if received_at.tzinfo is not None:
        received_at = received_at.astimezone(UTC).replace(tzinfo=None)
    if not folder.is_dir():
        raise LandingError(
            f"The landing folder {folder} does not exist. Set RECMART_DATA to the folder with the "
            f"shop's files. {LAYOUT}."
        )
    # Times with a zone become text in UTC; and row_number() is the number of the line only if rows
    # come in the order of the file.
    with _settings(connection, TimeZone="UTC", preserve_insertion_order=True):
        _create_raw_tables(connection)
        try:
            pseudonyms.use_key(connection, pseudonym_key)
        except PseudonymError as error:
            raise LandingError(str(error)) from None
        _refuse_second_shop(connection, folder)
        if (folder / ADAPTER).exists():
            files = _ingest_adapter(connection, folder, received_at, progress)
        else:
            files = _ingest_files(connection, folder, received_at, progress)
        for entity in ("events", "products"):
            _require_rows(connection, entity, folder)
    return IngestSummary(tuple(files))


def check_event_types(connection: duckdb.DuckDBPyConnection, weights_csv: Path) -> None:
    """Check the event weights, and that every event type that arrived has one.

    Blank event types pass: staging refuses those rows one by one.

    Args:
        connection: The warehouse after ingest_folder.
        weights_csv: The dbt seed event_weights.csv.

    Raises:
        LandingError: if the seed is wrong, or names no weight for a type in raw.events.
    """
    known = read_event_types(weights_csv)
    unknown = connection.execute(
        """
        select
            -- As base_events does it.
            lower(trim(event_type, e' \\t\\r\\n')) as name,
            count(*) as n_rows,
            min((source_file, source_row)) as first_row
        from raw.events
        where name <> '' and not list_contains(?, name)
        group by name
        order by name
        """,
        [sorted(known)],
    ).fetchall()
    if unknown:

        def sentence(shown: Callable[[str], str]) -> str:
            found = "; ".join(
                f"{shown(name)} in {n_rows:,} row{'s'[: n_rows != 1]}, first in {file}, row {row}"
                for name, n_rows, (file, row) in unknown
            )
            if all(name in ("event_type", "interaction_type") for name, *_ in unknown):
                return f"There is a second header line: {found}. Take it out of the file."
            return (
                f"There are events of a type that has no weight in {weights_csv.name}: {found}. "
                f"Add a line for it to {weights_csv} (weight 0 if it says nothing about taste), "
                "or correct the file."
            )

        raise LandingError(sentence(repr), discreet=sentence(lambda _: "a type"))


# ---------------------------------------------------------------- the folder


def _refuse_second_shop(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """Raise if the warehouse was filled by an adapter and the folder has none, or vice versa.

    What was loaded before the first event (a shop that is still being set up) may be replaced.
    """
    adapted = connection.execute(
        "select bool_or(starts_with(source_file, ?)) from raw.landing_files "
        "where exists (from raw.events)",
        [ADAPTER],
    ).fetchall()[0][0]
    if adapted is None or adapted == (folder / ADAPTER).exists():
        return
    former = "an adapter.sql" if adapted else "landing files without an adapter.sql"
    raise LandingError(
        f"This warehouse was filled from {former}, so {folder} is another shop, and the two would "
        "mix. Set RECMART_HOME to a new folder for it, or remove the old warehouse.duckdb."
    )


def _require_rows(connection: duckdb.DuckDBPyConnection, entity: str, folder: Path) -> None:
    if not connection.execute(f"select 1 from raw.{entity} limit 1").fetchall():
        raise LandingError(
            f"There is not one row of {entity} in {folder}, nor from an earlier load; without "
            f"{entity} there is nothing to recommend. {LAYOUT}."
        )


# ---------------------------------------------------------------- one file


def _ingest_files(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    received_at: datetime,
    progress: Callable[[str], None],
) -> list[FileOutcome]:
    """Load new Parquet files together, then every other file one by one.

    Raises:
        LandingError: with a line for each file that cannot be used; all others are loaded.
    """
    files = list_landing_files(folder)
    loaded: dict[str, FileOutcome] = {}
    for arrived in _new_parquet_files_by_shape(connection, files):
        # What is wrong, and with which of the files, is told when they are loaded one by one.
        with contextlib.suppress(LandingError, _NotPlainError):
            outcomes = _ingest_together(connection, folder, arrived, received_at, progress)
            loaded |= {outcome.source_file: outcome for outcome in outcomes}
    outcomes = []
    errors: list[LandingError] = []
    for file in files:
        try:
            outcomes.append(
                loaded.get(file.source_file)
                or _ingest_file(connection, file, received_at, progress)
            )
        except LandingError as error:
            errors.append(error)
    if errors:
        raise LandingError(
            "\n".join(map(str, errors)), discreet="\n".join(error.discreet for error in errors)
        )
    for source_file, n_rows in connection.execute(
        "select source_file, n_rows from raw.landing_files"
        " where source_file not in (select unnest($there::varchar[])) order by source_file",
        {"there": [file.source_file for file in files]},
    ).fetchall():
        progress(f"{source_file}: no longer there; rows of it that stay: {n_rows:,}")
    return outcomes


def _new_parquet_files_by_shape(
    connection: duckdb.DuckDBPyConnection, files: Sequence[LandingFile]
) -> list[list[_Arrived]]:
    """Group the Parquet files of which neither the name nor the content was loaded before.

    Files of one group are of one entity and have the same columns of the same types. What is
    alone of its kind, or cannot be opened, is in no group.
    """
    known = connection.execute("select source_file, content_sha256 from raw.landing_files")
    seen = {value for row in known.fetchall() for value in row}
    groups: dict[Any, list[_Arrived]] = {}
    for file in files:
        if file.format != "parquet" or file.source_file in seen or not is_utf8(str(file.path)):
            continue
        try:
            fingerprint, n_bytes = _fingerprint(file.path, file.source_file)
            metadata = pq.read_metadata(file.path)
        except (LandingError, *_PARQUET_ERRORS):
            continue
        if fingerprint in seen:
            continue
        seen.add(fingerprint)
        columns = [metadata.schema.column(position) for position in range(metadata.num_columns)]
        shape = tuple((c.path, c.physical_type, str(c.logical_type)) for c in columns)
        groups.setdefault((file.entity.name, shape), []).append(
            _Arrived(file, fingerprint, n_bytes, metadata.num_rows)
        )
    return [arrived for arrived in groups.values() if len(arrived) > 1]


def _ingest_together(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    arrived: Sequence[_Arrived],
    received_at: datetime,
    progress: Callable[[str], None],
) -> list[FileOutcome]:
    """Load the Parquet files of one group in one transaction."""
    entity = arrived[0].file.entity
    n_bytes = sum(each.n_bytes for each in arrived)
    progress(f"{len(arrived)} new files of {entity.name}: reading {n_bytes / 1e6:,.1f} MB")
    outcomes = []
    with transaction(connection):
        n_rows = _insert_parquet(
            connection,
            [each.file for each in arrived],
            # The path below the folder, as LandingFile spells it.
            source_file_sql=f"substr(path, {len(str(folder.absolute())) + 2})",
        )
        if n_rows != sum(each.n_rows for each in arrived):
            raise _NotPlainError
        for each in arrived:
            _register(
                connection,
                source_file=each.file.source_file,
                entity=entity,
                fingerprint=each.fingerprint,
                n_bytes=each.n_bytes,
                counts=_Counts(each.n_rows),
                received_at=received_at,
            )
            outcomes.append(
                FileOutcome(each.file.source_file, entity.name, "loaded", each.n_rows, 0)
            )
    for outcome in outcomes:
        progress(f"{outcome.source_file}: loaded, {outcome.n_rows:,} rows")
    return outcomes


def _ingest_file(
    connection: duckdb.DuckDBPyConnection,
    file: LandingFile,
    received_at: datetime,
    progress: Callable[[str], None],
) -> FileOutcome:
    reading = _READERS[require_format(file)]
    fingerprint, n_bytes = _fingerprint(file.path, file.source_file)
    former = connection.execute(
        "select content_sha256, n_rows, n_malformed, same_content_as from raw.landing_files "
        "where source_file = ?",
        [file.source_file],
    ).fetchone()
    if former and former[0] == fingerprint:
        progress(f"{file.source_file}: unchanged")
        return FileOutcome(file.source_file, file.entity.name, "unchanged", *former[1:])
    same_bytes = connection.execute(
        "select source_file from raw.landing_files where entity = ? and content_sha256 = ? "
        "and same_content_as is null and source_file <> ? order by source_file",
        [file.entity.name, fingerprint, file.source_file],
    ).fetchall()
    # Read in another way, the same bytes are other content.
    twin = next((name for (name,) in same_bytes if format_of(name) == file.format), None)

    def register(counts: _Counts, same_content_as: str | None) -> None:
        _register(
            connection,
            source_file=file.source_file,
            entity=file.entity,
            fingerprint=fingerprint,
            n_bytes=n_bytes,
            counts=counts,
            received_at=received_at,
            same_content_as=same_content_as,
        )

    if twin:
        with transaction(connection):
            _forget(connection, file.entity, file.source_file)
            register(_Counts(0), twin)
        progress(f"{file.source_file}: has the same content as {twin}, not loaded again")
        return FileOutcome(file.source_file, file.entity.name, "same content", 0, 0, twin)

    progress(f"{file.source_file}: reading {n_bytes / 1e6:,.1f} MB")
    counts = _read(connection, file, reading, lambda counts: register(counts, None))
    outcome: Outcome = "replaced" if former else "loaded"
    progress(
        f"{file.source_file}: {outcome}, {counts.n_rows:,} rows, "
        f"{counts.n_malformed:,} malformed lines"
    )
    return FileOutcome(
        file.source_file, file.entity.name, outcome, counts.n_rows, counts.n_malformed
    )


def _read(
    connection: duckdb.DuckDBPyConnection,
    file: LandingFile,
    readers: Sequence[_Reader],
    register: Callable[[_Counts], None],
) -> _Counts:
    """Replace the file's rows in one transaction, in the first way that can vouch for them."""
    for read in readers:
        with contextlib.suppress(_NotPlainError), transaction(connection):
            _forget(connection, file.entity, file.source_file)
            counts = read(connection, file)
            register(counts)
            return counts
    raise AssertionError(f"the careful way of reading {file.source_file} has to answer")


def _fingerprint(path: Path, source_file: str) -> tuple[str, int]:
    """Return the SHA-256 of a file's bytes, and their number."""
    if path.exists() and not path.is_file():
        # Reading a pipe would wait for a writer for ever.
        raise LandingError(
            f"{source_file} is a pipe, socket or device and no file. Write its content to a file, "
            "and move it out of the landing folder."
        )
    try:
        with path.open("rb") as stream:
            fingerprint = hashlib.file_digest(stream, "sha256").hexdigest()
            n_bytes = stream.tell()
    except OSError as error:
        raise LandingError(
            f"{source_file} cannot be opened: {error.strerror}. Let the user that runs the "
            "pipeline read it, or move it out of the landing folder."
        ) from error
    if n_bytes == 0:
        raise LandingError(
            f"{source_file} is empty (0 bytes), as after an interrupted copy. Write it again, "
            "or move it out of the landing folder."
        )
    return fingerprint, n_bytes


def _forget(connection: duckdb.DuckDBPyConnection, entity: Entity, source_file: str) -> None:
    """Remove a file's rows, or hand them to another file that has the content they come from."""
    heir = connection.execute(
        "select min(source_file) from raw.landing_files where same_content_as = ?", [source_file]
    ).fetchall()[0][0]
    if heir is None:
        connection.execute(f"delete from raw.{entity.name} where source_file = ?", [source_file])
        connection.execute("delete from raw.malformed_lines where source_file = ?", [source_file])
    else:
        for table in (entity.name, "malformed_lines"):
            connection.execute(
                f"update raw.{table} set source_file = ? where source_file = ?", [heir, source_file]
            )
        connection.execute(
            """
            update raw.landing_files as heir
            set same_content_as = null, n_rows = gone.n_rows, n_malformed = gone.n_malformed
            from raw.landing_files as gone
            where heir.source_file = ? and gone.source_file = ?
            """,
            [heir, source_file],
        )
        connection.execute(
            "update raw.landing_files set same_content_as = ? where same_content_as = ?",
            [heir, source_file],
        )
    connection.execute("delete from raw.landing_files where source_file = ?", [source_file])


def _register(
    connection: duckdb.DuckDBPyConnection,
    *,
    source_file: str,
    entity: Entity,
    fingerprint: str,
    n_bytes: int,
    counts: _Counts,
    received_at: datetime,
    same_content_as: str | None = None,
) -> None:
    connection.execute(
        "insert into raw.landing_files values (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            source_file,
            entity.name,
            fingerprint,
            n_bytes,
            counts.n_rows,
            counts.n_malformed,
            received_at,
            same_content_as,
        ],
    )


# ---------------------------------------------------------------- inserting


def _insert(
    connection: duckdb.DuckDBPyConnection,
    entity: Entity,
    relation: _Relation,
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


def _insert_malformed(
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
            **({"kept": _KEPT_OF_MALFORMED_LINE} if "$kept" in line else {}),
            **parameters,
        },
    ).fetchall()[0][0]


def _table_relation(
    sql: str,
    *,
    row: str,
    matched: Mapping[str, int],
    header: Sequence[str],
    types: Sequence[str] | None = None,
    skip: Iterable[int] = (),
    parameters: Mapping[str, Any],
) -> _Relation:
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
    return _Relation(
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


def _literal_path(path: Path) -> str:
    """Return a path that DuckDB takes literally: it reads [, * and ? in file names as patterns."""
    return re.sub(r"([*?\[])", r"[\1]", str(path.absolute()))


# ---------------------------------------------------------------- Parquet


def _read_parquet(connection: duckdb.DuckDBPyConnection, file: LandingFile) -> _Counts:
    return _Counts(_insert_parquet(connection, [file], source_file_sql="$source_file"))


def _insert_parquet(
    connection: duckdb.DuckDBPyConnection, files: Sequence[LandingFile], *, source_file_sql: str
) -> int:
    """Append the rows of Parquet files of one shape.

    Args:
        connection: The warehouse.
        files: All of them with the columns of the first.
        source_file_sql: An expression over `path`, the absolute path of a row's file, which is
            there only where `files` are several.

    Raises:
        LandingError: naming the first file.
    """
    file = files[0]
    try:
        # DuckDB would rename a second column of the same name instead of telling.
        header = pq.read_schema(file.path).names
        matched = match_columns(file.entity, header, source_file=file.source_file)
        # DuckDB cannot number the rows of a file that has a column of this name, nor name the
        # file of a row.
        numbered = "file_row_number" not in header
        named = len(files) > 1
        if named and not (numbered and "filename" not in header):
            raise _NotPlainError
        # hive_partitioning: a folder called day=1 adds a column that is not in the header.
        scan = (
            "read_parquet($paths, binary_as_string = true, hive_partitioning = false, "
            f"filename = {str(named).lower()}, file_row_number = {str(numbered).lower()})"
        )
        paths = {"paths": [_literal_path(each.path) for each in files]}
        described = connection.execute(f"describe from {scan}", paths).fetchall()
        names = [f"c{position}" for position in range(len(header))]
        further = {"file_row_number": "row", "filename": "path"}
        names += [further[row[0]] for row in described[len(header) :]]
        relation = _table_relation(
            f"{scan} as parquet({', '.join(names)})",
            row="row + 1" if numbered else "row_number() over ()",
            matched=matched,
            header=header,
            types=[row[1] for row in described[: len(header)]],
            parameters=paths,
        )
        # The rows bring their numbers along, so their order is free. Keeping it costs twice the
        # time: rows then wait in memory for their turn and are compressed at the end.
        with _settings(connection, preserve_insertion_order=not numbered):
            return _insert(
                connection,
                file.entity,
                relation,
                file.source_file,
                source_file_sql=source_file_sql,
            )
    except (duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise
    except (duckdb.Error, *_PARQUET_ERRORS) as error:
        what = f"{file.source_file} cannot be loaded as Parquet"
        remedy = (
            "If it is damaged or half-written, write it again, or move it out of the landing "
            "folder."
        )
        raise LandingError(
            f"{what} ({_first_line(error)}). {remedy}", discreet=f"{what}. {remedy}"
        ) from error


# ---------------------------------------------------------------- CSV


@dataclass(frozen=True)
class _CsvShape:
    """What the header line tells."""

    delimiter: str
    header: list[str]
    matched: dict[str, int]


def _read_plain_csv(connection: duckdb.DuckDBPyConnection, file: LandingFile) -> _Counts:
    """Read a CSV file of which every line is a record, with DuckDB's reader."""
    n_lines = _count_plain_lines(file, quotes_count=True)
    lines = _NumberedLines(file)
    shape = _read_header(lines, file)
    if lines.number != 1:
        raise _NotPlainError
    columns = ", ".join(f"'c{position}': 'VARCHAR'" for position in range(len(shape.header)))
    relation = _table_relation(
        "read_csv($path, auto_detect = false, header = true, delim = $delimiter, quote = '\"', "
        f"escape = '\"', compression = '{_compression(file)}', hive_partitioning = false, "
        f"columns = {{{columns}}})",
        row="row_number() over () + 1",
        matched=shape.matched,
        header=shape.header,
        parameters={"path": _literal_path(file.path), "delimiter": shape.delimiter},
    )
    try:
        n_rows = _insert(connection, file.entity, relation, file.source_file)
    except (duckdb.InvalidInputException, duckdb.IOException) as error:
        raise _NotPlainError from error
    if n_rows != n_lines - 1:
        raise _NotPlainError
    return _Counts(n_rows)


def _read_csv_carefully(connection: duckdb.DuckDBPyConnection, file: LandingFile) -> _Counts:
    """Read a CSV file line by line, so that one broken record costs no other.

    A blank line is no record, and delimiters too many at the end of a line are left out, as in
    DuckDB. Where a quote is closed in the middle of a value or never, only the line on which that
    record starts is malformed, and reading goes on with the next.
    """
    lines = _NumberedLines(file)
    shape = _read_header(lines, file)
    relation = _table_relation(
        "landing_block",
        row="line_number",
        matched=shape.matched,
        header=shape.header,
        parameters={},
    )
    n_rows = n_malformed = 0
    while lines.fetch():
        numbers, values, malformed = _parse_block(lines, shape.delimiter, len(shape.header))
        block = pa.table(
            [pa.array(numbers, pa.int64()), *(pa.array(column, pa.string()) for column in values)],
            names=["line_number", *(f"c{position}" for position in range(len(shape.header)))],
        )
        with _registered(connection, "landing_block", block):
            n_rows += _insert(connection, file.entity, relation, file.source_file)
        n_malformed += _insert_malformed_block(connection, file, malformed)
    return _Counts(n_rows, n_malformed)


def _insert_malformed_block(
    connection: duckdb.DuckDBPyConnection,
    file: LandingFile,
    malformed: Sequence[tuple[int, str, str]],
) -> int:
    if not malformed:
        return 0
    table = pa.table(
        {
            "line_number": [number for number, _, _ in malformed],
            "line": [readable(line[:_KEPT_OF_MALFORMED_LINE]) for _, line, _ in malformed],
            "error": [error for _, _, error in malformed],
        }
    )
    with _registered(connection, "landing_malformed", table):
        return _insert_malformed(connection, file, "landing_malformed")


def _read_header(lines: "_NumberedLines", file: LandingFile) -> _CsvShape:
    """Take the first record off the lines and find the contract's columns in it."""
    text = ""
    while not text.strip() and lines.fetch():
        text = lines.take()
    if not text.strip():
        raise LandingError(
            f"{file.source_file} has no header line. Its first line has to name the columns; "
            f"required are {', '.join(file.entity.required)}."
        )
    if not is_utf8(text) or "\0" in text:
        raise LandingError(
            f"{file.source_file}: the header is not UTF-8 text. Save the file as CSV in UTF-8, "
            "or move it out of the landing folder."
        )
    n_quotes = text.count('"')
    while n_quotes % 2 and len(text) < _LONGEST_HEADER and lines.fetch():
        line = lines.take()
        text += line
        n_quotes += line.count('"')
    if len(text) >= _LONGEST_HEADER:
        raise LandingError(
            f"{file.source_file}: the header is longer than {_LONGEST_HEADER:,} characters, as in "
            "a file that is no CSV or has a quote that is never closed. Its first line has to "
            "name the columns."
        )

    def split(delimiter: str) -> list[str]:
        try:
            return _split_record(text, delimiter)
        except (_OpenQuoteError, ValueError):
            return []

    def n_known_and_all(delimiter: str) -> tuple[int, int]:
        header = split(delimiter)
        return len({canonical(file.entity, name) for name in header} - {None}), len(header)

    # The first of the best: a header of one column is a comma's.
    delimiter = max(_DELIMITERS, key=n_known_and_all)
    header = split(delimiter)
    if not header:
        raise LandingError(
            f"{file.source_file}: the header has a quote in the wrong place: "
            f"{text.strip()[:_LONGEST_ERROR]!r}. "
            "Its first line has to name the columns.",
            discreet=f"{file.source_file}: the header has a quote in the wrong place. Its first "
            "line has to name the columns.",
        )
    # A delimiter at the end of every line makes a last column without a name, which is no clash.
    named = [name if name.strip() else f"column_{at + 1}" for at, name in enumerate(header)]
    return _CsvShape(
        delimiter, named, match_columns(file.entity, named, source_file=file.source_file)
    )


def _parse_block(
    lines: "_NumberedLines", delimiter: str, n_columns: int
) -> tuple[list[int], list[list[str]], list[tuple[int, str, str]]]:
    """Take fetched lines, and those that belong to the last record, and parse them.

    Returns:
        The line numbers of the records, their values column by column, and the malformed
        lines as (line number, text, error).
    """
    # Lines without quotes are split together, and so are lines of quoted values only, which takes
    # a fraction of the time of splitting each.
    separators = (delimiter, f'"{delimiter}"')
    together: list[tuple[list[int], list[str]]] = [([], []), ([], [])]
    numbers: list[int] = []
    records: list[list[str]] = []
    malformed: list[tuple[int, str, str]] = []
    while lines.fetched and len(malformed) < _MALFORMED_PER_BLOCK:
        number = lines.number + 1
        line = lines.take()
        text = line.rstrip("\r\n")
        if '"' not in text:
            n_values = text.count(delimiter) + 1
            if n_values > n_columns and text.endswith(delimiter * (n_values - n_columns)):
                text, n_values = text[: n_columns - n_values], n_columns
            error = _problem_with_line(text, n_values, n_columns)
            if text and not error:
                together[0][0].append(number)
                together[0][1].append(text)
        elif _has_quoted_values_only(text, separators[1], n_columns):
            error = _problem_with_line(text, n_columns, n_columns)
            if not error:
                together[1][0].append(number)
                together[1][1].append(text[1:-1])
        else:
            text, record, error = _take_record(line, lines, delimiter, n_columns)
            if not error:
                numbers.append(number)
                records.append(record)
        if error:
            malformed.append((number, text, error))
    columns = [list(column) for column in zip(*records, strict=True)] or [
        [] for _ in range(n_columns)
    ]
    for separator, (more_numbers, texts) in zip(separators, together, strict=True):
        values = separator.join(texts).split(separator) if texts else []
        numbers += more_numbers
        for at, column in enumerate(columns):
            column += values[at::n_columns]
    return numbers, columns, malformed


def _has_quoted_values_only(text: str, separator: str, n_columns: int) -> bool:
    """Say whether all quotes of a line are around its values, so that none is inside."""
    return (
        text[0] == text[-1] == '"'
        and text.count('"') == 2 * n_columns
        and text[1:-1].count(separator) == n_columns - 1
    )


def _take_record(
    first: str, lines: "_NumberedLines", delimiter: str, n_columns: int
) -> tuple[str, list[str], str | None]:
    """Take what is still missing of a record off the lines; of a broken one nothing.

    Args:
        first: The line on which the record starts.
        lines: Those that follow.
        delimiter: Between two values.
        n_columns: How many values there have to be.

    Returns:
        The text, its values, and what is wrong with it.
    """
    text = first
    further: list[str] = []
    while True:
        try:
            values = _split_record(text, delimiter)
            break
        except _OpenQuoteError:
            more = lines.take_until_odd_quotes(_LONGEST_LINE - len(text))
            error = "A quote is opened and never closed."
        except ValueError as problem:
            more = []
            error = str(problem)
        if not more:
            lines.put_back(further)
            return first.rstrip("\r\n"), [], error
        further += more
        text += "".join(more)
    text = text.rstrip("\r\n")
    if not any(values[n_columns:]):
        values = values[:n_columns]
    return text, values, _problem_with_line(text, len(values), n_columns)


def _problem_with_line(text: str, n_values: int, n_columns: int) -> str | None:
    if len(text) >= _LONGEST_LINE:
        return f"The line is longer than {_LONGEST_LINE:,} characters."
    if not is_utf8(text):
        return "The line is not UTF-8."
    if text and n_values != n_columns:
        return f"Expected {n_columns} columns, found {n_values}."
    return None


def _split_record(text: str, delimiter: str) -> list[str]:
    """Split the text of one record, line ends and all, into its values (RFC 4180).

    Blanks around a quoted value are left out. A quote inside a value that is not quoted is an
    ordinary character, as in: 5" pipe.

    Raises:
        _OpenQuoteError: if the text ends inside a quoted value.
        ValueError: if a quoted value is followed by something else than a delimiter.
    """
    quoted, bare = _VALUE[delimiter]
    values: list[str] = []
    position = 0
    while True:
        if match := quoted.match(text, position):
            if match["open"] is not None:
                raise _OpenQuoteError
            value = match["value"].replace('""', '"')
        else:
            match = bare.match(text, position)
            value = match["value"] if match else ""
        if not match or match["end"] is None:
            raise ValueError("A quoted value goes on after its closing quote.")
        is_last = match["end"] != delimiter
        values.append(value)
        position = match.end()
        if is_last:
            return values


def _value_patterns(delimiter: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Compile what matches a quoted and a bare value with the delimiter or line end after it."""
    d = re.escape(delimiter)
    end = rf"(?P<end>{d}|[\r\n]*\Z)"
    # Possessive (*+): a text of megabytes must not be tried in every way of splitting it.
    quoted = rf' *"(?P<value>[^"]*+(?:""[^"]*+)*+)(?:" *{end}?|(?P<open>\Z))'
    return re.compile(quoted), re.compile(rf"(?P<value>[^{d}\n]*?){end}")


_VALUE = {delimiter: _value_patterns(delimiter) for delimiter in _DELIMITERS}


# ---------------------------------------------------------------- JSON lines


def _read_plain_json_lines(connection: duckdb.DuckDBPyConnection, file: LandingFile) -> _Counts:
    """Read JSON lines with DuckDB's CSV reader: one column, and a delimiter no JSON contains."""
    n_lines = _count_plain_lines(file, quotes_count=False)
    lines = (
        "(select row_number() over () as line_number, line, null::varchar as error "
        "from read_csv($path, auto_detect = false, header = false, delim = '\0', quote = '', "
        f"escape = '', compression = '{_compression(file)}', hive_partitioning = false, "
        "columns = {'line': 'VARCHAR'}))"
    )
    path = {"path": _literal_path(file.path)}
    try:
        n_found = connection.execute(f"select count(*) from {lines}", path).fetchall()[0][0]
    except (duckdb.InvalidInputException, duckdb.IOException) as error:
        raise _NotPlainError from error
    if n_found != n_lines:
        raise _NotPlainError
    return _insert_json_lines(connection, file, lines, path)


def _read_json_lines_carefully(connection: duckdb.DuckDBPyConnection, file: LandingFile) -> _Counts:
    """Read JSON lines one by one, so that a line that is no text costs no other."""
    connection.execute(
        "create or replace temp table landing_lines "
        "(line_number bigint, line varchar, error varchar)"
    )
    lines = _NumberedLines(file)
    while lines.fetch():
        first_number = lines.number + 1
        block = lines.take_all()
        table = pa.table(
            {
                "line_number": range(first_number, first_number + len(block)),
                "line": [readable(line.rstrip("\r\n")) for line in block],
                "error": pa.array([_problem_with_line(line, 1, 1) for line in block], pa.string()),
            }
        )
        with _registered(connection, "landing_block", table):
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
) -> _Counts:
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
    relation = _Relation(
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
    n_rows = _insert(connection, file.entity, relation, file.source_file)
    n_malformed = _insert_malformed(
        connection,
        file,
        "(select line_number, line, coalesce(error, case when json_valid(line) "
        "then 'The line is JSON, but not an object.' else 'The line is not valid JSON.' end) "
        f"as error from {lines} where trim(line, e' \\t\\r') <> '' and not {_IS_JSON_OBJECT})",
        **path,
    )
    return _Counts(n_rows, n_malformed)


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


# ---------------------------------------------------------------- lines


class _NumberedLines:
    """The lines of a text file with the number of the last one taken, counted from 1.

    Lines keep their ends. Bytes that are not UTF-8 become surrogates, see is_utf8.
    """

    def __init__(self, file: LandingFile) -> None:
        self.number = 0
        self.fetched: deque[str] = deque()
        self._blocks = _blocks_of_lines(file)

    def fetch(self) -> bool:
        """Fetch a block if nothing is fetched; say whether there is anything to take."""
        while not self.fetched:
            block = next(self._blocks, None)
            if block is None:
                return False
            self.fetched.extend(block)
        return True

    def take(self) -> str:
        """Take the next line."""
        self.number += 1
        return self.fetched.popleft()

    def take_all(self) -> list[str]:
        """Take all fetched lines."""
        block = list(self.fetched)
        self.number += len(block)
        self.fetched.clear()
        return block

    def take_until_odd_quotes(self, n_characters: int) -> list[str]:
        """Take lines up to one in which a quoted value may end, or up to the number of characters.

        A line with an even number of quotes leaves a value that was open before it open.
        """
        taken = []
        while n_characters > 0 and self.fetch():
            line = self.take()
            taken.append(line)
            n_characters -= len(line)
            if line.count('"') % 2:
                break
        return taken

    def put_back(self, lines: Sequence[str]) -> None:
        """Give back the lines that were taken last."""
        self.fetched.extendleft(reversed(lines))
        self.number -= len(lines)


def _blocks_of_lines(file: LandingFile) -> Iterator[list[str]]:
    """Yield the lines of a file; of one that is too long the head, too long as well.

    The first line's end decides: lines end at each LF (a CR before it belongs to the end, any
    other CR to a value), or at each CR as on old Macs.
    """
    rest = ""
    ends: str | None = None
    with _opened(file) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        while chunk := text.read(_CHARACTERS_PER_BLOCK):
            ends = ends or ("\r" if re.match(r"[^\r\n]*\r(?!\n)", chunk) else "\n")
            lines = list(io.StringIO(rest + chunk, newline=ends))
            # The last line may go on in the next chunk.
            rest = lines.pop()[:_LONGEST_LINE]
            yield lines
    if rest:
        yield [rest]


def _count_plain_lines(file: LandingFile, *, quotes_count: bool) -> int:
    """Count the lines of a file that all end alike.

    Args:
        file: The file.
        quotes_count: Whether a blank next to a quote is a reason for care: DuckDB's CSV reader
            makes one value of `"a" "b"`.

    Raises:
        _NotPlainError: if lines end in different ways, or for such a quote.
    """
    n_lf = n_cr = n_crlf = 0
    last = b""
    with _opened(file) as stream:
        while chunk := stream.read(2**20):
            n_lf += chunk.count(b"\n")
            n_cr += chunk.count(b"\r")
            # Pairs may straddle two chunks.
            chunk = last + chunk
            if n_cr:
                n_crlf += chunk.count(b"\r\n")
            if quotes_count and (b'" ' in chunk or b' "' in chunk):
                raise _NotPlainError
            last = chunk[-1:]
    if n_cr and not n_cr == n_crlf == n_lf:
        raise _NotPlainError
    return n_lf + (last not in (b"", b"\n"))


@contextlib.contextmanager
def _opened(file: LandingFile) -> Iterator[BinaryIO]:
    """Open a file for reading, unpacked; damage found while reading is a LandingError."""
    try:
        with contextlib.ExitStack() as stack:
            stream: Any = stack.enter_context(file.path.open("rb"))
            if _compression(file) == "gzip":
                stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
            yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise LandingError(
            f"{file.source_file} is not a whole gzip file ({_first_line(error)}). Copy or compress "
            "it again, or move it out of the landing folder."
        ) from error


def _compression(file: LandingFile) -> str:
    return "gzip" if file.path.name.lower().endswith(".gz") else "none"


# ---------------------------------------------------------------- adapter


def _ingest_adapter(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    received_at: datetime,
    progress: Callable[[str], None],
) -> list[FileOutcome]:
    """Run adapter.sql and load its views; all of them again when it or any file changed."""
    read = _fingerprint_adapter(folder)
    n_bytes = sum(size for _, _, size in read)
    fingerprint = hashlib.sha256(
        "".join(f"{sha256} {name}\n" for name, sha256, _ in read).encode()
    ).hexdigest()
    former = connection.execute(
        "select source_file, entity, n_rows, content_sha256 from raw.landing_files order by all"
    ).fetchall()
    if former and all(row[3] == fingerprint for row in former):
        if not connection.execute("from raw.adapter_files limit 1").fetchall():
            # Of a warehouse from before there was such a table.
            with transaction(connection):
                _register_adapter_files(connection, read)
        progress(f"{ADAPTER}: unchanged, and so are its files")
        return [FileOutcome(name, entity, "unchanged", n, 0) for name, entity, n, _ in former]
    progress(f"{ADAPTER}: running over {n_bytes / 1e6:,.1f} MB")
    outcomes = []
    with _adapter_views(connection, folder) as views, transaction(connection):
        for table in (*ENTITIES, "malformed_lines", "landing_files"):
            connection.execute(f"delete from raw.{table}")
        for entity in ENTITIES.values():
            if entity.name not in views:
                continue
            source_file = f"{ADAPTER}#{entity.name}"
            with _adapter_errors(folder):
                n_rows = _insert_view(connection, entity, source_file)
            _register(
                connection,
                source_file=source_file,
                entity=entity,
                fingerprint=fingerprint,
                n_bytes=n_bytes,
                counts=_Counts(n_rows),
                received_at=received_at,
            )
            outcomes.append(
                FileOutcome(source_file, entity.name, "replaced" if former else "loaded", n_rows, 0)
            )
            progress(f"{source_file}: {n_rows:,} rows")
        _register_adapter_files(connection, read)
    return outcomes


def _register_adapter_files(
    connection: duckdb.DuckDBPyConnection, read: Sequence[tuple[str, str, int]]
) -> None:
    connection.execute("delete from raw.adapter_files")
    connection.executemany(
        "insert into raw.adapter_files select ?, ?, ?, max(received_at) from raw.landing_files",
        read,
    )


def _fingerprint_adapter(folder: Path) -> list[tuple[str, str, int]]:
    """Return name, SHA-256 and number of bytes of the adapter and of each file it can read.

    What is written about the data (*.md) may change without a reload, and who asks to be erased is
    not part of them.
    """
    found = []
    for path in sorted(folder.rglob("*"), key=Path.as_posix):
        parts = path.relative_to(folder).parts
        is_hidden = any(part.startswith((".", "_")) for part in parts)
        is_other = parts[0] == ERASURES or path.suffix.lower() == ".md"
        if path.is_dir() or is_hidden or is_other:
            continue
        name = "/".join(parts)
        found.append((name, *_fingerprint(path, name)))
    return found


@contextlib.contextmanager
def _adapter_views(connection: duckdb.DuckDBPyConnection, folder: Path) -> Iterator[set[str]]:
    """Run adapter.sql in a database of its own, so that it leaves nothing in the warehouse.

    Yields:
        The names of its views and tables.

    Raises:
        LandingError: if it fails, or lacks a view that is required.
    """
    directory = folder.absolute()
    if "," in str(directory):
        raise LandingError(
            f"The path {directory} has a comma in it, which DuckDB takes for the end of a path. "
            f"Rename the folder, so that {ADAPTER} finds its files."
        )
    _refuse_hidden_files(directory)
    home = connection.execute("select current_catalog(), current_schema()").fetchone()
    assert home is not None  # a select of two functions has a row
    connection.execute(f"attach ':memory:' as {_SCRATCH}")
    try:
        with _settings(connection, file_search_path=str(directory)):
            connection.execute(f"use {_SCRATCH}.main")
            try:
                with _adapter_errors(folder):
                    connection.execute((folder / ADAPTER).read_text(encoding="utf-8"))
            finally:
                connection.execute("use {}.{}".format(*map(_identifier, home)))
            views = {
                row[0]
                for row in connection.execute(
                    "select view_name from duckdb_views() where database_name = $name "
                    "union all select table_name from duckdb_tables() where database_name = $name",
                    {"name": _SCRATCH},
                ).fetchall()
            }
            missing = [name for name in ("events", "products") if name not in views]
            if missing:
                raise LandingError(
                    f"{folder / ADAPTER} defines no view {' and no view '.join(missing)}. It has "
                    "to create the views events and products, and may create users."
                )
            yield views
    finally:
        connection.execute(f"detach {_SCRATCH}")


def _refuse_hidden_files(directory: Path) -> None:
    """Raise if the working directory has files that DuckDB would read in place of the adapter's."""
    if directory == Path.cwd():
        return
    for path in directory.iterdir():
        if path.is_file() and path.name != ADAPTER and path.suffix.lower() != ".md":
            other = Path.cwd() / path.name
            if other.exists():
                raise LandingError(
                    f"{ADAPTER} reads {path.name!r} next to it, but DuckDB would take {other}. "
                    "Move that file away, or run from another directory."
                )


@contextlib.contextmanager
def _adapter_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise
    except duckdb.Error as error:
        what = f"{folder / ADAPTER} fails"
        remedy = (
            f"Correct the SQL; it runs in DuckDB {duckdb.__version__} with file names relative to "
            "its folder."
        )
        raise LandingError(
            f"{what}: {_first_line(error)}. {remedy}",
            discreet=f"{what} ({type(error).__name__}). {remedy}",
        ) from error


def _insert_view(connection: duckdb.DuckDBPyConnection, entity: Entity, source_file: str) -> int:
    view = f"{_SCRATCH}.main.{entity.name}"
    described = connection.execute(f"describe {view}").fetchall()
    header = [row[0] for row in described]
    matched = match_columns(entity, header, source_file=source_file)
    places = {normalise(name): f"c{at}" for at, name in enumerate(header)}
    names = [f"c{at}" for at in range(len(header))]
    if "source_row" in places:
        row, sql = f"{places['source_row']}::bigint", view
    else:
        # Sorted, so that a row keeps its number from one load to the next.
        row = "row"
        sql = f"(select *, row_number() over () from (from {view} order by all))"
        names.append("row")
    relation = _table_relation(
        f"{sql} as adapted({', '.join(names)})",
        row=row,
        matched=matched,
        header=header,
        types=[column[1] for column in described],
        skip=[at for at, name in enumerate(header) if normalise(name) in _TRACES],
        parameters={},
    )
    return _insert(
        connection,
        entity,
        relation,
        source_file,
        source_file_sql=f"coalesce({places.get('source_file', 'null')}::varchar, $source_file)",
    )


# What an adapter may add to say which line of which file a row comes from.
_TRACES = ("source_file", "source_row")


# ---------------------------------------------------------------- the connection


def _create_raw_tables(connection: duckdb.DuckDBPyConnection) -> None:
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
def _settings(connection: duckdb.DuckDBPyConnection, **settings: object) -> Iterator[None]:
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
def _registered(
    connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table
) -> Iterator[None]:
    connection.register(name, table)
    try:
        yield
    finally:
        connection.unregister(name)


def _identifier(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def _first_line(error: BaseException) -> str:
    """Return what an error says first; damaged files get their bytes into messages of readers."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line[:_LONGEST_ERROR])


# Ways of reading in the order in which they are tried; only the last has to answer.
_READERS: Mapping[str, Sequence[_Reader]] = {
    "csv": (_read_plain_csv, _read_csv_carefully),
    "json lines": (_read_plain_json_lines, _read_json_lines_carefully),
    "parquet": (_read_parquet,),
}
