"""Finding settings: trials on folds of the past, each a row, never on the fold that judges.

The search is Optuna's tree-structured Parzen estimator (Akiba et al., "Optuna: A Next-generation
Hyperparameter Optimization Framework", KDD 2019; Bergstra et al., "Algorithms for Hyper-Parameter
Optimization", NIPS 2011). Its state is the rows of the trials and nothing else: each trial draws
with a seed of its own number, so a search that was stopped goes on as if it had not been.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import polars as pl

# One row per trial of a study; value is null where the model could not be fitted, and reason says
# why.
TRIALS = pl.Schema(
    {
        "study": pl.String,
        "trial": pl.Int32,
        "model": pl.String,
        "settings": pl.String,
        "metric": pl.String,
        "value": pl.Float64,
        "n_users": pl.Int64,
        "seconds": pl.Float64,
        "seed": pl.Int64,
        "reason": pl.String,
    }
)
METRIC = "ndcg@20"

# Lowest and highest value of what is searched, and whether on a logarithmic scale; whole numbers
# where both are. Or the words to choose from.
Range = tuple[float, float, bool] | tuple[str, ...]
Space = dict[str, Range]
SPACES: dict[str, Space] = {
    "item_item": {
        "neighbours": (20, 500, True),
        "user_power": (0.0, 1.5, False),
        "source_power": (0.0, 1.0, False),
        "target_power": (0.0, 1.0, False),
        "shrinkage": (0.1, 50.0, True),
    },
    "als": {
        "factors": (16, 192, True),
        "regularization": (1.0, 300.0, True),
        "alpha": (0.3, 80.0, True),
    },
    "graph_filter": {
        "neighbours": (100, 800, True),
        "filter_user_power": (0.0, 0.6, False),
        "filter_item_power": (0.2, 0.7, False),
        "filter_source_power": (0.0, 0.4, False),
        "filter_target_power": (0.0, 0.6, False),
        "filter_degree": (2, 5, False),
        "filter_gamma": (0.01, 1.0, True),
    },
    "gf_cf": {
        "neighbours": (100, 800, True),
        "low_pass_factors": (32, 512, True),
        "low_pass_weight": (0.0, 1.0, False),
    },
    "bspm": {
        "neighbours": (100, 1000, True),
        "low_pass_factors": (32, 512, True),
        "low_pass_weight": (0.0, 1.0, False),
        "sharpening": (0.1, 2.5, False),
        "sharpening_steps": (1, 3, False),
    },
    "item_knn": {
        "neighbours": (20, 500, True),
        "knn_weighting": ("cosine", "bm25", "tfidf"),
    },
    "rp3beta": {
        "neighbours": (20, 500, True),
        "walk_power": (0.3, 1.2, False),
        "walk_popularity_power": (0.0, 0.8, False),
    },
    # Its weights are learned at once: see `comparison.learn_ensemble`.
    "ensemble": {},
    "ease": {
        "neighbours": (100, 800, True),
        "ease_regularization": (10.0, 5000.0, True),
    },
}
# Of the blend of any of them with the content model; w_content is what w_cf leaves.
BLEND_SPACE: Space = {"w_cf": (0.3, 1.0, False), "content_neighbours": (10, 200, True)}


@dataclass(frozen=True)
class Outcome:
    """What a trial found.

    Attributes:
        value: The metric, the larger the better; None if the model could not be fitted.
        n_users: Users behind it.
        reason: Why there is no value.
    """

    value: float | None
    n_users: int
    reason: str | None = None


def search(
    model: str,
    *,
    study: str,
    space: Space,
    start: Mapping[str, Any],
    evaluate: Callable[[dict[str, Any]], Outcome],
    n_trials: int,
    seconds: float,
    seed: int,
    done: pl.DataFrame,
    fixed: Mapping[str, Any] | None = None,
) -> Iterator[pl.DataFrame]:
    """Try settings until the trials or the seconds are used up.

    The first trial is the settings one starts from, so what is found is never worse than they are.

    Args:
        model: Its name, for the rows.
        study: What the trials have in common: model, folds, data. Trials of another are left alone.
        space: What is searched.
        start: The settings to start from, all of those that are searched.
        evaluate: Measures settings.
        n_trials: Trials in all, those done before included.
        seconds: No trial starts later than this.
        seed: Of the search.
        done: TRIALS of earlier runs.
        fixed: Settings that belong to every trial and are not searched.

    Yields:
        TRIALS, one row for each trial, as it ends.
    """
    began = time.monotonic()
    trials = done.filter(pl.col("study") == study).sort("trial")
    while len(trials) < n_trials and time.monotonic() - began < seconds:
        number = len(trials)
        settings = {
            **(fixed or {}),
            **_next_settings(space, start, trials, seed=seed + number),
        }
        trial_began = time.monotonic()
        outcome = evaluate(settings)
        row = pl.DataFrame(
            {
                "study": study,
                "trial": number,
                "model": model,
                "settings": json.dumps(settings, sort_keys=True),
                "metric": METRIC,
                "value": outcome.value,
                "n_users": outcome.n_users,
                "seconds": time.monotonic() - trial_began,
                "seed": seed,
                "reason": outcome.reason,
            },
            schema=TRIALS,
        )
        trials = trials.vstack(row)
        yield row


def _next_settings(
    space: Space, start: Mapping[str, Any], trials: pl.DataFrame, *, seed: int
) -> dict[str, Any]:
    # Imported here: seconds, and only a search needs it.
    import optuna

    if len(trials) == 0:
        both = [name for name in ("w_content",) if "w_cf" in space]
        return {name: start[name] for name in (*space, *both)}
    tried = [json.loads(row) for row in trials["settings"]]
    distributions = {
        name: _distribution(each, [settings[name] for settings in (start, *tried)])
        for name, each in space.items()
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=8),
    )
    for row in trials.iter_rows(named=True):
        settings = json.loads(row["settings"])
        failed = row["value"] is None
        study.add_trial(
            optuna.trial.create_trial(
                params={name: settings[name] for name in space},
                distributions=distributions,
                value=None if failed else row["value"],
                state=optuna.trial.TrialState.FAIL if failed else optuna.trial.TrialState.COMPLETE,
            )
        )
    return _with_content_weight(study.ask(distributions).params)


def _distribution(each: Range, tried: Sequence[Any]) -> Any:
    """The range, and what one starts from where it lies outside."""
    import optuna

    if isinstance(each[0], str):
        return optuna.distributions.CategoricalDistribution(list(dict.fromkeys([*each, *tried])))
    low, high, is_log = cast(tuple[float, float, bool], each)
    low, high = min(low, *tried), max(high, *tried)
    # There is no logarithm of 0.
    is_log = is_log and low > 0
    if isinstance(low, int) and isinstance(high, int):
        return optuna.distributions.IntDistribution(low, high, log=is_log)
    return optuna.distributions.FloatDistribution(low, high, log=is_log)


def _with_content_weight(settings: dict[str, Any]) -> dict[str, Any]:
    # Six digits say as much, and stand in a table without noise.
    rounded = {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in settings.items()
    }
    if "w_cf" in rounded:
        rounded["w_content"] = float(f"{1 - rounded['w_cf']:.6g}")
    return rounded


def best_trial(trials: pl.DataFrame) -> dict[str, Any] | None:
    """The row of TRIALS with the largest value, the earliest of equal ones; None without any."""
    judged = trials.filter(pl.col("value").is_not_null())
    if len(judged) == 0:
        return None
    return judged.sort("value", "trial", descending=[True, False]).row(0, named=True)
