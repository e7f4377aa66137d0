-- Grain: one row per (user, product, day, event type); product_id is NULL for types that say nothing
-- about taste (see event_types_of_days).
-- Everything after it reads this, a fraction of the size of the events; only marts.on_sale reads those
-- too, for their prices.
-- Incremental by day (see int_changed_days).
-- depends_on: {{ ref('int_event_days') }}, {{ ref('int_changed_days') }}, {{ ref('int_built_users') }}
with

events as (

    select * from {{ ref('int_events_deduplicated') }}
    {%- if some_days_stay() %}
    semi join {{ ref('int_changed_days') }} using (event_on)
    {%- endif %}

),

{{ event_types_of_days() }}

-- Leaving out a type nobody weighed would lose its events without a word.
known as (

    select
        events.*,
        case when event_types.has_products then events.product_id end as known_product_id,
        case
            when event_types.event_type is not null then events.event_type
            else error(
                'The event type "' || events.event_type || '" (file ' || events.source_file
                || ', row ' || events.source_row || ') has no weight. Add a line for it to '
                || 'dbt_project/seeds/event_weights.csv; weight 0 if it says nothing about taste.'
            )
        end as known_event_type
    from events
    left join event_types on events.event_type = event_types.event_type

)

select
    user_id,
    known_product_id as product_id,
    event_on,
    known_event_type as event_type,
    count(*)::integer as n_events,
    -- A sum of doubles depends on the order of its rows; a sum of decimals does not.
    sum(quantity::decimal(18, 9))::double as quantity,
    -- Filtered, though max_by skips NULL: the key it compares is costly, and most events have none.
    max_by(rating, (event_at, rating)) filter (where rating is not null) as rating,
    min(event_at) as first_at,
    max(event_at) as last_at
from known
group by user_id, known_product_id, event_on, known_event_type
