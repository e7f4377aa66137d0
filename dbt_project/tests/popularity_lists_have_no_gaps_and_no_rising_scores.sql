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

)

{{ broken_ranks('lists', ['mart', 'segment_type', 'segment', 'time_window']) }}
