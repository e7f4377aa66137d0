"""A refresh and a full build leave equal tables, whatever came, changed or went in between.

Full builds run the compiled models in an in-memory DuckDB; the refreshed warehouse is dbt's own.
"""

import random
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from dbt_helpers import (
    PROJECT_DIR,
    DbtFailedError,
    compiled_sql,
    query,
    run_dbt,
    write_raw,
    write_raw_tables,
)

# In the order in which they read each other.
BUILT_AT_ONCE = ["base_products", "stg_products", "base_events", "stg_events"]
BY_DAY = ["int_duplicate_events", "int_daily_signals"]
BY_USER = ["int_undone_days", "int_user_activity", "int_event_accounts", "int_user_signals"]
REFRESHED = {
    "base_events": "staging",
    **dict.fromkeys([*BY_DAY, *BY_USER], "intermediate"),
    "signals": "marts",
}
MODELS = [
    *BUILT_AT_ONCE,
    "int_event_days",
    "int_as_of",
    "int_duplicate_events",
    "int_events_deduplicated",
    "int_daily_signals",
    *BY_USER,
    "signals",
]
FIRST_DAY = datetime(2024, 3, 1)
N_DAYS = 60


class Shop:
    """A landing folder's worth of rows that a test changes, and the two ways of building them."""

    def __init__(self, warehouse: Path, sql: dict[str, str], seed: int) -> None:
        self.warehouse = warehouse
        self.sql = sql
        self.random = random.Random(seed)
        self.products = list("pqrs")
        self.as_of: str | None = None
        self.other_weights: list[str] = []
        self.files: dict[str, list[dict[str, Any]]] = {}
        for number in range(4):
            self.files[f"events/{number}.csv"] = self.some_events(60)

    def some_events(self, n: int, *, day: int | None = None) -> list[dict[str, Any]]:
        """Events that often share an id, or stand within seconds of another, over midnight too."""
        pick = self.random.choice
        rows = []
        for _ in range(n):
            on = FIRST_DAY + timedelta(days=day if day is not None else pick(range(N_DAYS)))
            at = on + timedelta(seconds=pick([0, 1, 2, 3, 40_000, 86_397, 86_398, 86_399]))
            rows.append(
                {
                    # Two users who meet all the time, and some who have few days to change.
                    "user_id": pick("u" * 10 + "v" * 10 + "wxyzab"),
                    "product_id": pick("pqrst"),
                    "event_type": pick(["view", "view", "purchase", "return", "rating"]),
                    "event_ts": str(at),
                    "event_id": pick([None, None, None, *range(150)]),
                    "rating": pick(["1", "5"]),
                    "quantity": pick([None, "2", "none"]),
                }
            )
        return rows

    def refresh(self, variables: dict[str, Any] | None = None) -> None:
        write_raw(self.warehouse, **self.raw())
        run_dbt("run", self.warehouse, select=["+signals"], variables=variables)

    def refreshed(self, model: str) -> list[tuple[Any, ...]]:
        return query(self.warehouse, f"from {REFRESHED[model]}.{model} order by all")

    def changed_users(self) -> list[str]:
        users = query(self.warehouse, "select user_id from intermediate.int_changed_users")
        return sorted(user_id for (user_id,) in users)

    def changed_days(self) -> list[str]:
        days = query(self.warehouse, "from intermediate.int_changed_days order by all")
        return [str(day) for (day,) in days]

    def built_at_once(self, model: str, near_duplicate_seconds: int = 2) -> list[tuple[Any, ...]]:
        with duckdb.connect() as connection:
            connection.execute("set TimeZone = 'UTC'; set threads = 1")
            for schema in ("staging", "intermediate", "marts"):
                connection.execute(f"create schema {schema}")
            connection.execute(
                "create table staging.event_weights as select event_type::varchar as event_type,"
                " weight::double as weight, half_life_days::double as half_life_days,"
                " undoes::varchar as undoes"
                f" from read_csv('{PROJECT_DIR}/seeds/event_weights.csv', delim=',', header=true)"
            )
            for statement in self.other_weights:
                connection.execute(statement)
            write_raw_tables(connection, **self.raw())
            for each in MODELS:
                schema = "intermediate" if each.startswith("int_") else "staging"
                schema = REFRESHED.get(each, schema)
                sql = self.sql[each].replace(
                    "to_seconds(2)", f"to_seconds({near_duplicate_seconds})"
                )
                connection.execute(f"create table {schema}.{each} as {sql}")
                if each == "int_as_of" and self.as_of:
                    connection.execute(f"update {schema}.{each} set as_of = '{self.as_of}'")
            return connection.execute(f"from {REFRESHED[model]}.{model} order by all").fetchall()

    def raw(self) -> dict[str, list[dict[str, Any]]]:
        return {
            "events": [
                {"source_file": name, "source_row": position, **row}
                for name, rows in self.files.items()
                for position, row in enumerate(rows, start=1)
            ],
            "products": [{"product_id": product_id} for product_id in self.products],
        }


@pytest.fixture(scope="module")
def sql(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    warehouse = tmp_path_factory.mktemp("compiled") / "memory.duckdb"
    run_dbt("compile", warehouse, select=MODELS)
    return {model: compiled_sql(model) for model in MODELS}


@pytest.fixture(scope="module")
def shop(sql: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One shop that goes through all the changes, one after the other."""
    shop = Shop(tmp_path_factory.mktemp("refreshed") / "warehouse.duckdb", sql, seed=1)
    write_raw(shop.warehouse, **shop.raw())
    run_dbt("seed", shop.warehouse)
    shop.refresh()
    yield shop


def nothing(shop: Shop) -> None:
    pass


def a_file_of_one_day_comes(shop: Shop) -> None:
    shop.files["events/today.csv"] = shop.some_events(10, day=N_DAYS + 5)


def a_late_file_tells_events_of_every_month(shop: Shop) -> None:
    shop.files["events/late.csv"] = shop.some_events(5)


def an_earlier_file_by_name_tells_the_same_ids(shop: Shop) -> None:
    rows = shop.random.sample(shop.files["events/3.csv"], 15)
    shop.files["events/0a.csv"] = moved(rows, days=-3) + rows


def a_file_is_replaced(shop: Shop) -> None:
    shop.files["events/1.csv"] = shop.some_events(8) + shop.files["events/1.csv"][20:]


def a_file_vanishes(shop: Shop) -> None:
    del shop.files["events/0.csv"]


def a_file_loses_every_row_but_one(shop: Shop) -> None:
    shop.files["events/0a.csv"] = shop.files["events/0a.csv"][:1]


def a_file_of_more_days_than_all_others_comes(shop: Shop) -> None:
    year_before = range(-365, -265)
    shop.files["events/year.csv"] = [shop.some_events(1, day=day)[0] for day in year_before]


def it_moves_to_a_later_year(shop: Shop) -> None:
    """Ids that it told first are then told by others."""
    shop.files["events/year.csv"] = moved(shop.files["events/year.csv"], days=730)


def it_moves_back_to_the_earlier_year(shop: Shop) -> None:
    """It tells ids first that others told."""
    shop.files["events/year.csv"] = moved(shop.files["events/year.csv"], days=-730)


def moved(rows: list[dict[str, Any]], *, days: int) -> list[dict[str, Any]]:
    by = timedelta(days=days)
    return [{**row, "event_ts": str(datetime.fromisoformat(row["event_ts"]) + by)} for row in rows]


def a_product_comes_that_events_waited_for(shop: Shop) -> None:
    shop.products.append("t")


def a_product_leaves_the_catalogue(shop: Shop) -> None:
    shop.products.remove("p")


def one_product_comes_back_as_another_leaves(shop: Shop) -> None:
    shop.products.append("p")
    shop.products.remove("q")


CHANGES: list[Callable[[Shop], None]] = [
    nothing,
    a_file_of_one_day_comes,
    a_late_file_tells_events_of_every_month,
    an_earlier_file_by_name_tells_the_same_ids,
    a_file_is_replaced,
    a_file_vanishes,
    a_file_loses_every_row_but_one,
    a_file_of_more_days_than_all_others_comes,
    it_moves_to_a_later_year,
    it_moves_back_to_the_earlier_year,
    a_product_comes_that_events_waited_for,
    a_product_leaves_the_catalogue,
    one_product_comes_back_as_another_leaves,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_refresh_equals_a_full_build_when(shop: Shop, change: Callable[[Shop], None]):
    change(shop)

    shop.refresh()

    for model in REFRESHED:
        assert shop.refreshed(model) == shop.built_at_once(model), model


def test_a_refresh_builds_the_days_that_changed_and_the_day_after_each(shop: Shop):
    view = {"user_id": "u", "product_id": "r", "event_type": "view"}
    shop.files["events/new.csv"] = [{**view, "event_ts": "2023-07-01 12:00:00"}]
    shop.refresh()
    assert shop.changed_days() == ["2023-07-01", "2023-07-02"]

    # The earlier event of the same id is the one that counts; both days change.
    shop.files["events/new.csv"][0]["event_id"] = "x"
    shop.files["events/newer.csv"] = [{**view, "event_ts": "2022-01-31", "event_id": "x"}]
    shop.refresh()
    assert shop.changed_days() == ["2022-01-31", "2022-02-01", "2023-07-01", "2023-07-02"]

    # What it made a duplicate counts again, though nothing of that day itself came or went.
    del shop.files["events/newer.csv"]
    shop.refresh()
    assert shop.changed_days() == ["2022-01-31", "2022-02-01", "2023-07-01", "2023-07-02"]
    for model in REFRESHED:
        assert shop.refreshed(model) == shop.built_at_once(model), model


def test_a_click_after_midnight_repeats_one_of_a_day_that_did_not_change(shop: Shop):
    click = {"user_id": "u", "product_id": "r", "event_type": "click"}
    shop.files["events/evening.csv"] = [{**click, "event_ts": "2021-05-01 23:59:59"}]
    shop.refresh()

    shop.files["events/night.csv"] = [{**click, "event_ts": "2021-05-02 00:00:01"}]
    shop.refresh()

    assert shop.changed_days() == ["2021-05-02", "2021-05-03"]
    assert ("events/night.csv", "near duplicate") in [
        (row[0], row[-1]) for row in shop.refreshed("int_duplicate_events")
    ]
    assert shop.refreshed("int_daily_signals") == shop.built_at_once("int_daily_signals")


def test_a_refresh_that_stopped_halfway_is_made_up_for_by_the_next(shop: Shop):
    shop.files["events/2.csv"] = shop.files["events/2.csv"][10:]
    former_products = list(shop.products)
    shop.products.remove("r")
    write_raw(shop.warehouse, **shop.raw())
    # Everything but the last step. Then the cause goes: nothing seems to have changed.
    run_dbt("run", shop.warehouse, select=["+int_duplicate_events"])
    shop.products = former_products

    shop.refresh()

    for model in REFRESHED:
        assert shop.refreshed(model) == shop.built_at_once(model), model


def test_another_setting_leaves_no_row_of_the_former_one(shop: Shop):
    shop.refresh({"near_duplicate_seconds": 86_400})

    for model in REFRESHED:
        assert shop.refreshed(model) == shop.built_at_once(model, 86_400), model

    # Far over midnight: the days after a changed day are two then.
    shop.files["events/today.csv"] = shop.some_events(6, day=20)
    shop.refresh({"near_duplicate_seconds": 86_400})

    for model in REFRESHED:
        assert shop.refreshed(model) == shop.built_at_once(model, 86_400), model


def test_a_refresh_builds_the_users_of_changed_days_and_nobody_else(shop: Shop):
    view = {"product_id": "s", "event_type": "view", "event_ts": "2020-01-01"}
    shop.refresh()
    shop.files["events/one.csv"] = [{**view, "user_id": "w"}]
    shop.refresh()
    assert shop.changed_users() == ["w"]

    # Whose rows went as well as whose came.
    shop.files["events/one.csv"] = [{**view, "user_id": "new"}]
    shop.refresh()
    assert shop.changed_users() == ["new", "w"]
    for model in REFRESHED:
        assert shop.refreshed(model) == shop.built_at_once(model), model

    shop.refresh()
    assert shop.changed_users() == []


@pytest.mark.parametrize("as_of", ["2024-04-10", "2024-03-20", "2024-04-20", None])
def test_another_day_changes_those_with_events_in_between(shop: Shop, as_of: str | None):
    shop.as_of = as_of

    shop.refresh({"as_of": as_of} if as_of else None)

    for model in REFRESHED:
        assert shop.refreshed(model) == shop.built_at_once(model), model


def test_a_day_that_nobody_did_anything_on_ages_signals_and_changes_no_user(shop: Shop):
    shop.as_of = "2024-06-01"
    shop.refresh({"as_of": shop.as_of})
    before = shop.refreshed("signals")

    shop.as_of = "2024-06-02"
    shop.refresh({"as_of": shop.as_of})

    assert shop.changed_users() == []
    assert shop.refreshed("signals") != before
    assert shop.refreshed("signals") == shop.built_at_once("signals")
    shop.as_of = None


def test_types_that_fade_at_different_speeds_are_aged_anew_every_day(shop: Shop):
    shop.other_weights = [
        "update staging.event_weights set half_life_days = 3 where event_type = 'view'"
    ]
    with duckdb.connect(shop.warehouse) as connection:
        connection.execute(shop.other_weights[0])
    for as_of in ("2024-04-28", "2024-04-29"):
        shop.as_of = as_of
        write_raw(shop.warehouse, **shop.raw())
        run_dbt(
            "run",
            shop.warehouse,
            select=["+signals"],
            exclude=["event_weights"],
            variables={"as_of": as_of},
        )

        for model in REFRESHED:
            assert shop.refreshed(model) == shop.built_at_once(model), model
    assert any(row[5] is not None for row in shop.refreshed("int_user_signals"))
    shop.as_of, shop.other_weights = None, []
    run_dbt("seed", shop.warehouse)


@pytest.mark.parametrize(
    ("column", "one", "other"),
    [("weight", "view", "purchase"), ("undoes", "return", "remove_from_cart")],
)
def test_what_two_event_types_exchange_builds_every_user_again(
    shop: Shop, column: str, one: str, other: str
):
    shop.refresh()
    shop.other_weights = [
        f"update staging.event_weights as one set {column} = other.{column}"
        " from staging.event_weights as other"
        f" where (one.event_type, other.event_type) in (('{one}', '{other}'), ('{other}', '{one}'))"
    ]
    with duckdb.connect(shop.warehouse) as connection:
        connection.execute(shop.other_weights[0])

    run_dbt("run", shop.warehouse, select=["+signals"], exclude=["event_weights"])

    assert len(shop.changed_users()) > 5
    for model in REFRESHED:
        assert shop.refreshed(model) == shop.built_at_once(model), model
    shop.other_weights = []
    run_dbt("seed", shop.warehouse)


def test_users_whose_refresh_stopped_halfway_are_made_up_for_by_the_next(shop: Shop):
    shop.refresh()
    former = shop.files["events/2.csv"]
    shop.files["events/2.csv"] = former[5:]
    write_raw(shop.warehouse, **shop.raw())
    run_dbt("run", shop.warehouse, select=["+int_user_activity"])
    # What was built of it is right, and what was not is not known to be.
    shop.files["events/2.csv"] = former

    shop.refresh()

    for model in REFRESHED:
        assert shop.refreshed(model) == shop.built_at_once(model), model


def test_a_setting_of_the_tables_by_user_builds_every_user_again(shop: Shop):
    shop.refresh({"outlier_max_products": 1})

    assert len(shop.changed_users()) > 5
    assert any(row[-1] is False for row in shop.refreshed("int_user_signals"))
    shop.refresh()
    for model in REFRESHED:
        assert shop.refreshed(model) == shop.built_at_once(model), model


def test_every_macro_that_makes_a_users_rows_is_in_the_recipe_of_users(tmp_path: Path):
    manifest = run_dbt("parse", tmp_path / "warehouse.duckdb")
    calls = {
        name: [macro for macro in node.depends_on.macros if macro.startswith("macro.recmart.")]
        for name, node in {**manifest.nodes, **manifest.macros}.items()
    }
    makers: set[str] = set()
    found = {macro for model in BY_USER for macro in calls[f"model.recmart.{model}"]}
    while found:
        makers |= found
        found = {macro for maker in found for macro in calls[maker]} - makers

    # Those of changed_users say whose rows are made, not what they are.
    made_of = {
        manifest.macros[maker].name
        for maker in makers
        if manifest.macros[maker].original_file_path != "macros/changed_users.sql"
    }
    recipe = manifest.macros["macro.recmart.recipe_of_users"].macro_sql
    named = re.findall(r"set macros = \[(.*?)\]", recipe, re.DOTALL)[0]
    assert made_of == set(re.findall(r"\w+", named))


def test_tables_of_a_former_release_are_filled_anew(shop: Shop):
    with duckdb.connect(shop.warehouse) as connection:
        connection.execute("alter table staging.base_events drop column file_version")
        connection.execute("alter table intermediate.int_duplicate_events drop column event_on")
        connection.execute("drop table intermediate.int_built_days")
        connection.execute("drop table intermediate.int_built_users")
        connection.execute("drop table intermediate.int_user_signals cascade")
        connection.execute("drop view if exists marts.signals")
        connection.execute("create table marts.signals as select 1 as weight")

    shop.refresh()

    assert sorted(shop.refreshed("int_daily_signals")) == shop.built_at_once("int_daily_signals")
    assert len(shop.refreshed("base_events")) == len(shop.built_at_once("base_events"))
    n_duplicates = len(shop.built_at_once("int_duplicate_events"))
    assert len(shop.refreshed("int_duplicate_events")) == n_duplicates


def test_a_type_that_loses_its_weight_stops_a_refresh_without_new_events(shop: Shop):
    shop.refresh()
    with duckdb.connect(shop.warehouse) as connection:
        connection.execute("delete from staging.event_weights where event_type = 'view'")

    with pytest.raises(DbtFailedError, match=r'The event type "view".* has no weight'):
        run_dbt("run", shop.warehouse, select=["+int_daily_signals"])


def test_pairs_are_the_same_in_however_many_parts_they_are_counted(shop: Shop):
    shop.files["events/baskets.csv"] = [
        {
            "user_id": f"basket {user}",
            "product_id": product,
            "event_type": "view",
            "event_ts": str(FIRST_DAY + timedelta(days=user, hours=hour)),
        }
        for user in range(20)
        for hour, product in enumerate(shop.products)
        if (user + hour) % 4
    ]
    run_dbt("seed", shop.warehouse)
    pairs = []
    for pairs_at_once in (20_000_000, 5):
        write_raw(shop.warehouse, **shop.raw())
        variables = {"pairs_at_once": pairs_at_once, "min_pair_support": 1}
        run_dbt("run", shop.warehouse, select=["+product_pairs"], variables=variables)
        pairs.append(query(shop.warehouse, "from marts.product_pairs order by all"))

    baskets = "from intermediate.int_baskets group by is_bought, user_number, event_on"
    sizes = query(shop.warehouse, f"select count(*) {baskets}")
    assert sum(size * (size - 1) // 2 for (size,) in sizes) > 20
    assert len(pairs[0]) > 2
    assert pairs[0] == pairs[1]
