"""What a run leaves behind holds no password, and nobody but owner and group can read it.

The real command in a process of its own, against a real Redis with a password.
"""

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
import redis
from lines import write_files

from exports.redis_server import EmbeddedRedis

REPOSITORY = Path(__file__).resolve().parents[1]
PASSWORD = "correct-horse-battery"
WRONG = "wrong-horse-battery"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    embedded = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    url = embedded.start()
    with redis.Redis.from_url(url) as client:
        client.execute_command(
            "ACL", "SETUSER", "shop", "on", f">{PASSWORD}", "~recmart:*", "+@all"
        )
    yield url
    embedded.stop()


@pytest.fixture(scope="module")
def home(tmp_path_factory, server) -> Iterator[Path]:
    """A home that two runs left, the first with a wrong password; and what they said."""
    folder = tmp_path_factory.mktemp("shop")
    write_files(
        folder / "data",
        events__a_csv="user_id,product_id,event_type,event_ts\nu,p,view,2024-01-01\n",
        products__a_csv="product_id,title\np,lamp\n",
    )
    began = time.time()
    # The whole line, and once more what meets Redis.
    serving = ["-m", "dagster", "asset", "materialize", "--select", "group:serving"]
    for password, command in (
        (WRONG, ["-m", "orchestration.demo"]),
        (PASSWORD, [*serving, "-m", "orchestration.definitions"]),
    ):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "RECMART_HOME": str(folder / "home"),
                "DAGSTER_HOME": str(folder / "home" / "dagster"),
                "RECMART_DATA": str(folder / "data"),
                "RECMART_ALERT_URL": f"https://hooks.example/{password}",
                "REDIS_URL": server.replace("redis://", f"redis://shop:{password}@"),
            },
            capture_output=True,
            text=True,
            umask=0o022,
        )
        (folder / f"said by {done.returncode}").write_text(done.stdout + done.stderr)
    # What dbt compiled and logged is outside the home.
    (folder / "began").write_text(str(began))
    yield folder / "home"


def test_no_password_is_in_anything_that_a_run_writes(home):
    began = float((home.parent / "began").read_text())
    dbt = REPOSITORY / "dbt_project"
    written = [path for path in home.parent.rglob("*") if path.is_file()]
    compiled = [
        path
        for folder in (home / "dbt", dbt / "target", dbt / "logs", REPOSITORY / "logs")
        for path in folder.rglob("*")
        if path.is_file() and path.stat().st_mtime >= began
    ]

    holding = [
        str(path)
        for path in [*written, *compiled]
        if any(word.encode() in path.read_bytes() for word in (PASSWORD, WRONG))
    ]

    assert holding == []
    # The search saw what it has to see.
    names = {path.name for path in written}
    assert {"warehouse.duckdb", "dagster.yaml", "current.duckdb"} <= names
    assert any(path.suffix == ".db" and "dagster" in path.parts for path in written)
    assert any(path.suffix == ".sql" for path in compiled)


def test_a_run_with_a_wrong_password_says_so(home):
    said = (home.parent / "said by 1").read_text()

    assert "User or password is wrong: correct them in REDIS_URL" in said
    assert "redis://127.0.0.1:" in said and "Traceback" not in said
    assert "RUN_SUCCESS" in (home.parent / "said by 0").read_text()


def test_only_owner_and_group_can_read_what_a_run_writes(home):
    open_to_others = [
        str(path)
        for path in [home, *home.rglob("*")]
        if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o027
    ]

    assert open_to_others == []
    # Readers may be another user of the group.
    assert stat.S_IMODE((home / "warehouse.duckdb").stat().st_mode) == 0o640
    snapshot = (home / "published" / "current.duckdb").resolve()
    assert stat.S_IMODE(snapshot.stat().st_mode) == 0o440


def test_the_interface_listens_on_this_machine_alone():
    recipe = subprocess.run(
        ["make", "--dry-run", "ui"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout

    assert "dagster dev --host 127.0.0.1" in recipe


def test_the_installed_duckdb_writes_no_encrypted_files_as_the_page_on_security_says(tmp_path):
    with (
        duckdb.connect() as connection,
        pytest.raises(duckdb.Error, match="read-only crypto module"),
    ):
        connection.execute(f"attach '{tmp_path / 'a.duckdb'}' (encryption_key 'k')")
