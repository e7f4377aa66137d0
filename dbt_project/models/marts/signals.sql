-- Grain: one row per (user, product), as of as_of.
{{ signals_as_of('as_of') }}
