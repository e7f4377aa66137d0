"""How sure a figure is: bootstrap over users, differences of models.

Users are drawn with replacement again and again, and a figure's interval is where it falls in
the middle 95 % of the draws (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993,
chapter 13). All figures of a fold get the same draws, so the difference of two models, draw by
draw, is a paired comparison: how hard a user is falls out of it.

The unit is the user, also where several folds are pooled: what one user does in two folds is
alike, and counting it as two independent facts would make intervals too narrow. A user who is
drawn brings their rows of all folds (a cluster bootstrap: Field & Welsh, "Bootstrapping Clustered
Data", JRSS B 2007). What differs from one month to the next is not in such an interval: look at
the folds one by one as well.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numba import njit
from threadpoolctl import threadpool_limits

from ml_assets.evaluation import PerUser

CONFIDENCE = 0.95
N_DRAWS = 1000
# More users than this are dealt into so many bundles at random, and bundles are drawn. The mean of
# a draw varies as much as before; how much that is, is known to 1 / sqrt(2 x 1024), 2 %, as exactly
# as 1,000 draws tell it. It bounds the work: a draw costs the same for a thousand users and for a
# million.
N_BUNDLES = 1024


@dataclass(frozen=True)
class Draws:
    """Who is drawn, and how often; the same for everything that is to be compared.

    Attributes:
        user_of_row: `(n_rows,)` int64, numbers from 0: whose figures a row holds.
        bundle_of_user: `(n_users,)` int64.
        weights: `(n_draws, n_bundles)` float64, how often each draw drew each bundle.
    """

    user_of_row: np.ndarray
    bundle_of_user: np.ndarray
    weights: np.ndarray


def draw_users(user_of_row: np.ndarray, *, seed: int, n_draws: int = N_DRAWS) -> Draws:
    """Draw users with replacement, as many as there are.

    Args:
        user_of_row: See `Draws`; `np.arange(n)` for one fold, `same_users` for several.
        seed: Of the draws, and of how users are dealt into bundles.
        n_draws: How often.

    Raises:
        ValueError: if there is nobody.
    """
    if len(user_of_row) == 0:
        raise ValueError("nobody to draw from")
    rng = np.random.default_rng(seed)
    n_users = int(user_of_row.max()) + 1
    n_bundles = min(n_users, N_BUNDLES)
    bundle_of_user = rng.permutation(n_users) % n_bundles
    drawn = rng.integers(n_bundles, size=(n_draws, n_bundles))
    weights = [np.bincount(each, minlength=n_bundles) for each in drawn]
    return Draws(user_of_row, bundle_of_user, np.array(weights, dtype=np.float64))


def same_users(user_ids: list[pl.Series]) -> np.ndarray:
    """Numbers for the rows of several folds, one below the other: the same user, the same number.

    Args:
        user_ids: The users of each fold, in the order of its rows.
    """
    return pl.concat(user_ids).rank("dense").to_numpy().astype(np.int64) - 1


@dataclass(frozen=True)
class Resampled:
    """Figures with their draws.

    Attributes:
        names: The figures.
        value: `(n_figures,)` float64, the mean over all rows for which it is defined; NaN if there
            is none.
        draws: `(n_draws, n_figures)` float64, the mean in each draw.
        n_users: `(n_figures,)` int64, users behind the figure.
    """

    names: tuple[str, ...]
    value: np.ndarray
    draws: np.ndarray
    n_users: np.ndarray

    def minus(self, other: "Resampled") -> "Resampled":
        """The difference, paired: both from the same draws of the same users.

        Raises:
            ValueError: if the figures are not the same.
        """
        if self.names != other.names or self.draws.shape != other.draws.shape:
            raise ValueError("only the same figures of the same draws can be compared")
        return Resampled(
            self.names,
            self.value - other.value,
            self.draws - other.draws,
            np.minimum(self.n_users, other.n_users),
        )

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of each figure, `(n_figures,)` each; NaN below two users: nothing varies there."""
        tail = (1 - CONFIDENCE) / 2
        bounds = np.full((2, len(self.names)), np.nan)
        varies = self.n_users > 1
        if varies.any():
            draws = self.draws[:, varies]
            # A draw can miss all of a few users; it says nothing of them.
            quantile = np.nanquantile if np.isnan(draws).any() else np.quantile
            bounds[:, varies] = quantile(draws, [tail, 1 - tail], axis=0)
        return bounds[0], bounds[1]


def resample(figures: list[PerUser], draws: Draws) -> list[Resampled]:
    """The mean of each figure, as it is and in every draw.

    Args:
        figures: Each with a row per user, or per user and fold, NaN where not defined.
        draws: Of the same rows.

    Raises:
        ValueError: if the rows are not as many as those of the draws.
    """
    wrong = [len(each.values) for each in figures if len(each.values) != len(draws.user_of_row)]
    if wrong:
        raise ValueError(f"{wrong[0]} rows of figures, draws of {len(draws.user_of_row)}")
    values, sums, counts, n_users = zip(
        *(_by_bundle(each.values, draws) for each in figures), strict=True
    )
    # One matrix product for all, or reading the weights takes longer than the arithmetic. One
    # BLAS thread: with more, the last bits depend on how the work was split.
    with threadpool_limits(1, "blas"):
        drawn = draws.weights @ np.hstack([*sums, *counts])
    widths = [each.shape[1] for each in (*sums, *counts)]
    parts = np.split(drawn, np.cumsum(widths)[:-1], axis=1)
    drawn_sums, drawn_counts = parts[: len(figures)], parts[len(figures) :]
    with np.errstate(invalid="ignore"):
        return [
            Resampled(each.names, values[i], drawn_sums[i] / drawn_counts[i], n_users[i])
            for i, each in enumerate(figures)
        ]


def _by_bundle(values: np.ndarray, draws: Draws) -> tuple[np.ndarray, ...]:
    """The mean of each figure, its sum and count in each bundle, and the users behind it.

    Where all figures are defined for the same users, as within most blocks, one column of counts
    stands for all.
    """
    n_columns = values.shape[1]
    total, sums = np.zeros(n_columns), np.zeros((draws.weights.shape[1], n_columns))
    counts = np.zeros_like(sums)
    is_there = np.zeros((len(draws.bundle_of_user), n_columns), dtype=np.bool_)
    _add_up(values, draws.user_of_row, draws.bundle_of_user, total, sums, counts, is_there)
    with np.errstate(invalid="ignore"):
        mean = total / counts.sum(axis=0)
    if (counts == counts[:, :1]).all():
        counts = counts[:, :1]
    return mean, sums, counts, is_there.sum(axis=0)


@njit(cache=True, nogil=True)
def _add_up(
    values: np.ndarray,
    user_of_row: np.ndarray,
    bundle_of_user: np.ndarray,
    total: np.ndarray,
    sums: np.ndarray,
    counts: np.ndarray,
    is_there: np.ndarray,
) -> None:
    for row in range(len(values)):
        user = user_of_row[row]
        bundle = bundle_of_user[user]
        for column in range(values.shape[1]):
            value = values[row, column]
            if not np.isnan(value):
                # In the order of the rows, so that it does not depend on the draws.
                total[column] += value
                sums[bundle, column] += value
                counts[bundle, column] += 1
                is_there[user, column] = True


def pool(folds: list[tuple[pl.Series, PerUser]]) -> tuple[np.ndarray, PerUser]:
    """Several folds as one: a row per user and fold, each row of the same weight.

    Args:
        folds: Of each fold the users, in the order of the rows, and their figures.

    Returns:
        `user_of_row` for `draw_users`, and the figures.

    Raises:
        ValueError: if the folds have different figures.
    """
    names = {figures.names for _, figures in folds}
    if len(names) != 1:
        raise ValueError(f"{len(names)} different sets of figures cannot be pooled")
    return (
        same_users([user_ids for user_ids, _ in folds]),
        PerUser(names.pop(), np.vstack([figures.values for _, figures in folds])),
    )
