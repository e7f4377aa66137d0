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

judged as (

    select
        reason,
        is_low_rating,
        undone_reason,
        sum(n_events) as n_events,
        sum(n_left) as n_left
    from {{ ref('int_event_accounts') }}
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
