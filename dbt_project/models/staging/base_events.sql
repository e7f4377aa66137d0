-- Grain: one event row as it arrived, refused or not. The only parse of raw.events.
-- Incremental by file: only the rows of new and changed files are parsed (see event_files).

-- The first rule that a row breaks is the reason it is refused. Reasons are read by people.
{% set rules = [
    ('user_id', 'the user was erased', 'is_erased'),
    ('user_id', 'user_id is missing', 'user_id is null'),
    ('event_ts', 'event_ts is missing', 'landed_event_ts is null'),
    ('event_ts', 'event_ts is not a date or time', 'event_at is null'),
    (
        'event_ts', 'event_ts is in the future: after the file was received',
        'event_at > latest_event_at',
    ),
    ('event_ts', 'event_ts is before 1990', "event_at < timestamp '1990-01-01'"),
    ('event_type', 'event_type is missing', 'event_type is null'),
    (
        'rating', 'rating is not between 0.5 and 5',
        'landed_rating is not null and (rating between 0.5 and 5) is not true',
    ),
    (
        'rating', 'a rating event without a rating',
        "event_type = 'rating' and landed_rating is null",
    ),
    ('quantity', 'quantity is not a number', 'landed_quantity is not null and quantity is null'),
    ('quantity', 'quantity must be greater than 0', 'quantity <= 0'),
    ('quantity', 'quantity must be less than 1,000,000,000', 'quantity >= 1e9'),
    ('price', 'price is not a number', 'landed_price is not null and price is null'),
    ('price', 'price is negative', 'price < 0'),
    (
        'price', 'a purchase without a price paid is no purchase',
        "event_type = 'purchase' and price = 0",
    ),
    ('product_id', 'product_id is missing', 'product_id is null'),
] %}

with

files as (

    {{ event_files() }}

),

events as (

    select events.*
    from {{ source('raw', 'events') }} as events
    {%- if is_refresh('file_version') %}
    semi join (
        select source_file from files
        -- distinct: else the millions are put into a hash table, for a handful of versions.
        where file_version not in (select distinct file_version from {{ this }})
    ) as new_files using (source_file)
    {%- endif %}

),

typed as (

    select
        source_file,
        source_row,
        {{ blank_to_null('user_id') }} as user_id,
        {{ blank_to_null('product_id') }} as product_id,
        nullif(lower(trim(event_type, e' \t\r\n')), '') as event_type,
        {{ blank_to_null('event_ts') }} as landed_event_ts,
        {{ read_timestamp('event_ts') }} as event_at,
        {{ blank_to_null('event_id') }} as event_id,
        {{ blank_to_null('rating') }} as landed_rating,
        {{ read_number('rating') }} as rating,
        {{ blank_to_null('quantity') }} as landed_quantity,
        {{ read_number('quantity') }} as quantity,
        {{ blank_to_null('price') }} as landed_price,
        {{ read_number('price') }} as price,
        {{ blank_to_null('session_id') }} as session_id,
        {{ blank_to_null('order_id') }} as order_id,
        -- What tells two rows apart besides the columns above; only compared, never shown.
        hash(version, rank, variant, attributes) as other_values_hash,
        event_type as landed_event_type,
        user_id is null and attributes = '{"erased": true}' as is_erased,
        user_id as landed_user_id,
        product_id as landed_product_id
    from events

),

-- A shop's clock may be ahead of ours, and its day may end before ours.
received as (

    select
        typed.*,
        files.file_version,
        files.received_at + interval 1 day as latest_event_at
    from typed
    left join files using (source_file)

),

judged as (

    select
        *,
        case
            {%- for column, reason, fails in rules %}
            when {{ fails }} then '{{ reason }}'
            {%- endfor %}
        end as reject_reason
    from received

)

select
    source_file,
    source_row,
    user_id,
    product_id,
    event_type,
    event_at,
    event_at::date as event_on,
    event_id,
    rating,
    coalesce(quantity, 1) as quantity,
    price,
    session_id,
    order_id,
    other_values_hash,
    file_version,
    case
        {%- for column, reasons in rules | groupby(0) %}
        when reject_reason in ('{{ reasons | map(attribute=1) | join("', '") }}') then '{{ column }}'
        {%- endfor %}
    end as reject_column,
    reject_reason,
    case reject_column
        {%- for column in rules | map(attribute=0) | unique %}
        when '{{ column }}' then landed_{{ column }}
        {%- endfor %}
    end as reject_value
from judged
