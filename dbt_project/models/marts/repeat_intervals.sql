-- Grain: one row per product that enough users bought again.
with

purchases as (

    select * from {{ ref('int_purchases') }}

),

products as (

    select * from {{ ref('products') }}

),

gaps as (

    select
        user_id,
        product_id,
        unnest(
            list_transform(
                range(1, len(bought_on)),
                lambda day: date_diff('day', bought_on[day], bought_on[day + 1])
            )
        ) as gap_days
    from purchases
    where is_training and len(bought_on) > 1

),

of_shop as (

    select median(gap_days) as median_days
    from gaps

),

of_category as (

    select
        products.category,
        median(gaps.gap_days) as median_days
    from gaps
    inner join products using (product_id)
    where products.category is not null
    group by products.category
    having count(*) >= {{ var('interval_shrinkage') }}

),

of_product as (

    select
        product_id,
        count(distinct user_id) as n_repeat_users,
        count(*) as n_gaps,
        median(gap_days) as median_days
    from gaps
    group by product_id

)

select
    of_product.product_id,
    of_product.n_repeat_users::integer as n_repeat_users,
    of_product.n_gaps::integer as n_gaps,
    of_product.median_days::double as median_days,
    -- Shrunken: three users tell little.
    (
        of_product.n_gaps * of_product.median_days
        + {{ var('interval_shrinkage') }}
        * coalesce(of_category.median_days, of_shop.median_days)
    )::double / (of_product.n_gaps + {{ var('interval_shrinkage') }}) as interval_days
from of_product
inner join products using (product_id)
cross join of_shop
left join of_category using (category)
where of_product.n_repeat_users >= {{ var('min_repeat_users') }}
