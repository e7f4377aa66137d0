"""Business rules: what is refused, what rules do to a list, and that nothing slips past them."""

from dataclasses import replace
from datetime import date, timedelta
from functools import partial

import duckdb
import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from references import ruled_list

from ml_assets.fallback import PopularityLists
from ml_assets.frames import SIGNALS
from ml_assets.rule_set import NOBODY, Rule, RulesError, RuleSet, days_between, hashes_of
from ml_assets.ruled_lists import EXPLORED, PINNED, apply_rules, ledger_frame
from ml_assets.rules import RULES, active_rules, compile_rules, make_relations, problems_to_come
from ml_assets.scoring import NOTHING
from ml_assets.signal_matrix import build_signal_matrix

DAY = date(2024, 6, 1)
USERS = pl.Series("user_id", ["ada", "bob", "cid"])
PRODUCTS = pl.Series("product_id", [f"p{i}" for i in range(8)])


def rules_of(*rows):
    """RULES from (rule_id, action, predicate, value, by_column, ...)."""
    padded = [(*row, *[None] * (7 - len(row))) for row in rows]
    return pl.DataFrame(padded, schema=RULES, orient="row")


@pytest.fixture(scope="module")
def warehouse():
    connection = duckdb.connect()
    connection.execute(
        """
        create schema marts;
        create table marts.users as
        select * from (values
            ('ada', 'Germany', 'tea', 'F', date '2024-05-30', '{"loyal": "yes"}'),
            ('bob', 'France', 'wine', null, date '2024-04-01', null),
            ('cid', null, null, null, null, null)
        ) as rows (user_id, segment, favourite_category, gender, last_at, attributes);
        create table marts.products as
        select
            'p' || i as product_id, 'thing ' || i as title,
            case when i < 4 then 'tea' when i < 6 then 'wine' end as category,
            'brand ' || i % 2 as brand, i * 10.0 as price, i / 10 as margin,
            date '2024-05-01' + i::integer as added_at, i <> 7 as is_available,
            case when i = 1 then '{"colour of it": "red"}' end as attributes
        from range(8) as numbers (i);
        """
    )
    yield connection
    connection.close()


def matrix_of(*entries):
    """Signals from (user, product, n_carts, n_purchases)."""
    return build_signal_matrix(
        pl.DataFrame(
            [
                (user, product, 1.0, 1.0, carts, bought, False, True)
                for user, product, carts, bought in entries
            ],
            schema=SIGNALS,
            orient="row",
        ),
        user_ids=USERS,
        product_ids=PRODUCTS,
    )


def compiled(warehouse, *rows, top_n=4, as_of=DAY, matrix=None, days=(), terms=None):
    return compile_rules(
        warehouse,
        active_rules(rules_of(*rows), as_of=as_of),
        matrix=matrix or matrix_of(),
        relations=lambda: make_relations(warehouse, as_of),
        # Either from the last event and the last purchase alike, or of each.
        days_since=lambda: np.broadcast_to(np.array(days, float), (2, np.shape(days)[-1])),
        terms=lambda: sp.csr_matrix(np.zeros((8, 1)) if terms is None else terms),
        top_n=top_n,
        seed=1,
    )


def test_a_rule_that_starts_later_is_looked_at_before_it_stops_a_run(warehouse):
    later = DAY + timedelta(days=3)
    frame = rules_of(
        ("on", "exclude", "category = 'wine'"),
        ("late", "exclude", "product.colour = 1", None, None, later),
        ("fine", "exclude", "category = 'tea'", None, None, later),
    )

    def problems(as_of):
        relations = partial(make_relations, warehouse, as_of)
        return problems_to_come(warehouse, frame, as_of=as_of, relations=relations)

    (said,) = problems(DAY)
    assert said.startswith("rule late: product has no column colour")
    assert f"On {later}" in said
    assert problems(later) == []


def test_further_columns_of_files_cannot_take_the_place_of_the_marts_own():
    warehouse = duckdb.connect()
    warehouse.execute(
        """
        create schema marts;
        create table marts.users as
        select 'ada' as user_id, 'Germany' as segment, current_date as last_at,
            '{"SEGMENT": "gold", "days_away": "7"}' as attributes;
        create table marts.products as
        select 'p1' as product_id, 1.0 as price, current_date as added_at, false as is_available,
            '{"": "?", "is_available": "1", "a/b~c": "x", "inch\\"": "y", "it''s": "z"}'
                as attributes
        """
    )

    columns = make_relations(warehouse, DAY)

    own = ["price_band", "product_id", "price", "added_at", "is_available"]
    assert columns["product"] == ["age_days", *own, "a/b~c", 'inch"', "it's"]
    assert columns["user"] == ["days_away", "user_id", "segment", "last_at"]
    assert warehouse.execute(
        'select segment, is_available, "a/b~c", "inch""", "it\'s"'
        " from temp.rules_user, temp.rules_product"
    ).fetchall() == [("Germany", False, "x", "y", "z")]


def test_a_column_may_have_any_name_in_a_condition_and_in_a_cap():
    warehouse = duckdb.connect()
    warehouse.execute(
        """
        create schema marts;
        create table marts.users as
        select 'ada' as user_id, current_date as last_at, '{"my\\"": "1"}' as attributes;
        create table marts.products as
        select 'p' || i as product_id, 1.0 as price, current_date as added_at,
            true as is_available, null::double as margin, '{"inch\\"": "1"}' as attributes
        from range(8) as numbers (i)
        """
    )
    predicate = """product."inch\"\"" = user."my\"\"" and product_id = 'p1'"""

    rules = compiled(
        warehouse, ("a", "exclude", predicate), ("b", "cap", None, 2.0, 'inch"'), top_n=3
    )

    assert gone(rules) == [["p1"], [], []]
    assert rules.cap_code.tolist() == [[0] * 8]


def test_rules_speak_differently_when_another_one_hides_or_a_product_comes_back(warehouse):
    repeats = [("a", "repeat", None, 60.0), ("b", "repeat", None, 30.0)]
    bought, of_product = matrix_of(("ada", "p1", 0, 1)), hashes_of(PRODUCTS)

    def said(days):
        return compiled(warehouse, *repeats, matrix=bought, days=days).digests(of_product)

    assert said([20]).tolist() == said([25]).tolist()
    assert said([20])[0] != said([40])[0]

    ours = ("ours", "quota", "product_id = 'p7'", 0.5)
    sold_out = compiled(warehouse, ours).digests(of_product)
    warehouse.execute("begin")
    warehouse.execute("update marts.products set is_available = true")
    back = compiled(warehouse, ours).digests(of_product)
    warehouse.execute("rollback")
    assert sold_out[0] != back[0]


# What is refused, each by name


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (("a", "hide", None), "there is no action 'hide'"),
        (("a", "boost", None, 0.0), "boost wants a factor above 0"),
        (("a", "boost", None), "boost wants a factor above 0"),
        (("a", "pin", None, 1.5), "pin wants a rank from 1"),
        (("a", "quota", None, 1.2), "quota wants a share"),
        (("a", "cap", None, 0.0, "category"), "cap wants how many"),
        (("a", "cap", None, None, "title"), "cap wants how many"),
        (("a", "cap", None, 2.0), "cap wants a product column"),
        (("a", "cap", None, 2.0, "categry"), "no column categry; did you mean category?"),
        (("a", "exclude", "product.colour = 1"), "product has no column colour"),
        (("a", "exclude", "nothing = 1"), "product has no column nothing. It has added_at"),
        (("a", "exclude", "users.segment = 'x'"), "users.segment is no column"),
        (("a", "exclude", "product.price >"), "is not a condition"),
        (("a", "exclude", "1=1; drop table marts.users"), "is not a condition"),
        (("a", "exclude", "1=1; select 1"), "is more than a condition"),
        (("a", "exclude", "1=1 from marts.users"), "is more than a condition"),
        (("a", "exclude", "price > (select 1)"), "subquery is not allowed"),
        (("a", "exclude", "exists (from marts.users)"), "subquery is not allowed"),
        (("a", "exclude", "read_text('/etc/passwd') = 'x'"), "read_text is not a function"),
        (("a", "exclude", "case when price > 1 then true end"), "case is not allowed"),
        (("a", "exclude", "sum(price) over () > 1"), "window is not allowed"),
        (("a", "exclude", "price::blob = 'x'"), "cannot become blob"),
        (("a", "exclude", "product.price = 'dear'"), "rule a: Conversion Error"),
        (("a", "exclude", None), "leaves 3 users without any product"),
        (("a", "require", "user.segment = 'Germany' and brand = 'none'"), "leaves 1 users"),
        (("a", "pin", "category = 'tea'", 1.0), "pins 4 products to one rank"),
        (("a", "pin", "product_id = 'p1'", 9.0), "pins to rank 9 of lists of 4"),
        (("a", "cap", "category = favourite_category", 1.0, "brand"), "cap cannot compare"),
        (("a", "repeat", None, 0.5), "repeat wants days"),
        (("a", "repeat", None, 7.0, "rating"), "repeat wants an event as by_column"),
        (("a", "margin", None, 0.0), "margin wants a weight above 0"),
        (("a", "margin", "product_id = 'none'", float("inf")), "margin wants a weight"),
        (("a", "explore", None, 0.2), "explore wants how many places"),
        (("a", "explore", None, 4.0), "explore takes 4 of 4 places"),
        (("a", "diversify", None, 1.5), "diversify wants a weight"),
        (("a", "diversify", "category = 'tea'", 0.5), "can only be about the user"),
        (("a", "exclude", "price = 0", 3.0), "exclude wants nothing as value"),
        (("", "exclude", None), "row 1 has no rule_id"),
        (("a", "exclude", None, None, None, DAY, date(2024, 5, 1)), "before it starts"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_by_name(warehouse, row, says):
    with pytest.raises(RulesError) as refused:
        compiled(warehouse, row)

    assert says in str(refused.value)
    assert "row 1" in str(refused.value) or "rule a" in str(refused.value)
    # And nothing happened.
    assert warehouse.execute("select count(*) from marts.users").fetchall() == [(3,)]


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        (
            ("a", "pin", "product_id = 'p1'", 1.0),
            ("b", "pin", "product_id = 'p2' and user.segment = 'Germany'", 1.0),
            "rules a and b pin two products to rank 1",
        ),
        (
            ("a", "explore", None, 2.0),
            ("b", "explore", "user.segment = 'Germany'", 2.0),
            "rule a and rule b: explore takes 4 of 4 places",
        ),
        (
            ("a", "pin", "product_id = 'p1'", 1.0),
            ("b", "pin", "product_id = 'p1'", 2.0),
            "rule b pins p1 a second time",
        ),
        (
            ("a", "quota", "category = 'tea'", 0.7),
            ("b", "quota", "category = 'wine'", 0.5),
            "rules a, b: quotas add up to 120%",
        ),
        (("a", "exclude", "x"), ("a", "exclude", "y"), "rule a is there twice"),
        (("a", "exclude", "colour = 1"), ("b", "exclude", "shape = 1"), "shape"),
    ],
)
def test_rules_that_contradict_each_other_and_all_wrong_ones_are_named(warehouse, one, other, says):
    with pytest.raises(RulesError) as refused:
        compiled(warehouse, one, other)

    assert says in str(refused.value)


# What a predicate can say


def gone(rules):
    """Ids that rules take away, for each user."""
    removed = rules.removed_by[rules.group_of_user] != NOBODY
    return [PRODUCTS.filter(pl.Series(row)).to_list() for row in removed]


@pytest.mark.parametrize(
    ("predicate", "expected"),
    [
        ("product.category in ('wine') and price > 45", ["p5"]),
        ("title like '%3' or title ilike 'THING 4'", ["p3", "p4"]),
        ("not (price between 10 and 70)", ["p0"]),
        ("category is null", ["p6", "p7"]),
        ("age_days > 30 and added_at < date '2024-05-02'", ["p0"]),
        ("price_band = 5", ["p7"]),
        ("\"colour of it\" = 'red'", ["p1"]),
        ("lower(brand) = 'brand 1' and margin >= 0.7", ["p7"]),
    ],
)
def test_a_condition_on_products_holds_for_all_users(warehouse, predicate, expected):
    assert gone(compiled(warehouse, ("a", "exclude", predicate))) == [expected] * 3


def test_a_condition_can_be_of_some_users_or_compare_the_two(warehouse):
    german = compiled(warehouse, ("a", "exclude", "user.segment = 'Germany' and price < 20"))
    own = compiled(warehouse, ("a", "exclude", "category <> favourite_category and loyal = 'yes'"))
    away = compiled(warehouse, ("a", "exclude", "days_away > 30 and price = 0"))

    assert gone(german) == [["p0", "p1"], [], []]
    assert gone(own) == [["p4", "p5"], [], []]
    assert gone(away) == [[], ["p0"], []]


def test_what_is_required_binds_those_it_is_about(warehouse):
    rules = compiled(warehouse, ("a", "require", "user.segment = 'France' and category = 'wine'"))

    assert gone(rules) == [[], ["p0", "p1", "p2", "p3", "p6", "p7"], []]


def test_rules_hold_on_their_days_only(warehouse):
    row = ("a", "exclude", "price = 0", None, None, date(2024, 6, 2), date(2024, 6, 3))

    days = [date(2024, 6, day) for day in (1, 2, 3, 4)]
    assert [compiled(warehouse, row, as_of=day) is not None for day in days] == [
        False,
        True,
        True,
        False,
    ]


def test_a_digest_changes_with_what_rules_say_to_a_group_and_with_nothing_else(warehouse):
    def digests(*rows):
        rules = compiled(warehouse, *rows)
        return rules.digest_of_group[rules.group_of_user].tolist()

    one = ("a", "exclude", "user.segment = 'Germany' and price < 20")
    assert digests(one) == digests(one)
    assert len(set(digests(one))) == 2
    other = ("a", "exclude", "user.segment = 'Germany' and price < 30")
    assert digests(one)[0] != digests(other)[0]


# What rules do


def lists_of(rules, proposed, score, *, chain=(), n=4):
    n_users = len(proposed)
    return apply_rules(
        rules,
        np.array(proposed, np.int32),
        np.array(score, float),
        PopularityLists(
            np.array([0, len(chain)]), np.array(chain, np.int32), np.zeros((n_users, 1), np.int32)
        ),
        bought=rules.hidden,
        n=n,
    )


CANDIDATES = [[0, 1, 2, 3, 4, 5]] * 3
SCORES = [[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]] * 3


def test_a_cap_is_kept_and_its_places_are_refilled(warehouse):
    rules = compiled(warehouse, ("few", "cap", None, 2.0, "category"))

    ruled = lists_of(rules, CANDIDATES, SCORES)

    assert ruled.items[0].tolist() == [0, 1, 4, 5]
    assert ruled.cause[0].tolist() == [-1, -1, 0, 0, -1, -1]


def test_caps_without_a_value_are_three_a_category_and_two_a_brand(warehouse):
    rules = compiled(
        warehouse, ("brands", "cap", None, None, "brand"), ("kinds", "cap", None, None, "category")
    )

    assert rules.cap_limit.tolist() == [2, 3]
    # p3 would be the fourth of its category, p4 the third of its brand.
    assert lists_of(rules, CANDIDATES, SCORES).items[0].tolist() == [0, 1, 2, 5]


def test_a_boost_changes_the_order_of_scores_of_either_sign(warehouse):
    rules = compiled(warehouse, ("up", "boost", "product_id in ('p3', 'p5')", 2.5), top_n=6)

    ruled = lists_of(rules, CANDIDATES, [[2.0, 1.5, 1.2, 1.0, -0.2, -1.0]] * 3, n=6)

    assert ruled.items[0].tolist() == [3, 0, 1, 2, 5, 4]
    assert ruled.score[0].tolist() == pytest.approx([2.5, 2.0, 1.5, 1.2, 0.5, -0.2])


def test_a_pin_has_its_rank_whatever_the_score(warehouse):
    rules = compiled(warehouse, ("ours", "pin", "product_id = 'p6'", 2.0))

    ruled = lists_of(rules, CANDIDATES, SCORES)

    assert ruled.items[0].tolist() == [0, 6, 1, 2]
    assert ruled.step[0].tolist() == [NOTHING, PINNED, NOTHING, NOTHING]


def test_nobody_is_shown_a_pin_that_they_bought(warehouse):
    rules = compiled(
        warehouse, ("ours", "pin", "product_id = 'p6'", 2.0), matrix=matrix_of(("bob", "p6", 0, 1))
    )

    ruled = lists_of(rules, CANDIDATES, SCORES)

    assert [6 in row for row in ruled.items.tolist()] == [True, False, True]


def test_a_quota_is_met_from_the_chain_too_and_given_up_where_it_cannot_be(warehouse):
    rules = compiled(warehouse, ("wine", "quota", "category = 'wine'", 0.5))
    tea, wine = [[0, 1, 2, 3]] * 3, [[5.0, 4.0, 3.0, 2.0]] * 3

    assert lists_of(rules, tea, wine, chain=[6, 5, 4]).items[0].tolist() == [0, 1, 5, 4]
    assert lists_of(rules, tea, wine, chain=[6, 5]).items[0].tolist() == [0, 1, 2, 5]
    assert lists_of(rules, tea, wine).items[0].tolist() == [0, 1, 2, 3]


def test_no_more_than_so_many_of_a_price_band(warehouse):
    # Eight products in five bands: two of each of the first three.
    rules = compiled(warehouse, ("dear and cheap", "cap", None, 1.0, "price_band"))

    assert lists_of(rules, CANDIDATES, SCORES).items[0].tolist() == [0, 2, 4, NOTHING]
    assert lists_of(rules, CANDIDATES, SCORES, chain=[1, 7, 6]).items[0].tolist() == [0, 2, 4, 7]


def test_the_margin_counts_as_much_as_the_knob_says(warehouse):
    def shown(weight):
        rules = compiled(warehouse, ("profit", "margin", None, weight))
        ruled = lists_of(rules, CANDIDATES, SCORES)
        assert (np.diff(ruled.score[0]) <= 0).all()
        return np.mean(ruled.items[0])

    # Margins are those of p0 to p6, a tenth of the number each: from 0.0 to 0.6, deviation 0.2.
    assert [shown(weight) for weight in (0.01, 1.0, 9.0)] == [1.5, 1.5, 3.5]
    rules = compiled(warehouse, ("profit", "margin", "product_id = 'p6'", 0.5))
    assert rules.bonus[0].tolist() == pytest.approx([0, 0, 0, 0, 0, 0, 0.75, 0])


def test_margins_that_are_not_there_are_asked_for():
    with duckdb.connect() as connection:
        connection.execute(
            """
            create schema marts;
            create table marts.users as select null::varchar as user_id, null::date as last_at,
                null::varchar as attributes limit 0;
            create table marts.products as select 'p0' as product_id, null::double as margin,
                1.0 as price, date '2024-05-01' as added_at, true as is_available,
                null::varchar as attributes;
            """
        )
        with pytest.raises(RulesError, match="rule profit: products have no margins that differ"):
            compiled(connection, ("profit", "margin", None, 0.5))


def test_what_was_bought_comes_back_when_its_window_is_over(warehouse):
    matrix = matrix_of(
        ("ada", "p0", 0, 1), ("ada", "p1", 0, 1), ("ada", "p4", 0, 2), ("bob", "p0", 1, 0)
    )
    rules = compiled(
        warehouse,
        ("tea runs out", "repeat", "category = 'tea'", 14.0),
        matrix=matrix,
        days=[14, 13, 300, 1],
    )

    # Tea of 14 days ago is back, of 13 days ago is not; wine was bought for good.
    assert rules.hidden[0].indices.tolist() == [1, 4]
    assert rules.hidden.data.tolist() == [0, NOBODY]
    proposed, score = np.array([[0, 2, 3, 5]] * 3), np.array([[4.0, 3.0, 2.0, 1.0]] * 3)
    ruled = lists_of(rules, proposed, score)
    ledger = ledger_frame(rules, ruled, proposed, score, matrix).sort("product_id")
    assert ledger.select("user_id", "product_id", "old_rank", "new_rank").rows() == [
        ("ada", "p0", 1, 1),
        ("ada", "p1", None, None),
    ]


def test_days_are_counted_from_the_last_event_and_from_the_last_purchase():
    matrix = matrix_of(("ada", "p0", 0, 1), ("bob", "p1", 0, 0))
    last_done = pl.DataFrame(
        {
            "user_id": ["bob", "cid", "ada"],
            "product_id": ["p1", "p1", "p0"],
            "last_on": [DAY - timedelta(days=2), DAY, DAY - timedelta(days=1)],
            "last_bought_on": [None, DAY, DAY - timedelta(days=102)],
        }
    )

    since_last, since_bought = days_between(matrix, last_done, day=DAY)

    assert since_last.tolist() == [1, 2]
    assert since_bought[0] == 102 and np.isnan(since_bought[1])


def test_what_was_only_looked_at_can_be_kept_back_for_a_while(warehouse):
    matrix = matrix_of(("ada", "p0", 0, 0), ("ada", "p1", 1, 0), ("ada", "p2", 0, 1))

    def hidden(*row, days=(3, 3, 3)):
        return compiled(warehouse, row, matrix=matrix, days=days).hidden[0].indices.tolist()

    assert hidden("rest", "repeat", None, 7.0, "view") == [0, 1, 2]
    assert hidden("rest", "repeat", None, 7.0, "view", days=(7, 7, 7)) == [2]
    assert hidden("rest", "repeat", None, None, "add_to_cart") == [1, 2]
    # What was bought long ago rests as well when it was looked at of late.
    since_last, since_bought = (3, 3, 3), (np.nan, np.nan, 90)
    both = (since_last, since_bought)
    assert hidden("rest", "repeat", None, 7.0, "view", days=both) == [0, 1, 2]
    assert hidden("back", "repeat", None, 30.0, days=both) == []
    assert hidden("back", "repeat", None, 91.0, days=both) == [2]


def test_a_digest_changes_when_a_window_is_over(warehouse):
    matrix = matrix_of(("ada", "p0", 0, 1), ("bob", "p0", 0, 1))
    hashes = np.arange(1, 9, dtype=np.uint64)

    def digests(days):
        row = ("again", "repeat", None, 14.0)
        return compiled(warehouse, row, matrix=matrix, days=days).digests(hashes).tolist()

    before, after = digests([13, 3]), digests([14, 4])
    assert before[0] != after[0]
    assert before[1:] == after[1:]


def test_places_are_kept_for_what_nobody_knows_yet(warehouse):
    rules = compiled(warehouse, ("new here", "explore", "category is null or price < 60", 2.0))

    ruled = lists_of(rules, CANDIDATES, SCORES)

    # p0 to p5 are proposed, p7 is not available: p6 is all there is to draw.
    assert ruled.items[0].tolist() == [0, 6, 1, 2]
    assert ruled.step[0].tolist() == [NOTHING, EXPLORED, NOTHING, NOTHING]
    assert ruled.probability[0, 1] == 1.0
    assert np.isnan(ruled.probability[0, [0, 2, 3]]).all()


def test_each_product_is_drawn_as_often_as_its_probability_says():
    n_users, n_items, slots = 20_000, 30, 3
    nothing = sp.csr_matrix((n_users, n_items), dtype=np.int16)
    rng = np.random.default_rng(5)
    rules = replace(
        RuleSet.of_one_group(
            (Rule("new", "explore", None, slots, None),), hidden=nothing, top_n=10
        ),
        explore_slots=np.array([slots]),
        explore_rule=np.zeros(1, np.int16),
        explore_members=np.ones((1, 1, n_items), bool),
        draw_of_user=rng.integers(2**63, size=n_users, dtype=np.uint64),
        draw_of_product=rng.integers(2**63, size=n_items, dtype=np.uint64),
    )

    ruled = lists_of_nobody(rules, n_users, n=10)

    drawn = np.bincount(ruled.items[ruled.step == EXPLORED], minlength=n_items) / n_users
    assert set(ruled.probability[ruled.step == EXPLORED]) == {slots / n_items}
    # Five deviations of a share of 0.1 among 20,000.
    assert abs(drawn - slots / n_items).max() < 5 * np.sqrt(0.1 * 0.9 / n_users)


def lists_of_nobody(rules, n_users, *, n):
    """Lists where no model proposes anything and no chain fills."""
    return apply_rules(
        rules,
        np.full((n_users, n), NOTHING, np.int32),
        np.full((n_users, n), -np.inf),
        PopularityLists(np.array([0]), np.empty(0, np.int32), np.full((n_users, 1), NOTHING)),
        bought=rules.hidden,
        n=n,
    )


def test_a_diverse_list_passes_over_what_is_like_the_rest(warehouse):
    terms = np.eye(8)[:, [0, 1, 2, 3, 4, 5, 6, 7]]
    terms[1] = terms[2] = terms[0]
    rules = compiled(
        warehouse, ("mixed", "diversify", "user.segment = 'Germany'", 0.5), terms=terms
    )

    ruled = lists_of(rules, CANDIDATES, SCORES)

    # In the order of scores all the same; the others keep theirs.
    assert ruled.items.tolist() == [[0, 3, 4, 5], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert ruled.cause[0].tolist() == [-1, 0, 0, -1, -1, -1]


# Of length 1 or 0, with cosines of which none are nearly alike.
_VECTORS = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.6, 0.8), (0.96, 0.28)]


@st.composite
def cases(draw):
    n_items = 10
    n, k = draw(st.integers(1, 6)), draw(st.integers(6, 8))
    items = draw(st.permutations(range(n_items)))[: draw(st.integers(0, k))]
    score = sorted(
        draw(st.lists(st.integers(-20, 20), min_size=len(items), max_size=len(items))),
        reverse=True,
    )
    chain = draw(st.lists(st.permutations(range(n_items)), min_size=1, max_size=2))
    chain = [each[: draw(st.integers(0, n_items))] for each in chain]
    flags = st.lists(st.booleans(), min_size=n_items, max_size=n_items)
    return {
        "n": n,
        "k": k,
        "items": items,
        "score": [each / 4 for each in score],
        "chain": chain,
        "bought": draw(st.sets(st.integers(0, n_items - 1), max_size=3)) - set(items),
        "removed": draw(st.sets(st.integers(0, n_items - 1), max_size=3)),
        "factor": [draw(st.sampled_from([1.0, 1.0, 1.5, 0.5])) for _ in range(n_items)],
        "bonus": [draw(st.sampled_from([0.0, 0.0, 0.75, -2.0])) for _ in range(n_items)],
        "explore": (draw(st.integers(0, n - 1)), draw(flags)),
        "numbers": [draw(st.integers(0, 2**64 - 1)) for _ in range(n_items)],
        "diversity": draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        "vectors": np.array(
            [_VECTORS[draw(st.integers(0, len(_VECTORS) - 1))] for _ in range(n_items)]
        ),
        "pins": draw(
            st.dictionaries(st.integers(0, n - 1), st.integers(0, n_items - 1), max_size=2)
        ),
        "quotas": draw(st.lists(st.tuples(st.sampled_from([0.2, 0.4]), flags), max_size=2)),
        "caps": draw(
            st.lists(
                st.tuples(
                    st.integers(1, 3),
                    st.lists(st.integers(-1, 2), min_size=n_items, max_size=n_items),
                ),
                max_size=2,
            )
        ),
    }


def _splitmix(number):
    """The finaliser of splitmix64."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        number = (number ^ (number >> shift)) * factor % 2**64
    return number ^ (number >> 31)


@given(case=cases())
@hypothesis_settings(deadline=None, max_examples=400)
def test_lists_by_rules_equal_those_of_a_plain_loop(case):
    n_items, pins = 10, {}
    for place, item in case["pins"].items():
        if item not in pins.values():
            pins[place] = item
    n_quotas, n_caps = len(case["quotas"]), len(case["caps"])
    removed = np.full((1, n_items), NOBODY, np.int16)
    removed[0, list(case["removed"])] = 0
    pinned = np.full((1, case["n"]), NOBODY, np.int32)
    for place, item in pins.items():
        pinned[0, place] = item
    bought = sorted(case["bought"])
    hidden = sp.csr_matrix(
        (np.full(len(bought), NOBODY, np.int16), bought, [0, len(bought)]), shape=(1, n_items)
    )
    slots, to_explore = case["explore"]
    numbers = np.array(case["numbers"], np.uint64)
    rules = replace(
        RuleSet.of_one_group(
            (Rule("r", "exclude", None, None, None),), hidden=hidden, top_n=case["n"]
        ),
        removed_by=removed,
        factor=np.array([case["factor"]], np.float32),
        bonus=np.array([case["bonus"]], np.float32),
        pins=pinned,
        pinned_by=np.where(pinned >= 0, 0, NOBODY).astype(np.int16),
        explore_slots=np.array([slots]),
        explore_rule=np.zeros(1, np.int16),
        explore_members=np.array([[to_explore]]),
        draw_of_product=numbers,
        quota_share=np.array([share for share, _ in case["quotas"]], float),
        quota_rule=np.arange(n_quotas, dtype=np.int16),
        quota_members=np.array([who for _, who in case["quotas"]], bool).reshape(
            n_quotas, 1, n_items
        ),
        diversity=np.array([case["diversity"]]),
        terms=sp.csr_matrix(case["vectors"]),
        cap_limit=np.array([limit for limit, _ in case["caps"]], np.int64),
        # Not one of the quotas.
        cap_rule=np.full(n_caps, 9, np.int16),
        cap_applies=np.ones((n_caps, 1), bool),
        cap_code=np.array([code for _, code in case["caps"]], np.int32).reshape(n_caps, n_items),
    )
    proposed = np.full((1, case["k"]), NOTHING, np.int32)
    score = np.full((1, case["k"]), -np.inf)
    proposed[0, : len(case["items"])] = case["items"]
    score[0, : len(case["items"])] = case["score"]
    lengths = [len(each) for each in case["chain"]]
    chain = PopularityLists(
        np.concatenate([[0], np.cumsum(lengths)]),
        np.array([item for each in case["chain"] for item in each], np.int32),
        np.arange(len(lengths), dtype=np.int32)[None, :],
    )
    ruled = apply_rules(rules, proposed, score, chain, bought=hidden, n=case["n"])

    assert [item for item in ruled.items[0].tolist() if item >= 0] == ruled_list(
        **{**case, "pins": pins, "numbers": [_splitmix(each) for each in case["numbers"]]}
    )
    # Ranks have no gaps.
    length = int((ruled.items[0] >= 0).sum())
    assert (ruled.items[0, :length] >= 0).all()
