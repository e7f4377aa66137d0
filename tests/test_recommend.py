"""Lists: full, free of what was bought, labelled and explained."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from frames_for_tests import (
    SETTINGS,
    checkerboard,
    popularity_of,
    products_of,
    quiet,
    signals_of,
    users_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ml_assets.assets import markdown_table
from ml_assets.content import product_vectors, text_neighbours, tfidf
from ml_assets.frames import CANDIDATES, RECOMMENDATIONS, SIMILAR_PRODUCTS
from ml_assets.item_item import NOTHING
from ml_assets.models import FactorModel, content_by_history, fit_model, user_profiles
from ml_assets.recommend import (
    Hybrid,
    Lists,
    candidate_frame,
    propose,
    recommend,
    similar_products,
)
from ml_assets.rule_set import Rule, RuleSet
from ml_assets.signal_matrix import build_signal_matrix

FAMILIES = pytest.mark.parametrize("family", ["als", "item_item"])


def models_for(matrix, products, *, family="als", with_cf=True, with_content=True):
    """A hybrid of one family; products in the order of the matrix."""
    content = None
    if with_content:
        texts = products["text"]
        content = (
            user_profiles(matrix, product_vectors(texts, dimensions=64, seed=0))
            if family == "als"
            else content_by_history(matrix, text_neighbours(tfidf(texts), k=20))
        )
    return Hybrid(
        cf=fit_model(family, matrix, settings=SETTINGS, seed=0) if with_cf else None,
        content=content,
        w_cf=0.7,
        w_content=0.3,
    )


def lists_for(signals, users, products, popularity, *, top_n, k=None, **models):
    matrix = build_signal_matrix(
        signals, user_ids=users["user_id"], product_ids=products["product_id"]
    )
    products = products.sort("product_id")
    hybrid = models_for(matrix, products, **models)
    proposed = propose(
        hybrid,
        k=k or top_n,
        exclude=matrix.bought,
        eligible=products["is_available"].to_numpy(),
        block_bytes=1 << 16,
        progress=quiet,
    )
    recommendations, ledger = recommend(
        proposed,
        matrix=matrix,
        hybrid=hybrid,
        users=users,
        products=products,
        popularity=popularity,
        top_n=top_n,
    )
    assert ledger.is_empty()
    return candidate_frame(proposed, matrix), recommendations


def shop(n=12):
    pairs = checkerboard(n)
    titles = {f"{i:03}": f"{'odd' if i % 2 else 'even'} thing number{i}" for i in range(n)}
    users = users_of({user: None for user, _ in pairs} | {"newcomer": "France"})
    return signals_of(pairs), users, products_of(titles), popularity_of(popular=sorted(titles))


@FAMILIES
def test_every_user_gets_exactly_n_rows_ranked_without_gaps(family):
    signals, users, products, popularity = shop()

    _, rows = lists_for(signals, users, products, popularity, top_n=4, family=family)

    assert rows.schema == RECOMMENDATIONS
    ranks = rows.group_by("user_id").agg(pl.col("rank").sort())
    assert ranks["rank"].to_list() == [[1, 2, 3, 4]] * len(users)


@FAMILIES
def test_the_one_product_held_out_from_each_user_comes_first(family):
    signals, users, products, popularity = shop()

    _, rows = lists_for(signals, users, products, popularity, top_n=3, family=family)

    first = rows.filter((pl.col("rank") == 1) & (pl.col("source") == "hybrid"))
    assert (first["user_id"] == first["product_id"]).all() and len(first) == 12


@FAMILIES
def test_published_scores_are_the_weighted_sum_of_the_published_parts(family):
    signals, users, products, popularity = shop()

    candidates, rows = lists_for(signals, users, products, popularity, top_n=3, k=8, family=family)

    for frame in (candidates, rows.filter(pl.col("source") == "hybrid")):
        blended = 0.7 * pl.col("cf_score") + 0.3 * pl.col("content_score")
        assert frame.select((pl.col("score") == blended).all()).item()


@FAMILIES
@pytest.mark.parametrize("w_cf", [0.0, 1.0])
def test_a_model_without_weight_says_what_it_thinks_all_the_same(family, w_cf):
    signals, users, products, _ = shop()
    matrix = build_signal_matrix(
        signals, user_ids=users["user_id"], product_ids=products["product_id"]
    )

    def parts(w_cf):
        hybrid = replace(models_for(matrix, products, family=family), w_cf=w_cf, w_content=1 - w_cf)
        lists = propose(
            hybrid,
            k=12,
            exclude=matrix.bought,
            eligible=np.ones(12, bool),
            block_bytes=1 << 16,
            progress=quiet,
        )
        # The same candidates, in another order.
        frame = candidate_frame(lists, matrix).sort("user_id", "product_id")
        return frame.select("user_id", "product_id", "cf_score", "content_score")

    assert_frame_equal(parts(w_cf), parts(0.7), abs_tol=1e-5)


def test_what_only_a_model_knows_that_does_not_know_the_user_is_not_proposed():
    rng = np.random.default_rng(0)

    def model(knows_user, knows_item):
        users, items = (rng.normal(size=(n, 4)).astype(np.float32) for n in (1, 10))
        items[~knows_item] = 0
        return FactorModel(users * knows_user, items, np.array([knows_user]), knows_item)

    known = np.arange(10) < 6
    lists = propose(
        Hybrid(model(True, known), model(False, ~known), w_cf=0.7, w_content=0.3),
        k=10,
        exclude=sp.csr_matrix((1, 10), dtype=np.float32),
        eligible=np.ones(10, bool),
        block_bytes=1 << 16,
        progress=quiet,
    )

    assert set(lists.items[0, :6]) == set(range(6))
    assert (np.diff(lists.score[0, :6]) < 0).all()
    assert (lists.items[0, 6:] == NOTHING).all()


@pytest.mark.parametrize(
    ("pins", "expected"),
    [
        ([1], [3.0, 2.0, 2.0, 1.0]),
        ([3], [3.0, 2.0, 1.0, 1.0]),
        ([2, 3], [3.0, 2.0, 2.0, 2.0]),
        ([0, 1], [3.0, 3.0, 3.0, 2.0]),
    ],
)
def test_a_pinned_row_has_the_score_of_its_neighbour(pins, expected):
    names = [f"p{i}" for i in range(7)]
    matrix = build_signal_matrix(
        signals_of([("u", "p6")]), user_ids=pl.Series(["u"]), product_ids=pl.Series(names)
    )
    nan = np.full((1, 4), np.nan)
    proposed = Lists(
        items=np.arange(4, dtype=np.int32)[None],
        score=np.array([[3.0, 2.0, 1.0, 0.5]]),
        cf=nan,
        content=nan,
        inverse_deviation=np.empty((0, 1)),
        mean=np.empty((0, 1)),
    )
    nothing = sp.csr_matrix((1, len(names)), dtype=np.int16)
    rules = RuleSet.of_one_group([Rule("ours", "pin", None, None, None)], hidden=nothing, top_n=4)
    rules.pins[0, pins] = [4, 5][: len(pins)]
    rules.pinned_by[0, pins] = 0

    rows, _ = recommend(
        proposed,
        matrix=matrix,
        hybrid=Hybrid(None, None, 0.7, 0.3),
        users=users_of({"u": None}),
        products=products_of(dict.fromkeys(names)),
        popularity=popularity_of(),
        top_n=4,
        rules=rules,
    )

    assert np.flatnonzero(rows["source"] == "pinned").tolist() == pins
    assert rows["score"].to_list() == expected


@FAMILIES
def test_candidates_start_with_the_rows_that_are_published(family):
    signals, users, products, popularity = shop()

    candidates, rows = lists_for(signals, users, products, popularity, top_n=3, k=6, family=family)

    assert candidates.schema == CANDIDATES
    published = rows.filter(pl.col("source") == "hybrid").select(CANDIDATES.names())
    assert_frame_equal(published, candidates.filter(pl.col("rank") <= 3))


@FAMILIES
def test_what_was_bought_or_is_gone_is_never_shown_but_what_was_looked_at_may_be(family):
    pairs = checkerboard(12)
    looked = signals_of([(user, user) for user, _ in pairs], bought=False).unique()
    signals, users, products, popularity = shop()
    products = products.with_columns(is_available=pl.col("product_id") != "003")
    popularity = popularity.filter(pl.col("product_id") != "003")

    _, rows = lists_for(
        pl.concat([signals, looked]), users, products, popularity, top_n=6, family=family
    )

    shown = set(rows.select("user_id", "product_id").iter_rows())
    assert not shown & set(pairs)
    assert all(product != "003" for _, product in shown)
    assert ("005", "005") in shown


@FAMILIES
@pytest.mark.parametrize(("is_only_rated", "did"), [(False, "viewed"), (True, "rated")])
def test_a_user_who_only_looked_gets_a_list_from_what_they_looked_at(family, is_only_rated, did):
    signals, users, products, popularity = shop()
    users = pl.concat([users, users_of({"looker": None})])
    views = signals_of([("looker", "002"), ("looker", "004")], bought=False).with_columns(
        is_only_rated=pl.lit(is_only_rated)
    )

    _, rows = lists_for(
        pl.concat([signals, views]), users, products, popularity, top_n=3, family=family
    )

    looker = rows.filter(pl.col("user_id") == "looker")
    assert looker["source"].to_list() == ["hybrid"] * 3
    assert {int(product) % 2 for product in looker["product_id"]} == {0}
    assert looker["reason"].str.starts_with(f"Because you {did} even thing").any()


def test_the_chain_goes_from_category_to_segment_to_trending_to_popular():
    products = products_of({name: name for name in "abcdefgh"})
    users = users_of({"u": "France"}, category="tea")
    popularity = popularity_of(
        category__tea=["a"],
        segment__France=["a", "b"],
        segment__Spain=["h"],
        trending=["c", "b"],
        popular=["d", "c", "e", "f", "g", "h"],
    )

    _, rows = lists_for(
        signals_of([]), users, products, popularity, top_n=5, with_cf=False, with_content=False
    )

    assert rows["product_id"].to_list() == ["a", "b", "c", "d", "e"]
    assert rows["source"].to_list() == ["category", "segment", "trending", "popular", "popular"]
    assert rows["reason"].to_list() == [
        "Popular in tea",
        "Popular in France",
        "Trending now",
        "Popular with everyone",
        "Popular with everyone",
    ]
    assert rows["score"].to_list() == [-1, -2, -3, -4, -5]
    assert rows["cf_score"].null_count() == rows["content_score"].null_count() == 5


def test_rows_of_the_chain_follow_the_models_rows_and_never_score_above_them():
    signals, users, products, popularity = shop(6)
    products = pl.concat([products, products_of({"untold": None, "untold too": None})])
    popularity = popularity_of(popular=products["product_id"].to_list())

    _, rows = lists_for(signals, users, products, popularity, top_n=8)

    one = rows.filter(pl.col("user_id") == "001")
    assert one["source"].to_list() == ["hybrid"] * 4 + ["popular"] * 2
    assert (one["score"].diff().drop_nulls() <= 0).all()
    assert one["product_id"].to_list()[4:] == ["untold", "untold too"]


@FAMILIES
def test_without_the_collaborative_model_the_source_is_content(family):
    signals, users, products, popularity = shop()

    _, rows = lists_for(signals, users, products, popularity, top_n=2, family=family, with_cf=False)

    known = rows.filter(pl.col("user_id") != "newcomer")
    assert set(known["source"]) == {"content"}
    assert known["cf_score"].null_count() == len(known)


def test_one_user_and_one_product_get_what_is_left_to_recommend():
    users, products = users_of({"u": None}), products_of({"p": "a lamp"})
    popularity = popularity_of(popular=["p"])
    nothing_known = {"with_cf": False, "with_content": False, "top_n": 5}

    _, before = lists_for(signals_of([]), users, products, popularity, **nothing_known)
    _, after = lists_for(signals_of([("u", "p")]), users, products, popularity, **nothing_known)

    assert before["product_id"].to_list() == ["p"]
    assert after.is_empty() and after.schema == RECOMMENDATIONS


@FAMILIES
def test_a_reason_names_the_product_most_like_the_one_recommended(family):
    titles = {
        "lamp red": "red lamp",
        "lamp blue": "blue lamp",
        "mug": "tea mug",
        "mug big": "big tea mug",
    }
    signals = signals_of([("u", "lamp red"), ("u", "mug")])

    _, rows = lists_for(
        signals,
        users_of({"u": None}),
        products_of(titles),
        popularity_of(popular=list(titles)),
        top_n=2,
        family=family,
        with_cf=False,
    )

    reasons = dict(rows.select("product_id", "reason").iter_rows())
    assert reasons == {
        "lamp blue": "Because you bought red lamp",
        "mug big": "Because you bought tea mug",
    }
    because = dict(rows.select("product_id", "because_product_id").iter_rows())
    assert because == {"lamp blue": "lamp red", "mug big": "mug"}


@FAMILIES
def test_ids_of_any_characters_survive(family):
    odd = ["001", "1", "O'Hara", 'say "hi"', "line\nbreak", "🎁", "a,b", "שלום"]
    products = products_of({name: f"thing {i}" for i, name in enumerate(odd)})

    _, rows = lists_for(
        signals_of([(name, name) for name in odd]),
        users_of(dict.fromkeys(odd)),
        products,
        popularity_of(popular=odd),
        top_n=7,
        family=family,
        with_cf=False,
    )

    for name in odd:
        shown = rows.filter(pl.col("user_id") == name)["product_id"].to_list()
        assert sorted(shown) == sorted(set(odd) - {name})


@FAMILIES
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_order_of_input_rows_changes_nothing(family, seed):
    signals, users, products, popularity = shop(8)

    _, rows = lists_for(signals, users, products, popularity, top_n=3, family=family)
    _, shuffled = lists_for(
        signals.sample(fraction=1, shuffle=True, seed=seed),
        users.sample(fraction=1, shuffle=True, seed=seed),
        products.sample(fraction=1, shuffle=True, seed=seed),
        popularity.sample(fraction=1, shuffle=True, seed=seed),
        top_n=3,
        family=family,
    )

    assert_frame_equal(rows, shuffled, check_exact=True)


def test_similar_products_are_available_ranked_and_not_the_product_itself():
    products = products_of({name: name for name in "abcd"}, gone=frozenset({"c"}))
    # Everything is alike to itself; c is most like a and b but gone; nothing is like d.
    alike = sp.csr_matrix(
        np.array([[1, 0.5, 0.9, 0], [0.5, 1, 0.9, 0], [0.5, 0.25, 1, 0], [0, 0, 0, 1]], np.float32)
    )

    rows = similar_products(
        [(alike, 1.0)], products=products, product_ids=products["product_id"], k=5
    )

    assert rows.schema == SIMILAR_PRODUCTS
    assert rows.rows() == [
        ("a", 1, "b", 0.5),
        ("b", 1, "a", 0.5),
        ("c", 1, "a", 0.5),
        ("c", 2, "b", 0.25),
    ]


def test_likeness_of_several_models_is_added_with_their_weights():
    products = products_of({name: name for name in "abc"})
    by_taste = sp.csr_matrix(np.array([[0, 0.5, 0], [0, 0, 0], [0, 0, 0]], np.float32))
    by_text = sp.csr_matrix(np.array([[0, 0.5, 1], [0, 0, 0], [0, 0, 0]], np.float32))

    rows = similar_products(
        [(by_taste, 0.75), (by_text, 0.25)],
        products=products,
        product_ids=products["product_id"],
        k=5,
    )

    # 0.75 x 0.5 + 0.25 x 0.5 beats 0.25 x 1: b is before c.
    assert rows.rows() == [("a", 1, "b", 0.5), ("a", 2, "c", 0.25)]


def test_products_as_alike_as_each_other_come_in_the_order_of_the_catalogue_and_k_at_most():
    products = products_of({name: name for name in "abcd"})
    alike = sp.csr_matrix(np.ones((4, 4), np.float32))

    rows = similar_products(
        [(alike, 1.0)], products=products, product_ids=products["product_id"], k=2
    )

    assert rows.filter(pl.col("product_id") == "b")["similar_product_id"].to_list() == ["a", "c"]


def test_of_products_with_one_title_the_most_alike_few_are_shown():
    titles = {
        "a": "Milk",
        "b": "milk ",
        "c": "MILK",
        "d": "Milk",
        "e": "Bread",
        "f": None,
        "g": None,
    }
    products = products_of(titles)
    likeness = np.zeros((7, 7), np.float32)
    likeness[0] = [0, 0.5, 0.7, 0.9, 0.4, 0.3, 0.2]

    rows = similar_products(
        [(sp.csr_matrix(likeness), 1.0)],
        products=products,
        product_ids=products["product_id"],
        k=4,
    )

    assert rows["similar_product_id"].to_list() == ["d", "c", "e", "f"]
    assert rows["rank"].to_list() == [1, 2, 3, 4]
    assert rows["score"].is_sorted(descending=True)


def test_without_any_model_there_are_no_similar_products():
    rows = similar_products(
        [], products=products_of({"a": None}), product_ids=pl.Series(["a"]), k=5
    )

    assert rows.is_empty() and rows.schema == SIMILAR_PRODUCTS


def proposed_for(hybrid, matrix, *, k, block_bytes=1 << 20):
    return propose(
        hybrid,
        k=k,
        exclude=matrix.bought,
        eligible=np.ones(len(matrix.product_ids), bool),
        block_bytes=block_bytes,
        progress=quiet,
    )


def shop_models(family):
    signals, users, products, _ = shop()
    matrix = build_signal_matrix(
        signals, user_ids=users["user_id"], product_ids=products["product_id"]
    )
    return matrix, models_for(matrix, products, family=family)


@FAMILIES
def test_scoring_in_small_blocks_gives_the_same_lists(family):
    matrix, hybrid = shop_models(family)

    whole = proposed_for(hybrid, matrix, k=3)
    small = proposed_for(hybrid, matrix, k=3, block_bytes=1)

    assert (whole.items == small.items).all() and (whole.score == small.score).all()


@FAMILIES
def test_a_users_list_does_not_depend_on_other_users_bit_for_bit(family):
    matrix, hybrid = shop_models(family)
    some = np.array([9, 0, 5])

    whole = proposed_for(hybrid, matrix, k=6)
    alone = proposed_for(hybrid.for_users(some), matrix.for_users(some), k=6)

    for ours, theirs in (
        (alone.items, whole.items),
        (alone.score, whole.score),
        (alone.cf, whole.cf),
        (alone.content, whole.content),
    ):
        assert np.array_equal(ours, theirs[some], equal_nan=True)


@FAMILIES
def test_a_user_of_whom_no_model_knows_anything_is_proposed_nothing(family):
    matrix, hybrid = shop_models(family)

    lists = proposed_for(hybrid, matrix, k=3)

    newcomer = matrix.user_ids.index_of("newcomer")
    assert (lists.items[newcomer] == NOTHING).all()


def test_models_of_two_families_cannot_be_blended():
    matrix, factors = shop_models("als")
    _, by_history = shop_models("item_item")
    mixed = Hybrid(cf=factors.cf, content=by_history.content, w_cf=0.7, w_content=0.3)

    with pytest.raises(ValueError, match="a factor model and an item-item model"):
        proposed_for(mixed, matrix, k=3)


def test_a_cell_of_a_markdown_table_stays_in_its_row():
    frame = pl.DataFrame({"title": ["a|b", "two\nlines"], "n": [1, None]})

    assert markdown_table(frame) == "| title | n |\n|---|---|\n| a\\|b | 1 |\n| two lines |  |"
