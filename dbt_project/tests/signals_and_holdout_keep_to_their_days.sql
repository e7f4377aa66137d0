-- The backtest ends with holdout_from, the holdout begins the day after it, and nothing is later
-- than as_of.
{{ config(meta={'dagster': {'ref': {'name': 'holdout'}}}) }}

select 'backtest_signals' as mart, user_id, product_id, last_at as happened_at
from {{ ref('backtest_signals') }}
where last_at::date > (select holdout_from from {{ ref('int_as_of') }})

union all

select 'holdout' as mart, user_id, product_id, first_at as happened_at
from {{ ref('holdout') }}
where
    first_at::date <= (select holdout_from from {{ ref('int_as_of') }})
    or first_at::date > (select as_of from {{ ref('int_as_of') }})

union all

select 'signals' as mart, user_id, product_id, last_at as happened_at
from {{ ref('signals') }}
where last_at::date > (select as_of from {{ ref('int_as_of') }})
