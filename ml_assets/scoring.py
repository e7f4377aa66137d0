"""Every user's best products by inner product: blocks of users, bounded memory, exact.

A block is one matrix product followed by one pass of selection. Nothing of the size users x
products is ever held: a block takes `n_rows x n_items` floats, and the rows per block follow
from the memory it is given.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numba import njit, prange

from ml_assets.models import FactorModel

NOTHING = -1
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Blend:
    """Models on one scale, folded into one inner product.

    With `z = (score - mean) / deviation` per user, `w_1 z_1 + w_2 z_2` is linear in the item
    vectors, and so it is itself the inner product of longer vectors.

    Attributes:
        user_vectors: `(n_users, d)` float32, the weights already in it.
        item_vectors: `(n_items, d)` float32.
        parts: For each model, the columns of the vectors that are its own.
        weights: For each model, its weight in the sum.
        knows_user: For each model, `(n_users,)` bool.
        knows_item: For each model, `(n_items,)` bool.
    """

    user_vectors: np.ndarray
    item_vectors: np.ndarray
    parts: tuple[slice, ...]
    weights: tuple[float, ...]
    knows_user: tuple[np.ndarray, ...]
    knows_item: tuple[np.ndarray, ...]


def blend(models: list[tuple[FactorModel, float]], *, eligible: np.ndarray) -> Blend:
    """Put models on one scale per user and add them with their weights.

    Mean and deviation of a user's scores follow from the mean and the covariance of the item
    vectors; nothing needs to be scored for them. A product a model does not know gets 0 from
    it, the mean: no opinion. So does a user.

    Args:
        models: Each with its weight.
        eligible: `(n_items,)` bool, the products over which mean and deviation are taken.
    """
    users, items, parts, offset = [], [], [], 0
    for model, weight in models:
        scaled, shifted = _standardise(model, eligible)
        users.append(np.float32(weight) * scaled)
        items.append(shifted)
        parts.append(slice(offset, offset + shifted.shape[1]))
        offset += shifted.shape[1]
    return Blend(
        user_vectors=np.ascontiguousarray(np.hstack(users)),
        item_vectors=np.ascontiguousarray(np.hstack(items)),
        parts=tuple(parts),
        weights=tuple(weight for _, weight in models),
        knows_user=tuple(model.knows_user for model, _ in models),
        knows_item=tuple(model.knows_item for model, _ in models),
    )


def _standardise(model: FactorModel, eligible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors, one column longer, whose inner products are the model's z-scores."""
    known = model.knows_item & eligible
    vectors = model.item_factors[known].astype(np.float64)
    n_users = len(model.user_factors)
    if len(vectors) == 0:
        return np.zeros((n_users, 1), np.float32), np.zeros((len(eligible), 1), np.float32)
    mean = vectors.mean(axis=0)
    centred = vectors - mean
    covariance = centred.T @ centred / len(vectors)
    factors = model.user_factors.astype(np.float64)
    user_mean = factors @ mean
    variance = np.einsum("uf,uf->u", factors @ covariance, factors)
    # A user to whom all products are alike has no spread to divide by, and no opinion. Rounding
    # leaves a tiny variance there, relative to the scores themselves.
    scale_of_scores = np.einsum("uf,uf->u", factors, factors) * np.trace(covariance)
    spread = variance > 1e-12 * np.maximum(scale_of_scores, 1e-30)
    spread &= model.knows_user
    inverse = np.zeros(n_users)
    inverse[spread] = 1.0 / np.sqrt(variance[spread])
    users = np.column_stack([factors * inverse[:, None], -user_mean * inverse])
    items = np.column_stack([model.item_factors, np.ones(len(eligible))])
    items[~model.knows_item] = 0.0
    return users.astype(np.float32), items.astype(np.float32)


def top_items(
    user_vectors: np.ndarray,
    item_vectors: np.ndarray,
    *,
    k: int,
    exclude: sp.csr_matrix | None,
    eligible: np.ndarray,
    block_bytes: int,
    progress: Progress,
) -> np.ndarray:
    """The k eligible items of largest inner product for every user.

    Args:
        user_vectors: `(n_users, d)` float32.
        item_vectors: `(n_items, d)` float32.
        k: Items a user.
        exclude: `(n_users, n_items)`, an entry is a product not to propose; None for none.
        eligible: `(n_items,)` bool.
        block_bytes: Memory for one block of scores.
        progress: Told how many users are done.

    Returns:
        `(n_users, k)` int32 item positions, best first, ties by position; `NOTHING` where the
        products ran out.
    """
    n_users = len(user_vectors)
    best = np.full((n_users, k), NOTHING, dtype=np.int32)
    columns = np.flatnonzero(eligible).astype(np.int32)
    if len(columns) == 0 or n_users == 0:
        return best
    if exclude is None:
        exclude = sp.csr_matrix((n_users, len(eligible)), dtype=np.float32)
    column_of_item = np.full(len(eligible), NOTHING, dtype=np.int32)
    column_of_item[columns] = np.arange(len(columns), dtype=np.int32)
    items = np.ascontiguousarray(item_vectors[columns].T)
    for block in blocks(n_users, bytes_per_row=4 * len(columns), block_bytes=block_bytes):
        scores = user_vectors[block] @ items
        _select(
            scores,
            exclude.indptr[block.start : block.stop + 1].astype(np.int64),
            exclude.indices,
            column_of_item,
            columns,
            best[block],
        )
        progress(f"scored {block.stop:,} of {n_users:,} users")
    return best


def blocks(n_rows: int, *, bytes_per_row: int, block_bytes: int) -> Iterator[slice]:
    """Consecutive slices of rows, none above `block_bytes` (but at least one row)."""
    size = max(1, block_bytes // max(1, bytes_per_row))
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


@njit(parallel=True, cache=True)
def _select(
    scores: np.ndarray,
    exclude_indptr: np.ndarray,
    exclude_indices: np.ndarray,
    column_of_item: np.ndarray,
    item_of_column: np.ndarray,
    best: np.ndarray,
) -> None:
    n_rows, n_columns = scores.shape
    k = best.shape[1]
    for row in prange(n_rows):
        values = scores[row]
        for at in range(exclude_indptr[row], exclude_indptr[row + 1]):
            column = column_of_item[exclude_indices[at]]
            if column >= 0:
                values[column] = -np.inf
        # A min-heap of the k best so far; the root is the worst of them. Columns come in
        # ascending order and only a strictly better score enters, so ties keep the first.
        heap_score = np.full(k, -np.inf, dtype=np.float32)
        heap_column = np.full(k, n_columns, dtype=np.int32)
        for column in range(n_columns):
            score = values[column]
            if score > heap_score[0]:
                at = 0
                while True:
                    child = 2 * at + 1
                    if child >= k:
                        break
                    right = child + 1
                    if right < k and (
                        heap_score[right] < heap_score[child]
                        or (
                            heap_score[right] == heap_score[child]
                            and heap_column[right] > heap_column[child]
                        )
                    ):
                        child = right
                    if heap_score[child] < score or (
                        heap_score[child] == score and heap_column[child] > column
                    ):
                        heap_score[at] = heap_score[child]
                        heap_column[at] = heap_column[child]
                        at = child
                    else:
                        break
                heap_score[at] = score
                heap_column[at] = column
        # Insertion sort, best first: k is small.
        for i in range(1, k):
            score = heap_score[i]
            column = heap_column[i]
            j = i - 1
            while j >= 0 and (
                heap_score[j] < score or (heap_score[j] == score and heap_column[j] > column)
            ):
                heap_score[j + 1] = heap_score[j]
                heap_column[j + 1] = heap_column[j]
                j -= 1
            heap_score[j + 1] = score
            heap_column[j + 1] = column
        for i in range(k):
            if heap_column[i] < n_columns:
                best[row, i] = item_of_column[heap_column[i]]


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
        _pair_scores(
            blended.user_vectors[:, part],
            blended.item_vectors[:, part],
            best,
            blended.knows_user[i],
            blended.knows_item[i],
            1.0 / weight if weight else 0.0,
            scores[i],
        )
    return scores


@njit(parallel=True, cache=True)
def _pair_scores(
    users: np.ndarray,
    items: np.ndarray,
    best: np.ndarray,
    knows_user: np.ndarray,
    knows_item: np.ndarray,
    factor: float,
    scores: np.ndarray,
) -> None:
    n_rows, k = best.shape
    d = users.shape[1]
    for row in prange(n_rows):
        for i in range(k):
            item = best[row, i]
            if item < 0 or not knows_user[row] or not knows_item[item]:
                scores[row, i] = np.nan
                continue
            total = 0.0
            for f in range(d):
                total += float(users[row, f]) * float(items[item, f])
            scores[row, i] = total * factor


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
    _pair_scores(unit, unit, best, everyone, everyone, 1.0, cosines)
    best = np.where(cosines > 0, best, NOTHING).astype(np.int32)
    return best, cosines


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length one; rows of zeros stay zeros. Float32."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros(vectors.shape), where=norms > 0).astype(
        np.float32
    )
