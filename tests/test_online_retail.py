"""The bundled shop: every line arrives, and becomes what its README says."""

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from orchestration.landing.ingest import ingest_folder

FOLDER = Path(__file__).parents[1] / "data" / "online_retail"
SERVICE_NUMBERS = ["22016", "23444", "23574", "23702"]


@pytest.fixture(scope="module")
def shop() -> Iterator[duckdb.DuckDBPyConnection]:
    """A warehouse with the bundled shop in it, and the file itself as the view lines."""
    with duckdb.connect() as connection:
        ingest_folder(connection, FOLDER, received_at=datetime(2024, 3, 1), progress=lambda _: None)
        connection.execute(
            "create view lines as select *, file_row_number + 1 as source_row "
            f"from read_parquet('{FOLDER}/online_retail.parquet', file_row_number = true)"
        )
        yield connection


def one(shop: duckdb.DuckDBPyConnection, sql: str) -> Any:
    rows = shop.execute(sql).fetchall()
    assert len(rows) == 1
    return rows[0] if len(rows[0]) > 1 else rows[0][0]


def test_every_line_arrives_as_an_event_with_its_row(shop):
    assert one(shop, "select count(*), count(distinct source_row) from raw.events") == (
        541_909,
        541_909,
    )
    assert one(shop, "select sum(n_rows) from raw.landing_files where entity = 'events'") == 541_909
    different = """
        select count(*)
        from raw.events
        join lines using (source_row)
        where
            source_file <> 'online_retail.parquet'
            or order_id <> InvoiceNo
            or user_id is distinct from CustomerID::varchar
            or product_id <> upper(StockCode)
            or event_ts::timestamp <> InvoiceDate
            or price::double <> UnitPrice
            or abs(events.quantity::integer) <> abs(lines.Quantity)
            or event_id is not null
            or attributes is not null
    """
    assert one(shop, different) == 0


def test_cancelled_lines_are_returns_that_count_what_came_back(shop):
    counts = """
        select
            count(*),
            count(*) filter (order_id like 'C%'),
            count(*) filter (quantity::integer > 0)
        from raw.events
        where event_type = 'return'
    """
    assert one(shop, counts) == (9_288, 9_288, 9_288)
    types = shop.execute("select distinct event_type from raw.events order by all").fetchall()
    assert types == [("purchase",), ("return",)]


def test_the_dirt_that_staging_has_to_refuse_is_there_and_counted(shop):
    counts = """
        select
            count(*) filter (user_id is null) as guests,
            count(*) filter (price::double = 0) as free,
            count(*) filter (price::double < 0) as bad_debt,
            count(*) filter (quantity::integer <= 0) as corrections
        from raw.events
    """
    assert one(shop, counts) == (135_080, 2_515, 2, 1_336)


def test_lines_without_a_product_of_the_catalogue_are_services_or_were_never_sold(shop):
    counts = f"""
        select
            not regexp_full_match(product_id, '[0-9]{{5}}[A-Z]{{0,2}}') as is_service_code,
            product_id in {tuple(SERVICE_NUMBERS)} as is_service_number,
            count(*),
            count(user_id),
            count(distinct product_id)
        from raw.events
        anti join raw.products using (product_id)
        group by all
        order by all
    """
    assert shop.execute(counts).fetchall() == [
        (False, False, 144, 16, 135),
        (False, True, 103, 99, 4),
        (True, False, 2_995, 1_920, 32),
    ]


def test_the_usable_lines_are_as_many_as_the_readme_says(shop):
    counts = """
        select
            count(*),
            count(*) filter (event_type = 'return'),
            count(distinct user_id),
            count(distinct product_id)
        from raw.events
        semi join raw.products using (product_id)
        where user_id is not null and price::double > 0 and quantity::integer > 0
    """
    found = one(shop, counts)

    assert found == (404_761, 8_520, 4_362, 3_659)
    assert found[0] + 135_080 + 2_035 + 33 == 541_909
    readme = (FOLDER / "README.md").read_text()
    for number in (*found, 541_909 - found[0], found[0] - found[1]):
        assert f"{number:,}" in readme


def test_every_product_has_one_clean_title_from_a_real_sale(shop):
    titles = shop.execute("select product_id, title from raw.products").fetchall()

    assert len(titles) == len(dict(titles)) == 3_787
    assert all(re.fullmatch(r"\S+( \S+)*", title) for _, title in titles)
    sold_under_it = """
        select count(*)
        from raw.products
        join lines using (source_row)
        where
            upper(StockCode) = product_id
            and regexp_replace(trim(lines.Description), '\\s+', ' ', 'g') = title
            and lines.Quantity > 0
            and UnitPrice > 0
            and InvoiceNo not like 'C%'
    """
    assert one(shop, sold_under_it) == 3_787
    filled = "count(category), count(brand), count(price), count(added_at), count(attributes)"
    assert one(shop, f"select {filled} from raw.products") == (0, 0, 0, 0, 0)


def test_the_most_frequent_description_wins_and_a_stockroom_note_never(shop):
    titles = dict(shop.execute("select product_id, title from raw.products").fetchall())

    assert titles["85123A"] == "WHITE HANGING HEART T-LIGHT HOLDER"
    assert titles["22423"] == "REGENCY CAKESTAND 3 TIER"
    assert titles["22197"] == "POPCORN HOLDER"
    # A title in lower case would be such a note; these few shout less, but are what was sold.
    quiet = {title for title in titles.values() if not re.search("[A-Z]{3}", title)}
    assert quiet == {
        "Dr. Jam's Arouzer Stress Ball",
        "Dad's Cab Electronic Meter",
        "*Boombox Ipod Classic",
    }


def test_no_service_is_a_product(shop):
    services = [
        "POST",
        "DOT",
        "M",
        "C2",
        "D",
        "S",
        "B",
        "AMAZONFEE",
        "CRUK",
        "BANK CHARGES",
        "PADS",
    ]
    others = ["GIFT_0001_20", "DCGSSGIRL", "DCGS0003", *SERVICE_NUMBERS]

    found = shop.execute(
        "select product_id from raw.products where list_contains(?, product_id)",
        [services + others],
    )

    assert found.fetchall() == []


def test_every_customer_has_the_country_of_most_of_their_lines(shop):
    assert one(
        shop,
        "select count(*), count(distinct user_id), count(*) - count(country), "
        "count(*) filter (country = 'United Kingdom') from raw.users",
    ) == (4_372, 4_372, 4, 3_950)
    # 12370 has 159 lines from Cyprus and 8 from Austria; 12363 has none with a country.
    countries = dict(shop.execute("select user_id, country from raw.users").fetchall())
    assert countries["12370"] == "Cyprus"
    assert countries["12363"] is None


def test_a_second_load_changes_nothing(shop):
    before = one(shop, "select bit_xor(hash(e)) from raw.events as e")

    again = ingest_folder(shop, FOLDER, received_at=datetime(2024, 3, 2), progress=lambda _: None)

    assert {file.outcome for file in again.files} == {"unchanged"}
    assert one(shop, "select bit_xor(hash(e)) from raw.events as e") == before
