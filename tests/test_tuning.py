"""The search for settings: what it tries, what it keeps, that it can be stopped and goes on."""

import json

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ml_assets.assets import RecommenderSettings
from ml_assets.tuning import BLEND_SPACE, SPACES, TRIALS, Outcome, best_trial, search

START = RecommenderSettings().as_settings()
SPACE = {**SPACES["item_item"], **BLEND_SPACE}
NOTHING_DONE = pl.DataFrame(schema=TRIALS)


def hill(settings):
    """Highest at user_power 0.3 and w_cf 0.9."""
    miss = abs(settings["user_power"] - 0.3) + abs(settings["w_cf"] - 0.9)
    return Outcome(value=1 - miss, n_users=10)


def run(
    evaluate=hill,
    *,
    n_trials=12,
    seed=1,
    done=NOTHING_DONE,
    seconds=60.0,
    study="s",
    space=SPACE,
    start=START,
):
    rows = search(
        "item_item",
        study=study,
        space=space,
        start=start,
        evaluate=evaluate,
        n_trials=n_trials,
        seconds=seconds,
        seed=seed,
        done=done,
    )
    return pl.concat([NOTHING_DONE, *rows])


def without_cost(trials):
    return trials.drop("seconds")


def test_the_first_trial_is_the_settings_one_starts_from_and_the_best_is_no_worse():
    trials = run(n_trials=30)

    first = json.loads(trials["settings"][0])
    assert {name: first[name] for name in SPACE} == {name: START[name] for name in SPACE}
    best = best_trial(trials)
    assert best is not None and best["value"] > trials["value"][0] + 0.1
    assert best["value"] == trials["value"].max()


def test_one_may_start_outside_of_what_is_searched():
    start = {**START, "neighbours": 5_000, "shrinkage": 0.0, "w_cf": 0.1, "w_content": 0.2}

    trials = run(n_trials=3, start=start)

    tried = [json.loads(text) for text in trials["settings"]]
    assert all(tried[0][name] == start[name] for name in (*SPACE, "w_content"))
    assert len(set(trials["settings"])) == 3


def test_all_that_is_tried_is_in_range_and_the_two_weights_add_up_to_one():
    for text in run()["settings"]:
        settings = json.loads(text)
        for name, (low, high, _) in SPACE.items():
            assert low <= settings[name] <= high
            assert isinstance(settings[name], int) == isinstance(low, int)
        assert settings["w_cf"] + settings["w_content"] == pytest.approx(1)


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been():
    whole = run(n_trials=12)

    half = run(n_trials=5)
    rest = run(n_trials=12, done=half)

    assert_frame_equal(without_cost(pl.concat([half, rest])), without_cost(whole))
    assert len(run(n_trials=12, done=whole)) == 0


def test_trials_of_another_study_do_not_count():
    others = run(n_trials=6, study="of last week")

    trials = run(n_trials=6, done=others)

    assert trials["trial"].to_list() == list(range(6))


def test_another_seed_tries_other_settings():
    assert run(seed=1)["settings"].to_list() != run(seed=2)["settings"].to_list()


def test_settings_that_cannot_be_fitted_are_a_row_with_the_reason_and_never_the_best():
    def fails_once(settings):
        if settings["neighbours"] == START["neighbours"]:
            return Outcome(None, 0, "too little data")
        return hill(settings)

    trials = run(fails_once, n_trials=4)

    assert trials["reason"][0] == "too little data" and trials["value"][0] is None
    best = best_trial(trials)
    assert best is not None and best["trial"] > 0
    assert best_trial(trials.head(1)) is None


def test_no_trial_starts_when_the_seconds_are_over():
    assert len(run(seconds=0.0)) == 0


def test_words_are_chosen_among_those_there_are():
    space = SPACES["item_knn"]

    trials = run(lambda _: Outcome(1.0, 10), space=space)

    tried = [json.loads(text) for text in trials["settings"]]
    assert {each["knn_weighting"] for each in tried} == {"cosine", "bm25", "tfidf"}
    assert "w_content" not in tried[0]


@pytest.mark.parametrize("model", sorted(SPACES))
def test_the_settings_of_a_fresh_clone_lie_in_the_space_of_each_model(model):
    for name, each in {**SPACES[model], **BLEND_SPACE}.items():
        if isinstance(each[0], str):
            assert START[name] in each
        else:
            assert each[0] <= START[name] <= each[1], name
