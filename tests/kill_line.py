"""Killing the whole line: the daily job on a shop that gets new events before every run."""

import csv
import fcntl
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import duckdb
from faults import filled, small_disk
from kills import (
    LINE_STEPS,
    PUBLISH_STEPS,
    Ended,
    Moment,
    Tally,
    Witness,
    moments,
    run_child,
    run_line,
)

from exports.redis_server import EmbeddedRedis
from exports.versions import SURFACES
from orchestration.landing.synthetic_shop import write_shop

_N_EVENTS = 12_000
# A day each: a part of one would be told from a day of which events are missing, and stopped.
_N_FILES = 60
_DISK_MEGABYTES = 160
# Of the disk, when the run starts: nearly nothing, and enough for some of the steps.
_LEFT_BYTES = (256 << 10, 4 << 20)


@dataclass
class DailyShop:
    """A shop's landing folder and home. Rows of events that have not landed yet wait.

    Attributes:
        folder: Holds all of it.
        waiting: Files of events that land one by one.
        n_rows: Rows of events in the landing folder.
    """

    folder: Path
    waiting: list[list[list[str]]] = field(default_factory=list)
    header: list[str] = field(default_factory=list)
    n_rows: int = 0

    @property
    def home(self) -> Path:
        """RECMART_HOME."""
        return self.folder / "home"

    @property
    def data(self) -> Path:
        """The landing folder."""
        return self.folder / "shop"

    @property
    def environment(self) -> dict[str, str]:
        """Of a run."""
        return {
            "RECMART_HOME": str(self.home),
            "RECMART_DATA": str(self.data),
            "RECMART_MEMORY_LIMIT": "1GB",
            "DAGSTER_HOME": str(self.home / "dagster"),
            "REDIS_URL": "embedded",
        }

    def open(self) -> None:
        """Make the shop; its last rows of events wait."""
        write_shop(
            self.data,
            n_users=120,
            n_products=80,
            n_events=_N_EVENTS,
            n_days=110,
            start=date(2024, 1, 1),
            seed=5,
            file_format="csv",
            dirt={"exact_duplicates": 0.01, "blank_ids": 0.01, "unknown_products": 0.01},
        )
        rows = []
        for path in sorted((self.data / "events").iterdir()):
            with path.open(newline="", encoding="utf-8") as file:
                self.header, *found = csv.reader(file)
            rows += found
            path.unlink()
        at = self.header.index("event_ts")
        rows.sort(key=lambda row: row[at])
        days = [list(of_day) for _, of_day in groupby(rows, key=lambda row: row[at][:10])]
        self.waiting = days[-_N_FILES:]
        self._write("first.csv", list(chain.from_iterable(days[:-_N_FILES])))

    def land_a_day(self) -> None:
        """The events of another day."""
        if not self.waiting:
            raise RuntimeError(f"all {_N_FILES} files have landed: fewer kills, or more files")
        self._write(f"day_{_N_FILES - len(self.waiting):03}.csv", self.waiting.pop(0))

    def _write(self, name: str, rows: list[list[str]]) -> None:
        with (self.data / "events" / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.header)
            writer.writerows(rows)
        self.n_rows += len(rows)

    def rows_lost(self) -> int:
        """Landed rows of events that are neither accepted nor rejected, or are there twice."""
        with duckdb.connect(str(self.home / "warehouse.duckdb")) as warehouse:
            ((raw,), (judged,)) = warehouse.execute(
                "select count(*) from raw.events union all"
                " select (select count(*) from staging.stg_events) + (select count(*)"
                " from staging.rejected_rows where entity = 'events')"
            ).fetchall()
        return abs(self.n_rows - raw) + abs(self.n_rows - judged)

    def run(self, context: Any, moment: Moment | None = None) -> Ended:
        """The daily job, killed or not."""
        # Beside the folder: that may be a disk which is full.
        log = self.folder.with_name(f"{self.folder.name}.log")
        return run_child(context, log, moment, run_line, self.environment)

    def witness(self) -> Witness:
        """For a home that has nothing yet, too."""
        return Witness(self.home, EmbeddedRedis(self.home).start())

    def move_out(self) -> None:
        """An empty home instead of this one."""
        EmbeddedRedis(self.home).stop()
        shutil.rmtree(self.home)
        self.home.mkdir()


@dataclass
class LineTally:
    """What came of killing the line.

    Attributes:
        tally: Kills of a line that had published before.
        first: Kills of the first run of an empty home.
        rows_lost: After any of the runs that followed.
        n_rows: Rows of events that had landed in the end.
        differing: Rows of surfaces that are other than those of a home that was never killed.
        compared: Rows that were compared.
        run_seconds: Of a run that is not killed.
    """

    tally: Tally
    first: Tally
    rows_lost: int = 0
    n_rows: int = 0
    differing: int = 0
    compared: int = 0
    run_seconds: float = 0.0


def kill_line(
    context: Any,
    shop: DailyShop,
    *,
    n_kills: int,
    n_first: int,
    seed: int,
    progress: Callable[[str], None],
) -> LineTally:
    """Kill the daily job; after about half of the kills the next run must end well.

    Args:
        context: Of `children`.
        shop: Opened, with an empty home.
        n_kills: Of a line that has published before.
        n_first: Of first runs.
        seed: Of moments.
        progress: Told how far it is.
    """
    found = LineTally(Tally(), Tally())
    begun = time.monotonic()
    ended = shop.run(context)
    assert ended.code == 0, ended.said
    found.run_seconds = time.monotonic() - begun
    chosen = random.Random(seed)
    witness = shop.witness()
    for moment in _moments(n_kills, found.run_seconds, seed):
        if found.tally.n_kills == n_kills:
            break
        shop.land_a_day()
        ended = shop.run(context, moment)
        if not ended.was_killed:
            assert ended.code == 0, ended.said
            progress(f"the run was over before it could be killed {moment}")
            continue
        found.tally.killed(moment, witness, set())
        if chosen.random() < 0.5 or found.tally.n_kills == n_kills:
            _mend(context, shop, witness, found, found.tally)
        progress(f"{found.tally.n_kills} of {n_kills} kills of the line, the last {moment}")
    _compare_with_a_home_never_killed(context, shop, found)
    for moment in _moments(n_first, found.run_seconds, seed + 1):
        if found.first.n_kills == n_first:
            break
        shop.move_out()
        witness = shop.witness()
        ended = shop.run(context, moment)
        if not ended.was_killed:
            assert ended.code == 0, ended.said
            continue
        found.first.killed(moment, witness, set())
        _mend(context, shop, witness, found, found.first)
        progress(f"{found.first.n_kills} of {n_first} kills of a first run, the last {moment}")
    found.n_rows = shop.n_rows
    EmbeddedRedis(shop.home).stop()
    return found


def _moments(n: int, seconds: float, seed: int) -> Iterator[Moment]:
    steps = {**LINE_STEPS, **PUBLISH_STEPS}
    # The first run, which was timed, is the slowest.
    yield from moments(steps, n + n // 3, longest_seconds=0.7 * seconds, seed=seed)


def _mend(context: Any, shop: DailyShop, witness: Witness, found: LineTally, tally: Tally) -> None:
    tally.mended(shop.run(context), witness)
    found.rows_lost += shop.rows_lost()


def _compare_with_a_home_never_killed(context: Any, shop: DailyShop, found: LineTally) -> None:
    ended = shop.run(context)
    assert ended.code == 0, ended.said
    killed = _served(shop)
    shop.move_out()
    ended = shop.run(context)
    assert ended.code == 0, ended.said
    for name, rows in _served(shop).items():
        found.compared += len(rows)
        found.differing += len(rows ^ killed[name]) // 2 + len(rows ^ killed[name]) % 2


def _served(shop: DailyShop) -> dict[str, set[tuple]]:
    """All rows of the live version. Numbers as readers get them, with six digits."""
    with duckdb.connect(str(shop.home / "warehouse.duckdb")) as warehouse:
        return {
            surface.name: {
                tuple(f"{value:.6g}" if isinstance(value, float) else value for value in row)
                for row in warehouse.execute(
                    f"select {surface.column_list} from serving.current_{surface.name}"
                ).fetchall()
            }
            for surface in SURFACES
        }


def line_faults(context: Any, folder: Path) -> dict[str, list[str]]:
    """The daily job on a disk that is full, and beside another run: what it says."""
    said = {}
    with small_disk(folder / "disk", _DISK_MEGABYTES) as disk:
        shop = DailyShop(disk)
        shop.open()
        assert shop.run(context).code == 0
        witness = shop.witness()
        said["two runs of the line at once"] = [_two_runs(context, shop, witness)]
        said["disk full, the whole line"] = [
            _run_on_full_disk(context, shop, witness, left) for left in _LEFT_BYTES
        ]
        EmbeddedRedis(shop.home).stop()
    return said


def _two_runs(context: Any, shop: DailyShop, witness: Witness) -> str:
    shop.land_a_day()
    first: list[Ended] = []
    log = shop.folder / "first.log"
    runner = threading.Thread(
        target=lambda: first.append(run_child(context, log, None, run_line, shop.environment))
    )
    runner.start()
    lock = shop.home / "warehouse.lock"
    held = time.monotonic() + 60
    while not _is_held(lock) and time.monotonic() < held:
        time.sleep(0.1)
    second = shop.run(context)
    runner.join()
    assert first[0].code == 0, first[0].said
    assert second.code == 1 and "Another run is working on" in second.said, second.said
    assert witness.look().is_same and shop.rows_lost() == 0
    return _said(second)


def _is_held(lock: Path) -> bool:
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _run_on_full_disk(context: Any, shop: DailyShop, witness: Witness, left: int) -> str:
    before = witness.look()
    shop.land_a_day()
    with filled(shop.folder, left_bytes=left):
        ended = shop.run(context)
    assert ended.code == 1, f"with {left} bytes left it ended with {ended.code}: {ended.said}"
    assert witness.look() == before
    mended = shop.run(context)
    assert mended.code == 0, mended.said
    shown = witness.look()
    assert shown.is_same and shown != before and not witness.leftovers() and not shop.rows_lost()
    said = _said(ended)
    assert "Free" in said, said
    return said


def _said(ended: Ended) -> str:
    """The first sentence about what failed."""
    _, found, rest = ended.said.partition("\nThe run failed")
    assert found, ended.said
    title, *lines = rest.strip().splitlines()
    return (lines[0] if title.endswith(":") else title.removeprefix(": ")).strip()
