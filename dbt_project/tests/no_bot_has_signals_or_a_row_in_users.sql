-- A user known to be a bot on as_of is nowhere in the marts; the backtest leaves out whom it could
-- know about.
{{ config(meta={'dagster': {'ref': {'name': 'users'}}}) }}

with

bots as (

    select user_id, bot_since
    from {{ ref('int_user_activity') }}
    where is_bot

),

early_bots as (

    select user_id
    from bots
    where bot_since <= (select holdout_from from {{ ref('int_as_of') }})

)

select 'signals' as mart, user_id from {{ ref('signals') }} semi join bots using (user_id)
union all
select 'holdout' as mart, user_id from {{ ref('holdout') }} semi join bots using (user_id)
union all
select 'users' as mart, user_id from {{ ref('users') }} semi join bots using (user_id)
union all
select 'backtest_signals' as mart, user_id
from {{ ref('backtest_signals') }} semi join early_bots using (user_id)
