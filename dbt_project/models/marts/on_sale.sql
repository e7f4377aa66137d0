-- Grain: one row per product that costs less than it usually does.
-- Reads events: int_daily_signals knows no prices. The days of the two windows only.
with

events as (

    select * from {{ ref('int_events_deduplicated') }}

),

bots as (

    select user_id
    from {{ ref('int_user_activity') }}
    where is_bot

),

as_of as (

    select as_of from {{ ref('int_as_of') }}

),

paid as (

    -- One price of each person: who buys every week, or for a whole shop, knows it no better.
    select
        events.product_id,
        events.user_id,
        median(events.price) as price,
        {{ dbt.datediff('events.event_on', 'as_of.as_of', 'day') }}
        < {{ var('trending_days') }} as is_recent
    from events
    anti join bots on events.user_id = bots.user_id
    cross join as_of
    where
        events.event_type = 'purchase'
        and events.price > 0
        and events.event_on <= as_of.as_of
        and events.event_on > (
            select as_of - {{ var('usual_price_days') }} - {{ var('trending_days') }} from as_of
        )
    group by events.product_id, events.user_id, is_recent

),

prices as (

    -- The median: a wholesaler's discount or a mistyped price moves nothing.
    select
        product_id,
        median(price) filter (where is_recent) as recent_price,
        median(price) filter (where not is_recent) as usual_price,
        count(*) filter (where is_recent) as n_recent_prices,
        count(*) filter (where not is_recent) as n_prices
    from paid
    group by product_id

),

today as (

    -- A catalogue without prices: what is paid now. 0 is none: nobody gives away what is on sale.
    select
        products.product_id,
        coalesce(
            nullif(products.price, 0),
            case when prices.n_recent_prices >= {{ var('min_prices') }} then prices.recent_price end
        ) as price,
        prices.usual_price,
        prices.n_prices
    from {{ ref('products') }} as products
    inner join prices using (product_id)
    where products.is_available and prices.n_prices >= {{ var('min_prices') }}

),

compared as (

    select
        *,
        round(1 - price / usual_price, 9) as share_saved
    from today

)

select
    row_number() over (order by share_saved desc, product_id)::integer as rank,
    product_id,
    price::double as price,
    usual_price::double as usual_price,
    share_saved::double as share_saved,
    n_prices::integer as n_prices
from compared
where share_saved >= {{ var('sale_share') }}
qualify rank <= {{ var('popularity_depth') }}
