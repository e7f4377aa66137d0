"""What ingest promises: every row of every landing file arrives once, as it was, or is named."""

import codecs
import csv
import gzip
import io
import json
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestration.landing import lines as landing_lines
from orchestration.landing.contract import ENTITIES, LandingError, LandingFile
from orchestration.landing.csv_files import read_csv_carefully, read_plain_csv
from orchestration.landing.ingest import check_event_types, ingest_folder
from orchestration.landing.raw_tables import NotPlainError, create_raw_tables
from orchestration.landing.registry import IngestSummary

RECEIVED_AT = datetime(2024, 3, 1, 6, 0)
HEADER = "user_id,product_id,event_type,event_ts"
EVENT = "u1,p1,view,2024-02-01 10:00:00"


@pytest.fixture
def warehouse() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A landing folder with one product and no event yet."""
    folder = tmp_path / "shop"
    write(folder / "products" / "products.csv", "product_id,title\np1,Red mug\n")
    (folder / "events").mkdir()
    return folder


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def load(warehouse: duckdb.DuckDBPyConnection, folder: Path) -> IngestSummary:
    return ingest_folder(warehouse, folder, received_at=RECEIVED_AT, progress=lambda _: None)


def outcomes(summary: IngestSummary) -> dict[str, str]:
    return {file.source_file: file.outcome for file in summary.files}


def events(warehouse: duckdb.DuckDBPyConnection, columns: str = "user_id, product_id") -> list[Any]:
    return warehouse.execute(
        f"select {columns} from raw.events order by source_file, source_row"
    ).fetchall()


def malformed(warehouse: duckdb.DuckDBPyConnection) -> list[Any]:
    return warehouse.execute(
        "select line_number, line, error from raw.malformed_lines order by all"
    ).fetchall()


# ---------------------------------------------------------------- formats

ROWS = [
    {"user_id": "001", "product_id": "p😀", "event_type": "view", "event_ts": "2024-02-01"},
    {"user_id": 'a"b', "product_id": "p,1", "event_type": "rating", "event_ts": "2024-02-02"},
]


def zipped(content: bytes) -> bytes:
    """As gzip, without the time: contents are names of tests, and those the same in all workers."""
    return gzip.compress(content, mtime=0)


def as_csv(rows: Sequence[dict[str, str]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_json_lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "first_row"),
    [
        ("events.csv", as_csv(ROWS), 2),
        ("EVENTS.CSV", as_csv(ROWS), 2),
        ("events.csv.gz", zipped(as_csv(ROWS)), 2),
        ("semicolons.csv", as_csv(ROWS, ";"), 2),
        ("tabs.csv", as_csv(ROWS, "\t"), 2),
        ("bars.csv", as_csv(ROWS, "|"), 2),
        ("bom.csv", codecs.BOM_UTF8 + as_csv(ROWS), 2),
        ("crlf.csv", as_csv(ROWS).replace(b"\n", b"\r\n"), 2),
        ("cr.csv", as_csv(ROWS).replace(b"\n", b"\r"), 2),
        ("open_end.csv", as_csv(ROWS).removesuffix(b"\n"), 2),
        ("events.jsonl", as_json_lines(ROWS), 1),
        ("events.jsonl.gz", zipped(as_json_lines(ROWS)), 1),
        ("events.ndjson", as_json_lines(ROWS), 1),
        ("bom.json", codecs.BOM_UTF8 + as_json_lines(ROWS), 1),
        ("events.parquet", as_parquet(ROWS), 1),
        ("it's [1] *,{a}?.csv", as_csv(ROWS), 2),
        ("it's [1] *,{a}?.parquet", as_parquet(ROWS), 1),
        ("day=2024-02-01/part-0.parquet", as_parquet(ROWS), 1),
        ("blank_lines_first.csv", b"\n\n" + as_csv(ROWS), 4),
        ("quoted_header.csv", as_csv(ROWS).replace(b"user_id", b'"user_id\n"'), 3),
    ],
)
def test_the_same_rows_arrive_from_every_format(warehouse, shop, name, content, first_row):
    write(shop / "events" / name, content)

    load(warehouse, shop)

    columns = "source_file, source_row, user_id, product_id, event_type, event_ts, attributes"
    assert events(warehouse, columns) == [
        (f"events/{name}", first_row + at, *row.values(), None) for at, row in enumerate(ROWS)
    ]
    assert malformed(warehouse) == []


def test_files_of_several_formats_are_loaded_together_in_name_order(warehouse, shop):
    write(shop / "events" / "2.parquet", as_parquet(ROWS[:1]))
    write(shop / "events" / "3.jsonl", as_json_lines(ROWS[:1]))
    write(shop / "events" / "1" / "late.csv", as_csv(ROWS))
    write(shop / "users" / "users.csv", "user_id\n001\n")

    summary = load(warehouse, shop)

    assert outcomes(summary) == {
        "events/1/late.csv": "loaded",
        "events/2.parquet": "loaded",
        "events/3.jsonl": "loaded",
        "products/products.csv": "loaded",
        "users/users.csv": "loaded",
    }
    assert list(outcomes(summary)) == sorted(outcomes(summary))
    assert (summary.n_rows, summary.n_malformed) == (2 + 1 + 1 + 1 + 1, 0)
    assert "| events/1/late.csv | loaded | 2 | 0 |" in summary.as_markdown()


def test_the_raw_tables_have_the_columns_of_the_contract_even_without_rows(warehouse, shop):
    write(shop / "events" / "events.csv", f"{HEADER}\n{EVENT}\n")

    load(warehouse, shop)

    described = {
        table: {row[0]: row[1] for row in warehouse.execute(f"describe raw.{table}").fetchall()}
        for table in ("events", "users", "landing_files", "malformed_lines")
    }
    assert list(described["events"])[:6] == [
        "source_file", "source_row", "user_id", "product_id", "event_type", "event_ts",
    ]  # fmt: skip
    assert set(described["events"].values()) == {"VARCHAR", "BIGINT"}
    assert list(described["users"]) == [
        "source_file", "source_row", "user_id", "country", "age_band", "gender", "attributes",
    ]  # fmt: skip
    assert described["landing_files"]["received_at"] == "TIMESTAMP"
    assert described["malformed_lines"]["line_number"] == "BIGINT"


def test_headers_are_trimmed_case_insensitive_and_may_use_the_aliases(warehouse, shop):
    write(shop / "events" / "a.csv", " User_ID ,PRODUCT_ID,interaction_type,TS\nu1,p1,view,2024\n")
    write(
        shop / "events" / "b.jsonl",
        '{"USER_ID": "u2", "product_id": "p1", " Interaction_Type ": "view", "ts": "2024"}\n'
        '{"user_id": "u3", "product_id": "p1", "event_type": "view", "event_ts": "2024"}\n',
    )
    write(
        shop / "events" / "c.parquet",
        as_parquet(
            [{"User_id": "u4", "product_ID": "p1", "interaction_type": "view", "ts": "2024"}]
        ),
    )

    load(warehouse, shop)

    assert events(warehouse, "user_id, product_id, event_type, event_ts, attributes") == [
        (user, "p1", "view", "2024", None) for user in ("u1", "u2", "u3", "u4")
    ]


def test_values_stay_the_text_they_were_and_only_nothing_becomes_null(warehouse, shop):
    write(
        shop / "events" / "a.csv",
        "user_id,product_id,event_type,event_ts,event_id,rating,price\n"
        'NULL,nan,"",,null,007, 1.50 \n',
    )

    load(warehouse, shop)

    columns = "user_id, product_id, event_type, event_ts, event_id, rating, price"
    assert events(warehouse, columns) == [("NULL", "nan", None, None, "null", "007", " 1.50 ")]


def test_typed_parquet_columns_become_text_in_utc(warehouse, shop):
    india = timezone(timedelta(hours=5, minutes=30))
    write(
        shop / "events" / "a.parquet",
        as_parquet(
            [
                {
                    "user_id": 7,
                    "product_id": b"p1",
                    "event_type": "view",
                    "event_ts": datetime(2024, 2, 1, 0, 0, tzinfo=india),
                    "rating": 4.5,
                    "quantity": None,
                    "session_id": [1, 2],
                }
            ]
        ),
    )

    load(warehouse, shop)

    columns = "user_id, product_id, event_ts, rating, quantity, session_id"
    assert events(warehouse, columns) == [
        ("7", "p1", "2024-01-31 18:30:00+00", "4.5", None, "[1,2]")
    ]


def test_typed_json_values_become_text(warehouse, shop):
    write(
        shop / "events" / "a.jsonl",
        '{"user_id": 12345678901234567890123, "product_id": "001", "event_type": null, '
        '"event_ts": 1706745600, "rating": 4.5, "quantity": true, "session_id": {"a": [1]}}\n',
    )

    load(warehouse, shop)

    columns = "user_id, product_id, event_type, event_ts, rating, quantity, session_id"
    assert events(warehouse, columns) == [
        ("12345678901234567890123", "001", None, "1706745600", "4.5", "true", '{"a":[1]}')
    ]


def test_further_columns_are_kept_as_one_json_object(warehouse, shop):
    write(
        shop / "events" / "a.csv",
        f'{HEADER},Device,"it\'s ""odd""",\n{EVENT},phone,,x\n{EVENT},,,\n',
    )
    write(
        shop / "events" / "b.jsonl",
        '{"user_id": "u1", "product_id": "p1", "event_type": "view", "event_ts": "2024", '
        '"n": null, "tags": ["a", {"b": null}]}\n'
        '{"user_id": "u1", "product_id": "p1", "event_type": "view", "event_ts": "2024"}\n',
    )
    row = dict(ROWS[0], tags=["a"], score=float("nan"), at=datetime(2024, 2, 1), note=None)
    write(shop / "events" / "c.parquet", as_parquet([row]))

    load(warehouse, shop)

    found = [value and json.loads(value) for (value,) in events(warehouse, "attributes")]
    assert found == [
        {"Device": "phone", 'it\'s "odd"': None, "column_7": "x"},
        None,
        {"n": None, "tags": ["a", {"b": None}]},
        None,
        {"tags": ["a"], "score": "nan", "at": "2024-02-01 00:00:00", "note": None},
    ]


def test_a_parquet_file_may_have_a_column_called_file_row_number(warehouse, shop):
    rows = [dict(row, file_row_number=7) for row in ROWS]
    write(shop / "events" / "a.parquet", as_parquet(rows))

    load(warehouse, shop)

    assert events(warehouse, "source_row, attributes") == [
        (1, '{"file_row_number":7}'),
        (2, '{"file_row_number":7}'),
    ]


def test_a_large_csv_read_on_several_threads_keeps_its_line_numbers(warehouse, shop):
    n_lines = 300_000
    lines = "".join(f"u{at},p1,view,2024-02-01 10:00:00\n" for at in range(2, n_lines + 2))
    write(shop / "events" / "a.csv", f"{HEADER}\n{lines}")
    warehouse.execute("set threads = 4; set preserve_insertion_order = false")

    load(warehouse, shop)

    found = warehouse.execute(
        "select count(*), count(*) filter (user_id = 'u' || source_row) from raw.events"
    ).fetchone()
    assert found == (n_lines, n_lines)


# ---------------------------------------------------------------- malformed lines


def test_a_line_with_too_few_or_too_many_values_is_malformed_and_the_others_load(warehouse, shop):
    write(
        shop / "events" / "a.csv", f"{HEADER}\n{EVENT}\nu2,p1\n{EVENT}\n{EVENT},5,6,7\n\n{EVENT}\n"
    )

    summary = load(warehouse, shop)

    assert events(warehouse, "source_row, user_id") == [(2, "u1"), (4, "u1"), (7, "u1")]
    assert malformed(warehouse) == [
        (3, "u2,p1", "Expected 4 columns, found 2."),
        (5, f"{EVENT},5,6,7", "Expected 4 columns, found 7."),
    ]
    assert (summary.n_rows, summary.n_malformed) == (3 + 1, 2)
    assert warehouse.execute(
        "select n_rows, n_malformed from raw.landing_files where entity = 'events'"
    ).fetchone() == (3, 2)


def test_a_line_that_is_not_utf8_is_malformed(warehouse, shop):
    content = f"{HEADER}\n{EVENT}\nMÜLLER,p1,view,2024\n日本,p1,view,2024\n"
    latin = content.encode().replace("Ü".encode(), b"\xdc")
    write(shop / "events" / "a.csv", latin)
    line = b'{"user_id": "%s", "product_id": "p", "event_type": "view", "event_ts": "2024"}\n'
    write(shop / "events" / "b.jsonl", line % b"\xdc" + line % "日本".encode())

    load(warehouse, shop)

    assert events(warehouse, "source_row, user_id") == [(2, "u1"), (4, "日本"), (2, "日本")]
    assert [(number, error) for number, _, error in malformed(warehouse)] == [
        (1, "The line is not UTF-8."),
        (3, "The line is not UTF-8."),
    ]
    assert malformed(warehouse)[1][1] == r"M\xdcLLER,p1,view,2024"


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ('u2,"p1,view,2024', "A quoted value goes on after its closing quote."),
        ('u2,"p"1,view,2024', "A quoted value goes on after its closing quote."),
        ('u2,"p" "1",view,2024', "A quoted value goes on after its closing quote."),
    ],
)
def test_a_broken_quote_costs_only_its_own_line(warehouse, shop, broken, error):
    good = 'u3,"p1","view",2024'
    write(shop / "events" / "a.csv", f"{HEADER}\n{EVENT}\n{broken}\n{EVENT}\n{EVENT}\n{good}\n")

    load(warehouse, shop)

    assert [row for (row,) in events(warehouse, "source_row")] == [2, 4, 5, 6]
    assert malformed(warehouse) == [(3, broken, error)]


def test_a_quote_that_is_never_closed_costs_only_its_own_line(warehouse, shop):
    lines = [f"u{at},p1,view,2024" for at in range(60_000)]
    lines[10] = 'u10,"p1,view,2024'
    write(shop / "events" / "a.csv", "\n".join([HEADER, *lines]))

    load(warehouse, shop)

    assert malformed(warehouse) == [(12, lines[10], "A quote is opened and never closed.")]
    assert warehouse.execute(
        "select count(*), count(*) filter (user_id = 'u' || (source_row - 2)) from raw.events"
    ).fetchone() == (59_999, 59_999)


def test_a_well_quoted_record_over_several_lines_is_one_row_or_one_malformed_line(warehouse, shop):
    write(
        shop / "products" / "products.csv",
        'product_id,title,description\np1,Mug,"red\nand ""round"""\n'
        'p2,"two\nlines"\np3,Jug,plain\n',
    )
    write(shop / "events" / "events.csv", f"{HEADER}\n{EVENT}\n")

    load(warehouse, shop)

    assert warehouse.execute(
        "select source_row, product_id, description from raw.products order by source_row"
    ).fetchall() == [(2, "p1", 'red\nand "round"'), (6, "p3", "plain")]
    assert malformed(warehouse) == [(4, 'p2,"two\nlines"', "Expected 3 columns, found 2.")]


def test_quotes_commas_emoji_newlines_and_nulls_inside_ids_survive(warehouse, shop):
    ids = [
        'a"b',
        "a,b",
        "a\nb",
        "a\r\nb",
        "a\rb",
        "😀",
        "001",
        " x ",
        "a\0b",
        "'",
        "\\",
        '5" pipe',
        "\u2028",
    ]
    rows = [
        {"user_id": name, "product_id": "p1", "event_type": "view", "event_ts": "2024"}
        for name in ids
    ]
    write(shop / "events" / "a.csv", as_csv(rows))
    write(shop / "events" / "b.jsonl", as_json_lines(rows))
    write(shop / "events" / "c.parquet", as_parquet(rows))
    bare = 'user_id,product_id,event_type,event_ts\n5" pipe,p1,view,2024\n'
    write(shop / "events" / "d.csv", bare)

    load(warehouse, shop)

    assert [user for (user,) in events(warehouse, "user_id")] == [*ids * 3, '5" pipe']
    assert malformed(warehouse) == []


def test_lines_may_end_in_lf_and_in_cr_lf_and_another_cr_is_part_of_a_value(warehouse, shop):
    odd = EVENT.replace("u1", "u\r2")
    write(shop / "events" / "a.csv", f"{HEADER}\r\n{EVENT}\n{odd}\n{EVENT}\r\n\r\n{EVENT}")

    load(warehouse, shop)

    assert events(warehouse, "source_row, user_id") == [
        (2, "u1"),
        (3, "u\r2"),
        (4, "u1"),
        (6, "u1"),
    ]


def test_a_very_long_line_is_loaded_and_a_monstrous_one_is_malformed(warehouse, shop, monkeypatch):
    # DuckDB's own limit is 2,000,000 bytes.
    monkeypatch.setattr(landing_lines, "_LONGEST_LINE", 3_500_000)
    long, monstrous = "x" * 3_000_000, "y" * 4_000_000
    write(shop / "events" / "a.csv", f"{HEADER},note\n{EVENT},{long}\n{EVENT},ok\n")
    write(shop / "events" / "b.csv", f"{HEADER},note\n{EVENT},{monstrous}\n{EVENT},ok\n")
    row = json.dumps(ROWS[0])
    write(shop / "events" / "c.jsonl", f'{row}\n{{"user_id": "{monstrous}"}}\n{row}\n')

    load(warehouse, shop)

    assert events(warehouse, "source_row, length(attributes)") == [
        (2, len('{"note":""}') + 3_000_000),
        (3, len('{"note":"ok"}')),
        (3, len('{"note":"ok"}')),
        (1, None),
        (3, None),
    ]
    assert [(number, len(line), error) for number, line, error in malformed(warehouse)] == [
        (2, 10_000, "The line is longer than 3,500,000 characters."),
        (2, 10_000, "The line is longer than 3,500,000 characters."),
    ]


def test_a_line_that_is_no_json_object_is_malformed(warehouse, shop):
    row = json.dumps(ROWS[0])
    write(shop / "events" / "a.jsonl", f'{row}\n\n{{"user_id": "u1",\n[1]\n \t\n{row} x\n{row}\n')

    load(warehouse, shop)

    assert [number for (number,) in events(warehouse, "source_row")] == [1, 7]
    assert malformed(warehouse) == [
        (3, '{"user_id": "u1",', "The line is not valid JSON."),
        (4, "[1]", "The line is JSON, but not an object."),
        (6, f"{row} x", "The line is not valid JSON."),
    ]


# Whatever could confuse a reader: quotes, delimiters, line ends, blanks, bytes of other alphabets.
VALUES = st.text(alphabet=list("ab\",;\n\r |\t'\\é😀\0"), max_size=6)
MANY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read_titles(
    warehouse: duckdb.DuckDBPyConnection, path: Path, text: str, *, is_quick: bool
) -> tuple[list[Any], list[Any]] | None:
    """Read a products file in one of the two ways: the rows and the malformed lines."""
    file = LandingFile(write(path, text), "products/a.csv", ENTITIES["products"], "csv")
    read = read_plain_csv if is_quick else read_csv_carefully
    create_raw_tables(warehouse)
    warehouse.execute("begin")
    try:
        read(warehouse, file)
        rows = warehouse.execute("select source_row, product_id, title from raw.products")
        return sorted(rows.fetchall()), malformed(warehouse)
    except NotPlainError:
        return None
    finally:
        warehouse.execute("rollback")


@MANY
@given(
    rows=st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=8),
    # Python's writer leaves a CR without quotes where lines end in LF and it can.
    dialect=st.sampled_from(
        [(csv.QUOTE_MINIMAL, "\r\n"), (csv.QUOTE_ALL, "\n"), (csv.QUOTE_ALL, "\r\n")]
    ),
    delimiter=st.sampled_from(",;\t|"),
    is_quick=st.booleans(),
)
def test_what_a_csv_writer_wrote_is_what_arrives(
    warehouse, tmp_path, rows, dialect, delimiter, is_quick
):
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=dialect[0], delimiter=delimiter, lineterminator=dialect[1])
    writer.writerow(["product_id", "title"])
    writer.writerows(rows)

    found = read_titles(warehouse, tmp_path / "a.csv", text.getvalue(), is_quick=is_quick)

    if found is not None:
        assert [row[1:] for row in found[0]] == [tuple(v or None for v in row) for row in rows]
        assert found[1] == []


@MANY
@given(st.text(alphabet=list('ab,,"\n '), max_size=40))
def test_every_line_of_any_text_is_in_a_row_or_malformed_or_blank(warehouse, tmp_path, text):
    path, text_with_header = tmp_path / "a.csv", f"product_id,title\n{text}\n"
    carefully = read_titles(warehouse, path, text_with_header, is_quick=False)
    quickly = read_titles(warehouse, path, text_with_header, is_quick=True)

    rows, refused = carefully
    lines = dict(enumerate(text.split("\n"), start=2))
    unseen = {number for number, line in lines.items() if line}
    for number, *values in rows:
        unseen -= set(range(number, number + 1 + "".join(v or "" for v in values).count("\n")))
    for number, line, _ in refused:
        unseen -= set(range(number, number + 1 + line.count("\n")))
    assert unseen == set()
    assert quickly in (None, carefully)


# ---------------------------------------------------------------- once and only once


def test_a_file_is_not_loaded_twice_and_a_changed_one_is_replaced(warehouse, shop):
    path = write(shop / "events" / "a.csv", f"{HEADER}\n{EVENT}\nu2,p1\n")

    first = load(warehouse, shop)
    second = load(warehouse, shop)
    write(path, f"{HEADER}\nu9,p1,view,2024\n")
    third = load(warehouse, shop)

    assert outcomes(first)["events/a.csv"] == "loaded"
    assert outcomes(second) == dict.fromkeys(outcomes(first), "unchanged")
    assert (second.n_rows, second.changed) == (0, ())
    assert outcomes(third) == {"events/a.csv": "replaced", "products/products.csv": "unchanged"}
    assert events(warehouse) == [("u9", "p1")]
    assert malformed(warehouse) == []


def test_a_file_that_is_taken_away_stays_loaded_and_is_named_by_every_run(warehouse, shop):
    write(shop / "events" / "a.csv", f"{HEADER}\n{EVENT}\n")
    load(warehouse, shop)
    before = events(warehouse)
    (shop / "events" / "a.csv").rename(shop / "events" / "b.csv.away")
    write(shop / "events" / "b.csv", f"{HEADER}\n{EVENT}\n{EVENT}\n")
    (shop / "events" / "b.csv.away").unlink()

    for _ in range(2):
        said = []
        ingest_folder(warehouse, shop, received_at=RECEIVED_AT, progress=said.append)
        assert "events/a.csv: no longer there; rows of it that stay: 1" in said

    assert set(events(warehouse)) >= set(before)


def test_the_registry_says_when_and_what_was_loaded(warehouse, shop):
    content = f"{HEADER}\n{EVENT}\n"
    write(shop / "events" / "a.csv", content)
    india = timezone(timedelta(hours=5, minutes=30))

    for received_at in (
        datetime(2024, 3, 1, 12, 0, tzinfo=india),
        datetime(2024, 3, 2, tzinfo=UTC),
    ):
        ingest_folder(warehouse, shop, received_at=received_at, progress=lambda _: None)

    row = warehouse.execute(
        "select * exclude (content_sha256) from raw.landing_files where entity = 'events'"
    ).fetchall()
    assert row == [
        ("events/a.csv", "events", len(content), 1, 0, datetime(2024, 3, 1, 6, 30), None)
    ]


def test_the_same_content_under_another_name_is_noted_and_not_loaded_again(warehouse, shop):
    write(shop / "events" / "a.csv", f"{HEADER}\n{EVENT}\n")
    write(shop / "events" / "b.csv", f"{HEADER}\n{EVENT}\n")

    first = load(warehouse, shop)
    second = load(warehouse, shop)

    assert outcomes(first)["events/b.csv"] == "same content"
    assert outcomes(second)["events/b.csv"] == "unchanged"
    assert events(warehouse, "source_file") == [("events/a.csv",)]
    assert warehouse.execute(
        "select n_rows, same_content_as from raw.landing_files where source_file = 'events/b.csv'"
    ).fetchone() == (0, "events/a.csv")


def test_content_stays_under_its_other_names_when_one_of_them_is_replaced(warehouse, shop):
    for name in "abc":
        write(shop / "events" / f"{name}.csv", f"{HEADER}\n{EVENT}\nu2,p1\n")
    load(warehouse, shop)

    write(shop / "events" / "a.csv", f"{HEADER}\nu9,p1,view,2024\n")
    summary = load(warehouse, shop)

    assert outcomes(summary)["events/a.csv"] == "replaced"
    assert events(warehouse, "source_file, user_id") == [
        ("events/a.csv", "u9"),
        ("events/b.csv", "u1"),
    ]
    assert warehouse.execute(
        "select source_file, n_rows, n_malformed, same_content_as from raw.landing_files "
        "where entity = 'events' order by source_file"
    ).fetchall() == [
        ("events/a.csv", 1, 0, None),
        ("events/b.csv", 1, 1, None),
        ("events/c.csv", 0, 0, "events/b.csv"),
    ]
    assert warehouse.execute("select source_file from raw.malformed_lines").fetchall() == [
        ("events/b.csv",)
    ]


def test_parquet_files_that_come_together_are_loaded_as_if_they_came_one_by_one(
    warehouse, shop, tmp_path
):
    names = ["a.parquet", "b [1]*.parquet", "day=1/c.parquet", "d.parquet", "e.parquet"]
    for name, rows in zip(names, (ROWS, ROWS[:1], ROWS[1:], ROWS, ROWS * 2), strict=True):
        # The last has a column more, the fourth the content of the first.
        more = {"mood": "good"} if name == "e.parquet" else {}
        write(shop / "events" / name, as_parquet([{**row, **more} for row in rows]))

    together = outcomes(load(warehouse, shop))

    assert {name for name, outcome in together.items() if outcome != "loaded"} == {
        "events/d.parquet"
    }
    everything = "select * from raw.events order by source_file, source_row"
    with duckdb.connect() as other:
        for name in names:
            alone = tmp_path / f"only {names.index(name)}"
            write(alone / "products" / "products.csv", "product_id,title\np1,Red mug\n")
            write(alone / "events" / name, (shop / "events" / name).read_bytes())
            load(other, alone)
        assert other.execute(everything).fetchall() == warehouse.execute(everything).fetchall()
    assert load(warehouse, shop).n_rows == 0


def test_of_parquet_files_that_come_together_the_damaged_one_is_named(warehouse, shop):
    whole = as_parquet(ROWS * 500)
    write(shop / "events" / "a.parquet", as_parquet(ROWS))
    # The footer is whole, so that the damage shows only when the rows are read.
    damaged = whole[:4] + b"\xff" * 200 + whole[204:]
    write(shop / "events" / "b.parquet", damaged)
    write(shop / "events" / "c.parquet", whole)

    with pytest.raises(LandingError, match=r"events/b\.parquet cannot be loaded") as error:
        load(warehouse, shop)

    # What is wrong with the file, and not what the database says after it.
    assert "ransaction" not in str(error.value)
    assert {row[0] for row in events(warehouse, "source_file")} == {
        "events/a.parquet",
        "events/c.parquet",
    }
    # Else the rows of the next file would be numbered out of order.
    assert warehouse.execute("select current_setting('preserve_insertion_order')").fetchone() == (
        True,
    )


def test_rows_of_an_archived_file_stay(warehouse, shop):
    path = write(shop / "events" / "a.csv", f"{HEADER}\n{EVENT}\n")
    load(warehouse, shop)

    path.unlink()
    summary = load(warehouse, shop)

    assert outcomes(summary) == {"products/products.csv": "unchanged"}
    assert events(warehouse) == [("u1", "p1")]


def test_a_file_that_became_unreadable_keeps_its_former_rows(warehouse, shop):
    path = write(shop / "events" / "a.csv", f"{HEADER}\n{EVENT}\n")
    load(warehouse, shop)

    write(path, "customer,product_id,event_type,event_ts\nu9,p1,view,2024\n")
    with pytest.raises(LandingError):
        load(warehouse, shop)

    assert events(warehouse) == [("u1", "p1")]
    assert warehouse.execute("select count(*) from raw.landing_files").fetchone() == (2,)


def test_the_settings_of_the_connection_are_as_before(warehouse, shop):
    write(shop / "events" / "a.csv", f"{HEADER}\n{EVENT}\n")
    warehouse.execute("set preserve_insertion_order = false; set TimeZone = 'Asia/Kolkata'")

    load(warehouse, shop)

    assert warehouse.execute(
        "select current_setting('preserve_insertion_order'), current_setting('TimeZone'), "
        "current_setting('file_search_path')"
    ).fetchone() == (False, "Asia/Kolkata", "")


# ---------------------------------------------------------------- what cannot be used

WHOLE_GZIP = zipped(as_csv(ROWS * 500))
WHOLE_PARQUET = as_parquet(ROWS * 500)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "", ["events/a.csv", "empty (0 bytes)", "Write it again"]),
        ("a.jsonl", "", ["events/a.jsonl", "empty (0 bytes)"]),
        ("a.parquet", "", ["events/a.parquet", "empty (0 bytes)"]),
        ("a.csv", "\n\n", ["events/a.csv", "no header line", "user_id"]),
        ("a.csv.gz", zipped(b""), ["events/a.csv.gz", "no header line", "user_id"]),
        ("a.xlsx", "x", ["events/a.xlsx", "type", ".csv", ".parquet", "convert"]),
        ("a.csv.gz", WHOLE_GZIP[:-20], ["events/a.csv.gz", "not a whole gzip file"]),
        ("a.csv.gz", "no gzip", ["events/a.csv.gz", "not a whole gzip file"]),
        ("a.jsonl.gz", WHOLE_GZIP[:-20], ["events/a.jsonl.gz", "not a whole gzip file"]),
        ("a.parquet", WHOLE_PARQUET[:-20], ["events/a.parquet", "Parquet", "write it again"]),
        ("a.parquet", "no parquet", ["events/a.parquet", "Parquet", "write it again"]),
        (
            "a.csv",
            "customer,product_id,event_type,event_ts\n",
            ["events/a.csv", "'user_id'", "Is 'customer' the user_id?", "adapter.sql"],
        ),
        (
            "a.csv",
            "userid;sku;action;timestamp\n",
            [
                "Is 'userid' the user_id?",
                "Is 'sku' the product_id?",
                "Is 'action' the event_type?",
                "Is 'timestamp' the event_ts?",
            ],
        ),
        (
            "a.jsonl",
            '{"user_id": 1, "item": 2, "event_type": 3, "event_ts": 4}',
            ["events/a.jsonl", "'product_id'", "Is 'item' the product_id?"],
        ),
        (
            "a.parquet",
            as_parquet([{"user_id": "1"}]),
            ["events/a.parquet", "'product_id', 'event_type', 'event_ts'", "adapter.sql"],
        ),
        ("a.csv", f"{HEADER},USER_ID\n", ["events/a.csv", "'user_id' and 'USER_ID'", "rename"]),
        ("a.csv", f"{HEADER},ts\n", ["'event_ts' and 'ts' both mean event_ts"]),
        ("a.csv", f"{HEADER},x,X \n", ["'x' and 'X ' both mean x"]),
        ("a.json", '[\n{"user_id": 1}\n]', ["events/a.json", "'product_id'"]),
        ("a.json", "[1, 2]\n", ["events/a.json", "not JSON lines", "one object a line"]),
        ("a.csv", f"{HEADER}\n".encode("utf-16"), ["events/a.csv", "UTF-8"]),
        ("a.csv", '"' + "x\n" * 200_000, ["events/a.csv", "header is longer"]),
        ("a.csv", '"user_id"s,product_id\n', ["events/a.csv", "quote in the wrong place"]),
        ("a.csv", f"{HEADER}\n", ["not one row of events"]),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_fails_with_its_name_and_the_remedy(
    warehouse, shop, name, content, said
):
    write(shop / "events" / name, content)

    with pytest.raises(LandingError) as error:
        load(warehouse, shop)

    for words in said:
        assert words in str(error.value)
    assert str(error.value).endswith(".")
    assert warehouse.execute("select count(*) from raw.events").fetchone() == (0,)
    assert warehouse.execute("select count(*) from raw.malformed_lines").fetchone() == (0,)


def test_each_file_that_cannot_be_used_has_a_line_and_all_others_are_loaded(warehouse, shop):
    write(shop / "events" / "1.csv.gz", WHOLE_GZIP[:-20])
    write(shop / "events" / "2.csv", as_csv(ROWS))
    write(shop / "events" / "3.xlsx", "x")
    write(shop / "events" / "\udcff.csv", as_csv(ROWS))
    write(shop / "users" / "users.csv", "customer\nu1\n")

    with pytest.raises(LandingError) as error:
        load(warehouse, shop)

    names = ["events/1.csv.gz", "events/3.xlsx", r"events/\xff.csv", "users/users.csv"]
    for line, name in zip(str(error.value).split("\n"), names, strict=True):
        assert line.startswith(name)
    assert {row[0] for row in events(warehouse, "source_file")} == {"events/2.csv"}
    assert warehouse.execute("select count(*) from raw.products").fetchone() == (1,)


def test_the_same_bytes_are_read_again_where_the_name_says_another_format(warehouse, shop):
    write(shop / "events" / "a.csv", f"{HEADER}\n{EVENT}\n")
    write(shop / "events" / "b.jsonl", f"{HEADER}\n{EVENT}\n")

    with pytest.raises(LandingError, match=r"events/b\.jsonl is not JSON lines"):
        load(warehouse, shop)


def test_a_parquet_column_whose_name_is_no_text_is_told(warehouse, shop):
    whole = as_parquet([{**row, "note": "x"} for row in ROWS])
    write(shop / "events" / "a.parquet", whole.replace(b"note", b"\x8bote"))

    with pytest.raises(LandingError, match=r"events/a\.parquet cannot be loaded as Parquet"):
        load(warehouse, shop)


def test_a_file_that_cannot_be_opened_is_named(warehouse, shop):
    (shop / "events" / "a.csv").symlink_to(shop / "gone.csv")

    with pytest.raises(LandingError, match=r"events/a.csv cannot be opened: No such file"):
        load(warehouse, shop)


def test_a_pipe_is_refused_and_not_waited_for(warehouse, shop):
    os.mkfifo(shop / "events" / "a.csv")

    with pytest.raises(LandingError, match=r"events/a\.csv is a pipe, socket or device"):
        load(warehouse, shop)


def test_a_parquet_file_with_two_columns_of_one_name_is_refused(warehouse, shop):
    names = [*HEADER.split(","), "user_id"]
    table = pa.Table.from_arrays([pa.array(["x"])] * 5, names=names)
    pq.write_table(table, shop / "events" / "a.parquet")

    with pytest.raises(LandingError, match="both mean user_id"):
        load(warehouse, shop)


def test_a_file_with_a_header_only_is_fine_beside_others(warehouse, shop):
    write(shop / "events" / "a.csv", f"{HEADER}\n")
    write(shop / "events" / "b.csv", f"{HEADER}\n{EVENT}\n")

    summary = load(warehouse, shop)

    assert outcomes(summary)["events/a.csv"] == "loaded"
    assert events(warehouse) == [("u1", "p1")]


def test_markers_of_other_programs_are_left_out(warehouse, shop):
    write(shop / "events" / "a.csv", f"{HEADER}\n{EVENT}\n")
    write(shop / "events" / "_SUCCESS", "")
    write(shop / "events" / ".a.csv.crc", "x")
    write(shop / "README.md", "about this shop")

    assert list(outcomes(load(warehouse, shop))) == ["events/a.csv", "products/products.csv"]


def test_a_missing_folder_says_what_is_expected(warehouse, tmp_path, shop):
    nowhere, empty = tmp_path / "nowhere", tmp_path / "empty"
    empty.mkdir()

    with pytest.raises(LandingError, match=r"nowhere does not exist. Set RECMART_DATA"):
        load(warehouse, nowhere)
    with pytest.raises(LandingError, match=r"no folder events/ in .* Expected are the folders"):
        load(warehouse, empty)
    with pytest.raises(LandingError, match=r"not one row of events in .* Expected are the folders"):
        load(warehouse, shop)


def test_a_catalogue_without_rows_is_refused(warehouse, shop):
    write(shop / "events" / "a.csv", f"{HEADER}\n{EVENT}\n")
    write(shop / "products" / "products.csv", "product_id,title\n")

    with pytest.raises(LandingError, match="not one row of products"):
        load(warehouse, shop)


# ---------------------------------------------------------------- adapters

ADAPTER = """
create view events as
select who as user_id, what as product_id, 'view' as event_type, day as event_ts, shop as branch
from 'log.csv';

create view products as select distinct what as product_id, upper(what) as title from 'log.csv';
"""


@pytest.fixture
def adapted(tmp_path: Path) -> Path:
    """A landing folder in another shape, with an adapter."""
    folder = tmp_path / "it's adapted"
    write(folder / "adapter.sql", ADAPTER)
    write(folder / "log.csv", "who,what,day,shop\nu2,mug,2024-02-02,1\nu1,jug,2024-02-01,2\n")
    return folder


def test_an_adapter_maps_files_of_another_shape(warehouse, adapted):
    write(adapted / "events" / "ignored.csv", "no header of ours\n")

    summary = load(warehouse, adapted)

    assert outcomes(summary) == {
        "adapter.sql#events": "loaded",
        "adapter.sql#products": "loaded",
    }
    columns = "source_file, source_row, user_id, product_id, event_ts, attributes"
    assert events(warehouse, columns) == [
        ("adapter.sql#events", 1, "u1", "jug", "2024-02-01", '{"branch":2}'),
        ("adapter.sql#events", 2, "u2", "mug", "2024-02-02", '{"branch":1}'),
    ]
    assert warehouse.execute("select count(*) from raw.users").fetchone() == (0,)
    assert warehouse.execute(
        "select sum(n_rows) from raw.landing_files where entity = 'events'"
    ).fetchone() == (2,)


def test_an_adapter_leaves_nothing_in_the_warehouse(warehouse, adapted):
    load(warehouse, adapted)

    databases = warehouse.execute("select database_name from duckdb_databases() where not internal")
    assert databases.fetchall() == [("memory",)]
    views = warehouse.execute("select count(*) from duckdb_views() where not internal")
    assert views.fetchone() == (0,)
    assert warehouse.execute("select current_schema()").fetchone() == ("main",)


def test_an_adapter_may_say_which_line_a_row_comes_from(warehouse, adapted):
    write(
        adapted / "adapter.sql",
        ADAPTER.replace("select who", "select 'log.csv' as source_file, 40 as Source_Row, who"),
    )

    load(warehouse, adapted)

    assert events(warehouse, "source_file, source_row") == [("log.csv", 40), ("log.csv", 40)]


def test_an_adapter_runs_again_only_when_it_or_its_files_changed(warehouse, adapted):
    load(warehouse, adapted)

    write(adapted / "README.md", "words")
    unchanged = load(warehouse, adapted)
    write(adapted / "log.csv", "who,what,day,shop\nu9,mug,2024-02-02,1\n")
    new_file = load(warehouse, adapted)
    write(adapted / "adapter.sql", ADAPTER.replace("'view'", "'click'"))
    new_sql = load(warehouse, adapted)

    assert set(outcomes(unchanged).values()) == {"unchanged"}
    assert set(outcomes(new_file).values()) == {"replaced"}
    assert set(outcomes(new_sql).values()) == {"replaced"}
    assert events(warehouse, "user_id, event_type") == [("u9", "click")]


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("create view events as selec 1;", ["adapter.sql fails", "Parser Error"]),
        (ADAPTER.replace("log.csv", "gone.csv"), ["adapter.sql fails", "gone.csv"]),
        (ADAPTER.replace("day as", "day::integer as"), ["adapter.sql fails", "Conversion Error"]),
        ("create view events as select 1 as x;", ["no view products"]),
        (
            ADAPTER.replace("who as user_id", "who as customer"),
            ["adapter.sql#events", "'user_id'", "Is 'customer' the user_id?"],
        ),
    ],
)
def test_an_adapter_that_fails_is_named_and_the_former_rows_stay(warehouse, adapted, sql, said):
    load(warehouse, adapted)
    write(adapted / "adapter.sql", sql)

    with pytest.raises(LandingError) as error:
        load(warehouse, adapted)

    for words in said:
        assert words in str(error.value)
    assert len(events(warehouse)) == 2
    databases = warehouse.execute("select database_name from duckdb_databases() where not internal")
    assert databases.fetchall() == [("memory",)]


def test_a_file_that_would_hide_the_adapters_is_refused(warehouse, adapted, tmp_path, monkeypatch):
    write(tmp_path / "elsewhere" / "log.csv", "who,what,day,shop\nintruder,mug,2024-02-02,1\n")
    monkeypatch.chdir(tmp_path / "elsewhere")

    with pytest.raises(LandingError, match=r"DuckDB would take .*elsewhere/log.csv"):
        load(warehouse, adapted)


def test_an_adapter_in_a_folder_with_a_comma_is_refused(warehouse, adapted):
    folder = adapted.rename(adapted.with_name("shop, old"))

    with pytest.raises(LandingError, match=r"shop, old has a comma in it.* Rename the folder"):
        load(warehouse, folder)


def test_an_adapter_may_follow_on_files_that_could_not_be_loaded(warehouse, shop):
    write(shop / "events" / "a.csv", "who,what\nu1,p1\n")
    with pytest.raises(LandingError, match=r"put an adapter.sql into the landing folder"):
        load(warehouse, shop)

    sql = "select who as user_id, what as product_id, 'view' as event_type, null as event_ts"
    write(
        shop / "adapter.sql",
        f"create view events as {sql} from 'events/a.csv';"
        "create view products as from 'products/products.csv';",
    )
    load(warehouse, shop)

    assert events(warehouse) == [("u1", "p1")]


def test_a_warehouse_holds_one_shop(warehouse, adapted, shop):
    write(shop / "events" / "a.csv", f"{HEADER}\n{EVENT}\n")
    load(warehouse, adapted)

    with pytest.raises(LandingError, match=r"another shop.* Set RECMART_HOME to a new folder"):
        load(warehouse, shop)


# ---------------------------------------------------------------- event weights

WEIGHTS = "event_type,weight,half_life_days,undoes\nview,1,,\npurchase,5,,\nreturn,0,30,purchase\n"


def loaded_events(warehouse: duckdb.DuckDBPyConnection, shop: Path, *types: str) -> None:
    lines = "".join(f'u1,p1,"{name}",2024\n' for name in types)
    write(shop / "events" / "a.csv", f"{HEADER}\n{lines}")
    load(warehouse, shop)


def test_event_types_with_a_weight_pass_whatever_their_case_and_blank_ones_too(
    warehouse, shop, tmp_path
):
    loaded_events(warehouse, shop, "view", " View ", "PURCHASE\t", "\r\nreturn", "", " \t")

    check_event_types(warehouse, write(tmp_path / "event_weights.csv", WEIGHTS))


def test_an_event_type_without_a_weight_is_named_with_its_first_row(warehouse, shop, tmp_path):
    loaded_events(warehouse, shop, "view", "Wishlist", "wishlist", "hover")

    with pytest.raises(LandingError) as error:
        check_event_types(warehouse, write(tmp_path / "event_weights.csv", WEIGHTS))

    assert "'hover' in 1 row, first in events/a.csv, row 5" in str(error.value)
    assert "'wishlist' in 2 rows, first in events/a.csv, row 3" in str(error.value)
    assert "Add a line" in str(error.value)


def test_a_second_header_line_is_called_that(warehouse, shop, tmp_path):
    loaded_events(warehouse, shop, "view", "event_type")

    with pytest.raises(LandingError, match=r"second header line: 'event_type' in 1 row, .*row 3"):
        check_event_types(warehouse, write(tmp_path / "event_weights.csv", WEIGHTS))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("click,-1,,", "line 5: the weight of 'click' is '-1'"),
        ("click,nan,,", "line 5: the weight of 'click' is 'nan'"),
        ("click,inf,,", "line 5: the weight of 'click' is 'inf'"),
        ("click,,,", "line 5: the weight of 'click' is ''"),
        ("click,a lot,,", "line 5: the weight of 'click' is 'a lot'"),
        ("view,2,,", "line 5: event_type 'view' stands there twice"),
        ("Click,2,,", "line 5: event_type is 'Click'; write it in lower case"),
        (",2,,", "line 5: event_type is ''"),
        ("click,2,0,", "line 5: half_life_days of 'click' is '0'"),
        ("click,2,soon,", "line 5: half_life_days of 'click' is 'soon'"),
        ("click,2,,hover", "line 5: 'click' undoes 'hover'"),
        ("click,2,,click", "line 5: 'click' undoes 'click'"),
        ("click,2", "line 5: it has to have four values"),
        ("click,2,,,", "line 5: it has to have four values"),
    ],
)
def test_a_wrong_weight_is_named_with_file_and_line(warehouse, shop, tmp_path, line, said):
    loaded_events(warehouse, shop, "view")

    with pytest.raises(LandingError) as error:
        check_event_types(warehouse, write(tmp_path / "event_weights.csv", f"{WEIGHTS}{line}\n"))

    assert f"event_weights.csv, {said}" in str(error.value)


@pytest.mark.parametrize("content", ["", "event_type,weight\n", WEIGHTS.splitlines()[0]])
def test_weights_without_the_columns_or_lines_are_refused(warehouse, shop, tmp_path, content):
    loaded_events(warehouse, shop, "view")

    with pytest.raises(LandingError, match=r"event_weights.csv has"):
        check_event_types(warehouse, write(tmp_path / "event_weights.csv", content))
    with pytest.raises(LandingError, match=r"gone.csv cannot be read"):
        check_event_types(warehouse, tmp_path / "gone.csv")
