{#
Columns that say which row of an id counts, when several arrived: the one of the file that is last
by name; inside this file the one with the most values, then the one with the greatest values, so
that the order of the rows does not matter. Needs `key`, last_name (see latest_names) and source_row
beside `columns`.

choice is 1 for the row that counts; n_better is 0 for it and for rows that say just the same;
latest_file is the file it comes from.
#}
{% macro choose_one_row(key, columns) %}
{%- set by_values -%}
    {{ key }} order by
            last_name desc,
            (
                {%- for column in columns %}
                ({{ column }} is not null)::int{{ ' +' if not loop.last }}
                {%- endfor %}
            ) desc,
            {{ columns | join(' desc nulls last, ') }} desc nulls last
{%- endset -%}
        row_number() over (partition by {{ by_values }}, source_row) as choice,
        rank() over (partition by {{ by_values }}) - 1 as n_better,
        max(last_name) over (partition by {{ key }}) as latest_file
{% endmacro %}


{# Why a row that was not chosen is refused; NULL for the row that counts. #}
{% macro reason_not_chosen(key) -%}
    case
            when {{ key }} is null then '{{ key }} is missing'
            when last_name < latest_file then 'a later file has this {{ key }} too'
            when n_better > 0 then 'another row of this file has the same {{ key }} and other values'
            when choice > 1 then 'duplicate'
        end
{%- endmacro %}


{#- The last name of each loaded content. A shop that goes back to an older catalogue sends its bytes
again, under a new name: they are not loaded again, but they are its latest word. -#}
{% macro latest_names(entity) -%}
    select
        coalesce(same_content_as, source_file) as source_file,
        max(source_file) as last_name
    from {{ source('raw', 'landing_files') }}
    where entity = '{{ entity }}'
    group by 1
{%- endmacro %}
