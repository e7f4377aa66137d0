-- Grain: one row per (segment_type, segment, time_window, rank), as of holdout_from:
-- marts.popularity as it was before the holdout.
{{ popularity_as_of('backtest') }}
