{#-
How much each user wants each product they touched, as seen at the end of `period` ('as_of' or
'backtest'). marts.signals and marts.backtest_signals are this one macro: what is measured is what
is served.
-#}
{% macro signals_as_of(period) %}
with

{{ counted_days(period) }}

aged as (

    -- A user's own clock: it stands still while they do nothing.
    select
        *,
        age_days - min(age_days) over (partition by user_id) as relative_age_days
    from counted_days

),

pairs as (

    select
        user_id,
        product_id,
        {{ faded_strength('age_days') }} as weight,
        {{ faded_strength('relative_age_days') }} as relative_weight,
        max(last_at) as last_at,
        coalesce(sum(n_events) filter (where event_type = 'view'), 0) as n_views,
        coalesce(sum(n_events) filter (where event_type = 'click'), 0) as n_clicks,
        coalesce(sum(n_events) filter (where event_type = 'add_to_cart'), 0) as n_carts,
        coalesce(sum(n_events) filter (where event_type = 'purchase'), 0) as n_purchases,
        coalesce(sum(n_events) filter (where event_type = 'rating'), 0) as n_ratings
    from aged
    group by user_id, product_id

),

outliers as (

    select user_id
    from {{ ref('int_user_activity') }}
    where outlier_since <= (select until_on from period)

)

select
    pairs.user_id,
    pairs.product_id,
    -- Whoever bought a product years ago keeps the row: it says "already bought".
    greatest(pairs.weight::double, 1e-9) as weight,
    greatest(pairs.relative_weight::double, 1e-9) as relative_weight,
    pairs.last_at,
    pairs.n_views::integer as n_views,
    pairs.n_clicks::integer as n_clicks,
    pairs.n_carts::integer as n_carts,
    pairs.n_purchases::integer as n_purchases,
    pairs.n_ratings::integer as n_ratings,
    pairs.user_id not in (select user_id from outliers) as is_training
from pairs
where pairs.weight > 0 or pairs.n_purchases > 0
{% endmacro %}


{#- Decimals: a sum of doubles depends on the order in which threads add them. -#}
{% macro faded_strength(age_days) -%}
sum((
            strength
            -- Re-rating on one day is one opinion; the third click a day still says more than the
            -- second.
            * case
                when event_type = 'rating' then 1
                else least(n_events, {{ var('max_events_per_day_counted') }})
            end
            * power(0.5, {{ age_days }} / half_life_days)
        )::decimal(18, 9))
{%- endmacro %}
