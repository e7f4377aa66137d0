-- Grain: one row per user of the users file or with an event up to as_of; bots left out.
with

users_file as (

    select
        user_id,
        {{ segment_of('stg_users') }} as segment,
        country,
        age_band,
        gender,
        attributes
    from {{ ref('stg_users') }} as stg_users

),

activity as (

    select * from {{ ref('int_user_activity') }}

),

signals as (

    select
        signals.user_id,
        signals.product_id,
        signals.weight::decimal(18, 9) as weight,
        signals.n_purchases,
        products.category
    from {{ ref('signals') }} as signals
    inner join {{ ref('products') }} as products using (product_id)

),

by_category as (

    select
        user_id,
        category,
        sum(weight) as weight,
        sum(n_purchases) as n_purchases
    from signals
    group by user_id, category

),

purchases as (

    select
        user_id,
        sum(n_purchases) as n_purchases
    from by_category
    group by user_id

),

favourites as (

    select
        user_id,
        category
    from by_category
    where category is not null
    -- A tie goes to the category first in the alphabet.
    qualify row_number() over (partition by user_id order by weight desc, category) = 1

),

everyone as (

    select user_id from users_file
    union
    select user_id from activity

)

select
    everyone.user_id,
    users_file.segment,
    favourites.category as favourite_category,
    users_file.country,
    users_file.age_band,
    users_file.gender,
    users_file.attributes,
    coalesce(activity.n_events, 0)::integer as n_events,
    coalesce(purchases.n_purchases, 0)::integer as n_purchases,
    activity.first_at,
    activity.last_at,
    coalesce(activity.is_outlier, false) as is_outlier
from everyone
left join users_file using (user_id)
left join activity using (user_id)
left join purchases using (user_id)
left join favourites using (user_id)
where activity.is_bot is not true
