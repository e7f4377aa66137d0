{#-
A number that changes with any of a set of rows, whatever their order; no row may occur twice. Hashed
twice: DuckDB's hash of several values is that of the last one xor one of the others, so what two rows
exchange would leave the xor of all rows as it was.
-#}
{% macro rows_hash(values) -%}
bit_xor(hash(hash({{ values }})))
{%- endmacro %}
