"""The models asked about a past they have not seen, beside baselines that know almost nothing.

Two targets, each with lists that may hold its answers: `any_next`, whatever users went for, with
lists of the whole catalogue, and `new_products`, what they had no signal for, with lists that
leave out what they had. Everybody of the holdout is asked; users without a past are a segment of
their own (`cold`), since a model that cannot know them has no list for them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp

from ml_assets.content import product_vectors, terms_or_reason, text_neighbours
from ml_assets.evaluation import CUTOFFS, PerUser, accuracy, find
from ml_assets.fallback import PopularityLists, arrange_popularity, fill_lists
from ml_assets.frames import USERS
from ml_assets.judging import TARGETS, Judge, Questions, Verdict, metric_rows
from ml_assets.models import (
    FactorModel,
    Model,
    content_by_history,
    fit_model,
    user_profiles,
)
from ml_assets.promotion import DEFAULT, LIVE
from ml_assets.recommend import Hybrid, propose, random_lists
from ml_assets.scoring import NOTHING, Progress
from ml_assets.segments import weeks_after
from ml_assets.signal_matrix import (
    CannotFitError,
    SignalMatrix,
    TooLittleDataError,
    available_items,
    build_signal_matrix,
    entry_keys,
    positions,
)


@dataclass(frozen=True)
class Backtest:
    """What a backtest found.

    Attributes:
        metrics: METRICS, a block of rows per model, baselines first.
        skipped: The models left out, each with the reason.
        facts: What the segments are in this fold, and who was not asked, in words.
    """

    metrics: pl.DataFrame
    skipped: dict[str, str]
    facts: dict[str, str]


# Lists of all users of one kind, from what not to show them, `(n_users, n_items)`.
_Ranker = Callable[[sp.csr_matrix], np.ndarray]


@dataclass(frozen=True)
class _Contender:
    """A model, or what stands for one.

    Attributes:
        known: Ranks for the asked users with a past.
        cold: Ranks for those without; None if it can have no list for them.
        is_filled: The fallback chain fills its lists, as it does before they are published.
    """

    known: _Ranker
    cold: _Ranker | None
    is_filled: bool = False


@dataclass(frozen=True)
class Past:
    """A day of the past, arranged: what models learn from, and what they are asked.

    Attributes:
        fold: Its name in METRICS.
        matrix: Signals of all users at the end of the day.
        questions: Whom to ask, and the answers.
        eligible: `(n_items,)` bool, what could have been recommended.
        texts: What each product's text says, `(n_items,)`.
        terms: `(n_items, d)` TF-IDF of the texts; None where nothing can be learned from them.
        no_terms: Why there are none.
        popularity: POPULARITY of what could have been recommended.
    """

    fold: str
    matrix: SignalMatrix
    questions: Questions
    eligible: np.ndarray
    texts: pl.Series
    terms: sp.csr_matrix | None
    no_terms: str
    popularity: pl.DataFrame

    @property
    def asked(self) -> np.ndarray:
        """Rows of `matrix` that are the asked users with a past, `(n,)` int64."""
        known = self.questions.matrix.user_ids.filter(pl.Series(self.questions.is_known))
        return positions(known, self.matrix.user_ids)

    def ask_fewer(self, n_users: int, *, seed: int) -> "Past":
        """The same with so many of its users asked, a seeded sample."""
        n_asked = self.questions.relevant.shape[0]
        if n_asked <= n_users:
            return self
        return replace(self, questions=self.questions.for_users(_draw(n_asked, n_users, seed)))


@dataclass(frozen=True)
class Learned:
    """What the models learned from a past.

    Attributes:
        blend: Over all users of the past's matrix, without a model that could not be fitted.
        skipped: Those by name, each with the reason.
    """

    blend: Hybrid
    skipped: dict[str, str]


def backtest(
    past: Past,
    learned: Learned,
    *,
    settings: Mapping[str, Any],
    progress: Progress,
    live: Mapping[str, Any] | None = None,
) -> Backtest:
    """Metrics of every model and baseline on a fold.

    Users are asked only about products that were in the catalogue then: a product added later
    cannot have been recommended. `hybrid` is filled up by the fallback chain like a published
    list, but by its lists for everybody only, since a user's segment of that day is not known.

    Everything is compared with `hybrid`. Segments are those of `judging.Judge`.

    Args:
        past: The fold.
        learned: See `learn`.
        settings: What it was learned by.
        progress: Told what is being measured.
        live: Settings of what is live, if they are others: its blend becomes a contender, `live`.
    """
    questions = past.questions
    contenders, skipped = _contenders(past, learned, settings, live)
    judge = _judge(past, settings["seed"])
    found: dict[str, list[Verdict]] = {}
    for name, contender in contenders.items():
        progress(f"measuring {name} on {len(questions.is_known):,} users")
        found[name] = []
        for target, items, is_fallback in _lists(contender, questions, past.popularity):
            found[name] += judge.verdicts(
                target, items, is_fallback=is_fallback, answers_cold=contender.cold is not None
            )
    metrics = pl.concat(
        [
            metric_rows(past.fold, name, verdicts, beside=DEFAULT, of_other=found.get(DEFAULT, []))
            for name, verdicts in found.items()
        ]
    )
    return Backtest(metrics, skipped, judge.facts | _who_was_asked(questions, contenders))


def look_back(
    *,
    signals: pl.DataFrame,
    holdout: pl.DataFrame,
    products: pl.DataFrame,
    popularity: pl.DataFrame,
    holdout_from: date,
    as_of: date,
    settings: Mapping[str, Any],
) -> Past:
    """Arrange a fold.

    Args:
        signals: SIGNALS as they were at the end of `holdout_from`.
        holdout: HOLDOUT, what users went for after it, up to `as_of`.
        products: PRODUCTS with `added_at`.
        popularity: POPULARITY as it was at the end of `holdout_from`.
        holdout_from: Last day the models see.
        as_of: Last day of the holdout.
        settings: `evaluated_users` (most users asked, a seeded sample above it) and `seed`.

    Raises:
        TooLittleDataError: if no user has both a past and a holdout.
    """
    products = _known_at(products, signals, holdout_from)
    matrix = build_signal_matrix(
        signals, user_ids=signals["user_id"], product_ids=products["product_id"]
    )
    questions = _questions(signals, holdout, matrix.product_ids, holdout_from, settings)
    if not questions.is_known.any():
        raise TooLittleDataError(
            f"no user has signals up to {holdout_from} and went for a product of the catalogue "
            "after it"
        )
    eligible = available_items(products, matrix.product_ids)
    available = matrix.product_ids.gather(np.flatnonzero(eligible))
    terms, no_terms = terms_or_reason(products["text"])
    return Past(
        fold=f"{holdout_from}/{as_of}",
        matrix=matrix,
        questions=questions,
        eligible=eligible,
        texts=products["text"],
        terms=terms,
        no_terms=no_terms,
        popularity=popularity.filter(pl.col("product_id").is_in(available.implode())),
    )


def judge_published(past: Past, published: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """METRICS of lists as they were published at the end of the fold's day, model `published`.

    What the catalogue did not have yet counts as a miss. Figures beyond the length of the lists
    are left out.

    Args:
        past: The fold.
        published: RECOMMENDATIONS of all users.
        seed: Of the intervals.
    """
    user_ids = past.questions.matrix.user_ids
    rows = published.join(
        pl.DataFrame({"user_id": user_ids, "row": np.arange(len(user_ids))}), on="user_id"
    ).join(
        pl.DataFrame(
            {"product_id": past.matrix.product_ids, "item": np.arange(len(past.eligible))}
        ),
        on="product_id",
        how="left",
    )
    items = np.full((len(user_ids), CUTOFFS[-1]), NOTHING, dtype=np.int32)
    is_fallback = np.zeros(items.shape, dtype=bool)
    rows = rows.filter(pl.col("rank") <= CUTOFFS[-1])
    place = rows["row"].to_numpy(), rows["rank"].to_numpy() - 1
    items[place] = rows["item"].fill_null(NOTHING).to_numpy()
    is_fallback[place] = ~rows["source"].is_in(["hybrid", "content"]).to_numpy()
    judge = _judge(past, seed)
    verdicts = [
        verdict
        for target in TARGETS
        for verdict in judge.verdicts(target, items, is_fallback=is_fallback, answers_cold=True)
    ]
    metrics = metric_rows(past.fold, "published", verdicts, beside="published", of_other=[])
    length = published["rank"].max() or 0
    return metrics.filter(pl.col("metric").str.extract(r"@(\d+)$", 1).cast(pl.Int32) <= length)


def _judge(past: Past, seed: int) -> Judge:
    return Judge(
        past.questions,
        touched=past.matrix.touched,
        eligible=past.eligible,
        terms=past.terms,
        seed=seed,
    )


def _known_at(products: pl.DataFrame, signals: pl.DataFrame, day: date) -> pl.DataFrame:
    """The catalogue of that day: added by then, or, where no date says so, touched by then."""
    added = pl.col("added_at").dt.date() <= day
    touched = pl.col("product_id").is_in(signals["product_id"].unique().implode())
    return products.filter(touched | added.fill_null(False)).sort("product_id")


def _questions(
    signals: pl.DataFrame,
    holdout: pl.DataFrame,
    product_ids: pl.Series,
    holdout_from: date,
    settings: Mapping[str, Any],
) -> Questions:
    answers = holdout.filter(pl.col("product_id").is_in(product_ids.implode()))
    user_ids = answers["user_id"].unique().sort()
    if len(user_ids) > settings["evaluated_users"]:
        drawn = _draw(len(user_ids), settings["evaluated_users"], settings["seed"])
        user_ids = user_ids.gather(drawn)
        answers = answers.filter(pl.col("user_id").is_in(user_ids.implode()))
    matrix = build_signal_matrix(
        signals.filter(pl.col("user_id").is_in(user_ids.implode())),
        user_ids=user_ids,
        product_ids=product_ids,
    )
    row = positions(answers["user_id"], matrix.user_ids)
    column = positions(answers["product_id"], matrix.product_ids)
    order = np.lexsort((column, row))
    row, column, answers = row[order], column[order], answers[order]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(user_ids)))])
    relevant = sp.csr_matrix(
        (np.ones(len(row), np.float32), column.astype(np.int32), indptr.astype(np.int32)),
        shape=matrix.weights.shape,
    )
    # A signal and a holdout row for the same product that is called new can only come from a
    # signal that weighs nothing; it is not new all the same.
    asked, touched = entry_keys(relevant), entry_keys(matrix.weights)
    # Both ascend.
    at = np.searchsorted(touched, asked)
    is_touched = np.append(touched, -1)[at] == asked
    return Questions(
        matrix=matrix,
        relevant=relevant,
        is_new=answers["is_new"].to_numpy() & ~is_touched,
        is_purchase=answers["n_purchases"].to_numpy() > 0,
        week=weeks_after(answers["first_at"], holdout_from),
    )


def _draw(n: int, n_drawn: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).choice(n, n_drawn, replace=False))


def _contenders(
    past: Past, learned: Learned, settings: Mapping[str, Any], live: Mapping[str, Any] | None
) -> tuple[dict[str, _Contender], dict[str, str]]:
    seed, questions = settings["seed"], past.questions
    acquainted = questions.matrix.for_users(np.flatnonzero(questions.is_known))
    strangers = questions.matrix.for_users(np.flatnonzero(~questions.is_known))

    def by(hybrid: Hybrid) -> _Ranker:
        return partial(rank, past, hybrid, settings=settings)

    def by_chance(seed: int) -> _Ranker:
        return lambda exclude: random_lists(
            k=CUTOFFS[-1], exclude=exclude, eligible=past.eligible, seed=seed
        )

    def blend(hybrid: Hybrid) -> _Contender:
        nobody = replace(hybrid, cf=None, content=None)
        return _Contender(by(hybrid), by(nobody), is_filled=True)

    contenders = {"random": _Contender(by_chance(seed), by_chance(seed + 1))}
    for name, window in (("popular", "all_time"), ("popular_28_days", "last_28_days")):
        scores = {"popularity": global_popularity(past, window)}
        known, cold = (
            by(alone(fit_model("popularity", each, settings=scores, seed=seed)))
            for each in (acquainted, strangers)
        )
        contenders[name] = _Contender(known, cold)
    hybrid = learned.blend.for_users(past.asked)
    for name, model in ((settings["cf_model"], hybrid.cf), ("content", hybrid.content)):
        if model is not None:
            contenders[name] = _Contender(by(alone(model)), None)
    if hybrid.models:
        # Of one model too, where the other cannot be fitted: what would be published is judged.
        contenders[DEFAULT] = blend(hybrid)
        if live is not None:
            contenders[LIVE] = blend(learn(past, live).blend.for_users(past.asked))
    return contenders, learned.skipped


def learn(past: Past, settings: Mapping[str, Any]) -> Learned:
    """The blend as these settings have it.

    Args:
        past: The fold.
        settings: `cf_model`, `w_cf`, `w_content`, `content_dimensions`, `content_neighbours`,
            `seed`, `block_bytes` and the settings of the collaborative model.
    """
    skipped: dict[str, str] = {}
    cf = content = None
    try:
        cf = fit_model(settings["cf_model"], past.matrix, settings=settings, seed=settings["seed"])
    except CannotFitError as reason:
        skipped[settings["cf_model"]] = str(reason)
    if past.terms is None:
        skipped["content"] = past.no_terms
    else:
        content = content_model(past, past.terms, cf, settings)
    blend = Hybrid(cf, content, w_cf=settings["w_cf"], w_content=settings["w_content"])
    return Learned(blend, skipped)


def rank(
    past: Past, hybrid: Hybrid, exclude: sp.csr_matrix, *, settings: Mapping[str, Any]
) -> np.ndarray:
    """Lists of the users of `hybrid`, `(n_users, 50)`, from what not to show them."""
    return propose(
        hybrid,
        k=CUTOFFS[-1],
        exclude=exclude,
        eligible=past.eligible,
        block_bytes=settings["block_bytes"],
        progress=lambda _: None,
    ).items


def new_products_figures(past: Past, settings: Mapping[str, Any]) -> PerUser:
    """What the blend of these settings finds that is new to the users with a past.

    The figures that settings are compared by; for all there is to know see `backtest`.

    Raises:
        TooLittleDataError: if neither model can be fitted.
    """
    learned = learn(past, settings)
    if not learned.blend.models:
        raise TooLittleDataError("; ".join(learned.skipped.values()))
    is_known = past.questions.is_known
    exclude = sp.csr_matrix(past.questions.matrix.touched[is_known])
    items = np.full((len(is_known), CUTOFFS[-1]), NOTHING, dtype=np.int32)
    items[is_known] = rank(past, learned.blend.for_users(past.asked), exclude, settings=settings)
    relevant = past.questions.relevant
    return accuracy(find(items, relevant), relevant, counts=past.questions.is_new).only(is_known)


def alone(model: Model) -> Hybrid:
    return Hybrid(cf=model, content=None, w_cf=1.0, w_content=0.0)


def content_model(
    past: Past, terms: sp.csr_matrix, cf: Model | None, settings: Mapping[str, Any]
) -> Model:
    """The content model in the family of the collaborative one, as the line blends them."""
    if isinstance(cf, FactorModel):
        vectors = product_vectors(
            past.texts, dimensions=settings["content_dimensions"], seed=settings["seed"]
        )
        return user_profiles(past.matrix, vectors)
    return content_by_history(past.matrix, text_neighbours(terms, k=settings["content_neighbours"]))


def _lists(
    contender: _Contender, questions: Questions, popularity: pl.DataFrame
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """For each target lists of all users asked, and which places the fallback chain filled."""
    is_known, excluded = questions.is_known, not_to_show(questions)
    items = np.full((len(is_known), CUTOFFS[-1]), NOTHING, dtype=np.int32)
    if contender.cold is not None and not is_known.all():
        items[~is_known] = contender.cold(sp.csr_matrix(excluded["any_next"][~is_known]))
    for target in TARGETS:
        exclude = excluded[target]
        items[is_known] = contender.known(sp.csr_matrix(exclude[is_known]))
        if contender.is_filled:
            filled, step = fill_lists(items, chain_for_all(questions, popularity), exclude=exclude)
            yield target, filled, step != NOTHING
        else:
            yield target, items, np.zeros(items.shape, dtype=bool)


def not_to_show(questions: Questions) -> dict[str, sp.csr_matrix]:
    """By target what lists leave out, `(n_users, n_items)` each."""
    matrix = questions.matrix
    nothing = sp.csr_matrix(matrix.weights.shape, dtype=np.float32)
    return {"new_products": matrix.touched, "any_next": nothing}


def chain_for_all(questions: Questions, popularity: pl.DataFrame) -> PopularityLists:
    """The fallback chain of the users asked, by its lists for everybody."""
    matrix = questions.matrix
    return arrange_popularity(popularity, without_segment(matrix.user_ids), matrix)


def without_segment(user_ids: pl.Series) -> pl.DataFrame:
    """USERS of whom nothing is known."""
    return pl.DataFrame({"user_id": user_ids}).match_to_schema(USERS, missing_columns="insert")


def _who_was_asked(questions: Questions, contenders: Mapping[str, _Contender]) -> dict[str, str]:
    n_cold = int((~questions.is_known).sum())
    silent = [name for name, contender in contenders.items() if contender.cold is None]
    return {
        "users": f"{int(questions.is_known.sum()):,} with a past, {n_cold:,} without (cold)",
        **({"not_asked_about_cold_users": ", ".join(silent)} if n_cold and silent else {}),
    }


def global_popularity(past: Past, window: str) -> np.ndarray:
    """A number per product that falls with its rank in a list for everybody; 0 if not in it."""
    ranked = past.popularity.filter(
        (pl.col("segment_type") == "global")
        & (pl.col("time_window") == window)
        & pl.col("product_id").is_in(past.matrix.product_ids.implode())
    )
    scores = np.zeros(len(past.eligible))
    if len(ranked):
        scores[positions(ranked["product_id"], past.matrix.product_ids)] = (
            1.0 / ranked["rank"].to_numpy()
        )
    return scores
