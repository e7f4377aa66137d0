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

    select * from {{ ref('int_undone_days') }} {{ of_changed_users() }}
    where period = 'as_of'

),

user_activity as (

    select * from {{ ref('int_user_activity') }}

),

event_weights as (

    select * from {{ ref('event_weights') }}

),

days as (

    select
        user_id,
        event_type,
        event_on > (select as_of from as_of) as is_late,
        {{ is_low_rating('daily_signals') }} as is_low_rating,
        sum(n_events) as n_events
    from daily_signals
    group by user_id, event_type, is_late, is_low_rating

),

low_ratings as (

    select user_id, product_id, event_type, event_on
    from daily_signals
    where event_type = 'rating' and {{ is_low_rating('daily_signals') }}

),

undone as (

    select
        undone_days.*,
        low_ratings.user_id is not null as is_low_rating
    from undone_days
    left join low_ratings using (user_id, product_id, event_type, event_on)

),

-- What was undone leaves the days it is among: few rows are moved, instead of millions joined.
told_apart as (

    select
        user_id,
        event_type,
        is_late,
        is_low_rating,
        null as undone_reason,
        n_events,
        n_events as n_left
    from days

    union all

    select
        user_id,
        event_type,
        false as is_late,
        is_low_rating,
        null as undone_reason,
        -n_events as n_events,
        -n_events as n_left
    from undone

    union all

    select
        user_id,
        event_type,
        false as is_late,
        is_low_rating,
        reason as undone_reason,
        n_events,
        n_left
    from undone

),

-- The first reason that applies is the one an event is counted under.
judged as (

    select
        told_apart.*,
        case
            when told_apart.is_late then 'after as_of'
            when user_activity.is_bot then 'by a bot'
            when user_activity.is_outlier then 'by an outlier user'
            when event_weights.undoes is not null then 'undoes another event'
            when event_weights.weight <= 0 and told_apart.event_type <> 'purchase'
                then 'of a type without weight'
        end as reason
    from told_apart
    inner join event_weights on told_apart.event_type = event_weights.event_type
    left join user_activity on told_apart.user_id = user_activity.user_id

)

select
    user_id,
    reason,
    is_low_rating,
    undone_reason,
    sum(n_events)::bigint as n_events,
    sum(n_left)::bigint as n_left
from judged
group by user_id, reason, is_low_rating, undone_reason
having sum(n_events) > 0
