-- Grain: one refused row or line.
{% set landed_columns = {
    'events': [
        'user_id', 'product_id', 'event_type', 'event_ts', 'event_id', 'rating', 'quantity',
        'price', 'session_id', 'order_id', 'version', 'rank', 'variant',
    ],
    'products': [
        'product_id', 'title', 'category', 'brand', 'description', 'price', 'margin', 'img_url',
        'available_from', 'available_until', 'in_stock', 'added_at',
    ],
    'users': ['user_id', 'country', 'age_band', 'gender'],
} %}

with

products as (

    select product_id from {{ ref('stg_products') }}

),

refused_events as materialized (

    select source_file, source_row, reject_column, reject_reason, reject_value
    from {{ ref('base_events') }}
    where reject_reason is not null

    union all

    -- Judged here and not with the other rules: base_events reads events only, and an event that
    -- waits for its product is accepted as soon as the catalogue has it.
    select
        events.source_file,
        events.source_row,
        'product_id' as reject_column,
        'product is not in the catalogue' as reject_reason,
        events.product_id as reject_value
    from {{ ref('base_events') }} as events
    anti join products on events.product_id = products.product_id
    where events.reject_reason is null

),

{% for entity in ['products', 'users'] %}
refused_{{ entity }} as (

    select source_file, source_row, reject_column, reject_reason, reject_value
    from {{ ref('base_' ~ entity) }}
    where reject_reason is not null

),

{% endfor %}
malformed_lines as (

    select * from {{ source('raw', 'malformed_lines') }}

)

{% for entity, columns in landed_columns.items() %}
select
    '{{ entity }}' as entity,
    refused.source_file,
    refused.source_row,
    refused.reject_column as column_name,
    refused.reject_reason as reason,
    refused.reject_value as value,
    {{ row_as_json(columns) }} as row_text
from refused_{{ entity }} as refused
inner join (
    -- Numbers of lines alone: a filter that the scan of the landed rows takes before it reads on.
    select * from {{ source('raw', entity) }}
    where source_row in (select source_row from refused_{{ entity }})
) as landed
    on refused.source_file = landed.source_file and refused.source_row = landed.source_row

union all

{% endfor %}
select
    entity,
    source_file,
    line_number as source_row,
    null as column_name,
    'the line cannot be read' as reason,
    error as value,
    line as row_text
from malformed_lines
