-- Grain: one day with accepted events.
{% set near_duplicate_seconds = var('near_duplicate_seconds') %}

with

events as (

    select * from {{ ref('stg_events') }}

),

{{ event_types_of_days() }}

known_types as (

    -- A type that loses its weight stops the build of every day it occurs on.
    select string_agg(event_type || ' ' || has_products, ' ' order by event_type) as names
    from event_types

),

days as (

    select
        event_on,
        count(*) as n_events,
        {{ rows_hash('file_version, source_row') }} as rows_hash
    from events
    group by event_on

)

select
    days.event_on,
    days.n_events,
    hash(
        days.n_events,
        days.rows_hash,
        known_types.names,
        '{{ recipe_of_days() }}'
    ) as inputs_hash
from days
cross join known_types
