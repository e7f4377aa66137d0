"""A backtest is production on an earlier day: the same lists, and nothing from after it."""

import json
import shutil
from dataclasses import replace
from datetime import date, timedelta

import dagster as dg
import polars as pl
import pytest
from lines import line_in, why_it_failed
from polars.testing import assert_frame_equal

from ml_assets.assets import RecommenderSettings
from ml_assets.folds import read_fold, write_fold
from ml_assets.frames import SIGNALS
from ml_assets.warehouse import read_table
from orchestration.backtests import get_fold, recommend_as_of
from orchestration.definitions import build_definitions
from orchestration.landing.synthetic_shop import write_shop

START = date(2024, 1, 1)
DAY = date(2024, 2, 20)
N_DAYS = 14
TABLES = dg.AssetSelection.groups("raw", "staging", "intermediate", "marts")


def quiet(_):
    return None


def landed(folder):
    line = line_in(folder)
    write_shop(
        line.settings.data,
        n_users=80,
        n_products=40,
        n_events=6_000,
        n_days=75,
        start=START,
        seed=9,
        file_format="parquet",
        dirt={},
    )
    return line


def stage(line):
    result = line.run(TABLES)
    assert result.success, why_it_failed(result)
    return line


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    return stage(landed(tmp_path_factory.mktemp("past")))


@pytest.fixture(scope="module")
def fold(line):
    # As a backtest of another day leaves it that was killed: with a copy of all raw rows.
    left = line.settings.home / "backtests" / "2024-01-15" / "warehouse.duckdb"
    left.parent.mkdir(parents=True)
    left.write_text("raw rows")
    return get_fold(line.settings, DAY, n_days=N_DAYS, progress=quiet)


@pytest.fixture(scope="module")
def recommended(line):
    return recommend_as_of(line.settings, DAY, recommender={}, progress=quiet)


def test_a_fold_holds_what_users_went_for_in_the_days_after_the_day(line, fold):
    assert not (line.settings.home / "backtests").exists()
    first, last = fold.holdout["first_at"].min(), fold.holdout["first_at"].max()

    assert first.date() > DAY and last.date() <= DAY + timedelta(days=N_DAYS)
    assert fold.name == "2024-02-20/2024-03-05"
    known = fold.signals.select("user_id", "product_id", was_known=True)
    answers = fold.holdout.join(known, on=["user_id", "product_id"], how="left")
    assert (answers["is_new"] == answers["was_known"].is_null()).all()


def test_models_are_asked_about_the_past_with_the_signals_that_production_had_then(
    line, fold, tmp_path
):
    then = line_in(tmp_path, data=line.settings.data)
    result = then.run(TABLES, ops={"dbt_models": {"config": {"as_of": DAY.isoformat()}}})
    assert result.success, why_it_failed(result)

    with then.settings.warehouse.connect() as connection:
        served = read_table(connection, "marts.signals", SIGNALS.names())
    assert len(served) > 100
    assert_frame_equal(fold.signals, served, check_row_order=False, check_exact=True)


def test_other_event_weights_are_on_trial_in_a_fold_of_their_own(line, fold):
    doubled = {"view": 2, "click": 3, "add_to_cart": 6, "purchase": 10, "rating": 8}

    other = get_fold(
        line.settings,
        DAY,
        n_days=N_DAYS,
        variables={"event_weights": doubled},
        progress=quiet,
    )

    assert_frame_equal(
        other.signals,
        fold.signals.with_columns(pl.col("weight", "relative_weight") * 2),
        check_row_order=False,
    )
    assert_frame_equal(other.holdout, fold.holdout, check_row_order=False)
    again = get_fold(line.settings, DAY, n_days=N_DAYS, progress=quiet)
    assert_frame_equal(again.signals, fold.signals, check_exact=True)


def test_a_weight_that_makes_no_sense_is_refused_by_name(line):
    with pytest.raises(dg.Failure, match=r'event_weights has -1 for "view"'):
        get_fold(
            line.settings,
            DAY,
            n_days=N_DAYS,
            variables={"event_weights": {"view": -1}},
            progress=quiet,
        )


def change_what_came_later_to_the_catalogue(folder):
    """Other texts for products added after the day and not touched by then, other stock for all."""
    n_changed = 0
    for path in sorted(folder.rglob("*.parquet")):
        products = pl.read_parquet(path)
        is_later = pl.col("added_at").cast(pl.String).str.slice(0, 10) > DAY.isoformat()
        n_changed += products.filter(is_later).height
        products.with_columns(
            title=pl.when(is_later).then(pl.lit("a later title")).otherwise("title"),
            category=pl.when(is_later).then(pl.lit("later")).otherwise("category"),
            in_stock=pl.lit(False),
        ).write_parquet(path)
    assert n_changed > 0


def test_whatever_happens_after_the_day_the_lists_are_the_same_to_the_last_bit(
    recommended, tmp_path
):
    other = landed(tmp_path)
    for path in sorted((other.settings.data / "events").rglob("*.parquet")):
        events = pl.read_parquet(path)
        is_later = pl.col("event_ts").cast(pl.String).str.slice(0, 10) > DAY.isoformat()
        later, earlier = events.filter(is_later), events.filter(~is_later)
        # Everybody else's events, of other kinds and products, backwards.
        changed = later.with_columns(
            pl.col("user_id").shift(7, fill_value=events["user_id"][0]),
            pl.col("product_id").reverse(),
            event_type=pl.lit("purchase"),
        )
        pl.concat([earlier, changed]).write_parquet(path)
    change_what_came_later_to_the_catalogue(other.settings.data / "products")
    stage(other)

    again = recommend_as_of(other.settings, DAY, recommender={}, progress=quiet)

    assert recommended["source"].eq("hybrid").sum() > 1_000
    assert_frame_equal(recommended, again, check_exact=True)


def run_job(line, name, *, partition_key=None, **config):
    with dg.DagsterInstance.ephemeral() as instance:
        result = (
            build_definitions(line.settings)
            .resolve_job_def(name)
            .execute_in_process(
                instance=instance,
                raise_on_error=False,
                partition_key=partition_key,
                run_config={"loggers": {"short": {}}, **config},
            )
        )
    assert result.success, why_it_failed(result)


def test_a_partition_of_the_backtest_judges_the_lists_of_its_day_once(line, recommended):
    # Folds of the day itself are asked for, as a backfill does.
    for _ in range(2):
        run_job(
            line,
            "backtest",
            partition_key=DAY.isoformat(),
            ops={"ml__backtest_metrics": {"config": {"n_days": N_DAYS}}},
        )

    rows = line.query(
        "select target, metric, value, n_users from ml.backtest_metrics where segment = 'known'"
        " and fold = '2024-02-20/2024-03-05' and model = 'published'"
    )
    found = {(target, metric): (value, n_users) for target, metric, value, n_users in rows}
    assert len(found) == len(rows)
    recall, n_users = found["any_next", "recall@20"]
    assert 0 < recall < 1 and n_users > 20
    assert not any(metric.endswith("@50") for _, metric in found)


TUNING = {
    "tuning": {"config": {"models": ["item_item"], "n_trials": 4, "n_folds": 1, "n_days": N_DAYS}}
}


def test_a_search_asks_days_before_the_holdout_and_goes_on_where_it_stopped(line):
    run_job(line, "tune_settings", ops=TUNING)
    before = line.query("select trial, settings, value from ml.tuning_trials order by trial")
    run_job(line, "tune_settings", ops=TUNING)

    holdout_from = line.value("select holdout_from from intermediate.int_as_of")
    ((study, folds, value, value_before),) = line.query(
        "select study, folds, value, value_before from ml.tuned_settings"
    )
    asked_from, asked_to = (date.fromisoformat(day) for day in folds.split("/"))
    assert asked_to == holdout_from and asked_from == holdout_from - timedelta(days=N_DAYS)
    assert value >= value_before
    assert len(before) == 4
    assert (
        line.query("select trial, settings, value from ml.tuning_trials order by trial") == before
    )
    assert study.startswith("item_item on ")

    # What was tried on the same days with other data does not count, however good it was.
    with line.settings.warehouse.connect() as connection:
        connection.execute(
            "insert into ml.tuning_trials select * replace ("
            " left(study, -16) || repeat('0', 16) as study, 2 * value as value"
            ") from ml.tuning_trials"
        )
    run_job(line, "tune_settings", ops=TUNING)
    assert line.query("select study, value from ml.tuned_settings") == [(study, value)]


def test_runs_take_what_the_search_found_unless_they_are_told_not_to(line, tmp_path):
    warehouse = line.settings.warehouse
    run_job(line, "tune_settings", ops=TUNING)
    found = json.loads(line.value("select settings from ml.tuned_settings"))

    tuned = RecommenderSettings(top_n=7).in_force(warehouse)

    assert {name: getattr(tuned, name) for name in found} == found
    assert tuned.top_n == 7
    plain = RecommenderSettings(use_tuned=False)
    assert plain.in_force(warehouse) == plain
    nothing_tuned = replace(warehouse, path=tmp_path / "other.duckdb")
    assert RecommenderSettings().in_force(nothing_tuned) == RecommenderSettings()


def test_the_weights_of_an_ensemble_are_learned_and_taken_by_the_next_run(line):
    with line.settings.warehouse.connect() as connection:
        connection.execute("create table ml.kept as from ml.tuned_settings")
    config = {**TUNING["tuning"]["config"], "models": ["ensemble"], "n_trials": 2}
    try:
        run_job(line, "tune_settings", ops={"tuning": {"config": config}})
        tuned = RecommenderSettings().in_force(line.settings.warehouse)
    finally:
        with line.settings.warehouse.connect() as connection:
            connection.execute("create or replace table ml.tuned_settings as from ml.kept")
            connection.execute("drop table ml.kept")
            connection.execute("delete from ml.tuning_trials where model = 'ensemble'")

    assert tuned.cf_model == "ensemble"
    assert set(tuned.ensemble) <= {"item_item", "gf_cf", "graph_filter"}
    assert sum(tuned.ensemble.values()) == pytest.approx(1, abs=1e-3)
    assert tuned.w_cf + tuned.w_content == pytest.approx(1)


def test_a_tuned_setting_that_is_unknown_here_is_named(line):
    with line.settings.warehouse.connect() as connection:
        connection.execute("create table ml.kept as from ml.tuned_settings")
        connection.execute("update ml.tuned_settings set settings = '{\"temperature\": 2}'")
    try:
        with pytest.raises(dg.Failure, match="temperature"):
            RecommenderSettings().in_force(line.settings.warehouse)
    finally:
        with line.settings.warehouse.connect() as connection:
            connection.execute("create or replace table ml.tuned_settings as from ml.kept")
            connection.execute("drop table ml.kept")


def test_a_fold_is_kept_until_what_it_was_made_from_changes(line, fold, tmp_path):
    messages = []
    again = get_fold(line.settings, DAY, n_days=N_DAYS, progress=messages.append)

    assert messages == []
    assert_frame_equal(again.holdout, fold.holdout)
    write_fold(fold, tmp_path / "fold", made_from="these files")
    kept = read_fold(tmp_path / "fold", made_from="these files")
    assert kept is not None and kept.day == DAY and kept.n_days == N_DAYS
    assert read_fold(tmp_path / "fold", made_from="others") is None
    assert read_fold(tmp_path / "nothing", made_from="these files") is None


def test_days_that_are_not_over_cannot_be_asked_about(line):
    with pytest.raises(dg.Failure) as failure:
        get_fold(line.settings, date(2024, 3, 14), n_days=28, progress=quiet)

    assert "the 28 days after 2024-03-14 are not over" in failure.value.description
    assert "Choose a day up to 2024-02-" in failure.value.description


def test_without_any_event_there_is_no_past(tmp_path):
    line = line_in(tmp_path)
    line.settings.home.mkdir(parents=True)

    with pytest.raises(dg.Failure) as failure:
        recommend_as_of(line.settings, DAY, recommender={}, progress=quiet)

    assert "no event has landed" in failure.value.description
    shutil.rmtree(line.settings.home)
