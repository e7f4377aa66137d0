-- Grain: one row per (user, rank): all that the user bought, latest first.
with

purchases as (

    select * from {{ ref('int_purchases') }}

)

select
    user_id,
    row_number() over (
        partition by user_id order by bought_on[-1] desc, product_id
    )::integer as rank,
    product_id,
    bought_on[-1] as last_bought_on
from purchases
