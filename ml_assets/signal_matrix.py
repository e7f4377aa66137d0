"""Users and products as rows and columns: the one place where ids become positions."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import scipy.sparse as sp

RATED, LOOKED_AT, PUT_IN_CART, BOUGHT = 0, 1, 2, 3


class CannotFitError(ValueError):
    """A model cannot be fitted; the message says what it needs and what it got."""


class TooLittleDataError(CannotFitError):
    """There is nothing to learn from."""


@dataclass(frozen=True)
class SignalMatrix:
    """What every user did, with the ids of rows and columns.

    Row i is `user_ids[i]`, column j is `product_ids[j]`; both are sorted, so equal tables give
    equal matrices whatever the order of their rows. Users and products without signals have
    empty rows and columns.

    Attributes:
        weights: `(n_users, n_products)` float32, how much the user wants the product today.
        history: The same entries, as of each user's own last active day: it stays as it is until
            the user does something, and so do lists that are made from it.
        kinds: Aligned with `weights.data`: the strongest thing the user did, one of
            `RATED`, `LOOKED_AT`, `PUT_IN_CART`, `BOUGHT`.
        trains_on_user: `(n_users,)` bool, false for outliers: they are served, but not learned
            from.
    """

    user_ids: pl.Series
    product_ids: pl.Series
    weights: sp.csr_matrix
    history: sp.csr_matrix
    kinds: np.ndarray
    trains_on_user: np.ndarray

    def for_users(self, rows: np.ndarray) -> "SignalMatrix":
        """The same with only these users, in this order."""
        entries = places_of_entries(self.weights)[rows]
        weights, history = (
            sp.csr_matrix((each.data[entries.data], entries.indices, entries.indptr), entries.shape)
            for each in (self.weights, self.history)
        )
        return SignalMatrix(
            user_ids=self.user_ids.gather(rows),
            product_ids=self.product_ids,
            weights=weights,
            history=history,
            kinds=self.kinds[entries.data],
            trains_on_user=self.trains_on_user[rows],
        )

    @property
    def training(self) -> sp.csr_matrix:
        """`weights` with the rows of outliers emptied, `(n_users, n_products)`."""
        return self._without_outliers(self.weights)

    @property
    def training_history(self) -> sp.csr_matrix:
        """`history` with the rows of outliers emptied, `(n_users, n_products)`."""
        return self._without_outliers(self.history)

    def _without_outliers(self, matrix: sp.csr_matrix) -> sp.csr_matrix:
        if self.trains_on_user.all():
            return matrix
        keep = sp.diags_array(self.trains_on_user.astype(np.float32))
        training = sp.csr_matrix(keep @ matrix)
        training.eliminate_zeros()
        return training

    @property
    def bought(self) -> sp.csr_matrix:
        """One where the user owns the product, `(n_users, n_products)`, indices sorted."""
        return self._pattern(self.kinds == BOUGHT)

    @property
    def touched(self) -> sp.csr_matrix:
        """One where the user has any signal, `(n_users, n_products)`, indices sorted."""
        return self._pattern(np.ones(len(self.kinds), dtype=bool))

    def _pattern(self, mask: np.ndarray) -> sp.csr_matrix:
        return only_entries(self.weights, mask, np.ones(len(mask), dtype=np.float32))


def build_signal_matrix(
    signals: pl.DataFrame, *, user_ids: pl.Series, product_ids: pl.Series
) -> SignalMatrix:
    """Arrange signals as a matrix over all given users and products.

    Args:
        signals: SIGNALS, in any order.
        user_ids: Every user that is to have a row; need not have signals.
        product_ids: Every product that is to have a column.

    Raises:
        ValueError: if a signal names a user or product outside the given ids, or two name the same.
    """
    user_ids = user_ids.unique().sort().rename("user_id")
    product_ids = product_ids.unique().sort().rename("product_id")
    rows = positions(signals["user_id"], user_ids)
    columns = positions(signals["product_id"], product_ids)
    shape = (len(user_ids), len(product_ids))
    # By counting, and then row by row: a tenth of the time of a sort by both.
    places = sp.csr_matrix((np.arange(len(rows)), (rows, columns)), shape=shape)
    if places.nnz < len(rows):
        raise ValueError("a user has two signals for one product")
    places.sort_indices()
    order, indices, indptr = places.data, places.indices, places.indptr
    kinds = np.select(
        [
            signals["n_purchases"].to_numpy() > 0,
            signals["n_carts"].to_numpy() > 0,
            signals["is_only_rated"].to_numpy(),
        ],
        [BOUGHT, PUT_IN_CART, RATED],
        default=LOOKED_AT,
    ).astype(np.int8)
    weights, history = (
        sp.csr_matrix(
            (signals[column].to_numpy().astype(np.float32)[order], indices, indptr), shape=shape
        )
        for column in ("weight", "relative_weight")
    )
    trains_on_user = np.ones(len(user_ids), dtype=bool)
    trains_on_user[rows[~signals["is_training"].to_numpy()]] = False
    return SignalMatrix(
        user_ids=user_ids,
        product_ids=product_ids,
        weights=weights,
        history=history,
        kinds=kinds[order],
        trains_on_user=trains_on_user,
    )


def only_entries(matrix: sp.csr_matrix, mask: np.ndarray, data: np.ndarray) -> sp.csr_matrix:
    """Some entries of a matrix, with other data; mask and data are `(n_entries,)`."""
    # Counting kept entries up to each row's end gives the new row pointers.
    kept_before = np.concatenate([[0], np.cumsum(mask)])
    return sp.csr_matrix(
        (data[mask], matrix.indices[mask], kept_before[matrix.indptr]), shape=matrix.shape
    )


def places_of_entries(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """The matrix with each entry's place among the entries for its value: rows of it tell which."""
    return sp.csr_matrix((np.arange(matrix.nnz), matrix.indices, matrix.indptr), shape=matrix.shape)


def scale_to_one(rows: sp.csr_matrix) -> np.ndarray:
    """`(n_rows,)` float64, 1 / length of each row; 0 for one of zeros."""
    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1), dtype=np.float64)).ravel()
    return np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)


def entry_keys(matrix: sp.csr_matrix) -> np.ndarray:
    """`(n_entries,)` int64, where each entry is: row x n_columns + column."""
    row = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))
    return row * matrix.shape[1] + matrix.indices


def positions(ids: pl.Series, known_ids: pl.Series) -> np.ndarray:
    """Position of each id in `known_ids`, int64.

    Raises:
        ValueError: naming the first id that is not among the known ones.
    """
    if len(ids) == 0:
        return np.empty(0, dtype=np.int64)
    lookup = pl.DataFrame({"id": known_ids, "position": np.arange(len(known_ids), dtype=np.int64)})
    found = pl.DataFrame({"id": ids}).join(lookup, on="id", how="left", maintain_order="left")[
        "position"
    ]
    if found.null_count():
        stranger = ids.filter(found.is_null())[0]
        raise ValueError(
            f"{known_ids.name} {stranger!r} has signals but is not in its mart "
            f"({found.null_count():,} such rows)"
        )
    return found.to_numpy()


def available_items(products: pl.DataFrame, product_ids: pl.Series) -> np.ndarray:
    """`(n_items,)` bool in the order of `product_ids`: what can be recommended at all."""
    available = np.zeros(len(product_ids), dtype=bool)
    available[positions(products.filter("is_available")["product_id"], product_ids)] = True
    return available
