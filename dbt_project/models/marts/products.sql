-- Grain: one row per product of the catalogue.
with

products as (

    select * from {{ ref('stg_products') }}

),

as_of as (

    select as_of from {{ ref('int_as_of') }}

)

select
    product_id,
    title,
    category,
    brand,
    description,
    price,
    margin,
    img_url,
    added_at,
    available_from,
    available_until,
    in_stock,
    {{
        is_available_on('products', '(select as_of from as_of)', knows_stock=true)
    }} as is_available,
    nullif(
        concat_ws(
            ' ',
            nullif(trim(title), ''),
            nullif(trim(category), ''),
            nullif(trim(brand), ''),
            nullif(trim(description), '')
        ),
        ''
    ) as text,
    attributes
from products
