{#-
Products with a number each, in the order of their ids, for what joins and groups millions of rows by
product. Another product shifts it: what is kept for longer than a run reads it from a table
(int_basket_products).
-#}
{% macro product_number() -%}
row_number() over (order by product_id)::integer
{%- endmacro %}
