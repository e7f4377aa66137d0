{#-
The segment of a row of stg_users: the column that var segment_by names, or that key of
`attributes`, where further columns of the users file are kept. NULL when unknown or blank.
-#}
{% macro segment_of(users) -%}
{%- set column = var('segment_by') -%}
{%- if column in ['country', 'age_band', 'gender'] -%}
nullif(trim({{ users }}.{{ column }}), '')
{%- elif column -%}
{%- set path = '$."' ~ column | replace("'", "''") ~ '"' -%}
nullif(trim(json_extract_string({{ users }}.attributes, '{{ path }}')), '')
{%- else -%}
cast(null as varchar)
{%- endif -%}
{%- endmacro %}
