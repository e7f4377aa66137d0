"""Why a product is not on a list, in cases that a small shop seldom has; the rest in test_line."""

import duckdb
import pytest

from ml_assets.explain import _WHY_NOT


@pytest.fixture
def connection():
    """Somebody who bought p, which other products are better than."""
    with duckdb.connect() as connection:
        connection.execute(
            """
            create schema ml; create schema marts;
            create table marts.users as select 'u' as user_id;
            create table marts.products as select 'p' as product_id, true as is_available;
            create table marts.signals as
            select 'u' as user_id, 'p' as product_id, 2 as n_purchases;
            create table ml.recommendations as
            from (values ('u', 'q', 1, 2.0, 'hybrid'), ('u', 'r', 2, 1.0, 'popular'))
                as rows (user_id, product_id, rank, score, source);
            create table ml.candidates (user_id varchar, product_id varchar);
            create table ml.rules_in_force (rule_id varchar, action varchar, by_column varchar);
            create table ml.rule_ledger (
                user_id varchar, product_id varchar, rule_id varchar, action varchar,
                old_rank integer, new_rank integer
            );
            create macro ml.explain_recommendation(the_user, the_product) as table
            select 0.5 as share, 1.0 as raw_score
            """
        )
        connection.execute(_WHY_NOT)
        yield connection


def why(connection):
    return connection.execute("from ml.why_not('u', 'p')").fetchall()


BETTER = ("other products are better", "score 0.500, the last of the models' 1 rows has 2.000")


def test_what_was_bought_is_not_shown_again(connection):
    assert why(connection) == [("bought already", "purchases: 2")]


def test_what_may_come_back_is_not_shown_because_other_products_are_better(connection):
    connection.execute("insert into ml.rules_in_force values ('again', 'repeat', null)")
    ((reason, detail),) = why(connection)
    assert reason == "bought already"
    assert detail == "purchases: 2; or a rule lets it come back, and other products are better"

    # Now it is plain that the rule does.
    connection.execute("insert into ml.candidates values ('u', 'p')")
    assert why(connection) == [BETTER]


def test_what_a_repeat_rule_hides_was_bought_and_the_rule_is_named(connection):
    connection.execute("insert into ml.rules_in_force values ('again', 'repeat', null)")
    connection.execute(
        "insert into ml.rule_ledger values ('u', 'p', 'again', 'repeat', null, null)"
    )

    assert why(connection) == [
        ("bought already", "purchases: 2"),
        ("a rule keeps it off", "again (repeat)"),
    ]


def test_what_came_back_is_on_the_list_and_that_is_all(connection):
    connection.execute("update ml.recommendations set product_id = 'p' where rank = 1")

    assert why(connection) == [("it is on the list", "rank 1")]


def test_a_list_without_rows_of_models_has_no_score_to_be_held_against(connection):
    connection.execute("update marts.signals set n_purchases = 0")
    assert why(connection) == [BETTER]

    connection.execute("update ml.recommendations set source = 'popular'")
    assert why(connection) == [("other products are better", "score 0.500")]
