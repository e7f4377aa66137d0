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
        coalesce(products.title, signals.product_id) as title,
        case
            when signals.n_purchases > 0 then 'bought'
            when signals.n_carts > 0 then 'put in cart'
            else 'viewed'
        end as kind,
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

variants as (

    -- Three rows beside three lunch bags would be one row thrice.
    select distinct
        user_id,
        product_id
    from (
        select
            recent.user_id,
            recent.product_id
        from recent
        inner join {{ ref('int_title_families') }} as families using (product_id)
        qualify
            row_number() over (
                partition by recent.user_id, families.family order by recent.place
            ) > 1
    )

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
    user_id,
    rank::integer as rank,
    product_id,
    title,
    kind,
    last_at
from ranked
