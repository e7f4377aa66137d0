-- The list of everything names each available product; no list names another product.
{{ config(meta={'dagster': {'ref': {'name': 'popularity'}}}) }}

with

available as (

    select product_id
    from {{ ref('products') }}
    where is_available

),

everything as (

    select product_id
    from {{ ref('popularity') }}
    where segment_type = 'global' and segment = 'all' and time_window = 'all_time'

)

select 'missing' as problem, product_id
from available anti join everything using (product_id)

union all

select 'not available' as problem, product_id
from {{ ref('popularity') }} anti join available using (product_id)
