-- Ranks are 1 to the length of the list, and a score never rises with the rank.
{{ config(meta={'dagster': {'ref': {'name': 'buy_again'}}}) }}

with

lists as (

    select 'buy_again' as mart, user_id as list_id, rank, score
    from {{ ref('buy_again') }}

    union all

    select 'anchors' as mart, user_id as list_id, rank, 0 as score
    from {{ ref('anchors') }}

    union all

    select 'on_sale' as mart, 'all' as list_id, rank, share_saved as score
    from {{ ref('on_sale') }}

)

{{ broken_ranks('lists', ['mart', 'list_id']) }}
