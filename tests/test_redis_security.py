"""Redis behind a password, rights and TLS: a real server, the rights that docs/redis.md lists."""

import re
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
import redis
from publishing_for_tests import make_shop, stage
from tls_for_tests import make_authority, tls_in_front_of

from exports import redis_client
from exports.errors import ReaderError, RedisAwayError, RedisLoadError, without_password
from exports.placements import PLACEMENTS
from exports.reader import Reader
from exports.redis_load import (
    count_lists,
    current_redis,
    forget_users,
    load_version,
    remove_versions,
    switch_redis,
)
from exports.redis_server import EmbeddedRedis
from exports.versions import Version

DOCS = Path(__file__).resolve().parents[1] / "docs" / "redis.md"
PASSWORD = "pa:ss@w/rd"
# As in a URL.
QUOTED = "pa%3Ass%40w%2Frd"


def documented_rights(who: str) -> list[str]:
    """What docs/redis.md says to grant."""
    found = re.search(rf"the\s+{who}:\s+`([^`]+)`", DOCS.read_text(encoding="utf-8"))
    assert found
    return found[1].split()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    embedded = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    yield embedded.start()
    embedded.stop()


@pytest.fixture
def admin(server) -> Iterator[redis.Redis]:
    """The server, empty, with the users of the documentation."""
    with redis.Redis.from_url(server) as client:
        client.flushall()
        client.set("other:1", "not ours")
        for user in ("publisher", "reader"):
            client.acl_deluser(user)
            grant(client, user, documented_rights(user))
        yield client


def grant(admin: redis.Redis, user: str, rights: list[str]) -> None:
    admin.execute_command("ACL", "SETUSER", user, "reset", "on", f">{PASSWORD}", *rights)


def url_of(server: str, user: str, password: str = QUOTED) -> str:
    return server.replace("redis://", f"redis://{user}:{password}@")


@pytest.fixture
def warehouse() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        make_shop(connection)
        yield connection


def publish(warehouse: duckdb.DuckDBPyConnection, redis_url: str, *, ttl_seconds: int) -> Version:
    version = stage(warehouse)
    load_version(warehouse, version, redis_url=redis_url, ttl_seconds=ttl_seconds)
    switch_redis(version.version, redis_url=redis_url)
    return version


def read_everything(reader: Reader) -> int:
    """Call every method; the number of products found."""
    shelves = reader.page("ann", PLACEMENTS, product_ids=["p1"], segment="UK", category="lanterns")
    lists = [
        reader.recommend("ann"),
        reader.recommend("nobody", segment="UK"),
        reader.similar("p1"),
        reader.together("p1"),
        reader.viewed("p1"),
        reader.popular(segment="UK"),
        reader.popular(category="lanterns"),
        reader.trending(),
        reader.new(),
        reader.sale(),
        reader.buy_again("ann"),
        reader.cart(["p1", "p2"]),
        *(shelf.products for shelf in [*shelves, *reader.because("ann")]),
    ]
    assert all(lists[:12])
    return sum(map(len, lists))


@pytest.mark.parametrize("ttl_seconds", [0, 3600])
def test_the_documented_rights_are_enough_for_all_that_publisher_and_reader_do(
    warehouse, admin, server, ttl_seconds
):
    publisher = url_of(server, "publisher")

    first = publish(warehouse, publisher, ttl_seconds=ttl_seconds)
    make_shop(warehouse, taste=1)
    second = publish(warehouse, publisher, ttl_seconds=ttl_seconds)
    # Loaded and verified once more, and not sent again.
    assert publish(warehouse, publisher, ttl_seconds=ttl_seconds).version == second.version

    for table in ("recommendations", "buy_again", "anchors", "bought"):
        warehouse.execute(f"delete from serving.{table} where user_id = 'bob'")
    forget_users(warehouse, second, ["bob"], redis_url=publisher)
    assert set(count_lists(redis_url=publisher, user_id="bob").values()) == {0, 1}

    assert current_redis(redis_url=publisher) == second.version
    assert remove_versions(redis_url=publisher, keep=[]) == [first.version]
    with Reader(redis_url=url_of(server, "reader")) as reader:
        assert read_everything(reader) > 50
    assert admin.get("other:1") == b"not ours"


@pytest.mark.parametrize(
    ("user", "command"),
    [
        *(("reader", c) for c in ("SET recmart:current x", "HSET recmart:v:user u x")),
        *(("reader", c) for c in ("DEL recmart:current", "UNLINK recmart:current")),
        *(("reader", c) for c in ("EXPIRE recmart:current 1", "SCAN 0", "INFO", "GET other:1")),
        *(("reader", c) for c in ("HGETALL recmart:v:user", "EVAL return(1) 0", "SELECT 1")),
        *(("publisher", c) for c in ("GET other:1", "SET other:1 x", "UNLINK other:1")),
        *(("publisher", c) for c in ("DEL recmart:current", "EVAL return(1) 0", "CONFIG GET dir")),
        *((user, c) for user in ("publisher", "reader") for c in ("KEYS *", "FLUSHALL", "FLUSHDB")),
        *((user, c) for user in ("publisher", "reader") for c in ("CONFIG SET dir /", "SHUTDOWN")),
        *((user, c) for user in ("publisher", "reader") for c in ("ACL LIST", "DEBUG SLEEP 0")),
    ],
)  # fmt: skip
def test_the_documented_rights_are_for_nothing_else(admin, server, user, command):
    with (
        redis.Redis.from_url(url_of(server, user)) as client,
        pytest.raises(redis.exceptions.NoPermissionError),
    ):
        client.execute_command(*command.split())


NEEDED = {
    "publisher": ["get", "set", "hset", "hmget", "hlen", "expire", "unlink", "info", "scan"],
    "reader": ["mget", "hmget"],
}


@pytest.mark.parametrize(("user", "right"), [(u, r) for u in NEEDED for r in NEEDED[u]])
def test_a_missing_right_is_named_with_what_to_grant(warehouse, admin, server, user, right):
    url = url_of(server, user)
    if user == "reader":
        publish(warehouse, url_of(server, "publisher"), ttl_seconds=60)
    grant(admin, user, [*documented_rights(user), f"-{right}"])

    with pytest.raises((RedisLoadError, ReaderError)) as error:
        if user == "reader":
            with Reader(redis_url=url) as reader:
                reader.recommend("ann")
        else:
            publish(warehouse, url, ttl_seconds=60)
            remove_versions(redis_url=url, keep=[])

    said = str(error.value)
    assert f"lacks the right +{right}: grant it with ACL SETUSER; docs/redis.md lists" in said
    assert PASSWORD not in said and QUOTED not in said


def test_a_missing_right_to_the_keys_is_named(warehouse, admin, server):
    grant(admin, "publisher", [r for r in documented_rights("publisher") if r[0] != "~"])

    with pytest.raises(RedisLoadError, match=r"lacks the right ~recmart:\*"):
        publish(warehouse, url_of(server, "publisher"), ttl_seconds=60)


@pytest.mark.parametrize("password", ["guessed", QUOTED + "x"])
def test_a_wrong_password_is_told_and_not_shown(warehouse, admin, server, password):
    url = url_of(server, "publisher", password)

    with pytest.raises(RedisLoadError, match="User or password is wrong: correct them") as error:
        publish(warehouse, url, ttl_seconds=60)
    with Reader(redis_url=url) as reader, pytest.raises(ReaderError) as of_reader:
        reader.recommend("ann")

    for said in (str(error.value), str(of_reader.value)):
        assert password not in said and "publisher" not in said


def test_tls_with_a_trusted_authority_carries_publishing_and_reading(
    warehouse, admin, server, tmp_path, monkeypatch
):
    authority = make_authority(tmp_path / "ours")
    with tls_in_front_of(server, authority.server) as port:
        plain = f"rediss://publisher:{QUOTED}@127.0.0.1:{port}/0"
        version = publish(warehouse, f"{plain}?ssl_ca_certs={authority.ca}", ttl_seconds=60)
        # Or from the environment, as OpenSSL reads it.
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
        assert current_redis(redis_url=plain) == version.version
        with Reader(redis_url=plain.replace("publisher", "reader")) as reader:
            # The handshake takes longer than a look-up.
            assert read_everything(reader) > 50


@pytest.mark.parametrize("wrong", ["authority", "host", "none"])
def test_a_certificate_that_cannot_be_trusted_is_refused_with_what_to_do(
    warehouse, admin, server, tmp_path, wrong
):
    host = "127.0.0.2" if wrong == "host" else "127.0.0.1"
    authority = make_authority(tmp_path / "ours", host=host)
    trusted = make_authority(tmp_path / "theirs") if wrong == "authority" else authority
    with tls_in_front_of(server, authority.server) as port:
        url = f"rediss://publisher:{QUOTED}@127.0.0.1:{port}/0"
        if wrong != "none":
            url += f"?ssl_ca_certs={trusted.ca}"
        with pytest.raises(RedisLoadError) as error:
            publish(warehouse, url, ttl_seconds=60)
        with Reader(redis_url=url) as reader, pytest.raises(ReaderError) as of_reader:
            reader.recommend("ann")

    for said in (str(error.value), str(of_reader.value)):
        assert "Its certificate is not trusted: name the file of the authority" in said
        assert QUOTED not in said and PASSWORD not in said
    assert admin.keys("recmart:*") == []


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_one_side_with_tls_and_the_other_without_is_told(
    warehouse, admin, server, tmp_path, monkeypatch, scheme
):
    # A Redis without TLS waits for the rest of what it takes for a command.
    monkeypatch.setitem(redis_client._OPTIONS, "socket_timeout", 0.5)
    with tls_in_front_of(server, make_authority(tmp_path).server) as tls_port:
        port = tls_port if scheme == "redis" else server.split(":")[2].split("/")[0]
        with pytest.raises(RedisLoadError, match=r"does not answer .*rediss:// where it speaks"):
            publish(warehouse, f"{scheme}://publisher:{QUOTED}@127.0.0.1:{port}/0", ttl_seconds=60)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://publisher:p4/ss+w0rd@cache.example:6379/0", "redis://cache.example:6379/0"),
        ("redis://publisher:p4#ss+w0rd@cache.example:6379/0", "redis://cache.example:6379/0"),
        ("redis://publisher:6379/ss+w0rd@cache.example/0", "redis://cache.example/0"),
        ("redis://publisher:p4@ss/w0rd@cache.example/0?a=b", "redis://cache.example/0"),
        ("redis://publisher:p4?ss+w0rd@cache.example:6379/0", "redis://..."),
        ("redis://cache.example:6379/0?password=p4@ss+w0rd", "redis://..."),
        ("publisher:p4ss+w0rd@cache.example:6379", "cache.example:6379"),
        ("redis://[::1:6379", "redis://[::1:6379"),
        ("OFF", "OFF"),
    ],
)
def test_an_address_that_is_none_is_shown_without_any_piece_of_the_password(url, shown):
    assert without_password(url) == shown

    with pytest.raises(RedisLoadError) as error, redis_client.connected(url):
        pass
    with pytest.raises(ReaderError) as of_reader:
        Reader(redis_url=url)

    for said in (str(error.value), str(of_reader.value)):
        assert f"{shown} is not a Redis address: expected is redis://host:6379/0" in said
        assert "percent-encoded" in said
        assert "p4" not in said and "w0rd" not in said and "publisher" not in said


@pytest.fixture
def replies() -> Iterator[tuple[str, list[bytes]]]:
    """A server that greets as Redis does, and answers anything else with the reply in the list."""
    said: list[bytes] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while received := self.request.recv(65536):
                greetings = received.count(b"CLIENT")
                self.request.sendall(b"+OK\r\n" * greetings or said[0] + b"\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"redis://127.0.0.1:{listening.server_address[1]}/0", said
        listening.shutdown()


CLUSTER = "It is part of a cluster: set REDIS_URL to a single server."


@pytest.mark.parametrize(
    ("reply", "remedy", "passes"),
    [
        ("MOVED 3999 10.0.0.7:6381", CLUSTER, False),
        ("ASK 3999 10.0.0.7:6381", CLUSTER, False),
        ("CROSSSLOT Keys in request don't hash to the same slot", CLUSTER, False),
        ("CLUSTERDOWN Hash slot not served", CLUSTER, False),
        ("TRYAGAIN Multiple keys request during rehashing of slot", "that moves its keys", True),
        ("MASTERDOWN Link with MASTER is down", "lost its primary", True),
        ("LOADING Redis is loading the dataset in memory", "still reading its data", True),
        ("READONLY You can't write against a read only replica.", "It is a replica", False),
        ("OOM command not allowed when used memory > 'maxmemory'.", "memory is full", False),
        ("MISCONF Redis is configured to save RDB snapshots", "cannot save", False),
        ("NOAUTH Authentication required.", "It wants a password", False),
    ],
)
def test_a_refusal_says_what_to_do_and_only_what_passes_is_tried_again(
    replies, reply, remedy, passes
):
    url, said = replies
    said.append(f"-{reply}".encode())

    with pytest.raises(RedisLoadError) as error, redis_client.connected(url) as client:
        client.get("recmart:current")

    assert remedy in str(error.value)
    assert isinstance(error.value, RedisAwayError) == passes
    # The bulk of a load reads replies itself.
    assert remedy in str(redis_client.explained(reply, url))
