"""Running the whole line, or a part of it, on a folder of files made by a test."""

from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import duckdb

from exports.redis_server import EmbeddedRedis
from orchestration.definitions import build_definitions
from orchestration.failures import sentences
from orchestration.settings import Settings


@dataclass
class Line:
    """One shop: its landing folder and its home."""

    settings: Settings

    def run(
        self,
        selection: dg.AssetSelection | None = None,
        job_name: str = "daily_recommendations",
        **config,
    ) -> dg.ExecuteInProcessResult:
        """A job, or only the selected assets."""
        job = build_definitions(self.settings).resolve_job_def(job_name)
        with dg.DagsterInstance.ephemeral() as instance:
            return job.execute_in_process(
                instance=instance,
                raise_on_error=False,
                asset_selection=selection
                and list(selection.resolve(build_definitions(self.settings).resolve_asset_graph())),
                run_config={"loggers": {"short": {}}, **config},
            )

    def query(self, sql: str) -> list[tuple]:
        """Ask the warehouse."""
        with self.settings.warehouse.connect() as connection:
            return connection.execute(sql).fetchall()

    def value(self, sql: str):
        """One value from the warehouse."""
        return self.query(sql)[0][0]

    def snapshot(self, sql: str) -> list[tuple]:
        """Ask what readers open."""
        path = self.settings.published / "current.duckdb"
        with duckdb.connect(str(path.resolve()), read_only=True) as connection:
            return connection.execute(sql).fetchall()

    def stop(self) -> None:
        """End the embedded Redis, if this line started one."""
        EmbeddedRedis(self.settings.home).stop()


def line_in(folder: Path, *, data: Path | None = None, redis_url: str = "off") -> Line:
    """A line with its home below `folder`; its landing folder too, unless given."""
    return Line(
        Settings(
            home=folder / "home",
            data=data or folder / "shop",
            memory_limit="2GB",
            redis_url=redis_url,
            redis_retry_seconds=0.05,
        )
    )


def write_files(folder: Path, **files: str | bytes) -> None:
    """`events__a_csv="..."` becomes events/a.csv."""
    for name, content in files.items():
        entity, file_name = name.split("__")
        stem, _, extension = file_name.rpartition("_")
        path = folder / entity / f"{stem}.{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def unexplained(line):
    """Published rows whose shares do not add up to the score, and how many there are in all."""
    return line.query(
        """
        with explained as (
            select user_id, product_id, sum(share) as score from ml.score_shares group by all
        )
        select
            count(*) filter (
                explained.score is null or abs(lists.score - explained.score) > 1e-5
            ),
            count(*)
        from ml.recommendations as lists
        left join explained using (user_id, product_id)
        """
    )[0]


def why_it_failed(result: dg.ExecuteInProcessResult) -> str:
    """The sentences that the person who started the run reads."""
    assert not result.success
    return "\n".join(sentences(result.all_events))
