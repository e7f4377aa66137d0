"""Blending any number of models: candidates, opinions, learned weights."""

import numpy as np
import pytest
import scipy.sparse as sp
from frames_for_tests import random_csr_pattern
from hypothesis import given, settings
from hypothesis import strategies as st
from references import full_sort, history_scores, inner_products, standardised

from ml_assets.blending import (
    LEAST_USERS_OF_A_GROUP,
    BlendWeights,
    Fold,
    Opinions,
    ask,
    best_of_blend,
    learn_weights,
)
from ml_assets.item_item import NOTHING, ItemItemModel
from ml_assets.models import FactorModel


def factor_model(rng, n_users, n_items):
    return FactorModel(
        user_factors=rng.standard_normal((n_users, 3), dtype=np.float32),
        item_factors=rng.standard_normal((n_items, 3), dtype=np.float32),
        knows_user=rng.random(n_users) < 0.8,
        knows_item=rng.random(n_items) < 0.8,
    )


def item_item_model(rng, n_users, n_items):
    knows_item = rng.random(n_items) < 0.8
    follows = rng.random((n_items, n_items)) * (rng.random((n_items, n_items)) < 0.4) * knows_item
    return ItemItemModel(
        history=random_csr_pattern(rng, (n_users, n_items), 0.3),
        follows=sp.csr_matrix(follows.astype(np.float32)),
        knows_user=rng.random(n_users) < 0.8,
        knows_item=knows_item,
    )


def asked(models, *, k, exclude, eligible, normalisation="z_score"):
    return ask(
        models,
        k=k,
        exclude=exclude,
        eligible=eligible,
        block_bytes=1 << 20,
        normalisation=normalisation,
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000), n_users=st.integers(1, 7), n_items=st.integers(1, 15))
def test_models_of_both_families_in_one_blend_equal_scoring_every_pair(seed, n_users, n_items):
    rng = np.random.default_rng(seed)
    factors = factor_model(rng, n_users, n_items)
    follows = item_item_model(rng, n_users, n_items)
    exclude = random_csr_pattern(rng, (n_users, n_items), 0.2)
    eligible = rng.random(n_items) < 0.8
    weights = rng.random((n_users, 2))

    opinions = asked(
        {"als": factors, "item_item": follows}, k=n_items, exclude=exclude, eligible=eligible
    )
    best, score = best_of_blend(opinions, weights, k=4)

    raw = inner_products(factors.user_factors, factors.item_factors), history_scores(follows)
    z = [standardised(each, model) for each, model in zip(raw, (factors, follows), strict=True)]
    z = np.nan_to_num(np.stack(z, axis=1))
    proposed = factors.knows_user[:, None] & factors.knows_item | (raw[1] > 0)
    expected = np.einsum("um,umi->ui", weights, z)
    out_of_reach = sp.csr_matrix((exclude.toarray() > 0) | ~proposed)
    want = full_sort(expected, exclude=out_of_reach, eligible=eligible, k=4)
    found = best != NOTHING
    assert (found == (want != NOTHING)).all()
    rows = np.nonzero(found)[0]
    # Equal but for the order of products whose sums differ by rounding only.
    assert np.allclose(score[found], expected[rows, want[found]], atol=1e-5)
    assert np.allclose(score[found], expected[rows, best[found]], atol=1e-5)


def test_a_reciprocal_rank_counts_from_the_best_and_equal_scores_share_one():
    model = FactorModel(
        user_factors=np.ones((1, 1), np.float32),
        item_factors=np.array([[2], [5], [2], [1], [9]], np.float32),
        knows_user=np.ones(1, bool),
        knows_item=np.array([True, True, True, True, False]),
    )
    everything = np.ones(5, bool)

    opinions = asked(
        {"one": model},
        k=5,
        exclude=sp.csr_matrix((1, 5), dtype=np.float32),
        eligible=everything,
        normalisation="reciprocal_rank",
    )

    assert opinions.items.tolist() == [[0, 1, 2, 3]]
    assert np.allclose(1 / opinions.scores[0, 0] - 60, [2, 1, 2, 4])


def test_min_max_puts_the_worst_candidate_at_0_and_the_best_at_1():
    model = FactorModel(
        user_factors=np.ones((2, 1), np.float32),
        item_factors=np.array([[2], [6], [4]], np.float32),
        knows_user=np.array([True, False]),
        knows_item=np.ones(3, bool),
    )

    opinions = asked(
        {"one": model},
        k=3,
        exclude=sp.csr_matrix((2, 3), dtype=np.float32),
        eligible=np.ones(3, bool),
        normalisation="min_max",
    )

    assert np.allclose(opinions.scores[0, 0], [0, 1, 0.5])
    assert (opinions.items[1] == NOTHING).all()


def test_an_unknown_normalisation_is_named():
    with pytest.raises(ValueError, match="no normalisation 'softmax'; choose one of z_score"):
        asked(
            {},
            k=1,
            exclude=sp.csr_matrix((1, 1)),
            eligible=np.ones(1, bool),
            normalisation="softmax",
        )


def fold_of(scores, answers, *, history_size):
    """A fold over 10 candidates a user; answers[u] is the product that user goes for."""
    n_users, _, n_items = scores.shape
    relevant = sp.csr_matrix(
        (np.ones(n_users, np.float32), (np.arange(n_users), answers)), shape=(n_users, n_items)
    )
    items = np.tile(np.arange(n_items, dtype=np.int32), (n_users, 1))
    return Fold(Opinions(("good", "bad"), items, scores), relevant, history_size)


def knowing(rng, n_users, knower):
    """Scores by two models, one of which knows the answer somewhat, the other nothing."""
    answers = rng.integers(0, 10, n_users)
    scores = rng.standard_normal((n_users, 2, 10))
    scores[np.arange(n_users), knower, answers] += 2
    return scores, answers


def test_the_weight_goes_to_the_model_that_knows():
    rng = np.random.default_rng(3)
    scores, answers = knowing(rng, 2_000, knower=0)

    learned = learn_weights(
        [fold_of(scores, answers, history_size=np.ones(2_000, np.int64))], k=3, from_size=[0]
    )

    assert learned.weights[0, 0] > 0.9
    assert np.isclose(learned.weights.sum(), 1)


def test_users_of_whom_more_is_known_get_weights_of_their_own_if_they_are_many():
    rng = np.random.default_rng(4)
    light, light_answers = knowing(rng, 1_000, knower=0)
    heavy, heavy_answers = knowing(rng, 1_000, knower=1)
    sizes = np.repeat([2, 50], 1_000)
    fold = fold_of(
        np.concatenate([light, heavy]),
        np.concatenate([light_answers, heavy_answers]),
        history_size=sizes,
    )

    learned = learn_weights([fold], k=3, from_size=[0, 10, 1_000])

    assert learned.weights[0, 0] > 0.9
    assert learned.weights[1, 1] > 0.9
    assert LEAST_USERS_OF_A_GROUP > 0 and 0.2 < learned.weights[2, 0] < 0.8
    assert (learned.of_users(np.array([9, 10])) == learned.weights[:2]).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 100_000), k=st.integers(1, 8))
def test_the_ndcg_that_is_climbed_is_that_of_the_lists(seed, k):
    from ml_assets.blending import _Asked

    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (6, 2, 10)).astype(float)
    fold = fold_of(scores, rng.integers(0, 10, 6), history_size=np.ones(6, np.int64))
    weights = rng.integers(0, 3, 2).astype(float)

    found = _Asked(fold, k).ndcg(weights)

    best, _ = best_of_blend(fold.opinions, np.tile(weights, (6, 1)), k=k)
    is_hit = best == fold.relevant.indices[:, None]
    expected = (is_hit / np.log2(np.arange(2, k + 2))).sum(axis=1)
    assert np.allclose(found, expected)


def test_without_an_answer_nothing_can_be_learned():
    fold = fold_of(np.zeros((1, 2, 10)), [0], history_size=np.ones(1, np.int64))
    empty = Fold(fold.opinions, sp.csr_matrix((1, 10), dtype=np.float32), fold.history_size)

    with pytest.raises(ValueError, match="no user of the folds has anything to find"):
        learn_weights([empty], k=3, from_size=[0])


def test_weights_are_looked_up_by_the_size_of_the_history():
    weights = BlendWeights(("a", "b"), np.array([0, 5]), np.array([[1.0, 0.0], [0.0, 1.0]]))

    assert weights.of_users(np.array([0, 4, 5, 99])).argmax(axis=1).tolist() == [0, 0, 1, 1]
