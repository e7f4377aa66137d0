-- Grain: one product, with the number by which baskets and pairs are counted.
-- A table: whatever is counted again later, alone or with the rest, counts by the same numbers.
select
    {{ product_number() }} as product_number,
    product_id
from {{ ref('stg_products') }}
