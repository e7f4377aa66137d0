"""When the line runs: every night, when new files land, or by hand."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from orchestration.settings import Settings

daily_recommendations = dg.define_asset_job(
    "daily_recommendations",
    selection=dg.AssetSelection.all(),
    description="The whole line: landing files, dbt models, models, gates, publishing.",
)

nightly = dg.ScheduleDefinition(
    name="nightly",
    job=daily_recommendations,
    cron_schedule="0 3 * * *",
    execution_timezone="UTC",
    description="At 03:00 UTC, when yesterday's export has landed.",
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
    yield dg.RunRequest(run_key=seen)


def fingerprint(folder: Path) -> str:
    """Changes when a file below the folder is added, removed, written or renamed."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stat = path.stat()
            line = f"{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
            digest.update(line.encode())
    return digest.hexdigest()
