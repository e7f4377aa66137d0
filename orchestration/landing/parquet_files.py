"""Parquet files -> schema raw."""

from collections.abc import Sequence

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from orchestration.landing.contract import LandingError, LandingFile, first_line, match_columns
from orchestration.landing.raw_tables import (
    Counts,
    NotPlainError,
    changed_settings,
    insert_rows,
    literal_path,
    table_relation,
)

# What pyarrow raises for damage; the last for a column whose name is no text.
PARQUET_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)


def read_parquet(connection: duckdb.DuckDBPyConnection, file: LandingFile) -> Counts:
    """Read a Parquet file; every row of it is a record."""
    return Counts(insert_parquet(connection, [file], source_file_sql="$source_file"))


def insert_parquet(
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
            raise NotPlainError
        # hive_partitioning: a folder called day=1 adds a column that is not in the header.
        scan = (
            "read_parquet($paths, binary_as_string = true, hive_partitioning = false, "
            f"filename = {str(named).lower()}, file_row_number = {str(numbered).lower()})"
        )
        paths = {"paths": [literal_path(each.path) for each in files]}
        described = connection.execute(f"describe from {scan}", paths).fetchall()
        names = [f"c{position}" for position in range(len(header))]
        further = {"file_row_number": "row", "filename": "path"}
        names += [further[row[0]] for row in described[len(header) :]]
        relation = table_relation(
            f"{scan} as parquet({', '.join(names)})",
            row="row + 1" if numbered else "row_number() over ()",
            matched=matched,
            header=header,
            types=[row[1] for row in described[: len(header)]],
            parameters=paths,
        )
        # The rows bring their numbers along, so their order is free. Keeping it costs twice the
        # time: rows then wait in memory for their turn and are compressed at the end.
        with changed_settings(connection, preserve_insertion_order=not numbered):
            return insert_rows(
                connection,
                file.entity,
                relation,
                file.source_file,
                source_file_sql=source_file_sql,
            )
    except (duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise
    except (duckdb.Error, *PARQUET_ERRORS) as error:
        what = f"{file.source_file} cannot be loaded as Parquet"
        remedy = (
            "If it is damaged or half-written, write it again, or move it out of the landing "
            "folder."
        )
        raise LandingError(
            f"{what} ({first_line(error)}). {remedy}", discreet=f"{what}. {remedy}"
        ) from error
