"""Finding settings: trials on folds of the past, each a row, never on the fold that judges.

The search is Optuna's tree-structured Parzen estimator (Akiba et al., "Optuna: A Next-generation
Hyperparameter Optimization Framework", KDD 2019; Bergstra et al., "Algorithms for Hyper-Parameter
Optimization", NIPS 2011). Its state is the rows of the trials and nothing else: each trial draws
with a seed of its own number, so a search that was stopped goes on as if it had not been.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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

# Lowest and highest value of what is searched, and whether it is searched on a logarithmic scale;
# whole numbers where both are.
Range = tuple[float, float, bool]
_OF_BLEND: dict[str, Range] = {"w_cf": (0.3, 1.0, False)}
SPACES: dict[str, dict[str, Range]] = {
    "item_item": {
        "neighbours": (20, 500, True),
        "user_power": (0.0, 1.5, False),
        "source_power": (0.0, 1.0, False),
        "target_power": (0.0, 1.0, False),
        "shrinkage": (0.1, 50.0, True),
        "content_neighbours": (10, 200, True),
        **_OF_BLEND,
    },
    "als": {
        "factors": (16, 192, True),
        "regularization": (1.0, 300.0, True),
        "alpha": (0.3, 40.0, True),
        **_OF_BLEND,
    },
}


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
    start: Mapping[str, Any],
    evaluate: Callable[[dict[str, Any]], Outcome],
    n_trials: int,
    seconds: float,
    seed: int,
    done: pl.DataFrame,
) -> Iterator[pl.DataFrame]:
    """Try settings until the trials or the seconds are used up.

    The first trial is the settings one starts from, so what is found is never worse than they are.

    Args:
        model: A name in `SPACES`.
        study: What the trials have in common: model, folds, data. Trials of another are left alone.
        start: The settings to start from, all of those that are searched.
        evaluate: Measures settings.
        n_trials: Trials in all, those done before included.
        seconds: No trial starts later than this.
        seed: Of the search.
        done: TRIALS of earlier runs.

    Yields:
        TRIALS, one row for each trial, as it ends.

    Raises:
        ValueError: if there is no such model to search.
    """
    if model not in SPACES:
        raise ValueError(
            f"there is nothing to search for {model!r}; choose one of {', '.join(sorted(SPACES))}"
        )
    began = time.monotonic()
    trials = done.filter(pl.col("study") == study).sort("trial")
    while len(trials) < n_trials and time.monotonic() - began < seconds:
        number = len(trials)
        settings = _next_settings(model, start, trials, seed=seed + number)
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
    model: str, start: Mapping[str, Any], trials: pl.DataFrame, *, seed: int
) -> dict[str, Any]:
    # Imported here: seconds, and only a search needs it.
    import optuna

    space = {
        name: _distribution(low, high, is_log=is_log)
        for name, (low, high, is_log) in SPACES[model].items()
    }
    if len(trials) == 0:
        return _with_content_weight({name: start[name] for name in space})
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
                distributions=space,
                value=None if failed else row["value"],
                state=optuna.trial.TrialState.FAIL if failed else optuna.trial.TrialState.COMPLETE,
            )
        )
    return _with_content_weight(study.ask(space).params)


def _distribution(low: float, high: float, *, is_log: bool) -> Any:
    import optuna

    if isinstance(low, int) and isinstance(high, int):
        return optuna.distributions.IntDistribution(low, high, log=is_log)
    return optuna.distributions.FloatDistribution(low, high, log=is_log)


def _with_content_weight(settings: dict[str, Any]) -> dict[str, Any]:
    # Six digits say as much, and stand in a table without noise.
    rounded = {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in settings.items()
    }
    return {**rounded, "w_content": float(f"{1 - rounded['w_cf']:.6g}")}


def best_trial(trials: pl.DataFrame) -> dict[str, Any] | None:
    """The row of TRIALS with the largest value, the earliest of equal ones; None without any."""
    judged = trials.filter(pl.col("value").is_not_null())
    if len(judged) == 0:
        return None
    return judged.sort("value", "trial", descending=[True, False]).row(0, named=True)
