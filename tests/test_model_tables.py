"""Models survive being tables, also when the catalogue is no longer the one they learned from."""

import duckdb
import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from frames_for_tests import (
    SETTINGS,
    checkerboard,
    model_tables_of,
    products_of,
    signals_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ml_assets.item_item import ItemItemModel
from ml_assets.model_tables import (
    NEIGHBOURS,
    factor_frame,
    hybrid_of,
    likeness_of,
    neighbour_frame,
    neighbours_of,
    vectors_of,
)
from ml_assets.models import FactorModel, als_user_factors, fit_model
from ml_assets.signal_matrix import build_signal_matrix


def through_duckdb(frame):
    """As the next step reads it."""
    with duckdb.connect() as connection:
        connection.register("frame", frame.to_arrow())
        connection.execute("create table stored as from frame")
        return connection.sql("select * from stored").pl()


def ids(*names):
    return pl.Series("product_id", names, dtype=pl.String)


def sparse(dense):
    return sp.csr_matrix(np.asarray(dense, np.float32))


def test_vectors_come_back_as_they_were_and_zeros_where_there_were_none():
    vectors = np.array([[0.1, -2], [0, 0], [0, 3e-20]], np.float32)

    stored = through_duckdb(factor_frame(ids("a", "b", "c"), "product_id", vectors, "factors"))

    assert stored["product_id"].to_list() == ["a", "c"]
    assert stored.schema["factors"] == pl.Array(pl.Float32, 2)
    assert (vectors_of(stored, ids("a", "b", "c"), "factors") == vectors).all()


def test_vectors_follow_their_ids_when_the_catalogue_gains_and_loses():
    vectors = np.array([[1], [2], [3]], np.float32)
    stored = through_duckdb(factor_frame(ids("a", "b", "c"), "product_id", vectors, "factors"))

    found = vectors_of(stored, ids("aa", "b", "c", "d"), "factors")

    assert found.tolist() == [[0], [2], [3], [0]]


def test_a_table_without_vectors_is_no_model():
    nothing = np.zeros((2, 3), np.float32)
    stored = through_duckdb(factor_frame(ids("a", "b"), "product_id", nothing, "factors"))

    assert vectors_of(stored, ids("a", "b"), "factors") is None


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000), n_items=st.integers(1, 12), is_shuffled=st.booleans())
def test_neighbours_come_back_as_they_were(seed, n_items, is_shuffled):
    rng = np.random.default_rng(seed)
    matrix = sparse(rng.standard_normal((n_items, n_items)) * (rng.random((n_items,) * 2) < 0.3))
    is_known = rng.random(n_items) < 0.7
    names = ids(*(f"{i:02}" for i in range(n_items)))

    frame = neighbour_frame(names, matrix, is_known)
    stored = through_duckdb(frame.sample(fraction=1, shuffle=is_shuffled, seed=seed))
    found, found_known = neighbours_of(stored, names)

    assert frame.schema == stored.schema == NEIGHBOURS
    assert (found.toarray() == matrix.toarray()).all() and (found_known == is_known).all()
    assert found.has_sorted_indices and found.dtype == np.float32
    # The kernels are compiled for these.
    assert found.indices.dtype == found.indptr.dtype == np.int32
    assert found.data.flags.writeable


def test_neighbours_follow_their_ids_when_the_catalogue_gains_and_loses():
    matrix = sparse([[0, 1, 2], [3, 0, 4], [5, 6, 0]])
    is_known = np.array([True, True, False])
    stored = through_duckdb(neighbour_frame(ids("a", "b", "c"), matrix, is_known))

    # b is gone; aa and d are new.
    found, found_known = neighbours_of(stored, ids("a", "aa", "c", "d"))

    assert found.toarray().tolist() == [[0, 0, 2, 0], [0] * 4, [5, 0, 0, 0], [0] * 4]
    assert found_known.tolist() == [True, False, False, False]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_what_is_left_of_the_catalogue_keeps_its_neighbours(seed):
    rng = np.random.default_rng(seed)
    everything = np.array([f"{i:02}" for i in range(16)])
    then, now = (np.flatnonzero(rng.random(16) < 0.6) for _ in range(2))
    whole = rng.standard_normal((16, 16)) * (rng.random((16, 16)) < 0.3)
    is_known = rng.random(16) < 0.7

    stored = through_duckdb(
        neighbour_frame(ids(*everything[then]), sparse(whole[np.ix_(then, then)]), is_known[then])
    )
    found = neighbours_of(stored, ids(*everything[now]))

    if len(then) == 0:
        assert found is None
        return
    was_there = np.isin(np.arange(16), then)
    expected = (whole * was_there * was_there[:, None])[np.ix_(now, now)]
    assert (found[0].toarray() == expected.astype(np.float32)).all()
    assert (found[1] == (is_known & was_there)[now]).all()
    assert found[0].has_sorted_indices


def test_an_empty_table_is_no_model():
    stored = through_duckdb(pl.DataFrame(schema=NEIGHBOURS))

    assert neighbours_of(stored, ids("a")) is None


def shop():
    signals = signals_of(checkerboard(8))
    products = products_of({f"{i:03}": f"{'odd' if i % 2 else 'even'} n{i}" for i in range(8)})
    matrix = build_signal_matrix(
        signals, user_ids=signals["user_id"], product_ids=products["product_id"]
    )
    return matrix, products


def hybrid_from_tables(cf_model, **changes):
    matrix, products = shop()
    tables = model_tables_of(matrix, products, {**SETTINGS, "cf_model": cf_model})
    items = vectors_of(tables["item_factors"], matrix.product_ids, "factors")
    users = pl.DataFrame()
    if items is not None:
        vectors = als_user_factors(items, matrix.history, settings=SETTINGS)
        users = through_duckdb(factor_frame(matrix.user_ids, "user_id", vectors, "factors"))
    stored = {name: through_duckdb(table) for name, table in tables.items()}
    return matrix, hybrid_of(
        matrix, **{"user_factors": users, **stored, "w_cf": 0.7, "w_content": 0.3, **changes}
    )


@pytest.mark.parametrize("cf_model, family", [("als", FactorModel), ("item_item", ItemItemModel)])
def test_the_content_model_is_of_the_family_of_the_collaborative_one(cf_model, family):
    _, hybrid = hybrid_from_tables(cf_model)

    assert isinstance(hybrid.cf, family) and isinstance(hybrid.content, family)
    assert hybrid.is_item_item == (family is ItemItemModel)
    assert hybrid.models == [(hybrid.cf, 0.7), (hybrid.content, 0.3)]


def test_als_from_its_tables_is_als_as_it_was_fitted():
    matrix, hybrid = hybrid_from_tables("als")

    fitted = fit_model("als", matrix, settings=SETTINGS, seed=0)
    assert (hybrid.cf.user_factors == fitted.user_factors).all()
    assert (hybrid.cf.item_factors == fitted.item_factors).all()
    assert (hybrid.cf.knows_user == fitted.knows_user).all()
    assert (hybrid.cf.knows_item == fitted.knows_item).all()


def test_item_item_from_its_tables_is_item_item_as_it_was_fitted():
    matrix, hybrid = hybrid_from_tables("item_item")

    fitted = fit_model("item_item", matrix, settings=SETTINGS, seed=0)
    assert (hybrid.cf.follows != fitted.follows).nnz == 0
    assert (hybrid.cf.history != fitted.history).nnz == 0
    assert (hybrid.cf.knows_user == fitted.knows_user).all()
    assert (hybrid.cf.knows_item == fitted.knows_item).all()


@pytest.mark.parametrize("cf_model", ["als", "item_item", "graph_filter"])
def test_without_texts_there_is_no_content_model(cf_model):
    nothing = pl.DataFrame(schema={"product_id": pl.String, "vector": pl.Array(pl.Float32, 1)})

    _, hybrid = hybrid_from_tables(
        cf_model, vectors=nothing, content_neighbours=pl.DataFrame(schema=NEIGHBOURS)
    )

    assert hybrid.content is None and hybrid.cf is not None


def test_without_a_collaborative_model_content_is_left():
    _, hybrid = hybrid_from_tables("item_item", item_neighbours=pl.DataFrame(schema=NEIGHBOURS))

    assert hybrid.cf is None and isinstance(hybrid.content, ItemItemModel)


def test_without_any_table_there_is_no_model():
    empty = pl.DataFrame(schema=NEIGHBOURS)

    _, hybrid = hybrid_from_tables("item_item", item_neighbours=empty, content_neighbours=empty)

    assert hybrid.models == []


def likeness(**changes):
    empty = pl.DataFrame(schema=NEIGHBOURS)
    arguments = {
        "item_factors": pl.DataFrame(),
        "item_neighbours": empty,
        "content_neighbours": empty,
        "k": 2,
        "block_bytes": 1 << 16,
        "w_cf": 0.7,
        "w_content": 0.3,
    }
    return likeness_of(ids("a", "b", "c"), **{**arguments, **changes})


def test_likeness_by_an_item_item_model_is_how_much_each_follows_from_the_other():
    table = neighbour_frame(
        ids("a", "b", "c"), sparse([[0, 8, 2], [1, 0, 4], [-3, 1, 0]]), np.ones(3, bool)
    )

    [(matrix, weight)] = likeness(item_neighbours=table)

    # Shares of what follows most: b of a all, a of b a quarter. What is spoken against one way is
    # not alike.
    assert matrix.toarray().tolist() == [[0, 0.5, 0], [0.5, 0, 1], [0, 1, 0]]
    assert weight == 0.7


def test_likeness_by_factors_is_the_cosine():
    vectors = np.array([[3, 4], [4, 3], [-1, 0]], np.float32)

    [(matrix, _)] = likeness(
        item_factors=factor_frame(ids("a", "b", "c"), "product_id", vectors, "factors")
    )

    cosine = pytest.approx((3 * 4 + 4 * 3) / (5 * 5))
    assert matrix.toarray().tolist() == [[0, cosine, 0], [cosine, 0, 0], [0, 0, 0]]


def test_likeness_by_text_is_read_from_the_product_asked_about():
    # c is like a; a has nearer ones.
    table = neighbour_frame(
        ids("a", "b", "c"), sparse([[0, 0.9, 0.5], [0.9, 0, 0], [0, 0, 0]]), np.ones(3, bool)
    )

    [(matrix, weight)] = likeness(content_neighbours=table)

    assert matrix.toarray()[2].tolist() == [0.5, 0, 0] and weight == 0.3


def test_a_model_without_weight_has_no_part_in_likeness():
    table = neighbour_frame(ids("a", "b", "c"), sparse(np.eye(3)), np.ones(3, bool))

    assert likeness(content_neighbours=table, w_content=0.0) == []


def test_model_tables_are_the_same_for_another_order_of_signals_and_products():
    signals, products = signals_of(checkerboard(8)), shop()[1]
    for cf_model in ("als", "item_item"):
        one, other = (
            model_tables_of(
                build_signal_matrix(
                    some, user_ids=some["user_id"], product_ids=catalogue["product_id"]
                ),
                catalogue,
                {**SETTINGS, "cf_model": cf_model},
            )
            for some, catalogue in ((signals, products), (signals.reverse(), products.reverse()))
        )
        for name in one:
            assert_frame_equal(one[name], other[name], check_exact=True)
