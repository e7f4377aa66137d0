-- Grain: one row per user with an event up to as_of.
-- A flag holds at a date D if its *_since is not after D: a backtest sees no flag from its future.
-- Incremental by user (see int_changed_users).
-- depends_on: {{ ref('int_built_users') }}, {{ ref('int_changed_users') }}
{% set too_many_events = 'more than ' ~ var('bot_max_events_per_day') ~ ' events on a day' %}
{% set too_much_browsed =
    'more than ' ~ var('bot_max_browsed_per_day_without_cart')
    ~ ' views and clicks on a day without cart, purchase or rating' %}

with

as_of as (

    select as_of from {{ ref('int_as_of') }}

),

daily_signals as (

    select * from {{ ref('int_daily_signals') }} {{ of_changed_users() }}
    where event_on <= (select as_of from as_of)

),

-- Asked of the few types instead of the millions of days.
event_types as (

    select
        event_type,
        -- What a user was shown, or took back, is no sign of interest.
        weight > 0 as is_interest,
        event_type in ('view', 'click') as is_browsing,
        event_type in ('add_to_cart', 'purchase', 'rating') as is_decision
    from {{ ref('event_weights') }}

),

weighed as (

    select
        daily_signals.*,
        event_types.is_interest,
        event_types.is_browsing,
        event_types.is_decision
    from daily_signals
    inner join event_types on daily_signals.event_type = event_types.event_type

),

days as (

    select
        user_id,
        event_on,
        sum(n_events) as n_events,
        min(first_at) as first_at,
        max(last_at) as last_at,
        coalesce(sum(n_events) filter (where is_interest), 0) as n_interest_events,
        coalesce(sum(n_events) filter (where is_browsing), 0) as n_browsed,
        count(*) filter (where is_decision) as n_decided
    from weighed
    group by user_id, event_on

),

judged_days as (

    select
        *,
        case
            when n_interest_events > {{ var('bot_max_events_per_day') }} then '{{ too_many_events }}'
            when n_browsed > {{ var('bot_max_browsed_per_day_without_cart') }} and n_decided = 0
                then '{{ too_much_browsed }}'
        end as bot_rule
    from days

),

users as (

    select
        user_id,
        sum(n_events)::integer as n_events,
        count(*)::integer as n_active_days,
        min(first_at) as first_at,
        max(last_at) as last_at,
        min(event_on) filter (where bot_rule is not null) as bot_since,
        min_by(bot_rule, event_on) filter (where bot_rule is not null) as bot_rule
    from judged_days
    group by user_id

),

first_touches as (

    select user_id, product_id, min(event_on) as event_on
    from weighed
    where is_interest
    group by user_id, product_id

),

touched_by_day as (

    select
        user_id,
        event_on,
        sum(count(*)) over (partition by user_id order by event_on) as n_products
    from first_touches
    group by user_id, event_on

),

touched as (

    select
        user_id,
        max(n_products)::integer as n_products,
        min(event_on) filter (where n_products > {{ var('outlier_max_products') }}) as outlier_since
    from touched_by_day
    group by user_id

)

select
    users.user_id,
    users.n_events,
    users.n_active_days,
    coalesce(touched.n_products, 0)::integer as n_products,
    users.first_at,
    users.last_at,
    users.bot_since is not null as is_bot,
    users.bot_rule,
    users.bot_since,
    touched.outlier_since is not null as is_outlier,
    touched.outlier_since
from users
left join touched on users.user_id = touched.user_id
