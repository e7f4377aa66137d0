-- Grain: one row per (user, rank): what the user bought and is due again.
with

purchases as (

    select * from {{ ref('int_purchases') }}

),

intervals as (

    select * from {{ ref('repeat_intervals') }}

),

available as (

    select product_id
    from {{ ref('products') }}
    where is_available

),

as_of as (

    select as_of from {{ ref('int_as_of') }}

),

habits as (

    -- A user's own gaps, with the product's interval as one more: it is all that is known of whoever
    -- bought once.
    select
        purchases.user_id,
        purchases.product_id,
        len(purchases.bought_on) as n_bought,
        purchases.bought_on[-1] as last_bought_on,
        {{ dbt.datediff('purchases.bought_on[1]', 'purchases.bought_on[-1]', 'day') }}
        + intervals.interval_days as days_in_all,
        days_in_all / len(purchases.bought_on) as interval_days,
        {{ dbt.datediff('purchases.bought_on[-1]', 'as_of.as_of', 'day') }} as days_since
    from purchases
    inner join intervals using (product_id)
    semi join available using (product_id)
    cross join as_of

),

scored as (

    -- Who bought more often is likelier to buy again; halved for every interval that it is too early
    -- or too late.
    select
        *,
        round(
            n_bought * power(0.5, abs(days_since - interval_days) / interval_days), 9
        ) as score
    from habits

),

ranked as (

    select
        *,
        row_number() over (partition by user_id order by score desc, product_id) as rank
    from scored
    qualify rank <= {{ var('buy_again_depth') }}

)

select
    user_id,
    rank::integer as rank,
    product_id,
    score,
    n_bought::integer as n_bought,
    last_bought_on,
    last_bought_on + round(interval_days)::integer as due_on
from ranked
