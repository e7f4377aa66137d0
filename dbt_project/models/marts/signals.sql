-- Grain: one row per (user, product), as of as_of.
-- A view: every weight fades from day to day, and one factor costs less than millions of rows written
-- again.
with

user_signals as (

    select * from {{ ref('int_user_signals') }}

),

{{ faded_signals('as_of') }}
