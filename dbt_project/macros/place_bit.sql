{#- The bit of a place in a list, as a number: places 1 to 126. -#}
{% macro place_bit(place) -%}
(1::hugeint << {{ place }}::hugeint)
{%- endmacro %}
