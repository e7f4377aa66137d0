-- Grain: one product of the catalogue.
with

products as (

    select * from {{ ref('base_products') }}

)

select
    source_file,
    source_row,
    product_id,
    title,
    category,
    brand,
    description,
    price,
    margin,
    img_url,
    available_from,
    available_until,
    in_stock,
    added_at,
    attributes
from products
where reject_reason is null
