"""Landing files -> schema raw of the warehouse: every row as it arrived, every file once.

Nothing is judged here, so nothing is dropped: values stay text, a line that is no record goes to
raw.malformed_lines with its number, and deciding what is valid is staging's task (dbt_project/).
What the columns are called is in contract.py.

CSV and JSON lines are read quickly or carefully. DuckDB's reader is quick, but around a broken
quote it swallows the lines up to the next one and counts records, not lines. Hence its answer is
taken only where every line of the file became one row; any other file is read again line by line.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from exports import pseudonyms
from exports.errors import PseudonymError
from ml_assets.warehouse import transaction
from orchestration.landing.adapter import ADAPTER, ingest_adapter
from orchestration.landing.contract import (
    LAYOUT,
    LandingError,
    LandingFile,
    format_of,
    is_utf8,
    list_landing_files,
    read_event_types,
    require_format,
)
from orchestration.landing.csv_files import read_csv_carefully, read_plain_csv
from orchestration.landing.json_lines import read_json_lines_carefully, read_plain_json_lines
from orchestration.landing.parquet_files import PARQUET_ERRORS, insert_parquet, read_parquet
from orchestration.landing.raw_tables import (
    Counts,
    NotPlainError,
    changed_settings,
    create_raw_tables,
)
from orchestration.landing.registry import (
    FileOutcome,
    IngestSummary,
    Outcome,
    forget_file,
    register_file,
    sha256_of,
)

_Reader = Callable[[duckdb.DuckDBPyConnection, LandingFile], Counts]


@dataclass(frozen=True)
class _Arrived:
    """A new Parquet file."""

    file: LandingFile
    fingerprint: str
    n_bytes: int
    n_rows: int


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
    with changed_settings(connection, TimeZone="UTC", preserve_insertion_order=True):
        create_raw_tables(connection)
        try:
            pseudonyms.use_key(connection, pseudonym_key)
        except PseudonymError as error:
            raise LandingError(str(error)) from None
        _refuse_second_shop(connection, folder)
        if (folder / ADAPTER).exists():
            files = ingest_adapter(connection, folder, received_at, progress)
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
        with contextlib.suppress(LandingError, NotPlainError):
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
            fingerprint, n_bytes = sha256_of(file.path, file.source_file)
            metadata = pq.read_metadata(file.path)
        except (LandingError, *PARQUET_ERRORS):
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
        n_rows = insert_parquet(
            connection,
            [each.file for each in arrived],
            # The path below the folder, as LandingFile spells it.
            source_file_sql=f"substr(path, {len(str(folder.absolute())) + 2})",
        )
        if n_rows != sum(each.n_rows for each in arrived):
            raise NotPlainError
        for each in arrived:
            register_file(
                connection,
                source_file=each.file.source_file,
                entity=entity,
                fingerprint=each.fingerprint,
                n_bytes=each.n_bytes,
                counts=Counts(each.n_rows),
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
    fingerprint, n_bytes = sha256_of(file.path, file.source_file)
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

    def register(counts: Counts, same_content_as: str | None) -> None:
        register_file(
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
            forget_file(connection, file.entity, file.source_file)
            register(Counts(0), twin)
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
    register: Callable[[Counts], None],
) -> Counts:
    """Replace the file's rows in one transaction, in the first way that can vouch for them."""
    for read in readers:
        with contextlib.suppress(NotPlainError), transaction(connection):
            forget_file(connection, file.entity, file.source_file)
            counts = read(connection, file)
            register(counts)
            return counts
    raise AssertionError(f"the careful way of reading {file.source_file} has to answer")


# Ways of reading in the order in which they are tried; only the last has to answer.
_READERS: Mapping[str, Sequence[_Reader]] = {
    "csv": (read_plain_csv, read_csv_carefully),
    "json lines": (read_plain_json_lines, read_json_lines_carefully),
    "parquet": (read_parquet,),
}
