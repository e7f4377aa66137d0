-- Grain: one row per (user, product, day, event type).
-- The only reader of events: everything after it reads this, a fraction of their size.
-- Incremental by day (see int_changed_days).
-- depends_on: {{ ref('int_event_days') }}, {{ ref('int_changed_days') }}, {{ ref('int_built_users') }}
with

events as (

    select * from {{ ref('int_events_deduplicated') }}
    {%- if some_days_stay() %}
    semi join {{ ref('int_changed_days') }} using (event_on)
    {%- endif %}

),

event_weights as (

    select * from {{ ref('event_weights') }}

),

-- Leaving out a type nobody weighed would lose its events without a word.
known as (

    select
        events.*,
        case
            when event_weights.event_type is not null then events.event_type
            else error(
                'The event type "' || events.event_type || '" (file ' || events.source_file
                || ', row ' || events.source_row || ') has no weight. Add a line for it to '
                || 'dbt_project/seeds/event_weights.csv; weight 0 if it says nothing about taste.'
            )
        end as known_event_type
    from events
    left join event_weights on events.event_type = event_weights.event_type

)

select
    user_id,
    product_id,
    event_on,
    known_event_type as event_type,
    count(*)::integer as n_events,
    -- A sum of doubles depends on the order of its rows; a sum of decimals does not.
    sum(quantity::decimal(18, 9))::double as quantity,
    max_by(rating, (event_at, rating)) as rating,
    min(event_at) as first_at,
    max(event_at) as last_at
from known
group by user_id, product_id, event_on, known_event_type
