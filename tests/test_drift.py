"""A run that is unlike those before it is stopped, by name, before readers see it."""

import csv
import shutil
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime, timedelta

import dagster as dg
import duckdb
import pytest
from corruptions import CORRUPTIONS, NEW_LISTS
from hypothesis import given
from hypothesis import strategies as st
from kills import Witness
from lines import Line, line_in, why_it_failed

from exports.redis_server import EmbeddedRedis
from exports.run_history import (
    RunMetric,
    mark_published,
    number_of_run,
    published_metrics,
    record,
)
from orchestration.definitions import build_definitions
from orchestration.drift import (
    BEHIND,
    EVENTS_OF,
    Figure,
    TypeCount,
    complaint,
    expected,
    hours_behind,
    last_day_due,
    missing_days,
    outcomes,
    vanished_types,
)
from orchestration.drift_figures import input_figures, list_figures, past_runs
from orchestration.drift_limits import CHECKS, LimitsError, limits_of_file
from orchestration.landing.synthetic_shop import write_shop
from orchestration.settings import DRIFT_LIMITS, REPOSITORY

LIMITS = limits_of_file(DRIFT_LIMITS)
DAY = date(2024, 3, 1)
CATALOGUE = Figure("catalogue_shrank", "products", 0, 0, DAY)
LEARNS = replace(
    LIMITS["catalogue_shrank"],
    least_fall=0.1,
    most_fall=0.4,
    deviations=4,
    runs=5,
    min_runs=3,
)


def row(number, value, *, check="catalogue_shrank", metric="products", accepted=None, **others):
    """A figure of a run that published, a day after the one before."""
    settings = {
        "run_number": number,
        "run_id": f"run {number}",
        "happened_at": datetime(2024, 1, 1),
        "as_of": DAY + timedelta(days=number),
        "version": None,
        "check_name": check,
        "metric": metric,
        "value": value,
        "lowest": None,
        "highest": None,
        "outcome": "accepted" if accepted else "passed",
        "accepted": accepted,
        "is_published": True,
    }
    return RunMetric(**{**settings, **others})


def rows(*values, **settings):
    return [row(number, value, **settings) for number, value in enumerate(values, 1)]


def test_a_limit_is_the_median_of_published_runs_less_what_they_spread():
    # 1.4826 * 5 is a standard deviation, four of them are 30 % of 100.
    found = expected(CATALOGUE, LEARNS, rows(90, 95, 100, 105, 110))

    assert found.lowest == pytest.approx(100 - 4 * 1.4826 * 5)
    assert found.highest is None
    assert str(found) == ("at least 70.35 (100 is usual, the median of 5 published runs, less 30%)")


def test_equal_runs_are_no_hair_trigger_and_wild_ones_hide_no_collapse():
    assert expected(CATALOGUE, LEARNS, rows(100, 100, 100)).lowest == pytest.approx(90)
    assert expected(CATALOGUE, LEARNS, rows(10, 100, 1000)).lowest == pytest.approx(60)


def test_with_few_runs_only_what_the_config_states_counts_and_the_check_says_so():
    stated = replace(LEARNS, lowest=40.0)

    found = expected(CATALOGUE, stated, rows(100, 100))

    assert found.lowest == 40
    assert "2 of 3 published runs that it takes to learn" in found.why


def test_what_the_config_states_holds_whatever_was_learned():
    assert expected(CATALOGUE, replace(LEARNS, lowest=99.0), rows(100, 100, 100)).lowest == 99


def test_the_latest_runs_tell_what_is_usual():
    assert expected(CATALOGUE, LEARNS, rows(1, 1, 1, 100, 100, 100, 100, 100)).lowest == (
        pytest.approx(90)
    )


def test_an_acceptance_begins_something_new():
    past = [*rows(100, 100, 100), row(4, 50, accepted="Anna"), row(5, 50)]

    assert expected(CATALOGUE, LEARNS, past).lowest is None
    assert expected(CATALOGUE, LEARNS, [*past, row(6, 50)]).lowest == pytest.approx(45)


def test_a_figure_of_few_rows_is_not_judged():
    limit = replace(LEARNS, min_rows=100)

    assert expected(replace(CATALOGUE, n_rows=99), limit, rows(9, 9, 9)).lowest is None
    assert expected(replace(CATALOGUE, n_rows=100), limit, rows(9, 9, 9)).lowest is not None


@given(st.lists(st.floats(1, 1e6), min_size=3, max_size=5))
def test_a_learned_limit_lies_between_the_least_and_the_most_fall(values):
    usual = sorted(values)[len(values) // 2] if len(values) % 2 else None

    lowest = expected(CATALOGUE, LEARNS, rows(*values)).lowest

    middle = usual or (sorted(values)[1] + sorted(values)[2]) / 2
    assert middle * 0.6 * (1 - 1e-9) <= lowest <= middle * 0.9 * (1 + 1e-9)


# --- event types and days -----------------------------------------------------------------------

TYPES = LIMITS["event_type_vanished"]


def type_count(name, n_today, n_usual, *, n_weeks=4, n_recent=1000):
    return TypeCount(name, n_today, n_weeks, n_usual, n_recent)


def test_a_type_that_each_week_had_on_this_weekday_is_due():
    counts = [type_count("view", 300, 300), type_count("purchase", 0, 40)]

    assert vanished_types(counts, [], TYPES) == ["purchase"]
    assert vanished_types([counts[0], type_count("purchase", 1, 40)], [], TYPES) == []


def test_a_type_that_is_rare_or_not_of_every_week_is_not_due():
    view = type_count("view", 300, 300)

    assert vanished_types([view, type_count("rating", 0, 9)], [], TYPES) == []
    assert vanished_types([view, type_count("rating", 0, 90, n_weeks=3)], [], TYPES) == []


def test_on_a_day_of_which_little_has_come_little_of_a_type_is_due():
    counts = [type_count("view", 30, 300), type_count("purchase", 0, 40)]

    assert vanished_types(counts, [], TYPES) == []


def test_a_type_that_every_published_run_had_is_due():
    of_purchase = {"check": "event_type_vanished", "metric": f"{EVENTS_OF}purchase"}
    view = type_count("view", 300, 300)

    assert vanished_types([view], rows(40, 50, 60, **of_purchase), TYPES) == ["purchase"]
    assert vanished_types([view], rows(40, 50, **of_purchase), TYPES) == []
    assert vanished_types([view], rows(4, 5, 6, **of_purchase), TYPES) == []
    accepted = [*rows(40, 50, 60, **of_purchase), row(4, 1, check="event_type_vanished",
                                                      metric="due", accepted="Anna")]  # fmt: skip
    assert vanished_types([view], accepted, TYPES) == []


def days_before(day, n, *, closed=()):
    """The last n days up to a day, without some weekdays."""
    found = {day - timedelta(days=back) for back in range(n)}
    return {each for each in found if each.weekday() not in closed}


@given(
    as_of=st.dates(date(2020, 1, 1), date(2025, 1, 1)),
    closed=st.sets(st.integers(0, 6), max_size=6),
    gone=st.integers(0, 6),
)
def test_days_are_missing_where_their_weekday_had_events_in_each_of_four_weeks(as_of, closed, gone):
    days = days_before(as_of, 35, closed=closed)
    lost = as_of - timedelta(days=gone)

    found = missing_days(days - {lost}, as_of=as_of, until=as_of)

    assert found == ([lost] if lost in days else [])


def test_a_young_shop_has_no_weekday_that_is_due():
    assert missing_days(days_before(DAY, 30), as_of=DAY, until=DAY + timedelta(days=3)) == []


def test_a_holiday_is_not_due():
    as_of, holiday = DAY, DAY - timedelta(days=2)
    days = days_before(DAY, 40) - {holiday, DAY - timedelta(days=3)}

    found = missing_days(days, as_of=as_of, until=as_of, closed={holiday})

    assert found == [DAY - timedelta(days=3)]


def test_the_day_that_was_published_last_is_due():
    gone = DAY + timedelta(days=1)

    found = missing_days(days_before(DAY, 3), as_of=DAY, until=gone, published=gone)

    assert found == [gone]


# Runs at three in the morning found the events of the day before.
NIGHTLY = [
    row(n, 3.0, check="day_is_missing", metric=BEHIND, as_of=DAY - timedelta(days=3 - n))
    for n in (1, 2, 3)
]
HISTORY = [row(1, 50_000.0, check="day_is_missing", metric=BEHIND, as_of=DAY)]


def at(day, hour, minute=0):
    return datetime(day.year, day.month, day.day, hour, minute)


@pytest.mark.parametrize(
    ("now", "past", "due"),
    [
        pytest.param(at(DAY, 3), NIGHTLY, DAY, id="the day itself is not over"),
        pytest.param(at(DAY + timedelta(days=1), 3), NIGHTLY, DAY, id="nothing is late"),
        pytest.param(at(DAY + timedelta(days=2), 2), NIGHTLY, DAY, id="earlier than usual"),
        pytest.param(
            at(DAY + timedelta(days=2), 2, 58), NIGHTLY, DAY + timedelta(days=1), id="a day late"
        ),
        pytest.param(at(date(2030, 1, 1), 3), NIGHTLY, date(2029, 12, 31), id="a feed that died"),
        pytest.param(at(date(2030, 1, 1), 3), HISTORY, DAY, id="history that somebody loaded"),
        pytest.param(at(date(2030, 1, 1), 3), [], DAY, id="the first run"),
        pytest.param(
            at(date(2030, 1, 1), 3),
            [replace(HISTORY[0], as_of=DAY + timedelta(days=1))],
            DAY + timedelta(days=1),
            id="less than was published",
        ),
    ],
)
def test_events_are_due_at_the_hour_at_which_published_runs_had_them(now, past, due):
    assert last_day_due(DAY, newest=DAY, now=now, past=past, runs=14) == due


def test_whoever_asks_for_a_day_of_the_past_is_owed_no_later_day():
    newest = DAY + timedelta(days=9)

    assert last_day_due(DAY, newest=newest, now=at(newest, 3), past=NIGHTLY, runs=14) == DAY


def test_a_shop_is_as_late_as_the_first_run_that_saw_the_day():
    assert hours_behind(DAY, at(DAY + timedelta(days=1), 5), []) == 5
    assert hours_behind(DAY, at(DAY + timedelta(days=1), 5), NIGHTLY) == 3
    assert hours_behind(DAY, at(DAY, 23), NIGHTLY) == -1


# --- words, limits and history ------------------------------------------------------------------


def test_a_complaint_says_what_was_seen_and_expected_and_what_to_do():
    figure = Figure("catalogue_shrank", "products", 1200, 1200, DAY)
    range_ = expected(figure, LEARNS, rows(2400, 2400, 2400))

    (judged,) = outcomes(
        [(figure, range_)],
        {"catalogue_shrank_by_products": False},
        LIMITS,
        accepted={},
        may_block=True,
    )
    text = complaint(CHECKS["catalogue_shrank"], [judged], op="drift_of_inputs")

    assert judged.outcome == "blocked"
    for words in (
        "catalogue_shrank on marts.products: products: saw 1,200, expected at least 2,160",
        "2,400 is usual, the median of 3 published runs, less 10%",
        "land it whole",
        "The last published version stays live.",
        'ops > drift_of_inputs > config > accept > catalogue_shrank: "who, and why"',
    ):
        assert words in text


def test_a_check_that_warns_does_not_block_and_one_that_is_accepted_says_by_whom():
    figure = Figure("catalogue_shrank", "products", 1, 1, DAY)
    judged = [(figure, expected(figure, LEARNS, rows(9, 9, 9)))]
    failed = {"catalogue_shrank_by_products": False}
    warns = {**LIMITS, "catalogue_shrank": replace(LEARNS, severity="warn")}

    (warned,) = outcomes(judged, failed, warns, accepted={}, may_block=True)
    (first,) = outcomes(judged, failed, LIMITS, accepted={}, may_block=False)
    assert first.outcome == "warned"
    (accepted,) = outcomes(
        judged, failed, LIMITS, accepted={"catalogue_shrank": "Anna: sold"}, may_block=True
    )

    assert warned.outcome == "warned"
    assert accepted.outcome == "accepted"
    assert complaint(CHECKS["catalogue_shrank"], [accepted], op="").endswith(
        "Let through by Anna: sold."
    )


def test_every_check_has_limits_and_stands_on_the_page():
    page = (REPOSITORY / "docs" / "drift.md").read_text()

    assert set(LIMITS) == set(CHECKS)
    with DRIFT_LIMITS.open(newline="") as file:
        for each in csv.DictReader(file):
            cells = [each[name] for name in ("severity", "lowest", "highest", "least_fall",
                                             "most_fall", "min_runs", "min_rows")]  # fmt: skip
            assert f"| `{each['check_name']}` | " + " | ".join(cells) in page


MISTAKES = {
    "a number that is none": ("volume_jumped,block,0.15,", "volume_jumped,block,a fifth,",
                              ["row 5 (volume_jumped), column lowest", "'a fifth'"]),
    "an unknown severity": ("day_is_missing,block", "day_is_missing,stop",
                            ["row 4 (day_is_missing), column severity", "block or warn"]),
    "an unknown check": ("metric_fell,", "metric_feel,",
                         ["row 9 (metric_feel), column check_name", "no row for metric_fell"]),
    "a check twice": ("metric_fell,", "coverage_fell,",
                      ["row 9 (coverage_fell), column check_name", "twice"]),
    "a share above one": ("block,,,0.25,0.4", "block,,,0.25,40",
                          ["row 9 (metric_fell), column most_fall", "40"]),
    "half a rule": ("block,,,0.25,0.4,4,", "block,,,0.25,0.4,,",
                    ["row 9 (metric_fell), column deviations", "empty"]),
    "bounds the wrong way round": ("0.15,6.5,", "6.5,0.15,",
                                   ["row 5 (volume_jumped), column lowest", "above highest"]),
    "no such column": ("min_rows", "rows", ["has no column min_rows"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_in_the_limits_is_named_by_row_and_column(mistake, tmp_path):
    before, after, words = MISTAKES[mistake]
    text = DRIFT_LIMITS.read_text()
    assert before in text
    path = tmp_path / "drift_limits.csv"
    path.write_text(text.replace(before, after))

    with pytest.raises(LimitsError) as raised:
        limits_of_file(path)

    assert "drift_limits.csv" in str(raised.value)
    for word in words:
        assert word in str(raised.value)


def test_a_day_of_the_past_is_held_against_the_days_before_it():
    with duckdb.connect() as connection:
        connection.execute(
            f"""
            create schema intermediate;
            create table intermediate.int_event_days as select date '{DAY}' + 3 as event_on;
            create table intermediate.int_as_of as select date '{DAY}' + 3 as as_of;
            """
        )
        record(connection, rows(1.0, 2.0, 3.0))
        today = [each.value for each in past_runs(connection)]
        connection.execute("update intermediate.int_as_of set as_of = as_of - 1")

        assert today == [1.0, 2.0, 3.0]
        assert [each.value for each in past_runs(connection)] == [1.0, 2.0]


def test_only_published_runs_are_history_and_a_day_counts_once():
    seen = [
        row(1, 10.0, as_of=DAY),
        row(2, 11.0, as_of=DAY),
        row(3, 1.0, outcome="blocked", is_published=False),
    ]
    with duckdb.connect() as connection:
        assert published_metrics(connection) == []
        record(connection, [replace(each, is_published=False) for each in seen])
        assert published_metrics(connection) == []
        for each in seen:
            mark_published(connection, [each.run_id], "v")

        found = published_metrics(connection)

        assert [(each.as_of, each.value, each.version) for each in found] == [(DAY, 11.0, "v")]
        assert number_of_run(connection, "run 2") == 2
        assert number_of_run(connection, "another") == 4


def test_a_step_that_runs_again_replaces_what_it_saw():
    with duckdb.connect() as connection:
        for value in (1.0, 2.0):
            record(connection, [row(1, value)])

        assert [each.value for each in published_metrics(connection)] == [2.0]


def test_an_acceptance_is_remembered_when_the_day_is_published_once_more():
    with duckdb.connect() as connection:
        record(connection, [row(1, 5.0, as_of=DAY, accepted="Anna"), row(2, 5.0, as_of=DAY)])

        (found,) = published_metrics(connection)

    assert (found.run_number, found.accepted) == (2, "Anna")


def test_a_metric_belongs_to_the_day_on_which_it_was_measured():
    with duckdb.connect() as connection:
        connection.execute(
            """
            create schema intermediate; create schema ml; create schema serving;
            create schema marts;
            create table intermediate.int_as_of as select date '2024-03-09' as as_of;
            create table marts.products as select 'p' as product_id, true as is_available;
            create table serving.recommendations as select 'v' as version, 'u' as user_id,
                'p' as product_id, 'hybrid' as source;
            create table ml.offline_metrics as select *, 'hybrid' as model,
                'new_products' as target, 'known' as segment, 'ndcg@20' as metric
            from (values (0.2, 500, '2024-01-31/2024-02-28'), (0.3, 600, '2024-02-01/2024-03-01'))
                as folds (value, n_users, fold);
            """
        )

        *shares, metric = list_figures(connection, "v")

    assert [(share.value, share.as_of) for share in shares] == 2 * [(1, date(2024, 3, 9))]
    assert (float(metric.value), metric.n_rows, metric.as_of) == (0.3, 600, DAY)


# --- the line -----------------------------------------------------------------------------------

START, N_DAYS = date(2024, 1, 1), 90
LAST = START + timedelta(days=N_DAYS - 1)
SEEN = dg.AssetSelection.checks(
    *(
        dg.AssetCheckKey(dg.AssetKey(check.table.split(".")), check.name)
        for check in CHECKS.values()
    )
)
PUBLISH = dg.AssetSelection.groups("serving")
# The daily job without what nothing here asks: tests of dbt, curves, prices of rules, the report.
LINE = dg.AssetSelection.groups(
    "raw", "staging", "intermediate", "marts", "ml", "serving"
) - dg.AssetSelection.assets(
    ["ml", "blend_curve"],
    ["ml", "learning_curve"],
    ["ml", "backtest_examples"],
    ["marts", "rule_cost"],
    ["ml", "margin_curve"],
    ["ml", "report"],
)


class Shop:
    """A line that published, kept as it was, with what readers see of it."""

    def __init__(self, line: Line) -> None:
        self.line = line
        home = line.settings.home
        self.witness = Witness(home, EmbeddedRedis(home).start())
        definitions = build_definitions(line.settings)
        graph = definitions.resolve_asset_graph()
        self.whole, self.publishing = (
            definitions.resolve_job_def("daily_recommendations").get_subset(
                asset_selection=selection.resolve(graph),
                asset_check_selection=SEEN.resolve_checks(graph),
            )
            for selection in (LINE, PUBLISH)
        )

    def publish(self, accept=None, *, whole=False, as_of=None):
        """The checks of drift on the tables as they are and what follows them, or all of it."""
        ops = {"serving__candidate": {"config": {"force": "the shop is small"}}}
        if as_of:
            ops["dbt_models"] = {"config": {"as_of": str(as_of)}}
        if accept:
            ops["drift_of_inputs"] = {"config": {"accept": accept}}
        with dg.DagsterInstance.ephemeral() as instance:
            return (self.whole if whole else self.publishing).execute_in_process(
                instance=instance,
                raise_on_error=False,
                run_config={"loggers": {"short": {}}, "ops": ops},
            )

    def change(self, *statements):
        with self.line.settings.warehouse.connect() as connection:
            for statement in statements:
                connection.execute(statement)

    @contextmanager
    def kept(self):
        """The warehouse is as it was, afterwards."""
        warehouse = self.line.settings.warehouse.path
        copy = warehouse.with_suffix(".kept")
        shutil.copyfile(warehouse, copy)
        yield
        copy.replace(warehouse)

    def told(self):
        """What the last run that was stopped saw, by its checks."""
        return self.line.query(
            "select distinct check_name from serving.run_metrics where outcome = 'blocked'"
            " and run_number = (select max(run_number) from serving.run_metrics)"
        )


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A shop that published three days; the events of a fourth have not landed."""
    folder = tmp_path_factory.mktemp("drift")
    line = line_in(folder, redis_url="embedded")
    write_shop(
        line.settings.data,
        n_users=250,
        n_products=80,
        n_events=15_000,
        n_days=N_DAYS,
        start=START,
        seed=5,
        file_format="csv",
        dirt={},
    )
    take_out_the_last_day(line.settings.data)
    shop = Shop(line)
    first = shop.publish(whole=True, as_of=LAST - timedelta(days=3))
    assert first.success, why_it_failed(first)
    # The days after it on the same tables: a whole line each would take a minute.
    for _ in range(2):
        shop.change(
            "update intermediate.int_as_of set as_of = as_of + 1",
            "update ml.offline_metrics set fold = split_part(fold, '/', 1) || '/'"
            " || (select as_of from intermediate.int_as_of)",
        )
        published = shop.publish()
        assert published.success, why_it_failed(published)
    yield shop
    line.stop()


def take_out_the_last_day(data):
    """Its rows wait in a file beside the landing folder."""
    late = []
    for path in sorted((data / "events").iterdir()):
        header, *lines = path.read_text().splitlines()
        at = header.split(",").index("event_ts")
        of_last_day = [line for line in lines if line.split(",")[at].startswith(str(LAST))]
        late += of_last_day
        path.write_text(
            "\n".join([header, *(x for x in lines if x not in set(of_last_day))]) + "\n"
        )
    assert len(late) > 50
    (data.parent / "last_day.csv").write_text("\n".join([header, *late]) + "\n")


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=str)
def test_a_corruption_blocks_the_publish_and_the_pointer_stays(shop, corruption):
    check, *statements = CORRUPTIONS[corruption]
    before = shop.witness.look()
    with shop.kept():
        shop.change(NEW_LISTS, *statements)

        result = shop.publish()

        said = why_it_failed(result)
        assert f"{check} on {CHECKS[check].table}: " in said and "saw " in said
        assert f"config > accept > {check}" in said
        assert shop.told() == [(check,)]
        assert shop.witness.look() == before and before.is_same
        if CHECKS[check].table == "serving.candidate":
            ((reason,),) = shop.line.query(
                "select reason from serving.versions where state = 'rejected'"
            )
            assert reason.startswith(f"{check} on serving.candidate") and "accept" in reason


def test_a_day_that_the_shop_calls_closed_is_not_missing(shop):
    def n_missing():
        with shop.line.settings.warehouse.connect() as connection:
            figures = input_figures(
                connection,
                LIMITS,
                past_runs(connection),
                checks={"day_is_missing"},
                now=datetime.combine(LAST, datetime.min.time()) + timedelta(days=2),
            )
        (judged,) = (each for each in figures if each.is_judged)
        return judged.value

    _, *statements = CORRUPTIONS["yesterday's file is missing"]
    with shop.kept():
        shop.change(*statements)
        before = n_missing()
        shop.change(
            "insert into staging.closed_days"
            " select as_of + 1, 'stocktaking' from intermediate.int_as_of"
        )

        assert (before, n_missing()) == (1, 0)


def test_a_broken_day_stops_before_models_learn_and_once_it_is_mended_the_next_run_publishes(
    shop,
):
    line, before = shop.line, shop.witness.look()
    landed = line.settings.data / "events" / "zz_last_day.csv"
    header, *lines = (line.settings.data.parent / "last_day.csv").read_text().splitlines()
    landed.write_text("\n".join([header, *(10 * lines)]) + "\n")

    broken = shop.publish(whole=True)

    assert "volume_jumped" in why_it_failed(broken)
    assert {("volume_jumped",)} <= set(shop.told())
    steps = {event.step_key for event in broken.all_events if event.is_step_start}
    assert steps == {"landing", "dbt_models", "drift_of_inputs"}
    assert shop.witness.look() == before

    landed.write_text("\n".join([header, *lines]) + "\n")
    mended = shop.publish(whole=True)

    assert mended.success, why_it_failed(mended)
    after = shop.witness.look()
    assert after.is_same and after != before and after.redis.startswith(f"{LAST:%Y%m%d}")
    # What was stopped is written down and taught nothing.
    assert line.query(
        "select outcome, is_published, as_of from serving.run_metrics"
        " where check_name = 'volume_jumped' order by run_number desc limit 2"
    ) == [("passed", True, LAST), ("blocked", False, LAST)]


def test_what_is_right_is_let_through_by_name_once_and_then_is_usual(shop):
    before = shop.witness.look()
    shop.change(NEW_LISTS, "update marts.products set text = null")

    accepted = shop.publish(accept={"catalogue_text_vanished": "Anna: texts follow in May"})

    assert accepted.success, why_it_failed(accepted)
    assert shop.witness.look() != before
    assert shop.line.query(
        "select outcome, accepted, is_published, version is not null from serving.run_metrics"
        " where accepted is not null"
    ) == [("accepted", "Anna: texts follow in May", True, True)]
    # The next run needs nobody.
    after = shop.publish()
    assert after.success, why_it_failed(after)


def test_jobs_that_look_at_the_past_ask_no_check_of_drift_and_the_others_do():
    definitions = build_definitions(line_in(REPOSITORY).settings)

    def drifts(job):
        return {
            node.name
            for node in definitions.resolve_job_def(job).nodes
            if node.name.startswith("drift")
        }

    for job in ("daily_recommendations", "refresh_recommendations"):
        assert drifts(job) == {"drift_of_inputs", "drift_of_lists"}
    for job in ("backtest", "tune_settings", "erase_users"):
        assert drifts(job) == set()
