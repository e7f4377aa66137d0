{# Schema = layer: `marts`, not dbt's `main_marts`. Relation, asset key and folder then coincide. #}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {{ (custom_schema_name or target.schema) | trim }}
{%- endmacro %}
