-- Grain: one row per (user, product): what marts.signals says, but for the passing of time.
-- Incremental by user (see int_changed_users), and the last of the tables that are.
-- depends_on: {{ ref('int_built_users') }}, {{ ref('int_event_accounts') }}
with

{{ user_signals_as_of('as_of', of_users=of_changed_users()) }}

select
    user_id,
    product_id,
    user_last_on,
    half_life_days,
    relative_weight,
    weight,
    strongest,
    wanted_since,
    last_at,
    n_views,
    n_clicks,
    n_carts,
    n_purchases,
    n_ratings,
    is_training
from user_signals
