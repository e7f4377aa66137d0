"""The shop's files as raw tables."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from ml_assets.warehouse import Warehouse, now
from orchestration.drift_limits import LimitsError, limits_of_file
from orchestration.landing.contract import LandingError
from orchestration.landing.ingest import check_event_types, ingest_folder
from orchestration.settings import DRIFT_LIMITS, EVENT_WEIGHTS, Settings

DESCRIPTIONS = {
    "events": "What users did, as it arrived, with file and row.",
    "products": "The catalogue, as it arrived, with file and row.",
    "users": "Customer records, as they arrived, with file and row. May be empty.",
}


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            ["raw", entity], description=description, group_name="raw", kinds={"duckdb", "file"}
        )
        for entity, description in DESCRIPTIONS.items()
    ]
    + [
        dg.AssetSpec(
            ["raw", "landing_files"],
            description="Which files were loaded, when, and what was in them. One row per file.",
            group_name="raw",
            kinds={"duckdb"},
        ),
        dg.AssetSpec(
            ["raw", "malformed_lines"],
            description="Lines that could not be split into columns. One row per line.",
            group_name="raw",
            kinds={"duckdb"},
        ),
    ]
)
def landing(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    warehouse: dg.ResourceParam[Warehouse],
) -> Iterator[dg.MaterializeResult]:
    """Load new and changed landing files, leave the others as they are."""
    with warehouse.connect() as connection:
        try:
            limits_of_file(DRIFT_LIMITS)
            summary = ingest_folder(
                connection,
                settings.data,
                received_at=now(),
                progress=context.log.info,
                pseudonym_key=settings.pseudonym_key,
            )
            check_event_types(connection, EVENT_WEIGHTS)
        except LandingError as error:
            said = str(error) if settings.pseudonym_key is None else error.discreet
            raise dg.Failure(description=said, allow_retries=False) from None
        except LimitsError as error:
            raise dg.Failure(description=str(error), allow_retries=False) from None
        counts = {
            table: _count(connection, table)
            for table in (*DESCRIPTIONS, "landing_files", "malformed_lines")
        }
    for table, n_rows in counts.items():
        metadata: dict[str, Any] = {"dagster/row_count": n_rows}
        if table == "landing_files":
            metadata["files"] = dg.MetadataValue.md(summary.as_markdown())
        yield dg.MaterializeResult(asset_key=["raw", table], metadata=metadata)


def _count(connection: Any, table: str) -> int:
    return int(connection.execute(f"select count(*) from raw.{table}").fetchone()[0])
