-- Grain: one row per (is_bought, user, day, product): what a user bought, or looked at, on one day.
-- A table of its own, of numbers alone, so that int_pair_counts can read it part by part.
with

{{ counted_days('as_of') }}

people as (

    -- An outlier (a reseller, a test account) puts everything beside everything.
    select
        user_id,
        row_number() over (order by user_id)::integer as user_number
    from {{ ref('int_user_activity') }}
    where coalesce(outlier_since > (select until_on from period), true)

),

catalogue as (

    select * from {{ ref('int_basket_products') }}

),

-- Joined, not compared with a list: DuckDB takes that for a filter that leaves few rows, and then
-- builds the hash tables of the other joins on the millions.
basket_types as (

    -- A click is a look as well.
    select
        event_type,
        event_type = 'purchase' as is_bought
    from weights
    where event_type in ('purchase', 'view', 'click')

),

contents as (

    -- A product looked at twice is in the basket once.
    select distinct
        basket_types.is_bought,
        people.user_number,
        counted_days.event_on,
        catalogue.product_number
    from counted_days
    inner join basket_types using (event_type)
    inner join people using (user_id)
    inner join catalogue using (product_id)

),

baskets as (

    select is_bought, user_number, event_on
    from contents
    group by is_bought, user_number, event_on
    having count(*) <= {{ var('basket_max_products') }}

)

select
    is_bought,
    user_number,
    event_on,
    product_number
from contents
semi join baskets using (is_bought, user_number, event_on)
