"""A learned order of candidates: gradient-boosted trees over what is known of user and product.

The blend adds up what models say. A ranker also sees who is asked and what is on offer, and may
find that one model is to be trusted here and another one there. `make accuracy` tries it beside the
blend. Method: LambdaMART, Burges, "From RankNet to LambdaRank to LambdaMART" (MSR-TR-2010-82), in
the implementation of Ke et al., "LightGBM" (NeurIPS 2017).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightgbm
import numpy as np
import polars as pl
import scipy.sparse as sp

from ml_assets.backtest import Past
from ml_assets.blending import Fold
from ml_assets.item_item import NOTHING
from ml_assets.signal_matrix import (
    SignalMatrix,
    TooLittleDataError,
    entry_keys,
    positions,
)

# Chosen beforehand: shallow trees for some hundred thousand rows, and no search.
_TREES = {
    "objective": "lambdarank",
    "lambdarank_truncation_level": 30,
    "num_leaves": 15,
    "learning_rate": 0.05,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.7,
    "lambda_l2": 10.0,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 0,
    "verbosity": -1,
}
_ROUNDS = 150


@dataclass(frozen=True)
class Examples:
    """Every candidate of every user of a fold, a row each.

    Attributes:
        names: Of the features.
        features: `(n_rows, n_features)` float32, NaN where nothing is known.
        items: `(n_rows,)` int32.
        n_of_user: `(n_users,)` int64, rows of each user, one user after the other.
        is_relevant: `(n_rows,)` bool.
    """

    names: tuple[str, ...]
    features: np.ndarray
    items: np.ndarray
    n_of_user: np.ndarray
    is_relevant: np.ndarray


def examples(past: Past, fold: Fold, products: pl.DataFrame) -> Examples:
    """What is known of each candidate at the end of the fold's day.

    Args:
        past: The fold, arranged.
        fold: What the sources say of the users asked who have a past.
        products: PRODUCTS with `category`, `brand` and `price`, each product of the fold.
    """
    asked = past.questions.matrix.for_users(np.flatnonzero(past.questions.is_known))
    row, place = np.nonzero(fold.opinions.items != NOTHING)
    item = fold.opinions.items[row, place]
    said = fold.opinions.scores[row, :, place]
    columns = {
        **{name: said[:, i] for i, name in enumerate(fold.opinions.names)},
        **_of_users(asked, row),
        **_of_products(past, products, item),
        **_of_pairs(asked, products, row, item),
    }
    return Examples(
        names=tuple(columns),
        features=np.column_stack([np.asarray(each, np.float32) for each in columns.values()]),
        items=item,
        n_of_user=np.bincount(row, minlength=len(fold.opinions.items)),
        is_relevant=_entries(fold.relevant, row, item) > 0,
    )


def _of_users(asked: SignalMatrix, row: np.ndarray) -> dict[str, np.ndarray]:
    history, today = (
        np.asarray(each.sum(axis=1)).ravel() for each in (asked.history, asked.weights)
    )
    n_bought = np.asarray(asked.bought.sum(axis=1)).ravel()
    columns = {
        "user_n_products": np.diff(asked.weights.indptr),
        "user_n_bought": n_bought,
        "user_weight": today,
        # 1 right after a visit, less the longer it is ago.
        "user_freshness": _share_left(today, history),
    }
    return {name: values[row] for name, values in columns.items()}


def _share_left(today: np.ndarray, history: np.ndarray) -> np.ndarray:
    return np.divide(today, history, out=np.zeros_like(today), where=history > 0)


def _of_products(past: Past, products: pl.DataFrame, item: np.ndarray) -> dict[str, np.ndarray]:
    known = pl.DataFrame({"product_id": past.matrix.product_ids}).join(
        products, on="product_id", how="left", maintain_order="left"
    )
    holdout_from = pl.lit(past.fold.split("/")[0]).str.to_date()
    age = known.select((holdout_from - pl.col("added_at").dt.date()).dt.total_days())
    today, history = (
        np.asarray(each.sum(axis=0)).ravel() for each in (past.matrix.weights, past.matrix.history)
    )
    columns = {
        "product_n_users": np.bincount(past.matrix.weights.indices, minlength=len(known)),
        "product_weight": today,
        "product_freshness": _share_left(today, history),
        "product_age_days": age.to_series().cast(pl.Float64).fill_null(np.nan).to_numpy(),
        "product_price": known["price"].cast(pl.Float64).fill_null(np.nan).to_numpy(),
    }
    return {name: values[item] for name, values in columns.items()}


def _of_pairs(
    asked: SignalMatrix, products: pl.DataFrame, row: np.ndarray, item: np.ndarray
) -> dict[str, np.ndarray]:
    columns = {
        "pair_weight": _entries(asked.weights, row, item),
        "pair_history": _entries(asked.history, row, item),
    }
    for name in ("category", "brand"):
        group = _groups(products, name, asked.product_ids)
        if group.max(initial=NOTHING) == NOTHING:
            continue
        has_one = group != NOTHING
        of_group = sp.csr_matrix(
            (np.ones(has_one.sum(), np.float32), (np.flatnonzero(has_one), group[has_one])),
            shape=(len(group), group.max() + 1),
        )
        in_group = sp.csr_matrix(asked.history @ of_group)
        total = np.maximum(np.asarray(asked.history.sum(axis=1)).ravel(), 1e-9)
        share = _entries(in_group, row, np.maximum(group[item], 0)) / total[row]
        columns[f"pair_{name}_share"] = np.where(group[item] == NOTHING, np.nan, share)
    return columns


def _groups(products: pl.DataFrame, column: str, product_ids: pl.Series) -> np.ndarray:
    """`(n_items,)` int64 which value each product has, `NOTHING` for none."""
    values = pl.DataFrame({"product_id": product_ids}).join(
        products.select("product_id", column), on="product_id", how="left", maintain_order="left"
    )[column]
    known = values.drop_nulls().unique().sort().rename(column)
    found = np.full(len(values), NOTHING, dtype=np.int64)
    found[values.is_not_null().to_numpy()] = positions(values.drop_nulls(), known)
    return found


def _entries(matrix: sp.csr_matrix, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """The matrix at these places, float64; 0 where it has no entry."""
    matrix.sort_indices()
    there = entry_keys(matrix)
    wanted = row.astype(np.int64) * matrix.shape[1] + column
    at = np.minimum(np.searchsorted(there, wanted), max(len(there) - 1, 0))
    if len(there) == 0:
        return np.zeros(len(wanted))
    return np.where(there[at] == wanted, matrix.data[at], 0.0).astype(np.float64)


@dataclass(frozen=True)
class Ranker:
    """Trees that were learned.

    Attributes:
        names: Features, in the order of the columns.
        booster: A `lightgbm.Booster`.
    """

    names: tuple[str, ...]
    booster: Any

    def importance(self) -> dict[str, float]:
        """How much each feature gained, as shares that add up to 1, largest first."""
        gains = self.booster.feature_importance("gain")
        shares = gains / max(gains.sum(), 1e-9)
        order = np.argsort(-shares, kind="stable")
        return {self.names[i]: float(shares[i]) for i in order}


def fit_ranker(folds: Sequence[Examples], *, seed: int) -> Ranker:
    """Learn to put relevant candidates first, from folds whose answers are known.

    Args:
        folds: With the same features.
        seed: Of the draws of features.

    Raises:
        TooLittleDataError: if no user of the folds has anything to find among the candidates.
    """
    kept = [_with_answers(fold) for fold in folds]
    features = np.vstack([each.features for each in kept])
    if len(features) == 0:
        raise TooLittleDataError("no user of the folds finds anything among the candidates")
    data = lightgbm.Dataset(
        features,
        label=np.concatenate([each.is_relevant for each in kept]).astype(np.int8),
        group=np.concatenate([each.n_of_user for each in kept]),
        feature_name=list(folds[0].names),
        free_raw_data=True,
    )
    booster = lightgbm.train({**_TREES, "seed": seed}, data, num_boost_round=_ROUNDS)
    return Ranker(folds[0].names, booster)


def _with_answers(fold: Examples) -> Examples:
    """Only users with something to find among their candidates: no other teaches an order."""
    user = np.repeat(np.arange(len(fold.n_of_user)), fold.n_of_user)
    has_answer = np.bincount(user[fold.is_relevant], minlength=len(fold.n_of_user)) > 0
    keep = has_answer[user]
    return Examples(
        fold.names,
        fold.features[keep],
        fold.items[keep],
        fold.n_of_user[has_answer],
        fold.is_relevant[keep],
    )


def ranked_lists(ranker: Ranker, asked: Examples, *, k: int) -> np.ndarray:
    """The k best candidates of every user by the ranker.

    Returns:
        `(n_users, k)` int32, best first, ties by item, `NOTHING` behind.
    """
    lists = np.full((len(asked.n_of_user), k), NOTHING, dtype=np.int32)
    score = (
        ranker.booster.predict(asked.features, num_threads=0)
        if len(asked.features)
        else np.empty(0)
    )
    user = np.repeat(np.arange(len(asked.n_of_user)), asked.n_of_user)
    order = np.lexsort((asked.items, -score, user))
    first = np.cumsum(asked.n_of_user) - asked.n_of_user
    place = np.arange(len(order)) - np.repeat(first, asked.n_of_user)
    head = place < k
    lists[user[head], place[head]] = asked.items[order][head]
    return lists
