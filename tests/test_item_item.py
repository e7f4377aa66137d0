"""The item-item engine against plain numpy: see `references.py`."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from frames_for_tests import quiet, random_csr_pattern
from hypothesis import given, settings
from hypothesis import strategies as st
from references import (
    full_sort,
    history_scores,
    largest_absolute,
    largest_positive,
    largest_share,
    nearest_dense,
    scores_by_history,
)

from ml_assets import threads
from ml_assets.item_item import (
    NOTHING,
    ItemItemModel,
    because_by_history,
    best_by_history,
    largest_of_blocks,
    largest_of_rows,
    largest_products,
    z_of_pairs,
)


def sparse(dense):
    return sp.csr_matrix(np.asarray(dense, np.float32))


def whole_numbers(rng, shape, *, share=0.4, highest=3):
    """A sparse matrix whose products are exact in single precision, with many ties."""
    return sparse(rng.integers(1, highest + 1, shape) * (rng.random(shape) < share))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    n_users=st.integers(0, 8),
    n_items=st.integers(1, 20),
    k=st.integers(1, 25),
    n_threads=st.integers(1, 2),
)
def test_the_nearest_products_equal_a_full_sort_of_the_product_ties_by_the_lower_one(
    seed, n_users, n_items, k, n_threads
):
    rng = np.random.default_rng(seed)
    sources, targets = (whole_numbers(rng, (n_users, n_items)) for _ in range(2))
    source_scale, target_scale = rng.choice([0, 0.5, 1, 2], (2, n_items)).astype(np.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "n_threads", lambda: n_threads)
        nearest = largest_products(
            sources, targets, source_scale=source_scale, target_scale=target_scale, k=k
        )

    # A row is cut before its own scale is applied, which a scale of 0 would hide.
    before = nearest_dense(sources, targets, np.ones(n_items), target_scale)
    assert (nearest.toarray() == source_scale[:, None] * largest_positive(before, k)).all()
    assert nearest.has_sorted_indices and nearest.dtype == np.float32


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 100_000), k=st.integers(1, 12))
def test_the_nearest_products_of_any_weights_are_the_largest_up_to_rounding(seed, k):
    rng = np.random.default_rng(seed)
    sources, targets = (
        sparse(rng.exponential(size=(9, 12)) * (rng.random((9, 12)) < 0.5)) for _ in range(2)
    )
    source_scale, target_scale = rng.exponential(size=(2, 12)).astype(np.float32)

    nearest = largest_products(
        sources, targets, source_scale=source_scale, target_scale=target_scale, k=k
    ).toarray()

    dense = nearest_dense(sources, targets, source_scale, target_scale)
    np.testing.assert_allclose(nearest[nearest > 0], dense[nearest > 0], rtol=1e-5)
    expected = np.sort(largest_positive(dense, k), axis=1)
    np.testing.assert_allclose(np.sort(nearest, axis=1), expected, rtol=1e-5)


def test_pairs_that_weigh_nothing_do_not_follow_from_each_other():
    # Far more users than products, all with entries of zero.
    nothing = sparse(np.ones((50, 3)))
    nothing.data[:] = 0
    ones = np.ones(3, np.float32)

    nearest = largest_products(
        nothing, sparse(np.ones((50, 3))), source_scale=ones, target_scale=ones, k=2
    )

    assert nearest.nnz == 0


def test_a_product_does_not_follow_from_itself():
    bought_together = sparse([[1, 1, 0], [1, 1, 1]])
    ones = np.ones(3, np.float32)

    nearest = largest_products(
        bought_together, bought_together, source_scale=ones, target_scale=ones, k=1
    )

    assert nearest.toarray().tolist() == [[0, 2, 0], [2, 0, 0], [1, 0, 0]]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    n_items=st.integers(1, 80),
    k=st.integers(1, 90),
    rows_per_block=st.integers(1, 30),
    n_threads=st.integers(1, 2),
)
def test_rows_made_in_blocks_keep_their_largest_entries_of_either_sign(
    seed, n_items, k, rows_per_block, n_threads
):
    rng = np.random.default_rng(seed)
    dense = rng.integers(-3, 4, (n_items, n_items)).astype(np.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "n_threads", lambda: n_threads)
        kept = largest_of_blocks(
            lambda start, stop, _: dense[start:stop].copy(),
            n_items,
            k=k,
            rows_per_block=rows_per_block,
            scratch=lambda: None,
        )

    np.fill_diagonal(dense, 0)
    assert (kept.toarray() == largest_absolute(dense, k)).all()
    assert kept.has_sorted_indices and (kept.data != 0).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000), n_columns=st.integers(1, 15), k=st.integers(1, 17))
def test_the_largest_entries_of_a_row_come_in_order_ties_by_the_lower_column(seed, n_columns, k):
    rng = np.random.default_rng(seed)
    matrix = whole_numbers(rng, (6, n_columns), share=0.6)

    column, value = largest_of_rows(matrix, k=k)

    dense = matrix.toarray()
    everything = np.ones(n_columns, bool)
    expected = full_sort(dense, exclude=sp.csr_matrix(dense == 0), eligible=everything, k=k)
    assert (column == expected).all()
    assert (value == np.where(expected == NOTHING, 0, dense[np.arange(6)[:, None], expected])).all()


def drawn_model(rng, history, *, is_signed=False):
    """A model over the users and items of a history, which knows some of each."""
    n_users, n_items = history.shape
    knows_item = rng.random(n_items) < 0.8
    follows = whole_numbers(rng, (n_items, n_items)).toarray()
    if is_signed:
        # Sums of few small numbers of either sign often come to 0, at the end or on the way.
        follows *= rng.choice([-1, 1], follows.shape)
    return ItemItemModel(
        history=history,
        follows=sparse(follows * knows_item),
        knows_user=rng.random(n_users) < 0.8,
        knows_item=knows_item,
    )


def best_of(models, *, k, exclude=None, eligible=None):
    n_users, n_items = models[0][0].history.shape
    return best_by_history(
        models,
        k=k,
        exclude=sp.csr_matrix((n_users, n_items), dtype=np.float32) if exclude is None else exclude,
        eligible=np.ones(n_items, bool) if eligible is None else eligible,
        progress=quiet,
    )


sizes = {
    "seed": st.integers(0, 100_000),
    "n_users": st.integers(0, 8),
    # Many: then what can still enter a list is bounded before it is picked.
    "n_items": st.integers(1, 20) | st.integers(100, 300),
    "k": st.integers(1, 22),
    "is_signed": st.booleans(),
}


@settings(max_examples=60, deadline=None)
@given(**sizes)
def test_the_best_by_one_model_equal_a_full_sort_ties_included(
    seed, n_users, n_items, k, is_signed
):
    rng = np.random.default_rng(seed)
    model = drawn_model(rng, whole_numbers(rng, (n_users, n_items)), is_signed=is_signed)
    exclude = random_csr_pattern(rng, (n_users, n_items), 0.2)
    eligible = rng.random(n_items) < 0.8

    lists = best_of([(model, 0.7)], k=k, exclude=exclude, eligible=eligible)

    # Whole numbers have exact sums, and putting them on a scale keeps their order and ties.
    raw = history_scores(model)
    out_of_reach = sp.csr_matrix((exclude.toarray() > 0) | (raw == 0))
    # But whoever has nothing but equal scores has no order: all are 0.
    z = np.nan_to_num(scores_by_history([(model, 0.7)])[1][0])
    ranked = raw * z.any(axis=1, keepdims=True)
    expected = full_sort(ranked, exclude=out_of_reach, eligible=eligible, k=k)
    assert (lists.items == expected).all()


@settings(max_examples=80, deadline=None)
@given(**sizes, w=st.sampled_from([(0.7, 0.3), (1.0, 0.0), (0.0, 1.0), (0.5, 2.0)]))
def test_the_best_by_two_models_have_the_largest_sums_of_z_scores(
    seed, n_users, n_items, k, is_signed, w
):
    rng = np.random.default_rng(seed)
    history = whole_numbers(rng, (n_users, n_items))
    models = [(drawn_model(rng, history, is_signed=is_signed), weight) for weight in w]
    exclude = random_csr_pattern(rng, (n_users, n_items), 0.2)
    eligible = rng.random(n_items) < 0.8

    lists = best_of(models, k=k, exclude=exclude, eligible=eligible)

    scores, z = scores_by_history(models)
    scores[:, ~eligible] = -np.inf
    scores[exclude.toarray() > 0] = -np.inf
    largest = np.full((n_users, k), -np.inf)
    largest[:, :n_items] = -np.sort(-scores, axis=1)[:, :k]
    np.testing.assert_allclose(lists.score, largest, atol=1e-9)
    assert ((lists.items == NOTHING) == np.isneginf(lists.score)).all()
    user, place = np.nonzero(lists.items != NOTHING)
    item = lists.items[user, place]
    np.testing.assert_allclose(scores[user, item], lists.score[user, place], atol=1e-9)
    for part, expected in zip(lists.parts, z, strict=True):
        np.testing.assert_allclose(part[user, place], expected[user, item], atol=1e-9)
        assert np.isnan(part[lists.items == NOTHING]).all()
    total = sum(weight * np.nan_to_num(part) for weight, part in zip(w, lists.parts, strict=True))
    assert (total[user, place] == lists.score[user, place]).all()
    # Nobody is proposed the same product twice.
    assert len(set(zip(user, item, strict=True))) == len(user)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000), n_threads=st.integers(1, 2), is_signed=st.booleans())
def test_a_users_list_depends_on_no_one_elses_bit_for_bit(seed, n_threads, is_signed):
    rng = np.random.default_rng(seed)
    history = sparse(rng.exponential(size=(12, 15)) * (rng.random((12, 15)) < 0.3))
    models = [(drawn_model(rng, history, is_signed=is_signed), weight) for weight in (0.7, 0.3)]
    exclude = random_csr_pattern(rng, (12, 15), 0.2)
    some = rng.permutation(12)[:5]

    whole = best_of(models, k=6, exclude=exclude)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "n_threads", lambda: n_threads)
        alone = best_of(
            [(model.for_users(some), weight) for model, weight in models],
            k=6,
            exclude=sp.csr_matrix(exclude[some]),
        )

    assert (alone.items == whole.items[some]).all()
    for ours, theirs in (
        (alone.score, whole.score[some]),
        (alone.parts, whole.parts[:, some]),
        (alone.inverse_deviation, whole.inverse_deviation[:, some]),
    ):
        assert np.array_equal(ours, theirs, equal_nan=True)


def test_a_list_is_the_arithmetic_of_its_history():
    # Touched 0 twice as much as 1: item 2 gets 2 x 1, item 3 gets 2 x 1 + 1 x 2.
    model = ItemItemModel(
        history=sparse([[2, 1, 0, 0]]),
        follows=sparse([[0, 0, 1, 1], [0, 0, 0, 2], [0] * 4, [0] * 4]),
        knows_user=np.ones(1, bool),
        knows_item=np.ones(4, bool),
    )

    lists = best_of([(model, 1.0)], k=3)

    raw = np.array([0, 0, 2, 4])
    z = (raw - raw.mean()) / raw.std()
    assert lists.items.tolist() == [[3, 2, NOTHING]]
    assert lists.score[0, :2].tolist() == pytest.approx([z[3], z[2]])
    assert lists.inverse_deviation[0, 0] == pytest.approx(1 / raw.std())


def test_products_of_equal_score_come_in_the_order_of_the_catalogue():
    model = ItemItemModel(
        history=sparse([[1, 0, 0, 0, 0]]),
        follows=sparse([[0, 1, 2, 1, 1], *[[0] * 5] * 4]),
        knows_user=np.ones(1, bool),
        knows_item=np.ones(5, bool),
    )

    assert best_of([(model, 1.0)], k=3).items.tolist() == [[2, 1, 3]]


def test_a_weight_of_zero_is_as_good_as_no_entry():
    with_zero = sparse([[2, 1, 1, 0]])
    with_zero.data[0] = 0
    model = ItemItemModel(
        history=with_zero,
        follows=sparse([[0, 0, 1, 1], [0, 0, 0, 2], [0, 0, 0, 1], [0] * 4]),
        knows_user=np.ones(1, bool),
        knows_item=np.ones(4, bool),
    )
    without = replace(model, history=sparse([[0, 1, 1, 0]]))

    lists, expected = best_of([(model, 1.0)], k=3), best_of([(without, 1.0)], k=3)

    assert lists.items.tolist() == expected.items.tolist() == [[3, NOTHING, NOTHING]]
    assert lists.score[0, 0] == expected.score[0, 0]


def test_what_cancels_out_on_the_way_is_proposed_once_and_what_comes_to_nothing_never():
    model = ItemItemModel(
        history=sparse([[1, 1, 1, 0, 0, 0]]),
        follows=sparse(
            [[0, 0, 0, 1, 1, 1], [0, 0, 0, -1, -1, 0], [0, 0, 0, 2, 0, -3], *[[0] * 6] * 3]
        ),
        knows_user=np.ones(1, bool),
        knows_item=np.ones(6, bool),
    )

    # 3 gets 1 - 1 + 2, 4 gets 1 - 1, and 5 gets 1 - 3: spoken against, but better than nothing.
    assert best_of([(model, 1.0)], k=4).items.tolist() == [[3, 5, NOTHING, NOTHING]]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000), n_items=st.integers(1, 15), is_signed=st.booleans())
def test_given_pairs_get_the_scores_they_have_in_lists(seed, n_items, is_signed):
    rng = np.random.default_rng(seed)
    model = drawn_model(rng, whole_numbers(rng, (6, n_items)), is_signed=is_signed)
    pairs = rng.integers(NOTHING, n_items, (6, 4)).astype(np.int32)

    z = z_of_pairs(model, pairs)

    (expected,) = scores_by_history([(model, 1.0)])[1]
    expected = np.where(pairs == NOTHING, np.nan, expected[np.arange(6)[:, None], pairs])
    np.testing.assert_allclose(z, expected, atol=1e-9)


def test_three_models_are_refused():
    model = drawn_model(np.random.default_rng(0), sparse([[1.0]]))

    with pytest.raises(ValueError, match="one or two item-item models can be blended, got 3"):
        best_of([(model, 1.0)] * 3, k=1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    n_items=st.integers(1, 15),
    is_signed=st.booleans(),
    w=st.sampled_from([(1.0,), (0.7, 0.3), (1.0, 0.0)]),
)
def test_the_reason_is_the_product_of_the_history_with_the_largest_share(
    seed, n_items, is_signed, w
):
    rng = np.random.default_rng(seed)
    history = whole_numbers(rng, (6, n_items))
    models = [(drawn_model(rng, history, is_signed=is_signed), weight) for weight in w]
    inverse_deviation = rng.choice([0, 0.5, 1, 3], (len(w), 6))
    chosen = np.array(
        [rng.permutation(np.r_[np.arange(n_items), NOTHING, NOTHING])[:4] for _ in range(6)]
    ).astype(np.int32)

    at = because_by_history(models, inverse_deviation, chosen)

    items = np.where(at == NOTHING, NOTHING, np.append(history.indices, 0)[at])
    assert (items == largest_share(models, inverse_deviation, chosen)).all()


def test_a_product_is_never_its_own_reason_and_ties_go_to_the_first():
    model = ItemItemModel(
        history=sparse([[1, 1, 1, 5]]),
        follows=sparse([[0, 0, 0, 2], [0, 0, 0, 3], [0, 0, 0, 3], [0, 0, 0, 9]]),
        knows_user=np.ones(1, bool),
        knows_item=np.ones(4, bool),
    )

    at = because_by_history([(model, 1.0)], np.ones((1, 1)), np.array([[3, 0]], np.int32))

    assert at.tolist() == [[1, NOTHING]]
