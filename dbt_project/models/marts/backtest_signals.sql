-- Grain: one row per (user, product), as of holdout_from: marts.signals as it was before the
-- holdout.
with

{{ user_signals_as_of('backtest') }},

{{ faded_signals('backtest') }}
