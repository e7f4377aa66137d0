"""What a version was made from: enough to make it again, and to name what is another one since.

Belongs here: `serving.version_origins` and `serving.version_files`, and then held against now. Does
not belong here: making it again (`orchestration/reproduce.py`), comparing what came out
(`reproduction.py`).

    select name, value from serving.version_origins where version = '...' and kind = 'package'
    select source_file, content_sha256, n_bytes from serving.version_files where version = '...'

Kinds: `run` (by what and where it was made, which changes no row), `variable` (of dbt, given to the
run), `learned` (which counts of pairs of products were there), `code`, `package` and `config`, of
which the text is kept too. A file is there once it was loaded, as it was loaded last: whatever the
landing folder holds today, rows of the version come from these bytes. Of an adapter's shop the
files that adapter.sql reads are listed as well, with the entity `adapter`.
"""

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import datetime
from importlib import metadata
from pathlib import Path

import duckdb

from ml_assets.warehouse import table_hash

# Of another release of one of these, a row can be another one.
PACKAGES = (
    "dagster",
    "dagster-dbt",
    "dbt-core",
    "dbt-adapters",
    "dbt-duckdb",
    "duckdb",
    "implicit",
    "llvmlite",
    "numba",
    "numpy",
    "polars",
    "pyarrow",
    "scikit-learn",
    "scipy",
    "threadpoolctl",
)
_CODE = (
    "exports/**/*.py",
    "ml_assets/**/*.py",
    "orchestration/**/*.py",
    "dbt_project/profiles.yml",
    "dbt_project/macros/**/*.sql",
    "dbt_project/models/**/*.sql",
    "dbt_project/models/**/*.yml",
    "dbt_project/seeds/**/*.yml",
)
WHOLE_LINE, REFRESH, PART = "daily_recommendations", "refresh_recommendations", "a part of the line"
_INPUTS = {("raw", "events"), ("intermediate", "int_as_of"), ("marts", "signals")}
_MODELS = {
    ("ml", "item_factors"),
    ("ml", "item_neighbours"),
    ("ml", "content_neighbours"),
    ("intermediate", "int_pair_counts"),
}


@dataclass(frozen=True)
class Ingredient:
    """A row of serving.version_origins: value is a release, a SHA-256 or JSON, by kind."""

    kind: str
    name: str
    value: str
    content: str | None = None


@dataclass(frozen=True)
class InputFile:
    """A row of serving.version_files, with the meaning that raw.landing_files gives it."""

    source_file: str
    entity: str
    content_sha256: str
    n_bytes: int
    n_rows: int
    n_malformed: int
    received_at: datetime
    same_content_as: str | None


_FILE_COLUMNS = ", ".join(field.name for field in fields(InputFile))
ADAPTER_ENTITY = "adapter"


def create_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Create what is missing of the two tables; schema serving must be there."""
    connection.execute(
        """
        create table if not exists serving.version_origins (
            version varchar, kind varchar, name varchar, value varchar, content varchar
        );
        create table if not exists serving.version_files (
            version varchar, source_file varchar, entity varchar, content_sha256 varchar,
            n_bytes bigint, n_rows bigint, n_malformed bigint, received_at timestamp,
            same_content_as varchar
        );
        """
    )


def kind_of_run(assets: Iterable[Sequence[str]]) -> str:
    """The job that makes a version as a run of these assets does, or `PART`.

    Args:
        assets: Their keys.
    """
    keys = {tuple(key) for key in assets}
    if not keys >= _INPUTS:
        return PART
    return WHOLE_LINE if keys >= _MODELS else REFRESH


def ingredients_now(
    *,
    made_by: str,
    n_threads: int,
    variables: Mapping[str, str],
    repository: Path,
    config_files: Iterable[Path],
) -> list[Ingredient]:
    """What a version would be made of now, but for landing files.

    Args:
        made_by: From `kind_of_run`.
        n_threads: Cores that the run may use.
        variables: Of dbt, as JSON each.
        repository: Where the code is.
        config_files: Text files with settings; told apart by their names.
    """
    return [
        Ingredient("run", "made_by", made_by),
        Ingredient("run", "threads", str(n_threads)),
        Ingredient("run", "machine", f"{platform.system()} {platform.machine()}"),
        *(Ingredient("variable", name, value) for name, value in sorted(variables.items())),
        Ingredient("code", "recmart", _code_hash(repository)),
        Ingredient("package", "python", platform.python_version()),
        *(Ingredient("package", name, _release(name)) for name in PACKAGES),
        *(
            Ingredient("config", path.name, _sha256(text), text)
            for path in config_files
            for text in [path.read_text(encoding="utf-8")]
        ),
    ]


def pairs_learned(connection: duckdb.DuckDBPyConnection) -> Ingredient:
    """Which counts of pairs there are: a refresh leaves them as the last whole line counted them.

    Raises:
        MissingTableError: if nothing has counted any yet.
    """
    hashes = (
        table_hash(connection, f"intermediate.{table}")
        for table in ("int_basket_counts", "int_pair_counts")
    )
    return Ingredient("learned", "pairs", ":".join(str(each) for each in hashes))


def _release(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _code_hash(repository: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _CODE for path in repository.glob(pattern)}):
        digest.update(f"{path.relative_to(repository).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def keep_origin(
    connection: duckdb.DuckDBPyConnection,
    version: str,
    ingredients: Sequence[Ingredient],
    *,
    replace: bool,
) -> None:
    """Record what a version was made of, and from which files, as raw.landing_files has them.

    Args:
        connection: The warehouse, in a transaction.
        version: Its id.
        ingredients: From `ingredients_now`.
        replace: Whether what is recorded of it already is replaced, or kept.
    """
    if (
        not replace
        and connection.execute(
            "from serving.version_origins where version = $version limit 1", {"version": version}
        ).fetchall()
    ):
        return
    for table in ("version_origins", "version_files"):
        connection.execute(
            f"delete from serving.{table} where version = $version", {"version": version}
        )
    for each in ingredients:
        connection.execute(
            "insert into serving.version_origins values (?, ?, ?, ?, ?)", (version, *astuple(each))
        )
    for table, columns in (
        ("landing_files", _FILE_COLUMNS),
        (
            "adapter_files",
            f"source_file, '{ADAPTER_ENTITY}', content_sha256, n_bytes, 0, 0, received_at, null",
        ),
    ):
        if has_table(connection, "raw", table):
            connection.execute(
                f"insert into serving.version_files select $version, {columns} from raw.{table}",
                {"version": version},
            )


def has_table(connection: duckdb.DuckDBPyConnection, schema: str, table: str) -> bool:
    """Whether the warehouse has a table."""
    return bool(
        connection.execute(
            "from duckdb_tables() where database_name = current_database()"
            " and schema_name = $schema and table_name = $table",
            {"schema": schema, "table": table},
        ).fetchall()
    )


def origin_of(connection: duckdb.DuckDBPyConnection, version: str) -> list[Ingredient]:
    """What a version was made of; nothing of one from before it was recorded."""
    if not has_table(connection, "serving", "version_origins"):
        return []
    rows = connection.execute(
        "select kind, name, value, content from serving.version_origins where version = $version"
        " order by kind, name",
        {"version": version},
    ).fetchall()
    return [Ingredient(*row) for row in rows]


def files_of(connection: duckdb.DuckDBPyConnection, version: str) -> list[InputFile]:
    """The files it was made from, by name."""
    rows = connection.execute(
        f"select {_FILE_COLUMNS} from serving.version_files where version = $version"
        " order by source_file",
        {"version": version},
    ).fetchall()
    return [InputFile(*row) for row in rows]


def value_of(ingredients: Sequence[Ingredient], kind: str, name: str) -> str | None:
    """One value, None if it is not there."""
    return next(
        (each.value for each in ingredients if (each.kind, each.name) == (kind, name)), None
    )


def differing_ingredients(
    then: Sequence[Ingredient], now: Sequence[Ingredient], *, version: str, code_then: str
) -> list[str]:
    """What is another one now than it was then, a sentence each that says what to do.

    Args:
        then: From `origin_of`.
        now: From `ingredients_now`.
        version: The id of the version.
        code_then: Its code_version.
    """
    sentences = []
    for kind in ("code", "package", "config"):
        names = [each.name for each in then if each.kind == kind]
        names += [each.name for each in now if each.kind == kind and each.name not in names]
        for name in names:
            before, after = (value_of(each, kind, name) for each in (then, now))
            if before != after:
                sentences.append(_difference(kind, name, before, after, version, code_then))
    return sentences


def _difference(
    kind: str, name: str, before: str | None, after: str | None, version: str, code_then: str
) -> str:
    if kind == "code":
        edited = " (with edits that were not committed)" if code_then.endswith("-dirty") else ""
        return (
            f"The code has changed since {code_then}{edited}: check that commit out, or install "
            "that release."
        )
    if kind == "package":
        return (
            f"{name} is {after or 'not looked at any more'}; it was "
            f"{before or 'not looked at'} then. Install the packages of requirements.lock as it "
            f"was in {code_then}."
        )
    return (
        f"{name} has changed since. Its text of then: select content from serving.version_origins "
        f"where version = '{version}' and kind = 'config' and name = '{name}'."
    )


def differing_files(files: Sequence[InputFile], folder: Path) -> list[str]:
    """Which of the files the landing folder lacks, or has with other bytes, a sentence each."""
    sentences = []
    for file in files_on_disk(files):
        path = folder / file.source_file
        then = f"{file.n_bytes:,} bytes with SHA-256 {file.content_sha256}"
        try:
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except FileNotFoundError:
            sentences.append(
                f"{file.source_file} is not in {folder} any more: put it back from your archive, "
                f"{then}."
            )
            continue
        except OSError as error:
            sentences.append(f"{file.source_file} cannot be read: {error.strerror}.")
            continue
        if found != file.content_sha256:
            sentences.append(
                f"{file.source_file} has changed since, or was sent again with other content: it "
                f"had {then} when it was loaded at {file.received_at:%Y-%m-%d %H:%M} UTC, and has "
                f"{path.stat().st_size:,} bytes with SHA-256 {found} now. Put the former file back "
                "(a copy of the landing folder will do: RECMART_DATA)."
            )
    return sentences


def files_on_disk(files: Sequence[InputFile]) -> list[InputFile]:
    """Those that are files of the landing folder: an adapter's views are none, what it reads is."""
    adapted = [file for file in files if file.entity == ADAPTER_ENTITY]
    return adapted or list(files)
