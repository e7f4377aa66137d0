-- Grain: one day that int_daily_signals holds. Made empty, then written by the macros of
-- changed_days alone.
select
    cast(null as date) as event_on,
    cast(null as ubigint) as inputs_hash,
    cast(null as date[]) as copied_on
where false
