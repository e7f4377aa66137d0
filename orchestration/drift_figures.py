"""What a run sees: the figures that drift is judged by, counted in the warehouse.

Belongs here: SQL, and the figures it gives. Does not belong here: how they are judged (`drift.py`).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime

import duckdb

from exports.run_history import RunMetric, published_metrics
from ml_assets.promotion import DEFAULT, METRIC, SEGMENT, TARGET
from orchestration.drift import (
    BEHIND,
    EVENTS_OF,
    MISSING,
    VANISHED,
    WEEKS,
    Figure,
    TypeCount,
    hours_behind,
    known,
    last_day_due,
    missing_days,
    vanished_types,
)
from orchestration.drift_limits import Limit

# The latest day that is over: of today only a part has come.
_DAYS = """
    as_of as (
        select as_of from intermediate.int_as_of
    ),
    days as (
        select event_on, n_events from intermediate.int_event_days
        where event_on <= (select as_of from as_of)
    ),
    latest as (
        select max(event_on) as day from days where event_on < $today::date
    )
"""

# One row per figure: check_name, metric, value, n_rows.
_PRODUCTS = """
    with products as (
        select
            count(*)::double as n_products,
            count(*) filter (is_available) as n_available,
            count(distinct text) as n_texts
        from marts.products
    )
    select 'catalogue_shrank', 'products that can be bought', n_available::double, n_products
    from products
    union all
    select 'catalogue_text_vanished', 'share of products with a text of their own',
        n_texts / nullif(n_products, 0), n_products
    from products
"""

_SIGNALS = """
    select 'weights_are_equal', 'standard deviation of the logarithm of weights',
        stddev_pop(ln(weight)), count(*)
    from marts.signals
    where weight > 0 and isfinite(weight)
"""

_VOLUMES = f"""
    with {_DAYS},
    before as (
        select n_events, event_on in (day - 7, day - 14, day - 21, day - 28) as is_alike
        from days cross join latest
        where event_on between day - 28 and day - 1
    ),
    -- A Sunday is compared with Sundays, if there were enough of them.
    usual as (
        select
            case
                when count(*) filter (is_alike) >= 3 then median(n_events) filter (is_alike)
                else median(n_events)
            end as n_usual
        from before
    )
    select 'volume_jumped', 'events of the latest day per event that is usual',
        n_events / nullif(n_usual, 0), greatest(n_events, n_usual)
    from days inner join latest on event_on = day cross join usual
"""

# Beside all files the newest: a day's fault is lost among years.
_ACCEPTED = """
    with landed as (
        select
            source_file,
            n_rows + n_malformed as n_rows,
            received_at = max(received_at) over () as is_newest
        from raw.landing_files
        where entity = 'events' and n_rows + n_malformed > 0
    ),
    refused as (
        select
            source_file,
            count(*) filter (reason <> $erased) as n_refused,
            count(*) filter (reason = $erased) as n_erased
        from staging.rejected_rows
        where entity = 'events'
        group by source_file
    ),
    arrived as (
        select
            is_newest,
            n_rows - coalesce(n_erased, 0) as n_rows,
            coalesce(n_refused, 0) as n_refused
        from landed left join refused using (source_file)
    )
    select 'accepted_share_fell', 'share of all event rows that are accepted',
        1 - sum(n_refused) / nullif(sum(n_rows), 0), coalesce(sum(n_rows), 0)
    from arrived
    union all
    select 'accepted_share_fell', 'share of the rows of the newest events files that are accepted',
        1 - sum(n_refused) / nullif(sum(n_rows), 0), coalesce(sum(n_rows), 0)
    from arrived where is_newest
"""

_TYPES = f"""
    with {_DAYS}
    select
        event_type,
        coalesce(sum(n_events) filter (event_on = day), 0)::bigint,
        count(distinct event_on) filter (event_on in (day - 7, day - 14, day - 21, day - 28)),
        coalesce(sum(n_events) filter (event_on in (day - 7, day - 14, day - 21, day - 28)), 0)
            / {WEEKS},
        coalesce(sum(n_events) filter (event_on > day - 28), 0)::bigint
    from intermediate.int_daily_signals cross join latest
    where event_on between day - 28 and day
    group by event_type
    order by event_type
"""

_LISTS = """
    with lists as (
        select user_id, product_id, source in ('hybrid', 'content') as is_of_model
        from serving.recommendations where version = $version
    ),
    counts as (
        select
            count(distinct user_id) as n_users,
            count(distinct user_id) filter (is_of_model) as n_of_model,
            count(distinct product_id) as n_shown
        from lists
    ),
    available as (
        select count(*) as n_available from marts.products where is_available
    )
    select 'share of users with rows of a model', n_of_model / nullif(n_users, 0), n_users::double
    from counts
    union all
    select 'share of products that can be bought that are on a list',
        n_shown / nullif(n_available, 0), n_available
    from counts cross join available
"""


def past_runs(connection: duckdb.DuckDBPyConnection) -> list[RunMetric]:
    """What published runs saw; if a day of the past is asked for, runs of days up to it."""
    past = published_metrics(connection)
    ((as_of, newest),) = connection.execute(
        "select as_of, (select max(event_on) from intermediate.int_event_days)"
        " from intermediate.int_as_of"
    ).fetchall()
    if newest is not None and as_of < newest:
        return [row for row in past if row.as_of <= as_of]
    return past


def input_figures(
    connection: duckdb.DuckDBPyConnection,
    limits: Mapping[str, Limit],
    past: Sequence[RunMetric],
    *,
    checks: Collection[str],
    now: datetime,
) -> list[Figure]:
    """What the tables say that models learn from.

    Args:
        connection: The warehouse after dbt.
        limits: From `limits_of`.
        past: From `past_runs`.
        checks: Which are asked: who builds one layer alone has not the tables of the others.
        now: Naive UTC.
    """
    # Imported here: it imports what compiles.
    from exports.erasure import REASON

    ((as_of,),) = connection.execute("select as_of from intermediate.int_as_of").fetchall()
    today = {"today": now.date()}
    figures = []
    for asked, query, parameters in (
        ({"catalogue_shrank", "catalogue_text_vanished"}, _PRODUCTS, {}),
        ({"weights_are_equal"}, _SIGNALS, {}),
        ({"volume_jumped"}, _VOLUMES, today),
        ({"accepted_share_fell"}, _ACCEPTED, {"erased": REASON}),
    ):
        if asked & set(checks):
            figures += [
                Figure(check, metric, value, n_rows, as_of)
                for check, metric, value, n_rows in connection.execute(query, parameters).fetchall()
            ]
    if "event_type_vanished" in checks:
        counts = [TypeCount(*row) for row in connection.execute(_TYPES, today).fetchall()]
        figures += _type_figures(counts, past, limits["event_type_vanished"], as_of)
    if "day_is_missing" in checks:
        figures += _day_figures(connection, past, limits["day_is_missing"], as_of, now)
    return [figure for figure in figures if figure.check in checks]


def _type_figures(
    counts: Sequence[TypeCount], past: Sequence[RunMetric], limit: Limit, as_of: date
) -> list[Figure]:
    check = "event_type_vanished"
    gone = vanished_types(counts, past, limit)
    let_through = known(past, check, VANISHED, latest_only=True)
    new = [name for name in gone if name not in let_through]
    return [
        Figure(check, "event types that are due and did not come", len(new), math.inf, as_of,
               detail=", ".join(new)),
        *(_noted(check, VANISHED + name, 1, as_of) for name in gone),
        *(_noted(check, EVENTS_OF + each.event_type, each.n_recent, as_of) for each in counts),
    ]  # fmt: skip


def _day_figures(
    connection: duckdb.DuckDBPyConnection,
    past: Sequence[RunMetric],
    limit: Limit,
    as_of: date,
    now: datetime,
) -> list[Figure]:
    check = "day_is_missing"
    days = {
        day
        for (day,) in connection.execute(
            "select event_on from intermediate.int_event_days"
        ).fetchall()
    }
    closed = connection.execute("select closed_on from staging.closed_days").fetchall()
    published = [row.as_of for row in past if row.check_name == check]
    gone = missing_days(
        {day for day in days if day <= as_of},
        as_of=as_of,
        until=last_day_due(
            as_of,
            newest=max(days, default=as_of),
            now=now,
            past=past,
            runs=int(limit.runs or 1),
        ),
        published=published[-1] if published else None,
        closed={day for (day,) in closed},
    )
    let_through = known(past, check, MISSING)
    new = [day for day in gone if day.isoformat() not in let_through]
    return [
        Figure(check, "days that are due and have no events", len(new), math.inf, as_of,
               detail=_first_of([f"{day:%A} {day}" for day in new])),
        *(_noted(check, f"{MISSING}{day}", 1, as_of) for day in gone),
        _noted(check, BEHIND, hours_behind(as_of, now, past), as_of),
    ]  # fmt: skip


def _noted(check: str, metric: str, value: float, as_of: date) -> Figure:
    return Figure(check, metric, value, math.inf, as_of, is_judged=False)


def _first_of(names: Sequence[str], n: int = 7) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def list_figures(connection: duckdb.DuckDBPyConnection, version: str) -> list[Figure]:
    """What the staged lists say, and how good the models they are of were on the last weeks.

    A refresh makes lists of models that an earlier run learned, so their figure is that run's and
    belongs to its day: it is judged again, since these models are to be published again, and never
    counts twice.
    """
    ((as_of,),) = connection.execute("select as_of from intermediate.int_as_of").fetchall()
    figures = [
        Figure("coverage_fell", metric, value, n_rows, as_of)
        for metric, value, n_rows in connection.execute(_LISTS, {"version": version}).fetchall()
    ]
    measured = connection.execute(
        "select value, n_users, fold from ml.offline_metrics where model = $model"
        " and target = $target and segment = $segment and metric = $metric"
        " order by fold desc limit 1",
        {"model": DEFAULT, "target": TARGET, "segment": SEGMENT, "metric": METRIC},
    ).fetchall()
    for value, n_users, fold in measured:
        day = date.fromisoformat(fold.partition("/")[2])
        figures.append(
            Figure("metric_fell", f"{METRIC} of the blend", value, n_users, day, f"fold {fold}")
        )
    return figures
