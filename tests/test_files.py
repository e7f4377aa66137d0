"""A version as files: whole or not there, byte-identical Parquet, one link that switches."""

import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from publishing_for_tests import NOW, STRANGE_IDS, make_shop, open_warehouse, stage

from exports import files, versions
from exports.errors import PublishError


@pytest.fixture
def warehouse():
    with duckdb.connect() as connection:
        make_shop(connection)
        yield connection


@pytest.fixture
def published(tmp_path):
    # A blank and a quote: the path goes into SQL as text.
    return tmp_path / "it's published"


def write(warehouse, published, taste=0, **settings):
    make_shop(warehouse, taste=taste)
    version = stage(warehouse, **settings)
    files.write_version_files(warehouse, version, published)
    return version


def folder_of(published, version):
    return files.version_dir(published, version.version)


def parquet_bytes(published, version):
    return {
        path.name: path.read_bytes() for path in folder_of(published, version).glob("*.parquet")
    }


def test_a_versions_folder_holds_parquet_snapshot_and_manifest(warehouse, published):
    version = write(warehouse, published)

    names = {path.name for path in folder_of(published, version).iterdir()}
    assert names == {
        "recommendations.parquet",
        "similar_products.parquet",
        "bought_together.parquet",
        "viewed_together.parquet",
        "buy_again.parquet",
        "anchors.parquet",
        "bought.parquet",
        "on_sale.parquet",
        "popular.parquet",
        "products.parquet",
        "recmart.duckdb",
        "manifest.json",
    }
    assert [path.name for path in published.iterdir()] == ["versions"]


def test_the_manifest_counts_rows_and_describes_every_file(warehouse, published):
    version = write(warehouse, published)

    manifest = files.verify_version_files(published, version.version, contents=True)

    assert manifest.as_of == "2011-12-09"
    assert manifest.content_hash == version.content_hash
    assert sum(manifest.n_rows.values()) == version.n_rows
    assert set(manifest.sha256) == set(manifest.n_bytes) == {
        *(f"{surface.name}.parquet" for surface in versions.SURFACES),
        "recmart.duckdb",
    }  # fmt: skip


def test_equal_content_gives_equal_bytes_whatever_the_order_of_rows(warehouse, published, tmp_path):
    first = parquet_bytes(published, write(warehouse, published))

    with duckdb.connect() as other:
        make_shop(other)
        version = stage(other, run_id="run-2", created_at=datetime(2012, 1, 1))
        other.execute(
            "create or replace table serving.recommendations as "
            "select * from serving.recommendations order by score, user_id desc; "
            "set threads = 1; set preserve_insertion_order = false"
        )
        files.write_version_files(other, version, tmp_path / "other")

    assert parquet_bytes(tmp_path / "other", version) == first


def test_equal_content_gives_equal_bytes_wherever_batches_of_rows_end(monkeypatch):
    monkeypatch.setattr(files, "_ROWS_PER_GROUP", 4)
    column = pa.array(range(11))

    def groups(rows_per_batch):
        batches = pa.table({"n": column}).to_batches(rows_per_batch)
        reader = pa.RecordBatchReader.from_batches(batches[0].schema, batches)
        return [table.column("n").chunks for table in files._in_groups(reader)]

    assert groups(1) == groups(3) == groups(11) == [[column[:4]], [column[4:8]], [column[8:]]]


def test_nobody_can_open_the_snapshot_for_writing_by_mistake(warehouse, published):
    version = write(warehouse, published)

    for path in folder_of(published, version).iterdir():
        assert path.stat().st_mode & 0o222 == 0


def test_the_parquet_files_are_ordered_by_user_and_rank(warehouse, published):
    version = write(warehouse, published)

    path = folder_of(published, version) / "recommendations.parquet"
    rows = duckdb.sql(f"select user_id, rank from read_parquet($${path}$$)").fetchall()
    assert rows == sorted(rows)


def test_the_snapshot_has_the_served_tables_and_the_views_of_the_warehouse(warehouse, published):
    version = write(warehouse, published)
    versions.mark_live(warehouse, version.version, run_id="run-1", happened_at=NOW)

    path = folder_of(published, version) / "recmart.duckdb"
    with duckdb.connect(str(path), read_only=True) as snapshot:
        for surface in versions.SURFACES:
            rows = snapshot.sql(f"from serving.{surface.name} order by all").fetchall()
            current = snapshot.sql(f"from serving.current_{surface.name} order by all").fetchall()
            served = warehouse.sql(f"from serving.current_{surface.name} order by all").fetchall()
            assert current == served
            assert rows == [row[:-1] for row in served]
        assert snapshot.sql("select version, run_id from serving.versions").fetchall() == [
            (version.version, "run-1")
        ]


def test_the_snapshot_can_be_opened_by_older_clients(warehouse, published):
    version = write(warehouse, published)

    with duckdb.connect() as connection:
        path = folder_of(published, version) / "recmart.duckdb"
        connection.execute(f"attach $${path}$$ as snapshot (read_only)")
        ((tags,),) = connection.sql(
            "select tags from duckdb_databases() where database_name = 'snapshot'"
        ).fetchall()
    assert tags["storage_version"].startswith("v1.4")


def test_ids_of_any_characters_come_back_as_they_were(warehouse, published):
    make_shop(warehouse, users=STRANGE_IDS)
    version = stage(warehouse)
    files.write_version_files(warehouse, version, published)

    path = folder_of(published, version) / "recommendations.parquet"
    users = duckdb.sql(f"select distinct user_id from read_parquet($${path}$$)").fetchall()
    assert {user for (user,) in users} == set(STRANGE_IDS)


def test_files_that_are_whole_are_not_written_again(warehouse, published):
    version = write(warehouse, published)
    before = (folder_of(published, version) / "recmart.duckdb").stat().st_ino

    files.write_version_files(warehouse, version, published)

    assert (folder_of(published, version) / "recmart.duckdb").stat().st_ino == before


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("popular.parquet", "gone"),
        ("recmart.duckdb", "flipped"),
        ("manifest.json", "cut"),
    ],
)
def test_a_damaged_file_is_noticed_and_repaired_under_the_link(warehouse, published, name, damage):
    version = write(warehouse, published)
    files.switch_snapshot(published, version.version)
    path = folder_of(published, version) / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.chmod(0o644)
        flipped = bytes(255 - byte for byte in content[-7:])
        path.write_bytes(content[:-7] if damage == "cut" else content[:-7] + flipped)

    with pytest.raises(PublishError, match="written again"):
        files.verify_version_files(published, version.version, contents=True)
    files.write_version_files(warehouse, version, published)

    files.verify_version_files(published, version.version, contents=True)
    assert (published / "current.duckdb").resolve().is_file()


def test_a_folder_under_another_versions_name_is_refused(warehouse, published):
    version = write(warehouse, published)
    shutil.copytree(folder_of(published, version), published / "versions" / "20200101T000000-abc")

    with pytest.raises(PublishError, match=f"belongs to version {version.version}"):
        files.switch_snapshot(published, "20200101T000000-abc")


def test_rows_that_changed_after_staging_are_not_published(warehouse, published):
    version = stage(warehouse)
    warehouse.execute("delete from serving.popular where segment = 'UK'")

    with pytest.raises(PublishError, match="was staged with; popular differ"):
        files.write_version_files(warehouse, version, published)

    assert list((published / "versions").iterdir()) == []


def test_the_link_leads_to_the_version_and_survives_moving_the_folder(
    warehouse, published, tmp_path
):
    version = write(warehouse, published)
    files.switch_snapshot(published, version.version)
    published.rename(tmp_path / "moved")

    assert files.current_snapshot(tmp_path / "moved") == version.version
    with duckdb.connect(str(tmp_path / "moved" / "current.duckdb"), read_only=True) as snapshot:
        assert snapshot.sql("select version from serving.versions").fetchall() == [
            (version.version,)
        ]


def test_a_version_without_files_does_not_get_the_link(warehouse, published):
    live = write(warehouse, published)
    files.switch_snapshot(published, live.version)
    other = write(warehouse, published, taste=1)
    (folder_of(published, other) / "products.parquet").unlink()

    with pytest.raises(PublishError, match=r"products\.parquet is missing"):
        files.switch_snapshot(published, other.version)

    assert files.current_snapshot(published) == live.version


def test_a_link_that_cannot_be_switched_is_a_sentence(warehouse, published):
    version = write(warehouse, published)
    (published / "current.duckdb" / "in the way").mkdir(parents=True)

    with pytest.raises(PublishError, match=r"could not be switched to version .* permissions"):
        files.switch_snapshot(published, version.version)

    assert {path.name for path in published.iterdir()} == {"versions", "current.duckdb"}


def test_an_open_reader_keeps_its_version_and_a_new_process_gets_the_new_one(warehouse, published):
    first = write(warehouse, published)
    files.switch_snapshot(published, first.version)
    question = "select version from serving.versions"
    with duckdb.connect(str((published / "current.duckdb").resolve()), read_only=True) as reader:
        second = write(warehouse, published, taste=1)
        files.switch_snapshot(published, second.version)
        files.remove_version_files(published, keep=[second.version])

        assert reader.sql(question).fetchall() == [(first.version,)]
    with duckdb.connect(str(published / "current.duckdb"), read_only=True) as reader:
        assert reader.sql(question).fetchall() == [(second.version,)]


def test_old_folders_and_leftovers_of_killed_runs_are_removed(warehouse, published):
    old, kept, live = (write(warehouse, published, taste=taste) for taste in range(3))
    files.switch_snapshot(published, live.version)
    (published / "versions" / f".building-{old.version}-00ff00ff").mkdir()
    (published / "versions" / f".removing-{old.version}-00ff00ff").mkdir()
    (published / ".current.duckdb.00ff00ff").symlink_to("nowhere")

    removed = files.remove_version_files(published, keep=[kept.version])

    assert removed == [old.version]
    assert {path.name for path in (published / "versions").iterdir()} == {
        kept.version,
        live.version,
    }
    assert {path.name for path in published.iterdir()} == {"versions", "current.duckdb"}


def test_removing_from_a_folder_that_is_not_there_does_nothing(published):
    assert files.remove_version_files(published, keep=[]) == []
    assert files.current_snapshot(published) is None


def test_a_folder_that_cannot_be_written_is_a_sentence(warehouse, published):
    published.write_text("a file where the folder should be")

    with pytest.raises(PublishError, match=r"could not be written to .* Free space there or"):
        files.write_version_files(warehouse, stage(warehouse), published)


WRITE_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from publishing_for_tests import open_warehouse
from exports import files, versions
from exports.errors import PublishError

home = Path(sys.argv[1])
with open_warehouse(home) as warehouse:
    version = versions.staged_version(warehouse)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, 1 << 17))
    try:
        files.write_version_files(warehouse, version, home / "published")
    except PublishError as error:
        print(error)
"""


def test_a_full_disk_is_a_sentence_and_leaves_no_folder(tmp_path):
    published = tmp_path / "published"
    with open_warehouse(tmp_path) as warehouse:
        live = write(warehouse, published)
        files.switch_snapshot(published, live.version)
        make_shop(warehouse, users=tuple(f"user {n}" for n in range(2000)), n_items=8)
        warehouse.execute("update ml.recommendations set reason = uuid()::varchar")
        stage(warehouse)

    run = subprocess.run(
        [sys.executable, "-c", WRITE_ON_A_FULL_DISK, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert "Free space there" in run.stdout, run.stderr
    assert [path.name for path in (published / "versions").iterdir()] == [live.version]
    files.verify_version_files(published, live.version, contents=True)
