-- Grain: one row per (user, product) that was bought and kept.
with

{{ counted_days('as_of') }}

outliers as (

    select user_id
    from {{ ref('int_user_activity') }}
    where outlier_since <= (select until_on from period)

)

select
    user_id,
    product_id,
    list(event_on order by event_on) as bought_on,
    user_id not in (select user_id from outliers) as is_training
from counted_days
where event_type = 'purchase'
group by user_id, product_id
