"""The scoring engine against plain numpy: see `references.py`."""

from contextlib import contextmanager

import numpy as np
import pytest
import scipy.sparse as sp
from frames_for_tests import quiet, random_csr_pattern
from hypothesis import given, settings
from hypothesis import strategies as st
from references import blended, full_sort, inner_products

from ml_assets import scoring, threads
from ml_assets.models import FactorModel
from ml_assets.scoring import (
    NOTHING,
    Shifts,
    blend,
    nearest_items,
    part_scores,
    top_items,
    unit_rows,
)


@contextmanager
def small_pieces(*, rows=2, margin=1, more=2, n_threads=1, dear=32):
    """A few rows and columns at a time, so that small data takes every path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "_TILE", 8)
        patch.setattr(scoring, "_ALIKE", 2)
        patch.setattr(scoring, "_ROWS", rows)
        patch.setattr(scoring, "_MARGIN", margin)
        patch.setattr(scoring, "_MORE", more)
        patch.setattr(scoring, "_DEAR", dear)
        patch.setattr(scoring, "n_threads", lambda: n_threads)
        patch.setattr(threads, "n_threads", lambda: n_threads)
        yield


def find(
    users, items, *, k, exclude=None, eligible=None, shifts=None, parts=None, block_bytes=1 << 20
):
    return top_items(
        users,
        items,
        k=k,
        exclude=exclude,
        eligible=np.ones(len(items), bool) if eligible is None else eligible,
        block_bytes=block_bytes,
        progress=quiet,
        shifts=shifts,
        parts=parts,
    )


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    n_users=st.integers(0, 9),
    n_items=st.integers(1, 60),
    n_groups=st.integers(1, 3),
    k=st.integers(1, 8),
    levels=st.integers(1, 4),
    share=st.sampled_from([0.05, 0.8, 1.0]),
    block_bytes=st.sampled_from([1, 200, 10_000]),
    n_threads=st.integers(1, 2),
)
def test_top_items_equal_a_full_sort_ties_included(
    seed, n_users, n_items, n_groups, k, levels, share, block_bytes, n_threads
):
    rng = np.random.default_rng(seed)
    # Few levels make many ties, and small whole numbers make every product exact.
    users = rng.integers(0, levels, (n_users, 3)).astype(np.float32)
    items = rng.integers(-levels, levels, (n_items, 3)).astype(np.float32)
    shifts = Shifts(
        rng.integers(0, levels, (n_users, n_groups)).astype(np.float32),
        rng.integers(0, n_groups, n_items).astype(np.int32),
    )
    exclude = random_csr_pattern(rng, (n_users, n_items), 0.3)
    eligible = rng.random(n_items) < share

    with small_pieces(n_threads=n_threads):
        best = find(
            users,
            items,
            k=k,
            exclude=exclude,
            eligible=eligible,
            shifts=shifts,
            block_bytes=block_bytes,
        )

    scores = inner_products(users, items, shifts)
    assert (best == full_sort(scores, exclude=exclude, eligible=eligible, k=k)).all()


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    n_items=st.integers(1, 80),
    n_groups=st.integers(1, 3),
    k=st.integers(1, 12),
    decades=st.integers(0, 6),
    n_kinds=st.sampled_from([2, 20, 1000]),
    margin=st.sampled_from([1, 8]),
    parts=st.sampled_from(
        [None, (slice(0, 2), slice(2, 5)), (slice(0, 1), slice(1, 3), slice(3, 5))]
    ),
    # At 0 the pairs that are left are asked about one by one, at 1e9 all are multiplied out.
    dear=st.sampled_from([0, 32, 10**9]),
)
def test_top_items_equal_a_full_sort_whatever_the_norms(
    seed, n_items, n_groups, k, decades, n_kinds, margin, parts, dear
):
    rng = np.random.default_rng(seed)
    n_users = 7
    lengths = 10.0 ** rng.uniform(-decades, 0, (2, 1000))
    users = (rng.standard_normal((n_users, 5)) * lengths[0, :n_users, None]).astype(np.float32)
    users[rng.random(n_users) < 0.2] = 0
    # Items of one kind have equal vectors, more of them than there is room for beside a list.
    kinds = (rng.standard_normal((1000, 5)) * lengths[1, :, None]).astype(np.float32)
    # Some like what one model finds, others what the other does.
    for vectors in (users, kinds):
        vectors[:, 2:] *= 10.0 ** rng.uniform(-decades, 0, (len(vectors), 1))
    items = kinds[rng.integers(0, n_kinds, n_items)]
    shifts = Shifts(
        rng.standard_normal((n_users, n_groups)).astype(np.float32) * rng.integers(0, 2),
        rng.integers(0, n_groups, n_items).astype(np.int32),
    )
    exclude = random_csr_pattern(rng, (n_users, n_items), 0.1)
    eligible = rng.random(n_items) < 0.9
    arguments = {
        "k": k,
        "exclude": exclude,
        "eligible": eligible,
        "shifts": shifts,
        "parts": parts,
    }

    whole = find(users, items, **arguments)
    with small_pieces(margin=margin, n_threads=2, dear=dear):
        small = find(users, items, **arguments)

    scores = inner_products(users, items, shifts)
    assert (small == full_sort(scores, exclude=exclude, eligible=eligible, k=k)).all()
    assert (whole == small).all()


def test_equal_products_are_proposed_in_the_order_of_the_catalogue():
    # More than fit beside the list of one, so the margin is widened until all of them do.
    best = find(np.ones((1, 4), np.float32), np.ones((900, 4), np.float32), k=5)

    assert best.tolist() == [[0, 1, 2, 3, 4]]


def test_equal_products_are_in_the_order_of_the_catalogue_whichever_models_know_them():
    # The second group is searched last, but its products come first.
    group = np.repeat([1, 0], [50, 20]).astype(np.int32)
    shifts = Shifts(np.zeros((1, 2), np.float32), group)

    for items in (np.ones((70, 2), np.float32), np.zeros((70, 2), np.float32)):
        best = find(np.ones((1, 2), np.float32), items, k=3, shifts=shifts)

        assert best.tolist() == [[0, 1, 2]]


def test_a_list_is_ranked_in_double_precision():
    # In single precision 1 + 2^-30 is 1, and the first would win the tie.
    items = np.array([[1, 0], [1, 2**-30]], np.float32)

    assert find(np.ones((1, 2), np.float32), items, k=1).tolist() == [[1]]


def test_a_list_ends_where_the_products_run_out():
    items = np.array([[1.0], [3.0], [2.0]], np.float32)
    bought = sp.csr_matrix(np.array([[0, 1, 0]], np.float32))

    best = find(np.ones((1, 1), np.float32), items, k=4, exclude=bought)

    assert best.tolist() == [[2, 0, NOTHING, NOTHING]]


def test_a_user_without_a_vector_gets_the_first_products_that_are_not_excluded():
    bought = sp.csr_matrix(np.array([[1, 0, 0, 0]], np.float32))
    eligible = np.array([True, True, False, True])
    items = np.arange(8, dtype=np.float32).reshape(4, 2)

    best = find(np.zeros((1, 2), np.float32), items, k=2, exclude=bought, eligible=eligible)

    assert best.tolist() == [[1, 3]]


@pytest.mark.parametrize("n_users, is_eligible", [(0, True), (2, False)])
def test_without_users_or_products_there_are_empty_lists(n_users, is_eligible):
    best = find(
        np.ones((n_users, 2), np.float32),
        np.ones((3, 2), np.float32),
        k=2,
        eligible=np.full(3, is_eligible),
    )

    assert best.shape == (n_users, 2) and (best == NOTHING).all()


@pytest.fixture
def looked_at(monkeypatch):
    """The items whose scores were looked at."""
    found = set()
    collect = scoring._collect

    def noting(scores, columns, *rest):
        found.update(columns.tolist())
        return collect(scores, columns, *rest)

    monkeypatch.setattr(scoring, "_collect", noting)
    return found


def test_items_too_short_to_enter_a_list_are_not_looked_at(looked_at):
    # Ten tiles of eight items, each tile a tenth as long as the one before.
    items = np.repeat(10.0 ** -np.arange(10), 8)[:, None].astype(np.float32)
    users = np.array([[1.0], [2.0]], np.float32)

    with small_pieces(margin=16):
        best = find(users, items, k=3)

    assert best.tolist() == [[0, 1, 2]] * 2
    assert looked_at <= set(range(16))


def test_items_that_neither_model_alone_could_lift_into_a_list_are_not_looked_at(looked_at):
    # By the norms of the whole vectors the second tile could score 12.7, by those of its parts 9.
    items = np.repeat(np.array([[10, 0], [0, 9]], np.float32), 8, axis=0)
    users = np.ones((1, 2), np.float32)

    with small_pieces(margin=5):
        together = find(users, items, k=3)
        by_both = set(looked_at)
        looked_at.clear()
        apart = find(users, items, k=3, parts=(slice(0, 1), slice(1, 2)))

    assert together.tolist() == apart.tolist() == [[0, 1, 2]]
    assert by_both == set(range(16)) and looked_at == set(range(8))


def test_of_a_blend_the_narrower_model_is_asked_only_about_what_it_could_lift_into_a_list(
    monkeypatch,
):
    n_asked = []
    collect = scoring._collect

    def counting(*arguments):
        n_asked.append(collect(*arguments))
        return n_asked[-1]

    monkeypatch.setattr(scoring, "_collect", counting)
    # The second tile: 9 and at most 2.5 beside it, then 6 and as little, where the third of the
    # first tile has 11.
    items = np.zeros((16, 2), np.float32)
    items[:8, 0], items[8:11, 0], items[11:, 0] = 11, 9, 6
    items[8:, 1] = [1, 2.5, 0, 2.5, 2.5, 2.5, 2.5, 2.5]

    with small_pieces(margin=12):
        best = find(np.ones((1, 2), np.float32), items, k=3, parts=(slice(0, 1), slice(1, 2)))

    assert best.tolist() == [[9, 0, 1]]
    assert n_asked == [0, 1]


def test_a_user_whose_taste_is_unlike_the_others_gets_what_the_others_reach_last():
    # Tiles come as they suit the many; the second is too short for the last user, the third not.
    items = np.repeat(np.array([[10, 0], [5, 0], [0, 4]], np.float32), 8, axis=0)
    users = np.array([[1, 0.01]] * 20 + [[0.01, 1]], np.float32)

    with small_pieces(rows=21, margin=5):
        best = find(users, items, k=3, parts=(slice(0, 1), slice(1, 2)))

    assert best.tolist() == [[0, 1, 2]] * 20 + [[16, 17, 18]]


def test_progress_ends_with_all_users():
    told = []

    top_items(
        np.ones((3, 2), np.float32),
        np.ones((400, 2), np.float32),
        k=1,
        exclude=None,
        eligible=np.ones(400, bool),
        block_bytes=1,
        progress=told.append,
    )

    assert told[-1] == "scored 3 of 3 users"


def model(rng, n_users, n_items, factors):
    return FactorModel(
        user_factors=rng.standard_normal((n_users, factors)).astype(np.float32),
        item_factors=rng.standard_normal((n_items, factors)).astype(np.float32),
        knows_user=rng.random(n_users) < 0.8,
        knows_item=rng.random(n_items) < 0.8,
    )


def scores_of(blend_of_models):
    return inner_products(
        blend_of_models.user_vectors, blend_of_models.item_vectors, blend_of_models.shifts
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_items=st.sampled_from([0, 1, 2, 12]),
    w=st.sampled_from([(0.7, 0.3), (1.0, 0.0), (0.5, 2.0), (1.0,)]),
)
def test_the_blend_is_the_weighted_sum_of_scores_standardised_over_all_known_products(
    seed, n_items, w
):
    rng = np.random.default_rng(seed)
    # Whole numbers: where scores differ at all, they differ by more than rounding.
    models = [
        FactorModel(
            user_factors=rng.integers(-3, 4, (5, factors)).astype(np.float32),
            item_factors=rng.integers(-3, 4, (n_items, factors)).astype(np.float32),
            knows_user=rng.random(5) < 0.8,
            knows_item=rng.random(n_items) < 0.8,
        )
        for factors in (4, 3)[: len(w)]
    ]

    one_scale = blend(list(zip(models, w, strict=True)))

    np.testing.assert_allclose(scores_of(one_scale), blended(models, w), atol=2e-5)


def test_a_user_is_put_on_the_scale_alone():
    rng = np.random.default_rng(5)
    models = [model(rng, 9, 20, 4), model(rng, 9, 20, 5)]
    whole = blend([(each, 0.5) for each in models])

    for user in range(9):
        alone = blend([(each.for_users(np.array([user])), 0.5) for each in models])
        assert (alone.user_vectors[0] == whole.user_vectors[user]).all()
        assert (alone.offsets[0] == whole.offsets[user]).all()


def test_the_parts_of_a_blend_add_up_and_are_nan_where_a_model_knows_nothing():
    rng = np.random.default_rng(3)
    models = [model(rng, 6, 20, 4), model(rng, 6, 20, 5)]
    one_scale = blend([(models[0], 0.7), (models[1], 0.3)])
    best = np.tile(np.arange(20, dtype=np.int32), (6, 1))

    cf, content = part_scores(one_scale, best)

    assert (np.isnan(cf) == ~np.outer(models[0].knows_user, models[0].knows_item)).all()
    total = 0.7 * np.nan_to_num(cf) + 0.3 * np.nan_to_num(content)
    np.testing.assert_allclose(total, scores_of(one_scale), atol=1e-5)


def test_an_empty_place_has_no_part_scores():
    rng = np.random.default_rng(3)
    one_scale = blend([(model(rng, 2, 4, 3), 1.0)])

    assert np.isnan(part_scores(one_scale, np.full((2, 3), NOTHING, np.int32))).all()


def test_a_user_to_whom_all_products_are_alike_has_no_opinion():
    same = FactorModel(
        user_factors=np.ones((1, 2), np.float32),
        item_factors=np.ones((4, 2), np.float32),
        knows_user=np.ones(1, bool),
        knows_item=np.ones(4, bool),
    )

    assert (scores_of(blend([(same, 1.0)])) == 0).all()


def test_the_nearest_of_a_product_is_never_itself_and_a_product_without_text_has_none():
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0, 0]], np.float32)

    best, cosine = nearest_items(
        vectors, k=3, eligible=np.ones(4, bool), block_bytes=1 << 20, progress=quiet
    )

    assert best[0].tolist() == [1, NOTHING, NOTHING]
    assert best[1].tolist() == [0, 2, NOTHING]
    assert best[3].tolist() == [NOTHING] * 3
    assert cosine[0, 0] == pytest.approx(0.9 / np.hypot(0.9, 0.1))


def test_rows_are_scaled_to_length_one_and_zeros_stay():
    assert unit_rows(np.array([[3, 4], [0, 0]], np.float32)).tolist() == [
        [pytest.approx(0.6), pytest.approx(0.8)],
        [0, 0],
    ]
