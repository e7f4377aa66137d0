"""From models to lists: candidates of the blend, the fallback chain, a reason for each row."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp
from numba import njit

from ml_assets.fallback import CHAIN, arrange_popularity
from ml_assets.frames import CANDIDATES, RECOMMENDATIONS, RULE_LEDGER, SIMILAR_PRODUCTS
from ml_assets.item_item import (
    NOTHING,
    ItemItemModel,
    because_by_history,
    best_by_history,
    largest_of_rows,
)
from ml_assets.models import Model
from ml_assets.rule_set import RuleSet
from ml_assets.ruled_lists import EXPLORED, PINNED, apply_rules, ledger_frame
from ml_assets.scoring import Progress, blend, inner, part_scores, top_items, unit_rows
from ml_assets.signal_matrix import (
    BOUGHT,
    LOOKED_AT,
    PUT_IN_CART,
    RATED,
    SignalMatrix,
    available_items,
)
from ml_assets.threads import over_blocks, run_over_blocks

REASONS = {
    BOUGHT: "Because you bought ",
    PUT_IN_CART: "Because you put in your cart ",
    LOOKED_AT: "Because you viewed ",
    RATED: "Because you rated ",
}


# Below so many a user is warm at best.
PRODUCTS_OF_A_HOT_USER = 5


@dataclass(frozen=True)
class Hybrid:
    """The models that could be fitted, each with its weight; either may be missing.

    Both are of one family: scores of the two are added while they are made, not afterwards.
    """

    cf: Model | None
    content: Model | None
    w_cf: float
    w_content: float

    @property
    def models(self) -> list[tuple[Any, float]]:
        """What there is, with weights."""
        return [
            (model, weight)
            for model, weight in ((self.cf, self.w_cf), (self.content, self.w_content))
            if model is not None
        ]

    @property
    def is_item_item(self) -> bool:
        """Of which family the models are.

        Raises:
            ValueError: if they are of two families.
        """
        families = {isinstance(model, ItemItemModel) for model, _ in self.models}
        if len(families) > 1:
            raise ValueError("a factor model and an item-item model cannot be blended")
        return families == {True}

    def for_users(self, rows: np.ndarray) -> "Hybrid":
        """The same with only these users, in this order."""
        cf, content = (each and each.for_users(rows) for each in (self.cf, self.content))
        return replace(self, cf=cf, content=content)


@dataclass(frozen=True)
class Lists:
    """The best products of every user by the blend.

    Attributes:
        items: `(n_users, k)` int32, best first, `NOTHING` at the end where there were fewer.
        score: `(n_users, k)` float64, the weighted sum of the two below.
        cf: `(n_users, k)` float64 z-score, NaN where the model has no opinion.
        content: Likewise.
        inverse_deviation: `(n_models, n_users)` float64, 1 / deviation of each user's raw scores, 0
            where the model has no opinion.
        mean: `(n_models, n_users)` float64, of the raw scores.
    """

    items: np.ndarray
    score: np.ndarray
    cf: np.ndarray
    content: np.ndarray
    inverse_deviation: np.ndarray
    mean: np.ndarray


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
    models = hybrid.models
    if not models:
        no_scale = np.empty((0, len(nan)))
        return Lists(np.full(nan.shape, NOTHING, np.int32), nan, nan, nan, no_scale, no_scale)
    if hybrid.is_item_item:
        found = best_by_history(models, k=k, exclude=exclude, eligible=eligible, progress=progress)
        best, each = found.items, found.parts
        scale = (found.inverse_deviation, found.mean)
    else:
        blended = blend(models)
        best = top_items(
            blended.user_vectors,
            blended.item_vectors,
            k=k,
            exclude=exclude,
            eligible=eligible & np.logical_or.reduce(blended.knows_item),
            block_bytes=block_bytes,
            progress=progress,
            shifts=blended.shifts,
            parts=blended.parts,
        )
        best[~np.logical_or.reduce(blended.knows_user)] = NOTHING
        each = part_scores(blended, best)
        for i, (model, weight) in enumerate(models):
            if weight == 0:
                # The blend has nothing of it, the lists have its opinion all the same.
                each[i] = part_scores(blend([(model, 1.0)]), best)[0]
        scale = (blended.inverse_deviation, blended.mean)
    parts = iter(each)
    cf = next(parts) if hybrid.cf is not None else nan
    content = next(parts) if hybrid.content is not None else nan
    if hybrid.is_item_item:
        # In double precision and in order already.
        return Lists(best, found.score, cf, content, *scale)
    # Known to a model alone that does not know the user: nobody has an opinion.
    best[np.isnan(cf) & np.isnan(content)] = NOTHING
    score = hybrid.w_cf * np.nan_to_num(cf) + hybrid.w_content * np.nan_to_num(content)
    # An empty place sorts last and has no score.
    score[best == NOTHING] = -np.inf
    order = np.lexsort((best, -score), axis=1)
    best, score, cf, content = (
        np.take_along_axis(array, order, axis=1) for array in (best, score, cf, content)
    )
    return Lists(best, score, cf, content, *scale)


def random_lists(*, k: int, exclude: sp.csr_matrix, eligible: np.ndarray, seed: int) -> np.ndarray:
    """Products drawn without replacement, each as likely as any other: the floor of every metric.

    Args:
        k: Products a user.
        exclude: `(n_users, n_items)`, an entry is a product not to draw; indices sorted.
        eligible: `(n_items,)` bool.
        seed: Of the draws.

    Returns:
        `(n_users, k)` int32, `NOTHING` at the end where there were fewer.
    """
    lists = np.full((exclude.shape[0], k), NOTHING, dtype=np.int32)
    products = np.flatnonzero(eligible).astype(np.int32)

    def work(start: int, stop: int, deck: np.ndarray) -> None:
        rng = np.random.default_rng([seed, start])
        _deal(start, stop, rng, deck, exclude.indptr, exclude.indices, lists)

    for _ in over_blocks(work, len(lists), rows_per_block=4096, scratch=products.copy):
        pass
    return lists


@njit(cache=True, nogil=True)
def _deal(
    start: int,
    stop: int,
    rng: np.random.Generator,
    deck: np.ndarray,
    exclude_indptr: np.ndarray,
    exclude_items: np.ndarray,
    lists: np.ndarray,
) -> None:
    swaps = np.empty(len(deck), dtype=np.int32)
    for row in range(start, stop):
        excluded = exclude_items[exclude_indptr[row] : exclude_indptr[row + 1]]
        n, n_drawn = 0, 0
        # The head of a shuffle (Fisher-Yates) is a draw without replacement.
        while n < lists.shape[1] and n_drawn < len(deck):
            other = n_drawn + rng.integers(0, len(deck) - n_drawn)
            deck[n_drawn], deck[other] = deck[other], deck[n_drawn]
            swaps[n_drawn] = other
            item = deck[n_drawn]
            n_drawn += 1
            place = np.searchsorted(excluded, item)
            if place == len(excluded) or excluded[place] != item:
                lists[row, n] = item
                n += 1
        # Back in order, so that a block's lists do not depend on who had the deck before.
        for at in range(n_drawn - 1, -1, -1):
            deck[at], deck[swaps[at]] = deck[swaps[at]], deck[at]


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
            "cf_score": null_for_nan(lists.cf[rows, columns]),
            "content_score": null_for_nan(lists.content[rows, columns]),
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
    rules: RuleSet | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Exactly `top_n` explained rows for every user, or all that shop and rules have for them.

    Rows of the fallback chain follow the models' rows. They carry no model's opinion; their
    score only says that they come later: one below the last model row (or below 0, the mean of
    all products, if that is lower), and one less each. A pinned or drawn row has its neighbour's
    score.

    Args:
        lists: From `propose`, at least `top_n` wide.
        matrix: Gives order and history of users.
        hybrid: The models, for the reasons.
        users: USERS.
        products: PRODUCTS.
        popularity: POPULARITY.
        top_n: Rows a user.
        rules: Of these users.

    Returns:
        RECOMMENDATIONS, sorted by user and rank, and RULE_LEDGER.
    """
    ruled = apply_rules(
        rules,
        lists.items,
        lists.score,
        arrange_popularity(popularity, users, matrix),
        bought=matrix.bought,
        n=top_n,
    )
    filled, step = ruled.items, ruled.step
    because, kind = _because(filled, step, matrix, hybrid, lists.inverse_deviation)
    score = _continue_scores(ruled.score, step)
    place = np.nonzero(filled != NOTHING)
    candidate = ruled.candidate[place]
    by_model = candidate != NOTHING
    at = (place[0], np.maximum(candidate, 0))
    cf = np.where(by_model, lists.cf[at], np.nan)
    content = np.where(by_model, lists.content[at], np.nan)
    # The two model sources, then the chain's in its order, and last what rules placed.
    sources = pl.Series(
        ["hybrid", "content", *(link.source for link in CHAIN), "pinned", "explore"]
    )
    placed = {PINNED: len(sources) - 2, EXPLORED: len(sources) - 1}
    filled_by = step[place].astype(np.int64) + 2
    for which, at_source in placed.items():
        filled_by[step[place] == which] = at_source
    source = np.where(by_model, np.isnan(cf).astype(np.int64), filled_by)
    frame = pl.DataFrame(
        {
            "user_id": matrix.user_ids.gather(place[0]),
            "rank": (place[1] + 1).astype(np.int32),
            "product_id": matrix.product_ids.gather(filled[place]),
            "score": score[place],
            "cf_score": null_for_nan(cf),
            "content_score": null_for_nan(content),
            "source": sources.gather(source),
            "probability": null_for_nan(ruled.probability[place]),
            "temperature": _temperatures(matrix, hybrid).gather(place[0]),
            "because_product_id": _gather_or_null(matrix.product_ids, because[place]),
            "because": _gather_or_null(_titles(products, matrix), because[place]),
            "opening": pl.Series([REASONS[k] for k in sorted(REASONS)]).gather(kind[place]),
        }
    )
    keys = users.select("user_id", "segment", "favourite_category")
    explained = (
        frame.join(keys, on="user_id", how="left", maintain_order="left")
        .with_columns(reason=_reason())
        .match_to_schema(RECOMMENDATIONS, extra_columns="ignore")
    )
    if rules is None:
        return explained, pl.DataFrame(schema=RULE_LEDGER)
    return explained, ledger_frame(rules, ruled, lists.items, lists.score, matrix)


def _temperatures(matrix: SignalMatrix, hybrid: Hybrid) -> pl.Series:
    """Of each user: cold without any signal, hot with enough for the collaborative model."""
    n_products = np.diff(matrix.history.indptr)
    is_hot = n_products >= PRODUCTS_OF_A_HOT_USER
    is_hot &= hybrid.cf.knows_user if hybrid.cf is not None else False
    return pl.Series(["cold", "warm", "hot"]).gather(
        np.where(is_hot, 2, np.minimum(n_products, 1)).astype(np.int64)
    )


def _titles(products: pl.DataFrame, matrix: SignalMatrix) -> pl.Series:
    """What people call each product of the matrix."""
    named = products.select("product_id", title=pl.coalesce("title", "product_id"))
    ids = pl.DataFrame({"product_id": matrix.product_ids})
    return ids.join(named, on="product_id", how="left", maintain_order="left")["title"]


def _reason() -> pl.Expr:
    source = pl.col("source")
    return (
        pl.when(source == "category")
        .then(pl.lit("Popular in ") + pl.col("favourite_category"))
        .when(source == "segment")
        .then(pl.lit("Popular in ") + pl.col("segment"))
        .when(source == "trending")
        .then(pl.lit("Trending now"))
        .when(source == "pinned")
        .then(pl.lit("Chosen by the shop"))
        .when(source == "explore")
        .then(pl.lit("Something new"))
        .when(source == "popular")
        .then(pl.lit("Popular with everyone"))
        .when(pl.col("because").is_not_null())
        .then(pl.col("opening") + pl.col("because"))
        .otherwise(pl.lit("Chosen by customers with your taste"))
    )


def _continue_scores(score: np.ndarray, step: np.ndarray) -> np.ndarray:
    is_model, is_pinned = np.isfinite(score), np.isin(step, (PINNED, EXPLORED))
    n_model_rows = is_model.sum(axis=1)
    last = np.where(is_model, score, 0.0).min(axis=1, initial=0.0)
    # Pins are in nobody's way: ranks are counted without them.
    behind = np.cumsum(~is_pinned, axis=1) - n_model_rows[:, None]
    continued = np.where(is_model, score, last[:, None] - behind)
    # From the right, but for those at the end of a list.
    ends = np.flip(np.logical_and.accumulate(np.flip(is_pinned, axis=1), axis=1), axis=1)
    for place in range(score.shape[1] - 2, -1, -1):
        pinned = is_pinned[:, place] & ~ends[:, place]
        continued[pinned, place] = continued[pinned, place + 1]
    for place in range(1, score.shape[1]):
        pinned = ends[:, place]
        continued[pinned, place] = continued[pinned, place - 1]
    return continued


def null_for_nan(values: np.ndarray) -> pl.Series:
    """A column of a frame: what is not known is null there."""
    return pl.Series(values, dtype=pl.Float64, nan_to_null=True)


def _gather_or_null(ids: pl.Series, at: np.ndarray) -> pl.Series:
    return ids.gather(pl.Series(at, dtype=pl.Int64).replace(NOTHING, None))


def _because(
    filled: np.ndarray,
    step: np.ndarray,
    matrix: SignalMatrix,
    hybrid: Hybrid,
    inverse_deviation: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The product in the user's history that speaks most for each recommended one.

    With item-item models the one with the largest share in the score. With factor models the one
    most like it, by the weighted sum of the models' cosines between item vectors.

    Returns:
        `(n_users, n)` int32 product positions, `NOTHING` for rows of the fallback chain and
        where nothing speaks for it; `(n_users, n)` int8, what the user did with it.
    """
    chosen = np.where(step == NOTHING, filled, NOTHING).astype(np.int32)
    if not hybrid.models:
        at = np.full(filled.shape, NOTHING, dtype=np.int64)
    elif hybrid.is_item_item:
        at = because_by_history(hybrid.models, inverse_deviation, chosen)
    else:
        at = _because_alike(hybrid, chosen, matrix.history)
    if len(matrix.kinds) == 0:
        return np.full(filled.shape, NOTHING, np.int32), np.zeros(filled.shape, np.int8)
    return (
        np.where(at == NOTHING, NOTHING, matrix.history.indices[at]).astype(np.int32),
        np.where(at == NOTHING, 0, matrix.kinds[at]).astype(np.int8),
    )


def _because_alike(hybrid: Hybrid, chosen: np.ndarray, history: sp.csr_matrix) -> np.ndarray:
    vectors = np.hstack(
        [
            np.float32(np.sqrt(weight)) * unit_rows(model.item_factors)
            for model, weight in hybrid.models
        ]
    ).astype(np.float32)
    because = np.full(chosen.shape, NOTHING, dtype=np.int64)

    def work(start: int, stop: int, _: None) -> None:
        _most_alike(start, stop, vectors, chosen, history.indptr, history.indices, because)

    run_over_blocks(work, len(chosen))
    return because


@njit(cache=True, nogil=True)
def _most_alike(
    start: int,
    stop: int,
    vectors: np.ndarray,
    chosen: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    because: np.ndarray,
) -> None:
    n = chosen.shape[1]
    for row in range(start, stop):
        for i in range(n):
            item = chosen[row, i]
            if item < 0:
                continue
            best = 0.0
            for at in range(indptr[row], indptr[row + 1]):
                other = indices[at]
                if other == item:
                    continue
                likeness = inner(vectors[item], vectors[other])
                if likeness > best:
                    best = likeness
                    because[row, i] = at


# A list of eight times the same title, one for each colour or brand, helps nobody.
OF_ONE_TITLE = 2


def similar_products(
    likeness: list[tuple[sp.csr_matrix, float]],
    *,
    products: pl.DataFrame,
    product_ids: pl.Series,
    k: int,
) -> pl.DataFrame:
    """SIMILAR_PRODUCTS: for every product the available ones most like it.

    Likeness is the weighted sum over models of how like two products are, so that a product nobody
    bought yet is still found by its text. Of products with the same title the `OF_ONE_TITLE` most
    alike are taken.

    Args:
        likeness: `(n_items, n_items)` float32 from 0 to 1, an entry per pair that is alike, each
            with its weight.
        products: PRODUCTS.
        product_ids: The order of rows and columns.
        k: Rows a product, at most.
    """
    if not likeness:
        return pl.DataFrame(schema=SIMILAR_PRODUCTS)
    total = sp.csr_matrix(sum(matrix.astype(np.float64) * weight for matrix, weight in likeness))
    row = np.repeat(np.arange(len(product_ids)), np.diff(total.indptr))
    # Left as entries that are zero, which come last and are cut off.
    total.data[(total.indices == row) | ~available_items(products, product_ids)[total.indices]] = 0
    # More than k, for what others of the same title leave free.
    nearest, score = largest_of_rows(total, k=3 * k)
    nearest[score <= 0] = NOTHING
    _keep_few_of_one_title(nearest, score, _title_codes(products, product_ids), OF_ONE_TITLE)
    nearest, score = nearest[:, :k], score[:, :k]
    place = np.nonzero(nearest != NOTHING)
    return pl.DataFrame(
        {
            "product_id": product_ids.gather(place[0]),
            "rank": (place[1] + 1).astype(np.int32),
            "similar_product_id": product_ids.gather(nearest[place]),
            "score": score[place],
        }
    ).match_to_schema(SIMILAR_PRODUCTS)


def _title_codes(products: pl.DataFrame, product_ids: pl.Series) -> np.ndarray:
    """(n_items,) int32: equal for equal titles but for case; a product without has its own."""
    titles = product_ids.to_frame("product_id").join(
        products.select("product_id", title=pl.col("title").str.to_uppercase().str.strip_chars()),
        on="product_id",
        how="left",
        maintain_order="left",
    )
    has_none = pl.col("title").fill_null("") == ""
    named = (
        pl.when(has_none).then("id " + pl.col("product_id")).otherwise("title " + pl.col("title"))
    )
    return titles.select(named.rank("dense")).to_series().to_numpy().astype(np.int32)


@njit(cache=True, nogil=True)
def _keep_few_of_one_title(
    nearest: np.ndarray, score: np.ndarray, title: np.ndarray, n_most: int
) -> None:
    """Move what may stay to the front of each row, in order; `NOTHING` behind it."""
    n_rows, n = nearest.shape
    for row in range(n_rows):
        n_kept = 0
        for i in range(n):
            item = nearest[row, i]
            if item < 0:
                break
            n_same = 0
            for j in range(n_kept):
                n_same += title[nearest[row, j]] == title[item]
            if n_same < n_most:
                nearest[row, n_kept] = item
                score[row, n_kept] = score[row, i]
                n_kept += 1
        nearest[row, n_kept:] = NOTHING
