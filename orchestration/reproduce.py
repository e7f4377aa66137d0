"""`make reproduce`: a version made again from its landing files, and compared row by row.

Nothing of the home or the landing folder is written: the line runs in a folder for temporary files
that is removed afterwards, without Redis, and on another number of threads than the version was
made on. See docs/reproduction.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import duckdb

from exports import versions
from exports.errors import PseudonymError, PublishError
from exports.home import keep_private
from exports.origins import (
    ADAPTER_ENTITY,
    REFRESH,
    WHOLE_LINE,
    Ingredient,
    InputFile,
    differing_files,
    differing_ingredients,
    files_of,
    files_on_disk,
    ingredients_now,
    origin_of,
    value_of,
)
from exports.versions import Version
from ml_assets.threads import n_threads
from ml_assets.warehouse import WarehouseBusyError, path_literal
from orchestration.processes import end_process
from orchestration.settings import (
    CONFIG_FILES,
    REPOSITORY,
    Settings,
    from_environment,
)

EQUAL, DIFFERS, REFUSED = 0, 1, 2


@dataclass(frozen=True)
class Step:
    """One version to make again: what it was made of, and from which files."""

    version: Version
    origin: list[Ingredient]
    files: list[InputFile]

    @property
    def is_refresh(self) -> bool:
        """Whether it has the models of an earlier one."""
        return self.made_by == REFRESH

    @property
    def made_by(self) -> str:
        """The job."""
        return str(value_of(self.origin, "run", "made_by"))

    @property
    def n_threads(self) -> int:
        """Cores that its run could use."""
        return int(value_of(self.origin, "run", "threads") or 1)

    @property
    def variables(self) -> dict[str, Any]:
        """Of dbt, but for as_of."""
        return {
            each.name: json.loads(each.value)
            for each in self.origin
            if each.kind == "variable" and each.name != "as_of"
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a version again; 0 if it is equal, 1 if not, 2 if it cannot be made again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", help="its id; the live one if left out")
    parser.add_argument("--threads", type=int, help="cores to use; another number if left out")
    parser.add_argument(
        "--anyway",
        action="store_true",
        help="even with other code, packages or settings, to see what they change",
    )
    parser.add_argument("--checked", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    keep_private()
    try:
        settings = from_environment()
        if chosen.checked:
            return rebuild(settings, read_steps(settings, chosen.version))
        return reproduce(settings, chosen.version, threads=chosen.threads, anyway=chosen.anyway)
    except (PublishError, PseudonymError) as error:
        print(error, file=sys.stderr)
        return REFUSED


def reproduce(
    settings: Settings, version_id: str | None, *, threads: int | None, anyway: bool
) -> int:
    """Make a version again and print what is equal and what is not.

    Args:
        settings: Of the home that keeps the version, and of the landing folder.
        version_id: None for the live version.
        threads: Cores to use; None for another number than the version was made on.
        anyway: Also with other code, packages or settings.

    Raises:
        PublishError: if it cannot be made again, saying why.
    """
    steps = read_steps(settings, version_id)
    wanted = steps[-1]
    print(
        f"Version {wanted.version.version}, as of {wanted.version.as_of}: made by "
        f"{wanted.made_by} with {wanted.version.code_version} from "
        f"{len(files_on_disk(wanted.files)):,} files, "
        f"on {_cores(wanted.n_threads)}."
    )
    for step in steps[:-1]:
        print(
            f"It has the models of version {step.version.version}, as of {step.version.as_of}: "
            "that one is made again first."
        )
    of_files = [
        sentence for step in steps for sentence in differing_files(step.files, settings.data)
    ]
    of_making = [sentence for step in steps for sentence in _other_making(step)]
    for sentence in dict.fromkeys([*of_making, *of_files]):
        print(f"- {sentence}")
    if of_files or (of_making and not anyway):
        more = "" if of_files else " ANYWAY=1 makes it again all the same, to see what they change."
        raise PublishError(
            f"Version {wanted.version.version} cannot be made again exactly: see above.{more}"
        )
    for note in _notes(settings, steps):
        print(f"- {note}")
    available = n_threads()
    n_cores = other_number(wanted.n_threads, available) if threads is None else threads
    if not hasattr(os, "sched_setaffinity"):
        # macOS gives a process all cores.
        n_cores = available
    if not 1 <= n_cores <= available:
        raise PublishError(f"THREADS is {n_cores}; expected is a number from 1 to {available}.")
    print(f"Making it again on {_cores(n_cores)}.", flush=True)
    # In a process of its own: Polars and BLAS count the cores when they are imported.
    with only_cores(n_cores):
        again = [sys.executable, "-m", "orchestration.reproduce", "--checked"]
        return subprocess.run([*again, "--version", wanted.version.version]).returncode


def _cores(n: int) -> str:
    return f"{n} thread{'s'[: n != 1]}"


def other_number(then: int, available: int) -> int:
    """All cores, or half of them if that is what the version was made on; of one core, one."""
    return available if available != then else max(1, available // 2)


@contextmanager
def only_cores(n: int) -> Iterator[None]:
    """Let programs that are started in the block use n of this process's cores.

    Polars, BLAS and our own threads take as many as there are cores to use, and DuckDB is told as
    many, so one setting counts for all.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    former = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(former)[:n])
    try:
        yield
    finally:
        os.sched_setaffinity(0, former)


def read_steps(settings: Settings, version_id: str | None) -> list[Step]:
    """The versions to make again, in order: the wanted one last, before it whose models it has.

    Raises:
        PublishError: if there is no such version, or it is not recorded what it was made from.
    """
    with _warehouse(settings) as connection:
        try:
            wanted = (
                versions.live_version(connection)
                if version_id is None
                else versions.get_version(connection, version_id)
            )
            if wanted is None:
                raise PublishError("No version is live. Name one: make reproduce VERSION=...")
            steps = [_read_step(connection, wanted)]
            if steps[0].is_refresh:
                steps.insert(0, _read_step(connection, _whose_models(connection, steps[0])))
        except (duckdb.CatalogException, duckdb.BinderException) as error:
            raise PublishError(
                f"{settings.warehouse.path} holds no versions of this release "
                f"({str(error).splitlines()[0]}). Run the line once: make demo."
            ) from error
    return steps


def _read_step(connection: duckdb.DuckDBPyConnection, version: Version) -> Step:
    origin = origin_of(connection, version.version)
    if not origin:
        raise PublishError(
            f"Version {version.version} was made before recmart recorded what versions are made "
            "from, so it cannot be made again. The next run makes one that can."
        )
    return Step(version, origin, files_of(connection, version.version))


def _whose_models(connection: duckdb.DuckDBPyConnection, step: Step) -> Version:
    refreshed = step.version
    found = connection.execute(
        """
        select version
        from serving.versions
        join serving.version_origins using (version)
        where kind = 'run' and name = 'made_by' and value = $whole_line
            and model_hash = $model_hash and created_at <= $created_at
            and (
                select value from serving.version_origins as learned
                where learned.version = versions.version and kind = 'learned' and name = 'pairs'
            ) is not distinct from $pairs
        order by created_at desc, version
        limit 1
        """,
        {
            "whole_line": WHOLE_LINE,
            "model_hash": refreshed.model_hash,
            "created_at": refreshed.created_at,
            "pairs": value_of(step.origin, "learned", "pairs"),
        },
    ).fetchall()
    if not found:
        raise PublishError(
            f"Version {refreshed.version} was made by {REFRESH} with models and pairs of an "
            f"earlier run, and no version of {WHOLE_LINE} has the same (model_hash "
            f"{refreshed.model_hash}): from which files they were learned is not recorded. Make "
            "another version again."
        )
    return versions.get_version(connection, found[0][0])


def _other_making(step: Step) -> list[str]:
    now = ingredients_now(
        made_by="", n_threads=0, variables={}, repository=REPOSITORY, config_files=CONFIG_FILES
    )
    return differing_ingredients(
        step.origin, now, version=step.version.version, code_then=step.version.code_version
    )


def _notes(settings: Settings, steps: Sequence[Step]) -> Iterator[str]:
    """What the reader of the comparison should know, although the version can be made again."""
    first, wanted = steps[0], steps[-1]
    with _warehouse(settings) as connection:
        ((n_erased,),) = connection.execute(
            "select count(*) from raw.erased_users where erased_at > $created_at",
            {"created_at": first.version.created_at},
        ).fetchall()
        later = connection.execute(
            "select count(*) from raw.landing_files where not starts_with(source_file, 'adapter')"
            " and source_file not in (select unnest($known::varchar[]))",
            {"known": [file.source_file for file in wanted.files]},
        ).fetchall()[0][0]
    if n_erased:
        who = "1 user was" if n_erased == 1 else f"{n_erased:,} users were"
        yield (
            f"{who} erased after it was made. Left out here too, but models and counts of then had "
            "learned from them: lists of others may differ."
        )
    if later:
        yield (
            "1 file was loaded after it was made: it is left out."
            if later == 1
            else f"{later:,} files were loaded after it was made: they are left out."
        )
    if wanted.made_by not in (WHOLE_LINE, REFRESH):
        yield (
            "It was made by a run of a part of the line: what that run found in the warehouse may "
            "be of other files or settings."
        )


def rebuild(settings: Settings, steps: Sequence[Step]) -> int:
    """Run the line for each step in a folder of its own, compare, and print what was found.

    Args:
        settings: Of the home that keeps the versions.
        steps: From `read_steps`; what they were made of has been looked at.

    Raises:
        PublishError: if the line fails.
    """
    # Imported here: they take seconds.
    import dagster as dg

    from exports.assets import POPULAR_DEPTH
    from exports.reproduction import as_table, compare
    from orchestration.backtests import run_as_of
    from orchestration.schedules import LEARNED

    published = dg.AssetSelection.assets(
        *(surface.source.split(".") for surface in versions.SURFACES)
    )
    whole = published.required_multi_asset_neighbors().upstream()
    is_equal = True
    with tempfile.TemporaryDirectory(prefix="recmart-reproduce-") as folder:
        scratch = replace(settings, home=Path(folder) / "home", redis_url="off")
        scratch.home.mkdir()
        with at_rest(settings):
            _keep_names_and_erasures(settings, scratch)
        landed: list[InputFile] = []
        for step in steps:
            for sentence in land_files(
                scratch, step.files, landed, Path(folder) / "landing", settings.data
            ):
                print(f"- {sentence}")
            landed = step.files
            try:
                run_as_of(
                    scratch,
                    whole - LEARNED if step.is_refresh else whole,
                    as_of=step.version.as_of,
                    variables=step.variables,
                    recommender=_recommender(step.version),
                )
            except dg.Failure as failure:
                raise PublishError(str(failure.description)) from None
            with scratch.warehouse.connect() as rebuilt, at_rest(settings):
                compared = compare(
                    rebuilt, settings.warehouse.path, step.version, popular_depth=POPULAR_DEPTH
                )
            print(f"\nVersion {step.version.version}:\n{as_table(compared)}")
            is_equal = is_equal and all(each.is_equal for each in compared)
    print("\nEverything is equal." if is_equal else "\nNot everything is equal.")
    return EQUAL if is_equal else DIFFERS


def _recommender(version: Version) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(version.settings or "{}")
    # What `RecommenderSettings.as_settings` adds; and tuned settings are among these already.
    found.pop("block_bytes", None)
    return {**found, "use_tuned": False}


def _keep_names_and_erasures(settings: Settings, scratch: Settings) -> None:
    with scratch.warehouse.connect() as connection:
        connection.execute(f"attach {path_literal(settings.warehouse.path)} as kept (read_only)")
        connection.execute("create schema raw")
        for table in ("erased_users", "erasure_key", "pseudonym_check"):
            connection.execute(f"create table raw.{table} as from kept.raw.{table}")
        connection.execute("detach kept")


def land_files(
    scratch: Settings,
    files: Sequence[InputFile],
    landed: Sequence[InputFile],
    folder: Path,
    archive: Path,
) -> list[str]:
    """Load files as they were loaded then: in the order in which they came, with their times.

    An event's time is in the future or not by when its file came, and of two files with the same
    bytes the one that was loaded first counts; what the version does not know is left out.

    Args:
        scratch: Where they are loaded.
        files: Of the version.
        landed: Of these, what is loaded already.
        folder: For links to the files, made anew for each of the former loads.
        archive: The landing folder.

    Returns:
        Sentences on files that are read otherwise than then.
    """
    from orchestration.landing.contract import LandingError
    from orchestration.landing.ingest import ingest_folder

    def order(file: InputFile) -> tuple[Any, ...]:
        return file.entity != ADAPTER_ENTITY and file.same_content_as is not None, file.received_at

    complaint = ""
    waiting = sorted((file for file in files if file not in landed), key=order)
    with scratch.warehouse.connect() as connection:
        for (_, received_at), together in groupby(waiting, key=order):
            shutil.rmtree(folder, ignore_errors=True)
            for entity in ("events", "products"):
                (folder / entity).mkdir(parents=True)
            for file in files_on_disk(list(together)):
                link = folder / file.source_file
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(archive / file.source_file)
            try:
                ingest_folder(
                    connection,
                    folder,
                    received_at=received_at,
                    progress=lambda _: None,
                    pseudonym_key=scratch.pseudonym_key,
                )
            except LandingError as error:
                # A shop's first files may have come without a catalogue, and that run ended so.
                complaint = error.discreet
            else:
                complaint = ""
        found = {
            row[0]: InputFile(*row)
            for row in connection.execute(
                "select source_file, entity, content_sha256, n_bytes, n_rows, n_malformed,"
                " received_at, same_content_as from raw.landing_files"
            ).fetchall()
        }
    if complaint:
        raise PublishError(complaint)
    return [
        f"{file.source_file} was read otherwise than then: it had {file.n_rows:,} rows and "
        f"{file.n_malformed:,} lines that are none."
        for file in files
        if file.entity != ADAPTER_ENTITY and found.get(file.source_file) != file
    ]


@contextmanager
def at_rest(settings: Settings) -> Iterator[None]:
    """Keep runs out while the block reads the warehouse, after waiting for one that is at work."""
    with ExitStack() as stack:
        is_told = False
        while True:
            try:
                stack.enter_context(settings.warehouse.held())
                break
            except WarehouseBusyError:
                if not is_told:
                    print("A run is working on the warehouse: waiting for its end.", flush=True)
                is_told = True
                time.sleep(1)
            except OSError:
                # Who may not write there cannot lock it; DuckDB says whether a run is at work.
                with _warehouse(settings):
                    break
        yield


@contextmanager
def _warehouse(settings: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    """The home's warehouse, for reading."""
    path = settings.warehouse.path
    try:
        connection = duckdb.connect(str(path), read_only=True)
    except duckdb.IOException as error:
        raise PublishError(
            f"{path} cannot be opened: {str(error).splitlines()[0]}. Set RECMART_HOME to the home "
            "of the version, and wait for a run that is working on it."
        ) from error
    try:
        yield connection
    finally:
        connection.close()


if __name__ == "__main__":
    end_process(main())
