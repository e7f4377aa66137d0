"""Erasing a user: nothing is left in any byte of tables, files and Redis, and it stays so."""

import json
import shutil

import dagster as dg
import pytest
from lines import line_in, places_with, redis_url, why_it_failed, write_small_shop

from exports.erasure import ERASED_LINE
from exports.files import verify_version_files
from exports.reader import Reader
from orchestration.landing.contract import LandingError
from orchestration.landing.erasure import read_requests

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


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("customer\nu1\n", "erasures/a.csv has no column user_id"),
        ("user_id,why\n,asked\n", "erasures/a.csv, line 2: user_id is missing"),
        (b"user_id\n\xff\xfe\n", "erasures/a.csv cannot be read"),
    ],
)
def test_a_request_that_is_none_is_named(tmp_path, content, says):
    (tmp_path / "erasures").mkdir()
    path = tmp_path / "erasures" / "a.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(LandingError, match=says):
        read_requests(tmp_path)


def test_requests_are_read_once_each(tmp_path):
    assert read_requests(tmp_path) == []
    (tmp_path / "erasures").mkdir()
    (tmp_path / "erasures" / "a.csv").write_text("\ufeffUser_ID\nu2\nu1\n")
    (tmp_path / "erasures" / "b.csv").write_text('note,user_id\nx,u2\ny,"a, b"\n')

    assert read_requests(tmp_path) == ["a, b", "u1", "u2"]
