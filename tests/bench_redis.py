"""How fast a version gets into Redis, beside what else could load it, and what its values weigh.

Belongs here: generated lists, the rivals, the table of ratios. Run it with

    PYTHONPATH=tests python -m bench_redis [--users 1000000] [--runs 3]

All loads are measured in turn, run after run, on one server that is emptied in between; figures are
medians. The rivals get keys and values ready made, in memory or in a file, where it does not say
that they make them; this line starts from its tables.
"""

import argparse
import json
import mmap
import os
import shutil
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import duckdb
import msgpack
import orjson
import redis
from publishing_for_tests import stage

from exports import redis_load
from exports.lists import KINDS, key
from exports.redis_client import Stream
from exports.redis_commands import to_commands
from exports.redis_server import EmbeddedRedis, find_redis_server
from exports.versions import SURFACES, Version

TTL_SECONDS = 30 * 24 * 3600
CHUNK = 2_000
OURS = "recmart, from its tables"
OURS_VERIFIED = "recmart, from its tables, verified"
PIPELINE = "redis-py pipeline of SET with EX"


@dataclass(frozen=True)
class Load:
    """Medians of loading all lists in one way. The processor time is the loader's and the server's.

    On a machine that does something else at the same time, compare the processor times.
    """

    way: str
    seconds: float
    cpu_seconds: float
    server_cpu_seconds: float


@dataclass(frozen=True)
class Format:
    """One way to write a value. Bytes and microseconds are per list of a user."""

    name: str
    n_bytes: float
    memory_bytes: float
    load_microseconds: float
    decode_microseconds: float


def fill_tables(connection: duckdb.DuckDBPyConnection, *, n_users: int, top_n: int = 20) -> Version:
    """Stage a version like a shop's: 20 products and about 5 different reasons for each user."""
    connection.execute("create schema if not exists ml; create schema if not exists marts")
    connection.execute(
        """
        create temp macro product_id_of(i) as
            case when i % 3 = 0 then (10000 + i) || 'A' else (1000000 + i * 37)::varchar end;
        create temp macro title_of(i) as
            (['WHITE', 'RED', 'GREEN', 'SMALL', 'VINTAGE'])[1 + (i % 5)::bigint] || ' '
            || (['METAL LANTERN', 'HEART HOLDER', 'TEA SET', 'LUNCH BAG SUKI', 'BUNTING'])
                [1 + (i // 5 % 5)::bigint] || ' ' || i;
        create table marts.products as
        select
            product_id_of(i) as product_id, title_of(i) as title, 'c' as category,
            null::varchar as brand, 1.0 as price
        from range(50000) as numbers (i)
        """
    )
    connection.execute(
        """
        create table ml.recommendations as
        select
            (100000 + n * 7)::varchar as user_id, item::integer as rank,
            -- Squared: few products are in many lists, many in few.
            product_id_of((50000 * pow(hash(n, item) % 1000000 / 1e6, 2))::bigint) as product_id,
            4.0 - 0.15 * item + hash(n, item) % 100000 / 1e6 as score,
            0.5 as cf_score, null::double as content_score,
            case when item % 5 = 0 then 'trending' else 'hybrid' end as source,
            case
                when item % 5 = 0 then 'Trending now'
                else 'Because you bought ' || title_of(hash(n, item % 5) % 50000)
            end as reason,
            'hot' as temperature,
            product_id_of(hash(n, item % 5) % 50000) as because_product_id,
            null::double as probability
        from range($users) as users (n), range(1, $items + 1) as items (item)
        order by user_id, rank
        """,
        {"users": n_users, "items": top_n},
    )
    connection.execute(
        """
        create table ml.scored_users as
        select distinct user_id, 0::bigint as inputs_hash, 0::bigint as rules_hash
        from ml.recommendations;
        create table ml.scored_products as
        select product_id, true as is_available, 'none' as model_hash from marts.products
        """
    )
    connection.execute(
        """
        create table ml.similar_products as
        select 'p' as product_id, 1 as rank, 'q' as similar_product_id, 1.0 as score,
            'similar' as source;
        create table marts.product_pairs as
        select
            'p' as product_id, 'bought_together' as relation, 1 as rank, 'q' as other_product_id,
            3 as n_together, 0.1 as support, 0.1 as confidence, 2.0 as lift, 12.5 as log_likelihood;
        create table marts.popularity as
        select
            'global' as segment_type, 'all' as segment, 'all_time' as time_window, 1 as rank,
            'p' as product_id, 1.0 as score, 3 as n_users
        """
    )
    # What is measured is the lists of users.
    for surface in SURFACES:
        columns = ", ".join(f"{name} {kind}" for name, kind in surface.columns.items())
        connection.execute(f"create table if not exists {surface.source} ({columns})")
    return stage(connection, top_n=top_n)


def measure(
    connection: duckdb.DuckDBPyConnection,
    version: Version,
    *,
    redis_url: str,
    folder: Path,
    n_runs: int,
) -> list[Load]:
    """Load a version in every way that this machine has, and leave the last one in Redis."""
    client = redis.Redis.from_url(redis_url, socket_timeout=600)

    def load() -> None:
        redis_load.load_version(connection, version, redis_url=redis_url, ttl_seconds=TTL_SECONDS)

    def load_unverified() -> None:
        with mock.patch.object(redis_load, "_verify"):
            load()

    load()
    pairs = [
        (f"{key(version.version, kind)}:".encode() + list_id, value)
        for kind in KINDS
        for list_id, value in client.hscan_iter(key(version.version, kind), count=CHUNK)
    ]
    sets, hashes = folder / "sets.resp", folder / "hashes.resp"
    with sets.open("wb") as file:
        for name, value in pairs:
            file.write(_command(b"SET", name, value, b"EX", b"%d" % TTL_SECONDS))

    def make_hashes() -> int:
        n_commands = 0
        with hashes.open("wb") as file:
            for kind in KINDS:
                rows = redis_load._fetch(connection, version.version, kind, is_sorted=False)
                for commands in to_commands(rows, key(version.version, kind)):
                    file.write(commands.content)
                    n_commands += commands.n_commands
        return n_commands

    n_commands = make_hashes()

    def ready() -> None:
        with hashes.open("rb") as file, Stream(redis_url) as stream:
            stream.send(memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)), n_commands)
            stream.finish()

    def pipeline() -> None:
        for start in range(0, len(pairs), CHUNK):
            pipe = client.pipeline(transaction=False)
            for name, value in pairs[start : start + CHUNK]:
                pipe.set(name, value, ex=TTL_SECONDS)
            pipe.execute()

    def mset() -> None:
        for start in range(0, len(pairs), CHUNK):
            client.mset(dict(pairs[start : start + CHUNK]))

    ways: dict[str, Callable[[], object]] = {
        OURS: load_unverified,
        OURS_VERIFIED: load,
        "recmart's socket, ready file of its HSETs": ready,
        PIPELINE: pipeline,
        f"redis-py MSET of {CHUNK:,}, no TTL": mset,
    }
    program = shutil.which("redis-cli") or str(find_redis_server().with_name("redis-cli"))
    if Path(program).exists():
        cli = [program, "-u", redis_url, "--pipe"]
        ways["redis-cli --pipe, ready file of SET with EX"] = lambda: _feed(cli, sets)
        ways["redis-cli --pipe, ready file of this line's HSETs"] = lambda: _feed(cli, hashes)
        ways["redis-cli --pipe, file of this line's HSETs made first"] = lambda: (
            make_hashes(),
            _feed(cli, hashes),
        )
    benchmark = shutil.which("redis-benchmark")
    if benchmark:
        port = redis_url.rsplit(":", 1)[1].split("/")[0]
        size = sum(len(value) for _, value in pairs) // len(pairs)
        command = [benchmark, "-p", port, "-t", "set", "-P", "64", "-q"]
        command += ["-n", str(len(pairs)), "-r", str(len(pairs)), "-d", str(size)]
        ways["redis-benchmark -P 64, SET of that size, no TTL"] = lambda: subprocess.run(
            command, check=True, capture_output=True
        )

    taken: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
    for _ in range(n_runs):
        for way, run in ways.items():
            client.flushall()
            server_cpu, cpu, began = _server_cpu(client), _own_cpu(), time.perf_counter()
            run()
            seconds, cpu = time.perf_counter() - began, _own_cpu() - cpu
            server_cpu = _server_cpu(client) - server_cpu
            taken[way].append((seconds, cpu + server_cpu, server_cpu))
    client.flushall()
    load()
    return [
        Load(way, *(statistics.median(figures) for figures in zip(*runs, strict=True)))
        for way, runs in taken.items()
    ]


def measure_formats(values: list[bytes], *, redis_url: str) -> list[Format]:
    """Write the same lists in several ways, into a hash, and read them as a Python client would."""
    contents = [json.loads(value) for value in values]
    products = sorted({item[0] for content in contents for item in content["items"]})
    number_of = {product_id: number for number, product_id in enumerate(products)}

    def columns(content: dict[str, Any]) -> list[Any]:
        products, scores, positions = zip(*content["items"], strict=True)
        return [products, scores, positions, content["why"]]

    def packed(content: dict[str, Any]) -> bytes:
        products, scores, positions, why = columns(content)
        n = len(products)
        numbers = [number_of[each] for each in products]
        head = struct.pack(f"<B{n}I{n}f{n}B", n, *numbers, *scores, *positions)
        return head + orjson.dumps(why)

    def unpacked(value: bytes) -> list[Any]:
        n = value[0]
        found = struct.unpack_from(f"<{n}I{n}f{n}B", value, 1)
        names = [products[number] for number in found[:n]]
        return [names, found[n : 2 * n], found[2 * n :], json.loads(value[1 + 9 * n :])]

    rows = [[content["items"], content["why"]] for content in contents]
    in_columns = [columns(content) for content in contents]
    message_pack = msgpack.Packer(use_single_float=True).pack
    formats: list[tuple[str, list[bytes], Callable[[bytes], Any]]] = [
        ("JSON (as published), json", values, json.loads),
        ("JSON (as published), orjson", values, orjson.loads),
        ("JSON in columns, json", [orjson.dumps(each) for each in in_columns], json.loads),
        ("MessagePack, float32", [message_pack(each) for each in rows], msgpack.unpackb),
        (
            "MessagePack in columns, float32",
            [message_pack(each) for each in in_columns],
            msgpack.unpackb,
        ),
        ("packed: product number, float32", [packed(each) for each in contents], unpacked),
    ]
    return [_measure_format(name, written, read, redis_url) for name, written, read in formats]


def _measure_format(
    name: str, values: list[bytes], decode: Callable[[bytes], Any], redis_url: str
) -> Format:
    client = redis.Redis.from_url(redis_url, socket_timeout=600)
    commands = []
    for start in range(0, len(values), 50):
        pairs = ((b"%d" % (start + n), value) for n, value in enumerate(values[start : start + 50]))
        commands.append(_command(b"HSET", b"h", *(text for pair in pairs for text in pair)))
    content = memoryview(b"".join(commands))
    loads, decodes = [], []
    for _ in range(3):
        client.flushall()
        before, cpu = client.info("memory")["used_memory"], _server_cpu(client)
        with Stream(redis_url) as stream:
            stream.send(content, len(commands))
            stream.finish()
        loads.append(_server_cpu(client) - cpu)
        memory = client.info("memory")["used_memory"] - before
        began = time.process_time()
        for value in values:
            decode(value)
        decodes.append(time.process_time() - began)
    client.flushall()
    return Format(
        name,
        sum(map(len, values)) / len(values),
        memory / len(values),
        1e6 * statistics.median(loads) / len(values),
        1e6 * statistics.median(decodes) / len(values),
    )


def _command(*arguments: bytes) -> bytes:
    pieces = [b"$%d\r\n%s\r\n" % (len(each), each) for each in arguments]
    return b"*%d\r\n" % len(arguments) + b"".join(pieces)


def _feed(command: list[str], path: Path) -> None:
    with path.open("rb") as file:
        subprocess.run(command, stdin=file, check=True, capture_output=True)


def _server_cpu(client: redis.Redis) -> float:
    used = client.info("cpu")
    return float(used["used_cpu_sys"] + used["used_cpu_user"])


def _own_cpu() -> float:
    """Of this process and of the commands it has run."""
    return sum(os.times()[:4])


def table_of_loads(loads: Iterable[Load]) -> str:
    """The loads as Markdown, each beside the pipeline of SET."""
    loads = list(loads)
    (pipeline,) = (each.seconds for each in loads if each.way == PIPELINE)
    lines = [
        "| way | seconds | times as fast as the pipeline | CPU seconds | of them the server's |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {each.way} | {each.seconds:.2f} | {pipeline / each.seconds:.1f} "
        f"| {each.cpu_seconds:.2f} | {each.server_cpu_seconds:.2f} |"
        for each in loads
    ]
    return "\n".join(lines)


def table_of_formats(formats: Iterable[Format]) -> str:
    """The formats as Markdown."""
    lines = [
        "| value | bytes | Redis memory, bytes a user | server's CPU, µs a list | decode, µs |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {each.name} | {each.n_bytes:.0f} | {each.memory_bytes:.0f} "
        f"| {each.load_microseconds:.2f} | {each.decode_microseconds:.1f} |"
        for each in formats
    ]
    return "\n".join(lines)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {"threads": 2, "memory_limit": os.environ.get("RECMART_MEMORY_LIMIT", "4GB")}
        with (
            duckdb.connect(str(folder / "warehouse.duckdb"), config=settings) as connection,
            EmbeddedRedis(folder) as redis_url,
        ):
            version = fill_tables(connection, n_users=chosen.users)
            loads = measure(
                connection, version, redis_url=redis_url, folder=folder, n_runs=chosen.runs
            )
            print(f"{chosen.users:,} users x 20 products, medians of {chosen.runs} runs\n")
            print(table_of_loads(loads), flush=True)
            client = redis.Redis.from_url(redis_url, socket_timeout=600)
            name_of_users = key(version.version, "user")
            _, found = client.hscan(name_of_users, count=100_000)
            formats = measure_formats(list(found.values()), redis_url=redis_url)
            print(f"\n{table_of_formats(formats)}")


if __name__ == "__main__":
    main()
