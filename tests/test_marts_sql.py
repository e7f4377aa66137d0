"""The SQL of the marts against the same answers worked out the slow way, in plain Python.

The models are compiled once by dbt and then run on an in-memory DuckDB, thousands of times on small
random shops. What a single case, window or dedupe does is told by the unit tests beside the models.
"""

import json
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from dbt_helpers import compiled_sql, query, run_dbt, write_raw
from hypothesis import assume, given, settings
from hypothesis import strategies as st

AS_OF = date(2020, 3, 1)
HOLDOUT_DAYS = 10
HOLDOUT_FROM = AS_OF - timedelta(days=HOLDOUT_DAYS)

# Small enough that shops of a few rows reach every limit. The same in all tests of this file, since
# dbt parses the whole project again when a variable changes.
VARIABLES = {
    "as_of": AS_OF.isoformat(),
    "half_life_days": 10,
    "holdout_days": HOLDOUT_DAYS,
    "max_events_per_day_counted": 3,
    "bot_max_events_per_day": 9,
    "bot_max_browsed_per_day_without_cart": 6,
    "outlier_max_products": 5,
    "popularity_depth": 3,
    "popularity_recent_days": 8,
    "new_arrival_days": 8,
    "trending_days": 4,
    "basket_max_products": 3,
    "min_pair_support": 2,
    "pairs_per_product": 2,
    "min_repeat_users": 2,
}
WEIGHTS = {"view": 1.0, "click": 1.5, "add_to_cart": 3.0, "purchase": 5.0, "rating": 4.0}
HALF_LIVES = {"click": 2.0}
UNDOES = {"remove_from_cart": "add_to_cart", "return": "purchase"}
EVENT_TYPES = [*WEIGHTS, *UNDOES, "impression"]

# In the order they build on each other.
MODELS = [
    "int_undone_days",
    "int_backtest_undone_days",
    "int_user_activity",
    "int_title_families",
    "products",
    "int_user_signals",
    "signals",
    "backtest_signals",
    "users",
    "popularity",
    "backtest_popularity",
    "int_basket_products",
    "int_baskets",
    "int_basket_counts",
    "int_pair_counts",
    "product_pairs",
    "holdout",
    "int_purchases",
    "repeat_intervals",
    "buy_again",
    "bought",
    "anchors",
]
UNDONE_MODELS = MODELS[:2]
UP_TO_PRODUCTS = MODELS[:5]
SIGNAL_MODELS = [*UP_TO_PRODUCTS, "int_user_signals", "signals"]
PAIR_MODELS = [
    "int_basket_products",
    "int_baskets",
    "int_basket_counts",
    "int_pair_counts",
    "product_pairs",
]
BACKTEST_MODELS = [*UP_TO_PRODUCTS, "backtest_signals", "backtest_popularity"]
DAILY_SIGNALS = {
    "user_id": pl.String,
    "product_id": pl.String,
    "event_on": pl.Date,
    "event_type": pl.String,
    "n_events": pl.Int32,
    "quantity": pl.Float64,
    "rating": pl.Float64,
    "first_at": pl.Datetime,
    "last_at": pl.Datetime,
}
PRODUCTS = {
    "product_id": pl.String,
    **dict.fromkeys(["title", "category", "brand", "description"], pl.String),
    **dict.fromkeys(["price", "margin"], pl.Float64),
    "img_url": pl.String,
    **dict.fromkeys(["added_at", "available_from", "available_until"], pl.Datetime),
    "in_stock": pl.Boolean,
    "attributes": pl.String,
}
USERS = dict.fromkeys(["user_id", "country", "age_band", "gender", "attributes"], pl.String)


@dataclass(frozen=True)
class Day:
    """A row of int_daily_signals."""

    user_id: str
    product_id: str
    event_on: date
    event_type: str
    n_events: int
    quantity: float
    rating: float | None

    @property
    def key(self) -> tuple[str, str, str, date]:
        return self.user_id, self.product_id, self.event_type, self.event_on

    @property
    def first_at(self) -> datetime:
        return datetime.combine(self.event_on, time(9))

    @property
    def last_at(self) -> datetime:
        # Another minute for each type, so that the latest event of a pair is a particular one.
        return datetime.combine(self.event_on, time(20, EVENT_TYPES.index(self.event_type)))


class Marts:
    """The compiled models in a DuckDB of their own."""

    def __init__(self, sql: Mapping[str, str], catalog: str) -> None:
        self._sql = sql
        self.connection = duckdb.connect()
        self.connection.execute(f"attach ':memory:' as {catalog}; use {catalog}")
        for schema in ("staging", "intermediate", "marts"):
            self.connection.execute(f"create schema {schema}")
        self._write(
            "staging.event_weights",
            [
                {
                    "event_type": event_type,
                    "weight": WEIGHTS.get(event_type, 0.0),
                    "half_life_days": HALF_LIVES.get(event_type),
                    "undoes": UNDOES.get(event_type),
                }
                for event_type in EVENT_TYPES
            ],
            {
                "event_type": pl.String,
                "weight": pl.Float64,
                "half_life_days": pl.Float64,
                "undoes": pl.String,
            },
        )
        self._write(
            "intermediate.int_as_of",
            [{"as_of": AS_OF, "holdout_from": HOLDOUT_FROM}],
            {"as_of": pl.Date, "holdout_from": pl.Date},
        )

    def build(
        self,
        days: Iterable[Day],
        *,
        products: Sequence[Mapping[str, Any]],
        users: Sequence[Mapping[str, Any]] = (),
        models: Sequence[str] = tuple(MODELS),
    ) -> None:
        """Build the models, on the days as they stand."""
        rows = [{column: getattr(day, column) for column in DAILY_SIGNALS} for day in days]
        self._write("intermediate.int_daily_signals", rows, DAILY_SIGNALS)
        self._write("staging.stg_products", products, PRODUCTS)
        self._write("staging.stg_users", users, USERS)
        for model in models:
            self.connection.execute(
                f"create or replace table {_table(model)} as {self._sql[model]}"
            )

    def rows(self, model: str, columns: str = "*") -> list[tuple[Any, ...]]:
        """All rows, in the order of their values."""
        sql = f"select {columns} from {_table(model)} order by all"
        return self.connection.execute(sql).fetchall()

    def fingerprint(self, model: str) -> tuple[int, int]:
        """The number of rows and the sum of their hashes: equal for equal rows in any order."""
        sql = f"select count(*), sum(hash(t)::hugeint) from {_table(model)} as t"
        n_rows, sum_of_hashes = self.connection.execute(sql).fetchall()[0]
        return n_rows, sum_of_hashes

    def _write(
        self, table: str, rows: Sequence[Mapping[str, Any]], schema: Mapping[str, Any]
    ) -> None:
        values = {column: [row.get(column) for row in rows] for column in schema}
        self.connection.register("rows_to_write", pl.DataFrame(values, schema=dict(schema)))
        self.connection.execute(f"create or replace table {table} as from rows_to_write")
        self.connection.unregister("rows_to_write")


def _table(model: str) -> str:
    return f"{'intermediate' if model.startswith('int_') else 'marts'}.{model}"


@pytest.fixture(scope="module")
def marts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Marts]:
    warehouse = tmp_path_factory.mktemp("marts") / "marts_sql.duckdb"
    run_dbt("compile", warehouse, select=MODELS, variables=VARIABLES)
    marts = Marts({model: compiled_sql(model) for model in MODELS}, warehouse.stem)
    yield marts
    marts.connection.close()


# Both sides of every edge: of as_of, the windows of popularity, and the holdout.
AGES = (-1, 0, 1, 3, 4, 7, 8, 9, 10, 11, 12, 20)


def _days(
    *,
    users: str,
    products: str,
    event_types: Sequence[str] = tuple(EVENT_TYPES),
    ages: Sequence[int] = AGES,
    most_events: int = 6,
    least: int = 0,
    most: int = 40,
) -> st.SearchStrategy[list[Day]]:
    """`least` to `most` rows of int_daily_signals, so many days before AS_OF."""
    return st.lists(
        st.builds(
            Day,
            user_id=st.sampled_from(users),
            product_id=st.sampled_from(products),
            event_on=st.sampled_from(ages).map(lambda age: AS_OF - timedelta(days=age)),
            event_type=st.sampled_from(event_types),
            n_events=st.integers(1, most_events),
            # Tenths: no sum of them is exact in doubles.
            quantity=st.integers(1, 40).map(lambda tenths: tenths / 10),
            rating=st.integers(1, 10).map(lambda half_stars: half_stars / 2),
        ),
        unique_by=lambda day: day.key,
        min_size=least,
        max_size=most,
    )


CATALOGUE = [{"product_id": product_id} for product_id in "pqrstx"]

# To plan a model takes DuckDB a tenth of a second, to run it on so few rows nothing. Hence few
# shops, with many users where users do not meet.
some_shops = settings(max_examples=20, deadline=None, derandomize=True)


# The slow way


def _within(days: Iterable[Day], after: date | None, until: date) -> list[Day]:
    return [d for d in days if (after is None or d.event_on > after) and d.event_on <= until]


def _events_left(days: Sequence[Day]) -> dict[tuple[str, str, str, date], int]:
    """How many events of each day are left, after a stack of units and the latest ratings.

    A unit is a tenth of a piece, marked with its day; what undoes pops units from the top.
    """
    left = {day.key: day.n_events for day in days}
    moves = defaultdict(list)
    for day in days:
        pair = day.user_id, day.product_id
        # False sorts before True: of one day, what was added comes before what was taken back.
        moves[*pair, UNDOES.get(day.event_type, day.event_type)].append(
            (day.event_on, day.event_type in UNDOES, round(day.quantity * 10), day)
        )
    for steps in moves.values():
        stack: list[date] = []
        for event_on, is_undoing, n_units, _ in sorted(steps, key=lambda step: step[:2]):
            if is_undoing:
                del stack[max(0, len(stack) - n_units) :]
            else:
                stack += [event_on] * n_units
        for event_on, is_undoing, n_units, day in steps:
            if not is_undoing:
                left[day.key] = math.ceil(Fraction(day.n_events * stack.count(event_on), n_units))
    latest_rating: dict[tuple[str, str], date] = {}
    for day in sorted(days, key=lambda day: day.event_on):
        if day.event_type == "rating":
            latest_rating[day.user_id, day.product_id] = day.event_on
    for day in days:
        is_rating = day.event_type == "rating"
        if is_rating and day.event_on < latest_rating[day.user_id, day.product_id]:
            left[day.key] = 0
    return left


UNDONE_COLUMNS = "period, user_id, product_id, event_type, event_on, n_events, n_left"


def _undone(days: Sequence[Day]) -> list[tuple[Any, ...]]:
    """UNDONE_COLUMNS of UNDONE_MODELS."""
    periods = {
        "as_of": _within(days, None, AS_OF),
        "backtest": _within(days, None, HOLDOUT_FROM),
        "holdout": _within(days, HOLDOUT_FROM, AS_OF),
    }
    rows = []
    for period, in_period in periods.items():
        left = _events_left(in_period)
        rows += [
            (period, *day.key, day.n_events, left[day.key])
            for day in in_period
            if left[day.key] < day.n_events
        ]
    return sorted(rows)


def _strength(day: Day) -> float:
    if day.event_type != "rating":
        return WEIGHTS.get(day.event_type, 0.0)
    assert day.rating is not None
    return WEIGHTS["rating"] * day.rating / 5 if day.rating >= 3 else 0.0


def _flagged(marts: Marts, flag: str, until: date) -> set[str]:
    return {
        u
        for u, since in marts.rows("int_user_activity", f"user_id, {flag}")
        if since and since <= until
    }


def _counted(
    marts: Marts, days: Sequence[Day], after: date | None, until: date
) -> list[tuple[Day, int]]:
    """The days that count, with the events that are left of them."""
    days = _within(days, after, until)
    left = _events_left(days)
    bots = _flagged(marts, "bot_since", until)
    return [
        (day, left[day.key])
        for day in days
        if day.event_type in WEIGHTS and left[day.key] and day.user_id not in bots
    ]


# What was taken back


@some_shops
@given(days=_days(users="uvwxyz", products="p", event_types=["purchase", "return"], most=100))
def test_returns_pop_the_latest_units_off_a_stack(marts: Marts, days: list[Day]):
    marts.build(days, products=CATALOGUE, models=UNDONE_MODELS)

    undone = [row for model in UNDONE_MODELS for row in marts.rows(model, UNDONE_COLUMNS)]
    assert sorted(undone) == _undone(days)


@some_shops
@given(days=_days(users="uvw", products="pq", least=60, most=120))
def test_what_is_undone_of_one_user_product_and_type_is_undone_of_no_other(
    marts: Marts, days: list[Day]
):
    marts.build(days, products=CATALOGUE, models=UNDONE_MODELS)

    undone = [row for model in UNDONE_MODELS for row in marts.rows(model, UNDONE_COLUMNS)]
    assert sorted(undone) == _undone(days)


def test_what_was_bought_in_thirds_and_returned_in_thirds_is_all_gone(marts: Marts):
    days = [
        Day("u", "p", AS_OF - timedelta(days=3), "purchase", 3, 0.3, None),
        *(Day("u", "p", AS_OF - timedelta(days=n), "return", 1, 0.1, None) for n in (0, 1, 2)),
    ]

    marts.build(days, products=CATALOGUE, models=SIGNAL_MODELS)

    assert marts.rows("signals") == []


# Signals


@some_shops
@given(days=_days(users="uvwxyz", products="pqr", least=60, most=120))
def test_a_weight_is_the_sum_of_faded_event_weights(marts: Marts, days: list[Day]):
    marts.build(days, products=CATALOGUE, models=SIGNAL_MODELS)

    counted = _counted(marts, days, None, AS_OF)
    latest: dict[str, date] = {}
    for day, _ in counted:
        latest[day.user_id] = max(latest.get(day.user_id, day.event_on), day.event_on)
    weights: dict[tuple[str, str], float] = defaultdict(float)
    relative_weights: dict[tuple[str, str], float] = defaultdict(float)
    for day, n_left in counted:
        half_life = HALF_LIVES.get(day.event_type, 10)
        strength = _strength(day) * (1 if day.event_type == "rating" else min(n_left, 3))
        pair = day.user_id, day.product_id
        weights[pair] += strength * 0.5 ** ((AS_OF - day.event_on).days / half_life)
        age = (latest[day.user_id] - day.event_on).days
        relative_weights[pair] += strength * 0.5 ** (age / half_life)
    for column, expected in {"weight": weights, "relative_weight": relative_weights}.items():
        rows = {
            (u, p): value for u, p, value in marts.rows("signals", f"user_id, product_id, {column}")
        }
        assert rows == pytest.approx({p: w for p, w in expected.items() if w > 0}, abs=1e-7)


@some_shops
@given(days=_days(users="uvwxyz", products="pqr", least=60, most=120))
def test_signals_count_what_is_left_of_each_type(marts: Marts, days: list[Day]):
    marts.build(days, products=CATALOGUE, models=SIGNAL_MODELS)

    counts: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: dict.fromkeys(WEIGHTS, 0))
    last_at: dict[tuple[str, str], datetime] = {}
    has_strength = set()
    for day, n_left in _counted(marts, days, None, AS_OF):
        pair = day.user_id, day.product_id
        counts[pair][day.event_type] += n_left
        last_at[pair] = max(last_at.get(pair, day.last_at), day.last_at)
        if _strength(day) > 0:
            has_strength.add(pair)
    outliers = _flagged(marts, "outlier_since", AS_OF)
    expected = sorted(
        (
            *pair,
            last_at[pair],
            *counts[pair].values(),
            bool(counts[pair]["rating"] and not counts[pair]["view"] + counts[pair]["click"]),
            pair[0] not in outliers,
        )
        for pair in has_strength
    )
    columns = (
        "user_id, product_id, last_at, n_views, n_clicks, n_carts, n_purchases, n_ratings,"
        " is_only_rated, is_training"
    )
    assert marts.rows("signals", columns) == expected


@some_shops
@given(days=_days(users="uvwxyz", products="pqr", least=60, most=120))
def test_the_holdout_is_what_users_did_after_holdout_from(marts: Marts, days: list[Day]):
    marts.build(days, products=CATALOGUE, models=[*SIGNAL_MODELS, "backtest_signals", "holdout"])

    known = {tuple(row) for row in marts.rows("backtest_signals", "user_id, product_id")}
    events: dict[tuple[str, str], list[tuple[Day, int]]] = defaultdict(list)
    bots = _flagged(marts, "bot_since", AS_OF)
    for day, n_left in _counted(marts, days, HOLDOUT_FROM, AS_OF):
        if _strength(day) > 0 and day.user_id not in bots:
            events[day.user_id, day.product_id].append((day, n_left))
    expected = sorted(
        (
            *pair,
            sum(n for _, n in of_pair),
            sum(n for day, n in of_pair if day.event_type == "purchase"),
            pair not in known,
            min(day.first_at for day, _ in of_pair),
        )
        for pair, of_pair in events.items()
    )
    assert marts.rows("holdout") == expected


# Popularity


@some_shops
@given(days=_days(users="tuvwxyz", products="pqrst", least=40, most=80), data=st.data())
def test_popularity_counts_people_in_every_list(marts: Marts, days: list[Day], data: st.DataObject):
    products = [
        {
            "product_id": product_id,
            "category": data.draw(st.sampled_from([None, "tea", "garden"])),
            "in_stock": data.draw(st.sampled_from([None, True, False])),
        }
        for product_id in "pqrst"
    ]
    users = [{"user_id": "u", "country": "France"}, {"user_id": "v", "country": "France"}]
    marts.build(days, products=products, users=users, models=[*SIGNAL_MODELS, "popularity"])

    reach: dict[tuple[str, str, int], float] = defaultdict(float)
    for day, _ in _counted(marts, days, None, AS_OF):
        age = (AS_OF - day.event_on).days
        key = day.user_id, day.product_id, age
        reach[key] = max(reach[key], min(1.0, _strength(day) / WEIGHTS["purchase"]))
    reach = {key: share for key, share in reach.items() if share > 0}
    if any(day.event_on > AS_OF for day in days):
        # A day of the past, of which nobody knows the stock.
        products = [{**product, "in_stock": None} for product in products]
    expected = _popularity(reach, products, {user["user_id"]: user["country"] for user in users})
    rows = marts.rows("popularity", "segment_type, segment, time_window, rank, product_id, n_users")
    assert rows == [row[:5] + row[6:] for row in expected]
    scores = [
        score
        for (score,) in marts.connection.execute(
            "select score from marts.popularity order by segment_type, segment, time_window, rank"
        ).fetchall()
    ]
    assert scores == pytest.approx([row[5] for row in expected], abs=1e-7)


def _popularity(
    reach: Mapping[tuple[str, str, int], float],
    products: Sequence[Mapping[str, Any]],
    country: Mapping[str, str],
) -> list[tuple[Any, ...]]:
    categories = {p["product_id"]: p["category"] for p in products if p["in_stock"] is not False}

    def people(product_id: str, ages: range, segment: str | None = None) -> dict[str, float]:
        best: dict[str, float] = {}
        for (user_id, of_product, age), share in reach.items():
            is_meant = segment is None or country.get(user_id) == segment
            if of_product == product_id and age in ages and is_meant:
                best[user_id] = max(best.get(user_id, 0), share)
        return best

    ever, recently = range(0, 10_000), range(0, VARIABLES["popularity_recent_days"])
    lists: dict[tuple[str, str, str], list[tuple[str, float, int]]] = defaultdict(list)
    for product_id in categories:
        found = people(product_id, ever)
        lists["global", "all", "all_time"].append((product_id, sum(found.values()), len(found)))
        ages = [age for (_, of_product, age) in reach if of_product == product_id]
        if ages and max(ages) < VARIABLES["new_arrival_days"]:
            # The whole number decides; people between products of one day.
            days_left = VARIABLES["new_arrival_days"] - max(ages)
            for name in (("global", "all"), ("category", categories[product_id])):
                if name[1]:
                    lists[*name, "new_arrivals"].append((product_id, days_left, len(found)))
        wanted = [("global", "all", None), ("segment", "France", "France")]
        if categories[product_id]:
            wanted.append(("category", categories[product_id], None))
        for segment_type, segment, of_country in wanted:
            for window, ages_in in (("all_time", ever), ("last_28_days", recently)):
                found = people(product_id, ages_in, of_country)
                if found and (segment_type, window) != ("global", "all_time"):
                    lists[segment_type, segment, window].append(
                        (product_id, sum(found.values()), len(found))
                    )
    lists["global", "all", "trending"] = _trending(reach, set(categories), people)
    ranked = []
    for name, entries in lists.items():
        is_new = name[-1] == "new_arrivals"
        wanted_by = {
            each[0]: sum(people(each[0], ever).values()) if is_new else 0 for each in entries
        }
        ordered = sorted(
            entries, key=lambda each: (-round(each[1], 9), -round(wanted_by[each[0]], 9), each[0])
        )
        depth = None if name == ("global", "all", "all_time") else VARIABLES["popularity_depth"]
        for rank, (product_id, score, n_users) in enumerate(ordered[:depth], start=1):
            ranked.append((*name, rank, product_id, score, n_users))
    return sorted(ranked)


def _trending(reach: Mapping[tuple[str, str, int], float], available: set[str], people: Any) -> Any:
    """4 recent days against two spans of 4 days before them, corrected for the shop's growth."""
    recent, usual, n_users = {}, {}, {}
    for product_id in {of_product for (_, of_product, _) in reach}:
        found = people(product_id, range(0, 4))
        recent[product_id], n_users[product_id] = sum(found.values()), len(found)
        before = [people(product_id, range(4, 8)), people(product_id, range(8, 12))]
        usual[product_id] = sum(sum(span.values()) for span in before) / 2
    total = sum(usual.values())
    growth = sum(recent.values()) / total if total else 1
    entries = []
    for product_id in available & set(recent):
        expected = usual[product_id] * growth
        score = 2 * (math.sqrt(recent[product_id] + 0.375) - math.sqrt(expected + 0.375))
        if round(score, 9) > 0:
            entries.append((product_id, score, n_users[product_id]))
    return entries


# Pairs


@some_shops
@given(
    days=_days(
        users="stuvwxyz",
        products="pqrstx",
        event_types=["view", "view", "purchase", "return"],
        ages=[0, 9],
        # So few that nobody is a bot: the more of them, the fewer baskets.
        most_events=1,
        least=60,
        most=100,
    )
)
def test_pairs_are_counted_and_scored_as_by_hand(marts: Marts, days: list[Day]):
    marts.build(days, products=CATALOGUE, models=[*UP_TO_PRODUCTS, *PAIR_MODELS])

    left_out = _flagged(marts, "outlier_since", AS_OF)
    baskets: dict[tuple[str, str, date], set[str]] = defaultdict(set)
    for day, _ in _counted(marts, days, None, AS_OF):
        if day.user_id not in left_out:
            relation = "bought_together" if day.event_type == "purchase" else "viewed_together"
            baskets[relation, day.user_id, day.event_on].add(day.product_id)
    expected = {
        (relation, *pair): measures
        for relation in ("bought_together", "viewed_together")
        for pair, measures in _pairs(
            [b for (of, _, _), b in baskets.items() if of == relation and len(b) <= 3]
        ).items()
    }
    columns = "relation, product_id, other_product_id, n_together, support, confidence, lift"
    rows = marts.rows("product_pairs", f"{columns}, log_likelihood, rank")
    for relation, product_id, other, *measures, rank in rows:
        assert measures == pytest.approx(expected[relation, product_id, other], abs=1e-6)
        better = sum(
            round(g2[-1], 6) > round(measures[-1], 6)
            for (of, one, _), g2 in expected.items()
            if (of, one) == (relation, product_id)
        )
        assert rank > better
    lists = defaultdict(int)
    for relation, product_id, _ in expected:
        lists[relation, product_id] += 1
    assert len(rows) == sum(min(n, 2) for n in lists.values())


def _pairs(baskets: Sequence[set[str]]) -> dict[tuple[str, str], list[float]]:
    """(n_together, support, confidence, lift, G2) of the pairs with support and lift above 1."""
    n = len(baskets)
    pairs = {}
    products = sorted(set().union(*baskets)) if baskets else []
    for one in products:
        for other in products:
            cells = [
                sum((one in b) is with_one and (other in b) is with_other for b in baskets)
                for with_one in (True, False)
                for with_other in (True, False)
            ]
            n_one, n_other, n_together = cells[0] + cells[1], cells[0] + cells[2], cells[0]
            if one == other or n_together < 2 or n_together * n <= n_one * n_other:
                continue
            by_chance = [
                row * column / n for row in (n_one, n - n_one) for column in (n_other, n - n_other)
            ]
            g2 = 2 * sum(k * math.log(k / e) for k, e in zip(cells, by_chance, strict=True) if k)
            pairs[one, other] = [
                n_together, n_together / n, n_together / n_one, n_together * n / n_one / n_other, g2
            ]  # fmt: skip
    return pairs


# Point in time


@some_shops
@given(
    past=_days(users="uvw", products="pqrst", ages=[10, 11, 15], least=20),
    one=_days(users="uv", products="pq", ages=[0, 9], least=10),
    other=_days(users="uvwx", products="pqrstx", ages=[-1, 0, 9], least=20),
)
def test_nothing_after_holdout_from_changes_the_backtest(
    marts: Marts, past: list[Day], one: list[Day], other: list[Day]
):
    past = _within(past, None, HOLDOUT_FROM)
    futures = [[d for d in future if d.event_on > HOLDOUT_FROM] for future in (one, other)]
    assume(futures[0] != futures[1])

    seen = []
    for future in futures:
        marts.build([*past, *future], products=CATALOGUE, models=BACKTEST_MODELS)
        seen.append([marts.rows(model) for model in BACKTEST_MODELS[-2:]])

    assert seen[0] == seen[1]


@settings(some_shops, max_examples=10)
@given(past=_days(users="uvw", products="pqrst"), future=_days(users="uvx", products="px"))
def test_nothing_after_as_of_changes_anything(marts: Marts, past: list[Day], future: list[Day]):
    past = _within(past, None, AS_OF)
    future = [d for d in future if d.event_on > AS_OF]
    assume(future)

    seen = []
    for days in (past, [*past, *future]):
        marts.build(days, products=CATALOGUE)
        seen.append([marts.rows(model) for model in MODELS])

    assert seen[0] == seen[1]


# Whole builds


def test_threads_and_the_order_of_rows_change_no_bit_of_any_mart(marts: Marts):
    # More rows than one thread takes at a time (122,880), so that two threads do share the work.
    draw = random.Random(7)
    days = {}
    for _ in range(140_000):
        user_number = draw.randrange(3000)
        # As many products as a user can touch without becoming an outlier.
        product_number = (7 * user_number + draw.randrange(4)) % 100
        day = Day(
            user_id=f"u{user_number}",
            product_id=f"p{product_number}",
            event_on=AS_OF - timedelta(days=draw.randrange(120)),
            event_type=draw.choice(EVENT_TYPES),
            n_events=draw.randrange(1, 3),
            quantity=draw.randrange(1, 30) / 10,
            rating=draw.randrange(1, 11) / 2,
        )
        days[day.key] = day
    rows = list(days.values())
    products = [
        {"product_id": f"p{n}", "category": f"c{n % 7}", "title": f"Lunch bag {'xyz'[n % 3] * 3}"}
        for n in range(100)
    ]
    users = [{"user_id": f"u{n}", "country": f"s{n % 5}"} for n in range(2000)]

    seen = []
    for threads in (1, 4):
        marts.connection.execute(f"set threads = {threads}")
        draw.shuffle(rows)
        marts.build(rows, products=products, users=users)
        seen.append({model: marts.fingerprint(model) for model in MODELS})
    marts.connection.execute("reset threads")

    assert len(rows) > 122_880
    assert all(n_rows > 0 for n_rows, _ in seen[0].values())
    assert seen[0] == seen[1]


def test_a_shop_passes_all_tests_that_stand_beside_the_models(tmp_path: Path):
    warehouse = tmp_path / "shop.duckdb"
    write_raw(
        warehouse,
        events=_raw_events(until=AS_OF),
        products=[{"product_id": p, "title": f"Product {p}"} for p in "pqrst"],
        users=[{"user_id": "u1", "country": "France"}],
    )

    # The unit tests of the layers below run with the tests of those layers.
    below = ["path:models/staging,test_type:unit", "path:models/intermediate,test_type:unit"]
    run_dbt("build", warehouse, select=["+marts"], exclude=below)

    assert query(warehouse, "select count(*) > 0 from marts.signals") == [(True,)]


def test_a_dirty_shop_is_accounted_for_to_the_last_row_and_keeps_its_past(tmp_path: Path):
    past = _raw_events(until=HOLDOUT_FROM)
    futures = [_raw_events(after=HOLDOUT_FROM, seed=seed) for seed in (1, 2)]
    # Copies of past events that arrive later must not push out the events they are copies of.
    futures[1] += [{**event, "source_file": "events/late.csv"} for event in past[::5]]
    malformed = [{"line": "a,b"}]
    segment_by = "customer's tier"

    seen = []
    for number, future in enumerate(futures):
        warehouse = tmp_path / f"shop_{number}.duckdb"
        write_raw(
            warehouse,
            events=[*past, *future],
            products=[{"product_id": p, "title": f"Product {p}"} for p in "pqrst"],
            users=[{"user_id": "u1", "attributes": json.dumps({segment_by: "gold"})}],
            malformed=malformed,
        )
        run_dbt(
            "build",
            warehouse,
            select=["+marts"],
            exclude=["test_type:unit", "test_type:generic"],
            variables={**VARIABLES, "segment_by": segment_by},
        )
        steps = dict(
            query(warehouse, "select step, sum(n_rows)::int from marts.row_accounting group by all")
        )
        assert steps["arrived"] == len(past) + len(future) + len(malformed)
        assert steps["arrived"] == steps["rejected"] + steps["accepted"]
        assert steps["accepted"] == steps["left out"] + steps["counted"]
        seen.append(
            [
                query(warehouse, f"select * from marts.{mart} order by all")
                for mart in ("backtest_signals", "backtest_popularity")
            ]
        )

    assert all(seen[0])
    assert seen[0] == seen[1]


def _raw_events(
    *, after: date = AS_OF - timedelta(days=40), until: date = AS_OF, seed: int = 0
) -> list[dict[str, Any]]:
    """300 raw events of all types in the days after `after` up to `until`, some of them refused."""
    draw = random.Random(seed)
    events = []
    for _ in range(300):
        day = until - timedelta(days=draw.randrange((until - after).days))
        events.append(
            {
                "user_id": draw.choice(["u1", "u2", "u3", "u4", "u5", None]),
                "product_id": draw.choice("pqrst?"),
                "event_type": draw.choice(EVENT_TYPES),
                "event_ts": f"{day} {draw.randrange(24):02}:00:{draw.randrange(4):02}",
                "quantity": draw.choice([1, 2, "two"]),
                "rating": draw.randrange(1, 6),
            }
        )
    return events
