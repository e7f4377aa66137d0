-- Grain: one row per (is_bought, product) of int_baskets: how many baskets hold it, of how many.
with

baskets as (

    select * from {{ ref('int_baskets') }}

),

catalogue as (

    select * from {{ ref('int_basket_products') }}

),

all_baskets as (

    select is_bought, count(*) as n_all_baskets
    from (select distinct is_bought, user_number, event_on from baskets) as baskets
    group by is_bought

),

product_counts as (

    select is_bought, product_number, count(*) as n_baskets
    from baskets
    group by is_bought, product_number

)

select
    product_counts.is_bought,
    product_counts.product_number,
    catalogue.product_id,
    product_counts.n_baskets,
    all_baskets.n_all_baskets
from product_counts
inner join all_baskets using (is_bought)
inner join catalogue using (product_number)
