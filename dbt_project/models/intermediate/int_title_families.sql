-- Grain: one row per (product, family): products whose titles say the same but for a colour or a size.
with

products as (

    select * from {{ ref('stg_products') }}

),

titles as (

    -- Numbers and short words tell sizes apart, and join what has nothing in common ("set of").
    select
        product_id,
        category,
        list_filter(
            string_split_regex(upper(title), '[^\p{L}]+'), lambda word: length(word) >= 3
        ) as words
    from products
    where title is not null

),

runs as (

    -- "LUNCH BAG" of LUNCH BAG RED RETROSPOT. Of a long title a longer run: "for men" alone makes no
    -- family.
    select
        *,
        greatest(2, ceil(0.4 * len(words)))::integer as n_words
    from titles

)

select distinct
    product_id,
    coalesce(category, '') || ': ' || unnest(
        list_transform(
            range(1, len(words) - n_words + 2),
            lambda start: array_to_string(words[start:start + n_words - 1], ' ')
        )
    ) as family
from runs
