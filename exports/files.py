"""A version as files: Parquet per surface, a read-only DuckDB snapshot, and a manifest.

Belongs here: everything below the published folder. Does not belong here: what a version contains
(`versions.py`) and when it goes live (`publish.py`).

    published/versions/<version>/recommendations.parquet ... products.parquet
    published/versions/<version>/recmart.duckdb      schema serving, for analysts and applications
    published/versions/<version>/manifest.json       written last: row counts, sizes, SHA-256
    published/current.duckdb -> versions/<version>/recmart.duckdb

A folder is filled under a name that starts with a dot and renamed when complete, so a version's
folder either is whole or does not exist; the link is switched by one rename. Readers that have the
old snapshot open keep reading it.

Parquet is byte-identical for equal content (the rows are sorted by their grain). The snapshot is
not: DuckDB files carry the run and the time of the version. It has no index: rows sorted by id are
found by the minimum and maximum of each row group (4 million rows: 4 ms a look-up and 75 MB; with
an index on user_id 7 ms, 140 MB and twice the time to build).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import duckdb
import pyarrow as pa

from exports import pseudonyms
from exports.errors import PublishError
from exports.versions import (
    SURFACES,
    Fingerprint,
    Version,
    fingerprint,
    order_sql,
    staged_fingerprints,
)
from ml_assets.warehouse import path_literal

SNAPSHOT = "recmart.duckdb"
MANIFEST = "manifest.json"
CURRENT = "current.duckdb"

# A sixth smaller than with groups of 122,880 rows, in the same time. Readers use a thread a group.
_ROWS_PER_GROUP = 491_520

# Left out of the snapshot's serving.versions, because they change after the file is finished.
_CHANGING_COLUMNS = "state, reason, live_at, removed_at"


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says about a version's folder.

    n_rows and content_hashes are by surface, n_bytes and sha256 by file name.
    """

    version: str
    as_of: str
    content_hash: str
    n_rows: dict[str, int]
    content_hashes: dict[str, str]
    n_bytes: dict[str, int]
    sha256: dict[str, str]


def write_version_files(
    connection: duckdb.DuckDBPyConnection, version: Version, published_dir: Path
) -> Manifest:
    """Write the Parquet files, the snapshot and the manifest of a version.

    A folder that is there and agrees with its manifest is kept as it is; a damaged one is replaced
    file by file, under readers too. Leftovers of killed runs are removed. Nothing is live yet: see
    switch_snapshot.

    Raises:
        PublishError: if the folder cannot be written, or what was written does not hash like the
            version's rows.
    """
    final = version_dir(published_dir, version.version)
    try:
        manifest = verify_version_files(published_dir, version.version, contents=True)
        # Another one after users were erased from the version.
        if manifest.content_hash == version.content_hash:
            return manifest
    except PublishError:
        pass
    building = final.with_name(f".building-{version.version}-{uuid4().hex[:8]}")
    try:
        _remove_leftovers(final.parent)
        building.mkdir(parents=True)
        rows_of = _sorted_rows(connection, version)
        # Beside each other: the Parquet writer has one thread.
        with connection.cursor() as own, ThreadPoolExecutor(1) as beside:
            snapshot = beside.submit(_write_snapshot, own, version, rows_of, building / SNAPSHOT)
            _write_parquet(connection, version, rows_of, building)
            snapshot.result()
        manifest = _write_manifest(connection, version, building)
        _put_in_place(building, final)
    except (duckdb.IOException, OSError) as error:
        raise PublishError(
            f"The files of version {version.version} could not be written to {final}: "
            f"{str(error).splitlines()[0]}. Free space there or correct its permissions and run "
            "again; the last published version stays live."
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return manifest


def verify_version_files(published_dir: Path, version: str, *, contents: bool) -> Manifest:
    """Check that a version's folder is whole: every file is there with the size in the manifest.

    Args:
        published_dir: The published folder.
        version: The version's id.
        contents: Read every file and compare its SHA-256 too (a second per gigabyte).

    Raises:
        PublishError: naming the first file that is missing or differs.
    """
    folder = version_dir(published_dir, version)
    try:
        manifest = Manifest(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise PublishError(
            f"{folder / MANIFEST} cannot be read ({error}), so the files of version {version} are "
            "not complete. Run again: they are written again."
        ) from error
    if manifest.version != version:
        raise PublishError(
            f"{folder / MANIFEST} belongs to version {manifest.version}, expected {version}. "
            "Give the folder its own name back or delete it."
        )
    for name, n_bytes in manifest.n_bytes.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != n_bytes or (contents and _sha256(path) != manifest.sha256[name]):
            state = "is missing" if found is None else "is not what was written"
            raise PublishError(
                f"{path} {state}: its manifest says {n_bytes} bytes with SHA-256 "
                f"{manifest.sha256[name]}. Run again: the files are written again."
            )
    return manifest


def switch_snapshot(published_dir: Path, version: str) -> None:
    """Let current.duckdb lead to a version. One rename: readers see the old or the new one.

    Raises:
        PublishError: if the version's files are not complete. The link stays as it was.
    """
    verify_version_files(published_dir, version, contents=False)
    if current_snapshot(published_dir) == version:
        return
    # Relative, so that the published folder can be moved or mounted elsewhere.
    target = version_dir(Path(), version) / SNAPSHOT
    link = published_dir / f".{CURRENT}.{uuid4().hex[:8]}"
    try:
        link.symlink_to(target)
        link.replace(published_dir / CURRENT)
        _sync(published_dir)
    except OSError as error:
        link.unlink(missing_ok=True)
        raise PublishError(
            f"{published_dir / CURRENT} could not be switched to version {version}: {error}. "
            "Correct the folder's permissions and run again."
        ) from error


def current_snapshot(published_dir: Path) -> str | None:
    """The version that current.duckdb leads to, None when there is no link."""
    link = published_dir / CURRENT
    return link.readlink().parent.name if link.is_symlink() else None


def remove_version_files(published_dir: Path, *, keep: Collection[str]) -> list[str]:
    """Delete the folders of all versions but those to keep and the one current.duckdb leads to."""
    versions_dir = version_dir(published_dir, "x").parent
    _remove_leftovers(versions_dir)
    for link in published_dir.glob(f".{CURRENT}.*"):
        link.unlink(missing_ok=True)
    removed = []
    for folder in sorted(versions_dir.iterdir()) if versions_dir.is_dir() else []:
        if folder.name in keep or folder.name == current_snapshot(published_dir):
            continue
        # Renamed first: a kill while deleting must not leave half a folder under a version's name.
        doomed = folder.with_name(f".removing-{folder.name}-{uuid4().hex[:8]}")
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
        removed.append(folder.name)
    return removed


def version_dir(published_dir: Path, version: str) -> Path:
    """The folder of a version's files."""
    return published_dir / "versions" / version


def _sorted_rows(connection: duckdb.DuckDBPyConnection, version: Version) -> dict[str, str]:
    """By surface the select of the version's rows, sorted by their grain."""
    rows_of = {}
    for surface in SURFACES:
        rows = f"select {surface.column_list} from serving.{surface.name} where version = $version"
        order = order_sql(connection, surface, rows, version=version.version)
        rows_of[surface.name] = f"{rows} {order}"
    return rows_of


def _write_snapshot(
    connection: duckdb.DuckDBPyConnection, version: Version, rows_of: dict[str, str], path: Path
) -> None:
    with _attached(connection, path) as (cursor, snapshot):
        cursor.execute(f"create schema {snapshot}.serving")
        cursor.execute(
            f"create table {snapshot}.serving.versions as "
            f"select * exclude ({_CHANGING_COLUMNS}) from serving.versions "
            "where version = $version",
            {"version": version.version},
        )
        for surface in SURFACES:
            cursor.execute(
                f"create table {snapshot}.serving.{surface.name} as {rows_of[surface.name]}",
                {"version": version.version},
            )
        _require_fingerprints(
            connection,
            version,
            [
                fingerprint(cursor, surface, f"{snapshot}.serving.{surface.name}")
                for surface in SURFACES
            ],
            path,
        )
        # Without the name it is attached under, which a view would remember.
        cursor.execute(f"use {snapshot}")
        for surface in SURFACES:
            cursor.execute(
                f"create view serving.current_{surface.name} as select *, "
                "(select version from serving.versions) as version "
                f"from serving.{surface.name}"
            )
        if version.pseudonym_check is not None:
            pseudonyms.create_macro(cursor)
    if path.with_name(f"{path.name}.wal").exists():
        raise PublishError(
            f"{path} still has a write-ahead log after its checkpoint, so a copy of it would lack "
            "rows. Run again; if it stays, report it with your DuckDB version."
        )


def _write_parquet(
    connection: duckdb.DuckDBPyConnection, version: Version, rows_of: dict[str, str], folder: Path
) -> None:
    # Imported here: readers of this module's other functions need no Parquet.
    import pyarrow.parquet

    with connection.cursor() as cursor:
        for surface in SURFACES:
            # Arrow's writer takes half the time of DuckDB's COPY and makes smaller files.
            batches = cursor.sql(
                rows_of[surface.name], params={"version": version.version}
            ).to_arrow_reader(_ROWS_PER_GROUP)
            path = folder / f"{surface.name}.parquet"
            with pyarrow.parquet.ParquetWriter(
                path,
                batches.schema,
                compression="zstd",
                version="2.6",
                # Scores hardly repeat: a dictionary of them costs a fifth of the time, for nothing.
                use_dictionary=[
                    field.name for field in batches.schema if pa.types.is_string(field.type)
                ],
            ) as file:
                for group in _in_groups(batches):
                    file.write_table(group, row_group_size=_ROWS_PER_GROUP)
        _require_fingerprints(
            connection,
            version,
            [
                fingerprint(
                    cursor,
                    surface,
                    f"read_parquet({path_literal(folder / f'{surface.name}.parquet')})",
                )
                for surface in SURFACES
            ],
            folder,
        )


def _in_groups(batches: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """The rows in tables of equal size, each in one piece: equal bytes wherever batches end."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        while sum(each.num_rows for each in waiting) >= _ROWS_PER_GROUP:
            rows = pa.Table.from_batches(waiting)
            yield rows.slice(0, _ROWS_PER_GROUP).combine_chunks()
            waiting = rows.slice(_ROWS_PER_GROUP).to_batches()
    if waiting:
        yield pa.Table.from_batches(waiting).combine_chunks()


def _require_fingerprints(
    connection: duckdb.DuckDBPyConnection,
    version: Version,
    found: list[Fingerprint],
    path: Path,
) -> None:
    expected = staged_fingerprints(connection, version.version)
    if found != expected:
        differing = [each.surface for each in found if each not in expected]
        raise PublishError(
            f"{path} does not hold what version {version.version} was staged with; "
            f"{', '.join(differing)} differ. The files are not published. Stage the version again."
        )


def _write_manifest(
    connection: duckdb.DuckDBPyConnection, version: Version, folder: Path
) -> Manifest:
    staged = staged_fingerprints(connection, version.version)
    names = sorted(path.name for path in folder.iterdir())
    manifest = Manifest(
        version=version.version,
        as_of=version.as_of.isoformat(),
        content_hash=version.content_hash,
        n_rows={each.surface: each.n_rows for each in staged},
        content_hashes={each.surface: each.content_hash for each in staged},
        n_bytes={name: (folder / name).stat().st_size for name in names},
        sha256={name: _sha256(folder / name) for name in names},
    )
    path = folder / MANIFEST
    path.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    for name in (*names, MANIFEST):
        # A client that opens the snapshot for writing would lock all others out. Who may read it
        # is what the process decided for new files.
        (folder / name).chmod((folder / name).stat().st_mode & 0o444)
        _sync(folder / name)
    _sync(folder)
    return manifest


def _put_in_place(building: Path, final: Path) -> None:
    if final.exists():
        # A damaged folder, or one that holds a user who was erased; readers may have it open. Both
        # hold the same version, so replacing file by file, manifest last, shows no reader another.
        for path in sorted(building.iterdir(), key=lambda path: path.name == MANIFEST):
            path.replace(final / path.name)
        _sync(final)
    else:
        building.rename(final)
    _sync(final.parent)


def _remove_leftovers(versions_dir: Path) -> None:
    for folder in versions_dir.glob(".*-*"):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _attached(
    connection: duckdb.DuckDBPyConnection, path: Path
) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
    name = f"snapshot_{uuid4().hex}"
    with connection.cursor() as cursor:
        ((warehouse,),) = cursor.execute("select current_database()").fetchall()
        # The format of 1.4: older clients of analysts cannot open 2.0 files, newer ones open both.
        cursor.execute(f"attach {path_literal(path)} as {name} (storage_version 'v1.4.0')")
        try:
            yield cursor, name
            cursor.execute(f"checkpoint {name}")
        finally:
            cursor.execute(f'use "{warehouse}"')
            cursor.execute(f"detach {name}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    # Before a rename makes it visible: after a power cut the name must not lead to empty blocks.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
