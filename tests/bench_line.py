"""`make bench`: the whole line on a generated shop, beside a plain read of the same Parquet.

Writes docs/performance.md. Every figure comes from this one run on this machine; the ratios are
what carries over to another. Whole processes are measured from outside, so imports count.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb

from orchestration.landing.synthetic_shop import write_shop
from orchestration.settings import REPOSITORY

DIRT = {
    "exact_duplicates": 0.005,
    "near_duplicates": 0.005,
    "bots": 0.01,
    "bad_types": 0.002,
    "unknown_products": 0.003,
    "blank_ids": 0.001,
    "future_dates": 0.001,
    "late_files": 0.01,
    "damaged_titles": 0.02,
}
READ = """
import duckdb, sys
sql = "select count(*), bit_xor(hash(columns(*))) from read_parquet(?, union_by_name = true)"
duckdb.connect().execute(sql, [sys.argv[1] + "/events/*.parquet"]).fetchall()
"""


@dataclass(frozen=True)
class Measured:
    """A finished command: seconds on the wall, and the most memory its processes held together."""

    seconds: float
    peak_bytes: int


def measure(command: list[str], environment: dict[str, str], log: Path) -> Measured:
    """Run a command to its end.

    Raises:
        SystemExit: with the end of its output, if it fails.
    """
    started = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=output, stderr=output, cwd=REPOSITORY
        )
        peak = 0
        finished = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not finished.wait(0.1):
                peak = max(peak, sum(map(resident_bytes, family(process.pid))))

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = process.wait()
        finished.set()
        watcher.join()
    if code:
        sys.exit(f"{' '.join(command)} failed:\n" + log.read_text()[-3000:])
    return Measured(time.monotonic() - started, peak)


def family(pid: int) -> list[int]:
    """The process and all its descendants that are alive."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    members, waiting = [], [pid]
    while waiting:
        members.append(waiting.pop())
        waiting += children.get(members[-1], [])
    return members


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def step_seconds(home: Path) -> list[tuple[str, float]]:
    """What each step of the last run took, from the run's own event log, in order."""
    import dagster as dg

    os.environ["DAGSTER_HOME"] = str(home / "dagster")
    with dg.DagsterInstance.get() as instance:
        run_id = instance.get_runs(limit=1)[0].run_id
        stats = instance.get_run_step_stats(run_id)
    done = [each for each in stats if each.start_time and each.end_time]
    done.sort(key=lambda each: each.start_time)
    return [(each.step_key, each.end_time - each.start_time) for each in done]


def main() -> None:
    """Generate, run, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--products", type=int, default=20_000)
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--keep", type=Path, help="keep shop and home in this folder")
    arguments = parser.parse_args()

    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="recmart-bench-"))
    shop, home = folder / "shop", folder / "home"
    if not shop.exists():
        write_shop(
            shop,
            n_users=arguments.users,
            n_products=arguments.products,
            n_events=arguments.events,
            n_days=365,
            start=date(2024, 1, 1),
            seed=7,
            file_format="parquet",
            dirt=DIRT,
        )
    shutil.rmtree(home, ignore_errors=True)
    environment = {
        "RECMART_HOME": str(home),
        "RECMART_DATA": str(shop),
        "DAGSTER_HOME": str(home / "dagster"),
    }
    python = sys.executable
    read = measure([python, "-c", READ, str(shop)], {}, folder / "read.log")
    line = measure([python, "-m", "orchestration.demo"], environment, folder / "line.log")
    subprocess.run(
        [python, "-m", "exports.redis_server", "stop"],
        env={**os.environ, **environment},
        check=True,
    )
    page = REPOSITORY / "docs" / "performance.md"
    page.write_text(report(arguments, shop, home, read, line))
    print(page.read_text())
    if arguments.keep is None:
        shutil.rmtree(folder)


def report(
    arguments: argparse.Namespace, shop: Path, home: Path, read: Measured, line: Measured
) -> str:
    """The page, with nothing on it that was not measured just now."""
    n_bytes = sum(path.stat().st_size for path in shop.rglob("*.parquet"))
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as connection:
        counts = connection.execute(
            "select (select sum(n_rows) from raw.landing_files where entity = 'events'),"
            " (select count(*) from marts.users), (select count(*) from marts.signals),"
            " (select count(*) from serving.current_recommendations)"
        ).fetchone()
    assert counts is not None
    n_events, n_users, n_signals, n_rows = counts
    gib = 1 << 30
    rows = [
        ("the whole line", line.seconds, line.seconds / read.seconds, line.peak_bytes / gib),
        ("plain read of the same Parquet", read.seconds, 1.0, read.peak_bytes / gib),
    ]
    lines = [
        "# Performance",
        "",
        f"Written by `make bench` on {os.cpu_count()} cores: a generated shop of {n_events:,} event"
        f" rows ({n_bytes / 1e6:.0f} MB of Parquet, dirt included), {arguments.users:,} users and"
        f" {arguments.products:,} products. {n_users:,} users got lists from {n_signals:,} signals:"
        f" {n_rows:,} rows in tables, Parquet, snapshot and Redis. Whole processes, start-up"
        " included; memory is all processes of a run together. The plain read is one DuckDB"
        " scan that hashes every column.",
        "",
        "| | seconds | ratio | peak memory, GiB |",
        "|---|---|---|---|",
        *(f"| {name} | {s:.1f} | {ratio:.1f} | {peak:.2f} |" for name, s, ratio, peak in rows),
        "",
        f"Peak memory is {line.peak_bytes / n_bytes:.0f} times the size of the input.",
        "",
        "| step | seconds | ratio to the plain read |",
        "|---|---|---|",
        *(
            f"| {step} | {seconds:.1f} | {seconds / read.seconds:.1f} |"
            for step, seconds in step_seconds(home)
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
