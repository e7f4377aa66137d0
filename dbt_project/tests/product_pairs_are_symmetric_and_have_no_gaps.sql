-- Ranks are 1 to the length of the list; a product is not beside itself; a pair and its mirror
-- image, where both made it into a list, say the same.
{{ config(meta={'dagster': {'ref': {'name': 'product_pairs'}}}) }}

with

pairs as (

    select * from {{ ref('product_pairs') }}

),

lists as (

    select product_id, relation, max(rank) as last_rank, count(*) as n_rows
    from pairs
    group by product_id, relation

)

select 'gap' as problem, product_id, relation
from lists
where last_rank <> n_rows

union all

select 'itself' as problem, product_id, relation
from pairs
where product_id = other_product_id

union all

select 'mirror' as problem, one.product_id, one.relation
from pairs as one
inner join pairs as other
    on
        one.relation = other.relation
        and one.product_id = other.other_product_id
        and one.other_product_id = other.product_id
where
    one.n_together <> other.n_together
    or one.log_likelihood <> other.log_likelihood
    or abs(one.lift - other.lift) > 1e-9 * one.lift
