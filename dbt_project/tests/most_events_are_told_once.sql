-- More than a fifth duplicates: rather an event_id that is not one event's own, or a file that came
-- twice under another name and in another order, than double clicks.
{{ config(severity='warn', meta={'dagster': {'ref': {'name': 'int_duplicate_events'}}}) }}

with

events as (

    select coalesce(sum(n_events), 0) as n_events from {{ ref('int_event_days') }}

),

duplicates as (

    select count(*) as n_duplicates from {{ ref('int_duplicate_events') }}

)

select n_events, n_duplicates
from events
cross join duplicates
where n_duplicates > 0.2 * n_events
