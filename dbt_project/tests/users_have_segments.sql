-- Users are described, but not one has a segment: rather a variable segment_by that names no column
-- of the users file (its further columns are meant as they are spelt) than a shop without segments.
{{ config(severity='warn', meta={'dagster': {'ref': {'name': 'stg_users'}}}) }}

with

described as (

    select {{ segment_of('stg_users') }} as segment
    from {{ ref('stg_users') }} as stg_users

),

counts as (

    select count(*) as n_users, count(segment) as n_with_segment
    from described

)

select '{{ var('segment_by') | string | replace("'", "''") }}' as segment_by, n_users
from counts
where n_users > 0 and n_with_segment = 0{% if not var('segment_by') %} and false{% endif %}
