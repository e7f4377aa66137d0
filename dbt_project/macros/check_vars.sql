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
        'variants_per_list': 1,
        'new_arrival_days': 1,
        'min_repeat_users': 1,
        'interval_shrinkage': 1,
        'buy_again_depth': 1,
        'anchors_per_user': 1,
        'usual_price_days': 1,
        'min_prices': 1,
        'sale_share': 0.001,
    } %}
    {# Four times as many places are the bits of one number: see place_bit. #}
    {% set most = {'anchors_per_user': 31} %}
    {% set fractions = ['half_life_days', 'sale_share'] %}
    {% for name, minimum in least.items() %}
        {% set value = var(name) %}
        {% if value is not number or value is boolean or value < minimum
            or (value is not integer and name not in fractions)
            or value > most.get(name, value) %}
            {% do exceptions.raise_compiler_error(
                'The variable ' ~ name ~ ' is ' ~ value ~ ': expected a '
                ~ ('number' if name in fractions else 'whole number') ~ ' of ' ~ minimum
                ~ (' to ' ~ most[name] if name in most else ' or more')
                ~ '. Correct it in dbt_project/dbt_project.yml or in --vars.'
            ) %}
        {% endif %}
    {% endfor %}
    {# Whether the file knows the names is asked where it is read: see event_weights_are_usable. #}
    {% if var('event_weights') is not mapping %}
        {% do exceptions.raise_compiler_error(
            'The variable event_weights is ' ~ var('event_weights') ~ ': expected a weight for each'
            ~ ' of some event types, such as {view: 5}. Correct it in dbt_project/dbt_project.yml or'
            ~ ' in --vars.'
        ) %}
    {% endif %}
    {% for event_type, weight in var('event_weights').items() %}
        {% if weight is not number or weight is boolean or weight <= 0 %}
            {% do exceptions.raise_compiler_error(
                'The variable event_weights has ' ~ weight ~ ' for "' ~ event_type ~ '": expected a '
                ~ 'number above 0. Correct it in dbt_project/dbt_project.yml or in --vars.'
            ) %}
        {% endif %}
    {% endfor %}
    {% if var('sale_share') >= 1 %}
        {% do exceptions.raise_compiler_error(
            'The variable sale_share is ' ~ var('sale_share') ~ ': expected a share below 1, such as'
            ~ ' 0.1. Correct it in dbt_project/dbt_project.yml or in --vars.'
        ) %}
    {% endif %}
    {% if var('segments') is string or var('segments') is not iterable %}
        {% do exceptions.raise_compiler_error(
            'The variable segments is ' ~ var('segments') ~ ': expected a list of columns of the'
            ~ ' users file, such as [age_band]. Correct it in dbt_project/dbt_project.yml or in'
            ~ ' --vars.'
        ) %}
    {% endif %}
{% endmacro %}
