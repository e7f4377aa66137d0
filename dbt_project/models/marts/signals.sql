-- Grain: one row per (user, product), as of as_of.
-- A view: of millions of rows hardly one stays as it is from day to day, and most of each does.
with

user_signals as (

    select * from {{ ref('int_user_signals') }}

),

{{ faded_signals('as_of') }}
