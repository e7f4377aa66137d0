-- Nothing is dropped and nothing is counted twice: between raw and staging in no file, and between
-- the landing files and raw in no entity (there an adapter is one file, whose rows can name others).
-- This stands in for a test of the grain of base_events, at a tenth of its cost.
{{ config(meta={'dagster': {'ref': {'name': 'rejected_rows'}}}) }}

with

arrived as (

    {% for entity in ['events', 'products', 'users'] %}
    select '{{ entity }}' as entity, source_file, count(*) as n_arrived
    from {{ source('raw', entity) }}
    group by source_file

    union all

    {% endfor %}
    select entity, source_file, count(*) as n_arrived
    from {{ source('raw', 'malformed_lines') }}
    group by entity, source_file

),

sorted as (

    {% for entity in ['events', 'products', 'users'] %}
    select '{{ entity }}' as entity, source_file, count(*) as n_sorted
    from {{ ref('stg_' ~ entity) }}
    group by source_file

    union all

    {% endfor %}
    select entity, source_file, count(*) as n_sorted
    from {{ ref('rejected_rows') }}
    group by entity, source_file

),

landed as (

    select entity, 'all landing files' as source_file, sum(n_rows + n_malformed) as n_arrived
    from {{ source('raw', 'landing_files') }}
    group by entity

),

counted as (

    select entity, source_file, n_arrived, 0 as n_sorted from arrived
    union all
    select entity, source_file, 0 as n_arrived, n_sorted from sorted
    union all
    select entity, source_file, n_arrived, 0 as n_sorted from landed
    union all
    select entity, 'all landing files' as source_file, 0 as n_arrived, n_sorted from sorted

)

select entity, source_file, sum(n_arrived) as n_arrived, sum(n_sorted) as n_sorted
from counted
group by entity, source_file
having sum(n_arrived) <> sum(n_sorted)
