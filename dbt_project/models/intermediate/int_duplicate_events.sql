-- Grain: one accepted event that says again what another one said, and why it counts as that.

-- Sorting all events to find a few per cent is what costs. So keys that occur once are dropped
-- first, by a hash of eight bytes; a collision only means one more key that is looked at.
{% set near_key = 'user_id, product_id, event_type, order_id, session_id, quantity, rating' %}

with

events as not materialized (

    select * from {{ ref('stg_events') }}

),

repeated_ids as (

    select hash(event_id) as key_hash
    from events
    where event_id is not null
    group by key_hash
    having count(*) > 1

),

-- Rows that are equal in all values agree in these too.
repeated_keys as (

    select hash({{ near_key }}) as key_hash
    from events
    group by key_hash
    having count(*) > 1

),

suspects as (

    select *
    from events
    where
        hash({{ near_key }}) in (select key_hash from repeated_keys)
        or hash(event_id) in (select key_hash from repeated_ids)

),

-- The earliest of them stays, so that no past day changes when a copy arrives later.
exact as (

    select
        *,
        row_number() over (
            partition by event_id order by event_at, source_file, source_row
        ) > 1 as is_copy
    from suspects
    where event_id is not null

    union all

    select
        *,
        row_number() over (
            partition by {{ near_key }}, event_at, price, other_values_hash
            order by source_file, source_row
        ) > 1 as is_copy
    from suspects
    where event_id is null

),

-- Compared with the event before it, itself perhaps a duplicate: a series of clicks is one click.
near as (

    select
        source_file,
        source_row,
        event_at <= lag(event_at) over (
            partition by {{ near_key }} order by event_at, source_file, source_row
        ) + to_seconds({{ var('near_duplicate_seconds') }}) as is_repetition
    from exact
    where not is_copy

)

select
    source_file,
    source_row,
    'exact duplicate' as reason
from exact
where is_copy

union all

select
    source_file,
    source_row,
    'near duplicate' as reason
from near
where is_repetition
