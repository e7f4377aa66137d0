"""The generated shops behave like shops, and their dirt is counted to the row."""

import hashlib
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pytest

from orchestration.landing.contract import list_landing_files, match_columns
from orchestration.landing.synthetic_shop import (
    DIRT_KINDS,
    EVENT_TYPES,
    ShopSettingsError,
    ShopSummary,
    write_shop,
)
from orchestration.landing.synthetic_shop.__main__ import main
from orchestration.landing.synthetic_shop.dirt import parse_dirt

SETTINGS: dict[str, Any] = {
    "n_users": 600,
    "n_products": 300,
    "n_events": 30_000,
    "n_days": 120,
    "start": date(2024, 1, 1),
    "seed": 3,
    "file_format": "parquet",
    "dirt": {},
}
FUNNEL = (
    ("impression", "view"),
    ("view", "click"),
    ("click", "add_to_cart"),
    ("add_to_cart", "purchase"),
    ("add_to_cart", "remove_from_cart"),
)


@dataclass(frozen=True)
class Shop:
    """A shop on disk with a connection that has its views events, products and users."""

    path: Path
    summary: ShopSummary
    connection: duckdb.DuckDBPyConnection

    def value(self, query: str, *parameters: object) -> Any:
        row = self.connection.execute(query, parameters).fetchone()
        assert row is not None
        return row[0]


def shop_at(path: Path, **changes: Any) -> Shop:
    settings = {**SETTINGS, **changes}
    summary = write_shop(path, **settings)
    connection = duckdb.connect()
    readers = {
        "parquet": "read_parquet('{}', filename=true)",
        "csv": "read_csv('{}', all_varchar=true, filename=true, store_rejects=true, header=true,"
        " delim=',', quote='\"', escape='\"', rejects_limit=0)",
    }
    for entity in ("events", "products", "users"):
        source = readers[settings["file_format"]].format(path / entity / "*")
        connection.execute(f"create table {entity} as select * from {source}")
    return Shop(path, summary, connection)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return shop_at(tmp_path_factory.mktemp("clean"))


@pytest.fixture(scope="module")
def dirty(tmp_path_factory):
    # A different share for each kind, or one kind could be taken for another.
    shares = {kind: 0.004 + 0.002 * place for place, kind in enumerate(DIRT_KINDS)}
    return shop_at(tmp_path_factory.mktemp("dirty"), file_format="csv", dirt=shares)


def digests(path: Path) -> dict[str, str]:
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


# The shop


def test_equal_arguments_give_byte_identical_files_and_another_seed_others(tmp_path):
    settings = {
        **SETTINGS,
        "n_events": 10_000,
        "file_format": "mixed",
        "dirt": parse_dirt("0.01", file_format="mixed"),
    }

    first = write_shop(tmp_path / "first", **settings)
    second = write_shop(tmp_path / "second", **settings)
    write_shop(tmp_path / "other", **{**settings, "seed": 4})

    assert first == second
    assert digests(tmp_path / "first") == digests(tmp_path / "second")
    assert not set(digests(tmp_path / "first").values()) & set(digests(tmp_path / "other").values())


def test_every_step_of_the_funnel_follows_the_one_before_in_the_same_session(clean):
    for earlier, later in FUNNEL:
        n_orphans = clean.value(
            """
            select count(*) from events as later
            where event_type = ? and not exists (
                from events as earlier
                where earlier.event_type = ? and earlier.event_ts < later.event_ts
                and earlier.user_id = later.user_id and earlier.product_id = later.product_id
                and earlier.session_id = later.session_id
            )
            """,
            later,
            earlier,
        )

        assert n_orphans == 0, f"{later} without {earlier}"
        types = clean.summary.rows_by_event_type
        assert types[earlier] > types[later] > 0


def test_ratings_and_returns_come_days_after_a_purchase_and_returns_name_its_order(clean):
    n_without = clean.value(
        """
        select count(*) from events as later
        where event_type in ('rating', 'return') and not exists (
            from events as purchase
            where purchase.event_type = 'purchase'
            and purchase.event_ts + interval 1 day <= later.event_ts
            and purchase.user_id = later.user_id and purchase.product_id = later.product_id
            and (
                later.event_type = 'rating' or (
                    purchase.order_id = later.order_id and purchase.quantity = later.quantity
                )
            )
        )
        """
    )

    assert n_without == 0
    assert clean.summary.rows_by_event_type["rating"] > 0
    assert clean.summary.rows_by_event_type["return"] > 0


def test_no_event_comes_before_its_user_and_its_product_have_arrived(clean):
    first_days = clean.value(
        """
        select count(*) from events
        join products using (product_id) join users using (user_id)
        where event_ts < products.added_at or event_ts < users.added_at
        """
    )

    assert first_days == 0
    for entity in ("users", "products"):
        assert clean.value(f"select count(*) from {entity} where added_at > '2024-01-01'") > 0


def test_all_events_lie_within_the_history_and_each_file_holds_its_month_in_order(clean):
    n_outside = clean.value(
        """
        select count(*) from events
        where event_ts not between '2024-01-01' and '2024-04-29 23:59:59'
        or not contains(filename, strftime(event_ts, 'events_%Y-%m.parquet'))
        """
    )
    n_backwards = clean.value(
        """
        select count(*) from (
            select event_ts < lag(event_ts) over (partition by filename order by file_row_number)
                as is_backwards
            from read_parquet(?, filename=true, file_row_number=true)
        ) where is_backwards
        """,
        str(clean.path / "events" / "*"),
    )

    assert n_outside == 0
    assert n_backwards == 0


def test_a_tenth_of_the_products_draws_a_third_of_the_views_and_users_differ_as_much(clean):
    for entity in ("product_id", "user_id"):
        top_share = clean.value(
            f"""
            select sum(n) filter (place <= 0.1) / sum(n) from (
                select count(*) as n, percent_rank() over (order by count(*) desc) as place
                from events where event_type = 'view' group by {entity}
            )
            """
        )

        assert top_share > 1 / 3


def test_users_buy_again_in_their_categories_far_more_often_than_chance_would(clean):
    """Two purchases of one user fall into the same category, compared with those of two users."""
    by_user, by_chance = clean.connection.execute(
        """
        with purchases as (
            select distinct user_id, product_id, category
            from events join products using (product_id) where event_type = 'purchase'
        ),
        pairs as (
            select a.user_id = b.user_id as is_same_user, a.category = b.category as is_same
            from purchases as a join purchases as b on a.product_id < b.product_id
        )
        select avg(is_same::int) filter (is_same_user), avg(is_same::int) filter (not is_same_user)
        from pairs
        """
    ).fetchone()

    assert by_user > 2 * by_chance


def test_the_words_of_titles_tell_what_a_product_is_about(clean):
    """Two products with the same kind of thing in their titles are of the same category."""
    n_categories = clean.value(
        """
        select max(n) from (
            select count(distinct category) as n from products
            group by string_split(title, ' ')[3]
        )
        """
    )

    assert n_categories == 1


def test_ratings_lie_between_1_and_5_and_only_ratings_have_one(clean):
    lowest, highest, n_elsewhere, n_missing = clean.connection.execute(
        """
        select min(rating), max(rating),
            count(rating) filter (event_type <> 'rating'),
            count(*) filter (event_type = 'rating' and rating is null)
        from events
        """
    ).fetchone()

    assert (lowest, highest, n_elsewhere, n_missing) == (1, 5, 0, 0)


def test_a_clean_shop_has_no_two_events_that_a_pipeline_could_take_for_duplicates(clean):
    n_near = clean.value(
        """
        select count(*) from (
            select event_ts - lag(event_ts) over (
                partition by user_id, product_id, event_type, session_id, order_id order by event_ts
            ) as pause from events
        ) where pause <= interval 2 second
        """
    )

    assert n_near == 0
    assert clean.value("select count(*) - count(distinct event_id) from events") == 0


def test_mixed_files_meet_the_landing_contract_and_hold_every_row(tmp_path):
    summary = write_shop(tmp_path, **{**SETTINGS, "file_format": "mixed"})

    files = list_landing_files(tmp_path)
    n_rows = 0
    for file in files:
        reader = "read_json" if file.format == "json lines" else f"read_{file.format}"
        relation = duckdb.sql(f"from {reader}('{file.path}')")
        match_columns(file.entity, relation.columns, source_file=file.source_file)
        n_rows += len(relation) if file.entity.name == "events" else 0
    suffixes = {file.source_file.partition(".")[2] for file in files}
    assert suffixes == {"parquet", "csv", "csv.gz", "jsonl"}
    assert n_rows == summary.n_events == sum(summary.rows_by_event_type.values())


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_events": 1},
        {"n_users": 1, "n_products": 1, "n_events": 500, "n_days": 1},
        {"n_users": 3, "n_products": 5, "n_events": 2_000, "n_days": 2},
        {"n_users": 20, "n_products": 40, "n_events": 999, "n_days": 1_000},
    ],
)
def test_tiny_shops_have_the_events_that_were_asked_for(tmp_path, sizes):
    summary = write_shop(tmp_path, **{**SETTINGS, **sizes})

    assert summary.n_events == pytest.approx(sizes["n_events"], rel=0.02)
    assert summary.rows_by_event_type.keys() <= set(EVENT_TYPES)


def test_a_month_with_too_many_rows_becomes_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestration.landing.synthetic_shop.sessions.MAX_ROWS_PER_CHUNK", 4_000)

    shop = shop_at(tmp_path, n_days=31)

    n_files = sum(file.startswith("events/") for file in shop.summary.rows_by_file)
    assert n_files == 30_000 / 4_000 + 0.5
    assert shop.value("select count(*) from events") == shop.summary.n_events == 30_000
    assert max(shop.summary.rows_by_file.values()) < 1.2 * 4_000


# Its dirt


def test_the_counts_of_files_and_types_are_those_of_the_files(dirty):
    n_by_type = dict(
        dirty.connection.execute(
            "select event_type, count(*) from events group by event_type"
        ).fetchall()
    )
    n_lines = {
        f"events/{file.name}": len(file.read_text().splitlines()) - 1
        for file in (dirty.path / "events").iterdir()
    }

    assert n_by_type == dirty.summary.rows_by_event_type
    assert n_lines == {
        file: n for file, n in dirty.summary.rows_by_file.items() if file.startswith("events/")
    }
    assert dirty.summary.n_events == pytest.approx(SETTINGS["n_events"], rel=0.02)


DIRT_IN_FILES = {
    "exact_duplicates": "select count(*) - count(distinct (event_id, event_ts)) from events",
    "near_duplicates": """
        select count(*) from (
            select event_id, event_ts::timestamp - lag(event_ts::timestamp) over (
                partition by user_id, product_id, event_type, session_id, order_id
                order by event_ts
            ) as pause
            from (
                select distinct * exclude (filename) from events
                where try_cast(event_ts as timestamp) is not null and event_ts < '2090'
            )
        ) where pause = interval 1 second
    """,
    "bots": """
        select count(*) from events
        where session_id in (
            select session_id from events where event_type = 'view' group by session_id
            having count(distinct event_id) > 100
        )
    """,
    "bad_types": """
        select count(*) from events
        where try_cast(event_ts as timestamp) is null
        or (price is not null and try_cast(price as double) is null)
        or (quantity is not null and try_cast(quantity as double) is null)
        or (rating is not null and try_cast(rating as double) is null)
    """,
    "unknown_products": """
        select count(*) from events anti join products using (product_id)
        where trim(product_id) <> ''
    """,
    "blank_ids": """
        select count(*) from events
        where trim(coalesce(user_id, '')) = '' or trim(coalesce(product_id, '')) = ''
    """,
    "future_dates": "select count(*) from events where event_ts between '2090' and '2100'",
    "late_files": """
        select count(*) from events where filename like '%\\_late.csv' escape '\\'
    """,
    "malformed_lines": "select count(distinct (file_id, line)) from reject_errors",
    "damaged_titles": """
        select count(*) from products
        where title = upper(title) or title = lower(title) or title <> trim(title)
        or contains(title, '  ')
    """,
    "unknown_event_types": """
        select count(*) from events where not list_contains($types, event_type)
    """,
}


@pytest.mark.parametrize("kind", DIRT_KINDS)
def test_each_kind_of_dirt_is_in_the_files_as_often_as_it_is_counted(dirty, kind):
    query = DIRT_IN_FILES[kind]
    parameters = {"types": list(EVENT_TYPES)} if "$types" in query else None
    row = dirty.connection.execute(query, parameters).fetchone()

    share = 0.004 + 0.002 * list(DIRT_KINDS).index(kind)
    n_whole = SETTINGS["n_products"] if kind == "damaged_titles" else SETTINGS["n_events"]
    assert row == (dirty.summary.dirt[kind],)
    assert dirty.summary.dirt[kind] == pytest.approx(share * n_whole, rel=0.02, abs=1)


def test_late_rows_are_older_than_the_file_before_theirs_in_name_order(dirty):
    n_in_time = dirty.value(
        """
        select count(*) from events
        where contains(filename, '_late')
        and contains(filename, 'events_' || left(event_ts, 7))
        """
    )

    assert n_in_time == 0
    assert dirty.summary.rows_by_file["events/events_2024-05_late.csv"] > 0


def test_bots_are_few_and_view_thousands_of_products_a_day(tmp_path):
    shop = shop_at(tmp_path, dirt={"bots": 0.3})

    views = shop.connection.execute(
        """
        select user_id, count(*) from events
        where session_id in (
            select session_id from events group by session_id having count(*) > 2000
        )
        group by user_id, event_ts::date
        """
    ).fetchall()
    assert {user for user, _ in views} == set(shop.summary.bot_user_ids)
    assert [n for _, n in views] == [3_000, 3_000, 3_000]
    busiest = "select count(*) from events group by user_id, event_ts::date order by 1 desc"
    assert shop.value(f"{busiest} limit 1 offset 3") < 300
    for bot in shop.summary.bot_user_ids:
        assert shop.value("select count(*) from users where user_id = ?", bot) == 1


# Wrong settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_users": 0}, "The number of users is 0, but a shop needs at least 1"),
        ({"n_events": -5}, "The number of events is -5"),
        ({"seed": -1}, "The seed is -1"),
        ({"n_days": 50_000}, "does not lie between 1990 and 2080"),
        ({"file_format": "xlsx"}, "The format 'xlsx' is unknown; choose one of parquet, csv"),
        ({"dirt": {"mud": 0.1}}, "The kind of dirt 'mud' is unknown; choose from exact_dup"),
        ({"dirt": {"bots": 1.5}}, "The share of bots is 1.5; give a number between 0 and 0.5"),
        ({"dirt": {"bots": float("nan")}}, "The share of bots is nan"),
        ({"dirt": {"bots": 0.4, "late_files": 0.4}}, "add up to 0.8, but at most half"),
        ({"dirt": {"malformed_lines": 0.1}}, "exist in CSV files only, but the format is parquet"),
        ({"n_users": 1, "dirt": {"bots": 0.1}}, "with bots needs at least 2 users"),
    ],
)
def test_a_wrong_setting_is_refused_in_a_sentence_before_anything_is_written(
    tmp_path, changes, message
):
    with pytest.raises(ShopSettingsError, match=message):
        write_shop(tmp_path, **{**SETTINGS, **changes})

    assert list(tmp_path.iterdir()) == []


COMMAND = "--users 30 --products 20 --events 300 --days 40 --seed 1"


def test_the_command_writes_a_shop_and_says_what_is_in_it(tmp_path, capsys):
    exit_code = main([*f"{COMMAND} --format csv --dirt 0.02".split(), "--out", str(tmp_path)])

    said = capsys.readouterr().out
    assert exit_code == 0
    assert "rows of events in" in said
    assert "purchase" in said
    assert "malformed_lines" in said
    assert "unknown_event_types" not in said


def test_the_command_does_not_write_into_a_folder_that_holds_a_shop(tmp_path, capsys):
    arguments = [*COMMAND.split(), "--out", str(tmp_path)]
    main(arguments)

    exit_code = main(arguments)

    assert exit_code == 2
    assert "already holds files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dirt much", "'much' is not a share for --dirt; give a number such as 0.01"),
        ("--dirt bots=few", "'few' is not a share for bots"),
        ("--dirt bots=0.1,bots=0.2", "--dirt names bots twice"),
        ("--dirt mud=0.1", "The kind of dirt 'mud' is unknown"),
        ("--dirt 0.4", "at most half of a shop may be dirty"),
        ("--start soon", "'soon' is not a date; write one such as 2024-01-31."),
        ("--users many", "'many' is not a whole number; write one such as 1000."),
        ("--format xml", "invalid choice: 'xml'"),
    ],
)
def test_a_wrong_argument_ends_the_command_with_a_sentence(tmp_path, capsys, arguments, message):
    command = [*COMMAND.split(), "--out", str(tmp_path), *arguments.split()]

    try:
        exit_code = main(command)
    except SystemExit as stop:
        exit_code = stop.code

    assert exit_code == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_ends_the_command_with_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")

    exit_code = main([*COMMAND.split(), "--out", str(tmp_path / "file")])

    assert exit_code == 1
    assert "The shop could not be written to" in capsys.readouterr().err


def test_help_names_every_kind_of_dirt(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])

    said = capsys.readouterr().out
    assert all(kind in said for kind in DIRT_KINDS)
