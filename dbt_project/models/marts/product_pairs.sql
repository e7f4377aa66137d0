-- Grain: one row per (product, relation, rank): what else was in the basket.
with

-- What was counted may be of last night: the catalogue is today's, and numbers are those of then.
products as (

    select
        counts.*,
        products.is_available
    from {{ ref('int_basket_counts') }} as counts
    inner join {{ ref('products') }} as products using (product_id)

),

pairs as (

    select * from {{ ref('int_pair_counts') }}

),

measured as (

    select
        pairs.is_bought,
        pairs.product_number,
        pairs.other_product_number,
        pairs.n_together,
        product.n_all_baskets as n_baskets,
        product.n_baskets as n_product,
        other.n_baskets as n_other
    from pairs
    inner join products as product using (is_bought, product_number)
    inner join products as other
        on pairs.is_bought = other.is_bought
        and pairs.other_product_number = other.product_number
    -- Lift above 1: more often together than two products that have nothing to do with each other.
    where pairs.n_together * product.n_all_baskets > product.n_baskets * other.n_baskets

),

scored as (

    select
        *,
        -- Rounded, so that a pair and its mirror image, or another machine's logarithm, rank alike.
        round(
            {{ log_likelihood('n_together', 'n_product', 'n_other', 'n_baskets') }}, 6
        ) as log_likelihood
    from measured

),

both_directions as (

    select
        is_bought,
        product_number,
        other_product_number,
        n_together,
        n_baskets,
        n_product,
        n_other,
        log_likelihood
    from scored

    union all

    select
        is_bought,
        other_product_number as product_number,
        product_number as other_product_number,
        n_together,
        n_baskets,
        n_other as n_product,
        n_product as n_other,
        log_likelihood
    from scored

),

beside as (

    -- What cannot be bought is not proposed beside anything; it keeps a list of its own.
    select
        both_directions.*,
        product.product_id,
        other.product_id as other_product_id,
        row_number() over (
            partition by both_directions.is_bought, both_directions.product_number
            order by log_likelihood desc, n_together desc, other_product_number
        ) as rank
    from both_directions
    inner join products as product using (is_bought, product_number)
    inner join products as other
        on both_directions.is_bought = other.is_bought
        and both_directions.other_product_number = other.product_number
        and other.is_available
    -- Some of them are variants.
    qualify rank <= 4 * {{ var('pairs_per_product') }}

),

families as (

    select * from {{ ref('int_title_families') }}

),

variants as (

    -- The same cup in a third colour is no complement. Who looks at cups compares cups: there they
    -- stay.
    select distinct
        product_id,
        other_product_id
    from (
        select
            beside.product_id,
            beside.other_product_id
        from beside
        inner join families on beside.other_product_id = families.product_id
        where beside.is_bought
        qualify
            row_number() over (
                partition by beside.product_id, families.family order by beside.rank
            ) > {{ var('variants_per_list') }}
    )

),

ranked as (

    select
        beside.* replace (
            row_number() over (
                partition by beside.is_bought, beside.product_id order by beside.rank
            ) as rank
        )
    from beside
    left join variants
        on
            beside.is_bought
            and beside.product_id = variants.product_id
            and beside.other_product_id = variants.other_product_id
    where variants.product_id is null
    qualify rank <= {{ var('pairs_per_product') }}

)

select
    product_id,
    case when is_bought then 'bought_together' else 'viewed_together' end as relation,
    rank::integer as rank,
    other_product_id,
    n_together::integer as n_together,
    n_together::double / n_baskets as support,
    n_together::double / n_product as confidence,
    n_together::double * n_baskets / n_product / n_other as lift,
    log_likelihood
from ranked
