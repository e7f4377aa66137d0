"""Item-item models: which products follow from which, and every user's best by them.

A model is a sparse matrix W: having touched product j speaks for product i with W[j, i]. A user's
score for i is the sum over their history of weight x W[j, i]. Both building W and scoring walk
along sparse rows and add into one array of n_items numbers a thread, so memory grows with the
products and time with the events, never with users x products.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from numba import njit

from ml_assets.bits import (
    ONE,
    WORD,
    as_ordered,
    fetch,
    from_ordered,
    lowest_bit,
    which_are_above,
)
from ml_assets.threads import Scratch, over_blocks, run_over_blocks

NOTHING = -1


@dataclass(frozen=True)
class ItemItemModel:
    """Scores as `history @ follows`.

    Attributes:
        history: `(n_users, n_items)` float32, what each user touched and how much it counts; the
            scale of a row does not matter.
        follows: `(n_items, n_items)` float32, row j: the products that follow from j, or, where
            negative, are spoken against by it.
        knows_user: `(n_users,)` bool, whether the model has an opinion about the user at all.
        knows_item: `(n_items,)` bool, likewise.
    """

    history: sp.csr_matrix
    follows: sp.csr_matrix
    knows_user: np.ndarray
    knows_item: np.ndarray

    def for_users(self, rows: np.ndarray) -> "ItemItemModel":
        """The same model with only these users, in this order."""
        return replace(
            self, history=sp.csr_matrix(self.history[rows]), knows_user=self.knows_user[rows]
        )


def largest_products(
    sources: sp.csr_matrix,
    targets: sp.csr_matrix,
    *,
    source_scale: np.ndarray,
    target_scale: np.ndarray,
    k: int,
) -> sp.csr_matrix:
    """The k largest entries of each row of `diag(source_scale) S' T diag(target_scale)`.

    The product is never held: a row of it is added up, its best are picked, and it is cleared.
    Time is the sum over users of products(S) x products(T).

    Args:
        sources: S, `(n_users, n_items)` float32 >= 0.
        targets: T, likewise.
        source_scale: `(n_items,)` float32 >= 0.
        target_scale: `(n_items,)` float32 >= 0.
        k: Most entries a row.

    Returns:
        `(n_items, n_items)` float32, indices sorted, the diagonal left out, ties by the lower
        index.
    """
    by_item = sources.tocsc()
    by_item.sort_indices()
    n_items = by_item.shape[1]
    width = min(k, n_items)
    index = np.empty((n_items, width), dtype=np.int32)
    weight = np.empty((n_items, width), dtype=np.float32)
    n_found = np.zeros(n_items, dtype=np.int32)

    def work(start: int, stop: int, own: tuple[np.ndarray, ...]) -> None:
        _nearest(
            start,
            stop,
            by_item.indptr,
            by_item.indices,
            by_item.data,
            targets.indptr,
            targets.indices,
            targets.data,
            source_scale,
            target_scale,
            *own,
            index,
            weight,
            n_found,
        )

    for _ in over_blocks(
        work,
        n_items,
        rows_per_block=256,
        # One place more than there are items, for what is written down and not kept.
        scratch=lambda: (
            np.zeros(n_items, np.float32),
            np.empty(n_items + 1, np.int32),
            np.empty(n_items + WORD, np.float32),
            np.empty(2 * width + WORD, np.uint64),
            np.zeros(n_items // WORD + 1, np.uint64),
        ),
    ):
        pass
    return rows_of(index, weight, n_found)


def rows_of(index: np.ndarray, weight: np.ndarray, n_found: np.ndarray) -> sp.csr_matrix:
    """A square matrix from the first `n_found[i]` entries of each row, which are sorted."""
    n_items, width = index.shape
    is_there = np.arange(width) < n_found[:, None]
    indptr = np.concatenate([[0], np.cumsum(n_found)]).astype(np.int32)
    return sp.csr_matrix((weight[is_there], index[is_there], indptr), shape=(n_items, n_items))


Rows = Callable[[int, int, Scratch], np.ndarray]


def largest_of_blocks(
    rows: Rows[Scratch],
    n_items: int,
    *,
    k: int,
    rows_per_block: int,
    scratch: Callable[[], Scratch],
) -> sp.csr_matrix:
    """The k entries of largest absolute value of each row of a square matrix that is never held.

    Memory: `18 n_items min(k, n_items)` bytes and, for each thread, what `scratch` makes, the
    rows of one block, and `8 n_items`.

    Args:
        rows: `rows(start, stop, own)` makes rows `start` to `stop` of the matrix,
            `(stop - start, n_items)` float32, in memory of its own; a row must not depend on
            the block it is in.
        n_items: Rows and columns.
        k: Most entries a row.
        rows_per_block: Rows asked for at once.
        scratch: Makes what `rows` gets as `own`, once a thread.

    Returns:
        `(n_items, n_items)` float32, indices sorted, the diagonal and what is 0 left out, ties
        by the lower index.
    """
    width = min(k, n_items)
    index = np.empty((n_items, width), dtype=np.int32)
    weight = np.empty((n_items, width), dtype=np.float32)
    n_found = np.zeros(n_items, dtype=np.int32)
    items = np.arange(n_items, dtype=np.int32)

    def work(start: int, stop: int, own: tuple[Scratch, tuple[np.ndarray, ...]]) -> None:
        theirs, ours = own
        _largest_of_block(start, rows(start, stop, theirs), items, *ours, index, weight, n_found)

    for _ in over_blocks(
        work,
        n_items,
        rows_per_block=rows_per_block,
        scratch=lambda: (
            scratch(),
            (
                np.empty(n_items + WORD, np.float32),
                np.empty(2 * width + WORD, np.uint64),
                np.zeros(n_items // WORD + 1, np.uint64),
            ),
        ),
    ):
        pass
    return rows_of(index, weight, n_found)


@njit(cache=True, nogil=True)
def _largest_of_block(
    start: int,
    rows: np.ndarray,
    items: np.ndarray,
    values: np.ndarray,
    candidates: np.ndarray,
    chosen: np.ndarray,
    index: np.ndarray,
    weight: np.ndarray,
    n_found: np.ndarray,
) -> None:
    k = index.shape[1]
    n_items = rows.shape[1]
    for row in range(len(rows)):
        source = start + row
        for item in range(n_items):
            values[item] = abs(rows[row, item])
        values[source] = 0
        n = _largest_values(values, items, n_items, k, candidates)
        _put_ascending(candidates, n, chosen, index[source])
        for i in range(n):
            weight[source, i] = rows[row, index[source, i]]
        n_found[source] = n


# A candidate in one number that orders as candidates do: by value, ties by the lower item.
_ITEM_BITS = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


@njit(cache=True, nogil=True, inline="always")
def _candidate(value: float, item: int) -> np.uint64:
    return (as_ordered(value) << _HALF) | (_ITEM_BITS - np.uint64(item))


@njit(cache=True, nogil=True, inline="always")
def _item_of(candidate: np.uint64) -> np.int64:
    return np.int64(_ITEM_BITS - (candidate & _ITEM_BITS))


# The rows to add up lie anywhere in memory, and the processor cannot guess which comes next. To
# wait for them took half the time, so each is asked for while others are added up: two ahead of a
# model's rows, with hundreds of entries, and more of users' rows, with a dozen.
_AHEAD = 2
_USERS_AHEAD = 8
# Numbers of four bytes in a line of memory.
_LINE = 16


@njit(cache=True, nogil=True, inline="always")
def _fetch_row(row: int, indptr: np.ndarray, values: np.ndarray) -> None:
    for nth in range(indptr[row], indptr[row + 1], _LINE):
        fetch(values, nth)


@njit(cache=True, nogil=True)
def _nearest(
    start: int,
    stop: int,
    column_indptr: np.ndarray,
    column_users: np.ndarray,
    column_weights: np.ndarray,
    row_indptr: np.ndarray,
    row_items: np.ndarray,
    row_weights: np.ndarray,
    source_scale: np.ndarray,
    target_scale: np.ndarray,
    total: np.ndarray,
    touched: np.ndarray,
    values: np.ndarray,
    candidates: np.ndarray,
    chosen: np.ndarray,
    index: np.ndarray,
    weight: np.ndarray,
    n_found: np.ndarray,
) -> None:
    k = index.shape[1]
    for source in range(start, stop):
        n_touched = np.uint64(0)
        for at in range(column_indptr[source], column_indptr[source + 1]):
            if at + 2 * _USERS_AHEAD < len(column_users):
                fetch(row_indptr, column_users[at + 2 * _USERS_AHEAD])
                ahead = column_users[at + _USERS_AHEAD]
                _fetch_row(ahead, row_indptr, row_items)
                _fetch_row(ahead, row_indptr, row_weights)
            user = column_users[at]
            amount = column_weights[at]
            # Unsigned: signed places take instructions more, since they may count from the end.
            for place in range(np.uint64(row_indptr[user]), np.uint64(row_indptr[user + 1])):
                item = row_items[place]
                gain = amount * row_weights[place]
                before = total[np.uint64(item)]
                # Written down in any case, and kept if it is the first time: a branch that goes
                # either way would cost more than all the rest. A gain of zero would leave the
                # total at zero, and the item be noted again.
                touched[n_touched] = item
                n_touched += np.uint64((before == 0) & (gain > 0))
                total[np.uint64(item)] = before + gain
        total[source] = 0
        for i in range(n_touched):
            item = touched[i]
            values[i] = total[item] * target_scale[item]
            total[item] = 0
        n = _largest_values(values, touched, np.int64(n_touched), k, candidates)
        for i in range(n):
            item = _item_of(candidates[i])
            total[item] = from_ordered(candidates[i] >> _HALF) * source_scale[source]
        _put_ascending(candidates, n, chosen, index[source])
        for i in range(n):
            item = index[source, i]
            weight[source, i] = total[item]
            total[item] = 0
        n_found[source] = n


@njit(cache=True, nogil=True)
def _put_ascending(candidates: np.ndarray, n: int, chosen: np.ndarray, items: np.ndarray) -> None:
    """The items of the first n candidates in order, the row's last places left alone."""
    if n * n < len(chosen):
        for i in range(n):
            item = _item_of(candidates[i])
            at = i
            while at > 0 and items[at - 1] > item:
                items[at] = items[at - 1]
                at -= 1
            items[at] = item
        return
    # A bit for each chosen item, read in order: faster than sorting many.
    for i in range(n):
        item = _item_of(candidates[i])
        chosen[item >> 6] |= ONE << np.uint64(item & 63)
    n_placed = 0
    for word in range(len(chosen)):
        bits = chosen[word]
        chosen[word] = 0
        while bits:
            items[n_placed] = WORD * word + np.int64(lowest_bit(bits))
            bits &= bits - ONE
            n_placed += 1


@njit(cache=True, nogil=True)
def _largest_values(
    values: np.ndarray, items: np.ndarray, n_values: int, k: int, candidates: np.ndarray
) -> int:
    """Put the k largest values above 0, in no order, at the head of `candidates`; how many."""
    n = 0
    limit = np.float32(0)
    n_first = min(n_values, len(candidates)) & ~(WORD - 1)
    # Most of the first ones are above 0.
    for at in range(n_first):
        candidates[n] = _candidate(values[at], items[at])
        n += int(values[at] > limit)
    for first in range(n_first, n_values, WORD):
        above = which_are_above(values, first, n_values - first, limit)
        while above:
            i = first + np.int64(lowest_bit(above))
            above &= above - ONE
            # The limit may have been raised.
            if not values[i] > limit:
                continue
            if n == len(candidates):
                put_largest_first(candidates, n, k)
                n = k
                # A value that is just the limit may belong to a lower item.
                limit = np.nextafter(from_ordered(candidates[k - 1] >> _HALF), np.float32(0))
                if not values[i] > limit:
                    continue
            candidates[n] = _candidate(values[i], items[i])
            n += 1
    if n > k:
        put_largest_first(candidates, n, k)
    return min(n, k)


@njit(cache=True, nogil=True)
def put_largest_first(values: np.ndarray, n: int, k: int, keys: np.ndarray | None = None) -> None:
    """Of the first n values the k largest to the front, the k-th of them last.

    Values are all different, or have keys, which move with them: of equal ones the lower key is
    taken for the larger.
    """
    # Hoare's selection with Lomuto's partition, in which no branch depends on what is compared: a
    # branch that goes either way costs more than the two stores it would save. Whether there are
    # keys is known when it is compiled.
    low, high = 0, n - 1
    while low < high:
        middle = (low + high) >> 1
        pivot = values[middle]
        values[middle] = values[high]
        if keys is not None:
            key_of_pivot = keys[middle]
            keys[middle] = keys[high]
        place = low
        for i in range(low, high):
            value = values[i]
            values[i] = values[place]
            values[place] = value
            is_larger = value > pivot
            if keys is not None:
                key = keys[i]
                keys[i] = keys[place]
                keys[place] = key
                is_larger |= (value == pivot) & (key < key_of_pivot)
            place += int(is_larger)
        values[high] = values[place]
        values[place] = pivot
        if keys is not None:
            keys[high] = keys[place]
            keys[place] = key_of_pivot
        if place == k - 1:
            return
        if place > k - 1:
            high = place - 1
        else:
            low = place + 1


@njit(cache=True, nogil=True, inline="always")
def rank_of(values: np.ndarray, keys: np.ndarray, n: int, i: int) -> int:
    """How many of the first n are better than the i-th: higher, or as high with a lower key."""
    # Counted, since sorting would branch.
    value, key = values[i], keys[i]
    rank = 0
    for j in range(n):
        rank += (values[j] > value) | ((values[j] == value) & (keys[j] < key))
    return rank


def largest_of_rows(matrix: sp.csr_matrix, *, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest entries of each row, ties by the lower column.

    Returns:
        `(n_rows, k)` int32 columns, best first, `NOTHING` where there are no more, and
        `(n_rows, k)` values.
    """
    column = np.full((matrix.shape[0], k), NOTHING, dtype=np.int32)
    value = np.zeros((matrix.shape[0], k), dtype=matrix.data.dtype)

    def work(start: int, stop: int, _: None) -> None:
        _largest(start, stop, matrix.indptr, matrix.indices, matrix.data, column, value)

    run_over_blocks(work, matrix.shape[0])
    return column, value


@njit(cache=True, nogil=True)
def _largest(
    start: int,
    stop: int,
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    column: np.ndarray,
    value: np.ndarray,
) -> None:
    k = column.shape[1]
    for row in range(start, stop):
        # Copies, to be put in another order.
        values = data[indptr[row] : indptr[row + 1]].copy()
        columns = indices[indptr[row] : indptr[row + 1]].copy()
        n = len(values)
        if n > k:
            put_largest_first(values, n, k, columns)
            n = k
        for i in range(n):
            rank = rank_of(values, columns, n, i)
            column[row, rank] = columns[i]
            value[row, rank] = values[i]


@dataclass(frozen=True)
class ScaledLists:
    """The best products of every user by one or two item-item models.

    Attributes:
        items: `(n_users, k)` int32, best first, `NOTHING` where the products ran out.
        score: `(n_users, k)` float64, the weighted sum of the z-scores.
        parts: `(n_models, n_users, k)` float64 z-scores, NaN where the model has no opinion.
        inverse_deviation: `(n_models, n_users)` float64, 0 for no opinion about the user.
        mean: `(n_models, n_users)` float64, of the raw scores; a z-score is what a raw score is
            above it, times `inverse_deviation`.
    """

    items: np.ndarray
    score: np.ndarray
    parts: np.ndarray
    inverse_deviation: np.ndarray
    mean: np.ndarray


def best_by_history(
    models: list[tuple[ItemItemModel, float]],
    *,
    k: int,
    exclude: sp.csr_matrix,
    eligible: np.ndarray,
    progress: Callable[[str], None],
) -> ScaledLists:
    """The k best products of every user by the weighted sum of the models' z-scores.

    Scores are put on one scale per user: mean and deviation over all products the model knows,
    most of which get 0. A product that no model arrives at from the user's history is not
    proposed. All arithmetic is in double precision and in the order of the user's history, so
    that a user's list does not depend on who else is scored.

    Args:
        models: One or two, each with its weight; over the same users and items.
        k: Items a user.
        exclude: `(n_users, n_items)`, an entry is a product not to propose.
        eligible: `(n_items,)` bool.
        progress: Told how many users are done.

    Raises:
        ValueError: for more than two models.
    """
    if not 1 <= len(models) <= 2:
        raise ValueError(f"one or two item-item models can be blended, got {len(models)}")
    n_users, n_items = exclude.shape
    (one, w_one), (two, w_two) = _pair(models)
    lists = ScaledLists(
        items=np.full((n_users, k), NOTHING, dtype=np.int32),
        score=np.full((n_users, k), -np.inf),
        parts=np.full((len(models), n_users, k), np.nan),
        inverse_deviation=np.zeros((2, n_users)),
        mean=np.zeros((2, n_users)),
    )
    about_item = (
        one.knows_item * _ONE_KNOWS + two.knows_item * _TWO_KNOWS + ~eligible * _IS_UNAVAILABLE
    )

    def work(start: int, stop: int, own: tuple[np.ndarray, ...]) -> None:
        _best(
            start,
            stop,
            *(array for model in (one, two) for array in _arrays(model)),
            w_one,
            w_two,
            exclude.indptr,
            exclude.indices,
            *own,
            lists.items,
            lists.score,
            lists.parts,
            lists.inverse_deviation,
            lists.mean,
        )

    def scratch() -> tuple[np.ndarray, ...]:
        return (
            np.zeros(n_items, np.int32),
            np.empty(n_items + 1, np.int32),
            np.zeros(n_items),
            np.zeros(n_items),
            np.empty(n_items + WORD),
            about_item.copy(),
        )

    for done in over_blocks(work, n_users, scratch=scratch):
        progress(f"scored {done:,} of {n_users:,} users")
    n = len(models)
    return replace(
        lists,
        inverse_deviation=lists.inverse_deviation[:n],
        mean=lists.mean[:n],
    )


def _pair(
    models: list[tuple[ItemItemModel, float]],
) -> tuple[tuple[ItemItemModel, float], tuple[ItemItemModel, float]]:
    """Two models for the compiled loops; one that knows nothing stands in for the second."""
    if len(models) == 2:
        return models[0], models[1]
    (one, _) = models[0]
    nothing = replace(
        one,
        follows=sp.csr_matrix(one.follows.shape, dtype=np.float32),
        knows_user=np.zeros(len(one.knows_user), dtype=bool),
        knows_item=np.zeros(len(one.knows_item), dtype=bool),
    )
    return models[0], (nothing, 0.0)


def _arrays(model: ItemItemModel) -> tuple[np.ndarray, ...]:
    history, follows = model.history, model.follows
    return (
        history.indptr,
        history.indices,
        history.data,
        follows.indptr,
        follows.indices,
        follows.data,
        model.knows_user,
        model.knows_item,
    )


@njit(cache=True, nogil=True)
def _add_up(
    begin: int,
    end: int,
    items: np.ndarray,
    weights: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    place_of: np.ndarray,
    touched: np.ndarray,
    n_touched: int,
    sums: np.ndarray,
) -> np.int64:
    """Add one user's history times the model into `sums`; note what it arrives at.

    Sums stand side by side in the order in which items are first arrived at, since a user's few
    thousand stay in the processor's nearest cache and a catalogue's do not. `place_of` says where
    an item's sum is, counted from 1; 0 for one that was not touched.
    """
    n = np.uint64(n_touched)
    for at in range(begin, end):
        if at + _AHEAD < len(items):
            _fetch_row(items[at + _AHEAD], indptr, indices)
            _fetch_row(items[at + _AHEAD], indptr, data)
        source = items[at]
        # np.float64, since numba's float leaves a float32 as it is.
        amount = np.float64(weights[at])
        for nth in range(np.uint64(indptr[source]), np.uint64(indptr[source + 1])):
            item = indices[nth]
            place = np.uint64(place_of[np.uint64(item)])
            # Without a branch, and unsigned: see _nearest.
            is_new = np.uint64(place == 0)
            touched[n] = item
            n += is_new
            place += is_new * n
            place_of[np.uint64(item)] = np.int32(place)
            sums[place - ONE] += amount * np.float64(data[nth])
    return np.int64(n)


@njit(cache=True, nogil=True)
def _drop_cancelled(
    touched: np.ndarray, n_touched: int, place_of: np.ndarray, one: np.ndarray, two: np.ndarray
) -> int:
    """Leave out what came to 0 in both models: nothing speaks for it."""
    n_zero = 0
    for i in range(n_touched):
        n_zero += (one[i] == 0) & (two[i] == 0)
    if n_zero == 0:
        return n_touched
    n = 0
    for i in range(n_touched):
        place_of[touched[i]] = 0
        touched[n], one[n], two[n] = touched[i], one[i], two[i]
        n += (one[i] != 0) | (two[i] != 0)
    one[n:n_touched] = 0
    two[n:n_touched] = 0
    return n


@njit(cache=True, nogil=True)
def _inverse_deviation(sums: np.ndarray, n_touched: int, n_known: int) -> tuple[float, float]:
    """Mean and 1 / deviation over the known products; those not touched have 0."""
    if n_known == 0:
        return 0.0, 0.0
    # Four sums side by side, in a stated order: additions need not wait for each other.
    a = b = c = d = 0.0
    aa = bb = cc = dd = 0.0
    n = n_touched & ~3
    for i in range(0, n, 4):
        a += sums[i]
        b += sums[i + 1]
        c += sums[i + 2]
        d += sums[i + 3]
        aa += sums[i] * sums[i]
        bb += sums[i + 1] * sums[i + 1]
        cc += sums[i + 2] * sums[i + 2]
        dd += sums[i + 3] * sums[i + 3]
    for i in range(n, n_touched):
        a += sums[i]
        aa += sums[i] * sums[i]
    sum_of_squares = (aa + bb) + (cc + dd)
    mean = ((a + b) + (c + d)) / n_known
    variance = sum_of_squares / n_known - mean * mean
    if not variance > 1e-12 * sum_of_squares / n_known:
        return mean, 0.0
    return mean, 1.0 / np.sqrt(variance)


# What there is to know about an item, in one number: looked up once for each item and user.
_ONE_KNOWS, _TWO_KNOWS, _IS_UNAVAILABLE, _IS_EXCLUDED = (np.uint8(1 << bit) for bit in range(4))


@njit(cache=True, nogil=True)
def first_limit(values: np.ndarray, heap: np.ndarray) -> float:
    """At least len(heap) of the values are not below it: most of them need not be kept at all."""
    largest = values[:WORD].copy()
    for first in range(WORD, len(values) - WORD + 1, WORD):
        for i in range(WORD):
            largest[i] = max(largest[i], values[first + i])
    keep_largest(largest, heap)
    return heap[0]


@njit(cache=True, nogil=True)
def keep_largest(values: np.ndarray, heap: np.ndarray) -> None:
    """The largest values, as a heap: the smallest of them stands first."""
    k = len(heap)
    heap[:] = -np.inf
    for score in values:
        if score > heap[0]:
            at = 0
            while True:
                child = 2 * at + 1
                if child >= k:
                    break
                if child + 1 < k and heap[child + 1] < heap[child]:
                    child += 1
                if heap[child] >= score:
                    break
                heap[at] = heap[child]
                at = child
            heap[at] = score


@njit(cache=True, nogil=True)
def _best(
    start: int,
    stop: int,
    one_history_indptr: np.ndarray,
    one_history_items: np.ndarray,
    one_history_weights: np.ndarray,
    one_indptr: np.ndarray,
    one_indices: np.ndarray,
    one_data: np.ndarray,
    one_knows_user: np.ndarray,
    one_knows_item: np.ndarray,
    two_history_indptr: np.ndarray,
    two_history_items: np.ndarray,
    two_history_weights: np.ndarray,
    two_indptr: np.ndarray,
    two_indices: np.ndarray,
    two_data: np.ndarray,
    two_knows_user: np.ndarray,
    two_knows_item: np.ndarray,
    w_one: float,
    w_two: float,
    exclude_indptr: np.ndarray,
    exclude_items: np.ndarray,
    place_of: np.ndarray,
    touched: np.ndarray,
    one: np.ndarray,
    two: np.ndarray,
    values: np.ndarray,
    about_item: np.ndarray,
    items: np.ndarray,
    score: np.ndarray,
    parts: np.ndarray,
    inverse_deviation: np.ndarray,
    mean: np.ndarray,
) -> None:
    k = items.shape[1]
    best_value = np.empty(2 * k + WORD)
    best_key = np.empty(2 * k + WORD, dtype=np.int64)
    heap = np.empty(k)
    n_one = one_knows_item.sum()
    n_two = two_knows_item.sum()
    for user in range(start, stop):
        # Not a literal, for which numba would compile what is called with it once more.
        n_touched = np.int64(0)
        if one_knows_user[user]:
            n_touched = _add_up(
                one_history_indptr[user],
                one_history_indptr[user + 1],
                one_history_items,
                one_history_weights,
                one_indptr,
                one_indices,
                one_data,
                place_of,
                touched,
                n_touched,
                one,
            )
        if two_knows_user[user]:
            n_touched = _add_up(
                two_history_indptr[user],
                two_history_indptr[user + 1],
                two_history_items,
                two_history_weights,
                two_indptr,
                two_indices,
                two_data,
                place_of,
                touched,
                n_touched,
                two,
            )
        n_touched = _drop_cancelled(touched, n_touched, place_of, one, two)
        mean_one, inverse_one = _inverse_deviation(one, n_touched, n_one)
        mean_two, inverse_two = _inverse_deviation(two, n_touched, n_two)
        inverse_deviation[0, user] = inverse_one
        inverse_deviation[1, user] = inverse_two
        mean[0, user] = mean_one
        mean[1, user] = mean_two
        for at in range(exclude_indptr[user], exclude_indptr[user + 1]):
            about_item[exclude_items[at]] |= _IS_EXCLUDED
        for i in range(n_touched):
            item = np.uint64(touched[i])
            place_of[item] = 0
            about = about_item[item]
            by_one = w_one * ((one[i] - mean_one) * inverse_one)
            by_two = w_two * ((two[i] - mean_two) * inverse_two)
            value = by_one if about & _ONE_KNOWS else 0.0
            value += by_two if about & _TWO_KNOWS else 0.0
            values[i] = -np.inf if about & (_IS_EXCLUDED | _IS_UNAVAILABLE) else value
        for at in range(exclude_indptr[user], exclude_indptr[user + 1]):
            about_item[exclude_items[at]] &= ~_IS_EXCLUDED
        n = np.int64(0)
        limit = -np.inf
        if n_touched >= 2 * WORD:
            limit = np.nextafter(first_limit(values[:n_touched], heap), -np.inf)
        for first in range(0, n_touched, WORD):
            above = which_are_above(values, first, n_touched - first, limit)
            while above:
                place = first + np.int64(lowest_bit(above))
                above &= above - ONE
                # The limit may have been raised.
                if not values[place] > limit:
                    continue
                if n == len(best_value):
                    put_largest_first(best_value, n, k, best_key)
                    n = k
                    # One that is just as good may be a lower item.
                    limit = np.nextafter(best_value[k - 1], -np.inf)
                    if not values[place] > limit:
                        continue
                best_value[n] = values[place]
                # The item and its place in one number, which orders as the items do.
                best_key[n] = (np.int64(touched[place]) << 32) | place
                n += 1
        if n > k:
            put_largest_first(best_value, n, k, best_key)
            n = k
        for i in range(n):
            rank = rank_of(best_value, best_key, n, i)
            item, place = best_key[i] >> 32, best_key[i] & 0xFFFFFFFF
            items[user, rank] = item
            score[user, rank] = best_value[i]
            if about_item[item] & _ONE_KNOWS and one_knows_user[user]:
                parts[0, user, rank] = (one[place] - mean_one) * inverse_one
            if about_item[item] & _TWO_KNOWS and two_knows_user[user]:
                parts[1, user, rank] = (two[place] - mean_two) * inverse_two
        one[:n_touched] = 0
        two[:n_touched] = 0


def z_of_pairs(model: ItemItemModel, items: np.ndarray) -> np.ndarray:
    """The z-score of given pairs, over all products the model knows, as in `best_by_history`.

    Last bits can differ from those of a blend, which sums over the products that either model
    arrives at.

    Args:
        model: The model.
        items: `(n_users, m)` int32, `NOTHING` for none.

    Returns:
        `(n_users, m)` float64, NaN where the model knows nothing of the user or the product.
    """
    n_users, n_items = model.history.shape
    scores = np.full(items.shape, np.nan)

    def work(start: int, stop: int, own: tuple[np.ndarray, ...]) -> None:
        _z_of_pairs(start, stop, *_arrays(model), items, *own, scores)

    for _ in over_blocks(
        work,
        n_users,
        scratch=lambda: (
            np.zeros(n_items, np.int32),
            np.empty(n_items + 1, np.int32),
            np.zeros(n_items),
        ),
    ):
        pass
    return scores


@njit(cache=True, nogil=True)
def _z_of_pairs(
    start: int,
    stop: int,
    history_indptr: np.ndarray,
    history_items: np.ndarray,
    history_weights: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    knows_user: np.ndarray,
    knows_item: np.ndarray,
    items: np.ndarray,
    place_of: np.ndarray,
    touched: np.ndarray,
    sums: np.ndarray,
    scores: np.ndarray,
) -> None:
    n_known = knows_item.sum()
    for user in range(start, stop):
        if not knows_user[user]:
            continue
        n_touched = _add_up(
            history_indptr[user],
            history_indptr[user + 1],
            history_items,
            history_weights,
            indptr,
            indices,
            data,
            place_of,
            touched,
            np.int64(0),
            sums,
        )
        mean, inverse = _inverse_deviation(sums, n_touched, n_known)
        for i in range(items.shape[1]):
            item = items[user, i]
            if item >= 0 and knows_item[item]:
                total = sums[place_of[item] - 1] if place_of[item] else 0.0
                scores[user, i] = (total - mean) * inverse
        for i in range(n_touched):
            place_of[touched[i]] = 0
        sums[:n_touched] = 0


def because_by_history(
    models: list[tuple[ItemItemModel, float]],
    inverse_deviation: np.ndarray,
    chosen: np.ndarray,
) -> np.ndarray:
    """The product in a user's history that has the largest share in each chosen one's score.

    Args:
        models: As in `best_by_history`; both have the same history.
        inverse_deviation: `(n_models, n_users)`, from its result.
        chosen: `(n_users, n)` int32 items, `NOTHING` for none.

    Returns:
        `(n_users, n)` int64 positions in the history's arrays, `NOTHING` where no product has a
        share. A product is never its own reason; ties go to the lower item.
    """
    n_users, n_items = models[0][0].history.shape
    because = np.full(chosen.shape, NOTHING, dtype=np.int64)
    (one, w_one), (two, w_two) = _pair(models)
    if len(models) == 1:
        inverse_deviation = np.vstack([inverse_deviation, np.zeros(n_users)])

    def work(start: int, stop: int, place_of_item: np.ndarray) -> None:
        _because(
            start,
            stop,
            one.history.indptr,
            one.history.indices,
            one.history.data,
            one.follows.indptr,
            one.follows.indices,
            one.follows.data,
            two.follows.indptr,
            two.follows.indices,
            two.follows.data,
            w_one * inverse_deviation[0],
            w_two * inverse_deviation[1],
            place_of_item,
            chosen,
            because,
        )

    for _ in over_blocks(work, n_users, scratch=lambda: np.zeros(n_items, np.int16)):
        pass
    return because


@njit(cache=True, nogil=True)
def _because(
    start: int,
    stop: int,
    history_indptr: np.ndarray,
    history_items: np.ndarray,
    history_weights: np.ndarray,
    one_indptr: np.ndarray,
    one_indices: np.ndarray,
    one_data: np.ndarray,
    two_indptr: np.ndarray,
    two_indices: np.ndarray,
    two_data: np.ndarray,
    factor_one: np.ndarray,
    factor_two: np.ndarray,
    place_of_item: np.ndarray,
    chosen: np.ndarray,
    because: np.ndarray,
) -> None:
    n = chosen.shape[1]
    share = np.zeros(n)
    best = np.zeros(n)
    for user in range(start, stop):
        for i in range(n):
            best[i] = 0.0
            if chosen[user, i] >= 0:
                place_of_item[chosen[user, i]] = i + 1
        for at in range(history_indptr[user], history_indptr[user + 1]):
            if at + _AHEAD < len(history_items):
                _fetch_row(history_items[at + _AHEAD], one_indptr, one_indices)
                _fetch_row(history_items[at + _AHEAD], two_indptr, two_indices)
            source = history_items[at]
            amount = np.float64(history_weights[at])
            for place in range(np.uint64(one_indptr[source]), np.uint64(one_indptr[source + 1])):
                i = place_of_item[np.uint64(one_indices[place])]
                if i > 0:
                    share[i - 1] += amount * np.float64(one_data[place]) * factor_one[user]
            for place in range(np.uint64(two_indptr[source]), np.uint64(two_indptr[source + 1])):
                i = place_of_item[np.uint64(two_indices[place])]
                if i > 0:
                    share[i - 1] += amount * np.float64(two_data[place]) * factor_two[user]
            for i in range(n):
                if share[i] > best[i] and chosen[user, i] != source:
                    best[i] = share[i]
                    because[user, i] = at
                share[i] = 0.0
        for i in range(n):
            if chosen[user, i] >= 0:
                place_of_item[chosen[user, i]] = 0
