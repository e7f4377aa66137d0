-- Grain: one row per (segment_type, segment, time_window, rank), as of as_of.
{{ popularity_as_of('as_of') }}
