"""Faults that are injected while a version is published: disk, Redis, a second run, the clock.

Belongs here: faults of the machine that a real part can be given. Does not belong here: kills
(`kills.py`). Each function makes the fault, asserts that the last version stays live and that the
error says what to do, takes the fault away, asserts that the next publish succeeds, and returns
what was said.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import redis
from kills import Shown, Witness, publish_taste, run_child
from publishing_for_tests import NOW, make_shop, publish_version, stage

from exports import versions
from exports.errors import PublishError
from exports.reader import Reader
from exports.redis_server import EmbeddedRedis
from ml_assets.warehouse import Warehouse

_USERS = tuple(f"u{n}" for n in range(300))
# Fits a dozen versions of the small shop.
DISK_MEGABYTES = 48


@dataclass
class Place:
    """A home with a published version, and a Redis of its own."""

    context: Any
    home: Path
    server: EmbeddedRedis
    witness: Witness
    taste: int = 0

    def publish(self, *, happened_at: datetime = NOW, redis_url: str | None = None) -> None:
        """The next version."""
        self.taste += 1
        self.publish_again(happened_at=happened_at, redis_url=redis_url)

    def publish_again(self, *, happened_at: datetime = NOW, redis_url: str | None = None) -> None:
        """The version of the last attempt."""
        with Warehouse(self.home / "warehouse.duckdb", "1GB").connect() as warehouse:
            make_shop(warehouse, taste=self.taste, users=_USERS)
            publish_version(
                warehouse,
                stage(warehouse, created_at=happened_at),
                self.home / "published",
                redis_url or self.witness.redis_url,
                run_id=f"run-{self.taste}",
                happened_at=happened_at,
            )

    def refused(self, **changed: Any) -> str:
        """The sentence of a publish that has to fail."""
        try:
            self.publish(**changed)
        except PublishError as error:
            return str(error)
        raise AssertionError("it was published all the same")

    def require_mended(self) -> Shown:
        """The next run succeeds and nothing is left over."""
        self.publish_again()
        shown = self.witness.look()
        assert shown.is_same and not self.witness.leftovers()
        return shown

    def require_files_and_tables(self, before: Shown) -> None:
        """Without Redis, the other two still show the last version, and readers get answers."""
        with self.witness._warehouse() as warehouse:
            assert self.witness._in_tables(warehouse) == before.warehouse
            assert self.witness._in_snapshot(warehouse) == before.snapshot
        snapshot = self.home / "published" / "current.duckdb"
        with Reader(self.witness.redis_url, snapshot) as reader:
            assert reader.recommend(_USERS[0])

    def process_of_redis(self) -> int:
        """The server's."""
        with redis.Redis.from_url(self.witness.redis_url) as client:
            told: Any = client.info("server")
            return int(told["process_id"])

    def start_redis(self) -> None:
        """Again, maybe at another port."""
        self.witness.redis_url = self.server.start()


@contextmanager
def place_in(context: Any, folder: Path, *, home: Path | None = None) -> Iterator[Place]:
    """A place with a version; its Redis is beside the home, not in it."""
    server = EmbeddedRedis(folder / "redis")
    home = home or folder / "home"
    try:
        place = Place(context, home, server, Witness(home, server.start()))
        place.publish()
        yield place
    finally:
        server.stop()


def redis_down(place: Place) -> list[str]:
    """No server listens."""
    before = place.witness.look()
    os.kill(place.process_of_redis(), signal.SIGKILL)
    said = place.refused()
    assert "does not answer" in said and "Start it, or set REDIS_URL" in said
    place.require_files_and_tables(before)
    place.start_redis()
    place.require_mended()
    return [said]


def redis_slow(place: Place) -> list[str]:
    """Frozen for nine tenths of the time: slow, not down. Readers and the publish go on."""
    is_over = threading.Event()
    process = place.process_of_redis()

    def freeze() -> None:
        while not is_over.is_set():
            os.kill(process, signal.SIGSTOP)
            is_over.wait(0.09)
            os.kill(process, signal.SIGCONT)
            is_over.wait(0.01)

    freezer = threading.Thread(target=freeze)
    freezer.start()
    try:
        started = time.monotonic()
        place.publish()
        seconds = time.monotonic() - started
        snapshot = place.home / "published" / "current.duckdb"
        with Reader(place.witness.redis_url, snapshot) as reader:
            n_asked = sum(bool(reader.recommend(user)) for user in _USERS[:100])
        assert n_asked == 100
    finally:
        is_over.set()
        freezer.join()
        os.kill(process, signal.SIGCONT)
    assert place.witness.look().is_same
    place.publish()
    place.require_mended()
    return [f"published in {seconds:.1f} s; 100 questions answered"]


def redis_killed_while_publishing(place: Place, n_times: int = 2) -> list[str]:
    """The server is killed at a random moment of the publish, and comes back empty."""
    chosen = random.Random(20111209)
    said: list[str] = []
    longest = 1.0
    for _ in range(10 * n_times):
        if len(said) == n_times:
            break
        before = place.witness.look()
        process = place.process_of_redis()
        killer = threading.Timer(chosen.uniform(0, longest), os.kill, (process, 9))
        started = time.monotonic()
        killer.start()
        try:
            place.publish()
            # Too late: sooner next time.
            longest = min(longest, time.monotonic() - started)
        except PublishError as error:
            said.append(str(error))
            assert "does not answer" in said[-1] and "run again" in said[-1]
            with place.witness._warehouse() as warehouse:
                live = place.witness._in_tables(warehouse)
                # Unless it was killed between two pointers.
                is_switched = live != before.warehouse
                assert place.witness._in_snapshot(warehouse) in (live, before.snapshot)
            if not is_switched:
                place.require_files_and_tables(before)
        finally:
            killer.join()
        place.start_redis()
        place.require_mended()
    return said


def redis_full(place: Place) -> list[str]:
    """`maxmemory` leaves room for half a version."""
    before = place.witness.look()
    with redis.Redis.from_url(place.witness.redis_url) as client:
        memory: Any = client.info("memory")
        client.config_set("maxmemory", int(memory["used_memory"]) + 50_000)
        said = place.refused()
        assert "too little memory" in said and "Raise maxmemory to at least" in said
        assert place.witness.look() == before
        client.config_set("maxmemory", 0)
    place.require_mended()
    return [said]


def redis_restarted_empty(place: Place) -> list[str]:
    """The server comes back without data, and the next run has nothing new to publish."""
    before = place.witness.look()
    with redis.Redis.from_url(place.witness.redis_url) as client:
        client.flushall()
    os.kill(place.process_of_redis(), signal.SIGKILL)
    place.start_redis()
    place.require_files_and_tables(before)
    assert place.witness.look().redis is None
    assert place.require_mended() == before
    return ["loaded again by the next run, which had nothing new"]


def two_at_once(place: Place, n_times: int = 2) -> list[str]:
    """Two processes publish different versions into one home."""
    said = []
    for _ in range(n_times):
        place.taste += 2
        ended = []

        def run(taste: int, ended: list = ended) -> None:
            log = place.home.with_name(f"run-{taste}.log")
            ended.append(
                run_child(
                    place.context,
                    log,
                    None,
                    publish_taste,
                    place.home,
                    place.witness.redis_url,
                    taste,
                    len(_USERS),
                )
            )

        runs = [
            threading.Thread(target=run, args=(taste,)) for taste in (place.taste - 1, place.taste)
        ]
        for each in runs:
            each.start()
        for each in runs:
            each.join()
        assert any(each.code == 0 for each in ended)
        for each in ended:
            if each.code != 0:
                assert "wait for the run that it belongs to" in each.said, each.said
                said.append(each.said.strip().splitlines()[-1].partition(": ")[2])
        assert place.witness.look().is_same
    place.publish()
    place.require_mended()
    return said or ["both ran, one after the other"]


def clock_set_back(place: Place) -> list[str]:
    """Each version is published an hour or a year before the one before it."""
    for hours in (1, 24 * 365, 2):
        before = place.witness.look()
        place.publish(happened_at=NOW - timedelta(hours=hours))
        shown = place.witness.look()
        assert shown.is_same and shown != before and not place.witness.leftovers()
        with place.witness._warehouse() as warehouse:
            kept = {each.version for each in versions.kept_versions(warehouse)}
        assert kept == {before.warehouse, shown.warehouse}
    return ["the newest is the one that went live last, whatever the clock says"]


FAULTS: dict[str, Callable[[Place], list[str]]] = {
    "Redis is down": redis_down,
    "Redis is slow": redis_slow,
    "Redis is killed while a version is published": redis_killed_while_publishing,
    "Redis has too little memory": redis_full,
    "Redis is restarted empty": redis_restarted_empty,
    "two runs publish at once": two_at_once,
    "the clock jumps backwards": clock_set_back,
}


# --- disk full ----------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own in memory. Needs the right to mount: see `can_mount`."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    subprocess.run(command, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def can_mount(folder: Path) -> bool:
    """Whether `small_disk` works here: root, and not in a container that forbids it."""
    with suppress(OSError, subprocess.CalledProcessError), small_disk(folder / "probe", 1):
        return True
    return False


@contextmanager
def filled(folder: Path, *, left_bytes: int) -> Iterator[None]:
    """A file takes all of the disk but so much."""
    ballast = folder / "ballast"
    n_bytes = max(shutil.disk_usage(folder).free - left_bytes, 0)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, n_bytes)
    try:
        yield
    finally:
        ballast.unlink()


def disk_full(context: Any, folder: Path, lefts: list[int]) -> list[str]:
    """Publish on a disk that has so many bytes left, for each of `lefts`."""
    said = []
    with small_disk(folder / "disk", DISK_MEGABYTES) as disk:
        home = disk / "home"
        with place_in(context, folder, home=home) as place:
            place.publish()
            for left in lefts:
                place.taste += 1
                arguments = (home, disk, place.witness.redis_url, place.taste, left)
                before = place.witness.look()
                ended = run_child(
                    context, folder / "child.log", None, _publish_on_full_disk, *arguments
                )
                if ended.code == 0:
                    # The last of them leave enough.
                    assert place.witness.look().is_same
                    continue
                assert ended.said.startswith("refused: "), ended.said
                said.append(ended.said.removeprefix("refused: ").strip())
                assert "Free" in said[-1], said[-1]
                assert place.witness.look() == before
                place.require_mended()
    return said


def _publish_on_full_disk(
    began: Any, home: Path, disk: Path, redis_url: str, taste: int, left: int
) -> None:
    began.set()
    with Warehouse(home / "warehouse.duckdb", "1GB").connect() as warehouse:
        make_shop(warehouse, taste=taste, users=_USERS)
        # Different in every row, or the version would fit where another has been.
        warehouse.execute("update ml.recommendations set reason = uuid()::varchar")
        warehouse.execute("checkpoint")
        with filled(disk, left_bytes=left):
            try:
                publish_version(
                    warehouse,
                    stage(warehouse),
                    home / "published",
                    redis_url,
                    run_id=f"run-{taste}",
                )
            except PublishError as error:
                print("refused:", error, flush=True)
                sys.exit(3)
