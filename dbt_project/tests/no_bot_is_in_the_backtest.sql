-- The holdout is without those known to be bots on as_of; what is learned from for it leaves out whom
-- it could know about. A test of its own, as with the popularity of the backtest.
{{ config(meta={'dagster': {'ref': {'name': 'backtest_signals'}}}) }}

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

select 'holdout' as mart, user_id from {{ ref('holdout') }} semi join bots using (user_id)
union all
select 'backtest_signals' as mart, user_id
from {{ ref('backtest_signals') }} semi join early_bots using (user_id)
