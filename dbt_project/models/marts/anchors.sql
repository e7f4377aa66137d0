-- Grain: one row per (user, rank): a product the user cared for lately, to show others beside.
-- Places and families as numbers, and a user's places as the bits of one number: half the time of
-- joining and grouping millions of texts.
with

signals as (

    select * from {{ ref('signals') }}

),

catalogue as materialized (

    select
        product_id,
        {{ product_number() }} as product_number,
        title,
        text is not null as has_text,
        product_id in (select product_id from {{ ref('product_pairs') }}) as has_pairs
    from {{ ref('products') }}

),

recent as (

    -- Of one invoice, whose lines have one time, what goes with most and was bought most.
    select
        signals.user_id,
        catalogue.product_number,
        signals.n_purchases > 0 as is_bought,
        signals.n_carts > 0 as is_in_cart,
        signals.is_only_rated,
        signals.last_at,
        row_number() over (
            partition by signals.user_id
            order by
                signals.last_at desc,
                catalogue.has_pairs desc,
                signals.weight desc,
                catalogue.product_number
        ) as place
    from signals
    inner join catalogue using (product_id)
    -- Similar products are found by text.
    where catalogue.has_pairs or catalogue.has_text
    qualify place <= 4 * {{ var('anchors_per_user') }}

),

families as (

    select
        catalogue.product_number,
        dense_rank() over (order by families.family)::integer as family_number
    from {{ ref('int_title_families') }} as families
    inner join catalogue using (product_id)

),

family_places as (

    select
        recent.user_id,
        families.family_number,
        bit_or({{ place_bit('recent.place') }}) as places
    from recent
    inner join families using (product_number)
    group by recent.user_id, families.family_number

),

-- Three rows beside three lunch bags would be one row thrice. Of each family all but the first place,
-- which is its lowest bit.
variants as (

    select
        user_id,
        bit_or(places & (places - 1)) as places
    from family_places
    where places & (places - 1) <> 0
    group by user_id

),

ranked as (

    select
        recent.*,
        coalesce(variants.places, 0) as left_out,
        recent.place - bit_count(left_out & ({{ place_bit('recent.place') }} - 1)) as rank
    from recent
    left join variants using (user_id)
    where
        left_out & {{ place_bit('recent.place') }} = 0
        and rank <= {{ var('anchors_per_user') }}

)

select
    ranked.user_id,
    ranked.rank::integer as rank,
    catalogue.product_id,
    coalesce(catalogue.title, catalogue.product_id) as title,
    case
        when ranked.is_bought then 'bought'
        when ranked.is_in_cart then 'put in cart'
        when ranked.is_only_rated then 'rated'
        else 'viewed'
    end as kind,
    ranked.last_at
from ranked
inner join catalogue using (product_number)
