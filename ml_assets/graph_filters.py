"""Item-item models that filter tastes over the graph of users and products.

Scores are history x M, and M is a polynomial of the item-item matrix P = A'A with A the normalised
matrix of users and products, which takes only products with sparse matrices. Rows of M are made in
blocks, and the entries of largest absolute value of each are kept; they may be negative. All
filters learn from `learning.Taste`, and column i of M is multiplied by `Taste.season`, so that
what is going out of season is proposed less.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numba import njit
from threadpoolctl import threadpool_limits

from ml_assets.item_item import ItemItemModel, largest_of_blocks
from ml_assets.learning import (
    Taste,
    by_history,
    bytes_of_copies,
    bytes_of_neighbours,
    power,
    require_memory,
    taste_of,
)
from ml_assets.signal_matrix import SignalMatrix
from ml_assets.threads import n_threads

# Rows of M made at once. More are faster per row until they leave the processor's cache.
_WIDTH = 32
_STEPS_OF_POWER_ITERATION = 60
# Below this share of the largest, a singular value in single precision is 0 and its vector chance.
_NO_SINGULAR_VALUE = 1e-5


def fit_graph_filter(
    signals: SignalMatrix, *, settings: Mapping[str, Any], seed: int
) -> ItemItemModel:
    """A sharpened low-pass filter over the graph of users and products.

        M = D_i^-x f(P) D_i^y,  P = A'A,  A = D_u^-p R D_i^-s / (its largest singular value)

    with R the square roots of `training_history`, D_u and D_i its row and column sums, and
    f(l) = c_1 l + ... + c_n l^n the polynomial of least squares to l (1 + g) / (l + g): like the
    regression of EASE it takes back what popular directions say twice, and like Turbo-CF it needs
    only products with sparse matrices. The family is that of Turbo-CF (Park et al., "Turbo-CF:
    Matrix Decomposition-Free Graph Filtering for Fast Recommendation", SIGIR 2024) and BSPM
    (Choi et al., "Blurring-Sharpening Process Models for Collaborative Filtering", SIGIR 2023).

    Memory: 18 bytes x neighbours x products, 32 x signals, and for each thread 4 x 32 x (users +
    3 x products), beside the signals. Time: 2 x degree x products x signals multiplications.

    Args:
        signals: Rows without signals stay without an opinion.
        settings: `neighbours`, `filter_user_power` p, `filter_item_power` s,
            `filter_source_power` x, `filter_target_power` y, `filter_degree` n, `filter_gamma` g,
            `memory_megabytes`.
        seed: Unused; nothing is random.

    Raises:
        TooLittleDataError: below two users or two products to learn from.
        TooMuchMemoryError: if it would need more than `memory_megabytes`.
    """
    taste = taste_of("The graph filter", signals)
    _require_memory("The graph filter", taste, settings)
    graph = graph_of(
        taste,
        user_power=settings["filter_user_power"],
        item_power=settings["filter_item_power"],
    )
    coefficients = filter_coefficients(settings["filter_degree"], settings["filter_gamma"])
    source_scale = power(taste.item_degree, -settings["filter_source_power"])

    def rows(start: int, stop: int, own: tuple[np.ndarray, ...]) -> np.ndarray:
        of_users, of_items, _, made = own
        own_places = np.arange(start, stop), np.arange(stop - start)
        # Horner's scheme; each step after the first is P times what there is, plus a diagonal.
        graph.spread(start, source_scale[start:stop] * coefficients[-1], of_users)
        graph.to_items(of_users, of_items)
        for coefficient in coefficients[-2::-1]:
            of_items[own_places] += (source_scale[start:stop] * coefficient).astype(np.float32)
            graph.to_users(of_items, of_users)
            graph.to_items(of_users, of_items)
        _turned(of_items, target_scale, made)
        return made[: stop - start]

    target_scale = _target_scale(taste, settings["filter_target_power"])
    return _keep_largest(rows, signals, taste, settings)


def fit_gf_cf(signals: SignalMatrix, *, settings: Mapping[str, Any], seed: int) -> ItemItemModel:
    """One step over the graph plus an ideal low-pass filter: GF-CF.

        M = P + a D_i^-1/2 V V' D_i^1/2,  P = A'A,  A = D_u^-1/2 R D_i^-1/2

    with V the right singular vectors of the largest singular values of A, after Shen et al., "How
    Powerful is Graph Convolution for Recommendation?" (CIKM 2021). R, the degrees, time and memory
    are those of `fit_graph_filter` with one step, and 16 bytes x `low_pass_factors` x (users +
    products) for the decomposition.

    Args:
        signals: Rows without signals stay without an opinion.
        settings: `neighbours`, `low_pass_factors`, `low_pass_weight` a, `memory_megabytes`.
        seed: Of the randomised decomposition.

    Raises:
        TooLittleDataError: below two users or two products to learn from.
        TooMuchMemoryError: if it would need more than `memory_megabytes`.
    """
    return _fit_blurred("GF-CF", signals, {**settings, "sharpening_steps": 0}, seed)


def fit_bspm(signals: SignalMatrix, *, settings: Mapping[str, Any], seed: int) -> ItemItemModel:
    """Blurring as by GF-CF, then sharpening: BSPM.

        M = (P + a D_i^-1/2 V V' D_i^1/2) (I - h P + h^2/2 P^2 - h^3/6 P^3 + h^4/24 P^4)^n

    with h = T / n, the last factor being n steps of the classical Runge-Kutta method through the
    sharpening differential equation dS/dt = -S P, after Choi et al., "Blurring-Sharpening Process
    Models for Collaborative Filtering" (SIGIR 2023). The rest is that of `fit_gf_cf`; time is that
    of 4 n + 1 steps through the graph.

    Args:
        signals: Rows without signals stay without an opinion.
        settings: `neighbours`, `low_pass_factors`, `low_pass_weight` a, `sharpening` T,
            `sharpening_steps` n, `memory_megabytes`.
        seed: Of the randomised decomposition.

    Raises:
        TooLittleDataError: below two users or two products to learn from.
        TooMuchMemoryError: if it would need more than `memory_megabytes`.
    """
    return _fit_blurred("BSPM", signals, settings, seed)


def _fit_blurred(
    name: str, signals: SignalMatrix, settings: Mapping[str, Any], seed: int
) -> ItemItemModel:
    taste = taste_of(name, signals)
    n_users, n_items = taste.matrix.shape
    n_factors = min(settings["low_pass_factors"], n_users, n_items)
    _require_memory(name, taste, settings, of_factors=16 * n_factors * (n_users + n_items))
    graph = graph_of(taste, user_power=0.5, item_power=0.5)
    vectors = _right_singular_vectors(graph.by_user, n_factors, seed)
    by_source = vectors * power(taste.item_degree, -0.5)[:, None].astype(np.float32)
    by_source *= np.float32(settings["low_pass_weight"])
    by_target = vectors * power(taste.item_degree, 0.5)[:, None].astype(np.float32)
    n_steps = settings["sharpening_steps"]
    step = settings["sharpening"] / n_steps if n_steps else 0.0

    def rows(start: int, stop: int, own: tuple[np.ndarray, ...]) -> np.ndarray:
        of_users, of_items, change, made = own
        graph.spread(start, np.ones(stop - start), of_users)
        graph.to_items(of_users, of_items)
        np.matmul(by_target, by_source[start:stop].T, out=change[:, : stop - start])
        of_items[:, : stop - start] += change[:, : stop - start]
        for _ in range(n_steps):
            np.copyto(change, of_items)
            # Of a linear equation the method's four slopes are terms of the exponential series.
            for order in (1, 2, 3, 4):
                graph.to_users(change, of_users)
                graph.to_items(of_users, change)
                change *= np.float32(-step / order)
                of_items += change
        _turned(of_items, target_scale, made)
        return made[: stop - start]

    target_scale = taste.season.astype(np.float32)
    return _keep_largest(rows, signals, taste, settings)


def _keep_largest(
    rows: Callable[[int, int, tuple[np.ndarray, ...]], np.ndarray],
    signals: SignalMatrix,
    taste: Taste,
    settings: Mapping[str, Any],
) -> ItemItemModel:
    """The model of rows that are made in blocks; each thread has four blocks of numbers."""
    n_users, n_items = taste.matrix.shape
    follows = largest_of_blocks(
        rows,
        n_items,
        k=settings["neighbours"],
        rows_per_block=_WIDTH,
        scratch=lambda: (
            np.empty((n_users, _WIDTH), np.float32),
            np.empty((n_items, _WIDTH), np.float32),
            np.zeros((n_items, _WIDTH), np.float32),
            np.empty((_WIDTH, n_items), np.float32),
        ),
    )
    return by_history(signals, taste, follows)


def _right_singular_vectors(matrix: sp.csr_matrix, n: int, seed: int) -> np.ndarray:
    """`(n_columns, n)` float32, of the n largest singular values; fewer where the rank is lower."""
    # Imported here: scikit-learn takes seconds to import, and most processes never train.
    from sklearn.utils.extmath import randomized_svd

    # One BLAS thread: with more, the last bits depend on how the work was split.
    with threadpool_limits(1, "blas"):
        _, values, rows = randomized_svd(matrix, n, n_iter=4, random_state=seed)
    rows = rows[values > _NO_SINGULAR_VALUE * values[0]]
    return np.ascontiguousarray(rows.T, dtype=np.float32)


def filter_coefficients(degree: int, gamma: float) -> np.ndarray:
    """c_1 ... c_degree of the polynomial of least squares to l (1 + gamma) / (l + gamma).

    Weighted and with more points near 0, where most eigenvalues of a taste matrix are.
    """
    points = np.linspace(0.002, 1.0, 400) ** 2
    powers = np.stack([points**k for k in range(1, degree + 1)], axis=1)
    weights = 1 / np.sqrt(points + 0.02)
    wanted = points * (1 + gamma) / (points + gamma)
    # One thread: with more, the last bits depend on how the work was split.
    with threadpool_limits(1, "blas"):
        found = np.linalg.lstsq(powers * weights[:, None], wanted * weights, rcond=None)[0]
    return np.asarray(found)


@dataclass(frozen=True)
class Graph:
    """A = D_u^-p R D_i^-s, divided by its largest singular value, both ways round.

    Attributes:
        by_user: A, `(n_users, n_items)` float32.
        by_item: A', `(n_items, n_users)` float32.
    """

    by_user: sp.csr_matrix
    by_item: sp.csr_matrix

    def spread(self, start: int, amounts: np.ndarray, of_users: np.ndarray) -> None:
        """Columns `start` ... of A, times an amount each, as the first columns of `of_users`."""
        each = self.by_item
        of_users[:] = 0
        _spread(start, amounts.astype(np.float32), each.indptr, each.indices, each.data, of_users)

    def to_items(self, of_users: np.ndarray, of_items: np.ndarray) -> None:
        """`of_items = A' of_users`."""
        each = self.by_item
        _times(each.indptr, each.indices, each.data, of_users, of_items)

    def to_users(self, of_items: np.ndarray, of_users: np.ndarray) -> None:
        """`of_users = A of_items`."""
        each = self.by_user
        _times(each.indptr, each.indices, each.data, of_items, of_users)


def graph_of(taste: Taste, *, user_power: float, item_power: float) -> Graph:
    """The normalised graph; its largest singular value by power iteration from a fixed start."""
    by_user = sp.csr_matrix(
        sp.diags_array(power(taste.user_degree, -user_power).astype(np.float32))
        @ taste.matrix
        @ sp.diags_array(power(taste.item_degree, -item_power).astype(np.float32))
    )
    by_item = sp.csr_matrix(by_user.T)
    direction = np.ones(by_user.shape[1])
    for _ in range(_STEPS_OF_POWER_ITERATION):
        direction = by_item @ (by_user @ direction)
        # Not np.linalg.norm, which asks BLAS.
        square = np.sqrt((direction * direction).sum())
        direction /= square
    largest = np.float32(np.sqrt(square))
    by_user.data /= largest
    by_item.data /= largest
    return Graph(by_user=by_user, by_item=by_item)


@njit(cache=True, nogil=True)
def _spread(
    start: int,
    amounts: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    out: np.ndarray,
) -> None:
    for column in range(len(amounts)):
        for at in range(indptr[start + column], indptr[start + column + 1]):
            out[indices[at], column] = amounts[column] * data[at]


@njit(cache=True, nogil=True)
def _times(
    indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, right: np.ndarray, out: np.ndarray
) -> None:
    """A sparse matrix times a dense one of a few columns; a column's bits depend on it alone."""
    width = right.shape[1]
    for row in range(len(out)):
        own = out[row]
        own[:] = 0
        begin, end = indptr[row], indptr[row + 1]
        last = begin + ((end - begin) & ~3)
        # Four rows at a time: the sums are read and written a quarter as often.
        for at in range(begin, last, 4):
            a, b, c, d = data[at], data[at + 1], data[at + 2], data[at + 3]
            one, two = right[indices[at]], right[indices[at + 1]]
            three, four = right[indices[at + 2]], right[indices[at + 3]]
            for i in range(width):
                own[i] += (a * one[i] + b * two[i]) + (c * three[i] + d * four[i])
        for at in range(last, end):
            a = data[at]
            one = right[indices[at]]
            for i in range(width):
                own[i] += a * one[i]


@njit(cache=True, nogil=True)
def _turned(columns: np.ndarray, scale: np.ndarray, out: np.ndarray) -> None:
    """`out = columns' diag(scale)`."""
    n_items, width = columns.shape
    # A few items at a time, so that whole cache lines are written.
    for first in range(0, n_items, 16):
        last = min(first + 16, n_items)
        for row in range(width):
            for item in range(first, last):
                out[row, item] = columns[item, row] * scale[item]


def _target_scale(taste: Taste, exponent: float) -> np.ndarray:
    return (power(taste.item_degree, exponent) * taste.season).astype(np.float32)


def _require_memory(
    name: str, taste: Taste, settings: Mapping[str, Any], *, of_factors: int = 0
) -> None:
    n_users, n_items = taste.matrix.shape
    of_blocks = n_threads() * 4 * _WIDTH * (n_users + 3 * n_items)
    require_memory(
        name,
        of_factors
        + of_blocks
        + bytes_of_neighbours(n_items, settings)
        + bytes_of_copies(taste.matrix),
        settings,
        advice=f"take fewer {'low_pass_factors or ' if of_factors else ''}neighbours",
    )
