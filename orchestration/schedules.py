"""When the line runs: every night, when new files land, or by hand."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from orchestration.landing import erasure
from orchestration.settings import Settings

# What looks at days of the past, and what takes users out, has jobs of its own.
_LINE = dg.AssetSelection.all() - dg.AssetSelection.groups("tuning", "backtests", "erasure")

daily_recommendations = dg.define_asset_job(
    "daily_recommendations",
    selection=_LINE,
    description="The whole line: landing files, dbt models, models, gates, publishing.",
)

# What learns, and what only looks back; everything else follows the shop from hour to hour.
LEARNED = dg.AssetSelection.assets(
    ["ml", "item_factors"],
    ["ml", "item_neighbours"],
    ["ml", "product_vectors"],
    ["ml", "content_neighbours"],
    ["ml", "offline_metrics"],
    ["ml", "blend_curve"],
    ["ml", "learning_curve"],
    ["ml", "backtest_examples"],
    ["ml", "margin_curve"],
    ["marts", "rule_cost"],
    ["ml", "report"],
    ["intermediate", "int_basket_products"],
    ["intermediate", "int_baskets"],
    ["intermediate", "int_basket_counts"],
    ["intermediate", "int_pair_counts"],
    ["intermediate", "int_backtest_undone_days"],
    ["marts", "backtest_signals"],
    ["marts", "backtest_popularity"],
    ["marts", "holdout"],
)

refresh_recommendations = dg.define_asset_job(
    "refresh_recommendations",
    selection=_LINE - LEARNED,
    description="The line with the models it has: new events, and lists for whom they concern.",
)

tune_settings = dg.define_asset_job(
    "tune_settings",
    selection=dg.AssetSelection.groups("tuning"),
    description="Search settings on days before the holdout; the next run takes the best.",
)

backtest = dg.define_asset_job(
    "backtest",
    selection=dg.AssetSelection.groups("backtests"),
    description="The line as it would have run on a day of the past, held against what came after."
    " Launch a backfill for several days.",
)

erase_users = dg.define_asset_job(
    "erase_users",
    selection=dg.AssetSelection.groups("erasure"),
    description="Take the users of erasures/*.csv out of everything that is kept, and certify it.",
)

nightly = dg.ScheduleDefinition(
    name="nightly",
    job=daily_recommendations,
    cron_schedule="0 3 * * *",
    execution_timezone="UTC",
    description="At 03:00 UTC, when yesterday's export has landed.",
)


hourly = dg.ScheduleDefinition(
    name="hourly",
    job=refresh_recommendations,
    # Not at three, when the models are learned anew.
    cron_schedule="0 0-2,4-23 * * *",
    execution_timezone="UTC",
    description="Every hour except 03:00 UTC: what happened since, with the night's models.",
)


@dg.sensor(
    name="new_landing_files",
    job=daily_recommendations,
    minimum_interval_seconds=60,
    description="Starts the line when a landing file came, went or changed.",
)
def new_landing_files(
    context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Compare the folder with what was there at the last look."""
    seen = fingerprint(settings.data)
    if seen == context.cursor:
        yield dg.SkipReason(f"nothing new in {settings.data}")
        return
    context.update_cursor(seen)
    # Without a run_key: it would be remembered for ever, and a folder that is put back as it was
    # before a bad file would never run again. Dagster stores cursor and request together.
    yield dg.RunRequest()


def fingerprint(folder: Path) -> str:
    """Changes when a file below the folder is added, removed, written or renamed.

    Requests for erasure are left out: they are for another job.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] != erasure.FOLDER:
            stat = path.stat()
            line = f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
            # Bytes of a name that are no UTF-8 as they are: to say so is for the run.
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()
