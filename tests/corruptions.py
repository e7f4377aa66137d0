"""What is done to the tables of a shop that published, and the check that has to notice."""

# Lists that readers do not have yet.
NEW_LISTS = "update ml.recommendations set reason = 'of another run'"

# The check, and statements.
CORRUPTIONS = {
    "the catalogue shrinks by half": (
        "catalogue_shrank",
        "delete from marts.products where product_id in"
        " (select product_id from marts.products order by product_id limit 40)",
    ),
    "text becomes empty": (
        "catalogue_text_vanished",
        "update marts.products set title = null, description = null, text = null",
    ),
    "an event type vanishes from the latest day": (
        "event_type_vanished",
        "delete from intermediate.int_daily_signals where event_type = 'view'"
        " and event_on = (select as_of from intermediate.int_as_of)",
    ),
    "an event type vanishes from all files": (
        "event_type_vanished",
        "delete from intermediate.int_daily_signals where event_type = 'purchase'",
    ),
    "yesterday's file is missing": (
        "day_is_missing",
        "delete from intermediate.int_event_days where event_on ="
        " (select as_of from intermediate.int_as_of)",
        "delete from intermediate.int_daily_signals where event_on ="
        " (select as_of from intermediate.int_as_of)",
        "update intermediate.int_as_of set as_of = as_of - 1",
    ),
    "volumes jump tenfold": (
        "volume_jumped",
        "update intermediate.int_event_days set n_events = 10 * n_events where event_on ="
        " (select as_of from intermediate.int_as_of)",
    ),
    "volumes fall to a tenth": (
        "volume_jumped",
        "update intermediate.int_event_days set n_events = n_events // 10 where event_on ="
        " (select as_of from intermediate.int_as_of)",
    ),
    "all weights are equal": (
        "weights_are_equal",
        "update intermediate.int_user_signals set weight = 1",
    ),
    "a fifth of the rows is refused": (
        "accepted_share_fell",
        "insert into staging.rejected_rows by name select 'events' as entity, source_file,"
        " source_row, 'price' as column_name, 'not a number' as reason from staging.base_events"
        " where source_row % 5 = 0",
    ),
    "coverage falls": (
        "coverage_fell",
        "update ml.recommendations set source = 'popular' where user_id in"
        " (select user_id from marts.users order by user_id limit 125)",
    ),
    "the metric falls": (
        "metric_fell",
        "update ml.offline_metrics set value = value / 2 where model = 'hybrid'",
    ),
}
