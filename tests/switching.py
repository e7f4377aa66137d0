"""Readers that ask without a pause while versions are switched back and forth."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import duckdb
from publishing_for_tests import NOW, make_shop, open_warehouse, publish_version, stage

from exports import publish
from exports.errors import ReaderError
from exports.reader import Reader

USERS = tuple(f"u{n}" for n in range(100))
_PAGE = ("for_you", "because", "buy_again", "trending", "popular")
_TASTES = 3
# Every so many questions a whole page, which takes two round trips.
_QUESTIONS_A_PAGE = 10
# Every so many switches a publish, else a rollback.
_SWITCHES_A_PUBLISH = 10


@dataclass(frozen=True)
class Asked:
    """What the reader of one source got.

    Attributes:
        source: Redis or snapshot.
        n: Questions asked.
        n_errors: Of those, without an answer.
        n_mixed: Of those, with an answer that no version has.
        n_versions: Different versions that the answers belong to.
        per_second: Questions a second.
        slowest_ms: The longest that an answer took.
    """

    source: str
    n: int
    n_errors: int
    n_mixed: int
    n_versions: int
    per_second: float
    slowest_ms: float


@dataclass(frozen=True)
class Switched:
    """A run of switches under readers; seconds of each rollback and publish."""

    asked: tuple[Asked, ...]
    rollback_seconds: tuple[float, ...]
    publish_seconds: tuple[float, ...]

    @property
    def rollback_ms(self) -> tuple[float, float]:
        """Median and longest."""
        return 1e3 * statistics.median(self.rollback_seconds), 1e3 * max(self.rollback_seconds)


def switch_under_readers(
    context: Any,
    home: Path,
    redis_url: str,
    *,
    n_switches: int,
    seconds_between: float,
    per_second: int,
) -> Switched:
    """Publish three versions, then switch between them while readers ask.

    Args:
        context: Of `kills.children`.
        home: An empty folder.
        redis_url: A server without versions.
        n_switches: One in ten a publish, the others rollbacks.
        seconds_between: Pause between two of them.
        per_second: How often Redis is asked, and how often the snapshot.
    """
    published = home / "published"
    sources = {
        "Redis": {"redis_url": redis_url},
        "snapshot": {"snapshot": published / "current.duckdb"},
    }
    rollbacks, publishes = [], []
    with open_warehouse(home) as warehouse:
        known: dict[str, list[dict]] = {user: [{}, {}] for user in USERS}
        names = []
        for taste in range(_TASTES):
            names.append(_publish(warehouse, home, redis_url, taste))
            with Reader(redis_url) as reader:
                for user in USERS:
                    known[user][0][tuple(reader.recommend(user))] = taste
                    known[user][1][_page(reader, user)] = taste
        assert all(len(each) == _TASTES for answers in known.values() for each in answers)
        is_over, found = context.Event(), context.Queue()
        readers = [
            context.Process(target=_ask, args=(name, source, per_second, known, is_over, found))
            for name, source in sources.items()
        ]
        for each in readers:
            each.start()
        # Each says when it has its first answer.
        for _ in readers:
            found.get(timeout=60)
        for n in range(n_switches):
            started = time.perf_counter()
            if n % _SWITCHES_A_PUBLISH == _SWITCHES_A_PUBLISH - 1:
                _publish(warehouse, home, redis_url, n % _TASTES)
                publishes.append(time.perf_counter() - started)
            else:
                publish.roll_back(
                    warehouse,
                    names[n % _TASTES],
                    published_dir=published,
                    redis_url=redis_url,
                    ttl_seconds=3600,
                    run_id="by hand",
                    happened_at=NOW,
                )
                rollbacks.append(time.perf_counter() - started)
            time.sleep(seconds_between)
        is_over.set()
        asked = [_got(found) for _ in readers]
        for each in readers:
            each.join()
    return Switched(tuple(asked), tuple(rollbacks), tuple(publishes))


def _publish(warehouse: duckdb.DuckDBPyConnection, home: Path, redis_url: str, taste: int) -> str:
    make_shop(warehouse, taste=taste, users=USERS)
    return publish_version(
        warehouse, stage(warehouse), home / "published", redis_url, retain=_TASTES
    ).version


def _page(reader: Reader, user: str) -> tuple:
    return tuple(
        (shelf.placement, tuple(shelf.products)) for shelf in reader.page(user, _PAGE, k=4)
    )


def _got(found: Any) -> Asked:
    try:
        return found.get(timeout=60)
    except Empty:
        raise RuntimeError("a reader ended without saying what it got") from None


def _ask(
    name: str,
    source: Mapping[str, Any],
    per_second: int,
    known: Mapping[str, list[dict]],
    is_over: Any,
    found: Any,
) -> None:
    n = n_errors = n_mixed = 0
    slowest = 0.0
    seen = set()
    with Reader(**source) as reader:
        reader.recommend(USERS[0])
        found.put(name)
        started = due = time.perf_counter()
        while not is_over.is_set():
            user = USERS[n % len(USERS)]
            is_page = n % _QUESTIONS_A_PAGE == 0
            n += 1
            asked_at = time.perf_counter()
            try:
                answer = _page(reader, user) if is_page else tuple(reader.recommend(user))
            except ReaderError:
                n_errors += 1
            else:
                version = known[user][is_page].get(answer)
                n_mixed += version is None
                seen.add(version)
            slowest = max(slowest, time.perf_counter() - asked_at)
            due += 1 / per_second
            time.sleep(max(0.0, due - time.perf_counter()))
        seconds = time.perf_counter() - started
    found.put(Asked(name, n, n_errors, n_mixed, len(seen - {None}), n / seconds, 1e3 * slowest))
