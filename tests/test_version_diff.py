"""What changed between two versions: each row with the cause that is kept with them."""

import duckdb
import pytest
from publishing_for_tests import make_shop, stage

USERS = ("events", "fallback", "model", "other", "rule", "same", "stock")


@pytest.fixture
def shop():
    with duckdb.connect() as connection:
        make_shop(connection, users=USERS, n_products=20)
        yield connection


def changes(shop, before, after):
    """Rows of the diff by user."""
    found: dict[str, list[tuple]] = {}
    for user, *row in shop.execute(
        "select user_id, product_id, change, rank_before, rank_after, cause"
        " from serving.version_diff($before, $after)",
        {"before": before.version, "after": after.version},
    ).fetchall():
        found.setdefault(user, []).append(tuple(row))
    return found


def put(shop, user, rank, product):
    shop.execute(
        "update ml.recommendations set product_id = $product"
        " where user_id = $user and rank = $rank",
        {"user": user, "rank": rank, "product": product},
    )


def on_rank(shop, user, rank):
    return shop.execute(
        "select product_id from ml.recommendations where user_id = $user and rank = $rank",
        {"user": user, "rank": rank},
    ).fetchall()[0][0]


def test_each_changed_row_has_the_cause_that_differs(shop):
    before = stage(shop)
    first = {user: on_rank(shop, user, 1) for user in USERS}
    for user in ("events", "other", "rule", "stock"):
        put(shop, user, 1, "new" + user)
    put(shop, "fallback", 5, "newly popular")
    shop.execute("update ml.scored_users set inputs_hash = -1 where user_id = 'events'")
    shop.execute("update ml.scored_users set rules_hash = -1 where user_id = 'rule'")
    shop.execute(
        "update ml.scored_products set is_available = false where product_id = $product",
        {"product": first["stock"]},
    )
    after = stage(shop)

    found = changes(shop, before, after)

    assert set(found) == {"events", "fallback", "other", "rule", "stock"}
    assert {user: {row[-1] for row in rows} for user, rows in found.items()} == {
        "events": {"new events"},
        "fallback": {"fallback"},
        # Nothing of their own: what came pushed the other one off.
        "other": {"catalogue or stock"},
        "rule": {"rule"},
        "stock": {"catalogue or stock"},
    }
    assert sorted(found["events"]) == sorted(
        [
            (first["events"], "went", 1, None, "new events"),
            ("newevents", "came", None, 1, "new events"),
        ]
    )


def test_rows_that_swap_places_have_moved(shop):
    before = stage(shop)
    one, two = on_rank(shop, "model", 1), on_rank(shop, "model", 2)
    put(shop, "model", 1, two)
    put(shop, "model", 2, one)
    shop.execute("update ml.scored_products set model_hash = 'another model'")
    after = stage(shop)

    assert changes(shop, before, after) == {
        "model": [(two, "moved", 2, 1, "other model"), (one, "moved", 1, 2, "other model")]
    }
    assert shop.execute(
        "from serving.version_changes($before, $after)",
        {"before": before.version, "after": after.version},
    ).fetchall() == [("moved", "other model", 2, 1)]
    assert changes(shop, after, after) == {}
