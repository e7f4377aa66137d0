"""Every user's best products by inner product: exact, in blocks, without scoring all of them.

For a block of users and a tile of items one matrix product, small enough for the processor's
cache, is followed by a pass that keeps what may still enter a list. Items come in the order of
falling norm, and since no inner product exceeds the product of the two norms (Cauchy-Schwarz),
a tile is left out for the users whose lists its norms cannot reach (Teflioudi, Gemulla &
Mykytiuk, "LEMP: Fast Retrieval of Large Entries in a Matrix Product", SIGMOD 2015). Of a blend
the bound is the sum of its models' bounds, which is never above that of the long vectors, and only
the model that reaches furthest is multiplied out: the others are asked about the few pairs that
its score and their norms leave in reach.
Candidates are kept with a margin for single precision and ranked in double precision, so that
what is found does not depend on the threads or the blocks, nor on the BLAS library and its kernels
but for one thing: the covariance that a user's deviation follows from is a matrix product. With
another kernel its last bits are others, those of the published deviation with them, and once in a
while those of a score, where rounding to single precision does not level them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from numba import njit
from threadpoolctl import threadpool_limits

from ml_assets.bits import ONE, WORD, lowest_bit, which_are_above
from ml_assets.item_item import NOTHING, first_limit, keep_largest
from ml_assets.models import FactorModel
from ml_assets.threads import n_threads, over_blocks, run_over_blocks

Progress = Callable[[str], None]

# Columns and rows of one matrix product: its scores, 3 MB, stay in the processor's cache. Found by
# trying, where half and twice as many rows took a tenth longer.
_TILE = 768
_ROWS = 1024
# Items of a tile that are bounded together where there are two parts.
_ALIKE = 16
# A pair that is asked about by itself costs as much as so many of a matrix product.
_DEAR = 32
# Places beside a list's own for candidates that single precision cannot tell apart. Where they do
# not suffice (products with equal vectors), the user is done again with more.
_MARGIN = 32
_MORE = 16


@njit(cache=True, nogil=True, inline="always")
def inner(one: np.ndarray, other: np.ndarray) -> float:
    """Inner product in double precision."""
    # Four sums side by side, in a stated order: four times as fast as one, and the same bits on
    # every machine. np.float64, since numba's float leaves a float32 as it is.
    a = b = c = d = 0.0
    n = len(one) & ~3
    for f in range(0, n, 4):
        a += np.float64(one[f]) * np.float64(other[f])
        b += np.float64(one[f + 1]) * np.float64(other[f + 1])
        c += np.float64(one[f + 2]) * np.float64(other[f + 2])
        d += np.float64(one[f + 3]) * np.float64(other[f + 3])
    for f in range(n, len(one)):
        a += np.float64(one[f]) * np.float64(other[f])
    return (a + b) + (c + d)


@njit(cache=True, nogil=True, fastmath={"reassoc"}, inline="always")
def _quick_inner(one: np.ndarray, other: np.ndarray) -> np.float32:
    """Inner product in single precision, summed in any order: for what is looked at again."""
    total = np.float32(0)
    for f in range(len(one)):
        total += one[f] * other[f]
    return total


@dataclass(frozen=True)
class Blend:
    """Factor models on one scale, folded into one inner product.

    With `z = (score - mean) / deviation` per user, `w_1 z_1 + w_2 z_2` is linear in the item
    vectors, and so it is itself the inner product of longer vectors, plus a number per user.

    Attributes:
        user_vectors: `(n_users, d)` float32, the weights and 1 / deviation already in it.
        item_vectors: `(n_items, d)` float32, zeros where a model does not know the product.
        offsets: `(n_users, n_models)` float32, `-weight x mean / deviation`: what a product known
            to the model gets beside the inner product.
        parts: For each model, the columns of the vectors that are its own.
        weights: For each model, its weight in the sum.
        inverse_deviation: `(n_models, n_users)` float64, 1 / deviation of the raw scores, 0 where
            there is none.
        mean: `(n_models, n_users)` float64, of the raw scores.
        knows_user: For each model, `(n_users,)` bool.
        knows_item: For each model, `(n_items,)` bool.
    """

    user_vectors: np.ndarray
    item_vectors: np.ndarray
    offsets: np.ndarray
    parts: tuple[slice, ...]
    weights: tuple[float, ...]
    inverse_deviation: np.ndarray
    mean: np.ndarray
    knows_user: tuple[np.ndarray, ...]
    knows_item: tuple[np.ndarray, ...]

    @property
    def shifts(self) -> "Shifts":
        """The offsets, added up for each combination of models that know a product."""
        bits = sum(known.astype(np.int64) << i for i, known in enumerate(self.knows_item))
        combinations, group = np.unique(bits, return_inverse=True)
        is_in = (combinations[None, :] >> np.arange(len(self.weights))[:, None]) & 1
        return Shifts(
            of_user=(self.offsets.astype(np.float64) @ is_in).astype(np.float32),
            group_of_item=group.astype(np.int32),
        )


@dataclass(frozen=True)
class Shifts:
    """Numbers added to inner products, one per user and group of items.

    They stand apart from the vectors because a column of ones would make every item long, and
    length is what decides whether an item must be looked at.

    Attributes:
        of_user: `(n_users, n_groups)` float32.
        group_of_item: `(n_items,)` int32.
    """

    of_user: np.ndarray
    group_of_item: np.ndarray


def blend(models: list[tuple[FactorModel, float]]) -> Blend:
    """Put models on one scale per user and add them with their weights.

    Mean and deviation of a user's scores over the products the model knows follow from the mean
    and the covariance of the item vectors; nothing needs to be scored for them. A product a model
    does not know gets 0 from it, the mean: no opinion. So does a user.
    """
    ends = np.cumsum([model.item_factors.shape[1] for model, _ in models])
    parts = [
        slice(end - model.item_factors.shape[1], end)
        for (model, _), end in zip(models, ends, strict=True)
    ]
    first = models[0][0]
    users = np.empty((len(first.user_factors), ends[-1]), dtype=np.float32)
    items = np.zeros((len(first.item_factors), ends[-1]), dtype=np.float32)
    scales, offsets = [], []
    for (model, weight), part in zip(models, parts, strict=True):
        inverse, mean = _scale(model)
        scales.append((inverse, mean))
        factor = np.float64(weight) * inverse
        # In double precision, rounded as it is written.
        np.multiply(model.user_factors, factor[:, None], out=users[:, part], casting="same_kind")
        np.copyto(items[:, part], model.item_factors, where=model.knows_item[:, None])
        offsets.append((-factor * mean).astype(np.float32))
    return Blend(
        user_vectors=users,
        item_vectors=items,
        offsets=np.column_stack(offsets),
        parts=tuple(parts),
        weights=tuple(weight for _, weight in models),
        inverse_deviation=np.array([inverse for inverse, _ in scales]),
        mean=np.array([mean for _, mean in scales]),
        knows_user=tuple(model.knows_user for model, _ in models),
        knows_item=tuple(model.knows_item for model, _ in models),
    )


def _scale(model: FactorModel) -> tuple[np.ndarray, np.ndarray]:
    """For each user 1 / deviation (0 where there is none) and the mean of the scores, float64."""
    vectors = model.item_factors[model.knows_item].astype(np.float64)
    n_users = len(model.user_factors)
    if len(vectors) == 0:
        return np.zeros(n_users), np.zeros(n_users)
    mean = vectors.mean(axis=0)
    centred = vectors - mean
    # One thread: with more, the last bits depend on how the work was split.
    with threadpool_limits(1, "blas"):
        covariance = centred.T @ centred / len(vectors)
    factors = np.ascontiguousarray(model.user_factors, dtype=np.float32)
    user_mean, variance, square = np.empty(n_users), np.empty(n_users), np.empty(n_users)

    def work(start: int, stop: int, _: None) -> None:
        _moments(start, stop, factors, mean, covariance, user_mean, variance, square)

    run_over_blocks(work, n_users)
    # A user to whom all products are alike has no spread to divide by, and no opinion. Rounding
    # leaves a tiny variance there, relative to the scores themselves.
    spread = variance > 1e-12 * np.maximum(square * np.trace(covariance), 1e-30)
    spread &= model.knows_user
    inverse = np.zeros(n_users)
    inverse[spread] = 1.0 / np.sqrt(variance[spread])
    return inverse, user_mean


@njit(cache=True, nogil=True)
def _moments(
    start: int,
    stop: int,
    factors: np.ndarray,
    mean: np.ndarray,
    covariance: np.ndarray,
    user_mean: np.ndarray,
    variance: np.ndarray,
    square: np.ndarray,
) -> None:
    # Not a matrix product: the bits of a user's row must not depend on the rows beside it.
    n = len(mean)
    own, product = np.empty(n), np.empty(n)
    for user in range(start, stop):
        for f in range(n):
            own[f], product[f] = factors[user, f], 0.0
        # Columns side by side, four rows at a time: three times as fast as row by row.
        for f in range(0, n & ~3, 4):
            for g in range(n):
                product[g] += (own[f] * covariance[f, g] + own[f + 1] * covariance[f + 1, g]) + (
                    own[f + 2] * covariance[f + 2, g] + own[f + 3] * covariance[f + 3, g]
                )
        for f in range(n & ~3, n):
            for g in range(n):
                product[g] += own[f] * covariance[f, g]
        user_mean[user], variance[user] = inner(own, mean), inner(own, product)
        square[user] = inner(own, own)


def top_items(
    user_vectors: np.ndarray,
    item_vectors: np.ndarray,
    *,
    k: int,
    exclude: sp.csr_matrix | None,
    eligible: np.ndarray,
    block_bytes: int,
    progress: Progress,
    shifts: Shifts | None = None,
    parts: Sequence[slice] | None = None,
) -> np.ndarray:
    """The k eligible items of largest score for every user, exactly.

    A score is the inner product in double precision of the single-precision vectors, plus the
    shift if there is one.

    Args:
        user_vectors: `(n_users, d)` float32.
        item_vectors: `(n_items, d)` float32.
        k: Items a user.
        exclude: `(n_users, n_items)`, an entry is a product not to propose, indices sorted; None
            for none.
        eligible: `(n_items,)` bool.
        block_bytes: Most memory for the scores of all threads; 4 MB a core are best.
        progress: Told how many users are done.
        shifts: Added to the inner products; None for nothing.
        parts: All columns in pieces, each bounded by itself; None for one piece.

    Returns:
        `(n_users, k)` int32 item positions, best first, ties by position; `NOTHING` where the
        products ran out.
    """
    n_users = len(user_vectors)
    best = np.full((n_users, k), NOTHING, dtype=np.int32)
    if not eligible.any() or n_users == 0:
        return best
    if exclude is None:
        exclude = sp.csr_matrix((n_users, len(eligible)), dtype=np.float32)
    if shifts is None:
        shifts = Shifts(
            of_user=np.zeros((n_users, 1), np.float32),
            group_of_item=np.zeros(len(eligible), np.int32),
        )
    search = _Search(
        users=np.ascontiguousarray(user_vectors, dtype=np.float32),
        items=np.ascontiguousarray(item_vectors, dtype=np.float32),
        shifts=shifts,
        parts=parts or (slice(None),),
        exclude_indptr=exclude.indptr.astype(np.int64),
        exclude_indices=exclude.indices,
        eligible=eligible,
        k=k,
    )
    waiting, margin, n_done = np.arange(n_users), _MARGIN, 0
    while len(waiting):
        is_sure = np.zeros(len(waiting), dtype=bool)
        for done in search.run(waiting, margin, block_bytes, best, is_sure):
            progress(f"scored {n_done + done:,} of {n_done + len(waiting):,} users")
        n_done += int(is_sure.sum())
        waiting, margin = waiting[~is_sure], margin * _MORE
    return best


@dataclass(frozen=True)
class _Tile:
    """Some items of one group.

    Each has one of the rows of `longest`, `(n, n_parts)`, above the norms of its parts.
    """

    group: int
    longest: np.ndarray
    first_place: int
    item_of_column: np.ndarray
    # (d_first, n_columns), as the matrix product wants it.
    first: np.ndarray
    # (n_columns, d_rest), and the norms of its rows.
    rest: np.ndarray
    rest_norms: np.ndarray
    items: np.ndarray

    @cached_property
    def whole(self) -> np.ndarray:
        """`(d, n_columns)`: where there is a rest, few tiles are asked for it."""
        if self.rest.shape[1] == 0:
            return self.first
        return np.ascontiguousarray(self.items[self.item_of_column].T)


class _Search:
    """What all blocks of users share: the items in tiles, long ones first."""

    def __init__(
        self,
        *,
        users: np.ndarray,
        items: np.ndarray,
        shifts: Shifts,
        parts: Sequence[slice],
        exclude_indptr: np.ndarray,
        exclude_indices: np.ndarray,
        eligible: np.ndarray,
        k: int,
    ) -> None:
        self.users, self.items, self.shifts, self.k = users, items, shifts, k
        self.exclude_indptr, self.exclude_indices = exclude_indptr, exclude_indices
        self.n_eligible = int(eligible.sum())
        self.first_items = np.flatnonzero(eligible).astype(np.int32)
        # (n_users, n_parts) and (n_items, n_parts)
        self.user_norms, norms = (
            np.column_stack([_norms(vectors[:, part]) for part in parts])
            for vectors in (users, items)
        )
        # What most users' bounds fall with.
        mean_user_norms = self.user_norms.mean(axis=0)
        reach = norms @ mean_user_norms
        # The part with the widest reach is multiplied out first.
        first_part = int(np.argmax(norms.mean(axis=0) * mean_user_norms))
        first = parts[first_part]
        self.first_users = np.ascontiguousarray(users[:, first])
        self.rest_of_user, rest = (np.delete(each, first, axis=1) for each in (users, items))
        self.rest_norm_of_user, rest_norms = (
            _norms_above(np.delete(each, first_part, axis=1)) for each in (self.user_norms, norms)
        )
        # Until it turns out that too many pairs are left in reach.
        self.rest_apart = rest.shape[1] > 0
        # Places are columns, counted on through all tiles.
        self.place_of_item = np.full(len(items), -1, dtype=np.int32)
        self.tiles, n_placed = [], 0
        for group in range(shifts.of_user.shape[1]):
            members = np.flatnonzero(eligible & (shifts.group_of_item == group))
            members = members[np.lexsort((members, -reach[members]))].astype(np.int32)
            for start in range(0, len(members), _TILE):
                columns = members[start : start + _TILE]
                self.tiles.append(
                    _Tile(
                        group=group,
                        longest=_longest(norms[columns]),
                        first_place=n_placed,
                        item_of_column=columns,
                        first=np.ascontiguousarray(items[columns, first].T),
                        rest=rest[columns],
                        rest_norms=rest_norms[columns],
                        items=items,
                    )
                )
                self.place_of_item[columns] = np.arange(n_placed, n_placed + len(columns))
                n_placed += len(columns)
        # Whatever the group: what is met first decides how soon the others are out of reach.
        self.tiles.sort(key=lambda tile: -reach[tile.item_of_column[0]])
        # An inner product of d terms in single precision is off by no more than this share of the
        # norms' product (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, 3.1),
        # and adding the rest and the shift and rounding limits by no more than that of their sum.
        unit = np.finfo(np.float32).eps / 2
        whole_users, whole_items = (
            np.linalg.norm(each, axis=1) for each in (self.user_norms, norms)
        )
        error = (items.shape[1] + 6) * unit * whole_users * whole_items.max(initial=0.0)
        error += 3 * unit * np.abs(shifts.of_user).max(axis=1, initial=0.0)
        self.slack = (2 * error).astype(np.float32)

    def run(
        self,
        rows: np.ndarray,
        margin: int,
        block_bytes: int,
        best: np.ndarray,
        is_sure: np.ndarray,
    ) -> Iterator[int]:
        """Fill `best[rows]`; `is_sure[i]` tells whether the margin was enough for `rows[i]`."""
        n_places = min(self.k + margin, self.n_eligible)
        # A row has its scores of a tile and its candidates.
        bytes_per_row = 4 * _TILE + 8 * n_places
        most = max(1, block_bytes // n_threads() // bytes_per_row)

        def work(start: int, stop: int, scores: np.ndarray) -> None:
            self._block(rows[start:stop], n_places, scores, best, is_sure[start:stop])

        return over_blocks(
            work,
            len(rows),
            rows_per_block=min(_ROWS, most),
            scratch=lambda: np.empty(min(_ROWS, most) * _TILE + WORD, dtype=np.float32),
        )

    def _block(
        self,
        rows: np.ndarray,
        n_places: int,
        scores: np.ndarray,
        best: np.ndarray,
        is_sure: np.ndarray,
    ) -> None:
        n = len(rows)
        users = self.users[rows]
        found = _Found(
            score=np.empty((n, n_places), dtype=np.float32),
            item=np.empty((n, n_places), dtype=np.int32),
            n=np.zeros(n, dtype=np.int32),
            limit=np.full(n, -np.inf, dtype=np.float32),
        )
        is_sure[:] = True
        # Then everything has a place, and nothing is ever dropped.
        limit_is_fixed = n_places == self.n_eligible
        # Without a vector or a shift all scores are 0.
        is_open = self.slack[rows] > 0
        shift = self.shifts.of_user[rows]
        closed = np.flatnonzero(~is_open)
        norms, slack = self.user_norms[rows], self.slack[rows]
        active, vectors, is_whole = np.flatnonzero(is_open), users[is_open], True
        for place, tile in enumerate(self.tiles):
            bound = (norms @ tile.longest.T).max(axis=1) * 1.0001 + shift[:, tile.group]
            reaches = (bound >= found.limit) & is_open & is_sure
            n_left = int(reaches.sum())
            if n_left == 0:
                continue
            # The first tile finds a limit, which the whole score is needed for.
            whole = place == 0 or limit_is_fixed or not self.rest_apart
            # Leaving out a few rows saves less than copying the others costs.
            if (
                n_left < 0.9 * len(active)
                or n_left > reaches[active].sum()
                or whole is not is_whole
            ):
                active, is_whole = np.flatnonzero(reaches), whole
                vectors = users[active] if whole else self.first_users[rows[active]]
            width = len(tile.item_of_column)
            product = scores[: len(active) * width].reshape(len(active), width)
            np.matmul(vectors, tile.whole if whole else tile.first, out=product)
            n_asked = _collect(
                scores,
                tile.item_of_column,
                tile.first_place,
                self.place_of_item,
                active,
                rows,
                shift[:, tile.group],
                slack,
                self.exclude_indptr,
                self.exclude_indices,
                found.score,
                found.item,
                found.n,
                found.limit,
                self.k,
                limit_is_fixed,
                is_sure,
                whole,
                self.rest_of_user,
                self.rest_norm_of_user,
                tile.rest,
                tile.rest_norms,
            )
            # No list depends on it: either way is exact.
            if n_asked * _DEAR > product.size:
                self.rest_apart = False
        if not limit_is_fixed:
            _drop_all(self.k, slack, found.score, found.item, found.n, found.limit)
        _rank(
            users,
            self.items,
            self.shifts.group_of_item,
            shift,
            rows,
            found.item,
            found.n,
            is_sure,
            best,
        )
        for row in rows[closed]:
            self._take_first(row, best)

    def _take_first(self, row: int, best: np.ndarray) -> None:
        """A user without a vector: all scores are 0, so the first items are the best."""
        excluded = self.exclude_indices[self.exclude_indptr[row] : self.exclude_indptr[row + 1]]
        head = self.first_items[: self.k + len(excluded)]
        head = head[~np.isin(head, excluded)][: self.k]
        best[row, : len(head)] = head


@dataclass(frozen=True)
class _Found:
    """Candidates of a block of users, in no order: the first n[row] places of a row are filled."""

    score: np.ndarray
    item: np.ndarray
    n: np.ndarray
    limit: np.ndarray


def _norms(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))


def _norms_above(norms: np.ndarray) -> np.ndarray:
    """Norms of all parts together: in single precision, and certainly not below them."""
    return (np.linalg.norm(norms, axis=1) * 1.0001).astype(np.float32)


def _longest(norms: np.ndarray) -> np.ndarray:
    """Largest norms of each part among items that are alike in the first; one row for one part."""
    if norms.shape[1] == 1:
        return norms.max(axis=0, keepdims=True)
    by_first = norms[np.argsort(norms[:, 0])]
    return np.maximum.reduceat(by_first, np.arange(0, len(norms), _ALIKE), axis=0)


@njit(cache=True, nogil=True)
def _collect(
    scores: np.ndarray,
    item_of_column: np.ndarray,
    first_place: int,
    place_of_item: np.ndarray,
    active: np.ndarray,
    user_of_row: np.ndarray,
    shift: np.ndarray,
    slack: np.ndarray,
    exclude_indptr: np.ndarray,
    exclude_indices: np.ndarray,
    found_score: np.ndarray,
    found_item: np.ndarray,
    n_found: np.ndarray,
    limit: np.ndarray,
    k: int,
    limit_is_fixed: bool,
    is_sure: np.ndarray,
    is_whole: bool,
    rest_of_user: np.ndarray,
    rest_norm_of_user: np.ndarray,
    rest_of_column: np.ndarray,
    rest_norm_of_column: np.ndarray,
) -> int:
    """Keep the scores of a tile that may be among a user's k best.

    `scores` holds a row of as many scores as there are columns for each active user, and a word
    more that may be read. Unless they are the whole scores, what the rest of the vectors adds is
    asked for pair by pair; returned is for how many.
    """
    n_columns = len(item_of_column)
    longest_rest = rest_norm_of_column.max()
    n_asked = 0
    n_places = found_score.shape[1]
    heap = np.empty(k, dtype=np.float32)
    for i in range(len(active)):
        row = active[i]
        if not is_sure[row]:
            continue
        n_before = n_found[row]
        own_shift = shift[row]
        own_limit = limit[row] - own_shift
        user = user_of_row[row]
        rest_norm = np.float32(0) if is_whole else rest_norm_of_user[user]
        begin, end = exclude_indptr[user], exclude_indptr[user + 1]
        values = scores[i * n_columns : (i + 1) * n_columns]
        if own_limit == -np.inf and n_columns >= WORD and is_whole and not limit_is_fixed:
            for at in range(begin, end):
                column = place_of_item[exclude_indices[at]] - first_place
                if 0 <= column < n_columns:
                    values[column] = -np.inf
            own_limit = first_limit(values, heap) - slack[row]
        for first in range(0, n_columns, WORD):
            above = which_are_above(
                scores,
                i * n_columns + first,
                n_columns - first,
                own_limit - rest_norm * longest_rest,
            )
            while above:
                column = first + np.int64(lowest_bit(above))
                above &= above - ONE
                score = values[column]
                # The limit may have been raised.
                if not score + rest_norm * rest_norm_of_column[column] > own_limit:
                    continue
                item = item_of_column[column]
                low, high = begin, end
                while low < high:
                    middle = (low + high) >> 1
                    if exclude_indices[middle] < item:
                        low = middle + 1
                    else:
                        high = middle
                if low < end and exclude_indices[low] == item:
                    continue
                if not is_whole:
                    n_asked += 1
                    score += _quick_inner(rest_of_user[user], rest_of_column[column])
                    if not score > own_limit:
                        continue
                if n_found[row] == n_places:
                    _drop(row, k, slack[row], heap, found_score, found_item, n_found, limit)
                    if n_found[row] == n_places:
                        is_sure[row] = False
                        break
                    own_limit = limit[row] - own_shift
                    if not score > own_limit:
                        continue
                found_score[row, n_found[row]] = score + own_shift
                found_item[row, n_found[row]] = item
                n_found[row] += 1
            if not is_sure[row]:
                break
        n_kept = k + 8 if limit[row] > -np.inf else k - 1
        if n_found[row] > n_before and n_found[row] > n_kept and not limit_is_fixed:
            _drop(row, k, slack[row], heap, found_score, found_item, n_found, limit)
    return n_asked


@njit(cache=True, nogil=True)
def _drop(
    row: int,
    k: int,
    slack: float,
    heap: np.ndarray,
    found_score: np.ndarray,
    found_item: np.ndarray,
    n_found: np.ndarray,
    limit: np.ndarray,
) -> None:
    """Raise the limit to the k-th best score less the slack, and drop what is below it."""
    n = n_found[row]
    keep_largest(found_score[row, :n], heap)
    limit[row] = heap[0] - slack
    n_kept = 0
    for i in range(n):
        if found_score[row, i] >= limit[row]:
            found_score[row, n_kept] = found_score[row, i]
            found_item[row, n_kept] = found_item[row, i]
            n_kept += 1
    n_found[row] = n_kept


@njit(cache=True, nogil=True)
def _drop_all(
    k: int,
    slack: np.ndarray,
    found_score: np.ndarray,
    found_item: np.ndarray,
    n_found: np.ndarray,
    limit: np.ndarray,
) -> None:
    heap = np.empty(k, dtype=np.float32)
    for row in range(len(n_found)):
        if n_found[row] > k:
            _drop(row, k, slack[row], heap, found_score, found_item, n_found, limit)


@njit(cache=True, nogil=True)
def _rank(
    users: np.ndarray,
    items: np.ndarray,
    group_of_item: np.ndarray,
    shift: np.ndarray,
    user_of_row: np.ndarray,
    found_item: np.ndarray,
    n_found: np.ndarray,
    is_sure: np.ndarray,
    best: np.ndarray,
) -> None:
    """Score the candidates in double precision; write the best, ties by item."""
    k = best.shape[1]
    top_score = np.empty(k)
    for row in range(len(users)):
        if not is_sure[row]:
            continue
        top = best[user_of_row[row]]
        n_top = 0
        for i in range(n_found[row]):
            item = found_item[row, i]
            score = inner(users[row], items[item]) + np.float64(shift[row, group_of_item[item]])
            at = n_top
            while at > 0 and (
                top_score[at - 1] < score or (top_score[at - 1] == score and top[at - 1] > item)
            ):
                at -= 1
            if at == k:
                continue
            n_top = min(n_top + 1, k)
            for j in range(n_top - 1, at, -1):
                top_score[j] = top_score[j - 1]
                top[j] = top[j - 1]
            top_score[at] = score
            top[at] = item


def part_scores(blended: Blend, best: np.ndarray) -> np.ndarray:
    """Each model's own z-score for the chosen pairs, in double precision.

    Args:
        blended: The models.
        best: `(n_users, k)` int32 from `top_items`.

    Returns:
        `(n_models, n_users, k)` float64; NaN where the model knows nothing of the user or the
        product, or where `best` is `NOTHING`.
    """
    scores = np.empty((len(blended.parts), *best.shape))
    for i, (part, weight) in enumerate(zip(blended.parts, blended.weights, strict=True)):
        _all_pairs(
            np.ascontiguousarray(blended.user_vectors[:, part]),
            np.ascontiguousarray(blended.item_vectors[:, part]),
            blended.offsets[:, i].astype(np.float64),
            best,
            blended.knows_user[i],
            blended.knows_item[i],
            1.0 / weight if weight else 0.0,
            scores[i],
        )
    return scores


def _all_pairs(
    users: np.ndarray,
    items: np.ndarray,
    offset: np.ndarray,
    best: np.ndarray,
    knows_user: np.ndarray,
    knows_item: np.ndarray,
    factor: float,
    scores: np.ndarray,
) -> None:
    def work(start: int, stop: int, _: None) -> None:
        _pair_scores(
            users[start:stop],
            items,
            offset[start:stop],
            best[start:stop],
            knows_user[start:stop],
            knows_item,
            factor,
            scores[start:stop],
        )

    run_over_blocks(work, len(users))


@njit(cache=True, nogil=True)
def _pair_scores(
    users: np.ndarray,
    items: np.ndarray,
    offset: np.ndarray,
    best: np.ndarray,
    knows_user: np.ndarray,
    knows_item: np.ndarray,
    factor: float,
    scores: np.ndarray,
) -> None:
    n_rows, k = best.shape
    for row in range(n_rows):
        for i in range(k):
            item = best[row, i]
            if item < 0 or not knows_user[row] or not knows_item[item]:
                scores[row, i] = np.nan
            else:
                scores[row, i] = (inner(users[row], items[item]) + offset[row]) * factor


def nearest_items(
    vectors: np.ndarray,
    *,
    k: int,
    eligible: np.ndarray,
    block_bytes: int,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """For every item the k eligible items of the highest cosine, itself left out.

    Returns:
        `(n_items, k)` int32 positions (`NOTHING` where there is none or no likeness at all) and
        `(n_items, k)` float64 cosines.
    """
    unit = unit_rows(vectors)
    n_items = len(unit)
    itself = sp.csr_matrix(
        (np.ones(n_items, np.float32), np.arange(n_items), np.arange(n_items + 1)),
        shape=(n_items, n_items),
    )
    best = top_items(
        unit,
        unit,
        k=k,
        exclude=itself,
        eligible=eligible & vectors.any(axis=1),
        block_bytes=block_bytes,
        progress=progress,
    )
    cosines = np.empty(best.shape)
    everyone = np.ones(n_items, dtype=bool)
    _all_pairs(unit, unit, np.zeros(n_items), best, everyone, everyone, 1.0, cosines)
    best = np.where(cosines > 0, best, NOTHING).astype(np.int32)
    return best, cosines


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length one; rows of zeros stay zeros. Float32."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros(vectors.shape), where=norms > 0).astype(
        np.float32
    )
