"""Where things are: what the environment says of the line.

Does not belong here: what programs beside the line ask it for themselves (`exports/reader.py`,
`exports/redis_server.py`), and what is Dagster's or dbt's own.
"""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import duckdb

from exports.errors import SettingError, check_redis_address
from exports.home import REPOSITORY, home_of_line
from exports.pseudonyms import key_from
from ml_assets.warehouse import Warehouse

DBT_PROJECT_DIR = REPOSITORY / "dbt_project"
# The environment's own dbt, whether or not it was activated; and the one of `parsed_dbt.py`.
DBT = Path(sys.executable).with_name("dbt")
PARSED_DBT = DBT.with_name("recmart-dbt")
EVENT_WEIGHTS = DBT_PROJECT_DIR / "seeds" / "event_weights.csv"
DRIFT_LIMITS = DBT_PROJECT_DIR / "seeds" / "drift_limits.csv"
# Where a shop's settings stand, beside those of a run.
CONFIG_FILES = (
    EVENT_WEIGHTS,
    DBT_PROJECT_DIR / "seeds" / "merchandising_rules.csv",
    DBT_PROJECT_DIR / "dbt_project.yml",
)


@dataclass(frozen=True)
class Settings:
    """The places a run reads and writes.

    Attributes:
        home: `RECMART_HOME`: the warehouse, what is published, the run history.
        data: `RECMART_DATA`: the landing folder.
        memory_limit: `RECMART_MEMORY_LIMIT`: of DuckDB, in its notation.
        redis_url: `REDIS_URL`: a server, `embedded` for one started on demand, `off` for none.
        alert_url: `RECMART_ALERT_URL`: a webhook that is told of failures; empty for none.
        redis_retry_seconds: How long to wait before a Redis that does not answer is asked again.
        pseudonym_key: `RECMART_PSEUDONYM_KEY`, or the content of the file that
            `RECMART_PSEUDONYM_KEY_FILE` names; None for clear ids.
    """

    home: Path
    data: Path
    memory_limit: str
    redis_url: str
    # It may hold a token: shown nowhere.
    alert_url: str = field(default="", repr=False)
    redis_retry_seconds: float = 20.0
    # Never shown: whoever has it and a list of customers can tell who is who.
    pseudonym_key: str | None = field(default=None, repr=False)

    @property
    def warehouse(self) -> Warehouse:
        """The build file, the pipeline's alone."""
        return Warehouse(self.home / "warehouse.duckdb", self.memory_limit)

    @property
    def published(self) -> Path:
        """What readers open."""
        return self.home / "published"


def from_environment() -> Settings:
    """The settings of this process, with the documented defaults.

    Raises:
        PseudonymError: if the key of pseudonyms cannot be used.
        SettingError: if another value cannot be: now, and not after hours of work.
    """
    memory_limit = os.environ.get("RECMART_MEMORY_LIMIT") or "4GB"
    try:
        duckdb.connect(config={"memory_limit": memory_limit}).close()
    except duckdb.Error:
        raise SettingError(
            f"RECMART_MEMORY_LIMIT is {memory_limit}: expected is a number with a unit, such as "
            "4GB or 512MiB, or a share of the machine's memory, such as 50%."
        ) from None
    redis_url = os.environ.get("REDIS_URL") or "embedded"
    if redis_url not in {"embedded", "off"}:
        try:
            check_redis_address(redis_url)
        except ValueError as error:
            raise SettingError(
                f"REDIS_URL cannot be used: {error}; or the word embedded for a server of the "
                "line's own, or off for none."
            ) from None
    return Settings(
        home=home_of_line(),
        data=Path(
            os.environ.get("RECMART_DATA") or REPOSITORY / "data" / "online_retail"
        ).resolve(),
        memory_limit=memory_limit,
        redis_url=redis_url,
        alert_url=os.environ.get("RECMART_ALERT_URL") or "",
        pseudonym_key=key_from(os.environ),
    )


def code_version() -> str:
    """The release, and the commit where the code is a checkout."""
    release = version("recmart")
    try:
        commit = subprocess.run(
            ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return release
    return f"{release}+{commit}"
