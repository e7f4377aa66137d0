-- More than a fifth refused: rather a column that changed its meaning than dirt. Look at the reasons
-- in staging.rejected_rows.
{{ config(severity='warn', meta={'dagster': {'ref': {'name': 'rejected_rows'}}}) }}

with

events as (

    select count(*) as n_accepted from {{ ref('stg_events') }}

),

rejected as (

    select count(*) as n_rejected from {{ ref('rejected_rows') }}
    where entity = 'events'

)

select n_accepted, n_rejected
from events
cross join rejected
where n_rejected > 0.2 * (n_accepted + n_rejected)
