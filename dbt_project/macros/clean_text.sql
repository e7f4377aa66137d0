{# A text for people: trimmed, every run of blanks inside as one blank, NULL when nothing is left. #}
{% macro clean_text(text) -%}
    nullif(trim(regexp_replace({{ text }}, '\s+', ' ', 'g')), '')
{%- endmacro %}
