-- More than a fifth refused: rather a column that changed its meaning than dirt. Look at the reasons
-- in staging.rejected_rows.
{{ config(severity='warn', meta={'dagster': {'ref': {'name': 'rejected_rows'}}}) }}

with

events as (

    select coalesce(sum(n_events), 0) as n_accepted from {{ ref('int_event_days') }}

),

rejected as (

    select count(*) as n_rejected from {{ ref('rejected_rows') }}
    where entity = 'events'

)

select n_accepted, n_rejected
from events
cross join rejected
where n_rejected > 0.2 * (n_accepted + n_rejected)
