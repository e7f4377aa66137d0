-- arrived = rejected + accepted, and accepted = left out + counted. Each side is counted on its
-- own.
{{ config(meta={'dagster': {'ref': {'name': 'row_accounting'}}}) }}

with

steps as (

    select step, sum(n_rows) as n_rows
    from {{ ref('row_accounting') }}
    group by step

),

sides as (

    select
        coalesce(sum(n_rows) filter (where step = 'arrived'), 0) as arrived,
        coalesce(
            sum(n_rows) filter (where step in ('rejected', 'accepted')), 0
        ) as rejected_and_accepted,
        coalesce(sum(n_rows) filter (where step = 'accepted'), 0) as accepted,
        coalesce(
            sum(n_rows) filter (where step in ('left out', 'counted')), 0
        ) as left_out_and_counted
    from steps

)

select *
from sides
where arrived <> rejected_and_accepted or accepted <> left_out_and_counted
