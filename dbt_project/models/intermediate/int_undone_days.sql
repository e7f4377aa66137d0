-- Grain: one row per (user, product, event type, day), only for the days that later events up to as_of
-- changed. A separate table because all marts need it, and because it is what an analyst asks for.
-- Incremental by user (see int_changed_users).
-- depends_on: {{ ref('int_built_users') }}, {{ ref('int_changed_users') }}
{{ undone_days(['as_of'], of_users=of_changed_users()) }}
