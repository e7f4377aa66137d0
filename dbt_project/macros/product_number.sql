{#-
Products with a number each, in the order of their ids, for what joins and groups millions of rows by
product. The same in staging.stg_products and marts.products; another product shifts it, so it holds
for one run, and what is kept for longer has the ids beside it (int_basket_counts).
-#}
{% macro product_number() -%}
row_number() over (order by product_id)::integer
{%- endmacro %}
