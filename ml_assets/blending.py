"""Any number of models in one list: what each proposes, what all say of it, weights from a fold.

`recommend.propose` blends two models of one family while it scores. Here models of any family are
asked one after another: each proposes its best products, then each gives its opinion on what any
of them proposed, and the sum is weighted. That costs more, and takes models that have nothing in
common. Weights are learned where the answer is known: on a fold of the past.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numba import njit

from ml_assets.item_item import (
    NOTHING,
    ItemItemModel,
    best_by_history,
    put_largest_first,
    rank_of,
    z_of_pairs,
)
from ml_assets.models import FactorModel, Model
from ml_assets.scoring import blend, part_scores, top_items
from ml_assets.threads import over_blocks

# Of reciprocal ranks: the constant of Cormack, Clarke & Büttcher, "Reciprocal Rank Fusion
# outperforms Condorcet and Individual Rank Learning Methods" (SIGIR 2009).
_RANK_OFFSET = 60.0
NORMALISATIONS = ("z_score", "min_max", "reciprocal_rank")
# Below so many users a group's own weights would follow chance.
LEAST_USERS_OF_A_GROUP = 300


@dataclass(frozen=True)
class Opinions:
    """What several models say of the candidates of each user, on one scale.

    Attributes:
        names: The models.
        items: `(n_users, m)` int32, the candidates in ascending order, `NOTHING` behind them.
        scores: `(n_users, n_models, m)` float64; 0 where a model has no opinion.
    """

    names: tuple[str, ...]
    items: np.ndarray
    scores: np.ndarray


def ask(
    models: Mapping[str, Model],
    *,
    k: int,
    exclude: sp.csr_matrix,
    eligible: np.ndarray,
    block_bytes: int,
    normalisation: str = "z_score",
) -> Opinions:
    """Let every model propose its k best products, and score what all of them proposed.

    Memory: `8 x n_users x k x n_models^2` bytes at most; whoever has many users asks in parts.

    Args:
        models: By name; over the same users and items, of any family.
        k: Products that each model proposes.
        exclude: `(n_users, n_items)`, an entry is a product not to propose, indices sorted.
        eligible: `(n_items,)` bool.
        block_bytes: Most memory for scores of factor models while they are searched.
        normalisation: How opinions get on one scale: `z_score` over all products the model
            knows; `min_max` or `reciprocal_rank` among the candidates.

    Raises:
        ValueError: for an unknown normalisation.
    """
    if normalisation not in NORMALISATIONS:
        raise ValueError(
            f"there is no normalisation {normalisation!r}; choose one of "
            f"{', '.join(NORMALISATIONS)}"
        )
    proposed = [
        _best(model, k=k, exclude=exclude, eligible=eligible, block_bytes=block_bytes)
        for model in models.values()
    ]
    items = _union(proposed)
    scores = np.empty((len(items), len(models), items.shape[1]))
    for i, model in enumerate(models.values()):
        scores[:, i] = z_scores(model, items)
        if normalisation == "min_max":
            scores[:, i] = _min_max(scores[:, i])
        elif normalisation == "reciprocal_rank":
            scores[:, i] = _reciprocal_rank(scores[:, i])
    return Opinions(names=tuple(models), items=items, scores=np.nan_to_num(scores, copy=False))


def _best(
    model: Model, *, k: int, exclude: sp.csr_matrix, eligible: np.ndarray, block_bytes: int
) -> np.ndarray:
    if isinstance(model, ItemItemModel):
        return best_by_history(
            [(model, 1.0)], k=k, exclude=exclude, eligible=eligible, progress=lambda _: None
        ).items
    best = top_items(
        model.user_factors,
        model.item_factors,
        k=k,
        exclude=exclude,
        eligible=eligible & model.knows_item,
        block_bytes=block_bytes,
        progress=lambda _: None,
    )
    best[~model.knows_user] = NOTHING
    return best


def _union(lists: Sequence[np.ndarray]) -> np.ndarray:
    """The different items of each row, ascending, `NOTHING` behind; as wide as the longest."""
    beside = np.sort(np.hstack(lists), axis=1)
    is_new = beside != NOTHING
    is_new[:, 1:] &= beside[:, 1:] != beside[:, :-1]
    n_items = is_new.sum(axis=1)
    union = np.full((len(beside), max(1, n_items.max(initial=0))), NOTHING, dtype=np.int32)
    union[np.arange(union.shape[1]) < n_items[:, None]] = beside[is_new]
    return union


def z_scores(model: Model, items: np.ndarray) -> np.ndarray:
    """The model's z-score of each given pair, over all products it knows.

    Args:
        model: Of any family.
        items: `(n_users, m)` int32, `NOTHING` for none.

    Returns:
        `(n_users, m)` float64, NaN where the model knows nothing of the user or the product.
    """
    if isinstance(model, FactorModel):
        return part_scores(blend([(model, 1.0)]), items)[0]
    return z_of_pairs(model, items)


def _min_max(scores: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        low = np.fmin.reduce(scores, axis=1, keepdims=True)
        high = np.fmax.reduce(scores, axis=1, keepdims=True)
        return np.divide(scores - low, high - low, out=np.zeros_like(scores), where=high > low)


def _reciprocal_rank(scores: np.ndarray) -> np.ndarray:
    """Ties share the rank of the first, and what has no score has no rank."""
    falling = np.nan_to_num(-scores, nan=np.inf)
    order = np.argsort(falling, axis=1, kind="stable")
    ordered = np.take_along_axis(falling, order, axis=1)
    is_new = np.ones(ordered.shape, dtype=bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    rank = np.maximum.accumulate(np.where(is_new, np.arange(ordered.shape[1]), 0), axis=1)
    values = np.empty_like(scores)
    np.put_along_axis(values, order, 1.0 / (_RANK_OFFSET + 1.0 + rank), axis=1)
    return np.where(np.isnan(scores), np.nan, values)


@dataclass(frozen=True)
class BlendWeights:
    """Weights that were learned, for users of whom more or less is known.

    Attributes:
        names: The models.
        from_size: `(n_groups,)` int64 ascending, starting with 0: a user belongs to the last
            group that starts at no more products than their history has.
        weights: `(n_groups, n_models)` float64, each row adds up to 1.
    """

    names: tuple[str, ...]
    from_size: np.ndarray
    weights: np.ndarray

    def of_users(self, history_size: np.ndarray) -> np.ndarray:
        """`(n_users, n_models)` from the number of products in each user's history."""
        group = np.searchsorted(self.from_size, history_size, side="right") - 1
        rows: np.ndarray = self.weights[group]
        return rows


def best_of_blend(
    opinions: Opinions, weights: np.ndarray, *, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k candidates of the largest weighted sum for every user.

    Args:
        opinions: From `ask`.
        weights: `(n_users, n_models)` float64.
        k: Items a user.

    Returns:
        `(n_users, k)` int32 items, best first, ties by item, `NOTHING` behind; and their
        `(n_users, k)` float64 sums, -inf where there is none.
    """
    n_users, n_candidates = opinions.items.shape
    best = np.full((n_users, k), NOTHING, dtype=np.int32)
    score = np.full((n_users, k), -np.inf)

    def work(start: int, stop: int, own: tuple[np.ndarray, np.ndarray]) -> None:
        _best_of_rows(start, stop, opinions.items, opinions.scores, weights, *own, best, score)

    for _ in over_blocks(
        work,
        n_users,
        scratch=lambda: (np.empty(n_candidates), np.empty(n_candidates, np.int64)),
    ):
        pass
    return best, score


@njit(cache=True, nogil=True)
def _weigh(scores: np.ndarray, weights: np.ndarray, n: int, total: np.ndarray) -> None:
    """A user's weighted sums of the first n candidates, from `(n_models, m)` scores."""
    # Summed model after model: SQL that adds the same columns gives the same bits.
    total[:n] = 0.0
    for model in range(len(weights)):
        if weights[model] != 0:
            for i in range(n):
                total[i] += weights[model] * scores[model, i]


@njit(cache=True, nogil=True)
def _best_of_rows(
    start: int,
    stop: int,
    items: np.ndarray,
    scores: np.ndarray,
    weights: np.ndarray,
    total: np.ndarray,
    places: np.ndarray,
    best: np.ndarray,
    score: np.ndarray,
) -> None:
    k = best.shape[1]
    for user in range(start, stop):
        n = 0
        while n < items.shape[1] and items[user, n] != NOTHING:
            n += 1
        _weigh(scores[user], weights[user], n, total)
        for i in range(n):
            places[i] = i
        if n > k:
            put_largest_first(total, n, k, places)
            n = k
        for i in range(n):
            # Candidates ascend: of equal ones the first comes first.
            rank = rank_of(total, places, n, i)
            best[user, rank] = items[user, places[i]]
            score[user, rank] = total[i]


@dataclass(frozen=True)
class Fold:
    """Opinions about users whose next products are known.

    Attributes:
        opinions: What was said.
        relevant: `(n_users, n_items)`, an entry is a product to find.
        history_size: `(n_users,)` int64, products in each user's history.
    """

    opinions: Opinions
    relevant: sp.csr_matrix
    history_size: np.ndarray


def learn_weights(folds: Sequence[Fold], *, k: int, from_size: Sequence[int]) -> BlendWeights:
    """Weights of the largest mean NDCG@k, for all users and then for each group of them.

    Coordinate ascent from the best single model: one weight at a time is raised, lowered or
    dropped as long as that helps (Metzler & Croft, "Linear Feature-Based Models for Information
    Retrieval", Information Retrieval 2007). A group of few users keeps the weights of all.

    Args:
        folds: With the same models in the same order; users of all folds count alike.
        k: Length of the lists.
        from_size: Where groups by history size start; the first is 0.

    Raises:
        ValueError: if no user has anything to find.
    """
    names = folds[0].opinions.names
    asked = [_Asked(fold, k) for fold in folds]
    sizes = np.concatenate([fold.history_size for fold in folds])
    has_answer = np.concatenate([each.has_answer for each in asked])
    if not has_answer.any():
        raise ValueError("no user of the folds has anything to find")

    def mean_ndcg(weights: np.ndarray, who: np.ndarray) -> float:
        found = np.concatenate([each.ndcg(weights) for each in asked])
        return float(found[who].mean())

    everyone = _ascend(np.eye(len(names)), lambda weights: mean_ndcg(weights, has_answer))
    starts = np.asarray(from_size, dtype=np.int64)
    group = np.searchsorted(starts, sizes, side="right") - 1
    weights = np.tile(everyone, (len(starts), 1))
    for number in range(len(starts)):
        who = has_answer & (group == number)
        if who.sum() >= LEAST_USERS_OF_A_GROUP:
            weights[number] = _ascend(everyone[None], lambda each, who=who: mean_ndcg(each, who))
    return BlendWeights(names=names, from_size=starts, weights=weights)


def _ascend(starts: np.ndarray, value: Any) -> np.ndarray:
    """Climb from the best of the starts, one weight at a time; they stay >= 0 and add up to 1."""
    values = [value(start) for start in starts]
    best, best_value = starts[int(np.argmax(values))], max(values)
    for step in (0.4, 0.2, 0.1, 0.05, 0.025):
        improved = True
        while improved:
            improved = False
            for i in range(len(best)):
                for change in (step, -step):
                    tried = best.copy()
                    tried[i] = max(0.0, tried[i] + change)
                    if tried.sum() == 0 or tried[i] == best[i]:
                        continue
                    tried /= tried.sum()
                    found = value(tried)
                    if found > best_value + 1e-9:
                        best, best_value, improved = tried, found, True
    return np.round(best / best.sum(), 6)


class _Asked:
    """A fold arranged so that NDCG for other weights is quick to tell."""

    def __init__(self, fold: Fold, k: int) -> None:
        opinions, relevant = fold.opinions, fold.relevant
        n_relevant = np.diff(relevant.indptr)
        self.has_answer = n_relevant > 0
        self.opinions = opinions
        self.n_candidates = (opinions.items != NOTHING).sum(axis=1)
        rows, places = np.nonzero(opinions.items != NOTHING)
        first = np.concatenate([[0], np.cumsum(self.n_candidates)])
        n_items = np.int64(relevant.shape[1])
        # Both ascend: by user, and by item within a user.
        known = rows * n_items + opinions.items[rows, places]
        wanted_by = np.repeat(np.arange(len(n_relevant)), n_relevant)
        wanted = wanted_by * n_items + relevant.indices
        at = np.searchsorted(known, wanted)
        is_found = np.isin(wanted, known)
        self.place = (at - first[wanted_by])[is_found]
        self.indptr = np.concatenate(
            [[0], np.cumsum(np.bincount(wanted_by[is_found], minlength=len(n_relevant)))]
        )
        self.discount = 1.0 / np.log2(np.arange(2, k + 2))
        ideal = np.concatenate([[np.inf], np.cumsum(self.discount)])
        self.ideal = ideal[np.minimum(n_relevant, k)]

    def ndcg(self, weights: np.ndarray) -> np.ndarray:
        """NDCG@k of each user for one set of weights, 0 without anything to find."""
        gain = np.zeros(len(self.ideal))

        def work(start: int, stop: int, total: np.ndarray) -> None:
            _gains(
                start,
                stop,
                self.opinions.scores,
                self.n_candidates,
                weights,
                self.indptr,
                self.place,
                self.discount,
                total,
                gain,
            )

        width = self.opinions.items.shape[1]
        for _ in over_blocks(work, len(gain), scratch=lambda: np.empty(width)):
            pass
        return gain / self.ideal


@njit(cache=True, nogil=True)
def _gains(
    start: int,
    stop: int,
    scores: np.ndarray,
    n_candidates: np.ndarray,
    weights: np.ndarray,
    indptr: np.ndarray,
    places: np.ndarray,
    discount: np.ndarray,
    total: np.ndarray,
    gain: np.ndarray,
) -> None:
    for user in range(start, stop):
        if indptr[user] == indptr[user + 1]:
            continue
        n = n_candidates[user]
        _weigh(scores[user], weights, n, total)
        for at in range(indptr[user], indptr[user + 1]):
            place = places[at]
            own = total[place]
            rank = 0
            for i in range(n):
                # Candidates ascend: of equal ones the first comes first.
                rank += (total[i] > own) | ((total[i] == own) & (i < place))
            if rank < len(discount):
                gain[user] += discount[rank]
