-- Grain: one event.
with

events as (

    select * from {{ ref('stg_events') }}

),

duplicates as (

    select source_file, source_row from {{ ref('int_duplicate_events') }}

)

select events.*
from events
anti join duplicates
    on events.source_file = duplicates.source_file and events.source_row = duplicates.source_row
