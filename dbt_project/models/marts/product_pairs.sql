-- Grain: one row per (product, relation, rank): what else was in the basket.
with

{{ counted_days('as_of') }}

people as (

    -- An outlier (a reseller, a test account) puts everything beside everything.
    select
        user_id,
        row_number() over (order by user_id)::integer as user_number
    from {{ ref('int_user_activity') }}
    where coalesce(outlier_since > (select until_on from period), true)

),

catalogue as (

    -- Numbers instead of ids: the join below makes tens of millions of rows.
    select
        product_id,
        is_available,
        row_number() over (order by product_id)::integer as product_number
    from {{ ref('products') }}

),

contents as (

    -- A click is a look as well, and a product looked at twice is in the basket once.
    select distinct
        counted_days.event_type = 'purchase' as is_bought,
        people.user_number,
        counted_days.event_on,
        catalogue.product_number
    from counted_days
    inner join people using (user_id)
    inner join catalogue using (product_id)
    where counted_days.event_type in ('purchase', 'view', 'click')

),

baskets as (

    select is_bought, user_number, event_on
    from contents
    group by is_bought, user_number, event_on
    having count(*) <= {{ var('basket_max_products') }}

),

basket_products as (

    select contents.*
    from contents
    semi join baskets using (is_bought, user_number, event_on)

),

basket_counts as (

    select is_bought, count(*) as n_baskets
    from baskets
    group by is_bought

),

product_counts as (

    -- A product in fewer baskets than a pair needs has no pair: dropped before the join.
    select is_bought, product_number, count(*) as n_baskets
    from basket_products
    group by is_bought, product_number
    having count(*) >= {{ var('min_pair_support') }}

),

candidates as (

    select basket_products.*
    from basket_products
    semi join product_counts using (is_bought, product_number)

),

pairs as (

    -- Each pair once, the smaller number first; a basket holds at most basket_max_products.
    select
        one.is_bought,
        one.product_number,
        other.product_number as other_product_number,
        count(*) as n_together
    from candidates as one
    inner join candidates as other
        on
            one.user_number = other.user_number
            and one.event_on = other.event_on
            and one.is_bought = other.is_bought
            and one.product_number < other.product_number
    group by one.is_bought, one.product_number, other.product_number
    having count(*) >= {{ var('min_pair_support') }}

),

measured as (

    select
        pairs.is_bought,
        pairs.product_number,
        pairs.other_product_number,
        pairs.n_together,
        basket_counts.n_baskets,
        counts.n_baskets as n_product,
        other_counts.n_baskets as n_other
    from pairs
    inner join basket_counts using (is_bought)
    inner join product_counts as counts using (is_bought, product_number)
    inner join product_counts as other_counts
        on pairs.is_bought = other_counts.is_bought
        and pairs.other_product_number = other_counts.product_number
    -- Lift above 1: more often together than two products that have nothing to do with each other.
    where pairs.n_together * basket_counts.n_baskets > counts.n_baskets * other_counts.n_baskets

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

ranked as (

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
    inner join catalogue as product on both_directions.product_number = product.product_number
    inner join catalogue as other
        on both_directions.other_product_number = other.product_number and other.is_available
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
