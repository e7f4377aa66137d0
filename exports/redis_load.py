"""A version in Redis: load under its own prefix, verify, switch the pointer, clean up.

Belongs here: everything that writes Redis. Does not belong here: keys and values (`lists.py`),
reading (`reader.py`), starting a server (`redis_server.py`).

A version is a hash for each kind of list, and `recmart:{version}:manifest`. The hashes
are written beside the live ones, then counted and compared with the table, then the manifest says
that the version is whole, and only then may `recmart:current` name it. A kill before that leaves
keys that nobody reads and that expire. Loading again repairs.

Why hashes, and not a key for each list: a million SETs with a TTL keep the server's one thread busy
for 2.5 s, the same lists as fields of a hash for 1.2 s, and that thread is what a load waits for.
They take 90 bytes a list less, are counted without asking for each, expire with one command, and
are taken away by one UNLINK, which frees the memory in another thread. The price: a hash that
expires (only if the line has stopped for the whole TTL) is freed at once, 0.7 s for a
million lists, unless the server has `lazyfree-lazy-expire yes`, as the embedded one has.

How it is fast: a compiled loop turns Arrow's buffers into Redis protocol (`redis_commands.py`), and
three threads, each with a socket and a range of ids, fetch, turn and send at the same time. Nothing
in Python loops over lists.

Memory, measured on Redis 6.2: 790 bytes a user with 20 products and 5 different reasons (720 of
them the value); to buy again and for anchors 1,000 more, and 23 for each product the user bought.
While a version is loaded, Redis holds one more than is retained.

Limits: one Redis server (a cluster would put a version's hashes on different ones). Its policy must
not evict: `allkeys-*`, and `volatile-*` as soon as keys have a TTL, drop keys of the live version
when memory runs out, without an error.

What rights its user needs stands in docs/redis.md, and is tested.
"""

import json
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue

import duckdb
import pyarrow as pa
import redis

from exports.errors import RedisLoadError, without_password
from exports.lists import (
    KINDS,
    KINDS_OF_USERS,
    POINTER,
    decode,
    key,
    manifest_key,
    published_score,
    rows_sql,
)
from exports.redis_client import Stream, connected
from exports.redis_commands import OutOfOrder, to_commands
from exports.versions import Version

# Rows per batch: 2 MB of protocol, so that it is still in the processor's cache when it is sent.
_ROWS_PER_BATCH = 50_000
# Lists per range of ids: a range costs 10 ms beside its rows, so there is one for each socket, but
# not of fewer lists, nor of so many that nobody is told how far it is.
_LEAST_PER_RANGE, _MOST_PER_RANGE = 50_000, 500_000
# The server has one thread: while two wait for it, the third makes its next bytes.
_SOCKETS = 3
_SAMPLE_LISTS = 1_000
# Measured on Redis 6.2, beside the bytes of the command: hash table entry, rounding of sizes.
_BYTES_PER_LIST = 60
# The manifest goes first, so that it never speaks for lists that have expired.
_LISTS_OUTLIVE_MANIFEST = 1.1

# Kind, and the list ids (above, up to].
_Range = tuple[str, str | None, str | None]


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
        ttl_seconds: Keys expire after this (the manifest) or a tenth more (the lists); 0 for never.
        progress: Called with the lists loaded so far and all lists, in this thread.

    Raises:
        RedisLoadError: with what to do, for every way in which Redis can refuse or lose a key.
    """
    with connected(redis_url) as client:
        lists = _all_lists(connection, version)
        n_lists = {each.kind: each.n for each in lists}
        if _is_loaded(client, version, n_lists, ttl_seconds):
            with suppress(RedisLoadError):
                _verify(connection, client, version, lists, redis_url)
                return LoadReport(version.version, n_lists, n_bytes=0)
        _check_policy(client, redis_url, ttl_seconds)
        _check_headroom(connection, client, version, lists, redis_url)
        name = manifest_key(version.version)
        lifetime = ttl_seconds or None
        try:
            # Not the live version's: readers look at them.
            if _current(client) != version.version:
                _unlink_version(client, version.version)
            n_bytes = _send_lists(
                connection, version.version, lists, redis_url, ttl_seconds, progress
            )
            _verify(connection, client, version, lists, redis_url)
            client.set(name, _manifest(version, n_lists), ex=lifetime)
        except (RedisLoadError, redis.RedisError, OSError):
            with suppress(redis.RedisError, OSError):
                _take_back(client, version.version)
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
        RedisLoadError: if Redis does not answer, takes no writes, or the version is not loaded and
            verified.
    """
    with connected(redis_url) as client:
        manifest = _require_loaded(client, version, redis_url)
        # A primary that became a replica still answers. The same again, if it is still there.
        client.set(manifest_key(version), manifest, xx=True, keepttl=True)


def current_redis(*, redis_url: str) -> str | None:
    """The version that recmart:current names, None when there is none."""
    with connected(redis_url) as client:
        return _current(client)


def remove_versions(*, redis_url: str, keep: Collection[str]) -> list[str]:
    """Unlink all keys of versions but those to keep and the one recmart:current names.

    What killed loads left is found too. Readers do not wait: another thread of the server frees
    the memory.

    Returns:
        The versions of which keys were removed.
    """
    with connected(redis_url) as client:
        found = {name.decode().split(":")[1] for name in _scan(client, "recmart:*:*")}
        removed = sorted(found - {*keep, _current(client)})
        for version in removed:
            _unlink_version(client, version)
        return removed


def forget_users(
    connection: duckdb.DuckDBPyConnection,
    version: Version,
    user_ids: Sequence[str],
    *,
    redis_url: str,
) -> None:
    """Take users' lists out of a loaded version, and verify the rest against the tables.

    Args:
        connection: The warehouse, without these users' rows.
        version: With today's counts and hash. Of one that is not whole the rest stays as it is.
        user_ids: Whose lists.
        redis_url: See `load_version`.

    Raises:
        RedisLoadError: if Redis does not answer, or holds something else than the tables.
    """
    with connected(redis_url) as client:
        for kind in KINDS_OF_USERS:
            client.hdel(key(version.version, kind), *user_ids)
        name = manifest_key(version.version)
        # It expires before the lists do, and a load that was killed has none.
        if client.get(name) is None:
            return
        lists = _all_lists(connection, version)
        _verify(connection, client, version, lists, redis_url)
        client.set(name, _manifest(version, {each.kind: each.n for each in lists}), keepttl=True)


def count_lists(*, redis_url: str, user_id: str) -> dict[str, int]:
    """How many lists of a user there are, by the key that could hold one."""
    with connected(redis_url) as client:
        names = [each for kind in KINDS_OF_USERS for each in _scan(client, f"recmart:*:{kind}")]
        return {name.decode(): int(client.hexists(name, user_id)) for name in sorted(names)}


def _current(client: redis.Redis) -> str | None:
    value = client.get(POINTER)
    assert value is None or isinstance(value, bytes)
    return None if value is None else value.decode()


def _manifest(version: Version, n_lists: dict[str, int]) -> str:
    check = version.pseudonym_check
    names = {} if check is None else {"pseudonym_check": check}
    return json.dumps({"content_hash": version.content_hash, "n_lists": n_lists, **names})


def _require_loaded(client: redis.Redis, version: str, redis_url: str) -> bytes:
    manifest = client.get(manifest_key(version))
    if not isinstance(manifest, bytes) or manifest == b"{}":
        raise RedisLoadError(
            f"Version {version} is not completely loaded in Redis at "
            f"{without_password(redis_url)}: its manifest is missing. Run again: it is loaded "
            f"again."
        )
    return manifest


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
            f"(redis-cli config set maxmemory-policy noeviction) and run again."
        )
    if policy.startswith("volatile-") and has_limit and ttl_seconds > 0:
        raise RedisLoadError(
            f"Redis at {without_password(redis_url)} has maxmemory-policy {policy}: it would drop "
            "keys that have a TTL, those of the live version too, when memory runs out. Set it to "
            f"noeviction, or load with ttl_seconds 0."
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
        n_there = client.hlen(key(version.version, each.kind))
        assert isinstance(n_there, int)
        if not each.sample or n_there >= each.n:
            continue
        rows = _fetch(connection, version.version, each.kind, ids=each.sample, is_sorted=True)
        commands = to_commands(rows, key(version.version, each.kind))
        n_bytes = sum(len(each.content) for each in commands) / len(each.sample)
        needed += (each.n - n_there) * (n_bytes + _BYTES_PER_LIST)
    free = limit - int(memory["used_memory"])
    if needed > free:
        raise RedisLoadError(
            f"Redis at {without_password(redis_url)} has too little memory: version "
            f"{version.version} needs about {_megabytes(needed)}, and {_megabytes(free)} of "
            f"maxmemory {_megabytes(limit)} are free. Raise maxmemory to at least "
            f"{_megabytes(limit + needed - free)} or keep fewer versions."
        )


def _megabytes(n_bytes: float) -> str:
    return f"{max(n_bytes, 0) / 1e6:,.1f} MB"


def _scan(client: redis.Redis, pattern: str) -> Iterator[bytes]:
    cursor = 0
    while True:
        reply = client.scan(cursor, match=pattern, count=2_000)
        assert isinstance(reply, tuple)
        cursor, keys = reply
        for each in keys:
            assert isinstance(each, bytes)
            yield each
        if cursor == 0:
            return


def _unlink_version(client: redis.Redis, version: str) -> None:
    # In one command, and the manifest first: a version that has one is whole.
    client.unlink(manifest_key(version), *(key(version, kind) for kind in KINDS))


def _take_back(client: redis.Redis, version: str) -> None:
    """Free the memory of a version that did not load. The live one keeps what it has."""
    if _current(client) != version:
        _unlink_version(client, version)


@dataclass(frozen=True)
class _Lists:
    """How many lists of a kind there are, and the ids of some of them, in order."""

    kind: str
    n: int
    sample: list[str]

    def ranges(self) -> list[_Range]:
        """Ranges of list ids that together hold all lists, with about as many lists each."""
        if self.n == 0:
            return []
        n_ranges = max(min(-(-self.n // _LEAST_PER_RANGE), _SOCKETS), -(-self.n // _MOST_PER_RANGE))
        n_ranges = min(n_ranges, len(self.sample))
        ends = [self.sample[len(self.sample) * each // n_ranges] for each in range(1, n_ranges)]
        return [
            (self.kind, above, up_to)
            for above, up_to in zip([None, *ends], [*ends, None], strict=True)
        ]


def _all_lists(connection: duckdb.DuckDBPyConnection, version: Version) -> list[_Lists]:
    lists = []
    with connection.cursor() as cursor:
        for kind in KINDS:
            # By their first ranks, which costs a fifth of a group by. Lists without a rank 1 show
            # when what was sent is counted.
            first_rows = rows_sql(kind, has_versions=True, condition="rank = 1")
            # The same ids for the same seed.
            ((n, sample),) = cursor.execute(
                f"select count(*), arg_min(list_id, hash(list_id, $seed), {_SAMPLE_LISTS}) "
                f"from ({first_rows})",
                {"version": version.version, "seed": version.seed},
            ).fetchall()
            lists.append(_Lists(kind, n, sorted(set(sample or []))))
    if lists[0].n == 0:
        raise RedisLoadError(
            f"Version {version.version} has no rows in serving.recommendations: stage it first."
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
    is_sorted: bool,
) -> Iterator[pa.RecordBatch]:
    """The rows of some lists, sorted by list and rank, or as they are stored."""
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
    rows = rows_sql(kind, has_versions=True, condition=" and ".join(conditions))
    if is_sorted:
        rows = f"select * from ({rows}) order by list_id, rank"
    with connection.cursor() as cursor:
        yield from cursor.sql(rows, params=parameters).to_arrow_reader(_ROWS_PER_BATCH)


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
        name = key(version, kind)
        lifetime = _lifetime(name, ttl_seconds)
        # Stored in order and so nearly always read in order; sorting again costs thrice the rest.
        for is_sorted in (False, True):
            rows = _fetch(connection, version, kind, above=above, up_to=up_to, is_sorted=is_sorted)
            n = n_bytes = 0
            try:
                for commands in to_commands(rows, name):
                    stream.send(commands.content, commands.n_commands)
                    # Each time: a load that is killed must leave nothing that stays for ever.
                    stream.send(lifetime, 1)
                    n += commands.n_lists
                    n_bytes += len(commands.content)
            except OutOfOrder:
                continue
            stream.finish()
            return n, n_bytes
        raise AssertionError(f"the rows of {name} are not sorted by their ids' bytes")

    parts = [part for each in lists for part in each.ranges()]
    n_all = sum(each.n for each in lists)
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
            f"schema ml."
        )
    return n_bytes


def _lifetime(name: str, ttl_seconds: int) -> memoryview:
    """The command that makes a hash expire, or never."""
    seconds = str(int(ttl_seconds * _LISTS_OUTLIVE_MANIFEST))
    arguments = ["EXPIRE", name, seconds] if ttl_seconds else ["PERSIST", name]
    texts = [argument.encode() for argument in arguments]
    pieces = [b"$%d\r\n%s\r\n" % (len(text), text) for text in texts]
    return memoryview(b"*%d\r\n" % len(texts) + b"".join(pieces))


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
    """Count the lists in Redis, and compare a sample of them with the table."""
    for each in lists:
        n_found = client.hlen(key(version.version, each.kind))
        assert isinstance(n_found, int)
        if n_found != each.n:
            raise RedisLoadError(
                f"Redis at {without_password(redis_url)} has {n_found:,} of "
                f"{each.n:,} {each.kind} lists of version {version.version}: it lost "
                "some, by a restart or by evicting, or something else writes under the prefix "
                f"recmart:. Look at its log and maxmemory, and load again."
            )
    for each in lists:
        _compare_sample(connection, client, version, each, redis_url)


def _compare_sample(
    connection: duckdb.DuckDBPyConnection,
    client: redis.Redis,
    version: Version,
    lists: _Lists,
    redis_url: str,
) -> None:
    if not lists.sample:
        return
    expected: dict[str, list[tuple[str, float, str, str | None]]]
    expected = {list_id: [] for list_id in lists.sample}
    chosen = rows_sql(lists.kind, has_versions=True, condition="list_id in (select unnest($ids))")
    for list_id, _, product_id, score, source, reason in connection.execute(
        f"select * from ({chosen}) order by list_id, rank",
        {"version": version.version, "ids": lists.sample},
    ).fetchall():
        expected[list_id].append((product_id, published_score(score), source, reason))
    name = key(version.version, lists.kind)
    values = client.hmget(name, lists.sample)
    assert isinstance(values, list)
    for (list_id, rows), value in zip(expected.items(), values, strict=True):
        found = [] if value is None else decode(value)
        if [(each.product_id, each.score, each.source, each.reason) for each in found] != rows:
            raise RedisLoadError(
                f"{name}, field {list_id}, in Redis at {without_password(redis_url)} is not what "
                "the table holds: something else writes under the prefix recmart:, or the key "
                f"expired. Load again."
            )
