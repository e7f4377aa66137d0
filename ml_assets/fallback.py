"""What is shown to users whom the models know too little about.

Popularity lists are tried in a stated order until a list is full: what is popular in the user's
favourite category, in their segment, what is rising now, what is popular at all. The last one
ranks every available product, so a list comes out short only when the shop has nothing left.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import scipy.sparse as sp
from numba import njit

from ml_assets.scoring import NOTHING
from ml_assets.signal_matrix import SignalMatrix, positions
from ml_assets.threads import run_over_blocks


@dataclass(frozen=True)
class Step:
    """One link of the chain: a family of popularity lists, and which one is a user's own.

    Attributes:
        source: The word that labels its rows.
        segment_type: Which popularity lists.
        time_window: Likewise.
        key: The column of USERS that names the user's list; None for one list for all.
    """

    source: str
    segment_type: str
    time_window: str
    key: str | None


CHAIN = (
    Step("category", "category", "last_28_days", "favourite_category"),
    Step("segment", "segment", "last_28_days", "segment"),
    Step("trending", "global", "trending", None),
    Step("popular", "global", "all_time", None),
)


@dataclass(frozen=True)
class PopularityLists:
    """All lists end to end, and for each user which list each step means.

    Attributes:
        list_indptr: List i is `items[list_indptr[i]:list_indptr[i + 1]]`.
        items: Product positions, best first within a list.
        list_of_user: `(n_users, n_steps)` int32 list numbers, `NOTHING` where a step does not
            apply to the user.
    """

    list_indptr: np.ndarray
    items: np.ndarray
    list_of_user: np.ndarray


def arrange_popularity(
    popularity: pl.DataFrame, users: pl.DataFrame, matrix: SignalMatrix
) -> PopularityLists:
    """Look up every user's lists.

    Args:
        popularity: POPULARITY.
        users: USERS, each user of the matrix.
        matrix: Gives the order of users and products.
    """
    ordered = popularity.sort("segment_type", "segment", "time_window", "rank")
    lists = (
        ordered.group_by("segment_type", "segment", "time_window", maintain_order=True)
        .len()
        .with_row_index("list")
    )
    indptr = np.concatenate([[0], np.cumsum(lists["len"].to_numpy())]).astype(np.int64)
    people = pl.DataFrame({"user_id": matrix.user_ids}).join(
        users, on="user_id", how="left", maintain_order="left"
    )
    columns = []
    for step in CHAIN:
        family = lists.filter(
            (pl.col("segment_type") == step.segment_type)
            & (pl.col("time_window") == step.time_window)
        ).select("segment", "list")
        key = pl.lit("all") if step.key is None else pl.col(step.key)
        column = people.select(key.cast(pl.String).alias("segment")).join(
            family, on="segment", how="left", maintain_order="left"
        )["list"]
        columns.append(_broadcast(column, len(people)))
    return PopularityLists(
        list_indptr=indptr,
        items=positions(ordered["product_id"], matrix.product_ids).astype(np.int32),
        list_of_user=np.column_stack(columns).astype(np.int32),
    )


def _broadcast(column: pl.Series, n_rows: int) -> np.ndarray:
    values = column.cast(pl.Int64).fill_null(NOTHING).to_numpy()
    return np.full(n_rows, values[0]) if len(values) == 1 else values


def fill_lists(
    proposed: np.ndarray, lists: PopularityLists, *, exclude: sp.csr_matrix
) -> tuple[np.ndarray, np.ndarray]:
    """Fill the empty places of every user's list by the chain.

    Args:
        proposed: `(n_users, n)` int32 products, `NOTHING` from the first empty place on.
        lists: What the chain offers.
        exclude: `(n_users, n_items)`, an entry is a product not to propose; sorted indices.

    Returns:
        `(n_users, n)` int32 products and `(n_users, n)` int8: which step of CHAIN filled the
        place, `NOTHING` where it was proposed or nothing was left.
    """
    filled = proposed.copy()
    step = np.full(proposed.shape, NOTHING, dtype=np.int8)

    def work(start: int, stop: int, _: None) -> None:
        _fill(
            start,
            stop,
            filled,
            step,
            lists.list_indptr,
            lists.items,
            lists.list_of_user,
            exclude.indptr,
            exclude.indices,
        )

    run_over_blocks(work, len(filled))
    return filled, step


@njit(cache=True, nogil=True)
def _fill(
    start: int,
    stop: int,
    filled: np.ndarray,
    step_of: np.ndarray,
    list_indptr: np.ndarray,
    items: np.ndarray,
    list_of_user: np.ndarray,
    exclude_indptr: np.ndarray,
    exclude_indices: np.ndarray,
) -> None:
    n = filled.shape[1]
    for row in range(start, stop):
        length = 0
        while length < n and filled[row, length] >= 0:
            length += 1
        excluded = exclude_indices[exclude_indptr[row] : exclude_indptr[row + 1]]
        for step in range(list_of_user.shape[1]):
            chosen = list_of_user[row, step]
            if chosen < 0 or length == n:
                continue
            for at in range(list_indptr[chosen], list_indptr[chosen + 1]):
                item = items[at]
                place = np.searchsorted(excluded, item)
                if place < len(excluded) and excluded[place] == item:
                    continue
                is_repeat = False
                for i in range(length):
                    if filled[row, i] == item:
                        is_repeat = True
                        break
                if is_repeat:
                    continue
                filled[row, length] = item
                step_of[row, length] = step
                length += 1
                if length == n:
                    break
