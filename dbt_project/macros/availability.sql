{#-
Can the product of a row of stg_products be bought on a day? The stock is what the shop said for
as_of; on an earlier day nobody knows it, so a backtest does not ask (`knows_stock=false`).
-#}
{% macro is_available_on(products, day, knows_stock) -%}
(
    {%- if knows_stock %}
    {{ products }}.in_stock is not false
    and {% endif %}
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
