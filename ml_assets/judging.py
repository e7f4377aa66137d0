"""From lists to METRICS: all contenders judged by the same users, answers, segments and draws."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import scipy.sparse as sp

from ml_assets.evaluation import (
    PerUser,
    accuracy,
    catalogue_figures,
    diversity,
    fallback_share,
    find,
    novelty,
    self_information,
)
from ml_assets.frames import METRICS
from ml_assets.intervals import Resampled, draw_users, resample
from ml_assets.scoring import NOTHING
from ml_assets.segments import light_users, product_segments
from ml_assets.signal_matrix import SignalMatrix, places_of_entries

# What users are asked about, and what people call it.
TARGETS = {
    "new_products": "products new to the customer",
    "any_next": "anything next, repeats too",
}
# What people are shown of so many figures: a published list, and all users with a past.
SHOWN = ("recall@20", "ndcg@20", "map@20", "mrr@20", "hit_rate@20")
SHOWN_OF_LISTS = ("coverage@20", "gini@20", "novelty@20", "diversity@20", "fallback_share@20")


@dataclass(frozen=True)
class Questions:
    """Whom the models are asked about, and the answers.

    Attributes:
        matrix: Signals before the fold of the users asked, those without any too.
        relevant: `(n_users, n_items)`, an entry is what a user went for; indices sorted.
        is_new: `(n_entries,)` bool, the user had no signal for it.
        is_purchase: `(n_entries,)` bool, the user bought it.
        week: `(n_entries,)` int64, of the first event, from 1.
    """

    matrix: SignalMatrix
    relevant: sp.csr_matrix
    is_new: np.ndarray
    is_purchase: np.ndarray
    week: np.ndarray

    @property
    def is_known(self) -> np.ndarray:
        """`(n_users,)` bool: has a past."""
        return np.diff(self.matrix.weights.indptr) > 0

    def for_users(self, rows: np.ndarray) -> "Questions":
        """The same with only these users, in this order."""
        entries = places_of_entries(self.relevant)[rows]
        return Questions(
            matrix=self.matrix.for_users(rows),
            relevant=sp.csr_matrix(self.relevant[rows]),
            is_new=self.is_new[entries.data],
            is_purchase=self.is_purchase[entries.data],
            week=self.week[entries.data],
        )


@dataclass(frozen=True)
class Verdict:
    """Figures of one model's lists for one target and segment.

    Attributes:
        target: One of `TARGETS`.
        segment: See `Judge`.
        of_users: Means over users.
        of_catalogue: What has no interval: see `evaluation.catalogue_figures`.
    """

    target: str
    segment: str
    of_users: Resampled
    of_catalogue: dict[str, float]


class Judge:
    """Whoever is judged by the same one can be compared.

    Segments, each over the users with a past unless it says otherwise: `known`, all of them;
    `light` and `heavy` by `segments.light_users`; `cold`, the users without a past; `head`, `tail`
    and `new`, of what there was to find the products of `segments.product_segments`; `purchases`,
    what was bought; `week_1` and on, what users first went for in that week. Only users with
    something to find in a segment count in it.

    Attributes:
        facts: What the segments are in this fold, in words.
    """

    def __init__(
        self,
        questions: Questions,
        *,
        touched: sp.csr_matrix,
        eligible: np.ndarray,
        terms: sp.csr_matrix | None,
        seed: int,
    ) -> None:
        """Set the rules.

        Args:
            questions: Users and answers.
            touched: `(n_users, n_items)`, what all users touched before the fold, asked or not.
            eligible: `(n_items,)` bool, what can be shown.
            terms: `(n_items, d)`, what lists are diverse by; None when nothing is known.
            seed: Of the intervals.
        """
        self._questions, self._eligible, self._terms = questions, eligible, terms
        self._information = self_information(touched)
        known = questions.is_known
        is_light, most = light_users(np.diff(questions.matrix.weights.indptr))
        self._users = {
            "known": known,
            "light": is_light,
            "heavy": known & ~is_light,
            "cold": ~known,
        }
        of_product = product_segments(np.bincount(touched.indices, minlength=touched.shape[1]))
        self._answers = {
            **{name: is_in[questions.relevant.indices] for name, is_in in of_product.items()},
            "purchases": questions.is_purchase,
            **{f"week_{week}": questions.week == week for week in np.unique(questions.week)},
        }
        self._draws = draw_users(np.arange(len(known)), seed=seed)
        self.facts = {
            "light_users": f"up to {most:,} products touched before the fold; heavy users more",
            "head_products": f"{int(of_product['head'].sum()):,} of {touched.shape[1]:,} products "
            "make up half of all interactions before the fold; "
            f"{int(of_product['new'].sum()):,} are new, without any",
        }

    def verdicts(
        self, target: str, items: np.ndarray, *, is_fallback: np.ndarray, answers_cold: bool
    ) -> list[Verdict]:
        """Judge one contender's lists.

        Args:
            target: One of `TARGETS`.
            items: Lists of all users asked, `(n_users, 50)` or wider.
            is_fallback: Of the same shape, bool: the fallback chain filled the place.
            answers_cold: Whether it has lists for users without a past; else it is not asked.
        """
        relevant = self._questions.relevant
        found = find(items, relevant)
        counts = np.ones(relevant.nnz, dtype=bool)
        if target == "new_products":
            counts = self._questions.is_new
        of_lists = [
            accuracy(found, relevant, counts=counts),
            novelty(items, self._information),
            fallback_share(items, is_fallback),
        ]
        if self._terms is not None:
            of_lists.append(diversity(items, self._terms))
        has_answers = ~np.isnan(of_lists[0].values[:, 0])
        figures: list[tuple[str, PerUser]] = []
        of_catalogue: dict[str, dict[str, float]] = {}
        for segment, is_in in self._users.items():
            members = is_in & has_answers
            if not members.any() or (segment == "cold" and not answers_cold):
                continue
            figures += [(segment, each.only(members)) for each in of_lists]
            if (items[members] != NOTHING).any():
                of_catalogue[segment] = catalogue_figures(items[members], self._eligible)
        for segment, is_in in self._answers.items():
            of_segment = accuracy(found, relevant, counts=counts & is_in)
            figures.append((segment, of_segment.only(self._questions.is_known)))
        resampled = resample([each for _, each in figures], self._draws)
        return [
            Verdict(target, segment, of_users, of_catalogue.pop(segment, {}))
            for (segment, _), of_users in zip(figures, resampled, strict=True)
        ]


def metric_rows(
    fold: str, model: str, verdicts: list[Verdict], *, beside: str, of_other: list[Verdict]
) -> pl.DataFrame:
    """METRICS of one model.

    Args:
        fold: First and last day.
        model: Its name.
        verdicts: Of one judge.
        beside: The model to compare with.
        of_other: That model's verdicts by the same judge; none if there is no such model.
    """
    others = {(each.target, each.segment, each.of_users.names): each for each in of_other}
    frames = []
    for verdict in verdicts:
        of_users = verdict.of_users
        low, high = of_users.interval()
        columns = {"value": of_users.value, "low": low, "high": high, "n_users": of_users.n_users}
        other = others.get((verdict.target, verdict.segment, of_users.names))
        if other is not None and model != beside:
            difference = of_users.minus(other.of_users)
            columns["difference"] = difference.value
            columns["difference_low"], columns["difference_high"] = difference.interval()
        names = {"target": verdict.target, "segment": verdict.segment}
        frames.append(pl.DataFrame({**names, "metric": of_users.names, **columns}))
        for metric, value in verdict.of_catalogue.items():
            row = {**names, "metric": metric, "value": value, "n_users": of_users.n_users[0]}
            frames.append(pl.DataFrame(row))
    is_worse, is_better = pl.col("difference_high") < 0, pl.col("difference_low") > 0
    return (
        pl.concat(frames, how="diagonal")
        .match_to_schema(METRICS, missing_columns="insert")
        .filter(pl.col("n_users") > 0)
        .with_columns(pl.col(pl.Float64).fill_nan(None), fold=pl.lit(fold), model=pl.lit(model))
        .with_columns(
            compared_with=pl.when(pl.col("difference").is_not_null()).then(pl.lit(beside)),
            is_different=is_worse | is_better,
        )
    )


def metric_table(metrics: pl.DataFrame, *, target: str) -> str:
    """The main figures of METRICS over users with a past, as Markdown: a row per model."""
    known = metrics.filter((pl.col("target") == target) & (pl.col("segment") == "known"))
    return "\n\n".join(
        _table(known.filter(pl.col("metric").is_in(names)), "metric", names)
        for names in (SHOWN, SHOWN_OF_LISTS)
    )


def segment_table(metrics: pl.DataFrame, *, target: str, metric: str) -> str:
    """One figure of METRICS in all segments, as Markdown: a row per model."""
    rows = metrics.filter((pl.col("target") == target) & (pl.col("metric") == metric))
    return _table(rows, "segment", tuple(rows["segment"].unique(maintain_order=True)))


def _table(rows: pl.DataFrame, across: str, names: tuple[str, ...]) -> str:
    """▲ and ▼: above or below the model it is compared with, by `is_different`."""
    cells = {
        (model, name): f"{value:.4f}"
        + ("" if low is None else f" ({low:.4f} to {high:.4f})")
        + ("" if not is_different else " ▲" if difference > 0 else " ▼")
        for model, name, value, low, high, difference, is_different in rows.select(
            "model", across, "value", "low", "high", "difference", "is_different"
        ).iter_rows()
    }
    there = [name for name in names if any(name == key for _, key in cells)]
    lines = [f"| model | {' | '.join(there)} |", "|---" * (len(there) + 1) + "|"]
    for model in rows["model"].unique(maintain_order=True):
        row = " | ".join(cells.get((model, name), "") for name in there)
        lines.append(f"| {model} | {row} |")
    return "\n".join(lines)
