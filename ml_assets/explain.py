"""What an analyst asks of the lists, as macros and views of the warehouse.

    from ml.explain_recommendation('12977', '22423')   -- why this?
    from ml.explain_events('12977', '22423')           -- and by which events of which days?
    from ml.why_not('12977', '22423')                  -- why is it not on the list?
    from ml.score_shares                               -- of every published row
    from ml.blended(0.5, 0.5)                          -- and with other weights?
    from ml.candidate_fates                            -- what became of each candidate?
    from marts.degradation                             -- how much is served by what?

The shares of an explanation add up to the published score. A score is
`w_cf z(cf) + w_content z(content)`, a z-score what the raw score lies above the user's mean, times
1 / deviation, and the raw score a sum over what the user touched; so each touched product has a
share of its own, and what an average product gets is a share as well. Models read one weight per
user and product, the sum of what its events weigh with their age; its share is the events' in
proportion to that, day by day and type by type.
"""

from collections.abc import Mapping
from typing import Any

import duckdb
import numpy as np

from ml_assets.models import FactorModel, item_gram, weight_of_unseen
from ml_assets.recommend import Hybrid

# With the weights of the settings it gives the models' rows of ml.recommendations as they are
# before any rule, bit for bit. Others rank the same candidates again, which the weights of the
# settings chose.
_BLENDED = """
    create or replace macro ml.blended(w_cf, w_content, top_n := {top_n}) as table
    with scored as (
        select
            user_id,
            product_id,
            w_cf::double * coalesce(cf_score, 0) + w_content::double * coalesce(content_score, 0)
                as score,
            cf_score,
            content_score,
            source
        from ml.candidates
    )
    select
        user_id,
        row_number() over (partition by user_id order by score desc, product_id)::integer as rank,
        product_id,
        score,
        cf_score,
        content_score,
        source
    from scored
    qualify rank <= top_n
"""

# What a model reads of what was done, and what that leads to: one row per (asked pair, model,
# touched product), gain being its part of the raw score, in the model's own precision.
_BY_HISTORY = """
    follows as (
        select 'collaborative' as part, * from ml.item_neighbours
        union all
        select 'content' as part, * from ml.content_neighbours
    ),
    target as (
        select
            asked.user_id,
            asked.product_id,
            part,
            item,
            is_known and (part = 'collaborative' or len(other_items) > 0) as has_opinion
        from asked
        inner join follows using (product_id)
    ),
    gains as (
        select
            target.user_id,
            target.product_id,
            part,
            past.product_id as because_product_id,
            sqrt(past.relative_weight::float)::float::double
                * follows.weights[list_position(follows.other_items, target.item)]::double as gain
        from past
        inner join follows using (product_id)
        inner join target using (user_id, part)
        where list_contains(follows.other_items, target.item)
    ),
    known as (
        select user_id, product_id, part, has_opinion or bool_or(gain is not null) as is_known
        from target
        left join gains using (user_id, product_id, part)
        group by user_id, product_id, part, has_opinion
    )
"""

# A user's vector solves (G + ridge + sum over the touched of (c - 1) y y') x = sum of c y, so what
# a touched product adds to the raw score of i is c y' times the inverse times y_i. The inverse is
# made by sweeping out one column after the other (Goodnight, "A Tutorial on the SWEEP Operator",
# The American Statistician 1979), which needs no pivoting here. A text profile is a mean of what
# was touched.
_BY_FACTORS = """
    follows as (
        select 'collaborative' as part, product_id, factors::double[] as vector
        from ml.item_factors
        union all
        select 'content' as part, product_id, vector::double[] as vector
        from ml.product_vectors
    ),
    known as (
        select
            asked.user_id,
            asked.product_id,
            part,
            vector,
            list_bool_or(list_transform(vector, lambda x: x <> 0)) as is_known
        from asked
        inner join follows using (product_id)
    ),
    touched as (
        select
            past.user_id,
            list({{
                'y': follows.vector, 'c': {alpha}::double * past.relative_weight::float::double
            }}) as history
        from past
        inner join follows using (product_id)
        where part = 'collaborative'
        group by past.user_id
    ),
    sweeps as (
        select
            touched.user_id,
            0 as n_swept,
            list_transform(gram.gram, lambda row, i: list_transform(row, lambda value, j:
                value
                + case
                    when i = j
                        then {regularization}::double
                            * power(len(touched.history) + gram.unseen, {regularization_power})
                    else 0
                end
                + list_sum(list_transform(
                    touched.history, lambda each: (each.c - 1) * each.y[i] * each.y[j]
                ))
            )) as matrix
        from touched
        cross join ml.item_gram as gram

        union all

        select
            user_id,
            n_swept + 1,
            list_transform(matrix, lambda row, i: list_transform(row, lambda value, j:
                case
                    when i = n_swept + 1 and j = n_swept + 1 then -1 / divisor
                    when i = n_swept + 1 or j = n_swept + 1 then value / divisor
                    else value - row[n_swept + 1] * swept_row[j] / divisor
                end
            ))
        from (
            select
                *,
                matrix[n_swept + 1] as swept_row,
                matrix[n_swept + 1][n_swept + 1] as divisor
            from sweeps
            where n_swept < len(matrix)
        )
    ),
    solved as (
        select
            known.user_id,
            known.product_id,
            -- All swept, it is less than nothing: the inverse below 0.
            list_transform(matrix, lambda row: -list_inner_product(row, known.vector)) as vector
        from known
        inner join sweeps using (user_id)
        where part = 'collaborative' and n_swept = len(matrix)
    ),
    read as (
        select past.user_id, past.product_id, past.relative_weight::float::double as weight, vector
        from past
        inner join follows using (product_id)
        where part = 'content' and list_bool_or(list_transform(vector, lambda x: x <> 0))
    ),
    totals as (select user_id, sum(weight) as weight from read group by user_id),
    by_event as (
        select
            solved.user_id,
            solved.product_id,
            'collaborative' as part,
            past.product_id as because_product_id,
            {alpha}::double * past.relative_weight::float::double
                * list_inner_product(follows.vector, solved.vector) as gain
        from solved
        inner join past using (user_id)
        inner join follows on past.product_id = follows.product_id
        where follows.part = 'collaborative'
    ),
    gains as (
        from by_event

        union all

        -- Vectors are kept in single precision: what that is worth, a few millionths.
        select
            known.user_id,
            known.product_id,
            part,
            null,
            list_inner_product(users.factors::double[], known.vector) - coalesce(
                (
                    select sum(gain) from by_event
                    where by_event.user_id = known.user_id
                        and by_event.product_id = known.product_id
                ),
                0
            )
        from known
        inner join ml.user_factors as users using (user_id)
        where part = 'collaborative'

        union all

        select
            known.user_id,
            known.product_id,
            part,
            read.product_id,
            read.weight / totals.weight * list_inner_product(read.vector, known.vector)
        from known
        inner join read using (user_id)
        inner join totals using (user_id)
        where part = 'content'
    )
"""

_EXPLAINED = """
    with recursive
    asked as ({asked}),
    published as (from ml.recommendations semi join asked using (user_id, product_id)),
    past as (from marts.signals semi join asked using (user_id)),
    {models},
    scales as (
        select
            known.user_id,
            known.product_id,
            part,
            case part when 'collaborative' then {w_cf}::double else {w_content}::double end
                as weight,
            case part when 'collaborative' then cf_mean else content_mean end as mean,
            case part
                when 'collaborative' then cf_inverse_deviation
                else content_inverse_deviation
            end as inverse_deviation
        from known
        inner join ml.scored_users using (user_id)
        -- The chain asks no model.
        anti join (from published where source not in ('hybrid', 'content')) as filled
            using (user_id, product_id)
        where is_known and inverse_deviation is not null
    ),
    shares as (
        select
            user_id,
            product_id,
            part,
            because_product_id,
            weight * inverse_deviation * gain as share,
            gain as raw_score,
            weight,
            inverse_deviation,
            'rounding' as what
        from gains
        inner join scales using (user_id, product_id, part)

        union all

        -- What a product gets that nothing speaks for: below 0, since some products have more.
        select
            user_id,
            product_id,
            part,
            null,
            - weight * inverse_deviation * mean,
            - mean,
            weight,
            inverse_deviation,
            'an average product'
        from scales

        union all

        select
            user_id,
            product_id,
            source,
            null,
            score,
            null,
            null,
            null,
            case when source in ('pinned', 'explore') then 'a rule' else 'the fallback chain' end
        from published
        where source not in ('hybrid', 'content')

        union all

        select
            user_id,
            product_id,
            'boost',
            null,
            score - {w_cf}::double * coalesce(cf_score, 0)
                - {w_content}::double * coalesce(content_score, 0) as share,
            null,
            null,
            null,
            'a rule'
        from published
        where source in ('hybrid', 'content') and abs(share) > 1e-9
    )
    select
        shares.user_id,
        shares.product_id,
        shares.part,
        shares.because_product_id,
        products.title as because_title,
        case
            when past.n_purchases > 0 then 'bought'
            when past.n_carts > 0 then 'put in the cart'
            when past.is_only_rated then 'rated'
            when past.product_id is not null then 'viewed'
            else shares.what
        end as what,
        shares.share,
        shares.raw_score,
        shares.weight,
        shares.inverse_deviation
    from shares
    left join past
        on shares.user_id = past.user_id and shares.because_product_id = past.product_id
    left join marts.products as products on shares.because_product_id = products.product_id
"""

_EXPLAIN = """
    create or replace macro ml.explain_recommendation(the_user, the_product) as table
    from ({explained})
    order by abs(share) desc, part, because_product_id
"""

_EXPLAIN_EVENTS = """
    create or replace macro ml.explain_events(the_user, the_product) as table
    select
        explained.part,
        explained.because_product_id,
        explained.because_title,
        days.event_on,
        days.event_type,
        days.n_events,
        coalesce(days.event_type, explained.what) as what,
        explained.share * coalesce(days.share, 1) as share
    from ml.explain_recommendation(the_user, the_product) as explained
    left join (from marts.signal_days where user_id = the_user::varchar) as days
        on explained.because_product_id = days.product_id
    order by abs(explained.share * coalesce(days.share, 1)) desc,
        part, because_product_id, event_on, days.event_type
"""

# Every published row at once: minutes of work for a large shop.
_SHARES = "create or replace view ml.score_shares as {explained}"

_WHY_NOT = """
    create or replace macro ml.why_not(the_user, the_product) as table
    with
    asked as (
        select
            exists (select 1 from marts.users where user_id = the_user) as is_user,
            (select is_available from marts.products where product_id = the_product)
                as is_available,
            (
                select rank from ml.recommendations
                where user_id = the_user and product_id = the_product
            ) as rank,
            (
                select coalesce(n_purchases, 0) from marts.signals
                where user_id = the_user and product_id = the_product
            ) as n_purchases,
            explained.score,
            explained.n_reasons,
            (
                select min(score) from ml.recommendations
                where user_id = the_user and source in ('hybrid', 'content')
            ) as least_score,
            (
                select count(*) from ml.recommendations
                where user_id = the_user and source in ('hybrid', 'content')
            ) as n_rows,
            -- Of what was bought only what a repeat rule lets come back can be one.
            exists (
                select 1 from ml.candidates
                where user_id = the_user and product_id = the_product
            ) as is_candidate,
            exists (
                select 1 from ml.rules_in_force
                where action = 'repeat' and coalesce(by_column, 'purchase') = 'purchase'
            ) as has_repeats,
            exists (
                select 1 from ml.rule_ledger
                where user_id = the_user and product_id = the_product and new_rank is null
            ) as is_ruled_out
        from (
            select sum(share) as score, count(*) filter (raw_score > 0) as n_reasons
            from ml.explain_recommendation(the_user, the_product)
        ) as explained
    ),
    answers as (
        select 1 as position, 'no such user' as reason,
            'not in marts.users: nothing of theirs was accepted' as detail
        from asked where not is_user
        union all
        select 2, 'no such product', 'not in marts.products' from asked where is_available is null
        union all
        select 3, 'it is on the list', 'rank ' || rank from asked where rank is not null
        union all
        select 4, 'not available', 'out of stock, or not on offer on the day' from asked
        where not is_available
        union all
        select 5, 'bought already',
            'purchases: ' || n_purchases || case
                when has_repeats and not is_ruled_out
                    then '; or a rule lets it come back, and other products are better'
                else ''
            end
        from asked where rank is null and n_purchases > 0 and not is_candidate
        union all
        select 6, 'a rule keeps it off', string_agg(rule_id || ' (' || action || ')', ', ')
        from ml.rule_ledger
        where user_id = the_user and product_id = the_product and new_rank is null
        having count(*) > 0
        union all
        select 7, 'other products are better',
            coalesce(
                format('score {:.3f}, the last of the models'' {} rows has {:.3f}',
                    score, n_rows, least_score),
                format('score {:.3f}', score)
            )
        from asked
        where rank is null and is_available and (coalesce(n_purchases, 0) = 0 or is_candidate)
            and n_reasons > 0 and not is_ruled_out
        union all
        select 8, 'nothing leads there',
            'no model follows from what the user did to this product'
        from asked
        where rank is null and is_user and is_available
            and (coalesce(n_purchases, 0) = 0 or is_candidate)
            and n_reasons = 0 and not is_ruled_out
    )
    select reason, detail from answers order by position
"""

# Each candidate once: published, kept off by a rule, or behind the last that was taken.
_FATES = """
    create or replace view ml.candidate_fates as
    with
    removed as (
        select user_id, product_id, min(rule_id) as rule_id
        from ml.rule_ledger
        where new_rank is null
        group by user_id, product_id
    )
    select
        candidates.user_id,
        candidates.product_id,
        candidates.rank as old_rank,
        lists.rank as new_rank,
        case when lists.rank is null then removed.rule_id end as rule_id,
        case
            when lists.rank is not null then 'published'
            when removed.rule_id is not null then 'kept off by a rule'
            else 'behind the last that was taken'
        end as fate
    from ml.candidates as candidates
    left join ml.recommendations as lists using (user_id, product_id)
    left join removed using (user_id, product_id)
"""

_DEGRADATION = """
    create or replace view marts.degradation as
    select
        temperature,
        source,
        count(*) as n_rows,
        count(distinct user_id) as n_users,
        count(*) / sum(count(*)) over () as share
    from ml.recommendations
    group by temperature, source
    order by n_rows desc
"""


def create_macros(
    connection: duckdb.DuckDBPyConnection,
    hybrid: Hybrid,
    *,
    settings: Mapping[str, Any],
) -> None:
    """Create or replace what is named above; the tables of the lists must be there.

    Args:
        connection: The warehouse, for writing.
        hybrid: The models of the lists.
        settings: `w_cf`, `w_content` and `top_n` of the lists, and those of als.
    """
    models = _BY_HISTORY
    if not hybrid.is_item_item:
        factors = hybrid.cf.item_factors if isinstance(hybrid.cf, FactorModel) else np.zeros((1, 1))
        of_als = ("alpha", "regularization", "regularization_power")
        models = _BY_FACTORS.format(**{name: repr(settings[name]) for name in of_als})
        connection.execute(
            "create or replace table ml.item_gram as"
            " select $gram::double[][] as gram, $unseen::double as unseen",
            {
                "gram": item_gram(factors).tolist(),
                "unseen": weight_of_unseen(factors, settings),
            },
        )

    def explained(asked: str) -> str:
        return _EXPLAINED.format(
            asked=asked,
            models=models.strip(),
            w_cf=repr(settings["w_cf"]),
            w_content=repr(settings["w_content"]),
        )

    one = "select the_user::varchar as user_id, the_product::varchar as product_id"
    connection.execute(_BLENDED.format(top_n=int(settings["top_n"])))
    connection.execute(_EXPLAIN.format(explained=explained(one)))
    connection.execute(_EXPLAIN_EVENTS)
    connection.execute(
        _SHARES.format(explained=explained("select user_id, product_id from ml.recommendations"))
    )
    connection.execute(_WHY_NOT)
    connection.execute(_FATES)
    connection.execute("create schema if not exists marts")
    connection.execute(_DEGRADATION)
