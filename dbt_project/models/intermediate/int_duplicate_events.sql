-- Grain: one accepted event that says again what another one said, and why it counts as that.
-- Incremental by day (see int_changed_days).
-- depends_on: {{ ref('int_event_days') }}, {{ ref('int_changed_days') }}

-- Sorting all events to find a few per cent is what costs. So keys that occur once are dropped
-- first, by a hash of eight bytes; a collision only means one more key that is looked at.
{% set near_key = 'user_id, product_id, event_type, order_id, session_id, quantity, rating' %}
-- Files and rows last: which of several stays depends on what they say, not on where they stand.
{% set order = 'event_at, price, other_values_hash, event_id, source_file, source_row' %}

with

{% if some_days_stay() %}
changed_days as (

    select event_on from {{ ref('int_changed_days') }}

),

judged as materialized (

    select * from {{ ref('stg_events') }} semi join changed_days using (event_on)

),

before_midnight as (

    select
        changed_days.event_on - n_days.n::integer as event_on,
        changed_days.event_on - to_seconds({{ var('near_duplicate_seconds') }}) as from_at
    from changed_days
    cross join range(1, {{ n_days_after() }} + 1) as n_days(n)

),

-- The joins that leave little stand first: then the further columns of millions are never read.
beside as (

    select * from {{ ref('stg_events') }}
    where event_id in (select event_id from judged where event_id is not null)

    union

    select events.*
    from {{ ref('stg_events') }} as events
    semi join before_midnight
        on
            events.event_on = before_midnight.event_on
            and events.event_at >= before_midnight.from_at

),

-- Other days stay as they are; what they hold decides on the events of the changed ones.
other_days as (

    select beside.*
    from beside
    anti join changed_days on beside.event_on = changed_days.event_on
    anti join {{ this }} as copies
        on
            beside.source_file = copies.source_file
            and beside.source_row = copies.source_row
            and copies.reason = 'exact duplicate'

),

events as (

    select *, true as is_judged from judged
    union all
    select *, false as is_judged from other_days

),
{% else %}
events as not materialized (

    select *, true as is_judged from {{ ref('stg_events') }}

),
{% endif %}
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
            partition by event_id order by event_at, {{ near_key }}, {{ order }}
        ) > 1 as is_copy,
        min(event_on) over (partition by event_id) as first_told_on
    from suspects
    where event_id is not null

    union all

    select
        *,
        row_number() over (
            partition by {{ near_key }}, event_at, price, other_values_hash
            order by source_file, source_row
        ) > 1 as is_copy,
        event_on as first_told_on
    from suspects
    where event_id is null

),

-- Compared with the event before it, itself perhaps a duplicate: a series of clicks is one click.
near as (

    select
        source_file,
        source_row,
        event_on,
        is_judged,
        event_at <= lag(event_at) over same_key
        + to_seconds({{ var('near_duplicate_seconds') }})
        -- A shop that tells days alone tells them as midnight; its ids say that these are several.
        and not (
            event_at = event_on
            and event_at = lag(event_at) over same_key
            and coalesce(event_id <> lag(event_id) over same_key, false)
        ) as is_repetition,
        lag(event_on) over same_key as first_told_on
    from exact
    where not is_copy
    window same_key as (partition by {{ near_key }} order by {{ order }})

)

select
    source_file,
    source_row,
    event_on,
    first_told_on,
    'exact duplicate' as reason
from exact
where is_copy and is_judged

union all

select
    source_file,
    source_row,
    event_on,
    first_told_on,
    'near duplicate' as reason
from near
where is_repetition and is_judged
