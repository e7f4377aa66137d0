"""How good recommendations would have been: figures of lists, a number per user or per catalogue.

Models learn from what happened up to a day and are asked about what came after it, for all
users at once, so nothing leaks from the future (Meng et al., "Exploring Data Splitting
Strategies for the Evaluation of Recommendation Models", RecSys 2020). All products of the
catalogue are ranked; sampled negatives can turn the order of models round (Krichene & Rendle,
"On Sampled Metrics for Item Recommendation", KDD 2020).

Lists are `(n_users, k)` int32 item positions, best first, each product once, `NOTHING` for an
empty place, which counts as a miss. Here are the figures; which users and products they are
taken over is for `segments.py`, how sure they are for `intervals.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numba import njit

from ml_assets.scoring import NOTHING
from ml_assets.signal_matrix import scale_to_one
from ml_assets.threads import over_blocks, run_over_blocks

# How much of a list is looked at: what fits on a phone, a page, a list as published, and what a
# blend or a ranker chooses from.
CUTOFFS = (5, 10, 20, 50)
ACCURACY = ("precision", "recall", "ndcg", "map", "mrr", "hit_rate")


@dataclass(frozen=True)
class PerUser:
    """Figures of each user's list.

    Attributes:
        names: The figures, such as `recall@20`.
        values: `(n_users, len(names))` float64, NaN where a figure is not defined for the user.
    """

    names: tuple[str, ...]
    values: np.ndarray

    def only(self, is_in: np.ndarray) -> "PerUser":
        """The same, defined for these users alone. is_in: `(n_users,)` bool."""
        return PerUser(self.names, np.where(is_in[:, None], self.values, np.nan))

    def means(self) -> dict[str, float]:
        """Over the users for whom a figure is defined.

        Raises:
            ValueError: if there is no such user.
        """
        n_defined = (~np.isnan(self.values)).sum(axis=0)
        if not n_defined.all():
            raise ValueError(f"{self.names[int(n_defined.argmin())]} is defined for no user")
        means = np.nansum(self.values, axis=0) / n_defined
        return dict(zip(self.names, means.tolist(), strict=True))


def find(best: np.ndarray, relevant: sp.csr_matrix) -> np.ndarray:
    """Which entry of `relevant` each place of the lists is.

    Args:
        best: Lists.
        relevant: `(n_users, n_items)`, an entry is a product to find; indices sorted.

    Returns:
        `(n_users, k)` int32 positions in `relevant.data`, `NOTHING` for a miss.

    Raises:
        ValueError: if the indices are not sorted, or the users not as many.
    """
    if not relevant.has_sorted_indices:
        raise ValueError("the indices of relevant must be sorted: call its sort_indices()")
    if len(best) != relevant.shape[0]:
        raise ValueError(f"lists of {len(best)} users, answers of {relevant.shape[0]}")
    found = np.full(best.shape, NOTHING, dtype=np.int32)

    def work(start: int, stop: int, _: None) -> None:
        _find(start, stop, best, relevant.indptr, relevant.indices, found)

    run_over_blocks(work, len(best))
    return found


@njit(cache=True, nogil=True)
def _find(
    start: int,
    stop: int,
    best: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    found: np.ndarray,
) -> None:
    for row in range(start, stop):
        first = indptr[row]
        wanted = indices[first : indptr[row + 1]]
        for place in range(best.shape[1]):
            item = best[row, place]
            if item < 0:
                continue
            at = np.searchsorted(wanted, item)
            if at < len(wanted) and wanted[at] == item:
                found[row, place] = first + at


def accuracy(
    found: np.ndarray,
    relevant: sp.csr_matrix,
    *,
    counts: np.ndarray | None = None,
    cutoffs: tuple[int, ...] = CUTOFFS,
) -> PerUser:
    """What was found, by the number of places looked at. NaN for users with nothing to find.

    With n products to find, and a hit a place that holds one of them:

    - `precision@k`: hits / k, however short the list.
    - `recall@k`: hits / n.
    - `ndcg@k`: binary gains, discount `1 / log2(rank + 1)`, divided by what the best list would
      have, min(k, n) hits in front (Järvelin & Kekäläinen, "Cumulated Gain-Based Evaluation of IR
      Techniques", TOIS 2002).
    - `map@k`: the sum of precision@rank over the ranks of hits, / n (Manning, Raghavan & Schütze,
      "Introduction to Information Retrieval", 2008, 8.4): like recall it cannot reach 1 where
      n > k. Others divide by min(k, n) or k.
    - `mrr@k`: 1 / rank of the first hit, 0 without one.
    - `hit_rate@k`: 1 with a hit, 0 without.

    Args:
        found: From `find`.
        relevant: The same as there.
        counts: `(n_entries,)` bool, which entries of `relevant` are asked about; None for all.
            Places of the others are misses.
        cutoffs: The k, rising.

    Raises:
        ValueError: if lists are shorter than the last cut-off.
    """
    if counts is None:
        counts = np.ones(relevant.nnz, dtype=np.bool_)
    ks = _checked(cutoffs, found)
    discount = 1.0 / np.log2(np.arange(2, ks[-1] + 2))
    ideal = np.cumsum(discount)
    values = np.empty((len(found), len(ks) * len(ACCURACY)))

    def work(start: int, stop: int, _: None) -> None:
        _accuracy(start, stop, found, relevant.indptr, counts, discount, ideal, ks, values)

    run_over_blocks(work, len(found))
    return PerUser(tuple(f"{name}@{k}" for k in cutoffs for name in ACCURACY), values)


def _checked(cutoffs: tuple[int, ...], lists: np.ndarray) -> np.ndarray:
    if lists.shape[1] < cutoffs[-1]:
        raise ValueError(f"lists of {lists.shape[1]} places cannot be judged at {cutoffs[-1]}")
    return np.array(cutoffs, dtype=np.int64)


@njit(cache=True, nogil=True)
def _accuracy(
    start: int,
    stop: int,
    found: np.ndarray,
    indptr: np.ndarray,
    counts: np.ndarray,
    discount: np.ndarray,
    ideal: np.ndarray,
    cutoffs: np.ndarray,
    values: np.ndarray,
) -> None:
    for row in range(start, stop):
        n_relevant = 0
        for at in range(indptr[row], indptr[row + 1]):
            n_relevant += counts[at]
        if n_relevant == 0:
            values[row] = np.nan
            continue
        n_hits, gain, precisions, first, column, cut = 0, 0.0, 0.0, 0.0, 0, 0
        for place in range(cutoffs[-1]):
            at = found[row, place]
            if at >= 0 and counts[at]:
                n_hits += 1
                gain += discount[place]
                precisions += n_hits / (place + 1)
                if n_hits == 1:
                    first = 1.0 / (place + 1)
            k = place + 1
            if k == cutoffs[cut]:
                values[row, column] = n_hits / k
                values[row, column + 1] = n_hits / n_relevant
                values[row, column + 2] = gain / ideal[min(k, n_relevant) - 1]
                values[row, column + 3] = precisions / n_relevant
                values[row, column + 4] = first
                values[row, column + 5] = n_hits > 0
                column += 6
                cut += 1


def self_information(touched: sp.csr_matrix) -> np.ndarray:
    """How surprising it is that a user touched a product: -log2 of the share of users who did.

    Args:
        touched: `(n_users, n_items)`, an entry is a product a user touched before the fold. Users
            without any are not counted.

    Returns:
        `(n_items,)` float64, in bits; a product that nobody touched counts as touched by one.
    """
    n_users = max(1, int((np.diff(touched.indptr) > 0).sum()))
    touched_by = np.bincount(touched.indices, minlength=touched.shape[1])
    return -np.log2(np.maximum(touched_by, 1) / n_users)


def novelty(
    best: np.ndarray, information: np.ndarray, *, cutoffs: tuple[int, ...] = CUTOFFS
) -> PerUser:
    """Mean self-information of what is shown, in bits; NaN for an empty list.

    Zhou et al., "Solving the Apparent Diversity-Accuracy Dilemma of Recommender Systems" (PNAS
    2010); popularity is the number of users who touched the product before the fold.

    Args:
        best: Lists.
        information: From `self_information`.
        cutoffs: See `accuracy`.
    """
    return mean_of_places("novelty", best, information, cutoffs=cutoffs)


def mean_of_places(
    name: str, best: np.ndarray, of_item: np.ndarray, *, cutoffs: tuple[int, ...] = CUTOFFS
) -> PerUser:
    """Mean of a number of each product shown; NaN for an empty list.

    Args:
        name: Of the figure.
        best: Lists.
        of_item: `(n_items,)` float64, the number.
        cutoffs: See `accuracy`.
    """
    return _means_of_places(name, best, lambda start, stop: of_item[best[start:stop]], cutoffs)


def fallback_share(
    best: np.ndarray, is_fallback: np.ndarray, *, cutoffs: tuple[int, ...] = CUTOFFS
) -> PerUser:
    """Share of the rows shown that the fallback chain filled; NaN for an empty list.

    Args:
        best: Lists.
        is_fallback: `(n_users, k)` bool.
        cutoffs: See `accuracy`.
    """
    return _means_of_places(
        "fallback_share", best, lambda start, stop: is_fallback[start:stop], cutoffs
    )


def _means_of_places(
    name: str,
    best: np.ndarray,
    of_places: Callable[[int, int], np.ndarray],
    cutoffs: tuple[int, ...],
) -> PerUser:
    last = _checked(cutoffs, best) - 1
    values = np.empty((len(best), len(cutoffs)))

    def work(start: int, stop: int, _: None) -> None:
        is_there = best[start:stop] != NOTHING
        sums = np.cumsum(np.where(is_there, of_places(start, stop), 0.0), axis=1)[:, last]
        n_there = np.cumsum(is_there, axis=1)[:, last]
        values[start:stop] = np.divide(
            sums, n_there, out=np.full(sums.shape, np.nan), where=n_there > 0
        )

    run_over_blocks(work, len(best))
    return PerUser(tuple(f"{name}@{k}" for k in cutoffs), values)


def diversity(
    best: np.ndarray, vectors: sp.csr_matrix, *, cutoffs: tuple[int, ...] = CUTOFFS
) -> PerUser:
    """Mean of 1 - cosine over all pairs of products on a list.

    Intra-list diversity after Ziegler et al., "Improving Recommendation Lists Through Topic
    Diversification" (WWW 2005). Products without a vector have no part in it; NaN where fewer
    than two are left.

    Args:
        best: Lists.
        vectors: `(n_items, d)`, of any length: TF-IDF, a one per category, or dense vectors as a
            matrix. An empty row is a product nothing is known about.
        cutoffs: See `accuracy`.

    Memory: 8 bytes x d a thread, and a copy of the vectors in double precision.
    """
    ks = _checked(cutoffs, best)
    scale = scale_to_one(vectors)
    unit = vectors.data * np.repeat(scale, np.diff(vectors.indptr))
    values = np.empty((len(best), len(ks)))

    def work(start: int, stop: int, total: np.ndarray) -> None:
        _diversity(
            start, stop, best, vectors.indptr, vectors.indices, unit, scale, ks, total, values
        )

    blocks = over_blocks(work, len(best), scratch=lambda: np.zeros(vectors.shape[1]))
    for _ in blocks:
        pass
    return PerUser(tuple(f"diversity@{k}" for k in cutoffs), values)


@njit(cache=True, nogil=True)
def _diversity(
    start: int,
    stop: int,
    best: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    unit: np.ndarray,
    scale: np.ndarray,
    cutoffs: np.ndarray,
    total: np.ndarray,
    values: np.ndarray,
) -> None:
    # A product's cosines with all before it on the list are one inner product with their sum.
    for row in range(start, stop):
        n, alike, cut = 0, 0.0, 0
        for place in range(cutoffs[-1]):
            item = best[row, place]
            if item >= 0 and scale[item] > 0:
                for at in range(indptr[item], indptr[item + 1]):
                    alike += unit[at] * total[indices[at]]
                for at in range(indptr[item], indptr[item + 1]):
                    total[indices[at]] += unit[at]
                n += 1
            if place + 1 == cutoffs[cut]:
                values[row, cut] = 1.0 - alike / (n * (n - 1) / 2) if n > 1 else np.nan
                cut += 1
        for place in range(cutoffs[-1]):
            item = best[row, place]
            if item >= 0:
                for at in range(indptr[item], indptr[item + 1]):
                    total[indices[at]] = 0.0


def catalogue_figures(
    best: np.ndarray, eligible: np.ndarray, *, cutoffs: tuple[int, ...] = CUTOFFS
) -> dict[str, float]:
    """What all lists together show of the catalogue.

    - `coverage@k`: share of the eligible products that anyone was shown.
    - `gini@k`: inequality of how often each eligible product is shown, 0 when all are alike and
      nearly 1 when all lists are the same (Fleder & Hosanagar, "Blockbuster Culture's Next Rise
      or Fall", Management Science 2009). Left out where none is shown.

    Neither is a mean over users, and a resample of the users shows fewer products than they do,
    so there are no bootstrap intervals of them.

    Args:
        best: Lists; products that are not eligible are passed over.
        eligible: `(n_items,)` bool, what could have been shown.
        cutoffs: See `accuracy`.

    Raises:
        ValueError: if the lists are shorter than the last cut-off.
    """
    _checked(cutoffs, best)
    figures: dict[str, float] = {}
    shown, before = np.zeros(len(eligible), dtype=np.int64), 0
    for k in cutoffs:
        items = best[:, before:k]
        shown += np.bincount(items[items != NOTHING], minlength=len(eligible))
        before = k
        figures[f"coverage@{k}"] = float((shown[eligible] > 0).sum() / eligible.sum())
        if shown[eligible].any():
            figures[f"gini@{k}"] = gini(shown[eligible])
    return figures


def gini(numbers: np.ndarray) -> float:
    """Half the mean difference of all pairs, relative to the mean: `(n,)` numbers from 0 up.

    Raises:
        ValueError: if all are 0.
    """
    total = numbers.sum()
    if total == 0:
        raise ValueError("inequality of nothing: all numbers are 0")
    n = len(numbers)
    return float(((2 * np.arange(1, n + 1) - n - 1) * np.sort(numbers)).sum() / (n * total))
