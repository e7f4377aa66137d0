{#-
The files that raw.events holds, for base_events. Grain: one row per source_file.

file_version is another one when the file's content is, and also when base_events itself or a macro
it parses with is edited, or DuckDB (whose hash function is its own) is another: then every file
counts as changed, and no row of the old making stays. Rows of an adapter can name files that are
not landing files themselves: all of these came with the latest of them, and change with any.
-#}
{% macro event_files() -%}
{%- set recipe = local_md5(
    (model.raw_code or '') ~ blank_to_null('a') ~ read_timestamp('a') ~ read_number('a')
) -%}
    select
        names.source_file,
        coalesce(landing_files.received_at, adapter.received_at) as received_at,
        hash(
            names.source_file,
            coalesce(landing_files.version, adapter.version),
            '{{ recipe }}',
            version()
        ) as file_version
    from (select distinct source_file from {{ source('raw', 'events') }}) as names
    left join (
        select
            source_file,
            received_at,
            hash(content_sha256, received_at, n_rows, same_content_as) as version
        from {{ source('raw', 'landing_files') }}
        where entity = 'events'
    ) as landing_files using (source_file)
    cross join (
        select
            max(received_at) as received_at,
            {{ rows_hash('content_sha256, received_at, n_rows, same_content_as') }} as version
        from {{ source('raw', 'landing_files') }}
        where entity = 'events'
    ) as adapter
{%- endmacro %}


{# Before new files are added: away with the rows of files that changed or are gone. #}
{% macro forget_changed_files() -%}
{%- if is_refresh('file_version') -%}
    delete from {{ this }}
    where file_version not in (
        select file_version
        from (
            {{ event_files() }}
        ) as files
    )
{%- elif is_incremental() -%}
    delete from {{ this }}
{%- endif -%}
{%- endmacro %}


{# Whether rows of the last run stay: a table made before it had the column holds none that can. #}
{% macro is_refresh(column) -%}
{%- if is_incremental() -%}
    {%- set columns = adapter.get_columns_in_relation(this) | map(attribute='name') | list -%}
    {{- return(column in columns) -}}
{%- endif -%}
{{- return(false) -}}
{%- endmacro %}
