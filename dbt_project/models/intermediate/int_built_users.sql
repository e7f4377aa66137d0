-- Grain: one user whom int_daily_signals holds, or held. Made empty, then written by the macros of
-- changed_users alone.
select
    cast(null as varchar) as user_id,
    cast(null as ubigint) as inputs_hash,
    cast(null as date) as as_of
where false
