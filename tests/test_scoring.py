"""The scoring engine against twenty lines of numpy."""

import numpy as np
import pytest
from frames_for_tests import random_csr_pattern
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_assets.models import FactorModel
from ml_assets.scoring import (
    NOTHING,
    blend,
    blocks,
    nearest_items,
    part_scores,
    top_items,
    unit_rows,
)


def quiet(_message: str) -> None:
    pass


def reference_top(scores, exclude, eligible, k):
    """Every score, a full sort: best first, ties by position."""
    best = np.full((len(scores), k), NOTHING)
    for row, values in enumerate(scores):
        allowed = eligible & (exclude.toarray()[row] == 0)
        order = [i for i in np.lexsort((np.arange(len(values)), -values)) if allowed[i]][:k]
        best[row, : len(order)] = order
    return best


def model(rng, n_users, n_items, factors):
    return FactorModel(
        user_factors=rng.standard_normal((n_users, factors)).astype(np.float32),
        item_factors=rng.standard_normal((n_items, factors)).astype(np.float32),
        knows_user=rng.random(n_users) < 0.8,
        knows_item=rng.random(n_items) < 0.8,
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_users=st.integers(0, 9),
    n_items=st.integers(1, 30),
    k=st.integers(1, 8),
    levels=st.integers(1, 4),
    block_bytes=st.sampled_from([1, 200, 10_000]),
)
def test_top_items_equal_a_full_sort_ties_included(seed, n_users, n_items, k, levels, block_bytes):
    rng = np.random.default_rng(seed)
    # Few levels make many ties, and small whole numbers make every product exact.
    users = rng.integers(0, levels, (n_users, 3)).astype(np.float32)
    items = rng.integers(-levels, levels, (n_items, 3)).astype(np.float32)
    exclude = random_csr_pattern(rng, (n_users, n_items), 0.3)
    eligible = rng.random(n_items) < 0.8

    best = top_items(
        users,
        items,
        k=k,
        exclude=exclude,
        eligible=eligible,
        block_bytes=block_bytes,
        progress=quiet,
    )

    assert (best == reference_top(users @ items.T, exclude, eligible, k)).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), w=st.sampled_from([(0.7, 0.3), (1.0, 0.0), (0.5, 2.0)]))
def test_the_blend_is_the_weighted_sum_of_scores_standardised_per_user(seed, w):
    rng = np.random.default_rng(seed)
    n_users, n_items = 5, 12
    models = [model(rng, n_users, n_items, 4), model(rng, n_users, n_items, 3)]
    eligible = rng.random(n_items) < 0.9

    blended = blend(list(zip(models, w, strict=True)), eligible=eligible)

    expected = np.zeros((n_users, n_items))
    for one, weight in zip(models, w, strict=True):
        over = one.knows_item & eligible
        raw = one.user_factors.astype(float) @ one.item_factors.T.astype(float)
        if over.sum() < 2:
            continue
        z = (raw - raw[:, over].mean(1, keepdims=True)) / raw[:, over].std(1, keepdims=True)
        z[:, ~one.knows_item] = 0
        z[~one.knows_user] = 0
        expected += weight * z
    if min((one.knows_item & eligible).sum() for one in models) >= 2:
        np.testing.assert_allclose(
            blended.user_vectors @ blended.item_vectors.T, expected, atol=2e-4
        )


def test_the_parts_of_a_blend_add_up_and_are_nan_where_a_model_knows_nothing():
    rng = np.random.default_rng(3)
    models = [model(rng, 6, 20, 4), model(rng, 6, 20, 5)]
    blended = blend([(models[0], 0.7), (models[1], 0.3)], eligible=np.ones(20, bool))
    best = np.tile(np.arange(20, dtype=np.int32), (6, 1))

    cf, content = part_scores(blended, best)

    assert (np.isnan(cf) == ~np.outer(models[0].knows_user, models[0].knows_item)).all()
    total = 0.7 * np.nan_to_num(cf) + 0.3 * np.nan_to_num(content)
    np.testing.assert_allclose(total, blended.user_vectors @ blended.item_vectors.T, atol=1e-5)


def test_a_user_to_whom_all_products_are_alike_has_no_opinion():
    same = FactorModel(
        user_factors=np.ones((1, 2), np.float32),
        item_factors=np.ones((4, 2), np.float32),
        knows_user=np.ones(1, bool),
        knows_item=np.ones(4, bool),
    )

    blended = blend([(same, 1.0)], eligible=np.ones(4, bool))

    assert (blended.user_vectors @ blended.item_vectors.T == 0).all()


def test_the_nearest_of_a_product_is_never_itself_and_a_product_without_text_has_none():
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0, 0]], np.float32)

    best, cosine = nearest_items(
        vectors, k=3, eligible=np.ones(4, bool), block_bytes=1 << 20, progress=quiet
    )

    assert best[0].tolist() == [1, NOTHING, NOTHING]
    assert best[1].tolist() == [0, 2, NOTHING]
    assert best[3].tolist() == [NOTHING] * 3
    assert cosine[0, 0] == pytest.approx(0.9 / np.hypot(0.9, 0.1))


def test_blocks_cover_all_rows_within_the_memory_given():
    parts = list(blocks(10, bytes_per_row=100, block_bytes=350))

    assert [(part.start, part.stop) for part in parts] == [(0, 3), (3, 6), (6, 9), (9, 10)]


def test_rows_are_scaled_to_length_one_and_zeros_stay():
    assert unit_rows(np.array([[3, 4], [0, 0]], np.float32)).tolist() == [
        [pytest.approx(0.6), pytest.approx(0.8)],
        [0, 0],
    ]
