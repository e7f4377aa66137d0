-- Grain: one row per (user, rank): a product the user cared for lately, to show others beside.
with

signals as (

    select * from {{ ref('signals') }}

),

products as (

    select * from {{ ref('products') }}

),

with_pairs as (

    select distinct product_id from {{ ref('product_pairs') }}

),

recent as (

    -- Of one invoice, whose lines have one time, what goes with most and was bought most.
    select
        signals.user_id,
        signals.product_id,
        signals.n_purchases > 0 as is_bought,
        signals.n_carts > 0 as is_in_cart,
        signals.last_at,
        row_number() over (
            partition by signals.user_id
            order by
                signals.last_at desc,
                with_pairs.product_id is null,
                signals.weight desc,
                signals.product_id
        ) as place
    from signals
    inner join products using (product_id)
    left join with_pairs using (product_id)
    -- Similar products are found by text.
    where with_pairs.product_id is not null or products.text is not null
    qualify place <= 4 * {{ var('anchors_per_user') }}

),

families as (

    select
        recent.user_id,
        recent.product_id,
        recent.place,
        families.family
    from recent
    inner join {{ ref('int_title_families') }} as families using (product_id)

),

variants as (

    -- Three rows beside three lunch bags would be one row thrice.
    select distinct
        families.user_id,
        families.product_id
    from families
    inner join (
        select
            user_id,
            family,
            min(place) as first_place
        from families
        group by all
        having count(*) > 1
    ) as several using (user_id, family)
    where families.place > several.first_place

),

ranked as (

    select
        recent.*,
        row_number() over (partition by recent.user_id order by recent.place) as rank
    from recent
    anti join variants using (user_id, product_id)
    qualify rank <= {{ var('anchors_per_user') }}

)

select
    ranked.user_id,
    ranked.rank::integer as rank,
    ranked.product_id,
    coalesce(products.title, ranked.product_id) as title,
    case
        when ranked.is_bought then 'bought'
        when ranked.is_in_cart then 'put in cart'
        else 'viewed'
    end as kind,
    ranked.last_at
from ranked
inner join products using (product_id)
