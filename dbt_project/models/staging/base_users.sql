-- Grain: one user row as it arrived, refused or not. The only parse of raw.users.
{% set values = ['country', 'age_band', 'gender', 'attributes'] %}

with

users as (

    select * from {{ source('raw', 'users') }}

),

names as (

    {{ latest_names('users') }}

),

typed as (

    select
        source_file,
        coalesce(names.last_name, source_file) as last_name,
        source_row,
        {{ blank_to_null('user_id') }} as user_id,
        {{ clean_text('country') }} as country,
        {{ clean_text('age_band') }} as age_band,
        {{ clean_text('gender') }} as gender,
        attributes,
        user_id as landed_user_id
    from users
    left join names using (source_file)

),

compared as (

    select
        *,
        {{ choose_one_row('user_id', values) }}
    from typed

)

select
    source_file,
    source_row,
    user_id,
    {{ values | join(',\n    ') }},
    case
        when user_id is null and attributes = '{"erased": true}' then 'the user was erased'
        else {{ reason_not_chosen('user_id') }}
    end as reject_reason,
    case when reject_reason is not null then 'user_id' end as reject_column,
    case when reject_reason is not null then landed_user_id end as reject_value
from compared
