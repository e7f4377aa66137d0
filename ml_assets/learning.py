"""What models have in common when they learn: the matrix, its degrees, what must be there first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from ml_assets.item_item import ItemItemModel
from ml_assets.signal_matrix import CannotFitError, SignalMatrix, TooLittleDataError


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


def power(numbers: np.ndarray, exponent: float) -> np.ndarray:
    """0 stays 0, whatever the exponent."""
    return np.power(numbers, exponent, out=np.zeros_like(numbers), where=numbers > 0)


def require_two(name: str, training: sp.csr_matrix) -> None:
    """Refuse what has no two rows or no two columns with entries.

    Raises:
        TooLittleDataError: saying how many there are.
    """
    n_users = int((np.diff(training.indptr) > 0).sum())
    n_items = len(np.unique(training.indices))
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
