{# A text as a number, NULL when it is none. NaN and infinity are no numbers: they sort before or
   after all others and turn every sum into themselves. #}
{% macro read_number(text) -%}
    case when isfinite(try_cast({{ text }} as double)) then try_cast({{ text }} as double) end
{%- endmacro %}
