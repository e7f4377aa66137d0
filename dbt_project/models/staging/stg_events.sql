-- Grain: one accepted event: valid in itself, and on a product of the catalogue.
with

events as (

    select * from {{ ref('base_events') }}

),

products as (

    select product_id from {{ ref('stg_products') }}

)

select
    events.source_file,
    events.source_row,
    events.user_id,
    events.product_id,
    events.event_type,
    events.event_at,
    events.event_on,
    events.event_id,
    events.rating,
    events.quantity,
    events.price,
    events.session_id,
    events.order_id,
    events.other_values_hash,
    events.file_version
from events
semi join products on events.product_id = products.product_id
where events.reject_reason is null
