{#- Was the product of a row of stg_products on offer on a day? Whether it was in stock is not asked. -#}
{% macro is_available_on(products, day) -%}
(
    ({{ products }}.added_at is null or {{ products }}.added_at::date <= {{ day }})
    and (
        {{ products }}.available_from is null
        or {{ products }}.available_from::date <= {{ day }}
    )
    and (
        {{ products }}.available_until is null
        or {{ products }}.available_until::date >= {{ day }}
    )
)
{%- endmacro %}
