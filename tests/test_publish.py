"""Three surfaces, one version: switched in order, whole after any kill, back in a moment."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import pytest
import redis
from publishing_for_tests import (
    NOW,
    make_shop,
    open_warehouse,
    publish_version,
    stage,
)

from exports import files, publish, redis_load, versions
from exports.errors import PublishError, RedisLoadError
from exports.reader import Reader
from exports.redis_server import EmbeddedRedis


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    embedded = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    yield embedded.start()
    embedded.stop()


@pytest.fixture
def redis_url(server):
    with redis.Redis.from_url(server) as client:
        client.flushall()
    return server


@pytest.fixture
def published(tmp_path):
    return tmp_path / "published"


@pytest.fixture
def warehouse():
    with duckdb.connect() as connection:
        yield connection


def publish_taste(warehouse, taste, published, redis_url, *, retain=3, users=("ann", "bob")):
    make_shop(warehouse, taste=taste, users=users)
    return publish_version(
        warehouse, stage(warehouse), published, redis_url, retain=retain, run_id=f"run-{taste}"
    )


def roll_back(warehouse, version, published, redis_url):
    return publish.roll_back(
        warehouse,
        version.version,
        published_dir=published,
        redis_url=redis_url,
        ttl_seconds=3600,
        run_id="by hand",
        happened_at=NOW,
    )


def shown(warehouse, published, redis_url):
    """The versions that readers of warehouse, snapshot and Redis see."""
    live = versions.live_version(warehouse)
    return (
        None if live is None else live.version,
        files.current_snapshot(published),
        redis_load.current_redis(redis_url=redis_url),
    )


def test_a_published_version_is_shown_everywhere(warehouse, published, redis_url):
    version = publish_taste(warehouse, 0, published, redis_url)

    assert shown(warehouse, published, redis_url) == (version.version,) * 3


def test_publishing_the_same_again_changes_nothing(warehouse, published, redis_url):
    version = publish_taste(warehouse, 0, published, redis_url)

    assert publish_taste(warehouse, 0, published, redis_url) == version
    assert warehouse.sql("select action from serving.publications").fetchall() == [
        ("candidate",),
        ("published",),
        ("unchanged",),
    ]


def test_old_versions_are_removed_everywhere(warehouse, published, redis_url):
    published_versions = [
        publish_taste(warehouse, taste, published, redis_url, retain=2).version
        for taste in range(4)
    ]

    kept = set(published_versions[2:])
    assert {path.name for path in (published / "versions").iterdir()} == kept
    with redis.Redis.from_url(redis_url) as client:
        names = {name.decode().split(":")[1] for name in client.scan_iter("recmart:*:*")}
    assert names == kept
    assert {each.version for each in versions.kept_versions(warehouse)} == kept


def test_a_shop_without_redis_publishes_tables_and_files(warehouse, published):
    version = publish_taste(warehouse, 0, published, None)

    assert versions.live_version(warehouse) == version
    assert files.current_snapshot(published) == version.version


@pytest.mark.parametrize("missing", ["files", "redis", "redis is down"])
def test_nothing_is_switched_when_one_copy_is_missing(warehouse, published, redis_url, missing):
    live = publish_taste(warehouse, 0, published, redis_url)
    make_shop(warehouse, taste=1)
    version = stage(warehouse)
    if missing != "files":
        files.write_version_files(warehouse, version, published)
    if missing != "redis":
        redis_load.load_version(warehouse, version, redis_url=redis_url, ttl_seconds=60)
    url = "redis://127.0.0.1:1/0" if missing == "redis is down" else redis_url

    with pytest.raises(PublishError):
        publish.switch_live(
            warehouse,
            version.version,
            published_dir=published,
            redis_url=url,
            run_id="run-1",
            happened_at=NOW,
        )

    assert shown(warehouse, published, redis_url) == (live.version,) * 3


def test_a_redis_that_fails_leaves_the_last_version_live_everywhere(
    warehouse, published, redis_url
):
    live = publish_taste(warehouse, 0, published, redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(RedisLoadError, match="too little memory"):
                publish_taste(warehouse, 1, published, redis_url)
        finally:
            client.config_set("maxmemory", 0)

    assert shown(warehouse, published, redis_url) == (live.version,) * 3


def test_a_rollback_shows_the_old_version_everywhere(warehouse, published, redis_url):
    first = publish_taste(warehouse, 0, published, redis_url)
    publish_taste(warehouse, 1, published, redis_url)

    begin = time.perf_counter()
    roll_back(warehouse, first, published, redis_url)

    assert time.perf_counter() - begin < 1
    assert shown(warehouse, published, redis_url) == (first.version,) * 3


def test_a_rollback_in_a_warehouse_of_an_earlier_release_adds_what_it_lacks(
    warehouse, published, redis_url
):
    first = publish_taste(warehouse, 0, published, redis_url)
    publish_taste(warehouse, 1, published, redis_url)
    for surface in versions.SURFACES:
        warehouse.execute(f"drop view serving.current_{surface.name}")
    warehouse.execute(
        "alter table serving.versions drop column pseudonym_check;"
        "drop table serving.version_origins; drop table serving.version_files"
    )

    roll_back(warehouse, first, published, redis_url)

    assert shown(warehouse, published, redis_url) == (first.version,) * 3


def test_a_rollback_to_keys_that_expired_loads_them_again(warehouse, published, redis_url):
    first = publish_taste(warehouse, 0, published, redis_url)
    publish_taste(warehouse, 1, published, redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.delete(*client.scan_iter(f"recmart:{first.version}:*"))

    roll_back(warehouse, first, published, redis_url)

    with Reader(redis_url) as reader:
        assert reader.recommend("ann")[0].product_id == "p1"


def test_a_redis_that_takes_no_writes_is_found_before_any_reader_sees_the_version(
    warehouse, published, redis_url
):
    first = publish_taste(warehouse, 0, published, redis_url)
    second = publish_taste(warehouse, 1, published, redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("min-replicas-to-write", 1)
        try:
            with pytest.raises(RedisLoadError, match="NOREPLICAS"):
                roll_back(warehouse, first, published, redis_url)
            assert shown(warehouse, published, redis_url) == (second.version,) * 3
        finally:
            client.config_set("min-replicas-to-write", 0)


def test_a_rollback_to_files_that_were_removed_writes_them_again(warehouse, published, redis_url):
    first = publish_taste(warehouse, 0, published, redis_url)
    publish_taste(warehouse, 1, published, redis_url)
    removed = published / "versions" / first.version / "recommendations.parquet"
    before = removed.read_bytes()
    removed.unlink()

    roll_back(warehouse, first, published, redis_url)

    assert shown(warehouse, published, redis_url) == (first.version,) * 3
    assert removed.read_bytes() == before


def test_a_version_that_never_was_live_is_no_way_back(warehouse, published, redis_url):
    live = publish_taste(warehouse, 0, published, redis_url)
    make_shop(warehouse, taste=1)
    candidate = stage(warehouse)

    with pytest.raises(PublishError, match=r"Cannot roll back .* it is candidate"):
        roll_back(warehouse, candidate, published, redis_url)

    assert shown(warehouse, published, redis_url) == (live.version,) * 3


def test_readers_get_whole_lists_and_no_error_while_versions_come_and_go(
    warehouse, published, redis_url
):
    whole = {}
    for taste in range(3):
        first = publish_taste(warehouse, taste, published, redis_url)
        with Reader(redis_url) as reader:
            whole[taste] = reader.recommend("ann")
    is_over = threading.Event()
    answers = {"redis": [], "snapshot": []}

    def read(name, **source):
        with Reader(**source) as reader:
            while not is_over.is_set():
                answers[name].append(reader.recommend("ann"))
                time.sleep(0.001)

    readers = [
        threading.Thread(target=read, args=["redis"], kwargs={"redis_url": redis_url}),
        threading.Thread(
            target=read, args=["snapshot"], kwargs={"snapshot": published / "current.duckdb"}
        ),
    ]
    for thread in readers:
        thread.start()
    for taste in (0, 1, 2, 0):
        publish_taste(warehouse, taste, published, redis_url, retain=2)
    roll_back(warehouse, first, published, redis_url)
    is_over.set()
    for thread in readers:
        thread.join()

    for found in answers.values():
        assert len(found) > 10
        assert all(answer in whole.values() for answer in found)
        assert len({tuple(answer) for answer in found}) > 1


PUBLISH_ONCE = """
import sys
from pathlib import Path
from publishing_for_tests import make_shop, open_warehouse, publish_version, stage

with open_warehouse(Path(sys.argv[1])) as warehouse:
    make_shop(warehouse)
    publish_version(warehouse, stage(warehouse), Path(sys.argv[1]) / "published", sys.argv[2])
print("pandas" in sys.modules)
"""


def test_publishing_does_not_import_pandas(tmp_path, redis_url):
    run = subprocess.run(
        [sys.executable, "-c", PUBLISH_ONCE, str(tmp_path), redis_url],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert run.stdout == "False\n", run.stderr


@pytest.mark.parametrize(
    "step",
    [
        "redis_load.load_version",
        "versions.mark_live",
        "files.switch_snapshot",
        "redis_load.switch_redis",
        "versions.retire_old",
        "redis_load.remove_versions",
    ],
)
def test_a_run_that_ends_before_a_step_is_mended_by_the_next_one(
    warehouse, published, redis_url, monkeypatch, step
):
    publish_taste(warehouse, 0, published, redis_url, retain=1)

    def end(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"exports.{step}", end)
        with pytest.raises(KeyboardInterrupt):
            publish_taste(warehouse, 1, published, redis_url, retain=1)

    version = publish_taste(warehouse, 1, published, redis_url, retain=1)

    assert shown(warehouse, published, redis_url) == (version.version,) * 3
    assert [path.name for path in (published / "versions").iterdir()] == [version.version]
    with redis.Redis.from_url(redis_url) as client:
        names = {name.decode().split(":")[1] for name in client.scan_iter("recmart:*:*")}
    assert names == {version.version}


def test_a_warehouse_does_not_grow_with_the_number_of_versions(tmp_path, published):
    sizes = []
    with open_warehouse(tmp_path) as warehouse:
        for taste in range(8):
            users = tuple(f"user {n}" for n in range(3000))
            make_shop(warehouse, taste=taste, users=users)
            version = stage(warehouse)
            versions.mark_live(warehouse, version.version, run_id="run", happened_at=NOW)
            versions.retire_old(warehouse, retain=2, happened_at=NOW)
            warehouse.execute("checkpoint")
            sizes.append((tmp_path / "warehouse.duckdb").stat().st_size)

    assert sizes[-1] <= 1.5 * sizes[3]
