{# A landed row as compact JSON, without its NULLs. `attributes` is JSON already. #}
{% macro row_as_json(columns) -%}
    json_merge_patch('{}', json_object(
        {%- for column in columns %}
        '{{ column }}', {{ column }},
        {%- endfor %}
        'attributes', coalesce(try_cast(attributes as json), to_json(attributes))
    ))::varchar
{%- endmacro %}
