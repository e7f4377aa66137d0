{# As many threads as cores that the run may use; dbt alone takes all of the machine. #}
{% macro use_threads() -%}
    {%- if env_var('RECMART_THREADS', '') -%}
        set threads = {{ env_var('RECMART_THREADS') }}
    {%- endif -%}
{%- endmacro %}
