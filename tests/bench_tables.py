"""Writing a table of lists: from Arrow into DuckDB, beside the same bytes as a Parquet file."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from bench_factors import K
from bench_measure import Section, in_turn

from ml_assets.frames import RECOMMENDATIONS

OURS = "recmart: create table as, from Arrow"
PARQUET = "pyarrow, Parquet"


def sections(*, n_users: int, n_runs: int) -> list[Section]:
    """Lists for this many users."""
    table = _lists(n_users).to_arrow()
    text = (
        f"{table.num_rows:,} rows of recommendations, {table.nbytes / 1e6:.0f} MB of Arrow, medians"
        f" of {n_runs}."
    )
    with TemporaryDirectory() as folder:
        timings = in_turn(_ways(table, Path(folder)), n_runs=n_runs)
        rows = tuple(
            timing.row(name, f"{timing.result / 1e6:.0f}") for name, timing in timings.items()
        )
    return [Section("Writing a table", text, rows, beside=PARQUET, columns=("MB on disk",))]


def _lists(n_users: int) -> pl.DataFrame:
    """RECOMMENDATIONS, with as many different values as a shop's."""
    rng = np.random.default_rng(7)
    n, titles = n_users * K, 50_000
    because = pl.Series(rng.integers(titles, size=n))
    return (
        pl.DataFrame(
            {
                "user_id": np.repeat(np.arange(n_users), K),
                "rank": np.tile(np.arange(1, K + 1, dtype=np.int32), n_users),
                "product_id": rng.integers(titles, size=n),
                "score": rng.standard_normal(n),
                "cf_score": rng.standard_normal(n),
                "content_score": rng.standard_normal(n),
                "source": pl.Series(["hybrid", "content", "popular"]).gather(
                    rng.integers(3, size=n)
                ),
                "temperature": "hot",
                "because_product_id": because,
                "probability": None,
            }
        )
        .with_columns(
            pl.col("user_id").cast(pl.String).str.zfill(8),
            pl.format("Because you bought a lantern of kind {}", "because_product_id").alias(
                "reason"
            ),
            pl.col("product_id", "because_product_id").cast(pl.String),
            pl.col("probability").cast(pl.Float64),
        )
        .match_to_schema(RECOMMENDATIONS)
    )


def _ways(table: pa.Table, folder: Path) -> dict[str, Callable[[], int]]:
    """Each writes all rows and returns the bytes on disk."""
    file, database = folder / "lists.parquet", folder / "lists.duckdb"

    def into_duckdb(*statements: str) -> int:
        database.unlink(missing_ok=True)
        with duckdb.connect(str(database)) as connection:
            connection.register("frame", table)
            for statement in statements:
                connection.execute(statement)
        return database.stat().st_size

    def as_parquet() -> int:
        pq.write_table(table, file)
        return file.stat().st_size

    def copied() -> int:
        with duckdb.connect() as connection:
            connection.register("frame", table)
            connection.execute(f"copy frame to '{file}'")
        return file.stat().st_size

    return {
        OURS: lambda: into_duckdb("create table lists as from frame"),
        "Parquet first, then create table as": lambda: into_duckdb(
            f"copy frame to '{file}'", f"create table lists as from '{file}'"
        ),
        PARQUET: as_parquet,
        "DuckDB's copy to Parquet": copied,
    }
