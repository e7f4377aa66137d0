"""With a key, no customer's own id is in any byte of tables, files, logs and Redis."""

import hashlib
import hmac
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import dagster as dg
import duckdb
import pytest
from conftest import HEADER, OWN
from hypothesis import given
from hypothesis import strategies as st
from lines import (
    Line,
    copy_of,
    line_in,
    places_with,
    redis_url,
    why_it_failed,
    write_files,
)

from exports.errors import PseudonymError, ReaderError
from exports.pseudonyms import KEY, KEY_FILE, key_from, pseudonym, pseudonym_sql
from exports.reader import Reader
from orchestration.landing.contract import LandingError
from orchestration.landing.ingest import ingest_folder

SECRET = "correct-horse-battery-staple-0123456789"
OTHER = "another-horse-battery-staple-0123456789"


@pytest.fixture(scope="module")
def line(small_line, tmp_path_factory):
    """The whole line with a key on the files of the small shop, its history in files too."""
    folder = tmp_path_factory.mktemp("pseudonyms")
    shutil.copytree(small_line.settings.data, folder / "shop")
    named = replace(line_in(folder).settings, redis_url="embedded", pseudonym_key=SECRET)
    line = Line(named)
    (named.home / "dagster").mkdir(parents=True)
    result = line.run()
    assert result.success, why_it_failed(result)
    yield line
    line.stop()


def test_no_id_of_a_customer_and_no_key_is_in_any_byte(line, small_line):
    clear = small_line
    users = [user for (user,) in clear.query("select distinct user_id from raw.events")]
    assert OWN in users and len(users) > 40

    assert places_with(line, *users, SECRET) == []

    # The search would find them, and there was enough to look at.
    assert "warehouse.duckdb" in [
        str(path.relative_to(clear.settings.home))
        for path in clear.settings.home.rglob("*")
        if path.is_file() and OWN.encode() in path.read_bytes()
    ]
    looked_at = {path.suffix for path in line.settings.home.rglob("*") if path.is_file()}
    assert {".duckdb", ".parquet", ".html", ".json", ".db"} <= looked_at
    named = places_with(line, pseudonym(OWN, SECRET))
    assert {"warehouse.duckdb", "Redis"} <= set(named)
    compiled = list((line.settings.home / "dbt").glob("compiled/**/*.sql"))
    assert compiled
    assert not any(SECRET.encode() in path.read_bytes() for path in compiled)


def test_lists_are_those_of_the_clear_ids_but_for_the_names(line, small_line):
    clear = small_line
    # Users come in another order, so sums end in other last digits, and ties break otherwise.
    rows = "select user_id, rank, round(score, 6), source from ml.recommendations order by all"

    renamed = sorted((pseudonym(user, SECRET), *rest) for user, *rest in clear.query(rows))

    assert [row[:2] for row in renamed] == [row[:2] for row in line.query(rows)]
    assert [row[3] for row in renamed] == [row[3] for row in line.query(rows)]
    assert [row[2] for row in renamed] == pytest.approx(
        [row[2] for row in line.query(rows)], abs=1e-5
    )
    counts = (
        "select reason, count(*) from staging.rejected_rows group by reason order by reason",
        "select country, count(*) from marts.users group by country order by all",
        "select product_id, count(*), sum(weight)::decimal(12, 4) from marts.signals"
        " group by product_id order by all",
    )
    for sql in counts:
        assert line.query(sql) == clear.query(sql)


def test_what_is_refused_keeps_its_place_and_its_reason(line, small_line):
    refused = line.query(
        "select source_file, source_row, reason, row_text from staging.rejected_rows"
        " where source_file like '%/own.%' order by all"
    )

    assert [row[:3] for row in refused] == [
        ("events/own.csv", 5, "product is not in the catalogue"),
        ("events/own.csv", 6, "event_ts is not a date or time"),
        ("events/own.csv", 7, "the line cannot be read"),
        ("events/own.jsonl", 1, "the line cannot be read"),
    ]
    assert pseudonym(OWN, SECRET) in refused[0][3]
    assert refused[2][3] == f"(not kept: {pseudonym(f'{OWN},{small_line.product}', SECRET)})"


def test_readers_ask_with_the_customers_own_id_and_the_key(line):
    snapshot = line.settings.published / "current.duckdb"
    places = [{"redis_url": redis_url(line)}, {"snapshot": snapshot}]
    expected = line.query(
        "select product_id from serving.current_recommendations"
        f" where user_id = '{pseudonym(OWN, SECRET)}' order by rank limit 5"
    )
    for place in places:
        with Reader(**place, pseudonym_key=f"{SECRET}\n") as reader:
            found = reader.recommend(OWN, 5)
            assert [(each.product_id,) for each in found] == expected
            assert {each.source for each in found} - {"trending", "popular"}
            (shelf, *_) = reader.page(OWN, ["for_you"], 5)
            assert [each.product_id for each in shelf.products] == [p for (p,) in expected]
            assert reader.because(OWN)
        for wrong, says in ((OTHER, "of another key"), (None, "holds pseudonyms in place of ids")):
            with Reader(**place, pseudonym_key=wrong) as reader:
                for _ in range(2):
                    with pytest.raises(ReaderError, match=says):
                        reader.recommend(OWN, 5)
                assert reader.popular(k=3)
    both = {"redis_url": redis_url(line), "snapshot": snapshot}
    with Reader(**both) as reader, pytest.raises(ReaderError, match=r"Redis at .* And: The snap"):
        reader.buy_again(OWN)


def test_analysts_ask_in_sql(line):
    path = (line.settings.published / "current.duckdb").resolve()
    with duckdb.connect(str(path), read_only=True) as snapshot:
        ((n,),) = snapshot.execute(
            "select count(*) from serving.recommendations"
            " where user_id = serving.pseudonym($user_id, $key)",
            {"user_id": OWN, "key": SECRET},
        ).fetchall()
    assert n == 20


def test_the_command_takes_the_key_from_the_environment(line):
    def ask(**environment):
        return subprocess.run(
            [sys.executable, "-m", "exports.reader", OWN, "--k", "3"],
            cwd=Path(__file__).resolve().parents[1],
            env={**os.environ, "RECMART_HOME": str(line.settings.home), **environment},
            capture_output=True,
            text=True,
        )

    assert len(ask(**{KEY: SECRET}).stdout.splitlines()) == 3
    without = ask()
    assert without.returncode == 1 and f"set {KEY}" in without.stderr
    assert "has 3 characters" in ask(**{KEY: "abc"}).stderr


def load(line, key):
    with line.settings.warehouse.connect() as connection:
        return ingest_folder(
            connection,
            line.settings.data,
            received_at=datetime(2024, 3, 2),
            progress=lambda _: None,
            pseudonym_key=key,
        )


def test_a_home_keeps_to_its_key(line, small_line, tmp_path):
    clear = copy_of(small_line, tmp_path)

    with pytest.raises(LandingError, match="holds pseudonyms of another key"):
        load(line, OTHER)
    with pytest.raises(LandingError, match=f"holds pseudonyms in place of ids: set {KEY}"):
        load(line, None)
    with pytest.raises(LandingError, match=r"was filled with clear ids, .* new folder"):
        load(clear, SECRET)
    assert load(line, SECRET).changed == () == load(clear, None).changed


def holds(path, text):
    return path.is_file() and text.lower().encode() in path.read_bytes().lower()


def test_complaints_about_files_quote_nothing_of_them(tmp_path):
    line = line_in(tmp_path)
    line = Line(replace(line.settings, pseudonym_key=SECRET))
    catalogue = "product_id,title\np1,lamp\n"
    (line.settings.home / "dagster").mkdir(parents=True)
    raw = dg.AssetSelection.groups("raw")
    for name, content, says in [
        ("headless", f"{OWN},p1,view,2024-01-01\n", "the required columns"),
        ("twice", f"{OWN},{OWN},view,2024-01-01\n", "two columns have the same name"),
        ("quote", f'"{OWN}"x,p1\n', "a quote in the wrong place"),
        ("type", f"user_id,product_id,event_type,event_ts\np1,p1,{OWN},2024-01-01\n", "no weight"),
    ]:
        write_files(
            line.settings.data, products__a_csv=catalogue, **{f"events__{name}_csv": content}
        )
        said = why_it_failed(line.run(raw))
        assert says in said and OWN.lower() not in said.lower() and "p1" not in said
        (line.settings.data / "events" / f"{name}.csv").unlink()
    adapted = Line(replace(line_in(tmp_path / "adapted").settings, pseudonym_key=SECRET))
    adapted.settings.data.mkdir(parents=True)
    (adapted.settings.data / "adapter.sql").write_text(
        f"create table events as select '{OWN}'::int"
    )
    said = why_it_failed(adapted.run(raw))
    assert "adapter.sql fails (ConversionException). Correct the SQL" in said

    # An id in a column of another meaning is taken for what the column says, and kept as that.
    holding = {path.name for path in tmp_path.rglob("home/**/*") if holds(path, OWN)}
    assert holding == {"warehouse.duckdb"}


def test_an_erasure_names_the_customer_by_the_own_id(line):
    name = pseudonym(OWN, SECRET)
    erasures = line.settings.data / "erasures"
    erasures.mkdir()
    (erasures / "a.csv").write_text(f"user_id\n{OWN}\n")
    without = Line(replace(line.settings, pseudonym_key=None))
    assert "holds pseudonyms" in why_it_failed(without.run(job_name="erase_users"))

    result = line.run(job_name="erase_users")

    assert result.success, why_it_failed(result)
    assert places_with(line, OWN, name) == []
    write_files(line.settings.data, events__late_csv=f"{HEADER}{OWN},p,view,2024-02-28,,,,,\n")
    load(line, SECRET)
    late = "select user_id, attributes from raw.events where source_file = 'events/late.csv'"
    assert line.query(late) == [(None, '{"erased": true}')]


@pytest.fixture(scope="module")
def connection():
    with duckdb.connect() as connection:
        yield connection


@given(text=st.text(), key=st.text(min_size=1))
def test_sql_and_python_and_the_rfc_agree(connection, text, key):
    connection.execute("set variable pseudonym_key = (select $key::varchar)", {"key": key})
    ((found,),) = connection.execute(
        f"select {pseudonym_sql('$text::varchar')}", {"text": text}
    ).fetchall()

    derived = hashlib.sha256(key.encode()).digest()
    assert found == pseudonym(text, key)
    assert found == hmac.new(derived, text.encode(), "sha256").hexdigest()[:32]


def test_the_key_comes_from_the_environment_or_a_file(tmp_path):
    path = tmp_path / "key"
    path.write_text(f"{SECRET}\n")
    assert key_from({}) is None and key_from({KEY: ""}) is None
    assert key_from({KEY: SECRET}) == key_from({KEY_FILE: str(path)}) == SECRET
    for wrong, says in [
        ({KEY: "short"}, "has 5 characters; expected are at least 32"),
        ({KEY: SECRET, KEY_FILE: str(path)}, "are both set"),
        ({KEY_FILE: str(tmp_path / "none")}, "cannot be read"),
    ]:
        with pytest.raises(PseudonymError, match=says) as error:
            key_from(wrong)
        assert "short" not in str(error.value).replace("too short", "")


def test_settings_do_not_show_the_key(tmp_path):
    settings = replace(line_in(tmp_path).settings, pseudonym_key=SECRET)

    assert SECRET not in repr(settings)
