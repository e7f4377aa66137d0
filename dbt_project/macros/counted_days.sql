{#-
CTEs `period`, `weights`, `event_days`, `counted_days`: what counts in a period of undone_days
('as_of', 'backtest' or 'holdout'). Every table that counts events builds on them, so that "bought"
means the same in signals, popularity, pairs and holdout, and so that nothing after the period's end
is looked at.

Grain of counted_days: (user_id, product_id, event_type, event_on); bots are out, and so is what left
the catalogue, of which int_daily_signals has no row. n_events > 0 is net of what was undone;
strength is the weight of one event, 0 for a low rating; age_days counts from the period's end; the
half-life comes with the row, since an event type can have its own. `of_users`: what limits a table
to some users. `last_days`: how many days up to the period's end are asked for; nothing: all.
-#}
{% macro counted_days(period, of_users='', last_days=none) %}
period as (

    select
        {{ 'holdout_from' if period == 'backtest' else 'as_of' }} as until_on,
        {{ 'as_of - holdout_from' if period == 'holdout' else 'cast(null as integer)' }} as n_days
    from {{ ref('int_as_of') }}

),

weights as (

    select
        event_type,
        {#- Anything else is named by check_vars. #}
        {%- if var('event_weights') is mapping and var('event_weights') %}
        -- Who is a bot and what is undone is asked of the file's weights: what has none there gains
        -- none.
        case
            {%- for event_type, weight in var('event_weights').items() %}
            when event_type = '{{ event_type | replace("'", "''") }}' and weight > 0 then {{ weight }}
            {%- endfor %}
            else weight
        end::double as weight,
        {%- else %}
        weight::double as weight,
        {%- endif %}
        coalesce(half_life_days, {{ var('half_life_days') }})::double as half_life_days
    from {{ ref('event_weights') }}

),

bots as (

    select user_id
    from {{ ref('int_user_activity') }}
    where bot_since <= (select until_on from period)

),

undone_days as (

    select *
    from {{ ref('int_undone_days' if period == 'as_of' else 'int_backtest_undone_days') }}
    where period = '{{ period }}'

),

event_days as (

    -- Not `event_on <= (select ...)`: DuckDB then expects so few rows that it builds the hash tables
    -- of the joins below on the millions instead of the thousands, at twice the time and memory.
    select
        daily_signals.*,
        {{ dbt.datediff('daily_signals.event_on', 'period.until_on', 'day') }} as age_days
    from {{ ref('int_daily_signals') }} as daily_signals {{ of_users }}
    cross join period
    where
        age_days >= 0
        {%- if last_days is not none %}
        and daily_signals.event_on > (select until_on - {{ last_days }} from period)
        {%- endif %}
        {%- if period == 'holdout' %}
        and age_days < period.n_days
        {%- endif %}

),

counted_days as (

    select
        event_days.user_id,
        event_days.product_id,
        event_days.event_type,
        event_days.event_on,
        event_days.age_days,
        coalesce(undone_days.n_left, event_days.n_events) as n_events,
        case
            when {{ is_low_rating('event_days') }} then 0
            when event_days.event_type = 'rating' then weights.weight * event_days.rating / 5
            else weights.weight
        end as strength,
        weights.half_life_days,
        event_days.first_at,
        event_days.last_at
    from event_days
    inner join weights using (event_type)
    left join undone_days using (user_id, product_id, event_type, event_on)
    anti join bots on event_days.user_id = bots.user_id
    where
        -- A purchase counts as bought even in a shop that gives it no weight.
        (weights.weight > 0 or event_days.event_type = 'purchase')
        and coalesce(undone_days.n_left, event_days.n_events) > 0

),
{% endmacro %}


{#- Two stars of five are an opinion, but no preference. -#}
{% macro is_low_rating(days) -%}
({{ days }}.event_type = 'rating' and coalesce({{ days }}.rating, 0) < 3)
{%- endmacro %}
