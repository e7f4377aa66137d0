"""Lists: full, free of what was bought, labelled and explained."""

import numpy as np
import polars as pl
from frames_for_tests import (
    SETTINGS,
    checkerboard,
    popularity_of,
    products_of,
    signals_of,
    users_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ml_assets.content import product_vectors
from ml_assets.frames import CANDIDATES, RECOMMENDATIONS
from ml_assets.models import fit_als, user_profiles
from ml_assets.recommend import (
    Hybrid,
    candidate_frame,
    propose,
    recommend,
    similar_products,
)
from ml_assets.signal_matrix import build_signal_matrix


def quiet(_message: str) -> None:
    pass


def lists_for(
    signals, users, products, popularity, *, top_n, with_cf=True, with_content=True, k=None
):
    matrix = build_signal_matrix(
        signals, user_ids=users["user_id"], product_ids=products["product_id"]
    )
    products = products.sort("product_id")
    content = None
    if with_content:
        vectors = product_vectors(products["text"], dimensions=64, seed=0)
        content = user_profiles(matrix, vectors)
    hybrid = Hybrid(
        cf=fit_als(matrix, settings=SETTINGS, seed=0) if with_cf else None,
        content=content,
        w_cf=0.7,
        w_content=0.3,
    )
    proposed = propose(
        hybrid,
        k=k or top_n,
        exclude=matrix.bought,
        eligible=products["is_available"].to_numpy(),
        block_bytes=1 << 16,
        progress=quiet,
    )
    recommendations = recommend(
        proposed,
        matrix=matrix,
        hybrid=hybrid,
        users=users,
        products=products,
        popularity=popularity,
        top_n=top_n,
    )
    return candidate_frame(proposed, matrix), recommendations


def shop(n=12):
    pairs = checkerboard(n)
    titles = {f"{i:03}": f"{'odd' if i % 2 else 'even'} thing number{i}" for i in range(n)}
    users = users_of({user: None for user, _ in pairs} | {"newcomer": "France"})
    return signals_of(pairs), users, products_of(titles), popularity_of(popular=sorted(titles))


def test_every_user_gets_exactly_n_rows_ranked_without_gaps():
    signals, users, products, popularity = shop()

    _, rows = lists_for(signals, users, products, popularity, top_n=4)

    assert rows.schema == RECOMMENDATIONS
    ranks = rows.group_by("user_id").agg(pl.col("rank").sort())
    assert ranks["rank"].to_list() == [[1, 2, 3, 4]] * len(users)


def test_the_one_product_held_out_from_each_user_comes_first():
    signals, users, products, popularity = shop()

    _, rows = lists_for(signals, users, products, popularity, top_n=3)

    first = rows.filter((pl.col("rank") == 1) & (pl.col("source") == "hybrid"))
    assert (first["user_id"] == first["product_id"]).all() and len(first) == 12


def test_published_scores_are_the_weighted_sum_of_the_published_parts():
    signals, users, products, popularity = shop()

    candidates, rows = lists_for(signals, users, products, popularity, top_n=3, k=8)

    for frame in (candidates, rows.filter(pl.col("source") == "hybrid")):
        blended = 0.7 * pl.col("cf_score") + 0.3 * pl.col("content_score")
        assert frame.select((pl.col("score") == blended).all()).item()


def test_candidates_start_with_the_rows_that_are_published():
    signals, users, products, popularity = shop()

    candidates, rows = lists_for(signals, users, products, popularity, top_n=3, k=6)

    assert candidates.schema == CANDIDATES
    published = rows.filter(pl.col("source") == "hybrid").select(CANDIDATES.names())
    assert_frame_equal(published, candidates.filter(pl.col("rank") <= 3))


def test_what_was_bought_or_is_gone_is_never_shown_but_what_was_looked_at_may_be():
    pairs = checkerboard(12)
    looked = signals_of([(user, user) for user, _ in pairs], bought=False).unique()
    signals, users, products, popularity = shop()
    products = products.with_columns(is_available=pl.col("product_id") != "003")
    popularity = popularity.filter(pl.col("product_id") != "003")

    _, rows = lists_for(pl.concat([signals, looked]), users, products, popularity, top_n=6)

    shown = set(rows.select("user_id", "product_id").iter_rows())
    assert not shown & set(pairs)
    assert all(product != "003" for _, product in shown)
    assert ("005", "005") in shown


def test_a_user_who_only_looked_gets_a_list_from_what_they_looked_at():
    signals, users, products, popularity = shop()
    users = pl.concat([users, users_of({"looker": None})])
    views = signals_of([("looker", "002"), ("looker", "004")], bought=False)

    _, rows = lists_for(pl.concat([signals, views]), users, products, popularity, top_n=3)

    looker = rows.filter(pl.col("user_id") == "looker")
    assert looker["source"].to_list() == ["hybrid"] * 3
    assert {int(product) % 2 for product in looker["product_id"]} == {0}
    assert looker["reason"].str.starts_with("Because you looked at even thing").any()


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


def test_without_the_collaborative_model_the_source_is_content():
    signals, users, products, popularity = shop()

    _, rows = lists_for(signals, users, products, popularity, top_n=2, with_cf=False)

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


def test_a_reason_names_the_product_most_like_the_one_recommended():
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
        with_cf=False,
    )

    reasons = dict(rows.select("product_id", "reason").iter_rows())
    assert reasons == {
        "lamp blue": "Because you bought red lamp",
        "mug big": "Because you bought tea mug",
    }
    because = dict(rows.select("product_id", "because_product_id").iter_rows())
    assert because == {"lamp blue": "lamp red", "mug big": "mug"}


def test_ids_of_any_characters_survive():
    odd = ["001", "1", "O'Hara", 'say "hi"', "line\nbreak", "🎁", "a,b", "שלום"]
    products = products_of({name: f"thing {i}" for i, name in enumerate(odd)})

    _, rows = lists_for(
        signals_of([(name, name) for name in odd]),
        users_of(dict.fromkeys(odd)),
        products,
        popularity_of(popular=odd),
        top_n=7,
        with_cf=False,
    )

    for name in odd:
        shown = rows.filter(pl.col("user_id") == name)["product_id"].to_list()
        assert sorted(shown) == sorted(set(odd) - {name})


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_order_of_input_rows_changes_nothing(data):
    signals, users, products, popularity = shop(8)
    seed = data.draw(st.integers(0, 1000))

    _, rows = lists_for(signals, users, products, popularity, top_n=3)
    _, shuffled = lists_for(
        signals.sample(fraction=1, shuffle=True, seed=seed),
        users.sample(fraction=1, shuffle=True, seed=seed),
        products.sample(fraction=1, shuffle=True, seed=seed),
        popularity.sample(fraction=1, shuffle=True, seed=seed),
        top_n=3,
    )

    assert_frame_equal(rows, shuffled, check_exact=True)


def test_similar_products_are_available_ranked_and_not_the_product_itself():
    titles = {"a": "red lamp", "b": "blue lamp", "c": "green lamp", "d": "tea mug"}
    products = products_of(titles, gone=frozenset({"c"}))
    vectors = product_vectors(products["text"], dimensions=64, seed=0)

    rows = similar_products(
        [(vectors, 1.0)],
        products=products,
        product_ids=products["product_id"],
        k=5,
        block_bytes=1 << 16,
        progress=quiet,
    )

    pairs = rows.select("product_id", "rank", "similar_product_id").rows()
    assert pairs == [("a", 1, "b"), ("b", 1, "a"), ("c", 1, "a"), ("c", 2, "b")]


def test_without_any_model_there_are_no_similar_products():
    rows = similar_products(
        [],
        products=products_of({"a": None}),
        product_ids=pl.Series(["a"]),
        k=5,
        block_bytes=1,
        progress=quiet,
    )

    assert rows.is_empty()


def test_scoring_in_small_blocks_gives_the_same_lists():
    signals, users, products, _ = shop()
    matrix = build_signal_matrix(
        signals, user_ids=users["user_id"], product_ids=products["product_id"]
    )
    cf = fit_als(matrix, settings=SETTINGS, seed=0)
    hybrid = Hybrid(cf=cf, content=None, w_cf=1.0, w_content=0.0)
    arguments = {
        "k": 3,
        "exclude": matrix.bought,
        "eligible": np.ones(len(products), bool),
        "progress": quiet,
    }

    whole = propose(hybrid, block_bytes=1 << 20, **arguments)
    small = propose(hybrid, block_bytes=1, **arguments)

    assert (whole.items == small.items).all()
