{#-
What later events took back from a day, as seen in each of `periods`: 'as_of' (all days up to as_of),
'backtest' (up to holdout_from), 'holdout' (the days between them). int_undone_days and
int_backtest_undone_days are this one macro. `of_users`: what limits a table to some users.
-#}
{% macro undone_days(periods, of_users='') %}
with

as_of as (

    select * from {{ ref('int_as_of') }}

),

event_weights as (

    select * from {{ ref('event_weights') }}

),

{#- Of all users: three scans that keep little are cheaper than a copy. #}
daily_signals as {{ '' if of_users else 'not materialized' }} (

    select * from {{ ref('int_daily_signals') }} {{ of_users }}

),

-- Inside a period, nothing outside it is known: a return in the holdout leaves the backtest's
-- purchase alone.
periods as (

    {% for period in periods %}
    select
        '{{ period }}' as period,
        {{ 'holdout_from' if period == 'holdout' else 'cast(null as date)' }} as after_on,
        {{ 'holdout_from' if period == 'backtest' else 'as_of' }} as until_on
    from as_of
    {{ 'union all' if not loop.last }}
    {% endfor %}

),

-- The event type is the one that is undone.
taken_back as (

    select
        daily_signals.user_id,
        daily_signals.product_id,
        event_weights.undoes as event_type,
        daily_signals.event_on,
        0 as n_events,
        0::decimal(38, 9) as n_added,
        daily_signals.quantity::decimal(38, 9) as n_removed
    from daily_signals
    inner join event_weights on daily_signals.event_type = event_weights.event_type
    where event_weights.undoes is not null

),

touched as (

    select distinct user_id, product_id, event_type
    from taken_back

),

added as (

    select
        daily_signals.user_id,
        daily_signals.product_id,
        daily_signals.event_type,
        daily_signals.event_on,
        daily_signals.n_events,
        -- Decimals, so that returning 0.1 and 0.2 undoes a purchase of 0.3.
        daily_signals.quantity::decimal(38, 9) as n_added,
        0::decimal(38, 9) as n_removed
    from daily_signals
    semi join touched using (user_id, product_id, event_type)

),

moves as (

    select * from added
    union all
    select * from taken_back

),

-- Of one day, what was added comes first: who buys and returns on the same day has bought nothing.
moves_by_day as (

    select
        periods.period,
        moves.user_id,
        moves.product_id,
        moves.event_type,
        moves.event_on,
        sum(moves.n_events) as n_events,
        sum(moves.n_added) as n_added,
        sum(moves.n_removed) as n_removed
    from moves
    inner join periods
        on moves.event_on <= periods.until_on
        and (periods.after_on is null or moves.event_on > periods.after_on)
    group by all

),

heights as (

    select
        *,
        sum(n_added - n_removed) over (
            partition by period, user_id, product_id, event_type order by event_on
            rows between unbounded preceding and current row
        ) as height
    from moves_by_day

),

-- The units a user holds are a stack, and taken back is what came last. So what is left of a day
-- lies above the height before the day and below every height from that day on. A return of what
-- was never bought lowers both alike, and so takes back nothing.
left_over as (

    select
        *,
        greatest(
            0,
            min(height) over (
                partition by period, user_id, product_id, event_type order by event_on
                rows between current row and unbounded following
            )
            - lag(height, 1, 0) over (
                partition by period, user_id, product_id, event_type order by event_on
            )
        ) as n_units_left
    from heights

),

undone as (

    select
        period,
        user_id,
        product_id,
        event_type,
        event_on,
        n_events,
        case
            when n_units_left = 0 then 0
            -- Half of the units gone, half of the events gone, rounded in the shopper's favour. The
            -- quotient is a double: without round, 3.0000000000000004 events would be four.
            else greatest(1, ceil(round((n_events * n_units_left / n_added)::double, 6)))
        end as n_left,
        'taken back' as reason
    from left_over
    where n_units_left < n_added

),

ratings as (

    select
        periods.period,
        daily_signals.user_id,
        daily_signals.product_id,
        daily_signals.event_type,
        daily_signals.event_on,
        daily_signals.n_events
    from daily_signals
    inner join periods
        on daily_signals.event_on <= periods.until_on
        and (periods.after_on is null or daily_signals.event_on > periods.after_on)
    where daily_signals.event_type = 'rating'

),

-- Whoever rates a product again has changed their mind.
replaced as (

    select
        *,
        0 as n_left,
        'rated again' as reason
    from ratings
    qualify event_on < max(event_on) over (partition by period, user_id, product_id)

)

select
    period,
    user_id,
    product_id,
    event_type,
    event_on,
    n_events::integer as n_events,
    n_left::integer as n_left,
    reason
from undone
-- Both, where a type undoes ratings: what was rated again counts no more, however much of it was left.
anti join replaced using (period, user_id, product_id, event_type, event_on)
-- Part of a unit went, but no whole event.
where n_left < n_events

union all

select
    period,
    user_id,
    product_id,
    event_type,
    event_on,
    n_events::integer as n_events,
    n_left::integer as n_left,
    reason
from replaced
{% endmacro %}
