-- Ranks are 1 to the length of the list, and a score never rises with the rank. Both lists, both
-- dates.
{{ config(meta={'dagster': {'ref': {'name': 'popularity'}}}) }}

with

lists as (

    select 'popularity' as mart, segment_type, segment, time_window, rank, score
    from {{ ref('popularity') }}

    union all

    select 'backtest_popularity' as mart, segment_type, segment, time_window, rank, score
    from {{ ref('backtest_popularity') }}

),

steps as (

    select
        *,
        lag(rank, 1, 0) over list as rank_before,
        lag(score) over list as score_before
    from lists
    window list as (partition by mart, segment_type, segment, time_window order by rank)

)

select *
from steps
where rank <> rank_before + 1 or score > score_before
