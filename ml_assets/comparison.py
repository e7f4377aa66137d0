"""Models side by side on several folds, the learned blend of them all among them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp

from ml_assets.backtest import Past, alone, content_model, global_popularity, rank
from ml_assets.blending import BlendWeights, Fold, ask, best_of_blend, learn_weights
from ml_assets.evaluation import CUTOFFS, PerUser, accuracy, find
from ml_assets.intervals import draw_users, pool, resample
from ml_assets.item_item import NOTHING
from ml_assets.models import Model, fit_model
from ml_assets.signal_matrix import CannotFitError, TooLittleDataError

# Products that each source proposes: more changed no figure on the shops that were tried.
CANDIDATES_OF_A_SOURCE = 100
# Groups of users by the products they touched: from nothing much to a lot.
GROUPS = (0, 5, 20)


def fit_sources(
    past: Past, names: Sequence[str], settings: Mapping[str, Any]
) -> tuple[dict[str, Model], dict[str, str]]:
    """Models by name, over the asked users with a past.

    Args:
        past: The fold.
        names: Names of `models.MODELS`, `content`, or a window of POPULARITY as `popular_*`.
        settings: As of `backtest.backtest`.

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


POPULAR = {"popular": "all_time", "popular_28_days": "last_28_days", "trending": "trending"}


def opinions_on(past: Past, models: Mapping[str, Model], settings: Mapping[str, Any]) -> Fold:
    """What models say about products new to the asked users, and what those went for."""
    is_known = past.questions.is_known
    known = past.questions.matrix.for_users(np.flatnonzero(is_known))
    opinions = ask(
        models,
        k=CANDIDATES_OF_A_SOURCE,
        exclude=known.touched,
        eligible=past.eligible,
        block_bytes=settings["block_bytes"],
        normalisation=settings.get("normalisation", "z_score"),
    )
    return Fold(
        opinions=opinions,
        relevant=new_answers(past),
        history_size=np.diff(known.weights.indptr),
    )


def new_answers(past: Past) -> sp.csr_matrix:
    """What the asked users with a past went for that was new to them, `(n_known, n_items)`."""
    relevant = past.questions.relevant
    # A copy: what is dropped moves the arrays.
    new = relevant.copy()
    new.data = past.questions.is_new.astype(np.float32)
    new.eliminate_zeros()
    return sp.csr_matrix(new[past.questions.is_known])


def learn_blend(folds: Sequence[Fold]) -> BlendWeights:
    """Weights for all users, and for each group that is large enough to have its own."""
    return learn_weights(folds, k=20, from_size=GROUPS)


def lists_of(fold: Fold, weights: np.ndarray) -> np.ndarray:
    """The lists of a blend, `(n_known, 50)`. weights: `(n_known, n_models)`."""
    return best_of_blend(fold.opinions, weights, k=CUTOFFS[-1])[0]


def lists_of_each(
    past: Past, models: Mapping[str, Model], settings: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The lists of each model alone, `(n_known, 50)`, of products new to the users."""
    is_known = past.questions.is_known
    exclude = sp.csr_matrix(past.questions.matrix.touched[is_known])
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
