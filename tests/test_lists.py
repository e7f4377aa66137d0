"""Making only some lists again gives what making all of them would give, bit for bit."""

import weakref
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from frames_for_tests import (
    SETTINGS,
    checkerboard,
    model_tables_of,
    popularity_of,
    products_of,
    quiet,
    signals_of,
    users_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ml_assets.frames import SIGNALS
from ml_assets.lists import LIST_TABLES, make_lists
from ml_assets.model_tables import factor_frame, hybrid_of, vectors_of
from ml_assets.models import als_user_factors
from ml_assets.signal_matrix import build_signal_matrix

# graph_filter learns weights of either sign.
FAMILIES = ["als", "item_item", "graph_filter"]


@dataclass(frozen=True)
class Shop:
    """One day of a shop, with the model tables that were learned on some day."""

    signals: pl.DataFrame
    users: pl.DataFrame
    products: pl.DataFrame
    popularity: pl.DataFrame
    models: dict[str, pl.DataFrame]
    settings: dict[str, Any]

    @property
    def matrix(self):
        return build_signal_matrix(
            self.signals,
            user_ids=self.users["user_id"],
            product_ids=self.products["product_id"],
        )

    @property
    def user_factors(self):
        items = vectors_of(self.models["item_factors"], self.matrix.product_ids, "factors")
        if items is None:
            return pl.DataFrame()
        vectors = als_user_factors(items, self.matrix.history, settings=self.settings)
        return factor_frame(self.matrix.user_ids, "user_id", vectors, "factors")

    def learned(self) -> "Shop":
        """The same shop with the models of today."""
        return replace(self, models=model_tables_of(self.matrix, self.products, self.settings))


def make(connection, shop, progress=quiet):
    return make_lists(
        connection,
        matrix=shop.matrix,
        hybrid=hybrid_of(
            shop.matrix,
            user_factors=shop.user_factors,
            **shop.models,
            w_cf=shop.settings["w_cf"],
            w_content=shop.settings["w_content"],
        ),
        users=shop.users,
        products=shop.products,
        popularity=shop.popularity,
        settings=shop.settings,
        progress=progress,
    )


def tables(connection):
    return {
        table: connection.sql(f"select * from ml.{table} order by all").pl()
        for table in LIST_TABLES
    }


def made_from_nothing(shop):
    with duckdb.connect() as connection:
        make(connection, shop)
        return tables(connection)


def assert_same(some, others):
    for table in LIST_TABLES:
        assert_frame_equal(some[table], others[table], check_exact=True)
        # Every bit: -0.0 is not 0.0.
        assert repr(some[table].rows()) == repr(others[table].rows())


def drawn_signals(rng, users, products, share):
    pairs = [(user, product) for user in users for product in products if rng.random() < share]
    kind = rng.integers(0, 3, len(pairs))
    return pl.DataFrame(
        {
            "user_id": [user for user, _ in pairs],
            "product_id": [product for _, product in pairs],
            "weight": rng.exponential(size=len(pairs)),
            "relative_weight": 1 + rng.exponential(size=len(pairs)),
            "n_carts": kind == 1,
            "n_purchases": kind == 2,
            "is_only_rated": False,
            "is_training": True,
        },
        schema_overrides={name: SIGNALS[name] for name in ("user_id", "product_id")},
    ).cast(dict(SIGNALS))


def drawn_popularity(rng, products):
    ids = products.filter("is_available")["product_id"].to_list()
    names = ["popular", "trending", "segment__France", "category__tea"]
    return popularity_of(
        **{
            name: rng.permutation(ids)[: len(ids) if name == "popular" else 3].tolist()
            for name in names
        }
    )


def drawn_titles(rng, names):
    words = ["red", "blue", "tin", "paper", "lamp", "mug", "bowl"]
    return {name: None if rng.random() < 0.15 else " ".join(rng.choice(words, 2)) for name in names}


def drawn_shop(rng, family):
    names = [f"p{i:02}" for i in range(14)]
    products = products_of(drawn_titles(rng, names), gone=frozenset(rng.choice(names, 3)))
    users = users_of({f"u{i}": rng.choice(["France", "Spain", None]) for i in range(9)})
    users = users.with_columns(
        favourite_category=pl.Series(rng.choice(["tea", "wine"], len(users)), dtype=pl.String)
    )
    return Shop(
        # Two of them do nothing, and the one after them only a little.
        signals=pl.concat(
            [
                drawn_signals(rng, users["user_id"][:6], names, 0.35),
                drawn_signals(rng, users["user_id"][8:], names, 0.1),
            ]
        ),
        users=users,
        products=products,
        popularity=drawn_popularity(rng, products),
        models={},
        settings={
            **SETTINGS,
            "cf_model": family,
            "iterations": 3,
            "neighbours": 4,
            "content_neighbours": 3,
        },
    ).learned()


def some_users_do_something(shop, rng):
    users = rng.choice(shop.users["user_id"].to_numpy(), 2)
    kept = shop.signals.filter(~pl.col("user_id").is_in(users) | (pl.col("weight") < 1))
    drawn = drawn_signals(rng, sorted(set(users)), shop.products["product_id"], 0.2)
    new = drawn.join(kept, on=["user_id", "product_id"], how="anti")
    return replace(shop, signals=pl.concat([kept, new]))


def a_user_comes(shop, rng):
    name = f"new{rng.integers(1000)}"
    if name in shop.users["user_id"]:
        return shop
    signals = drawn_signals(rng, [name], shop.products["product_id"], rng.choice([0, 0.3]))
    users = pl.concat([shop.users, users_of({name: "France"}, category="wine")])
    return replace(shop, users=users, signals=pl.concat([shop.signals, signals]))


def a_user_goes(shop, rng):
    gone = pl.col("user_id") == rng.choice(shop.users["user_id"].to_numpy())
    return replace(shop, users=shop.users.filter(~gone), signals=shop.signals.filter(~gone))


def a_user_moves(shop, rng):
    moves = pl.col("user_id") == rng.choice(shop.users["user_id"].to_numpy())
    segment = pl.when(moves).then(pl.lit("France")).otherwise("segment")
    return replace(shop, users=shop.users.with_columns(segment=segment))


def a_product_is_sold_out_or_back(shop, rng):
    is_it = pl.col("product_id") == rng.choice(shop.products["product_id"].to_numpy())
    products = shop.products.with_columns(is_available=pl.col("is_available") ^ is_it)
    return replace(shop, products=products, popularity=drawn_popularity(rng, products))


def a_product_is_renamed(shop, rng):
    is_it = pl.col("product_id") == rng.choice(shop.products["product_id"].to_numpy())
    title = pl.when(is_it).then(pl.lit(rng.choice(["new name", None]))).otherwise("title")
    return replace(shop, products=shop.products.with_columns(title=title))


def a_product_comes(shop, rng):
    name = f"p{rng.integers(14)}x{rng.integers(1000)}"
    if name in shop.products["product_id"]:
        return shop
    products = pl.concat([shop.products, products_of({name: "red lamp"})])
    return replace(shop, products=products, popularity=drawn_popularity(rng, products))


def a_product_goes(shop, rng):
    gone = pl.col("product_id") == rng.choice(shop.products["product_id"].to_numpy())
    products = shop.products.filter(~gone)
    return replace(
        shop,
        signals=shop.signals.filter(~gone),
        products=products,
        popularity=drawn_popularity(rng, products),
    )


def others_are_popular(shop, rng):
    return replace(shop, popularity=drawn_popularity(rng, shop.products))


def a_day_passes(shop, _rng):
    return replace(shop, signals=shop.signals.with_columns(pl.col("weight") / 2))


def the_settings_change(shop, rng):
    new = {"w_cf": rng.choice([0.7, 0.5]).item(), "top_n": rng.integers(3, 7).item()}
    return replace(shop, settings={**shop.settings, **new})


def the_models_learn(shop, _rng):
    return shop.learned()


CHANGES = [
    some_users_do_something,
    a_user_comes,
    a_user_goes,
    a_user_moves,
    a_product_is_sold_out_or_back,
    a_product_is_renamed,
    a_product_comes,
    a_product_goes,
    others_are_popular,
    a_day_passes,
    the_settings_change,
    the_models_learn,
]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    days=st.lists(
        st.lists(st.sampled_from(CHANGES), min_size=1, max_size=2), min_size=1, max_size=3
    ),
)
def test_lists_made_day_by_day_equal_lists_made_from_nothing(tmp_path_factory, family, seed, days):
    rng = np.random.default_rng(seed)
    shop = drawn_shop(rng, family)

    with duckdb.connect(tmp_path_factory.mktemp("lists") / "warehouse.duckdb") as connection:
        make(connection, shop)
        for changes in days:
            for change in changes:
                shop = change(shop, rng)
            make(connection, shop)

            assert_same(tables(connection), made_from_nothing(shop))


@cache
def window_shoppers(family):
    """Twelve users who looked at the products of their own parity, all but one.

    Nothing is bought, so the models alone fill every list of four.
    """
    names = [f"{i:03}" for i in range(12)]
    products = products_of({name: f"{'eo'[int(name) % 2]}{name}" for name in names})
    text = [["even", "odd"][int(name) % 2] for name in names]
    return Shop(
        signals=signals_of(checkerboard(12), bought=False),
        users=users_of(dict.fromkeys(names)),
        products=products.with_columns(text=pl.Series(text)),
        popularity=popularity_of(popular=names),
        models={},
        settings={**SETTINGS, "cf_model": family, "iterations": 5},
    ).learned()


@pytest.fixture
def connection(tmp_path):
    with duckdb.connect(tmp_path / "warehouse.duckdb") as connection:
        yield connection


@pytest.fixture(params=FAMILIES)
def shop(request):
    return window_shoppers(request.param)


def announced(connection, shop):
    """What a run says before it scores anyone."""
    messages = []
    make(connection, shop, messages.append)
    return messages[0]


def bought_001(user):
    return signals_of([(user, "001")])


def test_the_first_run_makes_everybodys_list(connection, shop):
    assert announced(connection, shop) == "will score 12 of 12 users: 12 have no list yet"


def test_when_nothing_changed_nobody_is_scored(connection, shop):
    make(connection, shop)
    before = tables(connection)

    report = make(connection, shop)

    assert report.n_scored == 0 and str(report.touched) == "will score 0 of 12 users"
    assert_same(tables(connection), before)


def test_a_report_counts_users_and_the_rows_of_each_table(connection, shop):
    report = make(connection, shop)

    assert (report.n_users, report.n_scored) == (12, 12)
    assert report.n_rows == {table: len(rows) for table, rows in tables(connection).items()}
    assert report.n_rows["recommendations"] == 12 * 4


def test_rows_of_users_who_are_not_touched_are_not_written_again(connection, shop):
    make(connection, shop)
    connection.execute("update ml.recommendations set reason = 'as it was'")

    make(connection, replace(shop, signals=pl.concat([shop.signals, bought_001("000")])))

    written = connection.execute(
        "select distinct user_id from ml.recommendations where reason <> 'as it was'"
    ).fetchall()
    assert written == [("000",)]


def test_the_rows_of_a_first_run_are_seen_before_its_connection_is_closed(connection):
    shop = window_shoppers("item_item")
    shop = replace(
        shop,
        signals=shop.signals.clear(),
        users=users_of(dict.fromkeys(f"{n:05}" for n in range(40_000))),
        # From 122,880 rows on DuckDB writes what is appended at once to the file.
        settings={**shop.settings, "users_per_part": 40_000},
    )

    make(connection, shop)

    assert connection.execute(
        "select count(product_id), sum(rank) from ml.recommendations"
    ).fetchall() == [(160_000, 400_000)]


def test_a_user_who_does_something_gets_a_new_list(connection, shop):
    make(connection, shop)

    busy = replace(shop, signals=pl.concat([shop.signals, bought_001("000")]))

    assert announced(connection, busy) == "will score 1 of 12 users: 1 have other signals"


def test_buying_what_one_looked_at_is_doing_something(connection, shop):
    make(connection, shop)

    bought = (pl.col("user_id") == "000") & (pl.col("product_id") == "002")
    shop = replace(shop, signals=shop.signals.with_columns(n_purchases=bought.cast(pl.Int32)))

    assert announced(connection, shop) == "will score 1 of 12 users: 1 have other signals"
    assert_same(tables(connection), made_from_nothing(shop))


def test_a_newcomer_gets_a_list_from_the_chain_and_a_new_one_every_day(connection, shop):
    make(connection, shop)

    shop = replace(shop, users=pl.concat([shop.users, users_of({"newcomer": None})]))

    assert announced(connection, shop) == "will score 1 of 13 users: 1 are new"
    # What is popular can be something else tomorrow.
    assert announced(connection, shop) == (
        "will score 1 of 13 users: 1 have rows of the fallback chain"
    )


def test_a_user_who_is_gone_leaves_nothing_behind(connection, shop):
    make(connection, shop)

    others = pl.col("user_id") != "005"
    shop = replace(shop, users=shop.users.filter(others), signals=shop.signals.filter(others))

    assert announced(connection, shop) == "will score 0 of 11 users"
    for table in ("candidates", "recommendations", "scored_users"):
        assert "005" not in tables(connection)[table]["user_id"]


@pytest.mark.parametrize("family, n_reached", [("als", 12), ("item_item", 6)])
def test_a_product_touches_who_had_it_when_it_sells_out_and_who_could_have_it_when_it_is_back(
    connection, family, n_reached
):
    shop = window_shoppers(family)
    sold_out = pl.col("product_id") != "001"
    without = replace(shop, products=shop.products.with_columns(is_available=sold_out))
    make(connection, shop)
    n_proposed = len(
        tables(connection)["candidates"].filter(pl.col("product_id") == "001")["user_id"].unique()
    )

    for today, n_touched in ((without, n_proposed), (shop, n_reached)):
        assert announced(connection, today) == (
            f"will score {n_touched} of 12 users: "
            f"{n_touched} are reached by products that came or went"
        )
        assert_same(tables(connection), made_from_nothing(today))


def test_a_new_title_touches_those_whose_reasons_name_it(connection, shop):
    make(connection, shop)
    n_users = connection.execute(
        "select count(distinct user_id) from ml.recommendations where because_product_id = '001'"
    ).fetchall()[0][0]

    title = pl.when(pl.col("product_id") == "001").then(pl.lit("new")).otherwise("title")
    shop = replace(shop, products=shop.products.with_columns(title=title))

    assert 0 < n_users < 12
    assert announced(connection, shop) == (
        f"will score {n_users} of 12 users: {n_users} have a reason with a title that changed"
    )
    reasons = tables(connection)["recommendations"]["reason"]
    assert "Because you viewed new" in reasons
    assert "Because you viewed o001" not in reasons


def test_a_product_that_no_model_knows_touches_nobody_whose_list_is_full(connection, shop):
    make(connection, shop)

    # In the middle of the catalogue, so that every product behind it moves by one.
    shop = replace(shop, products=pl.concat([shop.products, products_of({"003 new": "new"})]))

    assert announced(connection, shop) == "will score 0 of 12 users"
    assert_same(tables(connection), made_from_nothing(shop))


def test_a_list_the_shop_could_not_fill_is_made_again_when_a_product_comes(connection):
    shop = window_shoppers("als")
    shop = replace(shop, settings={**shop.settings, "top_n": 13, "candidates": 13})
    assert make(connection, shop).n_rows["recommendations"] == 12 * 12

    products = pl.concat([shop.products, products_of({"new": "new"})])
    shop = replace(shop, products=products, popularity=popularity_of(popular=["new"]))

    assert make(connection, shop).n_rows["recommendations"] == 12 * 13
    assert_same(tables(connection), made_from_nothing(shop))


def test_a_day_on_which_nobody_does_anything_touches_nobody(connection, shop):
    make(connection, shop)

    shop = a_day_passes(shop, None)

    assert announced(connection, shop) == "will score 0 of 12 users"


@pytest.mark.parametrize("change", [{"w_cf": 0.6}, {"top_n": 3}, {"candidates": 7}])
def test_other_settings_touch_everybody(connection, shop, change):
    make(connection, shop)

    shop = replace(shop, settings={**shop.settings, **change})

    assert announced(connection, shop) == (
        "will score 12 of 12 users: 12 because models or settings changed"
    )


def test_other_models_touch_everybody(connection, shop):
    make(connection, shop)

    busy = replace(shop, signals=pl.concat([shop.signals, bought_001("000")]))

    assert announced(connection, busy.learned()) == (
        "will score 12 of 12 users: 12 because models or settings changed"
    )


def test_a_model_of_the_other_family_touches_everybody(connection):
    make(connection, window_shoppers("als"))

    assert announced(connection, window_shoppers("item_item")).startswith("will score 12 of 12")


def test_users_are_scored_in_parts_and_the_parts_change_nothing(connection, shop):
    messages = []
    make(connection, shop, messages.append)

    assert messages[1:] == [f"scored {n} of 12 users" for n in (5, 10, 12)]
    in_one = replace(shop, settings={**shop.settings, "users_per_part": 100})
    ours, theirs = tables(connection), made_from_nothing(in_one)
    for table in ("candidates", "recommendations", "scored_users"):
        assert_frame_equal(ours[table], theirs[table], check_exact=True)


def test_parts_that_are_written_do_not_stay_in_memory_until_the_end(connection, shop, monkeypatch):
    tables, n_alive = [], []
    to_arrow = pl.DataFrame.to_arrow

    def noted(frame):
        table = to_arrow(frame)
        tables.append(weakref.ref(table))
        return table

    monkeypatch.setattr(pl.DataFrame, "to_arrow", noted)
    one_by_one = replace(shop, settings={**shop.settings, "users_per_part": 1})
    make(
        connection, one_by_one, lambda _: n_alive.append(sum(each() is not None for each in tables))
    )

    assert len(n_alive) == 13
    # Those that were registered before the first part, and the one that is being written.
    assert max(n_alive[1:]) <= n_alive[1] + 1


class BreaksAt:
    """Progress that fails at a message."""

    def __init__(self, text):
        self.text = text

    def __call__(self, message):
        if message.startswith(self.text):
            raise KeyboardInterrupt(message)


@pytest.mark.parametrize("text", ["will score", "scored 5 of 12", "scored 12 of 12"])
def test_a_run_that_breaks_off_changes_nothing_and_the_next_one_completes(connection, shop, text):
    make(connection, shop)
    before = tables(connection)
    changed = replace(shop, settings={**shop.settings, "w_cf": 0.1})

    with pytest.raises(KeyboardInterrupt):
        make(connection, changed, BreaksAt(text))

    assert_same(tables(connection), before)
    make(connection, changed)
    assert_same(tables(connection), made_from_nothing(changed))


def test_a_few_users_of_a_run_that_breaks_off_keep_their_old_rows(connection, shop):
    make(connection, shop)
    before = tables(connection)
    busy = replace(shop, signals=pl.concat([shop.signals, bought_001("000")]))

    with pytest.raises(KeyboardInterrupt):
        make(connection, busy, BreaksAt("scored"))

    assert_same(tables(connection), before)


def test_a_first_run_that_breaks_off_leaves_no_table(connection, shop):
    with pytest.raises(KeyboardInterrupt):
        make(connection, shop, BreaksAt("scored 5"))

    assert connection.execute("from duckdb_tables()").fetchall() == []


def test_a_shop_without_users_has_empty_lists(connection, shop):
    make(connection, shop)

    empty = replace(shop, users=shop.users.clear(), signals=shop.signals.clear())

    assert announced(connection, empty) == "will score 0 of 0 users"
    assert tables(connection)["recommendations"].is_empty()
