"""Business rules: what is refused, what rules do to a list, and that nothing slips past them."""

from datetime import date

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
from ml_assets.ruled_lists import PINNED, apply_rules
from ml_assets.rules import NOBODY, RULES, Rule, RulesError, RuleSet, active_rules, compile_rules
from ml_assets.scoring import NOTHING

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


def compiled(warehouse, *rows, top_n=4, as_of=DAY):
    rules = active_rules(rules_of(*rows), as_of=as_of)
    return compile_rules(
        warehouse, rules, user_ids=USERS, product_ids=PRODUCTS, as_of=as_of, top_n=top_n
    )


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
        (("a", "exclude", "nothing = 1"), "product has no column nothing"),
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


def lists_of(rules, proposed, score, *, chain=(), bought=None, n=4):
    n_users = len(proposed)
    return apply_rules(
        rules,
        np.array(proposed, np.int32),
        np.array(score, float),
        PopularityLists(
            np.array([0, len(chain)]), np.array(chain, np.int32), np.zeros((n_users, 1), np.int32)
        ),
        exclude=sp.csr_matrix((n_users, len(PRODUCTS)), dtype=np.float32)
        if bought is None
        else bought,
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
    rules = compiled(warehouse, ("ours", "pin", "product_id = 'p6'", 2.0))
    bought = sp.csr_matrix(([1.0], ([1], [6])), shape=(3, 8))

    ruled = lists_of(rules, CANDIDATES, SCORES, bought=bought)

    assert [6 in row for row in ruled.items.tolist()] == [True, False, True]


def test_a_quota_is_met_from_the_chain_too_and_given_up_where_it_cannot_be(warehouse):
    rules = compiled(warehouse, ("wine", "quota", "category = 'wine'", 0.5))
    tea, wine = [[0, 1, 2, 3]] * 3, [[5.0, 4.0, 3.0, 2.0]] * 3

    assert lists_of(rules, tea, wine, chain=[6, 5, 4]).items[0].tolist() == [0, 1, 5, 4]
    assert lists_of(rules, tea, wine, chain=[6, 5]).items[0].tolist() == [0, 1, 2, 5]
    assert lists_of(rules, tea, wine).items[0].tolist() == [0, 1, 2, 3]


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
    rules = RuleSet(
        rules=(Rule("r", "exclude", None, None, None),),
        group_of_user=np.zeros(1, np.int32),
        digest_of_group=np.zeros(1, np.int64),
        removed_by=removed,
        factor=np.array([case["factor"]], np.float32),
        boosted_by=np.full((1, n_items), NOBODY, np.int16),
        pins=pinned,
        pinned_by=np.where(pinned >= 0, 0, NOBODY).astype(np.int16),
        quota_share=np.array([share for share, _ in case["quotas"]], float),
        quota_rule=np.zeros(n_quotas, np.int16),
        quota_members=np.array([who for _, who in case["quotas"]], bool).reshape(
            n_quotas, 1, n_items
        ),
        cap_limit=np.array([limit for limit, _ in case["caps"]], np.int64),
        cap_rule=np.zeros(n_caps, np.int16),
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
    bought = sp.csr_matrix(
        (
            np.ones(len(case["bought"])),
            (np.zeros(len(case["bought"]), int), sorted(case["bought"])),
        ),
        shape=(1, n_items),
    )

    ruled = apply_rules(rules, proposed, score, chain, exclude=bought, n=case["n"])

    assert [item for item in ruled.items[0].tolist() if item >= 0] == ruled_list(
        **{**case, "pins": pins}
    )
    # Ranks have no gaps.
    length = int((ruled.items[0] >= 0).sum())
    assert (ruled.items[0, :length] >= 0).all()
