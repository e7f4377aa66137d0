-- Who has signals gets recommendations, and those are made for marts.users.
{{ config(meta={'dagster': {'ref': {'name': 'users'}}}) }}

select distinct user_id
from {{ ref('signals') }} anti join {{ ref('users') }} using (user_id)
