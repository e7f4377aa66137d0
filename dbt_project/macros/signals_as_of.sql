{#-
How much each user wants each product they touched, as seen at the end of `period` ('as_of' or
'backtest'), in two steps. `user_signals_as_of` is all that depends on a user's own days and not on
how long ago the last of them was; `faded_signals` ages it. marts.signals and marts.backtest_signals
are these two macros: what is measured is what is served.
-#}

{#- CTEs of counted_days and `user_signals`. Grain: (user_id, product_id). -#}
{% macro user_signals_as_of(period, of_users='') %}
{{ counted_days(period, of_users=of_users) }}
-- Not a window over the days: that would sort them all.
user_clocks as (

    select user_id, min(age_days) as idle_days
    from counted_days
    group by user_id

),

-- A user's own clock: it stands still while they do nothing.
aged as (

    select
        counted_days.*,
        user_clocks.idle_days
    from counted_days
    inner join user_clocks using (user_id)

),

-- Where all events fade alike, a user's weights fade by one factor.
fading as (

    select
        case when count(distinct half_life_days) = 1 then min(half_life_days) end as half_life_days
    from weights
    where weight > 0

),

pairs as (

    select
        user_id,
        product_id,
        any_value(idle_days) as idle_days,
        {{ faded_strength('age_days - idle_days') }} as relative_weight,
        -- Not computed where it follows from the relative weight.
        {{ faded_strength('case when fading.half_life_days is null then age_days end') }} as weight,
        max(strength) filter (where strength > 0) as strongest,
        min(event_on) filter (where strength > 0) as wanted_since,
        max(last_at) as last_at,
        coalesce(sum(n_events) filter (where event_type = 'view'), 0) as n_views,
        coalesce(sum(n_events) filter (where event_type = 'click'), 0) as n_clicks,
        coalesce(sum(n_events) filter (where event_type = 'add_to_cart'), 0) as n_carts,
        coalesce(sum(n_events) filter (where event_type = 'purchase'), 0) as n_purchases,
        coalesce(sum(n_events) filter (where event_type = 'rating'), 0) as n_ratings
    from aged
    cross join fading
    group by user_id, product_id

),

outliers as (

    select user_id
    from {{ ref('int_user_activity') }}
    where outlier_since <= (select until_on from period)

),

user_signals as (

    select
        pairs.user_id,
        pairs.product_id,
        period.until_on - pairs.idle_days::integer as user_last_on,
        fading.half_life_days,
        pairs.relative_weight::double as relative_weight,
        pairs.weight::double as weight,
        pairs.strongest,
        pairs.wanted_since,
        pairs.last_at,
        pairs.n_views::integer as n_views,
        pairs.n_clicks::integer as n_clicks,
        pairs.n_carts::integer as n_carts,
        pairs.n_purchases::integer as n_purchases,
        pairs.n_ratings::integer as n_ratings,
        pairs.user_id not in (select user_id from outliers) as is_training
    from pairs
    cross join fading
    cross join period

)
{%- endmacro %}


{#- Signals as they are at the end of `period`, from the CTE user_signals. -#}
{% macro faded_signals(period) -%}
period_end as (

    select {{ 'holdout_from' if period == 'backtest' else 'as_of' }} as until_on
    from {{ ref('int_as_of') }}

),

faded as (

    select
        user_signals.*,
        coalesce(
            user_signals.weight,
            user_signals.relative_weight * power(
                0.5,
                {{ dbt.datediff('user_signals.user_last_on', 'period_end.until_on', 'day') }}
                / user_signals.half_life_days
            )
        ) as faded_weight
    from user_signals
    cross join period_end

)

select
    user_id,
    product_id,
    -- Whoever bought a product years ago keeps the row: it says "already bought".
    greatest(faded_weight, 1e-9) as weight,
    greatest(relative_weight, 1e-9) as relative_weight,
    last_at,
    n_views,
    n_clicks,
    n_carts,
    n_purchases,
    n_ratings,
    n_ratings > 0 and n_views + n_clicks = 0 as is_only_rated,
    is_training
from faded
where faded_weight >= 1e-9 or n_purchases > 0
{%- endmacro %}


{#- Decimals: a sum of doubles depends on the order in which threads add them. -#}
{% macro faded_strength(age_days) -%}
sum({{ faded_part(age_days) }})
{%- endmacro %}


{#- What one day's events of one type add to it. -#}
{% macro faded_part(age_days) -%}
(
            strength
            -- Re-rating on one day is one opinion; the third click a day still says more than the
            -- second.
            * case
                when event_type = 'rating' then 1
                else least(n_events, {{ var('max_events_per_day_counted') }})
            end
            * power(0.5, ({{ age_days }}) / aged.half_life_days)
        )::decimal(18, 9)
{%- endmacro %}
