"""Models and blends on folds of real shops: docs/accuracy.md.

    make accuracy

The tables of each shop are built by the line; models learn what was known at the end of a day and
are asked about the four weeks after it. Everything that is learned or chosen (weights of the blend,
how scores get on one scale, settings) comes from folds before the one that is asked.
"""

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import scipy.sparse as sp
from bench_measure import machine
from lines import line_in, why_it_failed

from ml_assets.assets import RecommenderSettings
from ml_assets.backtest import Past, fit_blend, look_back, new_products_figures, rank
from ml_assets.blending import NORMALISATIONS, BlendWeights, Fold
from ml_assets.comparison import (
    compare,
    fit_sources,
    learn_blend,
    lists_of,
    lists_of_each,
    new_answers,
    opinions_on,
)
from ml_assets.tuning import BLEND_SPACE, SPACES, TRIALS, Outcome, best_trial, search
from orchestration.backtest_assets import fold_arguments
from orchestration.backtests import get_fold
from orchestration.settings import REPOSITORY, Settings

PAGE = REPOSITORY / "docs" / "accuracy.md"
N_DAYS = 28
# Blended; the others are shown beside them.
SOURCES = (
    "item_item",
    "als",
    "graph_filter",
    "gf_cf",
    "content",
    "popular_28_days",
    "trending",
)
OTHERS = ("popular", "item_knn", "rp3beta", "ease")
LEARNED, HYBRID, TUNED = "learned blend", "0.7 / 0.3 hybrid", "0.7 / 0.3 hybrid, tuned"
N_TRIALS = 60
METRICS = ("recall@20", "ndcg@20")


@dataclass(frozen=True)
class Shop:
    """A shop, and the days whose following four weeks are asked about."""

    name: str
    text: str
    data: Path
    days: tuple[date, ...]


SHOPS = (
    Shop(
        "Online Retail",
        "The bundled shop: purchases and cancellations of a British gift shop, December 2010 to "
        "December 2011.",
        REPOSITORY / "data" / "online_retail",
        (date(2011, 9, 11), date(2011, 10, 11), date(2011, 11, 11)),
    ),
)


def main() -> int:
    """Measure, and write the page."""
    began = time.monotonic()
    parts = [_measure(shop) for shop in SHOPS]
    head = [
        "# Accuracy on real shops",
        "",
        f"Written by `make accuracy` in {(time.monotonic() - began) / 60:.0f} minutes on"
        f" {machine()} What the figures mean: [evaluation.md](evaluation.md).",
        "",
        "Only products new to the user count; all products of the catalogue are ranked; intervals"
        " hold 95 % of resampled users, folds pooled. A difference is the learned blend's less the"
        " model's, on the same users; ▲ says that its interval lies above zero. Whatever is"
        " learned or chosen comes from the two folds before the one that is asked.",
        "",
    ]
    PAGE.write_text("\n".join([*head, *parts]))
    print(PAGE)
    return 0


def _measure(shop: Shop) -> str:
    with tempfile.TemporaryDirectory() as folder:
        line = line_in(Path(folder), data=shop.data)
        tables = dg.AssetSelection.groups("raw", "staging", "intermediate", "marts")
        result = line.run(tables)
        if not result.success:
            raise SystemExit(why_it_failed(result))
        return _Measured(shop, line.settings).page()


class _Measured:
    """One shop: its folds, each arranged once, and the models on them."""

    def __init__(self, shop: Shop, settings: Settings) -> None:
        self.shop, self.settings = shop, RecommenderSettings().as_settings()

        @cache
        def past(day: date) -> Past:
            print(f"{shop.name}: {day}", flush=True)
            fold = get_fold(settings, day, n_days=N_DAYS, progress=lambda _: None)
            return look_back(**fold_arguments(fold), settings=self.settings)

        @cache
        def models(day: date) -> dict[str, Any]:
            found, skipped = fit_sources(past(day), (*SOURCES, *OTHERS), self.settings)
            for name, reason in skipped.items():
                print(f"{day}: {name} is left out: {reason}", flush=True)
            return found

        @cache
        def opinions(day: date, normalisation: str) -> Fold:
            sources = {name: each for name, each in models(day).items() if name in SOURCES}
            chosen = {**self.settings, "normalisation": normalisation}
            return opinions_on(past(day), sources, chosen)

        self.past, self.models, self.opinions = past, models, opinions

    def page(self) -> str:
        """The shop's part of the page."""
        tuned = self._tuned()
        folds, weights = [], []
        # Once, before anything is asked that counts.
        normalisation, scores = self._normalisation(self.shop.days[0])
        for day in self.shop.days:
            learned = learn_blend([self.opinions(each, normalisation) for each in before(day)])
            weights.append(learned)
            folds.append(self._lists(day, learned, normalisation, tuned))
        pooled = compare(folds, beside=LEARNED, seed=self.settings["seed"])
        alone = [compare([fold], beside=LEARNED, seed=self.settings["seed"]) for fold in folds]
        days = ", ".join(str(day) for day in self.shop.days)
        return "\n".join(
            [
                f"## {self.shop.name}",
                "",
                f"{self.shop.text} Folds end on {days}; {N_DAYS} days each.",
                "",
                *_pooled_table(pooled),
                "",
                "NDCG@20 fold by fold:",
                "",
                *_by_fold(alone, self.shop.days),
                "",
                "Weights that were learned, by the number of products a user touched:",
                "",
                *_weights_table(weights, self.shop.days),
                "",
                "How scores get on one scale, by NDCG@20 of blends learned on one of the two folds"
                " before the first and asked on the other; the best is taken: "
                + ", ".join(f"{name} {score:.4f}" for name, score in scores.items())
                + ".",
                "",
                _tuned_sentence(pooled, tuned),
                "",
            ]
        )

    def _normalisation(self, day: date) -> tuple[str, dict[str, float]]:
        """Each learned on one of the two folds before and asked on the other, both ways."""
        scores = {}
        for name in NORMALISATIONS:
            found = []
            for each, other in (before(day), before(day)[::-1]):
                learned = learn_blend([self.opinions(other, name)])
                fold = self.opinions(each, name)
                lists = lists_of(fold, learned.of_users(fold.history_size))
                found.append((self._users(each), new_answers(self.past(each)), {LEARNED: lists}))
            figures = compare(found, beside=LEARNED, seed=1)
            scores[name] = figures.filter(pl.col("metric") == "ndcg@20")["value"][0]
        return max(scores, key=lambda name: scores[name]), scores

    def _lists(
        self, day: date, learned: BlendWeights, normalisation: str, tuned: Mapping[str, Any]
    ) -> tuple[pl.Series, sp.csr_matrix, dict[str, np.ndarray]]:
        past, fold = self.past(day), self.opinions(day, normalisation)
        exclude = sp.csr_matrix(past.questions.matrix.touched[past.questions.is_known])
        lists = lists_of_each(past, self.models(day), self.settings)
        for name, settings in ((HYBRID, self.settings), (TUNED, {**self.settings, **tuned})):
            lists[name] = rank(past, fit_blend(past, settings)[0], exclude, settings=settings)
        lists[LEARNED] = lists_of(fold, learned.of_users(fold.history_size))
        return self._users(day), new_answers(past), lists

    def _users(self, day: date) -> pl.Series:
        questions = self.past(day).questions
        return questions.matrix.user_ids.filter(pl.Series(questions.is_known))

    def _tuned(self) -> dict[str, Any]:
        """The best settings of item_item on the folds before the first day that is asked."""
        pasts = [self.past(day) for day in before(self.shop.days[0])]

        def evaluate(settings: dict[str, Any]) -> Outcome:
            values = np.concatenate(
                [
                    figures.values[:, figures.names.index("ndcg@20")]
                    for figures in (
                        new_products_figures(past, {**self.settings, **settings}) for past in pasts
                    )
                ]
            )
            asked = values[~np.isnan(values)]
            return Outcome(float(asked.mean()), len(asked))

        rows = search(
            "item_item",
            study=self.shop.name,
            space={**SPACES["item_item"], **BLEND_SPACE},
            start=self.settings,
            evaluate=evaluate,
            n_trials=N_TRIALS,
            seconds=600.0,
            seed=self.settings["seed"],
            done=pl.DataFrame(schema=TRIALS),
        )
        best = best_trial(pl.concat(list(rows)))
        assert best is not None
        settings: dict[str, Any] = json.loads(best["settings"])
        return settings


def before(day: date) -> tuple[date, date]:
    """The two folds before a day, latest first: their answers end on it and four weeks earlier."""
    return day - timedelta(days=N_DAYS), day - timedelta(days=2 * N_DAYS)


def _pooled_table(pooled: pl.DataFrame) -> list[str]:
    cells = {(row["model"], row["metric"]): row for row in pooled.iter_rows(named=True)}
    names = sorted(
        {model for model, _ in cells}, key=lambda model: cells[model, "ndcg@20"]["value"]
    )
    lines = [
        "| model | Recall@20 | learned blend ahead by | NDCG@20 | learned blend ahead by |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        columns = []
        for metric in METRICS:
            row = cells[name, metric]
            columns.append(f"{row['value']:.4f} ({row['low']:.4f} to {row['high']:.4f})")
            mark = " ▲" if row["difference_low"] > 0 else ""
            columns.append(
                ""
                if name == LEARNED
                else f"{row['difference']:+.4f} ({row['difference_low']:+.4f} to"
                f" {row['difference_high']:+.4f}){mark}"
            )
        lines.append(f"| {name} | {' | '.join(columns)} |")
    n_users = cells[LEARNED, "ndcg@20"]["n_users"]
    return [f"{n_users:,} users.", "", *lines]


def _by_fold(alone: Sequence[pl.DataFrame], days: Sequence[date]) -> list[str]:
    tables = [
        dict(each.filter(pl.col("metric") == "ndcg@20").select("model", "value").iter_rows())
        for each in alone
    ]
    names = sorted(tables[-1], key=lambda name: tables[-1][name])
    return [
        f"| model | {' | '.join(str(day) for day in days)} |",
        "|---" * (len(days) + 1) + "|",
        *(f"| {name} | {' | '.join(f'{table[name]:.4f}' for table in tables)} |" for name in names),
    ]


def _weights_table(weights: Sequence[BlendWeights], days: Sequence[date]) -> list[str]:
    names = weights[0].names
    lines = [f"| fold | products | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for day, each in zip(days, weights, strict=True):
        for start, row in zip(each.from_size, each.weights, strict=True):
            numbers = " | ".join(f"{weight:.2f}" for weight in row)
            lines.append(f"| {day} | from {start} | {numbers} |")
    return lines


def _tuned_sentence(pooled: pl.DataFrame, tuned: Mapping[str, Any]) -> str:
    def value(model: str, metric: str) -> float:
        is_it = (pl.col("model") == model) & (pl.col("metric") == metric)
        return float(pooled.filter(is_it)["value"][0])

    share = [value(HYBRID, metric) / value(TUNED, metric) for metric in METRICS]
    settings = ", ".join(f"{name} {setting}" for name, setting in sorted(tuned.items()))
    return (
        f"Tuned by {N_TRIALS} trials on the two folds before the first: {settings}. The settings of"
        f" a fresh clone reach {share[0]:.1%} of its Recall@20 and {share[1]:.1%} of its NDCG@20."
    )


if __name__ == "__main__":
    sys.exit(main())
