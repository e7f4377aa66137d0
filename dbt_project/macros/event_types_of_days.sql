{#-
CTE `event_types`: each type of event_weights, and whether int_daily_signals tells which products its
events were on. Those of a type that says nothing about taste, takes nothing back and cannot be taken
back (an impression) are only counted; in a shop that logs them they are most of all events.
-#}
{% macro event_types_of_days() %}
event_types as (

    select
        event_type,
        weight > 0
        or undoes is not null
        or event_type in ('purchase', 'rating')
        or event_type in (select undoes from {{ ref('event_weights') }} where undoes is not null)
            as has_products
    from {{ ref('event_weights') }}

),
{% endmacro %}
