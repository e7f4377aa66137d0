-- Grain: one row per product of the catalogue.
with

products as (

    select * from {{ ref('stg_products') }}

),

as_of as (

    select as_of from {{ ref('int_as_of') }}

),

days as (

    select product_id, event_on from {{ ref('int_daily_signals') }}

),

-- Files tell the catalogue of today. Of an earlier day the stock is not known, and what was added
-- since was not there, unless somebody had touched it all the same.
past as (

    select coalesce((select as_of from as_of) < max(event_on), false) as is_past
    from days

),

-- Empty but for a past day: the days are millions.
touched as (

    select distinct days.product_id
    from days
    cross join past
    where past.is_past and days.event_on <= (select as_of from as_of)

),

known as (

    select products.*
    from products
    cross join past
    where
        not past.is_past
        or products.added_at is null
        or products.added_at::date <= (select as_of from as_of)
        or products.product_id in (select product_id from touched)

)

select
    product_id,
    title,
    category,
    brand,
    description,
    price,
    margin,
    img_url,
    added_at,
    available_from,
    available_until,
    in_stock,
    (
        (in_stock is not false or (select is_past from past))
        and {{ is_available_on('known', '(select as_of from as_of)') }}
    ) as is_available,
    nullif(concat_ws(' ', title, category, brand, description), '') as text,
    attributes
from known
