"""Running the whole line, or a part of it, on a folder of files made by a test."""

import shutil
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import redis

from exports.redis_server import EmbeddedRedis
from orchestration.definitions import build_definitions
from orchestration.failures import sentences
from orchestration.landing.synthetic_shop import write_shop
from orchestration.settings import Settings


@dataclass
class Line:
    """One shop: its landing folder and its home."""

    settings: Settings

    def run(
        self,
        selection: dg.AssetSelection | None = None,
        job_name: str = "daily_recommendations",
        has_gates: bool = True,
        **config,
    ) -> dg.ExecuteInProcessResult:
        """A job, or only the selected assets; without gates no check and no test of dbt runs."""
        definitions = build_definitions(self.settings)
        job = definitions.resolve_job_def(job_name)
        keys = selection and selection.resolve(definitions.resolve_asset_graph())
        if not has_gates:
            job = job.get_subset(asset_selection=keys, asset_check_selection=set())
            keys = None
        history = self.settings.home / "dagster"
        # A history in files where somebody made the folder, else in memory.
        with (
            dg.DagsterInstance.local_temp(str(history))
            if history.is_dir()
            else dg.DagsterInstance.ephemeral()
        ) as instance:
            return job.execute_in_process(
                instance=instance,
                raise_on_error=False,
                asset_selection=keys and list(keys),
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


def write_small_shop(folder: Path, **settings: Any) -> None:
    """A shop whose line runs in seconds; settings of `write_shop` that are to be others."""
    write_shop(
        folder,
        **{
            "n_users": 60,
            "n_products": 40,
            "n_events": 3_000,
            "n_days": 60,
            "start": date(2024, 1, 1),
            "seed": 3,
            "file_format": "csv",
            "dirt": {},
            **settings,
        },
    )


def copy_of(line: Line, folder: Path) -> Line:
    """The same files and what was built of them, to be changed."""
    shutil.copytree(line.settings.data, folder / "shop")
    shutil.copytree(line.settings.home, folder / "home")
    return line_in(folder)


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


def redis_url(line: Line) -> str:
    """The line's embedded Redis, started if need be."""
    return EmbeddedRedis(line.settings.home).start()


def places_with(line: Line, *texts: str) -> list[str]:
    """Files of the home, and Redis, that hold one of the texts."""
    wanted = [text.encode() for text in texts]
    found = [
        str(path.relative_to(line.settings.home))
        for path in sorted(line.settings.home.rglob("*"))
        if path.is_file()
        and not path.is_symlink()
        and any(text in content for content in [path.read_bytes()] for text in wanted)
    ]
    in_redis = _everything_in_redis(line)
    return found + ["Redis"] * any(text in in_redis for text in wanted)


def _everything_in_redis(line: Line) -> bytes:
    with redis.Redis.from_url(redis_url(line)) as client:
        return b"".join(client.dump(key) or b"" for key in client.scan_iter()) + b"".join(
            field + value
            for key in client.scan_iter("recmart:*")
            if client.type(key) == b"hash"
            for field, value in client.hgetall(key).items()
        )


def why_it_failed(result: dg.ExecuteInProcessResult) -> str:
    """The sentences that the person who started the run reads."""
    assert not result.success
    return "\n".join(sentences(result.all_events))
