-- Grain: one user whose rows the tables by user have to build again.
-- depends_on: {{ ref('int_daily_signals') }}
with

as_of as (

    select as_of from {{ ref('int_as_of') }}

),

event_weights as (

    select * from {{ ref('event_weights') }}

),

built_users as (

    select * from {{ ref('int_built_users') }}

),

-- Read for few days or not at all: not to be copied for it.
daily_signals as not materialized (

    select user_id, event_on from {{ ref('int_daily_signals') }}

),

-- Where event types fade at different speeds, a weight cannot be carried from one as_of to another.
inputs as (

    select
        hash(
            '{{ recipe_of_users() }}',
            version(),
            {{ rows_hash('event_type, weight, half_life_days, undoes') }},
            case
                when
                    count(distinct coalesce(half_life_days, {{ var('half_life_days') }}))
                    filter (where weight > 0) > 1
                    then any_value((select as_of from as_of))
            end
        ) as inputs_hash
    from event_weights

),

-- What lies between the as_of of the last build and today's begins to count, or ends.
moved as (

    select
        least(min(built_users.as_of), (select as_of from as_of)) as after_on,
        greatest(max(built_users.as_of), (select as_of from as_of)) as until_on
    from built_users

),

-- Who is marked has no hash.
changed as (

    select user_id
    from built_users
    where inputs_hash is distinct from (select inputs_hash from inputs)

    union

    select user_id
    from daily_signals
    where
        event_on > (select after_on from moved)
        and event_on <= (select until_on from moved)

    union

    -- No row can stay: whether or not somebody noted who is there.
    select user_id
    from daily_signals
    where not exists (
        select 1 from built_users where inputs_hash = (select inputs_hash from inputs)
    )

)

select
    user_id,
    (select inputs_hash from inputs) as inputs_hash
from changed
