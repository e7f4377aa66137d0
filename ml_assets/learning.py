"""What models have in common when they learn: the matrix, its degrees, what must be there first."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numba import njit

from ml_assets.bits import as_ordered
from ml_assets.item_item import ItemItemModel, put_largest_first
from ml_assets.signal_matrix import (
    CannotFitError,
    SignalMatrix,
    TooLittleDataError,
    only_entries,
)
from ml_assets.threads import over_blocks


class TooMuchMemoryError(CannotFitError):
    """A model would need more memory than it may have; the message says what to change."""


@dataclass(frozen=True)
class Taste:
    """What item-item models learn from.

    Attributes:
        matrix: `(n_users, n_items)` float32, the square roots of `SignalMatrix.training_history`:
            ten purchases say more than one, but not ten times as much.
        user_degree: `(n_users,)` float64, its row sums.
        item_degree: `(n_items,)` float64, its column sums.
        left_today: `(n_items,)` float64, the share of a product's history that is left today.
    """

    matrix: sp.csr_matrix
    user_degree: np.ndarray
    item_degree: np.ndarray
    left_today: np.ndarray

    @property
    def season(self) -> np.ndarray:
        """`(n_items,)` float64, by how much less is proposed what is going out of season.

        The square of the share left, as in `fit_item_item`: once for the weights of today, once
        more because they are still falling. Better than once or never on the bundled shop.
        """
        return np.square(self.left_today)

    @property
    def is_known(self) -> np.ndarray:
        """`(n_items,)` bool: somebody touched the product."""
        return np.asarray(self.item_degree > 0)


def taste_of(name: str, signals: SignalMatrix) -> Taste:
    """Arrange signals for the model `name`.

    Raises:
        TooLittleDataError: below two users or two products to learn from.
    """
    today, history = signals.training, signals.training_history
    require_two(name, today)
    matrix = square_root(history)
    user_degree, item_degree = (
        np.asarray(matrix.sum(axis=axis, dtype=np.float64)).ravel() for axis in (1, 0)
    )
    before, now = (
        np.asarray(each.sum(axis=0, dtype=np.float64)).ravel() for each in (history, today)
    )
    return Taste(
        matrix=matrix,
        user_degree=user_degree,
        item_degree=item_degree,
        left_today=np.divide(now, before, out=np.zeros_like(now), where=item_degree > 0),
    )


def at_most(signals: SignalMatrix, n: int) -> SignalMatrix:
    """The n products of each user that count most in their history; all with n = 0.

    Of equal ones those are kept that a number made of the row and the column puts first: as good
    as a draw for each user, and the same each time. By popularity, the rare products of users
    with much history would be lost to all of them.
    """
    history = signals.history
    n_each = np.diff(history.indptr)
    longest = n_each.max(initial=0)
    if n == 0 or longest <= n:
        return signals
    is_kept = np.ones(history.nnz, dtype=bool)

    def work(start: int, stop: int, numbers: np.ndarray) -> None:
        _drop_others(
            start, stop, history.indptr, history.indices, history.data, n, numbers, is_kept
        )

    for _ in over_blocks(work, len(n_each), scratch=lambda: np.empty(longest, np.uint64)):
        pass
    weights, history = (
        only_entries(each, is_kept, each.data) for each in (signals.weights, history)
    )
    return replace(signals, weights=weights, history=history, kinds=signals.kinds[is_kept])


_LOWER_HALF = np.uint64(0xFFFFFFFF)


@njit(cache=True, nogil=True)
def _by_weight(user: int, item: int, weight: float) -> np.uint64:
    """A number that orders a user's products by weight, ties as if by chance, none alike."""
    # The upper half is the weight, the lower one MurmurHash3's last step (Appleby), by which no
    # two products of a user come to the same.
    mixed = (np.uint64(user) * np.uint64(0x9E3779B9) ^ np.uint64(item)) & _LOWER_HALF
    mixed ^= mixed >> np.uint64(16)
    mixed = mixed * np.uint64(0x85EBCA6B) & _LOWER_HALF
    mixed ^= mixed >> np.uint64(13)
    mixed = mixed * np.uint64(0xC2B2AE35) & _LOWER_HALF
    mixed ^= mixed >> np.uint64(16)
    return (as_ordered(weight) << np.uint64(32)) | mixed


@njit(cache=True, nogil=True)
def _drop_others(
    start: int,
    stop: int,
    indptr: np.ndarray,
    items: np.ndarray,
    weights: np.ndarray,
    n: int,
    numbers: np.ndarray,
    is_kept: np.ndarray,
) -> None:
    """Of each row only the n entries stay that count most."""
    for user in range(start, stop):
        begin, end = indptr[user], indptr[user + 1]
        if end - begin <= n:
            continue
        for at in range(begin, end):
            numbers[at - begin] = _by_weight(user, items[at], weights[at])
        put_largest_first(numbers, end - begin, n)
        for at in range(begin, end):
            is_kept[at] = _by_weight(user, items[at], weights[at]) >= numbers[n - 1]


def history_of(signals: SignalMatrix) -> sp.csr_matrix:
    """What item-item models score from: `(n_users, n_items)` float32."""
    return square_root(signals.history)


def by_history(signals: SignalMatrix, taste: Taste, follows: sp.csr_matrix) -> ItemItemModel:
    """The item-item model that was learned from `taste`, for all users of `signals`."""
    return ItemItemModel(
        history=history_of(signals),
        follows=follows,
        knows_user=np.diff(signals.history.indptr) > 0,
        knows_item=taste.is_known,
    )


def square_root(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Of each entry."""
    return sp.csr_matrix((np.sqrt(matrix.data), matrix.indices, matrix.indptr), shape=matrix.shape)


def scaled_rows(matrix: sp.csr_matrix, scale: np.ndarray) -> sp.csr_matrix:
    """`diag(scale) matrix`, in the matrix's type."""
    data = matrix.data * np.repeat(scale, np.diff(matrix.indptr))
    return sp.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def power(numbers: np.ndarray, exponent: float) -> np.ndarray:
    """0 stays 0, whatever the exponent."""
    return np.power(numbers, exponent, out=np.zeros_like(numbers), where=numbers > 0)


def require_two(name: str, training: sp.csr_matrix) -> None:
    """Refuse what has no two rows or no two columns with entries.

    Raises:
        TooLittleDataError: saying how many there are.
    """
    n_users = int((np.diff(training.indptr) > 0).sum())
    n_items = np.count_nonzero(np.bincount(training.indices, minlength=training.shape[1]))
    if n_users < 2 or n_items < 2:
        raise TooLittleDataError(
            f"{name} needs two users and two products with signals, and got {n_users} and {n_items}"
        )


def require_memory(name: str, n_bytes: float, settings: Mapping[str, Any], *, advice: str) -> None:
    """Refuse a model that needs more than `settings["memory_megabytes"]` beside the signals.

    `settings["held_bytes"]`, if it is there, is what whoever fits the model holds meanwhile.

    Raises:
        TooMuchMemoryError: naming the need, the limit and what to do.
    """
    limit = settings["memory_megabytes"]
    n_bytes += settings.get("held_bytes", 0)
    if n_bytes > limit * 2**20:
        raise TooMuchMemoryError(
            f"{name} needs {n_bytes / 2**20:,.0f} MB and memory_megabytes allows {limit:,}: "
            f"{advice}, or raise the limit"
        )


def bytes_of_neighbours(n_items: int, settings: Mapping[str, Any]) -> int:
    """What `neighbours` entries of each product take while they are arranged as a matrix."""
    return 18 * min(settings["neighbours"], n_items) * n_items


def bytes_of_copies(signals: sp.csr_matrix, *, each: int = 32) -> int:
    """What copies of the signals take, turned and weighted: `each` bytes for one of them."""
    return each * int(signals.nnz)


def require_memory_of_neighbours(
    name: str, taste: Taste, settings: Mapping[str, Any], *, each: int = 32
) -> None:
    """Refuse a model that holds its neighbours and copies of the signals, as `require_memory`."""
    n_bytes = bytes_of_neighbours(taste.matrix.shape[1], settings)
    n_bytes += bytes_of_copies(taste.matrix, each=each)
    require_memory(name, n_bytes, settings, advice="take fewer neighbours")
