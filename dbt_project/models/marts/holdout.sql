-- Grain: one row per (user, product): what users went for in the days that the backtest may not
-- see.
with

{{ counted_days('holdout') }}

backtest_signals as (

    select user_id, product_id from {{ ref('backtest_signals') }}

),

pairs as (

    -- A low rating is no wish fulfilled: it has no strength.
    select
        user_id,
        product_id,
        sum(n_events) as n_events,
        coalesce(sum(n_events) filter (where event_type = 'purchase'), 0) as n_purchases,
        min(first_at) as first_at
    from counted_days
    where strength > 0
    group by user_id, product_id

)

select
    pairs.user_id,
    pairs.product_id,
    pairs.n_events::integer as n_events,
    pairs.n_purchases::integer as n_purchases,
    backtest_signals.user_id is null as is_new,
    pairs.first_at
from pairs
left join backtest_signals using (user_id, product_id)
