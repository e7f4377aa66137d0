-- Grain: one row per (step, reason): how the event rows that arrived become the events that count.
with

landing_files as (

    select * from {{ source('raw', 'landing_files') }}
    where entity = 'events'

),

rejected_rows as (

    select * from {{ ref('rejected_rows') }}
    where entity = 'events'

),

event_days as (

    select * from {{ ref('int_event_days') }}

),

duplicates as (

    select * from {{ ref('int_duplicate_events') }}

),

as_of as (

    select as_of from {{ ref('int_as_of') }}

),

daily_signals as (

    select * from {{ ref('int_daily_signals') }}

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

),

-- A handful of rows, so that the millions are looked at once.
judged as (

    select
        reason,
        is_low_rating,
        undone_reason,
        sum(n_events) as n_events,
        sum(n_left) as n_left
    from judged_days
    group by reason, is_low_rating, undone_reason

),

left_out as (

    select reason, count(*) as n_rows
    from duplicates
    group by reason

    union all

    select reason, sum(n_events) as n_rows
    from judged
    where reason is not null
    group by reason

    union all

    -- Of a day with three purchases one can be taken back and two count.
    select undone_reason as reason, sum(n_events - n_left) as n_rows
    from judged
    where reason is null and n_left < n_events
    group by undone_reason

    union all

    select 'a rating below 3' as reason, sum(n_left) as n_rows
    from judged
    where reason is null and is_low_rating
    having sum(n_left) > 0

),

steps as (

    select 1 as position, 'arrived' as step, 'all' as reason, sum(n_rows + n_malformed) as n_rows
    from landing_files

    union all

    select 2 as position, 'rejected' as step, reason, count(*) as n_rows
    from rejected_rows
    group by reason

    union all

    select 3 as position, 'accepted' as step, 'all' as reason, sum(n_events) as n_rows
    from event_days

    union all

    select 4 as position, 'left out' as step, reason, n_rows
    from left_out

    union all

    select 5 as position, 'counted' as step, 'all' as reason, sum(n_left) as n_rows
    from judged
    where reason is null and not is_low_rating

)

select
    position::integer as position,
    step,
    reason,
    coalesce(n_rows, 0)::bigint as n_rows
from steps
