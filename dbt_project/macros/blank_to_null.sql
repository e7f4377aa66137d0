{# A text as it is, or NULL when it holds nothing but blanks. Every blank sorts before '!', so that
   the slow trim runs on hardly any row: it costs more than all other rules together. #}
{% macro blank_to_null(text) -%}
    case
        when {{ text }} >= '!' then {{ text }}
        when trim({{ text }}, e' \t\r\n') <> '' then {{ text }}
    end
{%- endmacro %}
