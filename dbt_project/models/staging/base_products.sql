-- Grain: one product row as it arrived, refused or not. The only parse of raw.products.
{% set values = [
    'title', 'category', 'brand', 'description', 'price', 'margin', 'img_url', 'available_from',
    'available_until', 'in_stock', 'added_at', 'attributes',
] %}

with

products as (

    select * from {{ source('raw', 'products') }}

),

names as (

    {{ latest_names('products') }}

),

-- A value that cannot be read becomes NULL, and its product stays: without it, everything that was
-- bought of it would be lost too. staging.repaired_values tells which values these were.
typed as (

    select
        source_file,
        coalesce(names.last_name, source_file) as last_name,
        source_row,
        {{ blank_to_null('product_id') }} as product_id,
        {{ clean_text('title') }} as title,
        {{ clean_text('category') }} as category,
        {{ clean_text('brand') }} as brand,
        {{ clean_text('description') }} as description,
        {{ read_number('price') }} as landed_price,
        case when landed_price >= 0 then landed_price end as price,
        {{ read_number('margin') }} as margin,
        {{ blank_to_null('img_url') }} as img_url,
        {{ read_timestamp('available_from') }} as available_from,
        {{ read_timestamp('available_until') }} as available_until,
        case
            when lower(trim(in_stock)) in ('true', 't', 'yes', 'y', '1', '1.0') then true
            when lower(trim(in_stock)) in ('false', 'f', 'no', 'n', '0', '0.0') then false
        end as in_stock,
        {{ read_timestamp('added_at') }} as added_at,
        attributes,
        product_id as landed_product_id
    from products
    left join names using (source_file)

),

compared as (

    select
        *,
        {{ choose_one_row('product_id', values) }}
    from typed

)

select
    source_file,
    source_row,
    product_id,
    {{ values | join(',\n    ') }},
    {{ reason_not_chosen('product_id') }} as reject_reason,
    case when reject_reason is not null then 'product_id' end as reject_column,
    case when reject_reason is not null then landed_product_id end as reject_value
from compared
