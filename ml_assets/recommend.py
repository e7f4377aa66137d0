"""From models to lists: candidates of the blend, the fallback chain, a reason for each row."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import scipy.sparse as sp
from numba import njit, prange

from ml_assets.fallback import CHAIN, arrange_popularity, fill_lists
from ml_assets.frames import CANDIDATES, RECOMMENDATIONS, SIMILAR_PRODUCTS
from ml_assets.models import FactorModel
from ml_assets.scoring import (
    NOTHING,
    Blend,
    Progress,
    blend,
    nearest_items,
    part_scores,
    top_items,
    unit_rows,
)
from ml_assets.signal_matrix import (
    BOUGHT,
    LOOKED_AT,
    PUT_IN_CART,
    SignalMatrix,
    available_items,
)

REASONS = {
    BOUGHT: "Because you bought ",
    PUT_IN_CART: "Because you put in your cart ",
    LOOKED_AT: "Because you looked at ",
}


@dataclass(frozen=True)
class Hybrid:
    """The models that could be fitted, each with its weight; either may be missing."""

    cf: FactorModel | None
    content: FactorModel | None
    w_cf: float
    w_content: float

    def blended(self, *, eligible: np.ndarray) -> Blend | None:
        """Both on one scale; None when there is no model at all."""
        models = [
            (model, weight)
            for model, weight in ((self.cf, self.w_cf), (self.content, self.w_content))
            if model is not None
        ]
        return blend(models, eligible=eligible) if models else None


@dataclass(frozen=True)
class Lists:
    """The best products of every user by the blend.

    Attributes:
        items: `(n_users, k)` int32, best first, `NOTHING` at the end where there were fewer.
        score: `(n_users, k)` float64, the weighted sum of the two below.
        cf: `(n_users, k)` float64 z-score, NaN where the model has no opinion.
        content: Likewise.
    """

    items: np.ndarray
    score: np.ndarray
    cf: np.ndarray
    content: np.ndarray


def propose(
    hybrid: Hybrid,
    *,
    k: int,
    exclude: sp.csr_matrix,
    eligible: np.ndarray,
    block_bytes: int,
    progress: Progress,
) -> Lists:
    """The k best products of every user by `w_cf x z(CF) + w_content x z(content)`.

    Products of which no model knows anything are not proposed; a user of whom no model knows
    anything gets an empty list. The final order is by the score in double precision, ties by
    product, so that adding up the published parts in SQL gives the published score.
    """
    nan = np.full((exclude.shape[0], k), np.nan)
    blended = hybrid.blended(eligible=eligible)
    if blended is None:
        return Lists(np.full(nan.shape, NOTHING, np.int32), nan, nan, nan)
    knows_item = np.logical_or.reduce(blended.knows_item)
    best = top_items(
        blended.user_vectors,
        blended.item_vectors,
        k=k,
        exclude=exclude,
        eligible=eligible & knows_item,
        block_bytes=block_bytes,
        progress=progress,
    )
    best[~np.logical_or.reduce(blended.knows_user)] = NOTHING
    parts = iter(part_scores(blended, best))
    cf = next(parts) if hybrid.cf is not None else nan
    content = next(parts) if hybrid.content is not None else nan
    score = hybrid.w_cf * np.nan_to_num(cf) + hybrid.w_content * np.nan_to_num(content)
    # An empty place sorts last and has no score.
    score[best == NOTHING] = -np.inf
    order = np.lexsort((best, -score), axis=1)
    return Lists(
        *(np.take_along_axis(array, order, axis=1) for array in (best, score, cf, content))
    )


def candidate_frame(lists: Lists, matrix: SignalMatrix) -> pl.DataFrame:
    """CANDIDATES: what the blend proposes, best first."""
    rows, columns = np.nonzero(lists.items != NOTHING)
    source = np.where(np.isnan(lists.cf[rows, columns]), 1, 0)
    return pl.DataFrame(
        {
            "user_id": matrix.user_ids.gather(rows),
            "rank": (columns + 1).astype(np.int32),
            "product_id": matrix.product_ids.gather(lists.items[rows, columns]),
            "score": lists.score[rows, columns],
            "cf_score": _null_for_nan(lists.cf[rows, columns]),
            "content_score": _null_for_nan(lists.content[rows, columns]),
            "source": pl.Series(["hybrid", "content"]).gather(source),
        }
    ).match_to_schema(CANDIDATES)


def recommend(
    lists: Lists,
    *,
    matrix: SignalMatrix,
    hybrid: Hybrid,
    users: pl.DataFrame,
    products: pl.DataFrame,
    popularity: pl.DataFrame,
    top_n: int,
) -> pl.DataFrame:
    """Exactly `top_n` explained rows for every user, or all that the shop has left for them.

    Rows of the fallback chain follow the models' rows. They carry no model's opinion; their
    score only says that they come later: one below the last model row (or below 0, the mean of
    all products, if that is lower), and one less each.

    Args:
        lists: From `propose`, at least `top_n` wide.
        matrix: Gives order and history of users.
        hybrid: The models, for the reasons.
        users: USERS.
        products: PRODUCTS.
        popularity: POPULARITY.
        top_n: Rows a user.

    Returns:
        RECOMMENDATIONS, sorted by user and rank.
    """
    filled, step = fill_lists(
        lists.items[:, :top_n],
        arrange_popularity(popularity, users, matrix),
        exclude=matrix.bought,
    )
    because, kind = _because(filled, step, matrix, hybrid)
    score = _continue_scores(lists.score[:, :top_n], step)
    place = np.nonzero(filled != NOTHING)
    by_model = step[place] == NOTHING
    cf = np.where(by_model, lists.cf[place], np.nan)
    content = np.where(by_model, lists.content[place], np.nan)
    # The two model sources, then the chain's in its order.
    sources = pl.Series(["hybrid", "content", *(link.source for link in CHAIN)])
    source = np.where(by_model, np.isnan(cf).astype(np.int64), step[place] + 2)
    frame = pl.DataFrame(
        {
            "user_id": matrix.user_ids.gather(place[0]),
            "rank": (place[1] + 1).astype(np.int32),
            "product_id": matrix.product_ids.gather(filled[place]),
            "score": score[place],
            "cf_score": _null_for_nan(cf),
            "content_score": _null_for_nan(content),
            "source": sources.gather(source),
            "because_product_id": _gather_or_null(matrix.product_ids, because[place]),
            "opening": pl.Series([REASONS[k] for k in sorted(REASONS)]).gather(kind[place]),
        }
    )
    titles = products.select(
        because_product_id="product_id", because=pl.coalesce("title", "product_id")
    )
    keys = users.select("user_id", "segment", "favourite_category")
    return (
        frame.join(titles, on="because_product_id", how="left", maintain_order="left")
        .join(keys, on="user_id", how="left", maintain_order="left")
        .with_columns(reason=_reason())
        .match_to_schema(RECOMMENDATIONS, extra_columns="ignore")
    )


def _reason() -> pl.Expr:
    source = pl.col("source")
    return (
        pl.when(source == "category")
        .then(pl.lit("Popular in ") + pl.col("favourite_category"))
        .when(source == "segment")
        .then(pl.lit("Popular in ") + pl.col("segment"))
        .when(source == "trending")
        .then(pl.lit("Trending now"))
        .when(source == "popular")
        .then(pl.lit("Popular with everyone"))
        .when(pl.col("because").is_not_null())
        .then(pl.col("opening") + pl.col("because"))
        .otherwise(pl.lit("Chosen by customers with your taste"))
    )


def _continue_scores(score: np.ndarray, step: np.ndarray) -> np.ndarray:
    by_model = step == NOTHING
    n_model_rows = (by_model & np.isfinite(score)).sum(axis=1)
    last = np.where(np.isfinite(score) & by_model, score, 0.0).min(axis=1, initial=0.0)
    behind = np.arange(1, score.shape[1] + 1) - n_model_rows[:, None]
    return np.where(by_model, score, last[:, None] - behind)


def _null_for_nan(values: np.ndarray) -> pl.Series:
    return pl.Series(values, dtype=pl.Float64, nan_to_null=True)


def _gather_or_null(ids: pl.Series, at: np.ndarray) -> pl.Series:
    return ids.gather(pl.Series(at, dtype=pl.Int64).replace(NOTHING, None))


def _because(
    filled: np.ndarray, step: np.ndarray, matrix: SignalMatrix, hybrid: Hybrid
) -> tuple[np.ndarray, np.ndarray]:
    """The product in the user's history that is most like each recommended one.

    Likeness is the weighted sum of the models' cosines between item vectors.

    Returns:
        `(n_users, n)` int32 product positions, `NOTHING` for rows of the fallback chain and
        where nothing is alike; `(n_users, n)` int8, what the user did with it.
    """
    parts = [
        np.float32(np.sqrt(weight)) * unit_rows(model.item_factors)
        for model, weight in ((hybrid.cf, hybrid.w_cf), (hybrid.content, hybrid.w_content))
        if model is not None
    ]
    because = np.full(filled.shape, NOTHING, dtype=np.int32)
    kind = np.zeros(filled.shape, dtype=np.int8)
    if parts:
        _most_alike(
            np.ascontiguousarray(np.hstack(parts), dtype=np.float32),
            np.where(step == NOTHING, filled, NOTHING),
            matrix.weights.indptr,
            matrix.weights.indices,
            matrix.kinds,
            because,
            kind,
        )
    return because, kind


@njit(parallel=True, cache=True, fastmath=True)
def _most_alike(
    vectors: np.ndarray,
    chosen: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    kinds: np.ndarray,
    because: np.ndarray,
    kind: np.ndarray,
) -> None:
    n_rows, n = chosen.shape
    d = vectors.shape[1]
    for row in prange(n_rows):
        for i in range(n):
            item = chosen[row, i]
            if item < 0:
                continue
            best = np.float32(0.0)
            for at in range(indptr[row], indptr[row + 1]):
                other = indices[at]
                if other == item:
                    continue
                likeness = np.float32(0.0)
                for f in range(d):
                    likeness += vectors[item, f] * vectors[other, f]
                if likeness > best:
                    best = likeness
                    because[row, i] = other
                    kind[row, i] = kinds[at]


def similar_products(
    models: list[tuple[np.ndarray, float]],
    *,
    products: pl.DataFrame,
    product_ids: pl.Series,
    k: int,
    block_bytes: int,
    progress: Progress,
) -> pl.DataFrame:
    """SIMILAR_PRODUCTS: for every product the k available ones most like it.

    Likeness is the weighted sum of the cosines of the models' item vectors, so that a product
    nobody bought yet is still found by its text.

    Args:
        models: Item vectors `(n_items, d)`, zeros where unknown, each with its weight.
        products: PRODUCTS.
        product_ids: The order of the vectors' rows.
        k: Rows a product, at most.
        block_bytes: Memory for one block of scores.
        progress: Told how far it is.
    """
    if not models:
        return pl.DataFrame(schema=SIMILAR_PRODUCTS)
    vectors = np.hstack(
        [np.float32(np.sqrt(weight)) * unit_rows(vectors) for vectors, weight in models]
    )
    eligible = available_items(products, product_ids)
    best, cosine = nearest_items(
        vectors, k=k, eligible=eligible, block_bytes=block_bytes, progress=progress
    )
    place = np.nonzero(best != NOTHING)
    return (
        pl.DataFrame(
            {
                "product_id": product_ids.gather(place[0]),
                "position": place[1],
                "similar_product_id": product_ids.gather(best[place]),
                "score": cosine[place],
            }
        )
        .sort(
            "product_id",
            "score",
            "similar_product_id",
            descending=[False, True, False],
        )
        .with_columns(rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over("product_id"))
        .match_to_schema(SIMILAR_PRODUCTS, extra_columns="ignore")
    )
