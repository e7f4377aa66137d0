"""The whole line on generated shops: time and memory over size, a refresh, and what it is made of.

Runs are whole processes, measured from outside, so start-up and imports count. The limits that the
line is held against are measured on its own tables: what each of its stages would take at least,
done by what does nothing else.
"""

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import scipy.sparse as sp
from bench_data import Factors, Shop, generated_shop
from bench_factors import PRODUCT, fastest_product
from bench_hybrid import LONGER, best_of, each_alone, merged
from bench_item_item import fit_implicit_als
from bench_measure import Measured, Row, Section, in_turn, measure

from ml_assets.assets import LISTS_FROM
from ml_assets.model_tables import hybrid_of
from ml_assets.signal_matrix import available_items, build_signal_matrix
from ml_assets.warehouse import read_table

FULL_JOB = "daily_recommendations"
LINE, LIMITS = "the whole line", "sum of the limits"
WITH_MERGING = "sum of the limits, with lists merged in Polars"
DUCKDB_SCAN, POLARS_SCAN = "DuckDB, hash of every column", "Polars, hash of every column"
MEMORY = "peak memory, GiB"
_EVENTS = "events/*.parquet"
_MERGED_AT_ONCE = 40_000
# The pairs of products that were seen together are what needs the memory.
_MOST_USERS_IN_4_GB = 400_000


@dataclass(frozen=True)
class Run:
    """A run of a job, and what its event log says of it."""

    measured: Measured
    step_seconds: dict[str, float]
    n_users: int
    n_scored: int


@dataclass(frozen=True)
class Size:
    """The whole line at one size, for the chart."""

    n_events: int
    n_users: int
    n_products: int
    n_input_bytes: int
    measured: Measured


@dataclass(frozen=True)
class LineReport:
    """All that is measured of the line."""

    sections: tuple[Section, ...]
    sizes: tuple[Size, ...]


def line_report(
    folder: Path,
    *,
    other_sizes: Sequence[int],
    n_events: int,
    refresh_job: str,
    redis_seconds: float,
    n_runs: int,
    progress: Callable[[str], None],
) -> LineReport:
    """Measure.

    Args:
        folder: Where shops are kept; homes of runs are made there and removed.
        other_sizes: Numbers of events at which the line runs once.
        n_events: The size that is looked at closely.
        refresh_job: The job for what came since.
        redis_seconds: What loading as many lists takes at least.
        n_runs: Runs of the line and of each scan at `n_events`.
        progress: Told what is being measured.
    """
    progress("a run that is not measured: the first one compiles")
    _one_size(folder, n_events=min((n_events, *other_sizes)), progress=progress)
    sizes = [
        _one_size(folder, n_events=each, progress=progress)
        for each in other_sizes
        if each != n_events
    ]
    shop = generated_shop(folder, n_events=n_events, progress=progress)
    home = folder / "home"
    full, refreshed, scans = [], [], []
    for _ in range(n_runs):
        progress(f"the whole line on {n_events:,} events")
        scans.append(in_turn(_scans(shop), n_runs=1))
        shop.take_back_last_events()
        _remove(home)
        full.append(_run(shop, home, FULL_JOB))
        progress(f"{refresh_job} with one event in a hundred more")
        shop.land_last_events()
        refreshed.append(_run(shop, home, refresh_job))
        shop.take_back_last_events()
    middle = _median_run(full)
    sizes.append(_size(shop, n_events, middle.measured))
    sizes.sort(key=lambda each: each.n_events)
    progress("the limits of the line")
    *limits, merging = _limits(home, folder, n_runs=n_runs)
    limits = [
        _median_row(DUCKDB_SCAN, scans),
        *limits,
        Row("Redis: redis-cli --pipe, its file made first", redis_seconds),
    ]
    _remove(home)
    what = _description(shop, n_events, n_runs)
    return LineReport(
        sections=(
            _ingest_section(what, middle, scans),
            _line_section(what, shop, middle, limits, merging),
            _steps_section(middle),
            _refresh_section(refresh_job, middle, _median_run(refreshed)),
            _sizes_section(sizes, n_events),
        ),
        sizes=tuple(sizes),
    )


def _description(shop: Shop, n_events: int, n_runs: int) -> str:
    return (
        f"A generated shop of {n_events:,} event rows ({shop.n_bytes / 1e6:.0f} MB of Parquet, dirt"
        f" included), {shop.n_users:,} users and {shop.n_products:,} products; "
        + ("one run." if n_runs == 1 else f"the median of {n_runs} runs.")
    )


def _one_size(folder: Path, *, n_events: int, progress: Callable[[str], None]) -> Size:
    shop = generated_shop(folder, n_events=n_events, progress=progress)
    home = folder / f"home-{n_events}"
    _remove(home)
    progress(f"the whole line on {n_events:,} events")
    run = _run(shop, home, FULL_JOB)
    _remove(home)
    return _size(shop, n_events, run.measured)


def _size(shop: Shop, n_events: int, measured: Measured) -> Size:
    return Size(
        n_events=n_events,
        n_users=shop.n_users,
        n_products=shop.n_products,
        n_input_bytes=shop.n_bytes,
        measured=measured,
    )


def _run(shop: Shop, home: Path, job: str) -> Run:
    environment = {
        **_environment(home),
        "RECMART_DATA": str(shop.folder),
        "RECMART_MEMORY_LIMIT": "4GB" if shop.n_users <= _MOST_USERS_IN_4_GB else "5.5GB",
    }
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "orchestration.demo", "--job", job]
    measured = measure(command, environment, home / f"{job}.log")
    return _from_event_log(home, measured)


def _environment(home: Path) -> dict[str, str]:
    return {
        "RECMART_HOME": str(home),
        "DAGSTER_HOME": str(home / "dagster"),
        "REDIS_URL": "embedded",
    }


def _remove(home: Path) -> None:
    """Away with what a run left, and with its Redis."""
    if home.exists():
        subprocess.run(
            [sys.executable, "-m", "exports.redis_server", "stop"],
            env={**os.environ, **_environment(home)},
            check=True,
        )
        shutil.rmtree(home)


def _from_event_log(home: Path, measured: Measured) -> Run:
    import dagster as dg

    with (
        mock.patch.dict(os.environ, {"DAGSTER_HOME": str(home / "dagster")}),
        dg.DagsterInstance.get() as instance,
    ):
        stats = instance.get_run_step_stats(instance.get_runs(limit=1)[0].run_id)
        event = instance.get_latest_materialization_event(dg.AssetKey(["ml", "recommendations"]))
    done = [each for each in stats if each.start_time and each.end_time]
    done.sort(key=lambda each: each.start_time or 0.0)
    assert event is not None and event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    return Run(
        measured,
        {each.step_key: (each.end_time or 0.0) - (each.start_time or 0.0) for each in done},
        n_users=int(str(metadata["users"].value)),
        n_scored=int(str(metadata["users_scored"].value)),
    )


def _median_run(runs: Sequence[Run]) -> Run:
    """The run in the middle by seconds, with the largest memory of all."""
    middle = sorted(runs, key=lambda run: run.measured.seconds)[(len(runs) - 1) // 2]
    peak = max(run.measured.peak_bytes for run in runs)
    measured = replace(middle.measured, peak_bytes=peak)
    return Run(measured, middle.step_seconds, middle.n_users, middle.n_scored)


def _scans(shop: Shop) -> dict[str, Callable[[], Any]]:
    files = str(shop.folder / _EVENTS)

    def by_duckdb() -> None:
        with duckdb.connect() as connection:
            connection.execute(
                "select count(*), bit_xor(hash(columns(*)))"
                " from read_parquet($files, union_by_name = true)",
                {"files": files},
            ).fetchall()

    def by_polars() -> None:
        pl.scan_parquet(files).select(pl.len(), pl.all().hash().bitwise_xor()).collect(
            engine="streaming"
        )

    return {DUCKDB_SCAN: by_duckdb, POLARS_SCAN: by_polars}


def _median_row(name: str, scans: Sequence[dict[str, Any]]) -> Row:
    return Row(name, statistics.median(each[name].seconds for each in scans))


def _limits(home: Path, folder: Path, *, n_runs: int) -> list[Row]:
    """Training, scoring, writing and merging of this size, on the tables of a run."""
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as connection:
        made_from = {
            table: read_table(connection, table, columns) for table, columns in LISTS_FROM.items()
        }
        tables = [
            connection.execute(f"from ml.{name}").to_arrow_table()
            for name in ("candidates", "recommendations")
        ]

    def write() -> None:
        for number, table in enumerate(tables):
            pq.write_table(table, folder / f"limit-{number}.parquet")
            (folder / f"limit-{number}.parquet").unlink()

    products = made_from["marts.products"]
    signals = build_signal_matrix(
        made_from["marts.signals"],
        user_ids=made_from["marts.users"]["user_id"],
        product_ids=products["product_id"],
    )
    hybrid = hybrid_of(
        signals,
        user_factors=made_from["ml.user_factors"],
        item_factors=made_from["ml.item_factors"],
        item_neighbours=made_from["ml.item_neighbours"],
        vectors=made_from["ml.product_vectors"],
        content_neighbours=made_from["ml.content_neighbours"],
        w_cf=0.7,
        w_content=0.3,
    )
    lists = [
        best_of(
            each,
            exclude=signals.bought,
            eligible=available_items(products, signals.product_ids),
            k=LONGER,
        )
        for each in each_alone(hybrid)
    ]

    def merge() -> None:
        # In parts, since all at once take more memory than the line.
        for start in range(0, n_users, _MERGED_AT_ONCE):
            part = slice(start, start + _MERGED_AT_ONCE)
            merged(
                hybrid,
                *(replace(each, items=each.items[part], score=each.score[part]) for each in lists),
            )

    n_users, n_items = signals.weights.shape
    limits: dict[str, Callable[[], Any]] = {
        "training: implicit ALS, 64 factors": partial(fit_implicit_als, signals.training),
        f"scoring: {PRODUCT}, 128 factors": fastest_product(_any_factors(n_users, n_items)),
        "tables: Arrow to Parquet": write,
        f"hybrid: two lists of {LONGER} merged in Polars": merge,
    }
    timings = in_turn(limits, n_runs=n_runs)
    return [Row(name, timing.seconds) for name, timing in timings.items()]


def _any_factors(n_users: int, n_items: int) -> Factors:
    rng = np.random.default_rng(7)
    return Factors(
        users=rng.standard_normal((n_users, 128), dtype=np.float32),
        items=rng.standard_normal((n_items, 128), dtype=np.float32),
        history=sp.csr_matrix((n_users, n_items), dtype=np.float32),
    )


def _ingest_section(what: str, run: Run, scans: Sequence[dict[str, Any]]) -> Section:
    landing, dbt = run.step_seconds["landing"], run.step_seconds["dbt_models"]
    rows = (
        Row("recmart, landing and dbt", landing + dbt),
        Row("landing alone", landing),
        Row("dbt alone, its tests included", dbt),
        *(_median_row(name, scans) for name in (DUCKDB_SCAN, POLARS_SCAN)),
    )
    return Section("Ingest and dbt, beside a scan of the same Parquet", what, rows, DUCKDB_SCAN)


def _line_section(what: str, shop: Shop, run: Run, limits: Sequence[Row], merging: Row) -> Section:
    total = sum(row.seconds for row in limits)
    rows = (
        Row(LINE, run.measured.seconds, run.measured.peak_bytes),
        Row(LIMITS, total),
        Row(WITH_MERGING, total + merging.seconds),
        *(Row(f"limit, {row.what}", row.seconds) for row in (*limits, merging)),
    )
    text = (
        f"{what} All surfaces, tables, files and Redis, gates and backtest included; memory is that"
        " of all processes of a run together. Peak memory is"
        f" {run.measured.peak_bytes / shop.n_bytes:.0f} times the size of the input. To merge the"
        " lists of two models is what a hybrid takes where they cannot be blended while they"
        " score; the first sum does without."
    )
    return Section("The whole line", text, rows, beside=LIMITS, memory=MEMORY)


def _steps_section(run: Run) -> Section:
    rows = tuple(Row(step, seconds) for step, seconds in run.step_seconds.items())
    started = run.measured.seconds - sum(run.step_seconds.values())
    return Section(
        "Steps of the line",
        "From the event log of the run above.",
        (*rows, Row("start-up and between steps", started)),
        beside=None,
    )


def _refresh_section(job: str, full: Run, refreshed: Run) -> Section:
    def row(what: str, run: Run) -> Row:
        notes = (f"{run.n_scored:,}", f"{run.n_scored / run.n_users:.1%}")
        return Row(what, run.measured.seconds, run.measured.peak_bytes, notes)

    return Section(
        "A daily refresh",
        f"After the line above one event in a hundred more lands, the latest of the year, and"
        f" `{job}` runs. The line's Redis goes on serving; its memory is in the line's figure"
        " alone.",
        (row(LINE, full), row("the refresh", refreshed)),
        beside=LINE,
        columns=("users scored", "of all users"),
        memory=MEMORY,
    )


def _sizes_section(sizes: Sequence[Size], n_events: int) -> Section:
    rows = tuple(
        Row(
            f"{size.n_events:,} events",
            size.measured.seconds,
            size.measured.peak_bytes,
            (
                f"{size.measured.cpu_seconds:.0f}",
                f"{size.n_users:,}",
                f"{size.n_products:,}",
                f"{size.n_input_bytes / 1e6:.0f}",
                f"{size.measured.seconds / size.n_events * 1e6:.1f}",
            ),
        )
        for size in sizes
    )
    return Section(
        "Cost over size",
        "The whole line on shops of several sizes, 50 events a user.\n\n"
        "![Seconds and memory over events](performance.svg)",
        rows,
        beside=f"{n_events:,} events",
        columns=(
            "CPU seconds",
            "users",
            "products",
            "MB of Parquet",
            "seconds a million events",
        ),
        memory=MEMORY,
    )
