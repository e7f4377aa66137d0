-- Grain: one value that could not be used and became NULL in an accepted row.
{% set repairs = [
    ('price', 'price is not a number of 0 or more'),
    ('margin', 'margin is not a number'),
    ('available_from', 'available_from is not a date or time'),
    ('available_until', 'available_until is not a date or time'),
    ('in_stock', 'in_stock is neither true nor false'),
    ('added_at', 'added_at is not a date or time'),
] %}

with

products as (

    select * from {{ ref('base_products') }}
    where reject_reason is null

),

landed as (

    select * from {{ source('raw', 'products') }}

)

{% for column, reason in repairs %}
select
    'products' as entity,
    products.source_file,
    products.source_row,
    '{{ column }}' as column_name,
    landed.{{ column }} as value,
    '{{ reason }}' as reason
from products
inner join landed
    on products.source_file = landed.source_file and products.source_row = landed.source_row
where products.{{ column }} is null and {{ blank_to_null('landed.' ~ column) }} is not null
{{ 'union all' if not loop.last }}
{% endfor %}
