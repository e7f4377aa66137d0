-- 84.51° Complete Journey (three Parquet files, original columns) in the columns of the landing
-- contract. README.md next to this file says where the files are from; put them beside it.

create view lines as
select
    file_row_number + 1 as source_row,
    household_id as user_id,
    product_id,
    transaction_timestamp as event_ts,
    quantity,
    -- Of one piece, after the shop's own discount.
    sales_value / nullif(quantity, 0) as price,
    basket_id as order_id,
from read_parquet('transactions_sample.parquet', file_row_number = true);

-- Grain: one row per line of a basket.
create view events as
select
    'transactions_sample.parquet' as source_file,
    source_row,
    user_id,
    product_id,
    'purchase' as event_type,
    event_ts,
    quantity,
    price,
    order_id,
from lines;

-- Grain: one row per product that is in a basket; four fifths of the published list are in none.
-- It has no names: kind and size stand for one. Fuel and coupons are no products to recommend.
create view products as
select
    'products.parquet' as source_file,
    source_row,
    product_id,
    concat_ws(', ', product_type, package_size) as title,
    product_category as category,
    -- The brand is National or Private; who makes it is a number.
    brand,
    department as description,
from (
    select
        file_row_number + 1 as source_row,
        * exclude (file_row_number),
    from read_parquet('products.parquet', file_row_number = true)
)
where
    product_id in (select product_id from lines)
    and product_type is not null
    and department <> 'FUEL'
    and product_category is distinct from 'COUPON/MISC ITEMS';

-- Grain: one row per household with demographics, a third of those that bought.
create view users as
select
    'demographics.parquet' as source_file,
    file_row_number + 1 as source_row,
    household_id as user_id,
    age::varchar as age_band,
    income::varchar as income,
    household_comp::varchar as household,
from read_parquet('demographics.parquet', file_row_number = true);
