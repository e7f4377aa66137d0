"""What the weights of the blend and the length of the history are worth, and lists to read.

All on the fold of METRICS and its answers. Where no more users were asked there than here, see
`assets.USERS_OF_A_CURVE`, the curves run through the figures of the blend as they stand there;
otherwise they are of a sample of those users.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp

from ml_assets.backtest import (
    Learned,
    Past,
    chain_for_all,
    not_to_show,
    without_segment,
)
from ml_assets.blending import ask, best_of_blend
from ml_assets.comparison import CANDIDATES_OF_A_SOURCE
from ml_assets.evaluation import PerUser, accuracy, find
from ml_assets.fallback import fill_lists
from ml_assets.frames import BLEND_CURVE, LEARNING_CURVE, RECOMMENDATIONS
from ml_assets.intervals import draw_users, resample
from ml_assets.judging import TARGETS
from ml_assets.models import FactorModel, Model, content_by_history, fit_model, user_profiles
from ml_assets.recommend import Hybrid, Lists, propose, recommend
from ml_assets.scoring import NOTHING, Progress
from ml_assets.signal_matrix import CannotFitError, SignalMatrix, build_signal_matrix

# A published list.
K = 20
_W_CF = np.linspace(0.0, 1.0, 11).round(1)
_SHORTEST_DAYS = 28
_N_EXAMPLES = 5


@dataclass(frozen=True)
class Curves:
    """What was found.

    Attributes:
        blend: BLEND_CURVE, no rows unless both models could be fitted.
        learning: LEARNING_CURVE, no rows unless one could.
        examples: RECOMMENDATIONS of a few users, made at the end of the fold's day as they are
            made every day.
    """

    blend: pl.DataFrame
    learning: pl.DataFrame
    examples: pl.DataFrame


def curves(
    past: Past,
    learned: Learned,
    *,
    signals: pl.DataFrame,
    products: pl.DataFrame,
    holdout_from: date,
    settings: Mapping[str, Any],
    progress: Progress,
) -> Curves:
    """Measure the blend for other weights and for shorter histories.

    Args:
        past: The fold.
        learned: See `backtest.learn`.
        signals: DATED_SIGNALS, what the fold was made from.
        products: PRODUCTS, for titles.
        holdout_from: Last day the models see.
        settings: As of `backtest.learn`, and `top_n`.
        progress: Told what is being measured.
    """
    hybrid = learned.blend.for_users(past.asked)
    if not hybrid.models:
        return Curves(*(pl.DataFrame(schema=each) for each in _SCHEMAS))
    progress("blending with other weights")
    blend = _blend_curve(past, hybrid, settings)
    return Curves(
        blend=blend,
        learning=_learning_curve(past, hybrid, signals, holdout_from, settings, progress),
        examples=_examples(past, hybrid, products, settings),
    )


# Beyond so many a model takes seconds to learn, and fewer points tell the same.
_MANY_SIGNALS = 1_000_000
_SCHEMAS = (BLEND_CURVE, LEARNING_CURVE, RECOMMENDATIONS)


class _Measure:
    """Figures of lists of the users with a past, filled up like those of the blend in METRICS.

    What is added to one is drawn together: curves are smooth where models are.
    """

    def __init__(self, past: Past, seed: int) -> None:
        self._questions = past.questions
        self._chain = chain_for_all(past.questions, past.popularity)
        self._excluded = not_to_show(past.questions)
        self._draws = draw_users(np.arange(len(past.questions.is_known)), seed=seed)
        self._keys: list[dict[str, Any]] = []
        self._figures: list[PerUser] = []

    def excluded(self, target: str) -> sp.csr_matrix:
        """What lists of the users with a past leave out."""
        return sp.csr_matrix(self._excluded[target][self._questions.is_known])

    def add(self, target: str, best: np.ndarray, **keys: Any) -> None:
        """Lists of the users with a past, `(n_known, 20)` or wider."""
        is_known, relevant = self._questions.is_known, self._questions.relevant
        items = np.full((len(is_known), K), NOTHING, dtype=np.int32)
        items[is_known] = best[:, :K]
        filled, _ = fill_lists(items, self._chain, exclude=self._excluded[target])
        counts = self._questions.is_new if target == "new_products" else None
        figures = accuracy(find(filled, relevant), relevant, counts=counts, cutoffs=(K,))
        self._figures.append(figures.only(is_known))
        self._keys.append({**keys, "target": target})

    def frame(self, schema: pl.Schema) -> pl.DataFrame:
        """A row per list of lists and figure."""
        rows = []
        for keys, found in zip(self._keys, resample(self._figures, self._draws), strict=True):
            bounds = found.interval()
            columns = (found.names, found.value, *bounds, found.n_users)
            names = ("metric", "value", "low", "high", "n_users")
            rows += [
                {**keys, **dict(zip(names, row, strict=True))} for row in zip(*columns, strict=True)
            ]
        frame = pl.DataFrame(rows, schema=schema).with_columns(pl.col(pl.Float64).fill_nan(None))
        return frame.filter(pl.col("n_users") > 0)


def _blend_curve(past: Past, hybrid: Hybrid, settings: Mapping[str, Any]) -> pl.DataFrame:
    """BLEND_CURVE, from one pass over the models: what both proposed is weighted anew."""
    if hybrid.cf is None or hybrid.content is None:
        return pl.DataFrame(schema=BLEND_CURVE)
    measure = _Measure(past, settings["seed"])
    for target in TARGETS:
        opinions = ask(
            {"cf": hybrid.cf, "content": hybrid.content},
            k=CANDIDATES_OF_A_SOURCE,
            exclude=measure.excluded(target),
            eligible=past.eligible,
            block_bytes=settings["block_bytes"],
        )
        for w_cf in _W_CF:
            w_content = round(1.0 - w_cf, 1)
            weights = np.tile([w_cf, w_content], (len(opinions.items), 1))
            best, _ = best_of_blend(opinions, weights, k=K)
            measure.add(target, best, w_cf=float(w_cf), w_content=float(w_content))
    return measure.frame(BLEND_CURVE)


def _learning_curve(
    past: Past,
    hybrid: Hybrid,
    signals: pl.DataFrame,
    holdout_from: date,
    settings: Mapping[str, Any],
    progress: Progress,
) -> pl.DataFrame:
    """LEARNING_CURVE: each time twice the days (or four times), for the same users and questions.

    Models and users' histories are cut short; what users had before is not shown to them all the
    same. A pair is kept by its latest event and keeps its weight, in which older events have a
    faded share.
    """
    measure = _Measure(past, settings["seed"])
    for n_days, recent in _histories(signals, holdout_from):
        progress(f"learning from {n_days:,} days")
        if len(recent) < len(signals):
            matrix = build_signal_matrix(
                recent, user_ids=past.matrix.user_ids, product_ids=past.matrix.product_ids
            )
            shorter = _learned(matrix, hybrid, past.asked, settings)
        else:
            shorter = hybrid
        for target in TARGETS:
            best = _proposed(past, shorter, measure.excluded(target), settings, k=K).items
            measure.add(target, best, n_days=n_days, n_signals=len(recent))
    return measure.frame(LEARNING_CURVE)


def _histories(signals: pl.DataFrame, holdout_from: date) -> Iterator[tuple[int, pl.DataFrame]]:
    """Days, and the signals of so many days; the last are all."""
    day = signals["last_at"].dt.date()
    n_days_of_all = int((holdout_from - day).dt.total_days().max()) + 1  # type: ignore[arg-type]
    n_days = _SHORTEST_DAYS
    while n_days < n_days_of_all:
        recent = signals.filter(day > holdout_from - timedelta(days=n_days))
        if len(recent):
            yield n_days, recent
        n_days *= 2 if len(signals) <= _MANY_SIGNALS else 4
    yield n_days_of_all, signals


def _learned(
    matrix: SignalMatrix, hybrid: Hybrid, asked: np.ndarray, settings: Mapping[str, Any]
) -> Hybrid:
    """The blend as it is learned from other signals; what texts say stays as it is."""
    cf = content = None
    try:
        fitted = fit_model(settings["cf_model"], matrix, settings=settings, seed=settings["seed"])
        cf = fitted.for_users(asked)
    except CannotFitError:
        pass
    if hybrid.content is not None:
        content = _with_histories(hybrid.content, matrix).for_users(asked)
    return replace(hybrid, cf=cf, content=content)


def _with_histories(content: Model, matrix: SignalMatrix) -> Model:
    if isinstance(content, FactorModel):
        return user_profiles(matrix, content.item_factors)
    return content_by_history(matrix, content.follows)


def _proposed(
    past: Past, hybrid: Hybrid, exclude: sp.csr_matrix, settings: Mapping[str, Any], *, k: int
) -> Lists:
    return propose(
        hybrid,
        k=k,
        exclude=exclude,
        eligible=past.eligible,
        block_bytes=settings["block_bytes"],
        progress=lambda _: None,
    )


def _examples(
    past: Past, hybrid: Hybrid, products: pl.DataFrame, settings: Mapping[str, Any]
) -> pl.DataFrame:
    """Lists of a few users with a past and a future, whom no one chose: the first by MD5 of id."""
    user_ids = past.matrix.user_ids.gather(past.asked)
    in_order = sorted(range(len(user_ids)), key=lambda row: _digest(user_ids[row]))
    rows = np.sort(np.array(in_order[:_N_EXAMPLES], dtype=np.int64))
    matrix, own = past.matrix.for_users(past.asked[rows]), hybrid.for_users(rows)
    explained, _ = recommend(
        _proposed(past, own, matrix.bought, settings, k=settings["top_n"]),
        matrix=matrix,
        hybrid=own,
        users=without_segment(matrix.user_ids),
        products=products,
        popularity=past.popularity,
        top_n=settings["top_n"],
    )
    return explained


def _digest(user_id: str) -> str:
    return hashlib.md5(user_id.encode(), usedforsecurity=False).hexdigest()
