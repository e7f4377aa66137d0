-- A test of its own: a refresh builds no backtest, and would leave out a test that reads it.
{{ broken_ranks(ref('backtest_popularity'), ['segment_type', 'segment', 'time_window']) }}
