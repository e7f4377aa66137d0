"""The build file: one DuckDB database, one writing process, opened late and closed at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import polars as pl


class WarehouseBusyError(RuntimeError):
    """Another process holds the warehouse."""


class MissingTableError(RuntimeError):
    """A table that an earlier step makes does not exist."""


@dataclass(frozen=True)
class Warehouse:
    """Where the build file is and how much memory a connection may take.

    Attributes:
        path: The database file; created on first use, with its folder.
        memory_limit: DuckDB's notation, e.g. `4GB`; larger work spills to disk beside the file.
    """

    path: Path
    memory_limit: str

    @contextmanager
    def connect(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection for one step.

        Raises:
            WarehouseBusyError: if another process has the file open.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            connection = duckdb.connect(str(self.path), config={"memory_limit": self.memory_limit})
        except duckdb.IOException as error:
            if "lock" not in str(error):
                raise
            raise WarehouseBusyError(
                f"{self.path} is open in another process: wait for the other run to end, and read "
                "results from published/current.duckdb, never from the build file"
            ) from error
        try:
            connection.execute("set TimeZone = 'UTC'")
            yield connection
        finally:
            connection.close()


def read_table(
    connection: duckdb.DuckDBPyConnection, table: str, columns: list[str] | None = None
) -> pl.DataFrame:
    """A whole table, or only some columns, in no stated order.

    Raises:
        MissingTableError: if nothing has built it yet.
    """
    try:
        return connection.sql(f"select {', '.join(columns or ['*'])} from {table}").pl()
    except duckdb.CatalogException as error:
        raise MissingTableError(
            f"The table {table} is not there yet. Run the job daily_recommendations once: it "
            "builds all tables and learns the models."
        ) from error
