"""Item-item models of the literature: nearest neighbours, random walks, and a regression.

Scores are history x W. All of them learn from `learning.Taste`, and column i of W is multiplied
by `Taste.season`, so that what is going out of season is proposed less.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.linalg import lapack
from threadpoolctl import threadpool_limits

from ml_assets.item_item import ItemItemModel, largest_of_blocks, largest_products
from ml_assets.learning import (
    by_history,
    bytes_of_copies,
    bytes_of_neighbours,
    power,
    require_memory,
    require_memory_of_neighbours,
    scaled_rows,
    taste_of,
)
from ml_assets.signal_matrix import SignalMatrix, TooLittleDataError
from ml_assets.threads import n_threads

KNN_WEIGHTINGS = ("cosine", "bm25", "tfidf")
# The usual ones of Robertson & Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond"
# (2009), and implicit's.
_BM25_K1, _BM25_B = 1.2, 0.75
_ROWS_PER_BLOCK = 256


def fit_item_knn(signals: SignalMatrix, *, settings: Mapping[str, Any], seed: int) -> ItemItemModel:
    """Nearest neighbours: W[j, i] is how alike the columns of products j and i are.

    After Sarwar et al., "Item-Based Collaborative Filtering Recommendation Algorithms" (WWW
    2001), with the weightings of the `implicit` library: cosines of R, the square roots of
    `training_history`; or, of `training_history` itself, cosines of TF-IDF weights or inner
    products of BM25 weights, a product being a text and its users the words of it.

    Memory: 18 bytes x neighbours x products and 48 x signals, beside the signals.

    Args:
        signals: Rows without signals stay without an opinion.
        settings: `neighbours`, `knn_weighting`, one of `KNN_WEIGHTINGS`, `memory_megabytes`.
        seed: Unused; nothing is random.

    Raises:
        TooLittleDataError: below two users or two products to learn from.
        TooMuchMemoryError: if it would need more than `memory_megabytes`.
        ValueError: for a weighting that there is not.
    """
    taste = taste_of("The item-kNN model", signals)
    require_memory_of_neighbours("The item-kNN model", taste, settings, each=48)
    weighting = settings["knn_weighting"]
    if weighting not in KNN_WEIGHTINGS:
        raise ValueError(
            f"there is no weighting {weighting!r}; choose one of {', '.join(KNN_WEIGHTINGS)}"
        )
    if weighting == "cosine":
        weighted = taste.matrix
    else:
        # Imported here: implicit takes seconds to import, and most processes never train.
        from implicit.nearest_neighbours import bm25_weight, tfidf_weight

        by_item = signals.training_history.T
        by_item = (
            tfidf_weight(by_item)
            if weighting == "tfidf"
            else bm25_weight(by_item, K1=_BM25_K1, B=_BM25_B)
        )
        # The logarithm of a user who touched everything is below 0: says nothing.
        weighted = sp.csr_matrix(by_item.T.maximum(0), dtype=np.float32)
        weighted.sort_indices()
    length = np.ones(taste.matrix.shape[1])
    if weighting != "bm25":
        length = np.sqrt(np.asarray(weighted.power(2).sum(axis=0, dtype=np.float64)).ravel())
    follows = largest_products(
        weighted,
        weighted,
        source_scale=power(length, -1).astype(np.float32),
        target_scale=(power(length, -1) * taste.season).astype(np.float32),
        k=settings["neighbours"],
    )
    return by_history(signals, taste, follows)


def fit_rp3beta(signals: SignalMatrix, *, settings: Mapping[str, Any], seed: int) -> ItemItemModel:
    """Walks of three steps, popular products held back: RP3beta.

        W[j, i] = d_i^-b sum over u of (r_uj / d_j)^a (r_ui / d_u)^a

    with r the square roots of `training_history` and d its row and column sums, after Paudel et
    al., "Updatable, Accurate, Diverse, and Scalable Recommendations for Interactive Applications"
    (TiiS 2017): the chance of a walk from product j by a user to product i.

    Memory: 18 bytes x neighbours x products and 32 x signals, beside the signals.

    Args:
        signals: Rows without signals stay without an opinion.
        settings: `neighbours`, `walk_power` a, `walk_popularity_power` b, `memory_megabytes`.
        seed: Unused; nothing is random.

    Raises:
        TooLittleDataError: below two users or two products to learn from.
        TooMuchMemoryError: if it would need more than `memory_megabytes`.
    """
    taste = taste_of("RP3beta", signals)
    require_memory_of_neighbours("RP3beta", taste, settings)
    walk, popularity = settings["walk_power"], settings["walk_popularity_power"]
    sources = taste.matrix.power(walk).astype(np.float32)
    follows = largest_products(
        sources,
        scaled_rows(sources, power(taste.user_degree, -walk).astype(np.float32)),
        source_scale=power(taste.item_degree, -walk).astype(np.float32),
        target_scale=(power(taste.item_degree, -popularity) * taste.season).astype(np.float32),
        k=settings["neighbours"],
    )
    return by_history(signals, taste, follows)


def fit_ease(signals: SignalMatrix, *, settings: Mapping[str, Any], seed: int) -> ItemItemModel:
    """A regression of every product on all others, in closed form: EASE.

        B = I - C diag(C)^-1,  C = (R'R + g I)^-1

    with R the square roots of `training_history`, after Steck, "Embarrassingly Shallow
    Autoencoders for Sparse Data" (WWW 2019). g is in mean squares of the entries of R, so that a
    value carries over from one shop to another.

    Memory: 8 bytes x products^2 for the inverse, 18 x neighbours x products, 48 x signals, and
    for each thread 20 x 256 x products, beside the signals; of the squared products those count
    that somebody touched. Time: products^3 multiplications on one core, half a minute for 12,000
    products.

    Args:
        signals: Rows without signals stay without an opinion.
        settings: `neighbours`, `ease_regularization` g, `memory_megabytes`.
        seed: Unused; nothing is random.

    Raises:
        TooLittleDataError: below two users or two products to learn from.
        TooMuchMemoryError: if it would need more than `memory_megabytes`.
    """
    taste = taste_of("EASE", signals)
    known = np.flatnonzero(taste.is_known)
    n_known, n_items = len(known), len(taste.is_known)
    require_memory(
        "EASE",
        8 * n_known**2
        + bytes_of_neighbours(n_items, settings)
        + bytes_of_copies(taste.matrix, each=48)
        + n_threads() * 20 * _ROWS_PER_BLOCK * n_items,
        settings,
        advice="choose item_item or graph_filter, which need no square of the products",
    )
    ratings = sp.csr_matrix(taste.matrix[:, known], dtype=np.float64)
    inverse = _inverse(ratings, settings["ease_regularization"] * float((ratings.data**2).mean()))
    to_known = np.full(n_items, n_known)
    to_known[known] = np.arange(n_known)
    by_target = -taste.season[known] / np.diag(inverse)

    def rows(start: int, stop: int, made: np.ndarray) -> np.ndarray:
        made[:] = 0
        places = start + np.flatnonzero(taste.is_known[start:stop])
        made[(places - start)[:, None], known] = inverse[to_known[places]] * by_target
        return made[: stop - start]

    follows = largest_of_blocks(
        rows,
        n_items,
        k=settings["neighbours"],
        rows_per_block=_ROWS_PER_BLOCK,
        scratch=lambda: np.empty((_ROWS_PER_BLOCK, n_items), np.float32),
    )
    return by_history(signals, taste, follows)


def _inverse(ratings: sp.csr_matrix, diagonal: float) -> np.ndarray:
    """The inverse of `ratings' ratings + diagonal I`, float64, in the memory of one such matrix."""
    n = ratings.shape[1]
    by_item = sp.csr_matrix(ratings.T)
    gram = np.empty((n, n))
    for start in range(0, n, _ROWS_PER_BLOCK):
        block = slice(start, start + _ROWS_PER_BLOCK)
        gram[block] = (by_item[block] @ ratings).toarray()
    gram[np.diag_indices(n)] += diagonal
    # One thread: with more, the last bits depend on how the work was split. The transpose is in
    # the order that LAPACK works on in place, and the matrix is its own transpose.
    with threadpool_limits(1, "blas"):
        root, failed = lapack.dpotrf(gram.T, lower=True, overwrite_a=True)
        if not failed:
            inverse, failed = lapack.dpotri(root, lower=True, overwrite_c=True)
    if failed:
        raise TooLittleDataError(
            "EASE has no inverse, since some products have the same users: raise "
            "ease_regularization"
        )
    # Only the lower half was written.
    for start in range(0, n, _ROWS_PER_BLOCK):
        stop = start + _ROWS_PER_BLOCK
        lower = np.tril(inverse[start:stop, start:stop])
        inverse[start:stop, start:stop] = lower + np.tril(lower, -1).T
        inverse[start:stop, stop:] = inverse[stop:, start:stop].T
    return np.ascontiguousarray(inverse.T)
