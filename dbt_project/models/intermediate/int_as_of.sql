-- Grain: one row: the day everything is computed for, and the variables that the run was given.
{% set as_of = var('as_of') %}

with

days as (

    select * from {{ ref('int_event_days') }}

),

chosen as (

    {% if as_of is none %}
    select coalesce(
        max(event_on),
        error(
            'No event was accepted, so there is no latest day to recommend for. Look up why in '
            || 'staging.rejected_rows, add events to the landing folder, or set the variable as_of.'
        )
    ) as as_of
    from days
    {% else %}
    select coalesce(
        try_cast('{{ as_of | string | replace("'", "''") }}' as date),
        error(
            'The variable as_of is "{{ as_of | string | replace("'", "''") }}": '
            || 'expected a date such as 2011-12-09, or nothing for the day of the latest event.'
        )::date
    ) as as_of
    {% endif %}

)

select
    as_of,
    as_of - {{ var('holdout_days') }} as holdout_from,
    '{{ tojson(invocation_args_dict.get('vars') or {}) | replace("'", "''") }}' as variables
from chosen
