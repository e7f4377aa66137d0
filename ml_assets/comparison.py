"""Models side by side on several folds, the learned blend of them all among them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp

from ml_assets.backtest import (
    Past,
    alone,
    content_model,
    global_popularity,
    new_products_figures,
    rank,
)
from ml_assets.blending import BlendWeights, Fold, ask, best_of_blend, learn_weights
from ml_assets.evaluation import CUTOFFS, PerUser, accuracy, find
from ml_assets.frames import USERS
from ml_assets.intervals import draw_users, pool, resample
from ml_assets.item_item import NOTHING
from ml_assets.models import FactorModel, Model, fit_model
from ml_assets.signal_matrix import CannotFitError, TooLittleDataError, positions
from ml_assets.tuning import METRIC, Outcome

# Products that each source proposes: more changed no figure on the shops that were tried.
CANDIDATES_OF_A_SOURCE = 100
# Groups of users by the products they touched: from nothing much to a lot.
GROUPS = (0, 5, 20)


def fit_sources(
    past: Past,
    names: Sequence[str],
    settings: Mapping[str, Any],
    *,
    users: pl.DataFrame | None = None,
) -> tuple[dict[str, Model], dict[str, str]]:
    """Models by name, over the asked users with a past.

    Args:
        past: The fold.
        names: Names of `models.MODELS`, `content`, a window of POPULARITY as in `POPULAR`, or
            `popular_in_segment`.
        settings: As of `backtest.backtest`.
        users: USERS, for their segments.

    Returns:
        Those that could be fitted, in the order of the names; the others, each with the reason.
    """
    fitted: dict[str, Model] = {}
    skipped: dict[str, str] = {}
    asked = past.asked
    for name in names:
        try:
            if name == "content":
                if past.terms is None:
                    raise TooLittleDataError(past.no_terms)
                model = content_model(past, past.terms, None, settings)
            elif name == "popular_in_segment":
                model = segment_popularity(past, users)
            elif name in POPULAR:
                scores = {"popularity": global_popularity(past, POPULAR[name])}
                model = fit_model("popularity", past.matrix, settings=scores, seed=0)
            else:
                model = fit_model(name, past.matrix, settings=settings, seed=settings["seed"])
        except CannotFitError as reason:
            skipped[name] = str(reason)
            continue
        fitted[name] = model.for_users(asked)
    return fitted, skipped


def segment_popularity(past: Past, users: pl.DataFrame | None) -> FactorModel:
    """What the user's segment has gone for in the last 28 days, as in POPULARITY.

    A product's score is the reciprocal of its rank in the list of the segment. Users without a
    segment, or in one without a list, stay without an opinion.

    Args:
        past: The fold.
        users: USERS, or None.

    Raises:
        TooLittleDataError: if nobody is in a segment that has a list.
    """
    lists = past.popularity.filter(
        (pl.col("segment_type") == "segment")
        & (pl.col("time_window") == "last_28_days")
        & pl.col("product_id").is_in(past.matrix.product_ids.implode())
    )
    segments = lists["segment"].unique().sort()
    everybody = pl.DataFrame(schema=USERS) if users is None else users
    members = everybody.filter(
        pl.col("segment").is_in(segments.implode())
        & pl.col("user_id").is_in(past.matrix.user_ids.implode())
    )
    if len(members) == 0:
        raise TooLittleDataError("no user is in a segment that bought anything in 28 days")
    user_factors = np.zeros((len(past.matrix.user_ids), len(segments)), dtype=np.float32)
    user_factors[
        positions(members["user_id"], past.matrix.user_ids),
        positions(members["segment"], segments),
    ] = 1.0
    item_factors = np.zeros((len(past.matrix.product_ids), len(segments)), dtype=np.float32)
    item_factors[
        positions(lists["product_id"], past.matrix.product_ids),
        positions(lists["segment"], segments),
    ] = 1.0 / lists["rank"].to_numpy()
    return FactorModel(
        user_factors=user_factors,
        item_factors=item_factors,
        knows_user=np.asarray(user_factors.any(axis=1)),
        knows_item=np.ones(len(item_factors), dtype=bool),
    )


POPULAR = {"popular": "all_time", "popular_28_days": "last_28_days", "trending": "trending"}


def opinions_on(
    past: Past,
    models: Mapping[str, Model],
    settings: Mapping[str, Any],
    *,
    target: str = "new_products",
) -> Fold:
    """What models say about the asked users with a past, and what those went for.

    Args:
        past: The fold.
        models: From `fit_sources`.
        settings: As of `backtest.backtest`; and `normalisation`, if not `z_score`.
        target: `new_products` or `any_next`.
    """
    opinions = ask(
        models,
        k=CANDIDATES_OF_A_SOURCE,
        exclude=excluded(past, target),
        eligible=past.eligible,
        block_bytes=settings["block_bytes"],
        normalisation=settings.get("normalisation", "z_score"),
    )
    return Fold(
        opinions=opinions,
        relevant=answers(past, target),
        history_size=np.diff(past.questions.matrix.weights.indptr)[past.questions.is_known],
    )


def excluded(past: Past, target: str) -> sp.csr_matrix:
    """What the asked users with a past are not shown, `(n_known, n_items)`."""
    touched = sp.csr_matrix(past.questions.matrix.touched[past.questions.is_known])
    return touched if target == "new_products" else sp.csr_matrix(touched.shape, dtype=np.float32)


def answers(past: Past, target: str) -> sp.csr_matrix:
    """What the asked users with a past went for, `(n_known, n_items)`."""
    # A copy: what is dropped moves the arrays.
    found = past.questions.relevant.copy()
    if target == "new_products":
        found.data = past.questions.is_new.astype(np.float32)
        found.eliminate_zeros()
    return sp.csr_matrix(found[past.questions.is_known])


def evaluate_settings(
    pasts: Sequence[Past], start: Mapping[str, Any], found: Mapping[str, Any]
) -> Outcome:
    """How good the blend of these settings is on new products, over all users of the folds.

    Args:
        pasts: The folds.
        start: Settings as of `backtest.backtest`.
        found: Those that differ from them.
    """
    values = []
    for past in pasts:
        try:
            figures = new_products_figures(past, {**start, **found})
        except CannotFitError as reason:
            return Outcome(None, 0, f"{past.fold}: {reason}")
        values.append(figures.values[:, figures.names.index(METRIC)])
    of_users = np.concatenate(values)
    asked = of_users[~np.isnan(of_users)]
    if len(asked) == 0:
        return Outcome(None, 0, "nobody went for anything new")
    return Outcome(float(asked.mean()), len(asked))


def learn_blend(folds: Sequence[Fold]) -> BlendWeights:
    """Weights for all users, and for each group that is large enough to have its own."""
    return learn_weights(folds, k=20, from_size=GROUPS)


def learn_ensemble(
    pasts: Sequence[Past], names: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of the model `ensemble`: weights learned on folds whose answers are known.

    Args:
        pasts: The folds.
        names: Of members; one that cannot be fitted is left out.
        settings: As of `backtest.backtest`.

    Returns:
        `ensemble`, whose weights add up to 1, `w_cf` and `w_content`.

    Raises:
        TooLittleDataError: if no member can be fitted on every fold.
    """
    fitted = [fit_sources(past, (*names, "content"), settings)[0] for past in pasts]
    common = [name for name in (*names, "content") if all(name in each for each in fitted)]
    if not set(common) - {"content"}:
        raise TooLittleDataError("no member of the ensemble can be fitted on every fold")
    folds = [
        opinions_on(past, {name: models[name] for name in common}, settings)
        for past, models in zip(pasts, fitted, strict=True)
    ]
    learned = learn_weights(folds, k=20, from_size=(0,)).weights[0]
    weights = {name: float(each) for name, each in zip(common, learned, strict=True) if each > 0}
    content = weights.pop("content", 0.0)
    if not weights:
        return {"ensemble": {common[0]: 1.0}, "w_cf": 0.0, "w_content": 1.0}
    total = sum(weights.values())
    return {
        "ensemble": {name: round(each / total, 4) for name, each in weights.items()},
        "w_cf": round(1 - content, 4),
        "w_content": round(content, 4),
    }


def lists_of(fold: Fold, weights: np.ndarray) -> np.ndarray:
    """The lists of a blend, `(n_known, 50)`. weights: `(n_known, n_models)`."""
    return best_of_blend(fold.opinions, weights, k=CUTOFFS[-1])[0]


def lists_of_each(
    past: Past,
    models: Mapping[str, Model],
    settings: Mapping[str, Any],
    *,
    target: str = "new_products",
) -> dict[str, np.ndarray]:
    """The lists of each model alone, `(n_known, 50)`; target as of `opinions_on`."""
    exclude = excluded(past, target)
    return {
        name: rank(past, alone(model), exclude, settings=settings) for name, model in models.items()
    }


def compare(
    folds: Sequence[tuple[pl.Series, sp.csr_matrix, Mapping[str, np.ndarray]]],
    *,
    beside: str,
    seed: int,
) -> pl.DataFrame:
    """Accuracy of each model over all folds, and its difference from one of them.

    Args:
        folds: Of each the users, what they went for `(n_users, n_items)`, and lists by model.
        beside: The model that all are compared with.
        seed: Of the intervals.

    Returns:
        A row per model and metric: value, low, high, n_users, difference, difference_low,
        difference_high; a difference is `beside` less the model, users paired.
    """
    names = [name for name in folds[0][2] if all(name in lists for _, _, lists in folds)]
    pooled: dict[str, PerUser] = {}
    user_of_row = np.empty(0, dtype=np.int64)
    for name in names:
        figures = []
        for user_ids, relevant, lists in folds:
            padded = np.full((len(user_ids), CUTOFFS[-1]), NOTHING, dtype=np.int32)
            padded[:, : lists[name].shape[1]] = lists[name][:, : CUTOFFS[-1]]
            figures.append((user_ids, accuracy(find(padded, relevant), relevant)))
        user_of_row, pooled[name] = pool(figures)
    found = resample(list(pooled.values()), draw_users(user_of_row, seed=seed))
    by_name = dict(zip(names, found, strict=True))
    frames = []
    for name, figures_of in by_name.items():
        low, high = figures_of.interval()
        difference = by_name[beside].minus(figures_of)
        difference_low, difference_high = difference.interval()
        frames.append(
            pl.DataFrame(
                {
                    "model": name,
                    "metric": figures_of.names,
                    "value": figures_of.value,
                    "low": low,
                    "high": high,
                    "n_users": figures_of.n_users,
                    "difference": difference.value,
                    "difference_low": difference_low,
                    "difference_high": difference_high,
                }
            )
        )
    return pl.concat(frames)
