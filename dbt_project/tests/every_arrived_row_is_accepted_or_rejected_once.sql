-- Nothing is dropped and nothing is counted twice between the landing folder and staging, in any
-- file. This stands in for a test of the grain of base_events, at a tenth of its cost.
with

arrived as (

    select
        entity,
        source_file,
        n_rows + n_malformed as n_arrived
    from {{ source('raw', 'landing_files') }}

),

counted as (

    {% for entity in ['events', 'products', 'users'] %}
    select '{{ entity }}' as entity, source_file, count(*) as n_rows
    from {{ ref('stg_' ~ entity) }}
    group by source_file

    union all

    {% endfor %}
    select entity, source_file, count(*) as n_rows
    from {{ ref('rejected_rows') }}
    group by entity, source_file

),

sorted as (

    select entity, source_file, sum(n_rows) as n_sorted
    from counted
    group by entity, source_file

)

select entity, source_file, n_arrived, n_sorted
from arrived
full join sorted using (entity, source_file)
where coalesce(n_arrived, 0) <> coalesce(n_sorted, 0)
