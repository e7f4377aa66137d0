"""Models and blends on folds of real shops: docs/accuracy.md.

    make accuracy
    make accuracy DATA=folder    # with complete_journey/ and deskdrop/ in it

The tables of each shop are built by the line; models learn what was known at the end of a day and
are asked about the four weeks after it. Everything that is learned or chosen (weights of the blend,
how scores get on one scale, settings, event weights, the ranker) comes from folds before the one
that is asked.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import scipy.sparse as sp
from bench_measure import machine
from bench_shops import OTHERS as OTHER_SHOPS
from bench_shops import Shop, online_retail
from learned_ranker import Ranker, examples, fit_ranker, ranked_lists
from lines import Line, line_in, why_it_failed

from ml_assets.assets import RecommenderSettings
from ml_assets.backtest import Past, learn, look_back, new_products_figures, rank
from ml_assets.blending import NORMALISATIONS, BlendWeights, Fold
from ml_assets.comparison import (
    answers,
    compare,
    evaluate_settings,
    excluded,
    fit_sources,
    learn_blend,
    learn_ensemble,
    lists_of,
    lists_of_each,
    opinions_on,
)
from ml_assets.evaluation import CUTOFFS
from ml_assets.folds import Fold as FoldTables
from ml_assets.tuning import BLEND_SPACE, SPACES, TRIALS, best_trial, search
from orchestration.backtests import get_fold
from orchestration.settings import REPOSITORY

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
# What a user did before comes only where it may come again.
AGAIN = ("repeat",)
LEARNED, HYBRID, TUNED = "learned blend", "0.7 / 0.3 hybrid", "0.7 / 0.3 hybrid, tuned"
# What the line serves with the settings that tune_settings finds for the model ensemble.
ENSEMBLE = "learned ensemble"
MEMBERS = ("item_item", "gf_cf", "graph_filter")
RANKER, STATED = "learned ranker", "as stated"
NEW, NEXT = "new_products", "any_next"
N_TRIALS = 60
N_SEEDS = 5
METRICS = ("recall@20", "ndcg@20")
# EASE on twenty thousand products takes more time than all the rest.
SETTINGS = {**RecommenderSettings().as_settings(), "memory_megabytes": 1024}
POWERS = {"flat weights": 0.0, "weights^0.5": 0.5, "weights^2": 2.0}
HALF_LIVES = {"half-life 15 days": 15, "half-life 60 days": 60, "no decay": 1_000_000}

# What compare takes of a fold: users, what they went for, lists by model.
Judged = tuple[pl.Series, sp.csr_matrix, dict[str, np.ndarray]]


def main() -> int:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with complete_journey/ and deskdrop/")
    parser.add_argument("--only", help="one shop; printed, and the page is left as it is")
    chosen = parser.parse_args()
    began = time.monotonic()
    shops, left_out = [online_retail()], []
    for name, shop in OTHER_SHOPS.items():
        if chosen.data is not None and (chosen.data / name).is_dir():
            shops.append(shop(chosen.data / name))
        else:
            left_out.append(name)
    parts = [_measure(shop) for shop in shops if chosen.only in (None, shop.name)]
    head = [
        "# Accuracy on real shops",
        "",
        f"Written by `make accuracy` in {(time.monotonic() - began) / 60:.0f} minutes on"
        f" {machine()} What the figures mean: [evaluation.md](evaluation.md).",
        "",
        "All products of the catalogue of that day are ranked; intervals hold 95 % of resampled"
        " users, folds pooled. A difference is the learned blend's less the model's, on the same"
        " users; ▲ says that its interval lies above zero, ▼ below. Whatever is learned or chosen"
        " comes from the two folds before the one that is asked. A model may take 1 GB. The sources"
        " of the blend were settled after two earlier forms of the first table had been seen.",
        *([f"Left out, for there was no folder: {', '.join(left_out)}."] if left_out else []),
        "",
    ]
    text = "\n".join([*head, *parts])
    if chosen.only is None:
        PAGE.write_text(text)
        print(PAGE)
    else:
        print(text)
    return 0


def _measure(shop: Shop) -> str:
    with tempfile.TemporaryDirectory() as folder:
        line = line_in(Path(folder), data=shop.land(Path(folder) / "shop"))
        tables = dg.AssetSelection.groups("raw", "staging", "intermediate", "marts")
        variables = {"config": {"variables": json.dumps(dict(shop.variables))}}
        result = line.run(tables, ops={"dbt_models": variables})
        if not result.success:
            raise SystemExit(why_it_failed(result))
        return _Measured(shop, line).page()


class _Measured:
    """One shop: its folds, each arranged once, and the models on them."""

    def __init__(self, shop: Shop, line: Line) -> None:
        self.shop, self.line = shop, line
        self.sources = (*SOURCES, *shop.sources)

        @cache
        def tables(day: date, variables: str = "{}") -> FoldTables:
            print(f"{time.strftime('%H:%M:%S')} {shop.name}: {day} {variables}", flush=True)
            return get_fold(
                line.settings,
                day,
                n_days=N_DAYS,
                progress=lambda _: None,
                variables={**shop.variables, **json.loads(variables)},
            )

        @cache
        def past(day: date, variables: str = "{}") -> Past:
            # Whatever is on trial, the questions stay the same.
            arguments = {**tables(day, variables).as_arguments, "holdout": tables(day).holdout}
            return look_back(**arguments, settings=SETTINGS)

        @cache
        def models(day: date) -> dict[str, Any]:
            found, skipped = fit_sources(
                past(day), (*self.sources, *OTHERS, *AGAIN), SETTINGS, users=tables(day).users
            )
            for name, reason in skipped.items():
                print(f"{day}: {name} is left out: {reason}", flush=True)
            return found

        @cache
        def opinions(day: date, target: str, normalisation: str) -> Fold:
            names = self.sources if target == NEW else (*self.sources, *AGAIN)
            sources = {name: models(day)[name] for name in names if name in models(day)}
            chosen = {**SETTINGS, "normalisation": normalisation}
            return opinions_on(past(day), sources, chosen, target=target)

        self.tables, self.past, self.models, self.opinions = tables, past, models, opinions

    def page(self) -> str:
        """The shop's part of the page."""
        tuned = self._tuned()
        # Once, before anything is asked that counts.
        normalisation, scores = self._normalisation(self.shop.days[0])
        parts = {target: self._pooled(target, normalisation, tuned) for target in (NEW, NEXT)}
        folds, weights, rankers = parts[NEW]
        pooled = self._compare(folds)
        alone = [self._compare([fold]) for fold in folds]
        days = ", ".join(str(day) for day in self.shop.days)
        return "\n".join(
            [
                f"## {self.shop.name}",
                "",
                f"{self.shop.about} Folds end on {days}; {N_DAYS} days each.",
                "",
                "### Products new to the user",
                "",
                *_pooled_table(pooled, beside=LEARNED),
                "",
                _verdict(pooled),
                "",
                *_ranker_text(pooled, rankers),
                "",
                "Recall@20 / NDCG@20 fold by fold:",
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
                *self._seeds(),
                "",
                "### Whatever comes next, what the user had before among it",
                "",
                *_pooled_table(self._compare(parts[NEXT][0]), beside=LEARNED),
                "",
                "### Event weights and half-life on trial",
                "",
                *self._trial(),
                "",
            ]
        )

    def _compare(self, folds: Sequence[Judged], beside: str = LEARNED) -> pl.DataFrame:
        return compare(folds, beside=beside, seed=SETTINGS["seed"])

    def _pooled(
        self, target: str, normalisation: str, tuned: Mapping[str, Any]
    ) -> tuple[list[Judged], list[BlendWeights], list[Ranker]]:
        """Each fold that is asked, with the blend and the ranker learned before it."""
        folds, weights, rankers = [], [], []
        for day in self.shop.days:
            earlier = [self.opinions(each, target, normalisation) for each in before(day)]
            learned = learn_blend(earlier)
            weights.append(learned)
            past, fold = self.past(day), self.opinions(day, target, normalisation)
            known = {
                name: model
                for name, model in self.models(day).items()
                if target == NEXT or name not in AGAIN
            }
            lists = lists_of_each(past, known, SETTINGS, target=target)
            ensemble = learn_ensemble([self.past(each) for each in before(day)], MEMBERS, SETTINGS)
            print(f"{day}: {ensemble}", flush=True)
            ensemble["cf_model"] = "ensemble"
            for name, settings in ((HYBRID, {}), (TUNED, tuned), (ENSEMBLE, ensemble)):
                lists[name] = self._hybrid(past, {**SETTINGS, **settings}, target)
            lists[LEARNED] = lists_of(fold, learned.of_users(fold.history_size))
            ranker = fit_ranker(
                [
                    examples(self.past(each), opinions, self.tables(each).products)
                    for each, opinions in zip(before(day), earlier, strict=True)
                ],
                seed=SETTINGS["seed"],
            )
            rankers.append(ranker)
            asked = examples(past, fold, self.tables(day).products)
            lists[RANKER] = ranked_lists(ranker, asked, k=CUTOFFS[-1])
            folds.append(self._judged(day, target, lists))
        return folds, weights, rankers

    def _judged(self, day: date, target: str, lists: dict[str, np.ndarray]) -> Judged:
        questions = self.past(day).questions
        users = questions.matrix.user_ids.filter(pl.Series(questions.is_known))
        return users, answers(self.past(day), target), lists

    def _hybrid(self, past: Past, settings: Mapping[str, Any], target: str = NEW) -> np.ndarray:
        """The blend of the line, before the fallback chain fills its lists."""
        blend = learn(past, settings).blend.for_users(past.asked)
        return rank(past, blend, excluded(past, target), settings=settings)

    def _normalisation(self, day: date) -> tuple[str, dict[str, float]]:
        """Each learned on one of the two folds before and asked on the other, both ways."""
        scores = {}
        for name in NORMALISATIONS:
            found = []
            for each, other in (before(day), before(day)[::-1]):
                learned = learn_blend([self.opinions(other, NEW, name)])
                fold = self.opinions(each, NEW, name)
                lists = lists_of(fold, learned.of_users(fold.history_size))
                found.append(self._judged(each, NEW, {LEARNED: lists}))
            scores[name] = _value(self._compare(found), LEARNED, "ndcg@20")
        return max(scores, key=lambda name: scores[name]), scores

    def _tuned(self) -> dict[str, Any]:
        """The best settings of item_item on the folds before the first day that is asked."""
        pasts = [self.past(day) for day in before(self.shop.days[0])]
        rows = search(
            "item_item",
            study=self.shop.name,
            space={**SPACES["item_item"], **BLEND_SPACE},
            start=SETTINGS,
            evaluate=lambda settings: evaluate_settings(pasts, SETTINGS, settings),
            n_trials=N_TRIALS,
            seconds=600.0,
            seed=SETTINGS["seed"],
            done=pl.DataFrame(schema=TRIALS),
        )
        best = best_trial(pl.concat(list(rows)))
        assert best is not None
        settings: dict[str, Any] = json.loads(best["settings"])
        return settings

    def _seeds(self) -> list[str]:
        """How far the figures of a model that draws at random are apart."""
        past = self.past(self.shop.days[-1])
        found = []
        for number in range(N_SEEDS):
            settings = {**SETTINGS, "cf_model": "als", "seed": SETTINGS["seed"] + number}
            figures = new_products_figures(past, settings)
            at = [figures.names.index(metric) for metric in METRICS]
            found.append(np.nanmean(figures.values[:, at], axis=0))
        mean, spread = np.mean(found, axis=0), np.std(found, axis=0, ddof=1)
        return [
            f"ALS draws at random; the 0.7 / 0.3 hybrid of it on the last fold with {N_SEEDS} seeds"
            f" has Recall@20 {mean[0]:.4f} ± {spread[0]:.4f} and NDCG@20 {mean[1]:.4f} ±"
            f" {spread[1]:.4f} (standard deviation). item_item, graph_filter, content and the"
            " blends of them draw nothing."
        ]

    def _trial(self) -> list[str]:
        """Other weights and half-lives, and the best of both by the folds before the first."""
        types = self.line.query(
            "select event_type, weight from staging.event_weights where weight > 0"
            " and event_type in (select event_type from intermediate.int_daily_signals)"
            " order by event_type"
        )
        powers: dict[str, dict[str, Any]] = {
            name: {
                "event_weights": {each: round(float(weight) ** power, 6) for each, weight in types}
            }
            for name, power in POWERS.items()
            if len(types) > 1
        }
        half_lives: dict[str, dict[str, Any]] = {
            name: {"half_life_days": days} for name, days in HALF_LIVES.items()
        }
        variants = {STATED: {}, **powers, **half_lives}
        earlier = before(self.shop.days[0])
        found = {name: self._on_trial(earlier, variant) for name, variant in variants.items()}
        both = {
            name: max((STATED, *family), key=lambda each: (found[each], each == STATED))
            for name, family in (("weights", powers), ("half-life", half_lives))
        }
        variants[f"tuned: {both['weights']}, {both['half-life']}"] = {
            **variants[both["weights"]],
            **variants[both["half-life"]],
        }
        tuned = list(variants)[-1]
        found[tuned] = self._on_trial(earlier, variants[tuned])
        folds = [
            self._judged(
                day,
                NEW,
                {
                    name: self._hybrid(self.past(day, json.dumps(variant)), SETTINGS)
                    for name, variant in variants.items()
                },
            )
            for day in self.shop.days
        ]
        pooled = self._compare(folds, beside=STATED)
        stated = ", ".join(f"{name} {weight:g}" for name, weight in types)
        return [
            f"The 0.7 / 0.3 hybrid on signals made with other weights; stated are {stated}, with a"
            " half-life of 30 days. "
            + (
                "Flat: all types weigh the same; ^0.5 and ^2 draw them together or apart. "
                if powers
                else "One type of event counts here, so flat weights are the stated ones. "
            )
            + "Tuned is the best of each by NDCG@20 on the two folds before the first, whose"
            " figure stands in the last column.",
            "",
            *_pooled_table(pooled, beside=STATED, extra=("validation", found)),
            "",
            _trial_verdict(pooled),
        ]

    def _on_trial(self, days: Sequence[date], variant: Mapping[str, Any]) -> float:
        pasts = [self.past(day, json.dumps(dict(variant))) for day in days]
        value = evaluate_settings(pasts, SETTINGS, {}).value
        assert value is not None
        return value


def before(day: date) -> tuple[date, date]:
    """The two folds before a day, latest first: their answers end on it and four weeks earlier."""
    return day - timedelta(days=N_DAYS), day - timedelta(days=2 * N_DAYS)


def _rows(pooled: pl.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["model"], row["metric"]): row for row in pooled.iter_rows(named=True)}


def _value(pooled: pl.DataFrame, model: str, metric: str) -> float:
    return float(_rows(pooled)[model, metric]["value"])


def _mark(row: Mapping[str, Any]) -> str:
    if row["difference_low"] > 0:
        return " ▲"
    return " ▼" if row["difference_high"] < 0 else ""


def _pooled_table(
    pooled: pl.DataFrame, *, beside: str, extra: tuple[str, Mapping[str, float]] | None = None
) -> list[str]:
    cells = _rows(pooled)
    names = sorted(
        {model for model, _ in cells}, key=lambda model: (cells[model, "ndcg@20"]["value"], model)
    )
    title, values = extra or ("", {})
    header = ["model", "Recall@20", f"{beside} ahead by", "NDCG@20", f"{beside} ahead by"]
    header += [title] if extra else []
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name in names:
        columns = []
        for metric in METRICS:
            row = cells[name, metric]
            columns.append(f"{row['value']:.4f} ({row['low']:.4f} to {row['high']:.4f})")
            columns.append(
                ""
                if name == beside
                else f"{row['difference']:+.4f} ({row['difference_low']:+.4f} to"
                f" {row['difference_high']:+.4f}){_mark(row)}"
            )
        columns += [f"{values[name]:.4f}"] if extra else []
        lines.append(f"| {name} | {' | '.join(columns)} |")
    n_users = cells[beside, "ndcg@20"]["n_users"]
    return [f"{n_users:,} users.", "", *lines]


def _verdict(pooled: pl.DataFrame) -> str:
    cells = _rows(pooled)
    level = [
        f"{name} in {label}"
        for name in dict.fromkeys(model for model, _ in cells)
        if name not in (LEARNED, RANKER, TUNED, ENSEMBLE)
        for metric, label in zip(METRICS, ("Recall@20", "NDCG@20"), strict=True)
        if not cells[name, metric]["difference_low"] > 0
    ]
    if not level:
        return (
            "The learned blend is ahead of every single model and of the 0.7 / 0.3 default in both"
            " figures, beyond chance."
        )
    return f"The learned blend is not ahead beyond chance of: {', '.join(level)}."


def _ranker_text(pooled: pl.DataFrame, rankers: Sequence[Ranker]) -> list[str]:
    cells = _rows(pooled)
    marks = {metric: _mark(cells[RANKER, metric]).strip() for metric in METRICS}
    if all(mark == "▼" for mark in marks.values()):
        verdict = "earns its place: it is ahead of the learned blend in both figures beyond chance"
    elif "▼" in marks.values() and "▲" not in marks.values():
        verdict = "is ahead of the learned blend in one figure beyond chance, level in the other"
    elif "▲" in marks.values():
        verdict = "does not earn its place: it is behind the learned blend"
    else:
        verdict = "does not earn its place: it is level with the learned blend"
    shares: dict[str, float] = {}
    for ranker in rankers:
        for name, share in ranker.importance().items():
            shares[name] = shares.get(name, 0.0) + share / len(rankers)
    largest = sorted(shares.items(), key=lambda each: -each[1])[:6]
    return [
        f"The learned ranker (LambdaMART over the same candidates) {verdict}. It goes by "
        + ", ".join(f"{name} ({share:.0%})" for name, share in largest)
        + "."
    ]


def _by_fold(alone: Sequence[pl.DataFrame], days: Sequence[date]) -> list[str]:
    tables = [_rows(each) for each in alone]
    names = dict.fromkeys(model for model, _ in tables[-1])
    ordered = sorted(names, key=lambda name: tables[-1][name, "ndcg@20"]["value"])
    return [
        f"| model | {' | '.join(str(day) for day in days)} |",
        "|---" * (len(days) + 1) + "|",
        *(
            f"| {name} | "
            + " | ".join(
                f"{table[name, 'recall@20']['value']:.4f} / {table[name, 'ndcg@20']['value']:.4f}"
                if (name, "ndcg@20") in table
                else ""
                for table in tables
            )
            + " |"
            for name in ordered
        ),
    ]


def _weights_table(weights: Sequence[BlendWeights], days: Sequence[date]) -> list[str]:
    names = weights[0].names
    lines = [f"| fold | products | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for day, each in zip(days, weights, strict=True):
        for start, row in zip(each.from_size, each.weights, strict=True):
            by_name = dict(zip(each.names, row, strict=True))
            numbers = " | ".join(f"{by_name.get(name, 0.0):.2f}" for name in names)
            lines.append(f"| {day} | from {start} | {numbers} |")
    return lines


def _tuned_sentence(pooled: pl.DataFrame, tuned: Mapping[str, Any]) -> str:
    share = [_value(pooled, HYBRID, metric) / _value(pooled, TUNED, metric) for metric in METRICS]
    settings = ", ".join(f"{name} {setting}" for name, setting in sorted(tuned.items()))
    return (
        f"Tuned by {N_TRIALS} trials on the two folds before the first: {settings}. The settings of"
        f" a fresh clone reach {share[0]:.1%} of its Recall@20 and {share[1]:.1%} of its NDCG@20."
    )


def _trial_verdict(pooled: pl.DataFrame) -> str:
    rows = [
        row
        for (name, metric), row in _rows(pooled).items()
        if metric == "ndcg@20" and name != STATED
    ]
    better = [row["model"] for row in rows if row["difference_high"] < 0]
    worse = [row["model"] for row in rows if row["difference_low"] > 0]
    return (
        f"Better than what is stated, beyond chance in NDCG@20: {', '.join(better) or 'nothing'}."
        f" Worse: {', '.join(worse) or 'nothing'}."
    )


if __name__ == "__main__":
    sys.exit(main())
