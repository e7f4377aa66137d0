"""The client library: recommendations for a user or product, from Redis or the snapshot.

Belongs here: looking up and falling back. Does not belong here: what the keys and values look like
(`lists.py`), writing anything.

    reader = Reader(redis_url="redis://localhost:6379/0", snapshot="published/current.duckdb")
    for product in reader.recommend("17850", k=5):
        print(product.rank, product.product_id, product.score, product.reason)

With both, Redis answers and the snapshot stands in while Redis does not; with one of them, that one
answers. The answers are the same. From a shell: `python -m exports.reader USER`.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from exports.errors import ReaderError, without_password
from exports.lists import (
    POINTER,
    POPULAR_ALL,
    POPULAR_TRENDING,
    Recommendation,
    decode,
    key,
    manifest_key,
    published_score,
    rows_sql,
    segment_list,
)

if TYPE_CHECKING:
    import duckdb

# A page waits for the answer: 0.1 s, then the snapshot. redis-py would try for 40 s by itself.
_REDIS_TIMEOUT_SECONDS = 0.1
# After a failure Redis is left alone for so long, else every request would wait for the timeout.
_REDIS_PAUSE_SECONDS = 1.0

_LOCKED_DOWN: dict[str, Any] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "lock_configuration": "true",
    # A look-up reads one row group: a second thread has nothing to do.
    "threads": "1",
}


class Reader:
    """Looks up published lists. May be shared by threads. Close it, or use it in a `with`.

    Every answer comes from one version. A version that is switched is seen at the next call.
    """

    def __init__(
        self, redis_url: str | None = None, snapshot: str | os.PathLike[str] | None = None
    ) -> None:
        if redis_url is None and snapshot is None:
            raise ReaderError(
                "A Reader needs a redis_url, the path of a snapshot (published/current.duckdb), "
                "or both."
            )
        self._redis = None if redis_url is None else _RedisLists(redis_url)
        self._snapshot = None if snapshot is None else _SnapshotLists(Path(snapshot))
        self._ask_redis_from = 0.0

    def recommend(
        self, user_id: str, k: int = 20, segment: str | None = None
    ) -> list[Recommendation]:
        """Products for a user, best first.

        A known user gets at most the k first products of the published list. An unknown one gets k
        products as far as the catalogue goes: popular in the segment if one is given, then
        trending, then popular ones, each once.

        Raises:
            ReaderError: if neither Redis nor the snapshot answers.
        """
        (recommended,) = self._lists("user", [user_id])
        if recommended:
            return recommended[:k]
        names = [POPULAR_TRENDING, POPULAR_ALL]
        if segment is not None:
            names.insert(0, segment_list(segment))
        return _merged(self._lists("popular", names), k)

    def similar(self, product_id: str, k: int = 20) -> list[Recommendation]:
        """Products like this one, most similar first; none for an unknown product."""
        return self._lists("similar", [product_id])[0][:k]

    def together(self, product_id: str, k: int = 20) -> list[Recommendation]:
        """Products often bought with this one, strongest first; the score is a log-likelihood."""
        return self._lists("together", [product_id])[0][:k]

    def popular(self, segment: str | None = None, k: int = 20) -> list[Recommendation]:
        """Popular products: of the segment first if one is given, then of all customers."""
        names = [POPULAR_ALL] if segment is None else [segment_list(segment), POPULAR_ALL]
        return _merged(self._lists("popular", names), k)

    def close(self) -> None:
        """Close the connections. The next call opens them again."""
        for source in (self._redis, self._snapshot):
            if source is not None:
                source.close()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _lists(self, kind: str, list_ids: Sequence[str]) -> list[list[Recommendation]]:
        if self._redis is None:
            assert self._snapshot is not None
            return self._snapshot.get(kind, list_ids)
        if self._snapshot is None:
            return self._redis.get(kind, list_ids)
        if time.monotonic() < self._ask_redis_from:
            return self._snapshot.get(kind, list_ids)
        try:
            return self._redis.get(kind, list_ids)
        except ReaderError as redis_error:
            self._ask_redis_from = time.monotonic() + _REDIS_PAUSE_SECONDS
            try:
                return self._snapshot.get(kind, list_ids)
            except ReaderError as snapshot_error:
                raise ReaderError(f"{redis_error} And: {snapshot_error}") from redis_error


class _RedisLists:
    """Lists from Redis. Like the snapshot's, all of one call are of one version; [] if unknown."""

    def __init__(self, url: str) -> None:
        # Import here: an application that reads the snapshot needs no Redis client.
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._url = without_password(url)
        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        try:
            # Any: redis-py's types do not say whether replies are bytes.
            self._client: Any = redis.Redis.from_url(
                url,
                socket_timeout=_REDIS_TIMEOUT_SECONDS,
                socket_connect_timeout=_REDIS_TIMEOUT_SECONDS,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError as error:
            raise ReaderError(
                f"{self._url} is not a Redis address ({error}): expected redis://host:6379/0, "
                "rediss://user:password@host:6379/0 or unix:///path/to/socket."
            ) from error
        self._version = ""

    def get(self, kind: str, list_ids: Sequence[str]) -> list[list[Recommendation]]:
        """The lists of these ids, in their order."""
        known = self._version
        try:
            version, values = self._fetch(known, kind, list_ids)
            # The pointer moved since the last call. The previous version is kept, so only another
            # move right now makes this go round again.
            while version != known:
                known = version
                version, values = self._fetch(known, kind, list_ids)
        except self._errors as error:
            raise ReaderError(f"Redis at {self._url} does not answer: {error}.") from error
        self._version = known
        manifest, *found = values
        if manifest is None and None in found:
            raise ReaderError(
                f"Redis at {self._url} names version {known} but has lost its keys: they expired "
                "or were evicted. Publish again."
            )
        return [[] if value is None else decode(value) for value in found]

    def _fetch(
        self, version: str, kind: str, list_ids: Sequence[str]
    ) -> tuple[str, list[bytes | None]]:
        # One round trip for the pointer and for what the version we know last says.
        with self._client.pipeline(transaction=False) as pipeline:
            pipeline.mget(POINTER, manifest_key(version))
            pipeline.hmget(key(version, kind), list_ids)
            (pointer, manifest), values = pipeline.execute()
        if pointer is None:
            raise ReaderError(
                f"Redis at {self._url} holds nothing published: {POINTER} is missing. "
                "Run the pipeline, or correct the address."
            )
        return pointer.decode(), [manifest, *values]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class _SnapshotLists:
    """Lists from a snapshot file."""

    def __init__(self, path: Path) -> None:
        # Import here: an application that reads Redis needs no DuckDB.
        import duckdb

        self._errors: tuple[type[Exception], ...] = (duckdb.Error, OSError)
        self._path = path
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._opened: tuple[int, int] | None = None
        # One connection, in turns: a file that was replaced can only be opened anew once no
        # connection of this process has the old one.
        self._lock = threading.Lock()

    def get(self, kind: str, list_ids: Sequence[str]) -> list[list[Recommendation]]:
        """The lists of these ids, in their order."""
        marks = ", ".join("?" for _ in list_ids)
        wanted = rows_sql(kind, has_versions=False, condition=f"list_id in ({marks})")
        with self._lock:
            try:
                rows = self._current().execute(wanted, list_ids).fetchall()
            except self._errors as error:
                self._disconnect()
                raise ReaderError(
                    f"The snapshot {self._path} cannot be read: {str(error).splitlines()[0]}. "
                    "Expected the file published/current.duckdb that a run writes."
                ) from error
        found: dict[str, list[Recommendation]] = {list_id: [] for list_id in list_ids}
        # Sorted here and not in SQL, where it makes DuckDB read the table a second time.
        for list_id, _, product_id, millionths, text, source, reason in sorted(
            rows, key=lambda row: row[:2]
        ):
            products = found[list_id]
            score = published_score(millionths, text)
            products.append(Recommendation(product_id, len(products) + 1, score, source, reason))
        return list(found.values())

    def _current(self) -> "duckdb.DuckDBPyConnection":
        import duckdb

        # The link's target: DuckDB tells files apart by their path.
        path = self._path.resolve()
        status = path.stat()
        if self._connection is None or self._opened != (status.st_dev, status.st_ino):
            self._disconnect()
            self._connection = duckdb.connect(str(path), read_only=True, config=_LOCKED_DOWN)
            self._opened = (status.st_dev, status.st_ino)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._disconnect()


def _merged(lists: Sequence[Sequence[Recommendation]], k: int) -> list[Recommendation]:
    """The lists one after the other, each product once, ranked anew."""
    first_of: dict[str, Recommendation] = {}
    for product in (product for each in lists for product in each):
        first_of.setdefault(product.product_id, product)
    return [
        Recommendation(each.product_id, rank, each.score, each.source, each.reason)
        for rank, each in enumerate(list(first_of.values())[:k], start=1)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the recommendations of one user."""
    parser = argparse.ArgumentParser(
        prog="python -m exports.reader", description="Print the recommendations of one user."
    )
    parser.add_argument("user", metavar="USER", help="the user's id")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--redis", metavar="URL", help="ask this Redis (else REDIS_URL if set)")
    source.add_argument(
        "--snapshot",
        metavar="FILE",
        help="ask this snapshot (else RECMART_HOME/published/current.duckdb)",
    )
    parser.add_argument("--k", type=int, default=20, help="how many products (20)")
    parser.add_argument("--segment", help="the user's segment, used if the user is unknown")
    chosen = parser.parse_args(arguments)
    if chosen.redis or chosen.snapshot:
        sources = {"redis_url": chosen.redis, "snapshot": chosen.snapshot}
    else:
        home = Path(os.environ.get("RECMART_HOME", "var"))
        redis_url = os.environ.get("REDIS_URL", "")
        sources = {
            # `embedded` and `off` are words for the line; the snapshot answers then.
            "redis_url": redis_url if "://" in redis_url else None,
            "snapshot": home / "published" / "current.duckdb",
        }
    try:
        with Reader(**sources) as reader:
            products = reader.recommend(chosen.user, k=chosen.k, segment=chosen.segment)
    except ReaderError as error:
        print(error, file=sys.stderr)
        return 1
    for each in products:
        print(f"{each.rank:3}  {each.product_id:<16} {each.score:>12.6g}  {each.source:<9}", end="")
        print(f" {each.reason or ''}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
