-- Grain: one row per (user, reason, is_low_rating, undone_reason): which of a user's events count,
-- and why others do not.
-- Incremental by user (see int_changed_users).
-- depends_on: {{ ref('int_built_users') }}, {{ ref('int_changed_users') }}
with

as_of as (

    select as_of from {{ ref('int_as_of') }}

),

daily_signals as (

    select * from {{ ref('int_daily_signals') }} {{ of_changed_users() }}

),

undone_days as (

    select * from {{ ref('int_undone_days') }}
    where period = 'as_of'

),

user_activity as (

    select * from {{ ref('int_user_activity') }}

),

event_weights as (

    select * from {{ ref('event_weights') }}

),

-- The first reason that applies is the one an event is counted under.
judged_days as (

    select
        daily_signals.user_id,
        daily_signals.n_events,
        coalesce(undone_days.n_left, daily_signals.n_events) as n_left,
        case
            when daily_signals.event_on > (select as_of from as_of) then 'after as_of'
            when user_activity.is_bot then 'by a bot'
            when user_activity.is_outlier then 'by an outlier user'
            when event_weights.undoes is not null then 'undoes another event'
            when event_weights.weight <= 0 and daily_signals.event_type <> 'purchase'
                then 'of a type without weight'
        end as reason,
        {{ is_low_rating('daily_signals') }} as is_low_rating,
        undone_days.reason as undone_reason
    from daily_signals
    inner join event_weights on daily_signals.event_type = event_weights.event_type
    left join user_activity on daily_signals.user_id = user_activity.user_id
    left join undone_days
        on
            daily_signals.user_id = undone_days.user_id
            and daily_signals.product_id = undone_days.product_id
            and daily_signals.event_type = undone_days.event_type
            and daily_signals.event_on = undone_days.event_on

)

select
    user_id,
    reason,
    is_low_rating,
    undone_reason,
    sum(n_events)::bigint as n_events,
    sum(n_left)::bigint as n_left
from judged_days
group by user_id, reason, is_low_rating, undone_reason
