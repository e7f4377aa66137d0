{#-
The day-by-day refresh of int_duplicate_events and int_daily_signals. What a day was built from is
noted in int_built_days by these macros alone: a day is marked before it is touched and noted when
it is done, so that a run that ends in between leaves only days that the next one builds again.
-#}

{# Stands for how events become the rows of a day, and for which days are found to have changed: other
   SQL or settings make every day a changed one. #}
{% macro recipe_of_days() -%}
{%- set models = [
    'stg_events', 'int_changed_days', 'int_duplicate_events', 'int_events_deduplicated',
    'int_daily_signals',
] -%}
{%- set texts = [var('near_duplicate_seconds') | string] -%}
{%- if execute -%}
    {%- for name in models -%}
        {%- do texts.append(graph.nodes['model.recmart.' ~ name].raw_code) -%}
    {%- endfor -%}
{%- endif -%}
{{ local_md5(texts | join('\n')) }}
{%- endmacro %}


{# How many further days an event can make or unmake a near duplicate on. #}
{% macro n_days_after() -%}
{{ 1 + (var('near_duplicate_seconds') / 86400) | int }}
{%- endmacro %}


{# After int_changed_days: these days are no longer what int_built_days says. #}
{% macro mark_changed_days() -%}
    update {{ ref('int_built_days') }}
    set inputs_hash = null
    where event_on in (select event_on from {{ this }});

    insert into {{ ref('int_built_days') }}
    select event_on, null as inputs_hash, [] as copied_on
    from {{ this }} anti join {{ ref('int_built_days') }} using (event_on)
{%- endmacro %}


{# Whether the rows of some days stay. Where all days changed, the SQL of a full build is far
   cheaper than that of a refresh. #}
{% macro some_days_stay() -%}
{%- if is_refresh('event_on') -%}
    {%- set days = run_query(
        'select count(*) from ' ~ ref('int_event_days') ~ ' anti join ' ~ ref('int_changed_days')
        ~ ' using (event_on)'
    ) -%}
    {{- return(days.columns[0].values()[0] > 0) -}}
{%- endif -%}
{{- return(false) -}}
{%- endmacro %}


{# Before the rows of changed days are added: away with the old ones. #}
{% macro forget_changed_days() -%}
{%- if is_incremental() -%}
    delete from {{ this }}
    {%- if some_days_stay() %}
    where event_on in (select event_on from {{ ref('int_changed_days') }})
    {%- endif %}
{%- endif -%}
{%- endmacro %}


{# After int_daily_signals: what its days are built from now. #}
{% macro note_built_days() -%}
    delete from {{ ref('int_built_days') }}
    {%- if some_days_stay() %}
    where event_on in (select event_on from {{ ref('int_changed_days') }})
    {%- endif %};

    insert into {{ ref('int_built_days') }}
    select
        days.event_on,
        days.inputs_hash,
        coalesce(copies.copied_on, []) as copied_on
    from {{ ref('int_event_days') }} as days
    left join (
        select first_told_on, list(distinct event_on order by event_on) as copied_on
        from {{ ref('int_duplicate_events') }}
        where event_on > first_told_on
        group by first_told_on
    ) as copies on days.event_on = copies.first_told_on
    {%- if some_days_stay() %}
    semi join {{ ref('int_changed_days') }} as changed on days.event_on = changed.event_on
    {%- endif %}
{%- endmacro %}
