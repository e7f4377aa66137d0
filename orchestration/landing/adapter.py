"""adapter.sql: the views over a shop's own files -> schema raw."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import duckdb

from ml_assets.warehouse import transaction
from orchestration.landing.contract import (
    ENTITIES,
    Entity,
    LandingError,
    first_line,
    match_columns,
    normalise,
)
from orchestration.landing.erasure import FOLDER as ERASURES
from orchestration.landing.raw_tables import Counts, changed_settings, insert_rows, table_relation
from orchestration.landing.registry import FileOutcome, register_file, sha256_of

ADAPTER = "adapter.sql"
_SCRATCH = "recmart_adapter"


def ingest_adapter(
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
            register_file(
                connection,
                source_file=source_file,
                entity=entity,
                fingerprint=fingerprint,
                n_bytes=n_bytes,
                counts=Counts(n_rows),
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
        found.append((name, *sha256_of(path, name)))
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
        with changed_settings(connection, file_search_path=str(directory)):
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
            f"{what}: {first_line(error)}. {remedy}",
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
    relation = table_relation(
        f"{sql} as adapted({', '.join(names)})",
        row=row,
        matched=matched,
        header=header,
        types=[column[1] for column in described],
        skip=[at for at, name in enumerate(header) if normalise(name) in _TRACES],
        parameters={},
    )
    return insert_rows(
        connection,
        entity,
        relation,
        source_file,
        source_file_sql=f"coalesce({places.get('source_file', 'null')}::varchar, $source_file)",
    )


# What an adapter may add to say which line of which file a row comes from.
_TRACES = ("source_file", "source_row")


def _identifier(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'
