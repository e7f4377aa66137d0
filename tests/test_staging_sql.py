"""What the SQL between raw and the marts owes, whatever a shop hands in.

The compiled models run in an in-memory DuckDB, so that thousands of dirty rows cost seconds; the
rules one by one stand in the models' unit tests.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from dbt_helpers import (
    PROJECT_DIR,
    DbtFailedError,
    Row,
    compiled_sql,
    query,
    run_dbt,
    write_raw,
    write_raw_tables,
)
from hypothesis import given, settings
from hypothesis import strategies as st

# In the order in which they read each other.
MODELS = {
    "base_events": "staging",
    "base_products": "staging",
    "base_users": "staging",
    "stg_products": "staging",
    "stg_users": "staging",
    "stg_events": "staging",
    "rejected_rows": "staging",
    "repaired_values": "staging",
    "int_as_of": "intermediate",
    "int_duplicate_events": "intermediate",
    "int_events_deduplicated": "intermediate",
    "int_daily_signals": "intermediate",
    "int_user_activity": "intermediate",
}
STAGING = [model for model, schema in MODELS.items() if schema == "staging"]
ACCEPTED_EVENTS = ["base_events", "base_products", "stg_products", "stg_events"]
ONE_EACH = [*ACCEPTED_EVENTS, "int_duplicate_events", "int_events_deduplicated"]
# Small enough for examples of a few rows to break the rules.
SMALL_LIMITS = {
    "as_of": "2024-03-10",
    "holdout_days": 3,
    "near_duplicate_seconds": 2,
    "bot_max_events_per_day": 4,
    "bot_max_browsed_per_day_without_cart": 2,
    "outlier_max_products": 2,
}
LAYERS = ["event_weights", "path:models/staging", "path:models/intermediate"]
CHECK_MANY = settings(max_examples=25, deadline=None)


class Shop:
    """The compiled models of these two layers in an in-memory DuckDB."""

    def __init__(self, sql: Mapping[str, str], weights_test: str) -> None:
        self.sql = sql
        self.weights_test = weights_test
        self.connection = duckdb.connect()
        # Starting a second thread costs more than these few rows.
        self.connection.execute("set TimeZone = 'UTC'; set threads = 1")
        self.connection.execute("create schema staging; create schema intermediate")
        self.write_event_weights()

    def write_event_weights(self) -> None:
        self.connection.execute(
            "create or replace table staging.event_weights as select"
            " event_type::varchar as event_type, weight::double as weight,"
            " half_life_days::double as half_life_days, undoes::varchar as undoes"
            f" from read_csv('{PROJECT_DIR}/seeds/event_weights.csv', delim=',', header=true)"
        )

    def build(self, *models: str, **raw: Any) -> None:
        """Replace the raw tables and build the given models on them."""
        write_raw_tables(self.connection, **raw)
        for model in models:
            self.rebuild(model)

    def rebuild(self, model: str) -> None:
        self.connection.execute(
            f"create or replace table {MODELS[model]}.{model} as {self.sql[model]}"
        )

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql).fetchall()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    warehouse = tmp_path_factory.mktemp("compiled") / "memory.duckdb"
    run_dbt(
        "compile", warehouse, select=[*MODELS, "event_weights_are_usable"], variables=SMALL_LIMITS
    )
    shop = Shop(
        {model: compiled_sql(model) for model in MODELS}, compiled_sql("event_weights_are_usable")
    )
    yield shop
    shop.connection.close()


numbers = st.sampled_from([None, "", " ", "1", "2.5", "0", "-1", "nan", "inf", "1e400", "x", "1,5"])
ids = st.sampled_from([None, " ", "\t", "1", "01", " 1", "'", '"', "\n1", "🎁", "null"])
times = st.sampled_from(
    [
        None,
        " ",
        "2024-03-01",
        "2024-03-01 10:00:00",
        "2024-03-01T10:00:00+05:00",
        "1709287200",
        "1709287200000",
        "yesterday",
        "1970-01-01",
        "2199-01-01",
        "infinity",
        "9" * 40,
        "-9223372036854775808",
        "20240301",
        "45352",
        "-" * 19,
        "2024-03-01 10:00:0Z",
    ]
)
files = st.sampled_from(["a.csv", "b.csv"])
dirty_events = st.lists(
    st.fixed_dictionaries(
        {"source_file": files, "user_id": ids, "product_id": ids, "event_ts": times},
        optional={
            "event_type": st.sampled_from([None, " ", "view", " Purchase", "rating"]),
            "rating": numbers,
            "quantity": numbers,
            "price": numbers,
            "event_id": ids,
            "attributes": st.sampled_from([None, '{"a": null}', "not json"]),
        },
    ),
    max_size=25,
)
dirty_products = st.lists(
    st.fixed_dictionaries(
        {"source_file": files, "product_id": ids},
        optional={
            "title": st.sampled_from([None, " a  b", "a b", "c"]),
            "price": numbers,
            "margin": numbers,
            "in_stock": st.sampled_from([None, "yes", "0", "maybe"]),
            "added_at": times,
        },
    ),
    max_size=25,
)
dirty_users = st.lists(
    st.fixed_dictionaries(
        {"source_file": files, "user_id": ids},
        optional={"country": st.sampled_from([None, "France", " France ", "Malta"])},
    ),
    max_size=8,
)


@CHECK_MANY
@given(events=dirty_events, products=dirty_products, users=dirty_users)
def test_every_arrived_row_is_either_accepted_or_rejected_once(shop, events, products, users):
    shop.build(*STAGING, events=events, products=products, users=users)

    for entity, arrived in (("events", events), ("products", products), ("users", users)):
        sorted_rows = shop.rows(
            f"select source_file, source_row from staging.stg_{entity} union all"
            f" select source_file, source_row from staging.rejected_rows where entity = '{entity}'"
        )
        assert sorted(sorted_rows) == sorted(
            (row["source_file"], position) for position, row in enumerate(arrived, start=1)
        )


@CHECK_MANY
@given(events=dirty_events, products=dirty_products, users=dirty_users)
def test_what_is_accepted_is_finite_known_and_within_its_limits(shop, events, products, users):
    shop.build(*STAGING, events=events, products=products, users=users)

    assert not shop.rows(
        """
        from staging.stg_events where not coalesce(
            user_id is not null and product_id in (select product_id from staging.stg_products)
            and event_type = lower(trim(event_type)) and event_type <> ''
            and event_at between '1990-01-01' and '2030-01-02' and event_on = event_at::date
            and quantity > 0 and quantity < 1e9
            and (price is null or price >= 0 and isfinite(price))
            and (rating is null and event_type <> 'rating' or rating between 0.5 and 5), false)
        """
    )
    assert not shop.rows(
        "from staging.stg_products where price < 0 or not isfinite(price) or not isfinite(margin)"
        " or not isfinite(added_at)"
    )


@CHECK_MANY
@given(products=dirty_products)
def test_each_product_of_the_files_is_in_the_catalogue_once_from_its_last_file(shop, products):
    shop.build("base_products", "stg_products", products=products)

    last_file: dict[str, str] = {}
    for row in products:
        if row["product_id"] is not None and row["product_id"].strip(" \t\r\n"):
            last_file[row["product_id"]] = max(
                row["source_file"], last_file.get(row["product_id"], "")
            )
    catalogue = shop.rows("select product_id, source_file from staging.stg_products")
    assert sorted(catalogue) == sorted(last_file.items())


@CHECK_MANY
@given(data=st.data(), products=dirty_products)
def test_which_values_a_product_gets_does_not_depend_on_the_order_of_the_rows(shop, data, products):
    values = "from (select * exclude (source_row) from staging.stg_products) order by all"

    shop.build("base_products", "stg_products", products=products)
    in_order = shop.rows(values)
    shop.build("base_products", "stg_products", products=data.draw(st.permutations(products)))

    assert shop.rows(values) == in_order


@CHECK_MANY
@given(text=st.one_of(times, st.datetimes(datetime(1950, 1, 1), datetime(2100, 1, 1)).map(str)))
def test_no_text_in_a_time_stops_the_build_and_times_are_read_as_they_stand(shop, text):
    shop.build("base_events", events=[{"event_ts": text}])

    [(event_at,)] = shop.rows("select event_at from staging.base_events")
    assert event_at is None or isinstance(event_at, datetime)
    if text is not None and "-" in text[1:5] and text[:4].isdigit() and "+" not in text:
        assert event_at == datetime.fromisoformat(text.replace("0Z", "00"))


seconds = st.integers(0, 6).map(lambda s: str(datetime(2024, 3, 1, 23, 59, 57) + timedelta(0, s)))


def seldom(*values: str) -> st.SearchStrategy[str | None]:
    return st.sampled_from([*[None] * 6, *values])


# Mostly nothing: each further column that differs makes two events less likely to be duplicates.
busy_events = st.lists(
    st.fixed_dictionaries(
        {
            "source_file": files,
            "user_id": st.just("u"),
            "product_id": st.sampled_from(["p", "p", "p", "q"]),
            "event_type": st.sampled_from(["view", "view", "view", "click"]),
            "event_ts": seconds,
            "event_id": seldom("1", "2"),
            "rating": seldom("4"),
            "quantity": seldom("1", "2"),
            "order_id": seldom("o"),
            "session_id": seldom("s"),
            "price": seldom("5", "5.0", "6"),
            "variant": seldom("A"),
        }
    ),
    max_size=10,
)
CATALOGUE = [{"product_id": "p"}, {"product_id": "q"}, {"product_id": "r"}]


@settings(max_examples=60, deadline=None)
@given(events=busy_events)
def test_duplicates_are_what_a_plain_loop_over_the_events_finds(shop, events):
    shop.build(*ONE_EACH, events=events, products=CATALOGUE)

    found = shop.rows(
        "select source_file, source_row, reason from intermediate.int_duplicate_events"
    )
    hashes = shop.rows(
        "select variant, hash(null::varchar, null::varchar, variant, null::varchar)"
        " from (values (null), ('A')) as variants(variant)"
    )
    expected = duplicates_by_loop(events, dict(hashes), within=timedelta(seconds=2))
    assert sorted(found) == sorted(expected)


def duplicates_by_loop(
    events: list[Row], hashes: Mapping[str | None, int], *, within: timedelta
) -> list[tuple[str, int, str]]:
    """The contract word by word: (source_file, source_row, reason) of each duplicate."""

    def place(numbered: tuple[int, Row]) -> tuple[Any, ...]:
        number, event = numbered
        columns = ("product_id", "event_type", "order_id", "session_id")
        values = [event[column] for column in columns]
        values += [event["quantity"] or "1", event["rating"]]
        values += [event["price"] and float(event["price"]), hashes[event["variant"]]]
        # NULL comes last; where a row stands decides only between rows that say the same.
        ordered = [(value is None, value) for value in [*values, event["event_id"]]]
        return event["event_ts"], ordered, event["source_file"], number

    by_time = sorted(enumerate(events, start=1), key=place)
    seen, last, found = set(), {}, []
    for position, event in by_time:
        columns = ("product_id", "event_type", "order_id", "session_id", "rating")
        key = (*(event[column] for column in columns), event["quantity"] or "1")
        everything = (*key, event["event_ts"], float(event["price"] or -1), event["variant"])
        identity = event["event_id"] or everything
        at = datetime.fromisoformat(event["event_ts"])
        if identity in seen:
            found.append((event["source_file"], position, "exact duplicate"))
            continue
        if key in last:
            last_at, last_id = last[key]
            are_days = at == last_at and at.time() == time()
            are_two = last_id and event["event_id"] and last_id != event["event_id"]
            if at - last_at <= within and not (are_days and are_two):
                found.append((event["source_file"], position, "near duplicate"))
        seen.add(identity)
        last[key] = at, event["event_id"]
    return found


shopping = st.lists(
    st.fixed_dictionaries(
        {
            "user_id": st.sampled_from(["u", "v"]),
            "product_id": st.sampled_from(["p", "q", "r"]),
            "event_type": st.sampled_from(["view", "click", "purchase", "return"]),
            "event_ts": st.sampled_from(["2024-03-08", "2024-03-09", "2024-03-10", "2024-03-11"]),
            "quantity": st.sampled_from(["0.1", "0.2", "1", "3"]),
        }
    ),
    max_size=30,
)


@CHECK_MANY
@given(events=shopping)
def test_each_event_counts_on_one_day_of_one_user(shop, events):
    events = [{**event, "event_id": i} for i, event in enumerate(events)]
    # Without a window nothing is a near duplicate, so that all events are left.
    shop.build(*ACCEPTED_EVENTS, events=events, products=CATALOGUE)
    shop.connection.execute(
        "create or replace table intermediate.int_events_deduplicated as from staging.stg_events"
    )
    shop.rebuild("int_daily_signals")

    expected: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for event in events:
        key = (event["user_id"], event["product_id"], date.fromisoformat(event["event_ts"]))
        expected[(*key, event["event_type"])].append(float(event["quantity"]))
    daily = shop.rows(
        "select * exclude (rating, first_at, last_at) from intermediate.int_daily_signals"
    )
    assert {row[:4]: row[4] for row in daily} == {k: len(v) for k, v in expected.items()}
    assert {row[:4]: row[5] for row in daily} == {k: round(sum(v), 9) for k, v in expected.items()}


@CHECK_MANY
@given(events=shopping)
def test_a_flag_that_holds_at_a_past_day_is_the_flag_computed_on_that_day(shop, events):
    def flags(at: str) -> list[tuple[Any, ...]]:
        return shop.rows(
            f"select user_id, bot_since <= '{at}', outlier_since <= '{at}'"
            f" from intermediate.int_user_activity where first_at < date '{at}' + 1 order by all"
        )

    events = [{**event, "event_id": i} for i, event in enumerate(events)]
    shop.build(
        *ONE_EACH,
        *("int_as_of", "int_daily_signals", "int_user_activity"),
        events=events,
        products=CATALOGUE,
    )
    seen_from_later = flags("2024-03-09")
    shop.connection.execute("update intermediate.int_as_of set as_of = date '2024-03-09'")
    shop.rebuild("int_user_activity")

    assert [tuple(map(bool, f[1:])) for f in seen_from_later] == [
        tuple(map(bool, f[1:])) for f in flags("2024-03-09")
    ]
    assert shop.rows(
        "select bool_and(last_at < '2024-03-10') from intermediate.int_user_activity"
    ) in (
        [(True,)],
        [(None,)],
    )


PURCHASE = {
    "user_id": "u",
    "product_id": "p",
    "event_type": "purchase",
    "event_ts": "2011-12-09 08:26:00",
}


def test_a_dirty_shop_builds_green_with_everything_refused_in_its_table(tmp_path: Path):
    warehouse = tmp_path / "warehouse.duckdb"
    strange_ids = ["001", "1", 'O\'Neil "x"', "two\nlines", "🎁"]
    write_raw(
        warehouse,
        events=[
            *({**PURCHASE, "user_id": i, "product_id": i, "event_id": i} for i in strange_ids),
            {**PURCHASE, "product_id": "1", "event_id": "1"},
            {**PURCHASE, "product_id": "never described"},
            {**PURCHASE, "event_ts": "2099-01-01"},
            {**PURCHASE, "quantity": "many"},
        ],
        products=[*({"product_id": i} for i in strange_ids), {"product_id": "1", "price": "free"}],
        users=[{"user_id": "001"}, {"user_id": " "}],
        malformed=[{"line": "u,p"}],
    )

    run_dbt("build", warehouse, select=LAYERS)

    accepted = query(warehouse, "select user_id from intermediate.int_daily_signals order by all")
    assert [user_id for (user_id,) in accepted] == sorted(strange_ids)
    assert query(
        warehouse, "select entity, column_name, value from staging.rejected_rows order by all"
    ) == [
        ("events", "event_ts", "2099-01-01"),
        ("events", "product_id", "never described"),
        ("events", "quantity", "many"),
        ("events", None, "unreadable"),
        ("products", "product_id", "1"),
        ("users", "user_id", " "),
    ]
    assert query(warehouse, "from staging.repaired_values") == []
    assert query(warehouse, "select reason from intermediate.int_duplicate_events") == [
        ("exact duplicate",)
    ]


def test_an_event_type_nobody_weighed_is_named_with_its_file_and_row(shop):
    shop.build(*ONE_EACH, events=[{**PURCHASE, "event_type": "wish"}], products=CATALOGUE)

    with pytest.raises(
        duckdb.Error, match=r'"wish" \(file events/events.csv, row 1\) has no weight'
    ):
        shop.rebuild("int_daily_signals")


def test_a_shop_without_accepted_events_is_told_where_to_look(tmp_path: Path):
    warehouse = tmp_path / "warehouse.duckdb"
    write_raw(warehouse, events=[{**PURCHASE, "product_id": "unknown"}], products=CATALOGUE)

    with pytest.raises(DbtFailedError, match=r"No event was accepted.*staging\.rejected_rows"):
        run_dbt("build", warehouse, select=["+int_as_of"], exclude=["resource_type:unit_test"])


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"as_of": "soon"}, 'The variable as_of is "soon": expected a date'),
        ({"trending_days": "a week"}, "trending_days is a week: expected a whole number of 1"),
        ({"anchors_per_user": 32}, "anchors_per_user is 32: expected a whole number of 1 to 31"),
        ({"sale_share": 10}, "sale_share is 10: expected a share below 1, such as 0.1"),
        ({"event_weights": None}, "event_weights is None: expected a weight for each of"),
        ({"event_weights": ["view"]}, "event_weights is ['view']: expected a weight for each of"),
        ({"segments": "gender"}, "segments is gender: expected a list of columns"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(
    tmp_path: Path, variables: dict[str, Any], message: str
):
    warehouse = tmp_path / "warehouse.duckdb"
    write_raw(warehouse, events=[PURCHASE], products=CATALOGUE)

    with pytest.raises(DbtFailedError) as error:
        run_dbt("run", warehouse, select=["int_as_of"], variables=variables)

    assert message in str(error.value)


def test_a_weight_on_trial_for_a_type_without_one_is_named(tmp_path: Path):
    select, warehouse = ["event_weights"], tmp_path / "warehouse.duckdb"
    run_dbt("build", warehouse, select=select, variables={"event_weights": {"view": 5}})

    with pytest.raises(DbtFailedError, match=r'event_weights names "veiw": expected an event_type'):
        run_dbt("build", warehouse, select=select, variables={"event_weights": {"veiw": 5}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("weight = -1 where event_type = 'view'", 'the weight of "view" is -1.0'),
        ("weight = null where event_type = 'view'", 'the weight of "view" is missing'),
        ("weight = 'nan' where event_type = 'view'", 'the weight of "view" is nan'),
        ("event_type = 'View' where event_type = 'view'", 'event_type is "View"'),
        ("event_type = 'click' where event_type = 'view'", 'event_type "click" stands there twice'),
        ("half_life_days = 0 where event_type = 'view'", 'half_life_days of "view" is 0.0'),
        ("undoes = 'buy' where event_type = 'return'", 'undoes of "return" is "buy"'),
    ],
)
def test_a_weight_that_cannot_be_used_is_named(shop, change: str, message: str):
    shop.write_event_weights()
    assert shop.rows(shop.weights_test) == []

    shop.connection.execute(f"update staging.event_weights set {change}")

    with pytest.raises(duckdb.Error) as error:
        shop.rows(shop.weights_test)
    assert f"event_weights.csv: {message}" in str(error.value)
    shop.write_event_weights()
