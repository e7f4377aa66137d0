{#-
The segment of a row of stg_users: `column`, or that key of `attributes`, where further columns of the
users file are kept; the column that var segment_by names if none is given. NULL when unknown or blank.
-#}
{% macro segment_of(users, column=none) -%}
{%- set column = column or var('segment_by') -%}
{%- if column in ['country', 'age_band', 'gender'] -%}
{{ users }}.{{ column }}
{%- elif column -%}
{%- set path = '$."' ~ column | replace("'", "''") ~ '"' -%}
nullif(trim(json_extract_string({{ users }}.attributes, '{{ path }}')), '')
{%- else -%}
cast(null as varchar)
{%- endif -%}
{%- endmacro %}
