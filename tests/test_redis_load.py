"""Loading Redis: every list arrives as it is in the table, or a sentence says why not."""

import json
import os
import signal
from collections import defaultdict
from contextlib import suppress
from decimal import ROUND_HALF_UP, Decimal

import duckdb
import pyarrow as pa
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from publishing_for_tests import STRANGE_IDS, make_shop, stage
from tls_for_tests import make_authority, tls_in_front_of

from exports import redis_client, redis_load
from exports.errors import RedisLoadError
from exports.lists import KINDS, POINTER, decode, key, manifest_key, published_score, rows_sql
from exports.redis_commands import OutOfOrder, to_commands
from exports.redis_server import EmbeddedRedis

HOUR = 3600


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    embedded = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    yield embedded.start()
    embedded.stop()


@pytest.fixture
def redis_url(server):
    """The server of this module, empty and with its settings as at the start."""
    with redis.Redis.from_url(server) as client:
        client.flushall()
        yield server
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")


@pytest.fixture
def client(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def warehouse():
    with duckdb.connect() as connection:
        make_shop(connection)
        yield connection


@pytest.fixture
def in_small_buffers(monkeypatch):
    """A few lists a buffer, so that a small shop takes several."""
    monkeypatch.setattr(redis_load, "_ROWS_PER_BATCH", 30)
    monkeypatch.setattr(redis_load, "_LEAST_PER_RANGE", 5)
    monkeypatch.setattr(redis_load, "_MOST_PER_RANGE", 5)


def load(warehouse, version, redis_url, *, ttl_seconds=HOUR, progress=None):
    return redis_load.load_version(
        warehouse, version, redis_url=redis_url, ttl_seconds=ttl_seconds, progress=progress
    )


def table_lists(warehouse, version):
    """All lists as the loader should write them, by kind and id."""
    lists = defaultdict(list)
    for kind in KINDS:
        rows = warehouse.execute(
            f"select * from ({rows_sql(kind, has_versions=True)}) order by list_id, rank",
            {"version": version.version},
        ).fetchall()
        for list_id, _, product_id, score, source, reason in rows:
            lists[kind, list_id].append((product_id, published_score(score), source, reason))
    return dict(lists)


def redis_lists(client, version):
    """All lists as they are in Redis, by kind and id."""
    return {
        (kind, list_id.decode()): [
            (item.product_id, item.score, item.source, item.reason) for item in decode(value)
        ]
        for kind in KINDS
        for list_id, value in client.hgetall(key(version.version, kind)).items()
    }


# --- what arrives -------------------------------------------------------------------------------


def test_every_list_arrives_as_it_is_in_the_table(warehouse, client, redis_url):
    version = stage(warehouse)

    report = load(warehouse, version, redis_url)

    assert redis_lists(client, version) == table_lists(warehouse, version)
    assert report.n_lists == {
        **dict.fromkeys(("user", "again", "anchor", "bought"), 3),
        **dict.fromkeys(("similar", "together", "viewed"), 8),
        "popular": 9,
    }
    assert json.loads(client.get(manifest_key(version.version))) == {
        "content_hash": version.content_hash,
        "n_lists": report.n_lists,
    }


def test_a_value_looks_as_the_docs_say(warehouse, client, redis_url):
    version = stage(warehouse)

    load(warehouse, version, redis_url)

    assert client.hget(key(version.version, "user"), "ann").decode() == (
        '{"items":[["p1",3.000000,0],["p2",1.500000,1],["p3",1.000000,2],["p4",0.750000,2],'
        '["p5",0.600000,3]],"why":[["hybrid",null],'
        '["hybrid","Because you bought \\"Lantern No. 0\\""],'
        '["hybrid","Because you bought \\"Lantern No. 1\\""],["trending","Trending now"]]}'
    )


def test_ids_and_reasons_of_any_characters_survive(warehouse, client, redis_url):
    make_shop(warehouse, users=STRANGE_IDS)
    warehouse.execute(
        "update ml.recommendations set product_id = $ids[1 + (rank * 7) % len($ids)], "
        "reason = 'Because of ' || user_id, source = 'hybrid' where rank < 5",
        {"ids": list(STRANGE_IDS)},
    )
    warehouse.execute(
        "update ml.similar_products set product_id = $ids[1 + product_id[2:]::int]",
        {"ids": list(STRANGE_IDS)},
    )
    warehouse.execute(
        "update marts.popularity set segment = $segment where segment = 'UK'",
        {"segment": 'trending"\n😀'},
    )
    version = stage(warehouse)

    load(warehouse, version, redis_url)

    assert redis_lists(client, version) == table_lists(warehouse, version)


def test_the_segment_called_all_is_not_the_list_for_all(warehouse, client, redis_url):
    version = stage(warehouse)

    load(warehouse, version, redis_url)

    for_all = decode(client.hget(key(version.version, "popular"), "all"))
    for_segment = decode(client.hget(key(version.version, "popular"), "segment:all"))
    assert ([each.product_id for each in for_segment], for_all[0].product_id) == (["p7"], "p0")


def test_scores_keep_six_decimals_or_six_digits(warehouse, client, redis_url):
    scores = [1234567.125, 2.0000004, 0.001, 0.00012345678, 0.0]
    for rank, score in enumerate(scores, start=1):
        warehouse.execute("update ml.recommendations set score = ? where rank = ?", [score, rank])
    warehouse.execute("update ml.similar_products set score = 1e15 / rank")
    version = stage(warehouse)

    load(warehouse, version, redis_url)

    found = decode(client.hget(key(version.version, "user"), "ann"))
    assert [each.score for each in found] == [1234567.125, 2.0, 0.001, 0.000123457, 0.0]
    found = decode(client.hget(key(version.version, "similar"), "p0"))
    assert [each.score for each in found] == [1e15, 5e14, 3.33333e14]


def test_many_buffers_over_two_sockets_give_the_same(
    warehouse, client, redis_url, in_small_buffers
):
    make_shop(warehouse, users=tuple(f"u{n}" for n in range(101)))
    version = stage(warehouse)
    steps = []

    load(warehouse, version, redis_url, progress=lambda *step: steps.append(step))

    assert redis_lists(client, version) == table_lists(warehouse, version)
    assert steps == sorted(steps)
    assert steps[-1] == (4 * 101 + 3 * 8 + 9,) * 2


def test_rows_that_are_not_stored_in_order_arrive_in_order(warehouse, client, redis_url):
    version = stage(warehouse)
    warehouse.execute(
        "create or replace table serving.recommendations as "
        "select * from serving.recommendations order by hash(user_id, rank)"
    )

    load(warehouse, version, redis_url)

    assert redis_lists(client, version) == table_lists(warehouse, version)


TEXTS = st.text(max_size=12) | st.sampled_from(
    ['"\\\x1f/', "eight888", 'seven77"', "\x00" * 9, "é" * 8]
)
ITEMS = st.tuples(
    TEXTS,
    st.floats(-(10**10), 10**10)
    | st.integers(-(10**10), 10**10).map(lambda number: number / 2e6)
    | st.sampled_from([0.0, 1e-05, -2.5e20, 0.001, -0.0009999999, 999999999.9999999]),
    TEXTS,
    st.none() | TEXTS,
)
COLUMNS = pa.schema(
    [
        ("list_id", pa.string()),
        ("rank", pa.int32()),
        ("product_id", pa.string()),
        ("score", pa.float64()),
        ("source", pa.string()),
        ("reason", pa.string()),
    ]
)


def commands_of(stream):
    """A slow reading of the Redis protocol: one list of arguments per command."""
    commands, at = [], 0
    while at < len(stream):
        line, at = stream[at : stream.index(b"\r\n", at)], stream.index(b"\r\n", at) + 2
        if line.startswith(b"*"):
            commands.append([])
        else:
            n_bytes = int(line[1:])
            commands[-1].append(stream[at : at + n_bytes])
            assert stream[at + n_bytes : at + n_bytes + 2] == b"\r\n"
            at += n_bytes + 2
    return commands


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.text(max_size=4), st.lists(ITEMS, min_size=1, max_size=5), min_size=1),
    st.integers(1, 9),
)
def test_the_bytes_say_what_a_loop_over_lists_would_say(lists, rows_per_batch):
    rows = [
        {
            "list_id": list_id,
            "rank": rank,
            "product_id": product_id,
            "score": score,
            "source": source,
            "reason": reason,
        }
        for list_id, items in sorted(lists.items(), key=lambda each: each[0].encode())
        for rank, (product_id, score, source, reason) in enumerate(items, start=1)
    ]
    table = pa.Table.from_pylist(rows, schema=COLUMNS)

    made = [
        (bytes(each.content), each.n_commands, each.n_lists)
        for each in to_commands(table.to_batches(rows_per_batch), "recmart:v:user")
    ]

    commands = commands_of(b"".join(content for content, _, _ in made))
    assert {tuple(command[:2]) for command in commands} == {(b"HSET", b"recmart:v:user")}
    assert sum(n for _, n, _ in made) == len(commands)
    assert sum(n for _, _, n in made) == len(lists)
    assert {
        list_id.decode(): [
            (item.product_id, item.score, item.source, item.reason) for item in decode(value)
        ]
        for command in commands
        for list_id, value in zip(command[2::2], command[3::2], strict=True)
    } == {
        list_id: [
            (product_id, published_score(score), source, reason)
            for product_id, score, source, reason in items
        ]
        for list_id, items in lists.items()
    }


@settings(deadline=None)
@given(st.floats(0.001, 1e9, exclude_max=True), st.sampled_from([1, -1]))
def test_a_score_is_published_with_six_decimals_a_half_away_from_zero(score, sign):
    millionths = Decimal(score * 1e6).quantize(Decimal(1), ROUND_HALF_UP)

    assert published_score(sign * score) == sign * float(millionths.scaleb(-6))


@pytest.mark.parametrize(
    "order", [[("b", 1), ("a", 1)], [("a", 2), ("a", 1)], [("a", 1), ("b", 1), ("a", 2)]]
)
@pytest.mark.parametrize("rows_per_batch", [1, 2, 3])
def test_rows_in_another_order_are_refused(order, rows_per_batch):
    table = pa.Table.from_pylist(
        [
            {
                "list_id": list_id,
                "rank": rank,
                "product_id": "p",
                "score": 1.0,
                "source": "hybrid",
            }
            for list_id, rank in order
        ],
        schema=COLUMNS,
    )

    with pytest.raises(OutOfOrder):
        list(to_commands(table.to_batches(rows_per_batch), "k"))


def test_no_reason_and_an_empty_one_are_told_apart():
    table = pa.Table.from_pylist(
        [
            {
                "list_id": "a",
                "rank": rank,
                "product_id": product_id,
                "score": 1e-07,
                "source": "hybrid",
                "reason": reason,
            }
            for rank, (product_id, reason) in enumerate(
                [("p1", None), ("p2", ""), ("p3", None), ("p4", "")], start=1
            )
        ],
        schema=COLUMNS,
    )

    (commands,) = to_commands(table.to_batches(), "k")

    assert commands_of(bytes(commands.content))[0][3] == (
        b'{"items":[["p1",1e-07,0],["p2",1e-07,1],["p3",1e-07,0],["p4",1e-07,1]],'
        b'"why":[["hybrid",null],["hybrid",""]]}'
    )


# --- lifetime -----------------------------------------------------------------------------------


def test_lists_expire_a_tenth_later_than_the_manifest_that_vouches_for_them(
    warehouse, client, redis_url
):
    version = stage(warehouse)

    load(warehouse, version, redis_url, ttl_seconds=10_000)

    left = [client.ttl(key(version.version, kind)) for kind in KINDS]
    assert 10_990 < min(left) <= max(left) <= 11_000
    assert 9_990 < client.ttl(manifest_key(version.version)) <= 10_000


def test_a_load_that_is_killed_leaves_nothing_that_stays_for_ever(
    warehouse, client, redis_url, in_small_buffers
):
    make_shop(warehouse, users=tuple(f"u{n}" for n in range(101)))
    version = stage(warehouse)

    def kill(n_done, n_all):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(warehouse, version, redis_url, progress=kill)

    left = list(client.scan_iter("recmart:*"))
    assert left
    assert all(client.ttl(name) > 0 for name in left)


def test_lists_that_a_killed_load_left_do_not_stay_in_the_next_one(warehouse, client, redis_url):
    version = stage(warehouse)
    client.hset(key(version.version, "user"), "nobody", "left over")
    client.set(key(version.version, "popular"), "of another type")

    load(warehouse, version, redis_url)

    assert redis_lists(client, version) == table_lists(warehouse, version)


def test_a_ttl_of_zero_is_no_ttl(warehouse, client, redis_url):
    version = stage(warehouse)

    load(warehouse, version, redis_url, ttl_seconds=0)
    again = load(warehouse, version, redis_url, ttl_seconds=0)

    assert {client.ttl(name) for name in client.scan_iter("recmart:*")} == {-1}
    assert again.n_bytes == 0


def test_a_version_that_is_loaded_is_verified_and_not_sent_again(warehouse, redis_url):
    version = stage(warehouse)

    first, second = (load(warehouse, version, redis_url) for _ in range(2))

    assert (first.n_bytes > 0, second.n_bytes) == (True, 0)
    assert first.n_lists == second.n_lists


def test_a_reload_that_fails_cannot_be_switched_to(warehouse, client, redis_url, in_small_buffers):
    version = stage(warehouse)
    load(warehouse, version, redis_url)
    client.hdel(key(version.version, "similar"), "p3")

    def fail(n_done, n_all):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(warehouse, version, redis_url, progress=fail)

    with pytest.raises(RedisLoadError, match="is not completely loaded"):
        redis_load.switch_redis(version.version, redis_url=redis_url)


@pytest.mark.parametrize("loss", ["list", "hash", "ttl", "manifest", "value"])
def test_a_loaded_version_that_lost_something_is_loaded_again(warehouse, client, redis_url, loss):
    version = stage(warehouse)
    load(warehouse, version, redis_url)
    redis_load.switch_redis(version.version, redis_url=redis_url)
    name = key(version.version, "similar")
    match loss:
        case "list":
            client.hdel(name, "p3")
        case "hash":
            client.delete(name)
        case "ttl":
            client.expire(manifest_key(version.version), HOUR // 2 - 1)
        case "manifest":
            client.delete(manifest_key(version.version))
        case "value":
            client.hset(
                name, "p3", '{"items":[["p9",1.0,0]],"why":[["similar","Similar product"]]}'
            )

    report = load(warehouse, version, redis_url)

    assert report.n_bytes > 0
    assert redis_lists(client, version) == table_lists(warehouse, version)
    assert client.ttl(manifest_key(version.version)) > HOUR // 2


# --- the pointer --------------------------------------------------------------------------------


def test_loading_moves_no_pointer_and_switching_keeps_the_version_before(
    warehouse, client, redis_url
):
    first = stage(warehouse)
    load(warehouse, first, redis_url)
    assert redis_load.current_redis(redis_url=redis_url) is None
    redis_load.switch_redis(first.version, redis_url=redis_url)
    before = redis_lists(client, first)

    make_shop(warehouse, taste=1)
    second = stage(warehouse)
    load(warehouse, second, redis_url)
    assert redis_load.current_redis(redis_url=redis_url) == first.version
    redis_load.switch_redis(second.version, redis_url=redis_url)

    assert client.get(POINTER).decode() == second.version
    assert client.ttl(POINTER) == -1
    assert redis_lists(client, first) == before


def test_the_pointer_does_not_move_to_a_version_that_is_not_loaded(warehouse, redis_url):
    version = stage(warehouse)

    with pytest.raises(RedisLoadError, match=r"not completely loaded .* loaded again"):
        redis_load.switch_redis(version.version, redis_url=redis_url)

    assert redis_load.current_redis(redis_url=redis_url) is None


def test_old_versions_are_unlinked_and_nothing_else(warehouse, client, redis_url):
    loaded = []
    for taste in range(4):
        make_shop(warehouse, taste=taste, users=("ann", "x:manifest", "two\nlines"))
        loaded.append(stage(warehouse))
        load(warehouse, loaded[-1], redis_url)
    old, killed, kept, live = loaded
    redis_load.switch_redis(live.version, redis_url=redis_url)
    client.delete(manifest_key(killed.version))
    client.set("cart:ann", "not ours")
    before = {each: redis_lists(client, each) for each in (kept, live)}

    removed = redis_load.remove_versions(redis_url=redis_url, keep=[kept.version])

    assert removed == sorted([old.version, killed.version])
    assert {each: redis_lists(client, each) for each in (kept, live)} == before
    names = {name.decode().split(":")[1] for name in client.scan_iter("recmart:*:*")}
    assert names == {kept.version, live.version}
    assert client.get("cart:ann") == b"not ours"


# --- servers ------------------------------------------------------------------------------------


def test_a_password_is_asked_for_and_taken_from_the_url(warehouse, client, redis_url):
    version = stage(warehouse)
    client.config_set("requirepass", "s3cret")
    client.execute_command("AUTH", "s3cret")
    with_password = redis_url.replace("redis://", "redis://:s3cret@")
    try:
        with pytest.raises(RedisLoadError, match="It wants a password: set REDIS_URL"):
            load(warehouse, version, redis_url)
        with pytest.raises(RedisLoadError, match="User or password is wrong") as caught:
            load(warehouse, version, redis_url.replace("redis://", "redis://:wr0ng@"))
        assert "wr0ng" not in str(caught.value)
        assert load(warehouse, version, with_password).n_bytes > 0
    finally:
        client.config_set("requirepass", "")


def test_the_database_number_of_the_url_is_used(warehouse, redis_url, client):
    version = stage(warehouse)
    url = redis_url.replace("/0", "/5")

    load(warehouse, version, url)

    with redis.Redis.from_url(url) as other:
        assert redis_lists(other, version) == table_lists(warehouse, version)
    assert client.dbsize() == 0


def test_tls_carries_a_load_of_many_buffers(warehouse, client, redis_url, tmp_path):
    make_shop(warehouse, users=tuple(f"u{n}" for n in range(2000)))
    version = stage(warehouse)
    authority = make_authority(tmp_path)
    with tls_in_front_of(redis_url, authority.server) as port:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority.ca}"
        report = load(warehouse, version, url)

    assert report.n_bytes > 500_000
    assert redis_lists(client, version) == table_lists(warehouse, version)


# --- refusals and losses ------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_a_sentence_without_the_password(warehouse):
    version = stage(warehouse)

    with pytest.raises(RedisLoadError) as caught:
        load(warehouse, version, "redis://me:s3cret@127.0.0.1:1/0")

    message = str(caught.value)
    assert message.startswith("Redis at redis://127.0.0.1:1/0 does not answer")
    assert "Start it, or set REDIS_URL to one that runs" in message
    assert "s3cret" not in message


def test_an_address_that_is_none_is_a_sentence(warehouse):
    with pytest.raises(RedisLoadError, match="localhost is not a Redis address"):
        load(warehouse, stage(warehouse), "localhost")


def test_a_server_that_would_evict_is_refused(warehouse, client, redis_url):
    client.config_set("maxmemory-policy", "allkeys-lru")

    with pytest.raises(RedisLoadError, match=r"maxmemory-policy allkeys-lru: .* noeviction"):
        load(warehouse, stage(warehouse), redis_url)

    assert client.dbsize() == 0


def test_a_server_that_evicts_keys_with_a_ttl_is_refused_if_they_get_one(
    warehouse, client, redis_url
):
    version = stage(warehouse)
    client.config_set("maxmemory", 100_000_000)
    client.config_set("maxmemory-policy", "volatile-lru")

    with pytest.raises(RedisLoadError, match=r"volatile-lru: it would drop .* ttl_seconds 0"):
        load(warehouse, version, redis_url)

    assert load(warehouse, version, redis_url, ttl_seconds=0).n_bytes > 0


def limit_memory(client, more_bytes):
    client.config_set("maxmemory", client.info("memory")["used_memory"] + more_bytes)


def publish_one(warehouse, redis_url):
    version = stage(warehouse)
    load(warehouse, version, redis_url)
    redis_load.switch_redis(version.version, redis_url=redis_url)
    return version


def test_too_little_memory_is_noticed_before_the_load(warehouse, client, redis_url):
    live = publish_one(warehouse, redis_url)
    make_shop(warehouse, users=tuple(f"u{n}" for n in range(3000)))
    limit_memory(client, 500_000)
    n_before = client.dbsize()

    with pytest.raises(RedisLoadError, match=r"needs about 2\.\d MB, and .* Raise maxmemory"):
        load(warehouse, stage(warehouse), redis_url)

    assert client.dbsize() == n_before
    assert redis_load.current_redis(redis_url=redis_url) == live.version


def test_the_estimate_of_memory_is_right_within_a_third(warehouse, client, redis_url):
    make_shop(warehouse, users=tuple(f"u{n}" for n in range(3000)))
    version = stage(warehouse)
    before = client.info("memory")["used_memory"]
    limit_memory(client, 1)
    with pytest.raises(RedisLoadError) as caught:
        load(warehouse, version, redis_url)
    estimate = float(str(caught.value).split("needs about ")[1].split(" MB")[0])
    client.config_set("maxmemory", 0)

    load(warehouse, version, redis_url)

    used = (client.info("memory")["used_memory"] - before) / 1e6
    assert used == pytest.approx(estimate, rel=1 / 3)


def test_a_full_server_is_a_sentence_and_gets_its_memory_back(
    warehouse, client, redis_url, monkeypatch
):
    live = publish_one(warehouse, redis_url)
    before = redis_lists(client, live)
    make_shop(warehouse, users=tuple(f"u{n}" for n in range(3000)))
    version = stage(warehouse)
    monkeypatch.setattr(redis_load, "_check_headroom", lambda *_: None)
    limit_memory(client, 700_000)

    with pytest.raises(RedisLoadError, match=r"OOM.* Its memory is full: raise maxmemory"):
        load(warehouse, version, redis_url)

    assert redis_load.current_redis(redis_url=redis_url) == live.version
    assert redis_lists(client, live) == before
    assert redis_lists(client, version) == {}


def test_a_replica_is_a_sentence(warehouse, client, redis_url):
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(RedisLoadError, match="It is a replica: set REDIS_URL to the primary"):
            load(warehouse, stage(warehouse), redis_url)
    finally:
        client.execute_command("REPLICAOF", "NO", "ONE")


def test_a_foreign_key_in_the_way_is_a_sentence(warehouse, client, redis_url):
    client.lpush(POINTER, "not ours")

    with pytest.raises(RedisLoadError, match="nothing else may use the prefix recmart:"):
        redis_load.current_redis(redis_url=redis_url)


def test_ranks_that_do_not_begin_at_one_are_a_sentence(warehouse, redis_url):
    warehouse.execute("delete from ml.similar_products where product_id = 'p3' and rank = 1")

    with pytest.raises(RedisLoadError, match="ranks must begin at 1 and occur once"):
        load(warehouse, stage(warehouse), redis_url)


def test_a_shop_without_pairs_and_similar_products_is_loaded(warehouse, client, redis_url):
    warehouse.execute("delete from marts.product_pairs; delete from ml.similar_products")
    version = stage(warehouse)

    report = load(warehouse, version, redis_url)

    assert report.n_lists == {
        **dict.fromkeys(("user", "again", "anchor", "bought"), 3),
        **dict.fromkeys(("similar", "together", "viewed"), 0),
        "popular": 9,
    }
    assert redis_lists(client, version) == table_lists(warehouse, version)


def test_a_version_without_rows_is_a_sentence(warehouse, redis_url):
    version = stage(warehouse)
    warehouse.execute("delete from serving.recommendations")

    with pytest.raises(RedisLoadError, match=r"no rows in serving\.recommendations"):
        load(warehouse, version, redis_url)


def test_a_server_emptied_half_way_is_caught_by_counting(
    warehouse, client, redis_url, in_small_buffers
):
    version = stage(warehouse)
    n_left = []

    def empty_once(n_done, n_all):
        if not n_left:
            n_left.append(n_all - n_done)
            client.flushall()

    with pytest.raises(RedisLoadError, match=r"of 3 user lists .*: it lost some"):
        load(warehouse, version, redis_url, progress=empty_once)

    assert not client.exists(manifest_key(version.version))
    assert load(warehouse, version, redis_url).n_bytes > 0


def test_a_value_that_is_not_the_tables_is_caught_by_the_sample(
    warehouse, client, redis_url, in_small_buffers
):
    version = stage(warehouse)

    def overwrite(n_done, n_all):
        if n_done == n_all:
            client.hset(key(version.version, "similar"), "p3", '{"items":[],"why":[]}')

    with pytest.raises(
        RedisLoadError, match=r"similar, field p3, in Redis .* is not what the table holds"
    ):
        load(warehouse, version, redis_url, progress=overwrite)


@pytest.fixture
def own_server(tmp_path):
    """A server that a test may kill or freeze: EmbeddedRedis, URL, process number."""
    embedded = EmbeddedRedis(tmp_path)
    url = embedded.start()
    with redis.Redis.from_url(url) as client:
        process = client.info("server")["process_id"]
    yield embedded, url, process
    with suppress(OSError):
        os.kill(process, signal.SIGCONT)
    embedded.stop()


def test_a_server_killed_mid_load_is_a_sentence_and_the_next_load_succeeds(
    warehouse, own_server, in_small_buffers
):
    embedded, url, process = own_server
    make_shop(warehouse, users=tuple(f"u{n}" for n in range(200)))
    version = stage(warehouse)

    def kill(n_done, n_all):
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)

    with pytest.raises(RedisLoadError, match="does not answer"):
        load(warehouse, version, url, progress=kill)

    url = embedded.start()
    load(warehouse, version, url)
    with redis.Redis.from_url(url) as client:
        assert redis_lists(client, version) == table_lists(warehouse, version)


def test_a_server_that_hangs_is_a_sentence(warehouse, own_server, in_small_buffers, monkeypatch):
    _, url, process = own_server
    version = stage(warehouse)
    monkeypatch.setattr(redis_client, "_STALL_SECONDS", 0.3)
    monkeypatch.setitem(redis_client._OPTIONS, "socket_timeout", 0.3)

    def freeze(n_done, n_all):
        os.kill(process, signal.SIGSTOP)

    with pytest.raises(RedisLoadError, match="does not answer"):
        load(warehouse, version, url, progress=freeze)
