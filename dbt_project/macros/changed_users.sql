{#-
The user-by-user refresh of int_undone_days, int_user_activity, int_event_accounts and
int_user_signals: a user's rows depend on this user's days alone. What they were built from is noted
in int_built_users by these macros alone, as changed_days does for days: a user is marked before
anything of theirs is touched and noted when the last of these tables holds them.
-#}

{# Stands for how days become a user's rows: other SQL or settings make every user a changed one. #}
{% macro recipe_of_users() -%}
{%- set models = ['int_undone_days', 'int_user_activity', 'int_event_accounts', 'int_user_signals'] -%}
{%- set settings = [
    'event_weights', 'half_life_days', 'max_events_per_day_counted', 'bot_max_events_per_day',
    'bot_max_browsed_per_day_without_cart', 'outlier_max_products',
] -%}
{%- set macros = [
    undone_days, counted_days, is_low_rating, user_signals_as_of, faded_strength, faded_part
] -%}
{%- set texts = [] -%}
{%- for name in settings -%}
    {%- do texts.append(var(name) | string) -%}
{%- endfor -%}
{%- for each in macros -%}
    {%- do texts.append(each.macro.macro_sql) -%}
{%- endfor -%}
{%- if execute -%}
    {%- for name in models -%}
        {%- do texts.append(graph.nodes['model.recmart.' ~ name].raw_code) -%}
    {%- endfor -%}
{%- endif -%}
{{ local_md5(texts | join('\n')) }}
{%- endmacro %}


{# Around the refresh of int_daily_signals: who has rows on its changed days, the old ones before
   they go, the new ones once they are there. #}
{% macro mark_users_of_changed_days() -%}
{%- set where -%}
    {%- if some_days_stay() %}
    where event_on in (select event_on from {{ ref('int_changed_days') }})
    {%- endif %}
{%- endset -%}
    update {{ ref('int_built_users') }}
    set inputs_hash = null
    {%- if some_days_stay() %}
    where user_id in (select user_id from {{ this }} {{ where }})
    {%- endif %};

    insert into {{ ref('int_built_users') }}
    select user_id, null as inputs_hash, null as as_of
    from (select distinct user_id from {{ this }} {{ where }}) as touched
    anti join {{ ref('int_built_users') }} using (user_id)
{%- endmacro %}


{# After int_changed_users: the rows of these users are no longer what int_built_users says. #}
{% macro mark_changed_users() -%}
    update {{ ref('int_built_users') }}
    set inputs_hash = null
    where user_id in (select user_id from {{ this }});

    insert into {{ ref('int_built_users') }}
    select user_id, null as inputs_hash, null as as_of
    from {{ this }} anti join {{ ref('int_built_users') }} using (user_id)
{%- endmacro %}


{# Whether the rows of some users stay. Where all users changed, the SQL of a full build is cheaper
   than that of a refresh. #}
{% macro some_users_stay() -%}
{%- if is_incremental() -%}
    {%- set users = run_query(
        'select count(*) from ' ~ ref('int_built_users') ~ ' anti join ' ~ ref('int_changed_users')
        ~ ' using (user_id)'
    ) -%}
    {{- return(users.columns[0].values()[0] > 0) -}}
{%- endif -%}
{{- return(false) -}}
{%- endmacro %}


{# Follows the name of a table with a user_id: in a refresh, only the rows of users who changed. #}
{% macro of_changed_users() -%}
{%- if some_users_stay() %}
    semi join {{ ref('int_changed_users') }} using (user_id)
{%- endif -%}
{%- endmacro %}


{# Before the rows of changed users are added: away with the old ones. #}
{% macro forget_changed_users() -%}
{%- if is_incremental() -%}
    delete from {{ this }}
    {%- if some_users_stay() %}
    where user_id in (select user_id from {{ ref('int_changed_users') }})
    {%- endif %}
{%- endif -%}
{%- endmacro %}


{# After int_user_signals, the last of these tables. Who did not change has the same rows at the new
   as_of. #}
{% macro note_built_users() -%}
    update {{ ref('int_built_users') }} as built
    set inputs_hash = changed.inputs_hash
    from {{ ref('int_changed_users') }} as changed
    where built.user_id = changed.user_id;

    update {{ ref('int_built_users') }}
    set as_of = (select as_of from {{ ref('int_as_of') }})
{%- endmacro %}
