"""Which landing file is loaded, and from which bytes: raw.landing_files."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import duckdb

from orchestration.landing.contract import Entity, LandingError
from orchestration.landing.raw_tables import Counts

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


def sha256_of(path: Path, source_file: str) -> tuple[str, int]:
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


def forget_file(connection: duckdb.DuckDBPyConnection, entity: Entity, source_file: str) -> None:
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


def register_file(
    connection: duckdb.DuckDBPyConnection,
    *,
    source_file: str,
    entity: Entity,
    fingerprint: str,
    n_bytes: int,
    counts: Counts,
    received_at: datetime,
    same_content_as: str | None = None,
) -> None:
    """Note a file with what was read of it, or whose content it has."""
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
