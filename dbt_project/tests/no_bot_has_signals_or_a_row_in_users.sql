-- A user known to be a bot on as_of is in none of the marts.
{{ config(meta={'dagster': {'ref': {'name': 'users'}}}) }}

with

bots as (

    select user_id
    from {{ ref('int_user_activity') }}
    where is_bot

)

select 'signals' as mart, user_id from {{ ref('signals') }} semi join bots using (user_id)
union all
select 'users' as mart, user_id from {{ ref('users') }} semi join bots using (user_id)
