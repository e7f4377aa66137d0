-- Only what is available is proposed, and only what a user bought is proposed to be bought again.
{{ config(meta={'dagster': {'ref': {'name': 'buy_again'}}}) }}

with

available as (

    select product_id
    from {{ ref('products') }}
    where is_available

)

select 'not available' as problem, user_id, product_id
from {{ ref('buy_again') }}
anti join available using (product_id)

union all

select 'on sale, not available' as problem, null as user_id, product_id
from {{ ref('on_sale') }}
anti join available using (product_id)

union all

select 'never bought' as problem, again.user_id, again.product_id
from {{ ref('buy_again') }} as again
anti join (
    select user_id, product_id
    from {{ ref('signals') }}
    where n_purchases > 0
) as owned
    on again.user_id = owned.user_id and again.product_id = owned.product_id
