"""The models on Gowalla's published split, beside the published figures: docs/gowalla.md.

    make benchmark-accuracy GOWALLA=folder

Settings are searched on a part held out of train; test is asked once per model, at the end. Models
run through recmart's own matrices and scoring. Peak memory is that of a process of its own for each
model.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp
from bench_data import Split, gowalla, signals_of_matrix, split_at_random
from bench_measure import machine

from ml_assets.assets import RecommenderSettings
from ml_assets.blending import Fold, ask, best_of_blend, learn_weights
from ml_assets.evaluation import accuracy, find
from ml_assets.models import fit_model
from ml_assets.signal_matrix import CannotFitError
from ml_assets.tuning import SPACES, TRIALS, Outcome, best_trial, search

PAGE = Path(__file__).resolve().parent.parent / "docs" / "gowalla.md"
K = 20
SEED = 20111209
# As much as the published split left for test, to the eye: test is a fifth of each user's items.
HELD_OUT = 0.1
# Users that a trial is judged by; all are asked in the end.
ASKED_IN_TRIALS = 8_000
PROPOSED = 200
# Where a search starts when the line's own settings are for another kind of data.
STARTS: dict[str, dict[str, Any]] = {
    "als": {"factors": 128, "regularization": 30.0, "alpha": 40.0},
    "item_item": {"user_power": 0.7, "source_power": 0.8, "target_power": 0.2, "shrinkage": 0.1},
    # Those of its authors for this split.
    "bspm": {
        "neighbours": 1000,
        "low_pass_factors": 448,
        "low_pass_weight": 0.2,
        "sharpening": 2.5,
        "sharpening_steps": 1,
    },
}
SEARCHED = (
    "graph_filter",
    "item_item",
    "rp3beta",
    "item_knn",
    "als",
    "gf_cf",
    "bspm",
    "ease",
)
# The best published model of this split and, for what it does not see, a factor model.
UNLIKE = ("bspm", "als")
PUBLISHED = (
    ("ItemCF (cosine, 100 neighbours)", 0.1570, 0.1214),
    ("MF-BPR", 0.1627, 0.1378),
    ("SLIM", 0.1699, 0.1382),
    ("EASE", 0.1765, 0.1467),
    ("LightGCN", 0.1820, 0.1547),
    ("MF-CCL", 0.1837, 0.1493),
    ("GF-CF", 0.1849, 0.1518),
    ("UltraGCN", 0.1862, 0.1580),
    ("SimpleX", 0.1872, 0.1557),
    ("BSPM-LM", 0.1901, 0.1570),
    ("BSPM-EM", 0.1920, 0.1597),
)


@dataclass(frozen=True)
class Found:
    """What became of one model; figures are None where it could not be fitted."""

    model: str
    settings: dict[str, Any]
    trials: int
    search_seconds: float
    seconds: float
    peak_bytes: int
    validation: float | None
    recall: float | None
    ndcg: float | None
    reason: str | None = None


def main() -> int:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where train and test of Gowalla are")
    parser.add_argument("--trials", type=int, default=14)
    parser.add_argument("--seconds", type=float, default=240.0, help="of each model's search")
    arguments = parser.parse_args()
    began = time.monotonic()
    found = [
        _in_a_process(_one_model, name, arguments.folder, arguments.trials, arguments.seconds)
        for name in SEARCHED
    ]
    fitted = sorted(
        (each for each in found if each.validation is not None),
        key=lambda each: -(each.validation or 0.0),
    )
    for each in fitted:
        print(f"{each.model}: {each.validation:.4f} held out", flush=True)
    sources = {each.model: each.settings for each in fitted}
    best = list(sources)
    blends = [
        _in_a_process(_blend, {name: sources[name] for name in names}, arguments.folder, is_learned)
        for names, is_learned in ((best[:5], True), (best[:6], False), (UNLIKE, False))
    ]
    PAGE.write_text(_page(found, blends, seconds=time.monotonic() - began))
    print(PAGE)
    return 0


def _in_a_process(work: Any, *arguments: Any) -> Any:
    """Run in a process of its own, so that its peak of memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def _one_model(name: str, folder: Path, n_trials: int, seconds: float) -> Found:
    split = gowalla(folder)
    inner = held_out(split)
    asked = _some_users(inner)
    base = {**RecommenderSettings().as_settings(), "memory_megabytes": 12_000}
    start = {**base, **STARTS.get(name, {})}

    def evaluate(settings: dict[str, Any]) -> Outcome:
        try:
            figures = _figures(name, {**start, **settings}, inner, asked)
        except CannotFitError as reason:
            return Outcome(None, 0, str(reason))
        return Outcome(figures["ndcg@20"], len(asked))

    began = time.monotonic()
    trials = pl.DataFrame(schema=TRIALS)
    for row in search(
        name,
        study="gowalla",
        space=SPACES[name],
        start=start,
        evaluate=evaluate,
        n_trials=n_trials,
        seconds=seconds,
        seed=SEED,
        done=trials,
    ):
        trials = trials.vstack(row)
        print(name, row["settings"][0], row["value"][0], row["reason"][0], flush=True)
        if row["value"][0] is None:
            break
    search_seconds = time.monotonic() - began
    best = best_trial(trials)
    if best is None:
        reason = str(trials["reason"][0])
        return Found(name, {}, len(trials), search_seconds, 0.0, 0, None, None, None, reason)
    settings = {**start, **json.loads(best["settings"])}
    began = time.monotonic()
    everyone = np.arange(split.train.shape[0])
    figures = _figures(name, settings, split, everyone)
    return Found(
        model=name,
        settings=json.loads(best["settings"]),
        trials=len(trials),
        search_seconds=search_seconds,
        seconds=time.monotonic() - began,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        validation=best["value"],
        recall=figures["recall@20"],
        ndcg=figures["ndcg@20"],
    )


def held_out(split: Split) -> Split:
    """A part of each user's training items, to search settings on."""
    return split_at_random(split.train, name="held out of train", share=HELD_OUT, seed=SEED)


def _some_users(split: Split) -> np.ndarray:
    has_answer = np.flatnonzero(np.diff(split.test.indptr))
    rng = np.random.default_rng(SEED)
    return np.sort(rng.choice(has_answer, min(ASKED_IN_TRIALS, len(has_answer)), replace=False))


def _figures(
    name: str, settings: Mapping[str, Any], split: Split, users: np.ndarray
) -> dict[str, float]:
    model = fit_model(name, signals_of_matrix(split.train), settings=settings, seed=SEED)
    opinions = ask(
        {name: model.for_users(users)},
        k=K,
        exclude=sp.csr_matrix(split.train[users]),
        eligible=np.ones(split.train.shape[1], dtype=bool),
        block_bytes=settings["block_bytes"],
    )
    best, _ = best_of_blend(opinions, np.ones((len(users), 1)), k=K)
    return _means(best, sp.csr_matrix(split.test[users]))


def _means(best: np.ndarray, relevant: sp.csr_matrix) -> dict[str, float]:
    relevant.sort_indices()
    return accuracy(find(best, relevant), relevant, cutoffs=(K,)).means()


def _blend(sources: Mapping[str, Mapping[str, Any]], folder: Path, is_learned: bool) -> Found:
    split = gowalla(folder)
    began = time.monotonic()
    base = {**RecommenderSettings().as_settings(), "memory_megabytes": 12_000}
    weights = np.full(len(sources), 1 / len(sources))
    if is_learned:
        inner = held_out(split)
        fold = _opinions(sources, base, inner, _some_users(inner))
        weights = learn_weights([fold], k=K, from_size=(0,)).weights[0]
    chosen = {
        name: settings
        for (name, settings), weight in zip(sources.items(), weights, strict=True)
        if weight > 0
    }
    everyone = np.arange(split.train.shape[0])
    seen = _opinions(chosen, base, split, everyone)
    kept = weights[weights > 0]
    best, _ = best_of_blend(seen.opinions, np.tile(kept, (len(everyone), 1)), k=K)
    figures = _means(best, split.test)
    return Found(
        model="learned blend" if is_learned else f"equal blend of {len(sources)}",
        settings={name: round(float(weight), 3) for name, weight in zip(chosen, kept, strict=True)},
        trials=0,
        search_seconds=0.0,
        seconds=time.monotonic() - began,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        validation=None,
        recall=figures["recall@20"],
        ndcg=figures["ndcg@20"],
    )


def _opinions(
    sources: Mapping[str, Mapping[str, Any]],
    base: Mapping[str, Any],
    split: Split,
    users: np.ndarray,
) -> Fold:
    signals = signals_of_matrix(split.train)
    models = {
        name: fit_model(name, signals, settings={**base, **settings}, seed=SEED).for_users(users)
        for name, settings in sources.items()
    }
    opinions = ask(
        models,
        k=PROPOSED,
        exclude=sp.csr_matrix(split.train[users]),
        eligible=np.ones(split.train.shape[1], dtype=bool),
        block_bytes=base["block_bytes"],
    )
    relevant = sp.csr_matrix(split.test[users])
    return Fold(opinions, relevant, history_size=np.diff(split.train[users].indptr))


def _page(found: list[Found], blends: list[Found], *, seconds: float) -> str:
    ours = [
        (
            f"**recmart {each.model}**",
            each.recall,
            each.ndcg,
            f"{each.seconds:.0f}",
            f"{each.peak_bytes / 2**30:.1f}",
        )
        for each in (*found, *blends)
        if each.recall is not None
    ]
    theirs = [(name, recall, ndcg, "", "") for name, recall, ndcg in PUBLISHED]
    rows = sorted([*ours, *theirs], key=lambda row: row[1] or 0.0)
    lines = [
        "# Gowalla, beside the published figures",
        "",
        f"Written by `make benchmark-accuracy` in {seconds / 60:.0f} minutes on {machine()}",
        "",
        "The split of NGCF and LightGCN (BARS id Gowalla_m1): 29,858 users, 40,981 places, 810,128"
        " pairs to learn from, 217,242 to find, all of one weight and without times. All places are"
        " ranked but those a user has; means over all users. Published figures are those of BARS"
        " and Papers with Code. Settings were searched on a tenth of each user's training places,"
        " held out; test was asked once per row. A blend is a weighted sum of z-scores: one with"
        " weights learned on the held-out part, the others with equal weights. Seconds are training"
        " and scoring of all users (of the learned blend twice, and the learning); memory is the"
        " peak of the whole process, the search included.",
        "",
        "| model | Recall@20 | NDCG@20 | seconds | GiB |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {recall:.4f} | {ndcg:.4f} | {spent} | {memory} |"
            for name, recall, ndcg, spent, memory in rows
        ),
        "",
        *(
            f"The {each.model}: "
            f"{', '.join(f'{weight} {name}' for name, weight in each.settings.items())}."
            for each in blends
        ),
        "",
        "The search of als, item_item and bspm starts from settings known for this split (bspm:"
        " those of its authors), the others from those of a fresh clone. bspm and als are blended"
        " because they are unlike each other and bspm is the best published model here, not because"
        " of anything held out; earlier versions of this page, without that blend and with other"
        " settings of bspm, had asked test as well, and before this blend was taken up four of bspm"
        " with als and item_item had been (0.1951 to 0.1976 Recall@20).",
        "",
        "What is held out at random is not quite what the published split holds back: there the"
        " places to find are more popular ones (91 users of the training part in the mean, against"
        " 75 of what there is to learn from). The graph filter, the best by far on the held-out"
        " part, loses on test what it gains there, and weights learned there lean on it. Holding"
        " out one place of each user and those nearest to it, a fifth in all, was tried as well and"
        " was no better: weights learned on three such draws had 0.1823 / 0.1505 on test, the best"
        " single model found there 0.1878 / 0.1556.",
        "",
        "## Settings that were found",
        "",
        "| model | trials | seconds of search | NDCG@20 held out | settings |",
        "|---|---|---|---|---|",
        *(
            f"| {each.model} | {each.trials} | {each.search_seconds:.0f} | {each.validation:.4f} |"
            f" {', '.join(f'{name} {value}' for name, value in each.settings.items())} |"
            for each in found
            if each.validation is not None
        ),
    ]
    left_out = [each for each in found if each.reason]
    if left_out:
        lines += ["", *(f"{each.model} was left out: {each.reason}." for each in left_out)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
