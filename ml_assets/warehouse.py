"""The build file: one DuckDB database, one writing process, opened late and closed at once."""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import polars as pl

from ml_assets.threads import n_threads


class WarehouseBusyError(RuntimeError):
    """Another process or another run holds the warehouse."""


class MissingTableError(RuntimeError):
    """A table that an earlier step makes does not exist."""


def now() -> datetime:
    """Naive UTC, as all times of the warehouse."""
    return datetime.now(UTC).replace(tzinfo=None)


@dataclass(frozen=True)
class Warehouse:
    """Where the build file is and how much memory a connection may take.

    Attributes:
        path: The database file; created on first use, with its folder.
        memory_limit: DuckDB's notation, e.g. `4GB`; larger work spills to disk beside the file.
        patience_seconds: How long a step waits for somebody who has the file open, such as an
            analyst's console.
    """

    path: Path
    memory_limit: str
    patience_seconds: float = 60.0

    @contextmanager
    def connect(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection for one step.

        Raises:
            WarehouseBusyError: if another process has the file open.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        give_up_at = time.monotonic() + self.patience_seconds
        while True:
            try:
                connection = self._open()
                break
            except WarehouseBusyError:
                if time.monotonic() > give_up_at:
                    raise
            time.sleep(0.5)
        try:
            connection.execute("set TimeZone = 'UTC'")
            yield connection
        finally:
            connection.close()

    def _open(self) -> duckdb.DuckDBPyConnection:
        try:
            return duckdb.connect(
                str(self.path),
                # By itself DuckDB takes the cores of the machine, whatever this process may use.
                config={"memory_limit": self.memory_limit, "threads": n_threads()},
            )
        except duckdb.IOException as error:
            if "Could not set lock" not in str(error):
                raise
            holder = re.search(r" \(PID \d+\)", str(error))
            raise WarehouseBusyError(
                f"{self.path} is open in another process{holder[0] if holder else ''}: close it "
                "there, or wait for the run that it belongs to, and run again. A copy of the file, "
                "or published/current.duckdb, can be open in many."
            ) from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs out while the block lasts; a process that is killed lets go by itself.

        A connection lasts for a step. Two runs that took turns with them would build on each
        other's half-made tables, and one could publish what the gates of the other never saw.

        Raises:
            WarehouseBusyError: if another run holds it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _is_locked_now(lock):
                raise WarehouseBusyError(
                    f"Another run is working on {self.path}, and this one has changed nothing: "
                    "wait for the other to end and run again."
                )
            yield
        finally:
            os.close(lock)


def _is_locked_now(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """What happens within happens as a whole, or after an error not at all."""
    connection.execute("begin transaction")
    try:
        yield
        connection.execute("commit")
    except BaseException:
        # A failed statement or commit may have ended it; the first error is the one to report.
        with suppress(duckdb.Error):
            connection.execute("rollback")
        raise


def path_literal(path: Path) -> str:
    """A path as SQL has it in ATTACH, COPY and `from`, which take no parameter for it."""
    return "'" + str(path).replace("'", "''") + "'"


def read_table(
    connection: duckdb.DuckDBPyConnection, table: str, columns: list[str] | None = None
) -> pl.DataFrame:
    """A whole table, or only some columns, in no stated order.

    Raises:
        MissingTableError: if nothing has built it yet.
    """
    with _named_if_missing(table):
        return connection.sql(f"select {', '.join(columns or ['*'])} from {table}").pl()


def require_table(connection: duckdb.DuckDBPyConnection, table: str) -> None:
    """See that a table or view is there.

    Raises:
        MissingTableError: if nothing has built it yet.
    """
    with _named_if_missing(table):
        connection.execute(f"from {table} limit 0")


def table_hash(
    connection: duckdb.DuckDBPyConnection, table: str, columns: list[str] | None = None
) -> int:
    """A number that changes with any row of a table, whatever their order; no row may occur twice.

    Raises:
        MissingTableError: if nothing has built it yet.
    """
    rows = f"select {', '.join(columns or ['*'])} from {table}"
    with _named_if_missing(table):
        ((found,),) = connection.execute(
            # Twice, as in the macro rows_hash: what two rows exchange must not go unseen.
            f"select coalesce(bit_xor(hash(hash(chosen))), 0) from ({rows}) as chosen"
        ).fetchall()
    return int(found)


@contextmanager
def _named_if_missing(table: str) -> Iterator[None]:
    try:
        yield
    except duckdb.CatalogException as error:
        raise MissingTableError(
            f"The table {table} is not there yet. Run the job daily_recommendations once: it "
            "builds all tables and learns the models."
        ) from error
