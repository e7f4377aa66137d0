"""Erasing a user: nothing is left in any byte of tables, files and Redis, and it stays so."""

import json
import os
import shutil
import signal
from datetime import datetime

import dagster as dg
import duckdb
import pytest
import redis
from lines import (
    line_in,
    places_with,
    redis_url,
    why_it_failed,
    write_files,
    write_small_shop,
)

from exports.erasure import ERASED_LINE, ERASED_ROW, Kept, certify, erase_users
from exports.errors import PublishError
from exports.files import verify_version_files
from exports.reader import Reader
from orchestration.landing.contract import ENTITIES, LandingError
from orchestration.landing.erasure import read_requests
from orchestration.landing.ingest import ingest_folder

AT = datetime(2024, 3, 1)
GONE = "Zoë-erased-7741"
HEADER = "user_id,product_id,event_type,event_ts,quantity,price,session_id,order_id\n"


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """Two versions live after each other, with the user in each, and then the user erased."""
    folder = tmp_path_factory.mktemp("erasure")
    line = line_in(folder, redis_url="embedded")
    write_small_shop(line.settings.data)
    line.last = "2024-02-28"
    assert line.run(dg.AssetSelection.groups("raw")).success
    products = [
        product
        for (product,) in line.query("select distinct product_id from raw.products order by all")
    ]
    (line.settings.data / "events" / "own.csv").write_text(
        HEADER
        + "".join(
            f'{GONE},{product},{kind},{line.last} 10:0{i}:00,1,9.5,"visit of {GONE}",{order}\n'
            for i, (product, kind, order) in enumerate(
                [
                    (products[0], "view", ""),
                    (products[1], "add_to_cart", ""),
                    (products[2], "purchase", f"order-{GONE}"),
                    (products[3], "purchase", f"order-{GONE}"),
                    ("no such product", "view", ""),
                ]
            )
        )
        # Too few values: a line that cannot be read.
        + f"{GONE},{products[0]},purchase,no date,1,2\n"
    )
    (line.settings.data / "users").mkdir(exist_ok=True)
    (line.settings.data / "users" / "own.csv").write_text(f"user_id,country\n{GONE},Elbonia\n")
    assert line.run().success
    more = line.settings.data / "events" / "more.csv"
    more.write_text(HEADER + f"{GONE},{products[5]},view,{line.last} 12:00:00,,,,\n")
    assert line.run().success
    line.products = products
    yield line
    line.stop()


def lists_of_others(line):
    return line.query(
        "select version, user_id, rank, product_id, score from serving.recommendations"
        f" where user_id <> '{GONE}' order by all"
    )


def columns_with_users(line):
    """Text columns of tables in which some value is the id of a user."""
    names = line.query(
        "select schema_name, table_name, column_name from duckdb_columns()"
        " where not internal and data_type = 'VARCHAR'"
    )
    return {
        column
        for schema, table, column in names
        if line.value(
            f"select count(*) from {schema}.{table} where {column} in (select user_id from"
            " raw.users)"
        )
    }


def test_nothing_is_left_and_it_stays_so(line):
    before = places_with(line, GONE)
    assert {"warehouse.duckdb", "Redis"} <= set(before)
    assert sum(place.endswith("recommendations.parquet") for place in before) == 2
    assert sum(place.endswith("recmart.duckdb") for place in before) == 2
    others, live = lists_of_others(line), line.query("from serving.versions where state = 'live'")
    erasures = line.settings.data / "erasures"
    erasures.mkdir()
    (erasures / "2024-03.csv").write_text(f"user_id,asked_on\n{GONE},2024-03-01\n")

    assert line.value("select count(*) from intermediate.int_baskets") > 0
    # No other columns are asked for the certificate than those which are named for ids of users.
    assert columns_with_users(line) == {"user_id"}

    result = line.run(job_name="erase_users")

    assert result.success, why_it_failed(result)
    assert places_with(line, GONE) == []
    # Users are numbers there.
    assert line.value("select count(*) from intermediate.int_baskets") == 0
    # Everybody else has what they had, of the same versions, whole everywhere.
    assert lists_of_others(line) == others
    assert line.query("from serving.versions where state = 'live'")[0][0] == live[0][0]
    for (version,) in line.query("select version from serving.versions where removed_at is null"):
        verify_version_files(line.settings.published, version, contents=True)
    with Reader(redis_url(line), line.settings.published / "current.duckdb") as reader:
        assert {each.source for each in reader.recommend(GONE, 5)} <= {"trending", "popular"}
    # The certificate names no one, and each place with what was asked there.
    (certificate,) = (line.settings.home / "erasures").glob("*.json")
    places = json.loads(certificate.read_text())["places"]
    assert {place["n_left"] for place in places} == {0}
    kinds = {place["place"].split()[0] for place in places}
    assert kinds == {"warehouse", "file", "Redis"}
    assert line.value("select count(*) from raw.erasure_certificates") == len(places)

    # The next runs are as ever, and what arrives late is refused.
    (line.settings.data / "events" / "late.csv").write_text(
        HEADER + f"{GONE},{line.products[6]},purchase,{line.last} 13:00:00,1,3,,\n"
    )
    rollback = line.query("select version from serving.versions where state = 'retired'")
    result = line.run()
    assert result.success, why_it_failed(result)
    assert places_with(line, GONE) == []
    assert line.query(
        "select entity, count(*) from staging.rejected_rows"
        " where reason = 'the user was erased' group by entity order by entity"
    ) == [("events", 7), ("users", 1)]
    assert line.query("select line from raw.malformed_lines") == [(ERASED_LINE,)]
    accounts = line.query(
        "select sum(n_rows + n_malformed), (select count(*) from staging.stg_events)"
        " + (select count(*) from staging.rejected_rows where entity = 'events')"
        " from raw.landing_files where entity = 'events'"
    )
    assert accounts[0][0] == accounts[0][1]
    assert len(rollback) == 1
    # Asked again, there is nothing to do.
    result = line.run(job_name="erase_users")
    assert result.success
    assert line.value("select count(*) from raw.erasure_certificates") == len(places)


def test_what_killed_runs_and_a_killed_redis_left_brings_nobody_back(line):
    user, home, published = "u000007", line.settings.home, line.settings.published
    live = line.value("select version from serving.versions where state = 'live'")
    # Stopping writes the dump that a server which is killed starts from.
    line.stop()
    assert any(user.encode() in path.read_bytes() for path in home.glob("redis/dump.rdb"))
    with redis.Redis.from_url(redis_url(line)) as client:
        # It goes before the lists do, by time or because a load was killed.
        client.delete(f"recmart:{live}:manifest")
        # Of a version whose rows were deleted by a clean-up that was killed then.
        client.hset("recmart:20240101T000000-0dead0:anchor", user, "its list")
    shutil.copytree(
        published / "versions" / live, published / "versions" / "20240101T000000-0dead0"
    )
    for left in (
        "backtests/2024-01-31/warehouse.duckdb",
        "warehouse.duckdb.tmp/a",
        "redis/temp-1.rdb",
    ):
        (home / left).parent.mkdir(parents=True, exist_ok=True)
        (home / left).write_text(user)
    write_files(line.settings.data, erasures__more_csv=f"user_id\n{user}\n")

    result = line.run(job_name="erase_users")

    assert result.success, why_it_failed(result)
    with redis.Redis.from_url(redis_url(line)) as client:
        os.kill(client.info("server")["process_id"], signal.SIGKILL)
    assert places_with(line, user) == []
    assert line.query("from raw.erasure_certificates where place = 'file redis/dump.rdb'")


def test_a_full_build_from_the_same_files_leaves_the_user_out_too(line, tmp_path):
    copy = line_in(tmp_path, data=line.settings.data)
    copy.settings.home.mkdir()
    with copy.settings.warehouse.connect() as connection:
        connection.execute(f"attach '{line.settings.warehouse.path}' as old (read_only)")
        connection.execute("create schema raw")
        for table in ("erased_users", "erasure_key", "erasure_certificates"):
            connection.execute(f"create table raw.{table} as from old.raw.{table}")

    assert copy.run(dg.AssetSelection.groups("raw", "staging")).success

    assert GONE.encode() not in copy.settings.warehouse.path.read_bytes()
    assert copy.value("select count(*) from staging.stg_events") == line.value(
        "select count(*) from staging.stg_events"
    )
    shutil.rmtree(tmp_path)


def erase(connection, folder, *user_ids):
    """Erase and certify in a warehouse that has neither files nor Redis."""
    kept = Kept(home=folder, published_dir=folder / "published", redis_url=None, is_embedded=False)
    erase_users(connection, user_ids, kept, happened_at=AT)
    certify(connection, user_ids, kept, happened_at=AT)


def load(connection, folder):
    """Ingest what is new."""
    return ingest_folder(connection, folder, received_at=AT, progress=lambda _: None)


def test_a_user_may_have_the_number_of_anything_else(tmp_path):
    numbers = [str(number) for number in range(1, 61)]
    columns = [*ENTITIES["events"].columns]
    rows = [
        ",".join(
            {"event_type": "view", "event_ts": "2024-01-01"}.get(column, value)
            for column in columns
            for value in [number if column == "user_id" else other]
        )
        for number, other in zip(numbers, reversed(numbers), strict=True)
    ]
    write_files(
        tmp_path,
        events__a_csv="\n".join([",".join(columns), *rows]),
        products__a_csv="product_id,title,category\n"
        + "".join(f"{number},{number},{number}\n" for number in numbers),
        users__a_csv="user_id,gender,age_band\n" + "".join(f"{n},1,2\n" for n in numbers),
    )
    with duckdb.connect() as connection:
        load(connection, tmp_path)

        erase(connection, tmp_path, *numbers[:30])

        left = connection.execute("select user_id, quantity from raw.events").fetchall()
        expected = [(None, None)] * 30 + list(zip(numbers[30:], numbers[29::-1], strict=True))
        assert sorted(left, key=repr) == sorted(expected, key=repr)


@pytest.mark.parametrize(
    "user_id", ["cust/42", "a8+/Zw==", "urn:shop#42", "Anna Ærø", 'the "one"', "a.b*(c)|", "\\d,1"]
)
def test_lines_that_cannot_be_read_name_nobody_whatever_ids_look_like(tmp_path, user_id):
    in_csv = '"' + user_id.replace('"', '""') + '"'
    in_json = [
        f'{{"user_id": {json.dumps(user_id)}, broken',
        f'{{"user_id": {json.dumps(user_id, ensure_ascii=False)}, broken',
    ]
    lines = [f"{in_csv},only,three", *in_json, f"x{user_id}x,is,another"]
    write_files(
        tmp_path,
        events__a_csv=f"user_id,product_id,event_type,event_ts\n{in_csv},p,view,2024-01-01\n"
        "2,p,view,2024-01-01\n",
        products__a_csv="product_id,title\np,Lamp\n",
    )
    with duckdb.connect() as connection:
        load(connection, tmp_path)
        connection.executemany(
            "insert into raw.malformed_lines values ('a', 'events', 1, ?, '')",
            [(line,) for line in lines],
        )
        rejected = [
            # Parsed, or not.
            ("price", json.dumps({"user_id": user_id, "price": "x"}, ensure_ascii=False)),
            ("price", json.dumps({"user_id": "2", "price": user_id}, ensure_ascii=False)),
            (None, lines[0]),
        ]
        connection.execute(
            "create schema staging; create table staging.rejected_rows"
            " (column_name varchar, reason varchar, value varchar, row_text varchar)"
        )
        connection.executemany(
            "insert into staging.rejected_rows values (?, 'why', 'x', ?)", rejected
        )

        erase(connection, tmp_path, user_id)

        assert connection.execute("select line from raw.malformed_lines").fetchall() == [
            *[(ERASED_LINE,)] * 3,
            (lines[3],),
        ]
        assert connection.execute("select row_text from staging.rejected_rows").fetchall() == [
            (ERASED_ROW,),
            (rejected[1][1],),
            (ERASED_ROW,),
        ]


def test_ids_are_found_in_lines_that_come_later(tmp_path):
    write_files(
        tmp_path,
        events__a_csv="user_id,product_id,event_type,event_ts\nu1,p,view,2024-01-01\n",
        products__a_csv="product_id,title\np,Lamp\n",
    )
    with duckdb.connect() as connection:
        load(connection, tmp_path)
        erase(connection, tmp_path, "cust/42", "a8+/Zw==", "Anna Ærø", "u9")
        late = ["cust/42 ,p,view", '"a8+/Zw==",p', "Anna Ærø,p", "p,u9", "cust/421,p"]
        write_files(
            tmp_path,
            events__b_csv="\n".join(["user_id,product_id,event_type,event_ts", *late]),
            events__c_jsonl='{"user_id":"cust/42",\n{"user_id":"u1",\n'
            '{"user_id":"u2","product_id":"p","event_type":"view","event_ts":"2024-01-01"}\n',
        )
        load(connection, tmp_path)
        kept = connection.execute("select line from raw.malformed_lines").fetchall()

    assert sorted(kept) == sorted([(ERASED_LINE,)] * 5 + [("cust/421,p",), ('{"user_id":"u1",',)])


def test_requests_are_no_files_of_an_adapter(tmp_path):
    (tmp_path / "adapter.sql").write_text(
        "create view events as select 'u1' as user_id, 'p' as product_id, 'view' as event_type,"
        " '2024-01-01' as event_ts; create view products as select 'p' as product_id, 'Lamp' as"
        " title"
    )
    with duckdb.connect() as connection:
        load(connection, tmp_path)
        write_files(tmp_path, erasures__a_csv="user_id\nu1\n")

        again = load(connection, tmp_path)

        assert {file.outcome for file in again.files} == {"unchanged"}
        assert connection.execute("select source_file from raw.adapter_files").fetchall() == [
            ("adapter.sql",)
        ]


def test_a_home_without_a_shop_is_named_and_no_redis_started(tmp_path):
    line = line_in(tmp_path, redis_url="embedded")
    write_files(line.settings.data, erasures__a_csv="user_id\nu1\n")

    said = why_it_failed(line.run(job_name="erase_users"))

    assert "1 users ask to be erased, but nothing has landed in" in said
    assert "Set RECMART_HOME" in said
    assert not (line.settings.home / "redis").exists()


def test_an_embedded_redis_that_is_not_asked_stops_an_erasure(tmp_path):
    (tmp_path / "redis").mkdir()

    with duckdb.connect() as connection, pytest.raises(PublishError, match="Set REDIS_URL to embe"):
        erase(connection, tmp_path, "u1")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a_csv", "customer\nu1\n", "erasures/a.csv has no column user_id"),
        ("a_csv", "user_id,why\n,asked\n", "erasures/a.csv, line 2: user_id is missing"),
        ("a_csv", b"user_id\n\xff\xfe\n", "erasures/a.csv cannot be read"),
        ("a_txt", "user_id\nu1\n", "erasures/a.txt is of a type that is not understood"),
    ],
)
def test_a_request_that_is_none_is_named(tmp_path, name, content, says):
    write_files(tmp_path, **{f"erasures__{name}": content})

    with pytest.raises(LandingError, match=says):
        read_requests(tmp_path)


def test_a_landing_folder_that_is_not_there_is_no_empty_one(tmp_path):
    with pytest.raises(LandingError, match=r"/typo does not exist\. Set RECMART_DATA"):
        read_requests(tmp_path / "typo")


def test_requests_are_read_once_each(tmp_path):
    assert read_requests(tmp_path) == []
    (tmp_path / "erasures").mkdir()
    (tmp_path / "erasures" / "a.csv").write_text("\ufeffUser_ID\nu2\nu1\n")
    (tmp_path / "erasures" / "b.csv").write_text('note,user_id\nx,u2\ny,"a, b"\n')
    (tmp_path / "erasures" / "2024").mkdir()
    (tmp_path / "erasures" / "2024" / "C.CSV").write_text("user_id\nu3\n")
    (tmp_path / "erasures" / "_done").write_text("")

    assert read_requests(tmp_path) == ["a, b", "u1", "u2", "u3"]
