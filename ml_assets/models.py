"""The recommenders by name: functions of one shape, chosen by config.

A model is arrays and nothing else, so that it can be stored as tables. There are two families,
each with an engine of its own: factor models, whose scores are inner products (`scoring.py`; the
baselines are of this kind too), and item-item models, whose scores are sums over a user's history
(`item_item.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from ml_assets.graph_filters import fit_bspm, fit_gf_cf, fit_graph_filter
from ml_assets.item_item import ItemItemModel, best_by_history, largest_products
from ml_assets.learning import (
    at_most,
    by_history,
    bytes_of_copies,
    history_of,
    power,
    require_memory,
    require_memory_of_neighbours,
    require_two,
    scaled_rows,
    taste_of,
)
from ml_assets.linear_models import fit_ease, fit_item_knn, fit_rp3beta
from ml_assets.signal_matrix import CannotFitError, SignalMatrix
from ml_assets.threads import over_blocks


@dataclass(frozen=True)
class FactorModel:
    """Scores as inner products: `user_factors @ item_factors.T`.

    Attributes:
        user_factors: `(n_users, f)` float32.
        item_factors: `(n_items, f)` float32.
        knows_user: `(n_users,)` bool, whether the model has an opinion about the user at all.
        knows_item: `(n_items,)` bool, likewise.
    """

    user_factors: np.ndarray
    item_factors: np.ndarray
    knows_user: np.ndarray
    knows_item: np.ndarray

    def for_users(self, rows: np.ndarray) -> "FactorModel":
        """The same model with only these users, in this order."""
        return replace(self, user_factors=self.user_factors[rows], knows_user=self.knows_user[rows])


Model = FactorModel | ItemItemModel
Fit = Callable[..., Model]


def fit_als(signals: SignalMatrix, *, settings: Mapping[str, Any], seed: int) -> FactorModel:
    """Implicit-feedback matrix factorisation, with user factors solved once more at the end.

    After Hu, Koren & Volinsky, "Collaborative Filtering for Implicit Feedback Datasets" (ICDM
    2008), by the `implicit` library: a user's confidence in a product they touched is alpha x
    weight, in any other 1.
    Item factors are learned from the weights of today; see `als_user_factors` for the users.

    With `regularization_power` p above 0 the regularisation of a user grows with what they
    touched, n products of m, as `regularization x (n + m / alpha)^p`, and likewise that of a
    product: after Rendle et al., "Revisiting the Performance of iALS on Item Recommendation
    Benchmarks" (RecSys 2022), whose weight of what was not touched is 1 / alpha.

    Memory: 8 bytes x factors x (users + products) and 32 x signals, beside the signals.

    Args:
        signals: Rows without signals stay without an opinion.
        settings: `factors`, `regularization`, `regularization_power`, `alpha`, `iterations`,
            `memory_megabytes`.
        seed: Fixes the initial factors, so equal input gives equal output.

    Raises:
        TooLittleDataError: below two users or two products to learn from.
        TooMuchMemoryError: if it would need more than `memory_megabytes`.
    """
    training = signals.training
    require_two("ALS", training)
    _require_memory_of_factors("ALS", training, settings)
    if settings["regularization_power"]:
        item_factors = _scaled_item_factors(training, settings, seed)
    else:
        item_factors = _item_factors(training, settings, seed)
    return FactorModel(
        user_factors=als_user_factors(item_factors, signals.history, settings=settings),
        item_factors=item_factors,
        knows_user=np.diff(signals.history.indptr) > 0,
        knows_item=np.bincount(training.indices, minlength=training.shape[1]).astype(bool),
    )


def als_user_factors(
    item_factors: np.ndarray, history: sp.csr_matrix, *, settings: Mapping[str, Any]
) -> np.ndarray:
    """The exact least-squares vector of each user for fixed item factors.

    Users who were not trained on (outliers, users who came later) are scored too, and a score can
    be split into the shares of single events. Solved from the user's own history, so a vector
    stays as it is, bit for bit, while its user does nothing and the item factors are kept.

    Args:
        item_factors: `(n_items, f)` float32.
        history: `(n_users, n_items)` float32.
        settings: `regularization`, `regularization_power`, `alpha`.

    Returns:
        `(n_users, f)` float32, zeros for a user without history.
    """
    n_touched = np.diff(history.indptr)
    if settings["regularization_power"]:
        return _scaled_user_factors(item_factors, history, n_touched, settings)
    with threadpool_limits(1, "blas"):
        als = _solver(item_factors, settings)
        users: np.ndarray = als.recalculate_user(np.arange(history.shape[0]), history)
    users[n_touched == 0] = 0
    return users


def item_gram(item_factors: np.ndarray) -> np.ndarray:
    """`(f, f)` float64: what all products, touched or not, say in the system of a user's vector."""
    double = item_factors.astype(np.float64)
    return double.T @ double


def weight_of_unseen(item_factors: np.ndarray, settings: Mapping[str, Any]) -> float:
    """What the products count in a regularisation that grows with what was touched.

    Products that nothing is known of do not, so that new ones change nobody's vector.
    """
    return int(item_factors.any(axis=1).sum()) / float(settings["alpha"])


def _scaled_user_factors(
    item_factors: np.ndarray,
    history: sp.csr_matrix,
    n_touched: np.ndarray,
    settings: Mapping[str, Any],
) -> np.ndarray:
    """The same where the regularisation of a user depends on how many products they touched."""
    unseen = weight_of_unseen(item_factors, settings)
    users = np.zeros((history.shape[0], item_factors.shape[1]), np.float32)
    # All who touched as many have the same regularisation, and are solved at once.
    order = np.argsort(n_touched, kind="stable")
    order = order[n_touched[order] > 0]
    starts = np.flatnonzero(np.diff(n_touched[order], prepend=0))
    groups = np.split(order, starts[1:]) if len(order) else []

    def work(start: int, stop: int, als: Any) -> None:
        for rows in groups[start:stop]:
            als.regularization = settings["regularization"] * (
                (n_touched[rows[0]] + unseen) ** settings["regularization_power"]
            )
            users[rows] = als.recalculate_user(np.arange(len(rows)), history[rows])

    def solver() -> Any:
        als = _solver(item_factors, settings)
        # Threads of ours, a group each: implicit's would wait for each other after every group.
        als.num_threads = 1
        return als

    with threadpool_limits(1, "blas"):
        for _ in over_blocks(work, len(groups), rows_per_block=1, scratch=solver):
            pass
    return users


def _solver(item_factors: np.ndarray, settings: Mapping[str, Any]) -> Any:
    als = _als({**settings, "factors": item_factors.shape[1], "iterations": 1}, seed=0)
    als.item_factors = item_factors
    return als


def _item_factors(training: sp.csr_matrix, settings: Mapping[str, Any], seed: int) -> np.ndarray:
    """Item factors by implicit's own training; its user factors are given back."""
    # implicit runs its own threads over rows; BLAS threads below them only get in the way.
    with threadpool_limits(1, "blas"):
        als = _als(settings, seed)
        als.fit(training, show_progress=False)
    return np.asarray(als.item_factors)


def _scaled_item_factors(
    training: sp.csr_matrix, settings: Mapping[str, Any], seed: int
) -> np.ndarray:
    """Item factors by alternating exact solutions; rows of the transpose are solved alike."""
    by_item = sp.csr_matrix(training.T)
    is_known = np.diff(by_item.indptr) > 0
    rng = np.random.default_rng(seed)
    items = rng.random((training.shape[1], settings["factors"]), dtype=np.float32) * 0.01
    items[~is_known] = 0
    for _ in range(settings["iterations"]):
        # The users' are given back before the next pass.
        items = als_user_factors(
            als_user_factors(items, training, settings=settings), by_item, settings=settings
        )
    return items


def _als(settings: Mapping[str, Any], seed: int) -> Any:
    # Imported here: implicit takes seconds to import, and most processes never train.
    from implicit.als import AlternatingLeastSquares

    return AlternatingLeastSquares(
        factors=settings["factors"],
        regularization=settings["regularization"],
        alpha=settings["alpha"],
        iterations=settings["iterations"],
        random_state=seed,
    )


def fit_item_item(
    signals: SignalMatrix, *, settings: Mapping[str, Any], seed: int
) -> ItemItemModel:
    """Degree-normalised co-occurrence: what users go for who touched the same things.

        W[j, i] = d_j^-q (d_i + s)^-r t_i sum over u of d_u^-p h_uj w_ui

    with h the square root of the user's history, w the weights of today, d the row and column
    sums of h, s a shrinkage in mean entries and t_i the share of product i's history that is
    left today, so that what is going out of season is proposed less. The `neighbours` largest of
    each row j are kept. With binary data this is the family of RP3beta (Paudel et al., "Updatable,
    Accurate, Diverse, and Scalable Recommendations for Interactive Applications", TiiS 2017),
    GF-CF (Shen et al., CIKM 2021) and Turbo-CF (Park et al., SIGIR 2024); p = 1, q + r = 1 are
    random walks.

    Time is the sum over users of products^2. With a `history_cap` all of the above is of the
    products that count most to each user, no more than that of each: see `at_most`. Users are
    scored by all they have.

    Memory: 18 bytes x neighbours x products and 32 x signals, beside the signals; with a
    `history_cap` 64 x the signals that are left.

    Args:
        signals: Rows without signals stay without an opinion.
        settings: `neighbours`, `history_cap`, `user_power` p, `source_power` q, `target_power` r,
            `shrinkage` s, `memory_megabytes`.
        seed: Unused; nothing is random.

    Raises:
        TooLittleDataError: below two users or two products to learn from.
        TooMuchMemoryError: if `memory_megabytes` does not suffice.
    """
    learned = at_most(signals, settings["history_cap"])
    taste = taste_of("The item-item model", learned)
    is_capped = learned is not signals
    require_memory_of_neighbours(
        "The item-item model", taste, settings, each=64 if is_capped else 32
    )
    mean_entry = float(taste.matrix.data.mean(dtype=np.float64))
    shrunk_degree = (taste.item_degree / mean_entry + settings["shrinkage"]) * taste.is_known
    by_user = power(taste.user_degree, -settings["user_power"]).astype(np.float32)
    follows = largest_products(
        scaled_rows(taste.matrix, by_user),
        learned.training,
        source_scale=power(shrunk_degree, -settings["source_power"]).astype(np.float32),
        target_scale=(power(shrunk_degree, -settings["target_power"]) * taste.left_today).astype(
            np.float32
        ),
        k=settings["neighbours"],
    )
    return by_history(signals, taste, follows)


def _require_memory_of_factors(
    name: str, training: sp.csr_matrix, settings: Mapping[str, Any]
) -> None:
    n_bytes = 8 * settings["factors"] * sum(training.shape) + bytes_of_copies(training)
    require_memory(name, n_bytes, settings, advice="take fewer factors")


def fit_bpr(signals: SignalMatrix, *, settings: Mapping[str, Any], seed: int) -> FactorModel:
    """Factors that rank what a user touched above what they did not, by sampled pairs: BPR.

    After Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback" (UAI 2009),
    by the `implicit` library. Learned from which products are in `training`, whatever their
    weight. On one core, since with more threads the order of the steps, and so the factors, would
    be chance. Users who are not trained on have no vector: for comparisons, not for the line.

    Memory: 8 bytes x factors x (users + products) and 32 x signals, beside the signals.

    Args:
        signals: Rows without signals stay without an opinion.
        settings: `factors`, `bpr_learning_rate`, `bpr_regularization`, `bpr_iterations`,
            `memory_megabytes`.
        seed: Of the initial factors and the pairs.

    Raises:
        TooLittleDataError: below two users or two products to learn from.
        TooMuchMemoryError: if it would need more than `memory_megabytes`.
    """
    # Imported here: implicit takes seconds to import, and most processes never train.
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    training = signals.training
    require_two("BPR", training)
    _require_memory_of_factors("BPR", training, settings)
    bpr = BayesianPersonalizedRanking(
        factors=settings["factors"],
        learning_rate=settings["bpr_learning_rate"],
        regularization=settings["bpr_regularization"],
        iterations=settings["bpr_iterations"],
        num_threads=1,
        random_state=seed,
    )
    bpr.fit(training, show_progress=False)
    knows_user = np.diff(training.indptr) > 0
    knows_item = np.bincount(training.indices, minlength=training.shape[1]).astype(bool)
    return FactorModel(
        user_factors=np.where(knows_user[:, None], bpr.user_factors, np.float32(0)),
        item_factors=np.where(knows_item[:, None], bpr.item_factors, np.float32(0)),
        knows_user=knows_user,
        knows_item=knows_item,
    )


def fit_trending(signals: SignalMatrix, *, settings: Mapping[str, Any], seed: int) -> FactorModel:
    """The same opinion for every user: what is popular today and was less so before.

    A product's score is the sum of its `training` weights times the share these are of its
    `training_history`, which is small for what has gone out of season.
    """
    now, before = (
        np.asarray(each.sum(axis=0, dtype=np.float64)).ravel()
        for each in (signals.training, signals.training_history)
    )
    popularity = np.divide(now * now, before, out=np.zeros_like(now), where=before > 0)
    return fit_popularity(signals, settings={"popularity": popularity}, seed=seed)


def fit_repeat(signals: SignalMatrix, *, settings: Mapping[str, Any], seed: int) -> ItemItemModel:
    """What the user had before, by how often and how recently: every product leads to itself.

    The baseline of repeat purchases, after Anderson et al., "The Dynamics of Repeat Consumption"
    (WWW 2014): a weight sums up purchases that fade with a half-life. Scores are square roots of
    `history`. Useful only where what a user has is not excluded.
    """
    n_items = signals.history.shape[1]
    knows_item = np.bincount(signals.history.indices, minlength=n_items).astype(bool)
    return ItemItemModel(
        history=history_of(signals),
        follows=sp.csr_matrix(sp.diags_array(knows_item.astype(np.float32))),
        knows_user=np.diff(signals.history.indptr) > 0,
        knows_item=knows_item,
    )


def fit_popularity(signals: SignalMatrix, *, settings: Mapping[str, Any], seed: int) -> FactorModel:
    """The same opinion for every user: `settings["popularity"]`, one number per product."""
    popularity = np.asarray(settings["popularity"], dtype=np.float32).reshape(-1, 1)
    n_users = len(signals.user_ids)
    return FactorModel(
        user_factors=np.ones((n_users, 1), dtype=np.float32),
        item_factors=popularity,
        knows_user=np.ones(n_users, dtype=bool),
        knows_item=np.ones(len(popularity), dtype=bool),
    )


def user_profiles(signals: SignalMatrix, item_vectors: np.ndarray) -> FactorModel:
    """The content model: a user is the weighted mean of the products they touched.

    Args:
        signals: What users touched, and how much they want it.
        item_vectors: `(n_items, d)` float32; a row of zeros is a product without text, which
            has no part in anyone's profile.
    """
    has_text = rows_with_values(item_vectors)
    weights = signals.history @ sp.diags_array(has_text.astype(np.float32))
    total = np.asarray(weights.sum(axis=1), dtype=np.float64).ravel()
    share = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    profiles = sp.csr_matrix(sp.diags_array(share.astype(np.float32)) @ weights) @ item_vectors
    return FactorModel(
        user_factors=np.ascontiguousarray(profiles, dtype=np.float32),
        item_factors=item_vectors,
        knows_user=total > 0,
        knows_item=has_text,
    )


def content_by_history(signals: SignalMatrix, neighbours: sp.csr_matrix) -> ItemItemModel:
    """The content model as an item-item model: see `content.text_neighbours`."""
    is_source = np.diff(neighbours.indptr) > 0
    knows_item = is_source.copy()
    knows_item[neighbours.indices] = True
    n_sources = signals.history @ is_source.astype(np.float32)
    return ItemItemModel(
        history=history_of(signals),
        follows=neighbours,
        knows_user=np.asarray(n_sources).ravel() > 0,
        knows_item=knows_item,
    )


def rows_with_values(vectors: np.ndarray) -> np.ndarray:
    """`(n,)` bool: the vector is not all zeros."""
    return np.asarray(vectors.any(axis=1))


def fit_ensemble(signals: SignalMatrix, *, settings: Mapping[str, Any], seed: int) -> ItemItemModel:
    """Several item-item models in one: their matrices added up, each brought to one scale first.

        W = sum over m of w_m s_m W_m,  s_m = mean over users of 1 / deviation(h W_m)

    A user's score is then about the weighted sum of the models' z-scores, and still a sum over the
    user's history; it costs one look at the history, whatever the number of models. On the bundled
    shop the lists are as good as those of a blend that puts each model's scores on one scale for
    each user (docs/accuracy.md).

    Memory: that of the largest of m members, and 8 (2m + 1) bytes x neighbours x products.

    Args:
        signals: Rows without signals stay without an opinion.
        settings: `ensemble`, weights by name of `ENSEMBLE_MEMBERS`, and the settings of those.
        seed: Of the members.

    Raises:
        CannotFitError: if a member cannot be fitted, naming it.
    """
    weights = {name: weight for name, weight in settings["ensemble"].items() if weight > 0}
    n_items = signals.history.shape[1]
    n_matrices = 2 * len(weights) + 1
    held = 8 * n_matrices * min(settings["neighbours"], n_items) * n_items
    own = {**settings, "held_bytes": held}
    total: sp.csr_matrix | None = None
    knows_item = np.zeros(n_items, dtype=bool)
    # In a stated order: a sum of floats depends on it.
    for name in sorted(weights):
        try:
            member = cast(ItemItemModel, fit_model(name, signals, settings=own, seed=seed))
        except CannotFitError as reason:
            raise type(reason)(f"{name}, a member of the ensemble: {reason}") from reason
        scaled = member.follows * np.float32(weights[name] * _scale(member, signals.trains_on_user))
        total = scaled if total is None else total + scaled
        knows_item |= member.knows_item
    if total is None:
        raise CannotFitError("the ensemble has no member of a weight above 0")
    follows = sp.csr_matrix(total)
    follows.sort_indices()
    return ItemItemModel(
        history=history_of(signals),
        follows=follows,
        knows_user=np.diff(signals.history.indptr) > 0,
        knows_item=knows_item,
    )


# Users whose scores tell a member's scale, evenly over all: with more it hardly changes.
_USERS_OF_A_SCALE = 4096


def _scale(model: ItemItemModel, trains_on_user: np.ndarray) -> float:
    """The mean of 1 / deviation of users' scores; 1 where nobody's scores differ."""
    known = np.flatnonzero(model.knows_user & trains_on_user)
    some = known[:: max(1, len(known) // _USERS_OF_A_SCALE)]
    if len(some) == 0:
        return 1.0
    found = best_by_history(
        [(model.for_users(some), 1.0)],
        k=1,
        exclude=sp.csr_matrix((len(some), model.follows.shape[0]), dtype=np.float32),
        eligible=np.ones(model.follows.shape[0], dtype=bool),
        progress=lambda _: None,
    ).inverse_deviation[0]
    return float(found[found > 0].mean()) if (found > 0).any() else 1.0


# Models of one family, whose matrices can be added up.
ENSEMBLE_MEMBERS = ("bspm", "ease", "gf_cf", "graph_filter", "item_item", "item_knn", "rp3beta")

MODELS: dict[str, Fit] = {
    "als": fit_als,
    "bpr": fit_bpr,
    "bspm": fit_bspm,
    "ease": fit_ease,
    "ensemble": fit_ensemble,
    "gf_cf": fit_gf_cf,
    "graph_filter": fit_graph_filter,
    "item_item": fit_item_item,
    "item_knn": fit_item_knn,
    "repeat": fit_repeat,
    "rp3beta": fit_rp3beta,
    "trending": fit_trending,
    "popularity": fit_popularity,
}


def fit_model(name: str, signals: SignalMatrix, *, settings: Mapping[str, Any], seed: int) -> Model:
    """Fit the model registered under `name`.

    Raises:
        ValueError: if there is no such model.
        CannotFitError: if the model cannot learn from so few signals, or in so little memory.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; choose one of {', '.join(sorted(MODELS))}")
    return MODELS[name](signals, settings=settings, seed=seed)
