"""`make bench` and `make bench-full`: every stage beside its rivals, in one run of one command.

Writes docs/performance.md and docs/performance.svg; no figure comes from anywhere else. Each stage
has a process of its own, so that none inherits another's memory or threads. Nothing is asserted:
times depend on the machine, ratios less so.

    PYTHONPATH=tests python -m bench_all [--size small|bench|full] [--only STAGE ...]
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import duckdb
from bench_measure import Row, Section, as_markdown, blas_kernels, machine

from orchestration.settings import REPOSITORY, from_environment

PAGE = "performance.md"
STAGES = ("factors", "item_item", "hybrid", "rules", "tables", "redis", "line")
REDIS_LIMIT = "redis-cli --pipe, file of this line's HSETs made first"

_COMMANDS = {"small": "bench_all --size small", "bench": "make bench", "full": "make bench-full"}

Result = TypeVar("Result")


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        n_users: Of the generated matrix that factors are trained on.
        n_asked: Of those, whose lists are made; item-item models are trained on as many.
        n_items: Products of it.
        n_entries: Of it.
        n_runs: Of everything but the line.
        line_events: Events of the shop that is looked at closely.
        line_runs: Runs of the line on it.
        other_line_events: Events of the shops on which the line runs once, for the chart.
        redis_users: Numbers of users whose lists are loaded; the first is compared with the line.
    """

    n_users: int
    n_asked: int
    n_items: int
    n_entries: int
    n_runs: int
    line_events: int
    line_runs: int
    other_line_events: tuple[int, ...]
    redis_users: tuple[int, ...]


SIZES = {
    # To see that everything runs; its figures mean nothing, and its page goes to the folder of
    # the benchmarks.
    "small": Sizes(
        n_users=10_000,
        n_asked=4_000,
        n_items=20_000,
        n_entries=300_000,
        n_runs=1,
        line_events=100_000,
        line_runs=1,
        other_line_events=(50_000,),
        redis_users=(2_000,),
    ),
    "bench": Sizes(
        n_users=200_000,
        n_asked=40_000,
        n_items=50_000,
        n_entries=5_000_000,
        n_runs=3,
        line_events=10_000_000,
        line_runs=1,
        other_line_events=(500_000, 1_000_000, 2_000_000, 5_000_000),
        redis_users=(100_000,),
    ),
    "full": Sizes(
        n_users=200_000,
        n_asked=200_000,
        n_items=50_000,
        n_entries=5_000_000,
        n_runs=3,
        line_events=10_000_000,
        line_runs=3,
        other_line_events=(500_000, 1_000_000, 2_000_000, 5_000_000, 50_000_000),
        redis_users=(200_000, 1_000_000),
    ),
}


def main() -> None:
    """Measure, print as it goes, write the page if every stage was measured."""
    chosen = _arguments()
    sizes = _sizes(chosen)
    folder = from_environment().home / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    found: dict[str, list[Section]] = {}
    chart: list[Any] = []
    for stage in STAGES:
        if stage in chosen.only:
            say(f"measuring {stage}")
            found[stage] = list(_measure(stage, sizes, folder, chosen, found, chart))
            for section in found[stage]:
                print(as_markdown(section), flush=True)
    if set(chosen.only) < set(STAGES):
        say("the page is left as it is: not every stage was measured")
        return
    minutes = (time.monotonic() - started) / 60
    page = (folder if chosen.size == "small" else REPOSITORY / "docs") / PAGE
    apart(_write_chart, chart, page.with_suffix(".svg"))
    page.write_text(_page(found, _COMMANDS[chosen.size], minutes))
    say(f"{page} is written, after {minutes:.0f} minutes")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="bench")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE")
    parser.add_argument(
        "--gowalla",
        type=Path,
        default=os.environ.get("RECMART_GOWALLA") or None,
        help="folder with its train.txt and test.txt; default RECMART_GOWALLA",
    )
    parser.add_argument("--line-events", type=int, help="of the shop that is looked at closely")
    parser.add_argument(
        "--other-line-events", type=int, nargs="*", help="of the other shops on the chart"
    )
    parser.add_argument("--refresh-job", default="refresh_recommendations")
    return parser.parse_args()


def _sizes(chosen: argparse.Namespace) -> Sizes:
    sizes = SIZES[chosen.size]
    if chosen.line_events is not None:
        sizes = replace(sizes, line_events=chosen.line_events)
    if chosen.other_line_events is not None:
        sizes = replace(sizes, other_line_events=tuple(chosen.other_line_events))
    return sizes


def _measure(
    stage: str,
    sizes: Sizes,
    folder: Path,
    chosen: argparse.Namespace,
    found: dict[str, list[Section]],
    chart: list[Any],
) -> Iterator[Section]:
    matrix = {
        "n_users": sizes.n_users,
        "n_items": sizes.n_items,
        "n_entries": sizes.n_entries,
        "n_runs": sizes.n_runs,
    }
    if stage == "factors":
        yield from apart(_factors, folder, n_asked=sizes.n_asked, **matrix)
    elif stage == "item_item":
        share = sizes.n_asked / sizes.n_users
        matrix |= {"n_users": sizes.n_asked, "n_entries": int(sizes.n_entries * share)}
        yield from apart(_item_item, gowalla_folder=chosen.gowalla, **matrix)
    elif stage == "hybrid":
        yield from apart(_hybrid, folder, n_asked=sizes.n_asked, **matrix)
    elif stage == "rules":
        yield from apart(
            _rules, n_users=5 * sizes.n_users, n_items=sizes.n_items, n_runs=sizes.n_runs
        )
    elif stage == "tables":
        yield from apart(_tables, n_users=sizes.redis_users[0], n_runs=sizes.n_runs)
    elif stage == "redis":
        for n_users in sizes.redis_users:
            yield from apart(_redis, n_users=n_users, n_runs=sizes.n_runs)
    else:
        report = apart(
            _line,
            folder,
            other_sizes=sizes.other_line_events,
            n_events=sizes.line_events,
            refresh_job=chosen.refresh_job,
            redis_seconds=_redis_limit(found, sizes),
            n_runs=sizes.line_runs,
            progress=say,
        )
        chart += report.sizes
        yield from report.sections


def _redis_limit(found: dict[str, list[Section]], sizes: Sizes) -> float:
    """Of as many lists as the line loads, in proportion to those that were measured."""
    if "redis" not in found:
        return 0.0
    section = found["redis"][0]
    is_there = any(row.what == REDIS_LIMIT for row in section.rows)
    # Without redis-cli on this machine, what everybody has.
    seconds = section.seconds(REDIS_LIMIT if is_there else str(section.beside))
    return seconds * (sizes.line_events // 50) / sizes.redis_users[0]


def say(text: str) -> None:
    """A line for whoever waits."""
    print(f"{datetime.now(UTC):%H:%M:%S}  {text}", file=sys.stderr, flush=True)


def apart(run: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
    """Call a function in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run, *arguments, **named).result()


# Each of these imports what it measures: the main process must stay small.


def _factors(folder: Path, **sizes: int) -> list[Section]:
    # An older BLAS in a rival's wheel would not know the processor and take kernels of 2007.
    os.environ.setdefault("OPENBLAS_CORETYPE", blas_kernels())
    from bench_factors import sections

    return sections(folder, **sizes)


def _item_item(**sizes: Any) -> list[Section]:
    from bench_item_item import sections

    return sections(**sizes)


def _hybrid(folder: Path, **sizes: int) -> list[Section]:
    from bench_hybrid import sections

    return sections(folder, **sizes)


def _rules(**sizes: int) -> list[Section]:
    from bench_rules import sections

    return sections(**sizes)


def _tables(**sizes: int) -> list[Section]:
    from bench_tables import sections

    return sections(**sizes)


def _redis(*, n_users: int, n_runs: int) -> list[Section]:
    from bench_redis import PIPELINE, fill_tables, measure

    from exports.redis_server import EmbeddedRedis

    config: dict[str, Any] = {"memory_limit": from_environment().memory_limit}
    with TemporaryDirectory() as name:
        folder = Path(name)
        with (
            duckdb.connect(str(folder / "warehouse.duckdb"), config=config) as connection,
            EmbeddedRedis(folder) as url,
        ):
            version = fill_tables(connection, n_users=n_users)
            loads = measure(connection, version, redis_url=url, folder=folder, n_runs=n_runs)
    return [
        Section(
            f"Redis load, {n_users:,} users",
            f"{n_users:,} users x 20 products, medians of {n_runs}. The rivals get keys and values"
            " ready made where it does not say that they make them; this line starts from its"
            " tables.",
            tuple(
                Row(load.way, load.seconds, notes=(f"{load.server_cpu_seconds:.2f}",))
                for load in loads
            ),
            beside=PIPELINE,
            columns=("server's CPU seconds",),
        )
    ]


def _line(folder: Path, **sizes: Any) -> Any:
    from bench_line import line_report

    return line_report(folder, **sizes)


def _write_chart(sizes: Sequence[Any], path: Path) -> None:
    from bench_chart import write_chart

    write_chart(sizes, path)


def _page(found: dict[str, list[Section]], command: str, minutes: float) -> str:
    head = (
        "# Performance\n\n"
        f"Written by `{command}` in {minutes:.0f} minutes on {machine()}\n\n"
        "Everything on this page was measured in that one run; rivals ran in turn. Seconds depend"
        " on the machine, ratios less so: they are multiples of the row that has 1.00. Memory on"
        " top is the most that a run took beside its input.\n"
    )
    by_importance = ("line", "factors", "item_item", "hybrid", "rules", "tables", "redis")
    sections = [section for stage in by_importance for section in found[stage]]
    return "\n".join([head, *map(as_markdown, sections)])


if __name__ == "__main__":
    main()
