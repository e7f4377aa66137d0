{# Stops a run before it starts when a variable is not what it should be. as_of is checked where it
   is read, in int_as_of. #}
{% macro check_vars() %}
    {% set least = {
        'holdout_days': 1,
        'half_life_days': 0.01,
        'near_duplicate_seconds': 0,
        'max_events_per_day_counted': 1,
        'bot_max_events_per_day': 1,
        'bot_max_browsed_per_day_without_cart': 1,
        'outlier_max_products': 1,
        'popularity_depth': 1,
        'popularity_recent_days': 1,
        'trending_days': 1,
        'basket_max_products': 2,
        'min_pair_support': 1,
        'pairs_at_once': 1,
        'pairs_per_product': 1,
    } %}
    {% for name, minimum in least.items() %}
        {% set value = var(name) %}
        {% if value is not number or value is boolean or value < minimum
            or (value is not integer and name != 'half_life_days') %}
            {% do exceptions.raise_compiler_error(
                'The variable ' ~ name ~ ' is ' ~ value ~ ': expected a '
                ~ ('number' if name == 'half_life_days' else 'whole number') ~ ' of ' ~ minimum
                ~ ' or more. Correct it in dbt_project/dbt_project.yml or in --vars.'
            ) %}
        {% endif %}
    {% endfor %}
    {% for event_type, weight in var('event_weights').items() %}
        {% if weight is not number or weight is boolean or weight <= 0 %}
            {% do exceptions.raise_compiler_error(
                'The variable event_weights has ' ~ weight ~ ' for "' ~ event_type ~ '": expected a '
                ~ 'number above 0. Correct it in dbt_project/dbt_project.yml or in --vars.'
            ) %}
        {% endif %}
    {% endfor %}
{% endmacro %}
