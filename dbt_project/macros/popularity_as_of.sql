{#-
The popularity lists of the shop, of each segment and of each category, as seen at the end of
`period` ('as_of' or 'backtest'). marts.popularity and marts.backtest_popularity are this one macro.

A user's reach for a product in a time window is the strongest event they had, as a share of a
purchase: 1 for a buyer, 0.2 for someone who only looked. A score is a sum of reaches: people, not
clicks, so that one busy user cannot lift a product.
-#}
{% macro popularity_as_of(period) %}
with

{#- Of the days before these, int_user_signals knows all that is asked for. #}
{% set recent_days = '(' ~ var('popularity_recent_days') ~ ' + ' ~ var('trending_days') ~ ')' %}
{{ counted_days(period, last_days=recent_days if period == 'as_of' else none) }}

purchase as (

    -- A shop that gives purchases no weight: the strongest event is the measure.
    select
        coalesce(
            nullif(coalesce(max(weight) filter (where event_type = 'purchase'), 0), 0),
            max(weight)
        ) as strength
    from weights

),

{% if period == 'as_of' %}
pairs as (

    select
        user_id,
        product_id,
        {{ reach_of('strongest') }} as reach,
        wanted_since
    from {{ ref('int_user_signals') }}
    where strongest is not null

),
{% else %}
pairs as (

    select
        user_id,
        product_id,
        {{ reach_of('max(strength)') }} as reach,
        min(event_on) as wanted_since
    from counted_days
    where strength > 0
    group by user_id, product_id

),
{% endif %}
reaches as (

    select
        user_id,
        product_id,
        age_days,
        {{ reach_of('strength') }} as reach
    from counted_days
    where
        strength > 0
        and age_days < {{ recent_days }}

),

recent_pairs as (

    select
        user_id,
        product_id,
        max(reach) as reach
    from reaches
    where age_days < {{ var('popularity_recent_days') }}
    group by user_id, product_id

),

segments as (

    select
        user_id,
        {{ segment_of('stg_users') }} as segment
    from {{ ref('stg_users') }} as stg_users

),

{% set further = further_segments() %}
{% if further %}
further_segments as (

    {% for column in further %}
    select
        user_id,
        '{{ column | replace("'", "''") }}=' || {{ segment_of('stg_users', column) }} as segment
    from {{ ref('stg_users') }} as stg_users
    where {{ segment_of('stg_users', column) }} is not null
    {{ 'union all' if not loop.last }}
    {% endfor %}

),

{% endif %}
of_all_time as (

    select
        pairs.product_id,
        segments.segment,
        sum(pairs.reach) as reach,
        count(*) as n_users,
        min(pairs.wanted_since) as wanted_since
    from pairs
    left join segments using (user_id)
    group by pairs.product_id, segments.segment

),

of_late as (

    select
        recent_pairs.product_id,
        segments.segment,
        sum(recent_pairs.reach) as reach,
        count(*) as n_users
    from recent_pairs
    left join segments using (user_id)
    group by recent_pairs.product_id, segments.segment

),

by_segment as (

    select
        of_all_time.product_id,
        of_all_time.segment,
        of_all_time.reach,
        of_late.reach as recent_reach,
        of_all_time.n_users,
        coalesce(of_late.n_users, 0) as n_recent_users,
        of_all_time.wanted_since
    from of_all_time
    left join of_late
        on
            of_all_time.product_id = of_late.product_id
            and of_all_time.segment is not distinct from of_late.segment

),

by_product as (

    select
        product_id,
        sum(reach) as reach,
        sum(recent_reach) as recent_reach,
        sum(n_users) as n_users,
        sum(n_recent_users) as n_recent_users,
        min(wanted_since) as wanted_since
    from by_segment
    group by product_id

),

available as (

    select
        product_id,
        category,
        added_at
    from {{ ref('products') }} as products
    {% if period == 'as_of' -%}
    where is_available
    {%- else -%}
    where {{ is_available_on('products', '(select until_on from period)') }}
    {%- endif %}

),

weekly as (

    -- People per span of trending_days, the latest span being 0. Counted span by span: over the
    -- whole month a regular buyer would be one person, and every staple would look as if it were
    -- rising.
    select
        user_id,
        product_id,
        floor(age_days / {{ var('trending_days') }}) as span,
        max(reach) as reach
    from reaches
    group by all

),

velocities as (

    select
        product_id,
        coalesce(sum(reach) filter (where span = 0), 0)::double as recent,
        coalesce(sum(reach) filter (where span > 0), 0)::double
        * {{ var('trending_days') }} / {{ var('popularity_recent_days') }} as usual,
        count(*) filter (where span = 0) as n_users
    from weekly
    group by product_id

),

growth as (

    -- The whole shop's: in December everything sells more, and in its last week less.
    select
        coalesce(
            sum(recent::decimal(18, 6))::double / nullif(sum(usual::decimal(18, 6))::double, 0),
            1
        ) as factor
    from velocities

),

trends as (

    -- How far above its expected level, in standard deviations of a count: the difference of square
    -- roots (Anscombe, "The transformation of Poisson, binomial and negative-binomial data", 1948).
    -- Divided by the root of what was expected, five first buyers would beat a product that went
    -- from 40 to 100.
    select
        product_id,
        round(2 * (sqrt(recent + 0.375) - sqrt(usual * growth.factor + 0.375)), 9) as score,
        n_users
    from velocities
    cross join growth

),

arrived as (

    -- A shop that does not say when a product was added: the first day somebody wanted it.
    select
        available.product_id,
        available.category,
        ({{ var('new_arrival_days') }} - {{
            dbt.datediff(
                'coalesce(available.added_at::date, by_product.wanted_since)', 'period.until_on', 'day'
            )
        }})::double as days_left,
        coalesce(by_product.reach, 0) as reach,
        coalesce(by_product.n_users, 0) as n_users
    from available
    left join by_product using (product_id)
    cross join period
    where days_left > 0

),

variants as (

    -- Key rings with all letters of the alphabet arrive on one day: a few of them are news.
    select product_id
    from arrived
    inner join {{ ref('int_title_families') }} as families using (product_id)
    qualify
        row_number() over (
            partition by families.family
            order by arrived.days_left desc, arrived.reach desc, product_id
        ) > {{ var('variants_per_list') }}

),

arrivals as (

    select arrived.*
    from arrived
    anti join variants using (product_id)

),

scores as (

    select
        'global' as segment_type,
        'all' as segment,
        'all_time' as time_window,
        available.product_id,
        coalesce(by_product.reach, 0)::double as score,
        coalesce(by_product.n_users, 0) as n_users
    from available
    left join by_product using (product_id)

    union all

    select 'global', 'all', 'last_28_days', product_id, recent_reach::double, n_recent_users
    from by_product
    where n_recent_users > 0

    union all

    select 'global', 'all', 'trending', product_id, score, n_users
    from trends
    where score > 0

    union all

    select 'global', 'all', 'new_arrivals', product_id, days_left, n_users
    from arrivals

    union all

    select 'category', category, 'new_arrivals', product_id, days_left, n_users
    from arrivals
    where category is not null

    union all

    select 'segment', segment, 'all_time', product_id, reach::double, n_users
    from by_segment
    where segment is not null

    union all

    select 'segment', segment, 'last_28_days', product_id, recent_reach::double, n_recent_users
    from by_segment
    where segment is not null and n_recent_users > 0

    union all

    select 'category', available.category, 'all_time', product_id, reach::double, n_users
    from by_product
    inner join available using (product_id)
    where available.category is not null

    union all

    select
        'category',
        available.category,
        'last_28_days',
        product_id,
        recent_reach::double,
        n_recent_users
    from by_product
    inner join available using (product_id)
    where available.category is not null and n_recent_users > 0
    {%- if further %}

    union all

    select
        'segment',
        further_segments.segment,
        'all_time',
        pairs.product_id,
        sum(pairs.reach)::double,
        count(*)
    from pairs
    inner join further_segments using (user_id)
    group by further_segments.segment, pairs.product_id

    union all

    select
        'segment',
        further_segments.segment,
        'last_28_days',
        recent_pairs.product_id,
        sum(recent_pairs.reach)::double,
        count(*)
    from recent_pairs
    inner join further_segments using (user_id)
    group by further_segments.segment, recent_pairs.product_id
    {%- endif %}

),

ranked as (

    select
        scores.*,
        row_number() over (
            partition by segment_type, segment, time_window
            order by
                score desc,
                -- Of those that arrived on one day first what more people want.
                case when time_window = 'new_arrivals' then by_product.reach end desc nulls last,
                scores.product_id
        ) as rank
    from scores
    semi join available using (product_id)
    left join by_product using (product_id)

)

select
    segment_type,
    segment,
    time_window,
    rank::integer as rank,
    product_id,
    score,
    n_users::integer as n_users
from ranked
where
    rank <= {{ var('popularity_depth') }}
    -- The list that fills every other one names everything that can be bought.
    or (segment_type = 'global' and time_window = 'all_time')
{% endmacro %}


{#- What part of a purchase an event of this strength is; no more than all of it. -#}
{% macro reach_of(strength) -%}
least(1, {{ strength }} / (select strength from purchase))::decimal(18, 9)
{%- endmacro %}


{#- The user columns beside segment_by that have popular lists of their own. -#}
{% macro further_segments() -%}
{%- set columns = var('segments') -%}
{#- Anything else is named by check_vars. -#}
{%- set columns = columns if columns is iterable and columns is not string else [] -%}
{{- return(
    columns | reject('equalto', var('segment_by')) | unique(case_sensitive=true) | list
) -}}
{%- endmacro %}
