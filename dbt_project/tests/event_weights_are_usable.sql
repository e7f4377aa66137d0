-- A weight that cannot be used stops the run with a sentence, not with a count of rows.
{{ config(meta={'dagster': {'ref': {'name': 'event_weights'}}}) }}

with

event_weights as (

    select * from {{ ref('event_weights') }}

),

judged as (

    select
        case
            when event_type is null or event_type <> lower(trim(event_type))
                then 'event_type is "' || coalesce(event_type, '') || '": expected a name in lower case.'
            when count(*) over (partition by event_type) > 1
                then 'event_type "' || event_type || '" stands there twice: keep one line.'
            when weight is null or weight < 0 or not isfinite(weight)
                then 'the weight of "' || event_type || '" is ' || coalesce(weight::varchar, 'missing')
                    || ': expected a number of 0 or more.'
            when half_life_days <= 0 or not isfinite(half_life_days)
                then 'half_life_days of "' || event_type || '" is ' || half_life_days
                    || ': expected more than 0, or nothing for the variable half_life_days.'
            when undoes is not null and undoes not in (select event_type from event_weights where event_type is not null)
                then 'undoes of "' || event_type || '" is "' || undoes
                    || '": expected an event_type of this file.'
        end as problem
    from event_weights

)

select error('dbt_project/seeds/event_weights.csv: ' || problem || ' Correct it there.') as problem
from judged
where problem is not null
{%- if var('event_weights') is mapping %}
{%- for event_type in var('event_weights') %}

union all

select error(
    'The variable event_weights names "' || on_trial.event_type || '": expected an event_type with a '
    || 'weight above 0 in dbt_project/seeds/event_weights.csv.'
) as problem
from (select '{{ event_type | string | replace("'", "''") }}' as event_type) as on_trial
where on_trial.event_type not in (select event_type from event_weights where weight > 0)
{%- endfor %}
{%- endif %}
