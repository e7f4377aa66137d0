-- Ranks are 1 to the length of the list, and a score never rises with the rank.
{{ broken_ranks(ref('popularity'), ['segment_type', 'segment', 'time_window']) }}
