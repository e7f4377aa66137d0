-- Grain: one user of the users files.
with

users as (

    select * from {{ ref('base_users') }}

)

select
    source_file,
    source_row,
    user_id,
    country,
    age_band,
    gender,
    attributes
from users
where reject_reason is null
