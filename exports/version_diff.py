"""What changed between two versions, and why: macros of the warehouse.

    from serving.version_diff('20111208T000000-9c01d2aa', '20111209T000000-3f2a77b0')
    from serving.version_changes('20111208T000000-9c01d2aa', '20111209T000000-3f2a77b0')

A list follows from its user's events, the models and settings, the rules, what can be recommended,
and, in filled places, from what is popular. Each of these is kept with a version, so a cause is
looked up and not guessed: the first of them that differs, in the order of `_DIFF`. Where nothing of
the user's own differs, another product came to or went from the shop and moved the rest.
"""

import duckdb

_DIFF = """
    create or replace macro serving.version_diff(version_before, version_after) as table
    with
    changes as (
        select
            user_id,
            product_id,
            case
                when before.rank is null then 'came'
                when after.rank is null then 'went'
                else 'moved'
            end as change,
            before.rank as rank_before,
            after.rank as rank_after,
            coalesce(after.source, before.source) as source
        from (from serving.recommendations where version = version_before) as before
        full join (from serving.recommendations where version = version_after) as after
            using (user_id, product_id)
        where before.rank is distinct from after.rank
    ),
    models as (
        select count(distinct model_hash) > 1 as differ
        from serving.versions
        where version in (version_before, version_after)
    ),
    users as (
        select
            user_id,
            before.inputs_hash is distinct from after.inputs_hash as has_other_events,
            before.rules_hash is distinct from after.rules_hash as has_other_rules
        from (from serving.version_users where version = version_before) as before
        full join (from serving.version_users where version = version_after) as after
            using (user_id)
    ),
    products as (
        select product_id
        from (from serving.version_products where version = version_before) as before
        full join (from serving.version_products where version = version_after) as after
            using (product_id)
        where before.is_available is distinct from after.is_available
    )
    select
        changes.user_id,
        changes.product_id,
        changes.change,
        changes.rank_before,
        changes.rank_after,
        case
            when changes.source not in ('hybrid', 'content', 'pinned', 'explore') then 'fallback'
            when products.product_id is not null then 'catalogue or stock'
            when models.differ then 'other model'
            when changes.source in ('pinned', 'explore') or users.has_other_rules then 'rule'
            when users.has_other_events then 'new events'
            else 'catalogue or stock'
        end as cause
    from changes
    cross join models
    left join users using (user_id)
    left join products using (product_id)
    order by user_id, coalesce(rank_after, rank_before), product_id
"""

_CHANGES = """
    create or replace macro serving.version_changes(version_before, version_after) as table
    select change, cause, count(*) as n_rows, count(distinct user_id) as n_users
    from serving.version_diff(version_before, version_after)
    group by change, cause
    order by n_rows desc, change, cause
"""


def create_macros(connection: duckdb.DuckDBPyConnection) -> None:
    """Create or replace both; the tables of `versions.ensure_schema` must be there."""
    connection.execute(_DIFF)
    connection.execute(_CHANGES)
