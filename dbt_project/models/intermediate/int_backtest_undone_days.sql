-- Grain: one row per (period, user, product, event type, day): int_undone_days as it was before the
-- holdout, and as it is inside it. Apart from it because both change with every as_of.
{{ undone_days(['backtest', 'holdout']) }}
