-- Grain: one day that int_duplicate_events and int_daily_signals have to build again.
with

days as (

    select * from {{ ref('int_event_days') }}

),

built_days as (

    select * from {{ ref('int_built_days') }}

),

-- Copying millions costs more than filtering them twice, by days and by ids that are known by then.
events as not materialized (

    select * from {{ ref('stg_events') }}

),

-- A day whose build did not end has no hash.
changed as (

    select event_on
    from days
    full join built_days using (event_on)
    where
        built_days.inputs_hash is null
        or built_days.inputs_hash is distinct from days.inputs_hash

),

-- Where every day is built again, nobody has to look for further ones.
few_changed as materialized (

    select event_on from changed
    where exists (select 1 from days anti join changed using (event_on))

),

-- The earliest event of an id counts, whatever their days: so events of an id on other days may
-- begin to count, or end.
ids as materialized (

    select distinct events.event_id
    from events
    semi join few_changed using (event_on)
    where events.event_id is not null

),

same_ids as (

    select distinct event_on
    from events
    where event_id in (select event_id from ids)

),

-- Likewise where the changed day held the event that counted, and it is gone.
copies as (

    select unnest(built_days.copied_on) as event_on
    from built_days
    semi join few_changed using (event_on)

),

touched as (

    select event_on from changed
    union
    select event_on from same_ids
    union
    select event_on from copies

)

-- The day after too: an event before midnight can make a near duplicate of one after it.
select distinct touched.event_on + n_days.n::integer as event_on
from touched
cross join range({{ n_days_after() }} + 1) as n_days(n)
