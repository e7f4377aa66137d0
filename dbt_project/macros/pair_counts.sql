{#-
The counting of pairs, in as many statements as it takes to bound the memory: the pairs that baskets
are made of are many more than those that occur often enough, and grow with the events. A part is some
of the products, each with all that was in a basket with it.
-#}

{# A pair of int_pair_counts has its smaller number in `part` of n_pair_parts. #}
{% macro pairs_of_part(part) -%}
with

baskets as (

    select * from {{ ref('int_baskets') }}

),

product_counts as (

    -- A product in fewer baskets than a pair needs has no pair: dropped before the join.
    select is_bought, product_number
    from {{ ref('int_basket_counts') }}
    where n_baskets >= {{ var('min_pair_support') }}

),

candidates as not materialized (

    select baskets.*
    from baskets
    semi join product_counts using (is_bought, product_number)

)

select
    one.is_bought,
    one.product_number,
    other.product_number as other_product_number,
    count(*) as n_together
from candidates as one
inner join candidates as other
    on
        one.user_number = other.user_number
        and one.event_on = other.event_on
        and one.is_bought = other.is_bought
        and one.product_number < other.product_number
{%- set n_parts = n_pair_parts() %}
{%- if n_parts > 1 %}
where one.product_number % {{ n_parts }} = {{ part }}
{%- endif %}
group by one.is_bought, one.product_number, other.product_number
having count(*) >= {{ var('min_pair_support') }}
{%- endmacro %}


{# After the first part: the others. #}
{% macro pairs_of_other_parts() -%}
{%- for part in range(1, n_pair_parts()) %}
    insert into {{ this }}
    {{ pairs_of_part(part) }};
{% endfor -%}
{%- endmacro %}


{# As many as keep each below pairs_at_once, if products share the pairs evenly. #}
{% macro n_pair_parts() -%}
{%- if execute and load_relation(ref('int_baskets')) is not none -%}
    {%- set parts = run_query(
        'select ceil(coalesce(sum(n * (n - 1) / 2), 0) / ' ~ var('pairs_at_once') ~ ')::integer'
        ~ ' from (select count(*) as n from ' ~ ref('int_baskets')
        ~ ' group by is_bought, user_number, event_on)'
    ) -%}
    {{- return([parts.columns[0].values()[0] | int, 1] | max) -}}
{%- endif -%}
{{- return(1) -}}
{%- endmacro %}
