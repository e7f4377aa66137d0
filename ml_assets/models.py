"""The recommenders by name: functions of one shape, chosen by config.

A model here is a pair of matrices whose product is every user's score for every product. That
is true of the baselines too, so one scoring engine serves all, and every model can be stored as
two tables of float arrays.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from ml_assets.signal_matrix import SignalMatrix, TooLittleDataError


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


Fit = Callable[..., FactorModel]


def fit_als(signals: SignalMatrix, *, settings: Mapping[str, Any], seed: int) -> FactorModel:
    """Implicit-feedback matrix factorisation, with user factors solved once more at the end.

    After Hu, Koren & Volinsky, "Collaborative Filtering for Implicit Feedback Datasets" (ICDM
    2008), by the `implicit` library: a user's confidence in a product is 1 + alpha x weight.
    The last solve makes every user's vector the exact least-squares answer to the final item
    vectors, so outliers who were not trained on are scored too, and a score can be split into
    the shares of single events.

    Args:
        signals: Rows without signals stay without an opinion.
        settings: `factors`, `regularization`, `alpha`, `iterations`.
        seed: Fixes the initial factors, so equal input gives equal output.

    Raises:
        TooLittleDataError: below two users or two products to learn from.
    """
    # Imported here: implicit takes seconds to import, and most processes never train.
    from implicit.als import AlternatingLeastSquares

    training = signals.training
    n_users = int((np.diff(training.indptr) > 0).sum())
    n_items = len(np.unique(training.indices))
    if n_users < 2 or n_items < 2:
        raise TooLittleDataError(
            f"ALS needs two users and two products with signals, and got {n_users} and {n_items}"
        )
    # implicit runs its own threads over rows; BLAS threads below them only get in the way.
    with threadpool_limits(1, "blas"):
        als = AlternatingLeastSquares(
            factors=settings["factors"],
            regularization=settings["regularization"],
            alpha=settings["alpha"],
            iterations=settings["iterations"],
            random_state=seed,
        )
        als.fit(training, show_progress=False)
        user_factors = als.recalculate_user(np.arange(len(signals.user_ids)), signals.weights)
    return FactorModel(
        user_factors=user_factors,
        item_factors=als.item_factors,
        knows_user=np.diff(signals.weights.indptr) > 0,
        knows_item=np.bincount(training.indices, minlength=training.shape[1]).astype(bool),
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


def fit_random(signals: SignalMatrix, *, settings: Mapping[str, Any], seed: int) -> FactorModel:
    """Inner products of Gaussian vectors: no knowledge at all, the floor of every metric."""
    rng = np.random.default_rng(seed)
    n_users, n_items = signals.weights.shape
    return FactorModel(
        user_factors=rng.standard_normal((n_users, 32), dtype=np.float32),
        item_factors=rng.standard_normal((n_items, 32), dtype=np.float32),
        knows_user=np.ones(n_users, dtype=bool),
        knows_item=np.ones(n_items, dtype=bool),
    )


def user_profiles(signals: SignalMatrix, item_vectors: np.ndarray) -> FactorModel:
    """The content model: a user is the weighted mean of the products they touched.

    Args:
        signals: What users touched, and how much they want it.
        item_vectors: `(n_items, d)` float32; a row of zeros is a product without text, which
            has no part in anyone's profile.
    """
    has_text = rows_with_values(item_vectors)
    weights = signals.weights @ sp.diags_array(has_text.astype(np.float32))
    total = np.asarray(weights.sum(axis=1), dtype=np.float64).ravel()
    share = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    profiles = sp.csr_matrix(sp.diags_array(share.astype(np.float32)) @ weights) @ item_vectors
    return FactorModel(
        user_factors=np.ascontiguousarray(profiles, dtype=np.float32),
        item_factors=item_vectors,
        knows_user=total > 0,
        knows_item=has_text,
    )


def rows_with_values(vectors: np.ndarray) -> np.ndarray:
    """`(n,)` bool: the vector is not all zeros."""
    return np.asarray(vectors.any(axis=1))


MODELS: dict[str, Fit] = {
    "als": fit_als,
    "popularity": fit_popularity,
    "random": fit_random,
}


def fit_model(
    name: str, signals: SignalMatrix, *, settings: Mapping[str, Any], seed: int
) -> FactorModel:
    """Fit the model registered under `name`.

    Raises:
        ValueError: if there is no such model.
        TooLittleDataError: if the model cannot learn from so few signals.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; choose one of {', '.join(sorted(MODELS))}")
    return MODELS[name](signals, settings=settings, seed=seed)
