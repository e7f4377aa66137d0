"""The models asked about a past they have not seen, beside baselines that know almost nothing."""

from collections.abc import Mapping
from datetime import date
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp

from ml_assets.content import product_vectors, text_neighbours, tfidf
from ml_assets.evaluation import metric_rows, ranking_metrics
from ml_assets.frames import METRICS
from ml_assets.models import (
    FactorModel,
    Model,
    content_by_history,
    fit_model,
    user_profiles,
)
from ml_assets.recommend import Hybrid, propose
from ml_assets.scoring import Progress
from ml_assets.signal_matrix import (
    SignalMatrix,
    TooLittleDataError,
    available_items,
    build_signal_matrix,
    positions,
)

# What is measured: of the products a user had no signal for, which did they go for next?
TARGET = "new_products"


def backtest(
    *,
    signals: pl.DataFrame,
    holdout: pl.DataFrame,
    products: pl.DataFrame,
    popularity: pl.DataFrame,
    holdout_from: date,
    as_of: date,
    k: int,
    settings: Mapping[str, Any],
    progress: Progress,
) -> tuple[pl.DataFrame, dict[str, str]]:
    """Metrics of every model and baseline on the days after `holdout_from`.

    Only users with signals before the holdout are asked, and only about products that were in
    the catalogue then: a product added later cannot have been recommended.

    Args:
        signals: SIGNALS as they were at the end of `holdout_from`.
        holdout: HOLDOUT, what users went for after it, up to `as_of`.
        products: PRODUCTS with `added_at`.
        popularity: POPULARITY as it was at the end of `holdout_from`.
        holdout_from: Last day the models see.
        as_of: Last day of the holdout.
        k: Length of the lists.
        settings: `cf_model`, `w_cf`, `w_content`, `content_dimensions`, `seed`, `block_bytes`,
            `evaluated_users` (most users asked, a seeded sample above it) and the settings of
            the collaborative model.
        progress: Told what is being measured.

    Returns:
        METRICS, a block of rows per model, baselines first; and the models left out, each with
        the reason.

    Raises:
        TooLittleDataError: if no user has both a past and a holdout.
    """
    products = _known_at(products, signals, holdout_from)
    matrix = build_signal_matrix(
        signals, user_ids=signals["user_id"], product_ids=products["product_id"]
    )
    relevant = _relevant(holdout, matrix)
    asked = np.flatnonzero(np.diff(relevant.indptr))
    if len(asked) == 0:
        raise TooLittleDataError(
            f"no user has signals up to {holdout_from} and chose a product new to them after it"
        )
    if len(asked) > settings["evaluated_users"]:
        rng = np.random.default_rng(settings["seed"])
        asked = np.sort(rng.choice(asked, settings["evaluated_users"], replace=False))
    eligible = available_items(products, matrix.product_ids)
    exclude, relevant = sp.csr_matrix(matrix.touched[asked]), sp.csr_matrix(relevant[asked])
    contenders, skipped = _contenders(matrix, products, popularity, asked, settings)

    tables = []
    for name, hybrid in contenders.items():
        progress(f"measuring {name} on {len(asked):,} users")
        lists = propose(
            hybrid,
            k=k,
            exclude=exclude,
            eligible=eligible,
            block_bytes=settings["block_bytes"],
            progress=lambda _: None,
        )
        metrics = ranking_metrics(lists.items, relevant, n_eligible=int(eligible.sum()))
        tables.append(metric_rows(f"{holdout_from}/{as_of}", name, TARGET, metrics, len(asked)))
    return pl.concat(tables).match_to_schema(METRICS), skipped


def _known_at(products: pl.DataFrame, signals: pl.DataFrame, day: date) -> pl.DataFrame:
    """The catalogue of that day: added by then, or, where no date says so, touched by then."""
    added = pl.col("added_at").dt.date() <= day
    touched = pl.col("product_id").is_in(signals["product_id"].unique().implode())
    return products.filter(touched | added.fill_null(False)).sort("product_id")


def _relevant(holdout: pl.DataFrame, matrix: SignalMatrix) -> sp.csr_matrix:
    known = holdout.filter(
        pl.col("is_new")
        & pl.col("user_id").is_in(matrix.user_ids.implode())
        & pl.col("product_id").is_in(matrix.product_ids.implode())
    )
    place = (
        positions(known["user_id"], matrix.user_ids),
        positions(known["product_id"], matrix.product_ids),
    )
    relevant = sp.csr_matrix(
        (np.ones(len(known), dtype=np.float32), place), shape=matrix.weights.shape
    )
    # A signal and a holdout row for the same product can only come from a signal that weighs
    # nothing; it is not new all the same.
    relevant = sp.csr_matrix(relevant - relevant.multiply(matrix.touched))
    relevant.eliminate_zeros()
    return relevant


def _contenders(
    matrix: SignalMatrix,
    products: pl.DataFrame,
    popularity: pl.DataFrame,
    asked: np.ndarray,
    settings: Mapping[str, Any],
) -> tuple[dict[str, Hybrid], dict[str, str]]:
    seed = settings["seed"]
    cf_name = settings["cf_model"]
    alone = {"random": fit_model("random", matrix, settings={}, seed=seed)}
    for name, window in (("popular", "all_time"), ("popular_28_days", "last_28_days")):
        scores = _global_list(popularity, window, matrix)
        alone[name] = fit_model("popularity", matrix, settings={"popularity": scores}, seed=seed)
    skipped: dict[str, str] = {}
    models: dict[str, Model | None] = {cf_name: None, "content": None}
    try:
        models[cf_name] = fit_model(cf_name, matrix, settings=settings, seed=seed)
    except TooLittleDataError as reason:
        skipped[cf_name] = str(reason)
    try:
        models["content"] = _content(matrix, products["text"], models[cf_name], settings)
    except TooLittleDataError as reason:
        skipped["content"] = str(reason)
    alone |= {name: model for name, model in models.items() if model is not None}

    contenders = {
        name: Hybrid(cf=model.for_users(asked), content=None, w_cf=1.0, w_content=0.0)
        for name, model in alone.items()
    }
    cf, content = models[cf_name], models["content"]
    if cf is not None and content is not None:
        contenders["hybrid"] = Hybrid(
            cf=cf.for_users(asked),
            content=content.for_users(asked),
            w_cf=settings["w_cf"],
            w_content=settings["w_content"],
        )
    return contenders, skipped


def _content(
    matrix: SignalMatrix, texts: pl.Series, cf: Model | None, settings: Mapping[str, Any]
) -> Model:
    """The content model in the family of the collaborative one, as the line blends them."""
    if isinstance(cf, FactorModel):
        vectors = product_vectors(
            texts, dimensions=settings["content_dimensions"], seed=settings["seed"]
        )
        return user_profiles(matrix, vectors)
    alike = text_neighbours(tfidf(texts), k=settings["content_neighbours"])
    return content_by_history(matrix, alike)


def _global_list(popularity: pl.DataFrame, window: str, matrix: SignalMatrix) -> np.ndarray:
    """A number per product that falls with its rank in a list; 0 for products not in it."""
    ranked = popularity.filter(
        (pl.col("segment_type") == "global")
        & (pl.col("time_window") == window)
        & pl.col("product_id").is_in(matrix.product_ids.implode())
    )
    scores = np.zeros(len(matrix.product_ids))
    if len(ranked):
        scores[positions(ranked["product_id"], matrix.product_ids)] = (
            1.0 / ranked["rank"].to_numpy()
        )
    return scores
