-- Grain: one row per (user, product, day, event type) that counts in marts.signals, as of as_of.
-- A view, for a user or two at a time: nothing of the line reads it.
with

{{ user_signals_as_of('as_of') }},

parts as (

    select
        aged.user_id,
        aged.product_id,
        aged.event_on,
        aged.event_type,
        aged.n_events::integer as n_events,
        {{ faded_part('age_days - idle_days') }}::double as relative_weight,
        sum(relative_weight) over (partition by aged.user_id, aged.product_id) as of_all
    from aged

)

select
    user_id,
    product_id,
    event_on,
    event_type,
    n_events,
    relative_weight,
    -- Purchases in a shop that gives them no weight: each as much as the others.
    case
        when of_all > 0 then relative_weight / of_all
        else 1 / count(*) over (partition by user_id, product_id)
    end as share
from parts
