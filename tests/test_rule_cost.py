"""What rules cost on a fold: what is right today need not be right for it, and the same clocks."""

from datetime import date, datetime

import duckdb
import polars as pl
import pytest
from frames_for_tests import checkerboard, products_of, quiet, signals_of
from test_backtest import BACKTEST_SETTINGS, DAY, PRODUCTS, N, holdout_of, past_of
from test_rules import rules_of

from ml_assets.backtest import learn
from ml_assets.rule_cost import price_warehouse
from ml_assets.rules import ALL_RULES, active_rules, write_rules

AS_OF = date(2024, 6, 29)
SETTINGS = {**BACKTEST_SETTINGS, "cf_model": "item_item"}
# After the fold's day.
GIFT = products_of({"gift": "new gift"}).with_columns(
    added_at=pl.lit(datetime(2024, 6, 10)).cast(pl.Datetime("us"))
)
CATALOGUE = pl.concat([PRODUCTS, GIFT])
SIGNALS_OF_MAY = signals_of(checkerboard(N)).with_columns(last_at=datetime(2024, 5, 31))


@pytest.fixture
def connection():
    with duckdb.connect() as connection:
        users = pl.DataFrame({"user_id": [f"{i:03}" for i in range(N)]}).to_arrow()
        products, bought = CATALOGUE.to_arrow(), pl.DataFrame(SIGNALS_OF_MAY).to_arrow()
        connection.register("the_users", users)
        connection.register("the_products", products)
        connection.register("bought", bought)
        connection.execute(
            """
            create schema marts; create schema ml; create schema intermediate;
            create table marts.users as
            select *, date '2024-06-29' as last_at, null::varchar as attributes from the_users;
            create table marts.products as
            select
                *, case when product_id = 'gift' then 'xmas' end as category, 1.0 as price,
                null::double as margin, null::varchar as attributes
            from the_products;
            create table ml.rule_ledger (
                user_id varchar, product_id varchar, rule_id varchar, action varchar,
                old_rank integer, new_rank integer
            );
            -- Of the two days up to the fold's only the first was kept.
            create table intermediate.int_daily_signals as
            select user_id, product_id, event_on, 'purchase' as event_type
            from bought
            cross join unnest([date '2024-02-20', date '2024-05-30', date '2024-06-20'])
                as days (event_on);
            create table intermediate.int_backtest_undone_days as
            select *, 'backtest' as period, 0 as n_left from intermediate.int_daily_signals
            where event_on = date '2024-05-30';
            """
        )
        yield connection


def priced(connection, *rows, **changes):
    write_rules(connection, active_rules(rules_of(*rows), as_of=AS_OF))
    past = past_of(settings=SETTINGS, products=CATALOGUE, **changes)
    return price_warehouse(
        connection,
        past,
        learn(past, SETTINGS),
        signals=SIGNALS_OF_MAY,
        holdout_from=DAY,
        as_of=AS_OF,
        settings=SETTINGS,
        progress=quiet,
    )


def test_a_rule_for_what_came_after_the_fold_has_no_price_and_the_reason(connection):
    prices = priced(connection, ("xmas only", "require", "category = 'xmas'"))

    assert len(prices.rules) == 0
    reason = f"rule xmas only leaves {N} users without any product"
    assert prices.skipped == {ALL_RULES: reason}


def test_windows_count_from_the_last_purchase_that_was_kept_by_the_folds_day(connection):
    again = holdout_of([("000", "002"), ("001", "003")], new=False)

    def recall(days):
        rule = ("runs out", "repeat", None, days)
        prices = priced(connection, rule, holdout=again)
        return (
            prices.rules.filter(rule_id="runs out").select("recall_with", "recall_without").row(0)
        )

    # From the 20th of February to the 1st of June, although all of it was seen the day before.
    with_it, without = recall(102.0)
    assert with_it > without == 0
    assert recall(103.0) == (0, 0)
