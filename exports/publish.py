"""Publishing a version: the order of the steps, and why a kill between any two does no harm.

Belongs here: what goes across the three surfaces (warehouse, files, Redis). Does not belong here:
how one of them is written. The steps are assets, so that each is seen, and repeated, by itself.

1. `versions.stage_version` writes the rows as a candidate, in one transaction.
2. The quality gates look at them (elsewhere).
3. `files.write_version_files` and `redis_load.load_version` write the copies beside the live ones
   and compare them with the rows. Until here no reader sees anything.
4. `switch_live` checks that all copies are whole, and only then moves the pointers, each in one
   atomic step: warehouse, snapshot, Redis.
5. `remove_old` takes away what is beyond `retain`: rows, then files, then Redis.

Why the warehouse is first in 4: its row and its log are what a repair goes by. A version that
readers of any surface see is then always in the log as published. Why the check of all comes before
the first: a Redis that is down or lacks the version must be found while everything still shows the
old version. After a kill between two pointers each surface shows one whole version, some the new
and some the old one; running again finds the content unchanged, verifies the copies and moves the
pointers that are left. Why rows go first in 5: they say which versions can be rolled back to.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import duckdb

from exports import files, redis_load, versions
from exports.errors import PublishError, RedisLoadError
from exports.versions import Version


def switch_live(
    connection: duckdb.DuckDBPyConnection,
    version: str,
    *,
    published_dir: Path,
    redis_url: str | None,
    run_id: str,
    happened_at: datetime,
    action: str = "published",
) -> Version:
    """Let all readers see a version, or none if a copy of it is not whole. May be repeated.

    Args:
        connection: The warehouse.
        version: The version's id.
        published_dir: Where its files are.
        redis_url: Where it is loaded; None leaves Redis out.
        run_id: For the log.
        happened_at: Now, naive UTC.
        action: For the log, 'published' or 'rolled_back'.

    Raises:
        PublishError: if the version may not go live or its files are not complete.
        RedisLoadError: if Redis does not answer or lacks the version.
    """
    with _followed_by("Readers keep the version they have."):
        files.verify_version_files(published_dir, version, contents=False)
        if redis_url is not None:
            redis_load.require_loaded(version, redis_url=redis_url)
    live = versions.mark_live(
        connection, version, run_id=run_id, happened_at=happened_at, action=action
    )
    with _followed_by(f"Version {version} is live in the tables already: run again, or roll back."):
        files.switch_snapshot(published_dir, version)
        if redis_url is not None:
            redis_load.switch_redis(version, redis_url=redis_url)
    return live


def roll_back(
    connection: duckdb.DuckDBPyConnection,
    version: str,
    *,
    published_dir: Path,
    redis_url: str | None,
    ttl_seconds: int,
    run_id: str,
    happened_at: datetime,
) -> Version:
    """Let all readers see a version again that was live before.

    Takes well under a second, unless files of it are missing or its keys have expired in Redis:
    then they are written first.

    Raises:
        PublishError: if the version was never live or is not kept any more, or its files cannot be
            written.
        RedisLoadError: if Redis does not answer or cannot hold it.
    """
    versions.ensure_schema(connection)
    wanted = versions.require_rollback_target(connection, version)
    try:
        files.verify_version_files(published_dir, version, contents=False)
    except PublishError:
        files.write_version_files(connection, wanted, published_dir)
    if redis_url is not None:
        try:
            redis_load.require_loaded(version, redis_url=redis_url)
        except RedisLoadError:
            redis_load.load_version(
                connection, wanted, redis_url=redis_url, ttl_seconds=ttl_seconds
            )
    return switch_live(
        connection,
        version,
        published_dir=published_dir,
        redis_url=redis_url,
        run_id=run_id,
        happened_at=happened_at,
        action="rolled_back",
    )


def remove_old(
    connection: duckdb.DuckDBPyConnection,
    *,
    published_dir: Path,
    redis_url: str | None,
    retain: int,
    happened_at: datetime,
) -> list[str]:
    """Keep the newest `retain` versions everywhere, the live one included.

    Returns:
        The versions whose rows were deleted from the warehouse now.
    """
    removed = versions.retire_old(connection, retain=retain, happened_at=happened_at)
    keep = [each.version for each in versions.kept_versions(connection)]
    files.remove_version_files(published_dir, keep=keep)
    if redis_url is not None:
        with _followed_by("The version is live; the next run takes the old ones out of Redis."):
            redis_load.remove_versions(redis_url=redis_url, keep=keep)
    return removed


@contextmanager
def _followed_by(sentence: str) -> Iterator[None]:
    """Errors of the block end with what readers see, which depends on the step."""
    try:
        yield
    except PublishError as error:
        raise type(error)(f"{error} {sentence}") from error
