-- UCI Online Retail (online_retail.parquet, a row per invoice line) in the columns of the landing
-- contract. Nothing is filtered from the events: what cannot be used is refused, counted and
-- explained in staging.rejected_rows. README.md next to this file lists what is dirty and why.

create view lines as
select
    file_row_number + 1 as source_row,
    InvoiceNo as invoice_no,
    -- The same code is written 85123A and 85123a.
    upper(trim(StockCode)) as product_id,
    nullif(trim(regexp_replace(Description, '\s+', ' ', 'g')), '') as title,
    Quantity as quantity,
    InvoiceDate as invoiced_at,
    UnitPrice as price,
    CustomerID::varchar as user_id,
    -- Not a country; what is unknown is null.
    nullif(Country, 'Unspecified') as country,
    InvoiceNo like 'C%' as is_cancellation,
from read_parquet('online_retail.parquet', file_row_number = true);

-- Grain: one row per invoice line, all 541,909 of them.
create view events as
select
    'online_retail.parquet' as source_file,
    source_row,
    user_id,
    product_id,
    case when is_cancellation then 'return' else 'purchase' end as event_type,
    invoiced_at as event_ts,
    case when is_cancellation then -quantity else quantity end as quantity,
    price,
    invoice_no as order_id,
from lines;

-- Sales of something that can be sent: a stock number is five digits and up to two letters.
-- The others are services (POST, M, BANK CHARGES, ...), and so are the four numbers below.
create view sales as
select *
from lines
where
    not is_cancellation
    and quantity > 0
    and price > 0
    and title is not null
    and regexp_full_match(product_id, '[0-9]{5}[A-Z]{0,2}')
    and product_id not in (
        '22016',  -- Dotcomgiftshop Gift Voucher £100.00
        '23444',  -- Next Day Carriage
        '23574',  -- PACKING CHARGE
        '23702',  -- High Resolution Image
    );

-- Grain: one row per product that was sold at least once.
-- Its title is the description that most of its sales have, of several the first in the alphabet.
-- Notes of the stockroom ("damages", "?", "sold as set on dotcom") stand on lines without a price,
-- so they are no sales. source_row is the first sale under that title.
create view products as
select
    'online_retail.parquet' as source_file,
    min(source_row) as source_row,
    product_id,
    title,
from sales
group by product_id, title
qualify row_number() over (partition by product_id order by count(*) desc, title) = 1;

-- Grain: one row per customer. Few order from several countries; the one with most lines counts,
-- of several the first in the alphabet.
create view users as
select
    'online_retail.parquet' as source_file,
    min(source_row) as source_row,
    user_id,
    country,
from lines
where user_id is not null
group by user_id, country
qualify
    row_number() over (
        partition by user_id order by country is null, count(*) desc, country
    ) = 1;
