-- No more than variants_per_list products of one title family are in a list.
{{ config(meta={'dagster': {'ref': {'name': 'product_pairs'}}}) }}

with

pairs as (

    select * from {{ ref('product_pairs') }}

),

families as (

    select * from {{ ref('int_title_families') }}

)

select
    pairs.product_id,
    families.family,
    count(*) as n_variants
from pairs
inner join families on pairs.other_product_id = families.product_id
where pairs.relation = 'bought_together'
group by pairs.product_id, families.family
having count(*) > {{ var('variants_per_list') }}
