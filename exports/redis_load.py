"""A version in Redis: load under its own prefix, verify, switch the pointer, clean up.

Belongs here: everything that writes Redis. Does not belong here: keys and values (`lists.py`),
reading (`reader.py`), starting a server (`redis_server.py`).

A version's keys are written beside the live ones, then counted and compared with the table, then
`recmart:{version}:manifest` says that the version is whole, and only then may `recmart:current`
name it. A kill before that leaves keys that nobody reads and that expire. Loading again repairs.

How it is fast: DuckDB makes the text of every item and of every distinct reason, numpy computes
where each piece belongs, Arrow glues the pieces to one buffer of Redis protocol per 250,000 items,
and the buffer goes to a socket as it is while the replies are counted. Nothing loops over users.

Memory, measured on Redis 6.2: 840 bytes a user with 20 products and 5 different reasons (730 of
them the value; 1,550 with the reason in each item; 640 as MessagePack). While a version is loaded,
Redis holds one more than is retained.

Limits: one Redis server (a cluster would need all keys of a MGET in one slot). Its policy must not
evict: `allkeys-*`, and `volatile-*` as soon as keys have a TTL, drop keys of the live version when
memory runs out, without an error.

Rights of the publishing user: ~recmart:* +ping +hello +auth +select +info +get +mget +set +del
+unlink +exists +scan +ttl +echo.
"""

import json
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import redis

from exports.errors import RedisLoadError, without_password
from exports.lists import KINDS, POINTER, decode, key, manifest_key, rows_sql
from exports.redis_client import UNCHANGED, Stream, connected
from exports.redis_commands import as_arrow, to_commands, to_exists
from exports.versions import Version

# Items per buffer: about 60 MB of Arrow and numpy a socket while it is built.
_ITEMS_PER_BUFFER = 250_000
# One socket waits for its buffer while the other sends.
_SOCKETS = 2
_IDS_PER_BUFFER = 100_000
_SAMPLE_LISTS = 1_000
# Measured on Redis 6.2: key of 50 bytes, object, two hash table entries (key and expiry).
_BYTES_PER_KEY = 220

# Kind, and the list ids (above, up to].
_Range = tuple[str, str | None, str]


@dataclass(frozen=True)
class LoadReport:
    """What a load did. n_lists is by kind; n_bytes is what was sent, 0 if all was there already."""

    version: str
    n_lists: dict[str, int]
    n_bytes: int


def load_version(
    connection: duckdb.DuckDBPyConnection,
    version: Version,
    *,
    redis_url: str,
    ttl_seconds: int,
    progress: Callable[[int, int], None] | None = None,
) -> LoadReport:
    """Write a version's lists under its prefix and verify them. Readers do not see it yet.

    A version that is there, complete, and has half of its TTL left is verified and not written
    again. When the load fails, its keys are taken away as far as the server still answers, unless
    the version is the live one.

    Args:
        connection: The warehouse, holding the version's rows; not inside a transaction.
        version: What to load.
        redis_url: redis://, rediss:// (TLS) or unix://, with user, password and database number.
        ttl_seconds: Keys expire after this and up to 10 % more, so that not all expire at once;
            0 for never.
        progress: Called with the lists loaded so far and all lists, in this thread.

    Raises:
        RedisLoadError: with what to do, for every way in which Redis can refuse or lose a key.
    """
    with connected(redis_url) as client:
        lists = _all_lists(connection, version.version)
        n_lists = {each.kind: len(each.ids) for each in lists}
        if _is_loaded(client, version, n_lists, ttl_seconds):
            with suppress(RedisLoadError):
                _verify(connection, client, version, lists, redis_url)
                return LoadReport(version.version, n_lists, n_bytes=0)
        _check_policy(client, redis_url, ttl_seconds)
        _check_headroom(connection, client, version, lists, redis_url)
        name = manifest_key(version.version)
        lifetime = ttl_seconds or None
        try:
            # Empty until verified: nothing may switch to it, and the clean-up finds what a killed
            # load leaves. Not over the manifest of the live version, which readers look at.
            client.set(name, "{}", nx=_current(client) == version.version, ex=lifetime)
            n_bytes = _send_lists(
                connection, version.version, lists, redis_url, ttl_seconds, progress
            )
            _verify(connection, client, version, lists, redis_url)
            client.set(name, _manifest(version, n_lists), ex=lifetime)
        except (RedisLoadError, redis.RedisError, OSError):
            with suppress(redis.RedisError, OSError):
                _take_back(client, version.version, redis_url)
            raise
    return LoadReport(version.version, n_lists, n_bytes)


def switch_redis(version: str, *, redis_url: str) -> None:
    """Let recmart:current name a version. The version before keeps its keys.

    Raises:
        RedisLoadError: if the version is not loaded and verified. The pointer stays as it was.
    """
    with connected(redis_url) as client:
        _require_loaded(client, version, redis_url)
        # Same connection, no retries: a server that restarts empty in between breaks it.
        client.set(POINTER, version)


def require_loaded(version: str, *, redis_url: str) -> None:
    """Check that a version could be switched to now.

    Raises:
        RedisLoadError: if Redis does not answer or the version is not loaded and verified.
    """
    with connected(redis_url) as client:
        _require_loaded(client, version, redis_url)


def current_redis(*, redis_url: str) -> str | None:
    """The version that recmart:current names, None when there is none."""
    with connected(redis_url) as client:
        return _current(client)


def remove_versions(*, redis_url: str, keep: Collection[str]) -> list[str]:
    """Unlink all keys of versions but those to keep and the one recmart:current names.

    What killed loads left is found too. SCAN and UNLINK in batches: readers wait a few
    milliseconds at most.

    Returns:
        The versions of which keys were removed.
    """
    with connected(redis_url) as client:
        found = [
            name.split(b":")[1].decode()
            for keys in _scan(client, manifest_key("*"))
            for name in keys
            # An id may end in ":manifest" too.
            if name.count(b":") == 2
        ]
        removed = sorted({*found} - {*keep, _current(client)})
        for version in removed:
            # Whole no more, so nothing may switch to it. A full server refuses this, no harm done.
            with suppress(redis.OutOfMemoryError):
                client.set(manifest_key(version), "{}", xx=True)
            _unlink_version(client, version, redis_url)
        return removed


def _current(client: redis.Redis) -> str | None:
    value = client.get(POINTER)
    assert value is None or isinstance(value, bytes)
    return None if value is None else value.decode()


def _manifest(version: Version, n_lists: dict[str, int]) -> str:
    return json.dumps({"content_hash": version.content_hash, "n_lists": n_lists})


def _require_loaded(client: redis.Redis, version: str, redis_url: str) -> None:
    manifest = client.get(manifest_key(version))
    if manifest in (None, b"{}"):
        raise RedisLoadError(
            f"Version {version} is not completely loaded in Redis at "
            f"{without_password(redis_url)}: its manifest is missing. Load it again with "
            f"load_version. {UNCHANGED}"
        )


def _is_loaded(
    client: redis.Redis, version: Version, n_lists: dict[str, int], ttl_seconds: int
) -> bool:
    name = manifest_key(version.version)
    if client.get(name) != _manifest(version, n_lists).encode():
        return False
    seconds_left = client.ttl(name)
    assert isinstance(seconds_left, int)
    # -1 stands for a key that never expires.
    return seconds_left == -1 if ttl_seconds == 0 else seconds_left >= ttl_seconds / 2


def _check_policy(client: redis.Redis, redis_url: str, ttl_seconds: int) -> None:
    memory = client.info("memory")
    assert isinstance(memory, dict)
    policy = str(memory.get("maxmemory_policy", "noeviction"))
    has_limit = int(memory.get("maxmemory", 0)) > 0
    if policy.startswith("allkeys-"):
        raise RedisLoadError(
            f"Redis at {without_password(redis_url)} has maxmemory-policy {policy}: it would drop "
            "keys of the live version without an error when memory runs out. Set it to noeviction "
            f"(redis-cli config set maxmemory-policy noeviction) and run again. {UNCHANGED}"
        )
    if policy.startswith("volatile-") and has_limit and ttl_seconds > 0:
        raise RedisLoadError(
            f"Redis at {without_password(redis_url)} has maxmemory-policy {policy}: it would drop "
            "keys that have a TTL, those of the live version too, when memory runs out. Set it to "
            f"noeviction, or load with ttl_seconds 0. {UNCHANGED}"
        )


def _check_headroom(
    connection: duckdb.DuckDBPyConnection,
    client: redis.Redis,
    version: Version,
    lists: "list[_Lists]",
    redis_url: str,
) -> None:
    memory = client.info("memory")
    assert isinstance(memory, dict)
    limit = int(memory.get("maxmemory", 0))
    if limit == 0:
        return
    needed = 0.0
    for each in lists:
        ids = each.sample(seed=version.seed)
        if not ids:
            continue
        rows = _fetch(connection, version.version, each.kind, ids=ids)
        n_bytes = len(to_commands(rows, version.version, each.kind, ttl_seconds=1)) / len(ids)
        n_there = client.exists(*(key(version.version, each.kind, list_id) for list_id in ids))
        assert isinstance(n_there, int)
        needed += (1 - n_there / len(ids)) * len(each.ids) * (n_bytes + _BYTES_PER_KEY)
    free = limit - int(memory["used_memory"])
    if needed > free:
        raise RedisLoadError(
            f"Redis at {without_password(redis_url)} has too little memory: version "
            f"{version.version} needs about {_megabytes(needed)}, and {_megabytes(free)} of "
            f"maxmemory {_megabytes(limit)} are free. Raise maxmemory to at least "
            f"{_megabytes(limit + needed - free)} or keep fewer versions. {UNCHANGED}"
        )


def _megabytes(n_bytes: float) -> str:
    return f"{max(n_bytes, 0) / 1e6:,.1f} MB"


def _scan(client: redis.Redis, pattern: str) -> Iterator[list[bytes]]:
    cursor = 0
    while True:
        reply = client.scan(cursor, match=pattern, count=2_000)
        assert isinstance(reply, tuple)
        cursor, keys = reply
        yield [each if isinstance(each, bytes) else each.encode() for each in keys]
        if cursor == 0:
            return


def _unlink_version(client: redis.Redis, version: str, redis_url: str) -> None:
    with Stream(redis_url) as stream:
        # All kinds, not yet the manifest: a clean-up that is killed finds the rest by it.
        stream.unlink_matching(f"recmart:{version}:[^m]*")
    client.unlink(manifest_key(version))


def _take_back(client: redis.Redis, version: str, redis_url: str) -> None:
    """Free the memory of a version that did not load. The live one keeps what it has."""
    if _current(client) != version:
        _unlink_version(client, version, redis_url)


@dataclass(frozen=True)
class _Lists:
    """The ids of the lists of one kind, in order, and how many items they have together."""

    kind: str
    ids: pa.Array
    n_items: int

    def ranges(self) -> list[tuple[str | None, str]]:
        """Ranges (above, up to] of list ids, each of about one buffer."""
        if len(self.ids) == 0:
            return []
        step = max(1, _ITEMS_PER_BUFFER * len(self.ids) // self.n_items)
        last = np.minimum(np.arange(step, len(self.ids) + step, step), len(self.ids)) - 1
        ends = self.ids.take(as_arrow(last)).to_pylist()
        return list(zip([None, *ends[:-1]], ends, strict=True))

    def sample(self, *, seed: int) -> list[str]:
        """Some ids, the same for the same seed."""
        n = min(_SAMPLE_LISTS, len(self.ids))
        chosen = np.random.default_rng(seed).choice(len(self.ids), n, replace=False)
        return list(self.ids.take(as_arrow(chosen)).to_pylist())


def _all_lists(connection: duckdb.DuckDBPyConnection, version: str) -> list[_Lists]:
    lists = []
    parameters = {"version": version}
    with connection.cursor() as cursor:
        for kind in KINDS:
            rows = rows_sql(kind, has_versions=True)
            first_rows = rows_sql(kind, has_versions=True, condition="rank = 1")
            # By its first rank, which costs a fifth of a group by. Lists without a rank 1 show
            # when what was sent is counted.
            ids = cursor.sql(
                f"select list_id from ({first_rows}) order by list_id", params=parameters
            ).to_arrow_table()
            counted = cursor.sql(f"select count(*) from ({rows})", params=parameters).fetchall()
            lists.append(_Lists(kind, ids.column(0).combine_chunks(), counted[0][0]))
    if lists[0].n_items == 0:
        raise RedisLoadError(
            f"Version {version} has no rows in serving.recommendations: stage it first. {UNCHANGED}"
        )
    return lists


def _fetch(
    connection: duckdb.DuckDBPyConnection,
    version: str,
    kind: str,
    *,
    above: str | None = None,
    up_to: str | None = None,
    ids: list[str] | None = None,
) -> pa.Table:
    """The items of some lists, ordered by list and rank.

    Columns: list_id; rank; item, the JSON of product and score with a comma after each; why, the
    JSON of source and reason; salt, a number per list.
    """
    conditions = ["true"]
    parameters: dict[str, object] = {"version": version}
    for name, value, condition in (
        ("above", above, "list_id > $above"),
        ("up_to", up_to, "list_id <= $up_to"),
        ("ids", ids, "list_id in (select unnest($ids))"),
    ):
        if value is not None:
            conditions.append(condition)
            parameters[name] = value
    with connection.cursor() as cursor:
        rows = cursor.sql(
            f"""
            select
                list_id,
                rank,
                concat(to_json(product_id), ',', score_text, ',') as item,
                concat('[', to_json(source), ',', coalesce(to_json(reason), 'null'), ']') as why,
                hash(list_id) as salt
            from ({rows_sql(kind, has_versions=True, condition=" and ".join(conditions))})
            """,
            params=parameters,
        ).to_arrow_table()
    # Stored in order and so nearly always read in order. Asking costs a tenth of sorting again.
    in_order = [("list_id", "ascending"), ("rank", "ascending")]
    return rows if _is_ordered(rows) else rows.sort_by(in_order)


def _is_ordered(rows: pa.Table) -> bool:
    ids, rank = rows["list_id"].combine_chunks(), rows["rank"].combine_chunks()
    comes_later = pc.or_(
        pc.greater(ids[1:], ids[:-1]),
        pc.and_(pc.equal(ids[1:], ids[:-1]), pc.greater(rank[1:], rank[:-1])),
    )
    return bool(pc.all(comes_later, min_count=0).as_py())


def _send_lists(
    connection: duckdb.DuckDBPyConnection,
    version: str,
    lists: list[_Lists],
    redis_url: str,
    ttl_seconds: int,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Send all lists; returns the bytes sent."""

    def send(stream: Stream, part: _Range) -> tuple[int, int]:
        kind, above, up_to = part
        rows = _fetch(connection, version, kind, above=above, up_to=up_to)
        n = pc.count_distinct(rows["list_id"]).as_py()
        commands = to_commands(rows, version, kind, ttl_seconds=ttl_seconds)
        stream.exchange(commands, n)
        return n, len(commands)

    parts = [(each.kind, above, up_to) for each in lists for above, up_to in each.ranges()]
    n_all = sum(len(each.ids) for each in lists)
    n_done = n_bytes = 0
    for n, n_sent in _in_parallel(send, parts, redis_url):
        n_done += n
        n_bytes += n_sent
        if progress is not None:
            progress(n_done, n_all)
    if n_done != n_all:
        raise RedisLoadError(
            f"Version {version} has {n_done:,} lists in its serving tables but {n_all:,} rows of "
            "rank 1: ranks must begin at 1 and occur once. Look at the checks of the tables in "
            f"schema ml. {UNCHANGED}"
        )
    return n_bytes


def _in_parallel(
    work: Callable[[Stream, _Range], tuple[int, int]],
    parts: list[_Range],
    redis_url: str,
) -> Iterator[tuple[int, int]]:
    """Give each part to the next free socket. The first error ends it."""
    streams: SimpleQueue[Stream] = SimpleQueue()
    opened = []
    has_failed = threading.Event()

    def run(part: _Range) -> tuple[int, int]:
        if has_failed.is_set():
            return 0, 0
        stream = streams.get()
        try:
            return work(stream, part)
        except BaseException:
            has_failed.set()
            raise
        finally:
            streams.put(stream)

    try:
        for _ in range(min(_SOCKETS, len(parts))):
            opened.append(Stream(redis_url))
            streams.put(opened[-1])
        with ThreadPoolExecutor(_SOCKETS) as executor:
            yield from executor.map(run, parts)
    finally:
        for stream in opened:
            stream.close()


def _verify(
    connection: duckdb.DuckDBPyConnection,
    client: redis.Redis,
    version: Version,
    lists: list[_Lists],
    redis_url: str,
) -> None:
    """Ask for every key by its name, and compare a sample of the lists with the table."""
    with Stream(redis_url) as stream:
        for each in lists:
            n_found = _count_keys(stream, each, version.version)
            if n_found != len(each.ids):
                raise RedisLoadError(
                    f"Redis at {without_password(redis_url)} has {n_found:,} of "
                    f"{len(each.ids):,} {each.kind} lists of version {version.version}: it lost "
                    "keys, by a restart or by evicting. Look at its log and maxmemory, and load "
                    f"again. {UNCHANGED}"
                )
    for each in lists:
        _compare_sample(connection, client, version, each, redis_url)


def _count_keys(stream: Stream, lists: _Lists, version: str) -> int:
    n_found = 0
    for start in range(0, len(lists.ids), _IDS_PER_BUFFER):
        ids = lists.ids.slice(start, _IDS_PER_BUFFER)
        n_found += stream.exchange(*to_exists(ids, version, lists.kind))
    return n_found


def _compare_sample(
    connection: duckdb.DuckDBPyConnection,
    client: redis.Redis,
    version: Version,
    lists: _Lists,
    redis_url: str,
) -> None:
    expected: dict[str, list[tuple[str, float, str, str | None]]]
    expected = {list_id: [] for list_id in lists.sample(seed=version.seed)}
    if not expected:
        return
    chosen = "list_id in (select unnest($ids))"
    for list_id, product_id, score, source, reason in connection.execute(
        "select list_id, product_id, score_text::double, source, reason "
        f"from ({rows_sql(lists.kind, has_versions=True, condition=chosen)}) "
        "order by list_id, rank",
        {"version": version.version, "ids": list(expected)},
    ).fetchall():
        expected[list_id].append((product_id, score, source, reason))
    names = [key(version.version, lists.kind, list_id) for list_id in expected]
    values = client.mget(names)
    assert isinstance(values, list)
    for name, rows, value in zip(names, expected.values(), values, strict=True):
        found = [] if value is None else decode(value)
        if [(each.product_id, each.score, each.source, each.reason) for each in found] != rows:
            raise RedisLoadError(
                f"{name} in Redis at {without_password(redis_url)} is not what the table holds: "
                "something else writes under the prefix recmart:, or the key expired. Load again. "
                f"{UNCHANGED}"
            )
