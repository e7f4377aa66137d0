{#-
The rows of `lists` where ranks do not go on by one from 1, or a score rises with the rank. `keys` tell
one list from another.
-#}
{% macro broken_ranks(lists, keys) -%}
select *
from (
    select
        *,
        lag(rank, 1, 0) over list as rank_before,
        lag(score) over list as score_before
    from {{ lists }}
    window list as (partition by {{ keys | join(', ') }} order by rank)
) as steps
where rank <> rank_before + 1 or score > score_before
{%- endmacro %}
