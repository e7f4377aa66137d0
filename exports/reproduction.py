"""A version held against the same one made again: counts, hashes, and the rows that differ.

Belongs here: comparing. Does not belong here: making it again (`orchestration/reproduce.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from exports.versions import (
    SURFACES,
    Fingerprint,
    Surface,
    Version,
    fingerprint,
    source_fingerprints,
    source_sql,
    staged_fingerprints,
)
from ml_assets.warehouse import path_literal

SHOWN_ROWS = 3


@dataclass(frozen=True)
class Compared:
    """One surface of a version.

    Attributes:
        made: What was counted and hashed when it was staged.
        kept: The same of the rows as they are stored now; None once they are removed.
        rebuilt: The same of what was made again.
        lines: A few rows that differ, each as a line that says on which side it is.
    """

    made: Fingerprint
    kept: Fingerprint | None
    rebuilt: Fingerprint
    lines: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """What differs, or that nothing does."""
        # Another DuckDB may hash otherwise: what both hold is compared before what was noted.
        if self.kept == self.rebuilt == self.made:
            return "equal"
        if self.kept is None:
            return "equal, rows not kept" if self.rebuilt == self.made else "REBUILT DIFFERS"
        if self.kept == self.rebuilt:
            return "NOTED HASH DIFFERS"
        return "KEPT ROWS DIFFER" if self.rebuilt == self.made else "REBUILT DIFFERS"

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs."""
        return self.verdict.startswith("equal")


def compare(
    rebuilt: duckdb.DuckDBPyConnection, warehouse: Path, version: Version, *, popular_depth: int
) -> list[Compared]:
    """Compare a version with what ml and marts of another warehouse hold, surface by surface.

    Args:
        rebuilt: The other warehouse.
        warehouse: The one that keeps the version; opened for reading, for as long as it takes.
        version: The version.
        popular_depth: As it was staged.

    Raises:
        PublishError: if the other warehouse holds nothing that could be published.
    """
    found = source_fingerprints(rebuilt, popular_depth)
    with duckdb.connect(str(warehouse), read_only=True) as connection:
        made = {each.surface: each for each in staged_fingerprints(connection, version.version)}
    rebuilt.execute(f"attach {path_literal(warehouse)} as kept (read_only)")
    try:
        compared = []
        for surface, now in zip(SURFACES, found, strict=True):
            if surface.name not in made:
                # Of another release, which published less.
                continue
            then = made[surface.name]
            relation = f"kept.serving.{surface.name}"
            kept = (
                fingerprint(rebuilt, surface, relation, version=version.version)
                if version.removed_at is None
                else None
            )
            lines = (
                _differing_rows(rebuilt, surface, relation, version.version, popular_depth)
                if kept not in (None, now)
                else ()
            )
            compared.append(Compared(then, kept, now, lines))
    finally:
        rebuilt.execute("detach kept")
    return compared


def _differing_rows(
    connection: duckdb.DuckDBPyConnection,
    surface: Surface,
    relation: str,
    version: str,
    popular_depth: int,
) -> tuple[str, ...]:
    kept = f"select {surface.column_list} from {relation} where version = $version"
    rebuilt = source_sql(surface, popular_depth)
    lines = []
    for side, rows, others in (("kept", kept, rebuilt), ("rebuilt", rebuilt, kept)):
        only_here = connection.execute(
            f"from (({rows}) except all ({others})) order by {surface.grain_list}"
            f" limit {SHOWN_ROWS}",
            {"version": version},
        ).fetchall()
        for row in only_here:
            values = ", ".join(
                f"{name}={value!r}"
                for name, value in zip(surface.columns, row, strict=True)
                if value is not None
            )
            lines.append(f"only {side}: {values}")
    return tuple(lines)


def as_table(compared: Sequence[Compared]) -> str:
    """What was found, a line a surface, for people; then the rows that differ."""

    def row(name: str, *cells: str) -> str:
        return f"  {name:<18}" + "".join(f"{cell:>13}" for cell in cells[:3]) + f"  {cells[3]}"

    lines = [row("surface", "rows made", "kept", "rebuilt", "")]
    lines += [
        row(
            each.made.surface,
            f"{each.made.n_rows:,}",
            "-" if each.kept is None else f"{each.kept.n_rows:,}",
            f"{each.rebuilt.n_rows:,}",
            each.verdict,
        )
        for each in compared
    ]
    for each in compared:
        lines += [f"  {each.made.surface}: {line}" for line in each.lines]
    return "\n".join(lines)
