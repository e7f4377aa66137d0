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
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from exports.errors import (
    PseudonymError,
    ReaderError,
    check_redis_address,
    redis_remedy,
    without_password,
)
from exports.home import home_of_line
from exports.lists import (
    KINDS_OF_USERS,
    ON_SALE,
    POINTER,
    POPULAR_TRENDING,
    Recommendation,
    decode,
    key,
    manifest_key,
    new_list,
    published_score,
    rows_sql,
)
from exports.placements import (
    BESIDE,
    Found,
    Shelf,
    Wanted,
    because_shelves,
    check_placements,
    lists_of_page,
    lists_of_placement,
    popular_lists,
    stand_ins,
    taken,
    with_cart,
)
from exports.pseudonyms import key_from, pseudonym, require_key

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
        self,
        redis_url: str | None = None,
        snapshot: str | os.PathLike[str] | None = None,
        *,
        pseudonym_key: str | None = None,
    ) -> None:
        """Read from Redis, a snapshot, or both.

        Args:
            redis_url: Of the server.
            snapshot: Path of published/current.duckdb.
            pseudonym_key: What RECMART_PSEUDONYM_KEY is for the line, if it is set there: users
                are asked for by their own ids all the same. As it was read from its file, too:
                the end of its line is no part of it.
        """
        if redis_url is None and snapshot is None:
            raise ReaderError(
                "A Reader needs a redis_url, the path of a snapshot (published/current.duckdb), "
                "or both."
            )
        if pseudonym_key is not None:
            pseudonym_key = pseudonym_key.rstrip("\r\n")
        self._key = pseudonym_key
        self._redis = None if redis_url is None else _RedisLists(redis_url, pseudonym_key)
        self._snapshot = None if snapshot is None else _SnapshotLists(Path(snapshot), pseudonym_key)
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
        user_id = self._name(user_id)
        found, _ = self._get({"user": [user_id]})
        if found["user", user_id]:
            return found["user", user_id][:k]
        return self._merged(stand_ins(segment), k)

    def similar(self, product_id: str, k: int = 20) -> list[Recommendation]:
        """Products like this one, most similar first; none for an unknown product.

        A product that nothing is like has the popular ones of its category, if that is known.
        """
        return self._merged({"similar": [product_id]}, k)

    def together(self, product_id: str, k: int = 20) -> list[Recommendation]:
        """Products often bought with this one, strongest first; the score is a log-likelihood."""
        return self._merged({"together": [product_id]}, k)

    def viewed(self, product_id: str, k: int = 20) -> list[Recommendation]:
        """Products often viewed with this one; the score is a log-likelihood."""
        return self._merged({"viewed": [product_id]}, k)

    def popular(
        self, segment: str | None = None, k: int = 20, category: str | None = None
    ) -> list[Recommendation]:
        """Popular products: of the segment first if one is given, then of all customers.

        Of a category nothing but its own: the last weeks, then all time. A segment by a column of
        the variable `segments` is written column=value, such as "age_band=35-44".
        """
        return self._merged(popular_lists(segment, category), k)

    def trending(self, k: int = 20) -> list[Recommendation]:
        """Products that rise more than the whole shop does; the score is in deviations."""
        return self._merged({"popular": [POPULAR_TRENDING]}, k)

    def new(self, category: str | None = None, k: int = 20) -> list[Recommendation]:
        """New arrivals, the latest first; the score is how many days they still count as new."""
        return self._merged({"popular": [new_list(category)]}, k)

    def sale(self, k: int = 20) -> list[Recommendation]:
        """Products below their usual price; the score is the share saved."""
        return self._merged({"popular": [ON_SALE]}, k)

    def buy_again(self, user_id: str, k: int = 20) -> list[Recommendation]:
        """What the user bought before and is due again; none for an unknown user."""
        return self._merged({"again": [self._name(user_id)]}, k)

    def because(self, user_id: str, k: int = 8, n_anchors: int = 3) -> list[Shelf]:
        """Rows of products for what the user bought, put in the cart, rated or viewed last.

        Each row has up to k products: bought together with the anchor, then viewed together, then
        similar; none that the user bought, none twice. An anchor with nothing to show is passed
        over. No rows for an unknown user.
        """
        return self.page(user_id, ["because"], k, n_anchors=n_anchors)

    def cart(self, product_ids: Sequence[str], k: int = 20) -> list[Recommendation]:
        """What goes with all that is in a cart, filled up with similar products.

        A product's score is the sum over the cart of its log-likelihood as a share of the largest
        in that list, so that one much bought product does not decide alone. Nothing that is in the
        cart.
        """
        found, _ = self._get(dict.fromkeys(("together", "similar"), product_ids))
        return taken(with_cart(found, product_ids), k, set(product_ids))

    def page(
        self,
        user_id: str,
        placements: Sequence[str],
        k: int = 8,
        *,
        product_ids: Sequence[str] = (),
        segment: str | None = None,
        category: str | None = None,
        n_anchors: int = 3,
    ) -> list[Shelf]:
        """Fill the placements of a page, no product twice; the first placement chooses first.

        What the user bought is left out everywhere but in buy_again and for_you (where a rule may
        let it come back), and so are the products the page is about. Costs Redis one round trip,
        `because` a second one; an answer is of one version.

        Args:
            user_id: Known or not.
            placements: Some of PLACEMENTS: for_you, buy_again, because, cart, together, viewed,
                similar, trending, popular, new, sale.
            k: Products a shelf, at most.
            product_ids: What the page is about: the cart, or the product of a product page, for
                cart, together, viewed and similar; the last three take the first one.
            segment: For popular, and for an unknown user's for_you.
            category: For new and popular: only products of this category.
            n_anchors: Shelves that because makes, at most.

        Returns:
            Shelves in the order of the placements, n_anchors or fewer for because; one without
            products where there is nothing to show, none at all for because.

        Raises:
            ReaderError: for an unknown placement, if one needs product_ids and there are none, or
                if neither Redis nor the snapshot answers.
        """
        check_placements(placements, product_ids)
        user_id = self._name(user_id)
        wanted = lists_of_page(user_id, placements, product_ids, segment, category)
        while True:
            found, version = self._get(wanted)
            if "because" not in placements:
                break
            anchors = [each.product_id for each in found["anchor", user_id]]
            beside, still = self._get(dict.fromkeys(BESIDE, anchors), is_known=version)
            # Else the version was switched in between.
            if still == version:
                found = beside | found
                break
        bought = {each.product_id for each in found["bought", user_id]}
        shown = set(product_ids)
        shelves: list[Shelf] = []
        for placement in placements:
            if placement == "because":
                shelves += because_shelves(found, user_id, k, n_anchors, shown, bought)
                continue
            lists = lists_of_placement(found, placement, user_id, product_ids, segment, category)
            leave_out = shown if placement in ("buy_again", "for_you") else shown | bought
            products = taken(lists, k, leave_out)
            shown |= {each.product_id for each in products}
            shelves.append(Shelf(placement, None, products))
        return shelves

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

    def _name(self, user_id: str) -> str:
        """What the user is called in the lists."""
        return user_id if self._key is None else pseudonym(user_id, self._key)

    def _merged(self, wanted: Wanted, k: int) -> list[Recommendation]:
        found, _ = self._get(wanted)
        return taken((found[kind, each] for kind, ids in wanted.items() for each in ids), k)

    def _get(self, wanted: Wanted, *, is_known: Any = None) -> tuple[Found, Any]:
        """The lists, and what tells versions apart."""
        if not any(wanted.values()):
            return {}, is_known
        if self._redis is None:
            assert self._snapshot is not None
            return self._snapshot.get(wanted)
        if self._snapshot is None:
            return self._redis.get(wanted)
        if time.monotonic() < self._ask_redis_from:
            return self._snapshot.get(wanted)
        try:
            return self._redis.get(wanted)
        except ReaderError as redis_error:
            self._ask_redis_from = time.monotonic() + _REDIS_PAUSE_SECONDS
            try:
                return self._snapshot.get(wanted)
            except ReaderError as snapshot_error:
                raise ReaderError(f"{redis_error} And: {snapshot_error}") from redis_error


class _RedisLists:
    """Lists from Redis. Like the snapshot's, all of one call are of one version."""

    def __init__(self, url: str, key: str | None) -> None:
        # Import here: an application that reads the snapshot needs no Redis client.
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._url = without_password(url)
        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        try:
            check_redis_address(url)
            # Any: redis-py's types do not say whether replies are bytes.
            self._client: Any = redis.Redis.from_url(
                url,
                socket_timeout=_REDIS_TIMEOUT_SECONDS,
                socket_connect_timeout=_REDIS_TIMEOUT_SECONDS,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError as error:
            raise ReaderError(f"Redis cannot be asked: {error}.") from error
        self._version = ""
        self._key = key
        # The version whose ids the key was found to fit.
        self._fits = ""

    def get(self, wanted: Wanted) -> tuple[Found, str]:
        """The lists, and their version."""
        known = self._version
        try:
            version, manifest, values = self._fetch(known, wanted)
            # The pointer moved since the last call. The previous version is kept, so only another
            # move right now makes this go round again.
            while version != known:
                known = version
                version, manifest, values = self._fetch(known, wanted)
        except self._errors as error:
            remedy = redis_remedy(str(error))
            raise ReaderError(
                f"Redis at {self._url} cannot be used: {error}. {remedy}"
                if remedy
                else f"Redis at {self._url} does not answer: {str(error).rstrip('.')}."
            ) from error
        self._version = known
        if manifest is None and None in values.values():
            raise ReaderError(
                f"Redis at {self._url} names version {known} but has lost its keys: they expired "
                "or were evicted, or recmart:current was set by hand to a version that is not "
                "there. Publish again, or roll back."
            )
        if self._fits != known and manifest is not None and _asks_for_users(wanted):
            check = json.loads(manifest).get("pseudonym_check")
            _require_key(check, self._key, f"Redis at {self._url}")
            self._fits = known
        return {
            name: [] if value is None else decode(value) for name, value in values.items()
        }, known

    def _fetch(
        self, version: str, wanted: Wanted
    ) -> tuple[str, bytes | None, dict[tuple[str, str], bytes | None]]:
        # One round trip for the pointer and for what the version we know last says.
        asked = {kind: list_ids for kind, list_ids in wanted.items() if list_ids}
        with self._client.pipeline(transaction=False) as pipeline:
            pipeline.mget(POINTER, manifest_key(version))
            for kind, list_ids in asked.items():
                pipeline.hmget(key(version, kind), list_ids)
            (pointer, manifest), *replies = pipeline.execute()
        if pointer is None:
            raise ReaderError(
                f"Redis at {self._url} holds nothing published: {POINTER} is missing. "
                "Run the pipeline, or correct the address."
            )
        values = {
            (kind, list_id): value
            for (kind, list_ids), found in zip(asked.items(), replies, strict=True)
            for list_id, value in zip(list_ids, found, strict=True)
        }
        return pointer.decode(), manifest, values

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class _SnapshotLists:
    """Lists from a snapshot file."""

    def __init__(self, path: Path, key: str | None) -> None:
        # Import here: an application that reads Redis needs no DuckDB.
        import duckdb

        self._errors: tuple[type[Exception], ...] = (duckdb.Error, OSError)
        self._path = path
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._opened: tuple[int, int] | None = None
        self._key = key
        self._check: str | None = None
        # One connection, in turns: a file that was replaced can only be opened anew once no
        # connection of this process has the old one.
        self._lock = threading.Lock()

    def get(self, wanted: Wanted) -> tuple[Found, tuple[int, int] | None]:
        """The lists, and which file they are from."""
        found: Found = {
            (kind, list_id): [] for kind, list_ids in wanted.items() for list_id in list_ids
        }
        with self._lock:
            try:
                connection = self._current()
                if _asks_for_users(wanted):
                    _require_key(self._check, self._key, f"The snapshot {self._path}")
                rows = [
                    (kind, *row)
                    for kind, list_ids in wanted.items()
                    if list_ids
                    for row in connection.execute(
                        rows_sql(
                            kind,
                            has_versions=False,
                            condition=f"list_id in ({', '.join('?' for _ in list_ids)})",
                        ),
                        list_ids,
                    ).fetchall()
                ]
            except self._errors as error:
                self._disconnect()
                raise ReaderError(
                    f"The snapshot {self._path} cannot be read: {str(error).splitlines()[0]}. "
                    "Expected the file published/current.duckdb that a run writes."
                ) from error
            opened = self._opened
        # Sorted here and not in SQL, where it makes DuckDB read the table a second time.
        for kind, list_id, _, product_id, score, source, reason in sorted(
            rows, key=lambda row: row[:3]
        ):
            products = found[kind, list_id]
            products.append(
                Recommendation(
                    product_id, len(products) + 1, published_score(score), source, reason
                )
            )
        return found, opened

    def _current(self) -> "duckdb.DuckDBPyConnection":
        import duckdb

        # The link's target: DuckDB tells files apart by their path.
        path = self._path.resolve()
        status = path.stat()
        if self._connection is None or self._opened != (status.st_dev, status.st_ino):
            self._disconnect()
            self._connection = duckdb.connect(str(path), read_only=True, config=_LOCKED_DOWN)
            self._opened = (status.st_dev, status.st_ino)
            # As JSON: files of earlier releases have no such column.
            ((self._check,),) = self._connection.execute(
                "select to_json(versions) ->> 'pseudonym_check' from serving.versions as versions"
            ).fetchall()
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._disconnect()


def _asks_for_users(wanted: Wanted) -> bool:
    return any(wanted.get(kind) for kind in KINDS_OF_USERS)


def _require_key(check: str | None, key: str | None, place: str) -> None:
    try:
        require_key(check, key, place=place)
    except PseudonymError as error:
        raise ReaderError(str(error)) from None


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
        redis_url = os.environ.get("REDIS_URL", "")
        sources = {
            # `embedded` and `off` are words for the line; the snapshot answers then.
            "redis_url": redis_url if "://" in redis_url else None,
            "snapshot": home_of_line() / "published" / "current.duckdb",
        }
    try:
        with Reader(**sources, pseudonym_key=key_from(os.environ)) as reader:
            products = reader.recommend(chosen.user, k=chosen.k, segment=chosen.segment)
    except (ReaderError, PseudonymError) as error:
        print(error, file=sys.stderr)
        return 1
    for each in products:
        print(f"{each.rank:3}  {each.product_id:<16} {each.score:>12.6g}  {each.source:<9}", end="")
        print(f" {each.reason or ''}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
