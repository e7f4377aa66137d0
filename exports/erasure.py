"""Taking a user out of everything recmart keeps (GDPR Art. 17), and the proof that it is done.

Belongs here: tables of all layers, files, Redis. Does not belong here: reading who asked for it
(`orchestration/landing/erasure.py`), refusing what arrives later with `is_erased`
(`orchestration/landing/raw_tables.py`).

What is left of a user is a keyed hash of the id in raw.erased_users, so that later events can be
refused without knowing whom they are of. Landed rows stay as empty rows, so that arrived = accepted
+ rejected goes on to hold; rows of every other table are deleted. Models and counts of all users
together are not made again: they name nobody, and the next run leaves the user out.

A kill at any point does no harm: the request is still there, and running again does what is left.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from secrets import token_hex

import duckdb

from exports import files, redis_load, versions
from exports.errors import PublishError
from exports.redis_server import EmbeddedRedis
from ml_assets.warehouse import path_literal, transaction

REASON = "the user was erased"
# What is left of a landed row, as its attributes. Staging refuses it by this mark.
ERASED_ROW = '{"erased": true}'
# Where landed rows are parsed; they stay there as well, refused.
_PARSED = ("base_events", "base_users")
_KEPT_COLUMNS = {"source_file", "source_row", "file_version", "other_values_hash"}
ERASED_LINE = "(it names an erased user)"
# Of a line that could not be split into columns an id may be a word, or, with other characters in
# it, what stands between delimiters or quotes.
_NO_WORD = r"[^\p{L}\p{M}\p{N}_@.+-]"
_BETWEEN_FIELDS = r"""[,;|\t"]"""
# Where a user's id can stand besides columns named for it: the SQL of whether it does.
_IN_TEXTS = {
    "line": "regexp_matches(line, $named)",
    # JSON of a row that was parsed, or a line that could not be: that is of no column.
    "row_text": (
        "if(column_name is null, regexp_matches(row_text, $named),"
        " (row_text ->> '$.user_id') = $user_id)"
    ),
}


@dataclass(frozen=True)
class Place:
    """A line of the certificate: where was looked, how, and how many rows or files are left."""

    place: str
    query: str
    n_left: int


@dataclass(frozen=True)
class Kept:
    """Where users are kept beside the warehouse.

    Attributes:
        home: RECMART_HOME.
        published_dir: Where versions' files are.
        redis_url: Where versions are loaded; None leaves Redis out.
        is_embedded: Whether that is the embedded server of this home.
    """

    home: Path
    published_dir: Path
    redis_url: str | None
    is_embedded: bool


def create_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Create what erasing needs in schema raw, with a key of this warehouse, if it is not there.

    Of each connection that asks `hash_of`, `is_erased` or `names_erased`: they want its variable.
    """
    connection.execute(
        """
        create schema if not exists raw;
        create table if not exists raw.erased_users (user_hash varchar, erased_at timestamp);
        create table if not exists raw.erasure_key (key varchar);
        create table if not exists raw.erasure_certificates (
            erased_at timestamp, user_hash varchar, place varchar, query varchar, n_left bigint
        );
        """
    )
    connection.execute(
        "insert into raw.erasure_key select $key where not exists (from raw.erasure_key)",
        {"key": token_hex(32)},
    )
    connection.execute("set variable erasure_key = (select key from raw.erasure_key)")


def hash_of(user_id: str) -> str:
    """The SQL of a user's keyed hash, from the SQL of the id."""
    return f"sha256(getvariable('erasure_key') || {user_id})"


def is_erased(user_id: str) -> str:
    """The SQL of whether a user was erased, from the SQL of the id."""
    return f"({hash_of(user_id)} in (select user_hash from raw.erased_users))"


def names_erased(text: str) -> str:
    """The SQL of whether a text names an erased user, from the SQL of the text.

    Of an id there is a hash alone, so only words, and what stands between delimiters or quotes, can
    be compared: ids with a comma, semicolon, bar, tab or quote in them are not found.
    """
    fields = f"string_split_regex({text}, '{_BETWEEN_FIELDS}')"
    pieces = (
        f"list_concat(string_split_regex({text}, '{_NO_WORD}+'),"
        f" list_transform({fields}, lambda field: trim(field, e' \\t\\r\\n')))"
    )
    hashes = f"list_transform({pieces}, lambda piece: {hash_of('piece')})"
    return f"list_has_any({hashes}, (select list(user_hash) from raw.erased_users))"


def pending(connection: duckdb.DuckDBPyConnection, user_ids: Sequence[str]) -> list[str]:
    """Those of the users whose erasure has no certificate yet, sorted."""
    create_tables(connection)
    return [
        user_id
        for (user_id,) in connection.execute(
            f"""
            select distinct user_id
            from (select unnest($ids)::varchar as user_id)
            where {hash_of("user_id")} not in (select user_hash from raw.erasure_certificates)
            order by user_id
            """,
            {"ids": list(user_ids)},
        ).fetchall()
    ]


def erase_users(
    connection: duckdb.DuckDBPyConnection,
    user_ids: Sequence[str],
    kept: Kept,
    *,
    happened_at: datetime,
) -> None:
    """Take users out of all tables, files and Redis. Call `compact` and `certify` afterwards.

    Args:
        connection: The warehouse, for writing, outside a transaction.
        user_ids: From `pending`.
        kept: Where they are kept besides.
        happened_at: Now, naive UTC.

    Raises:
        PublishError: if a version's files cannot be written again, or an embedded Redis is left
            here that is not the one in use.
        RedisLoadError: if Redis does not answer. Everything before it is done then; run again.
    """
    embedded = kept.home / "redis"
    if embedded.exists() and not kept.is_embedded:
        raise PublishError(
            f"{embedded} is the folder of an embedded Redis, which may hold lists of the users, "
            "and REDIS_URL names another one or none. Set REDIS_URL to embedded, or, if nobody "
            "reads from that server any more, run make stop and delete the folder."
        )
    create_tables(connection)
    versions.ensure_schema(connection)
    with transaction(connection):
        _erase_rows(connection, user_ids, happened_at)
        left = [_counted_again(connection, each) for each in versions.kept_versions(connection)]
    # A killed run may have left copies of versions whose rows are gone, which nothing can correct.
    keep = [each.version for each in left]
    files.remove_version_files(kept.published_dir, keep=keep)
    if kept.redis_url is not None:
        redis_load.remove_versions(redis_url=kept.redis_url, keep=keep)
    for version in left:
        if files.version_dir(kept.published_dir, version.version).exists():
            files.write_version_files(connection, version, kept.published_dir)
    if kept.redis_url is not None:
        for version in left:
            redis_load.forget_users(connection, version, user_ids, redis_url=kept.redis_url)
    # Folds of the past are made again from the warehouse when they are needed; a backtest that was
    # killed leaves a warehouse of its own.
    for folder in ("folds", "backtests"):
        shutil.rmtree(kept.home / folder, ignore_errors=True)
    for path in _reports_about(kept.home, user_ids):
        path.unlink(missing_ok=True)


def _erase_rows(
    connection: duckdb.DuckDBPyConnection, user_ids: Sequence[str], happened_at: datetime
) -> None:
    connection.execute(
        "create or replace temp table erased as select unnest($ids)::varchar as user_id",
        {"ids": list(user_ids)},
    )
    connection.execute(
        f"insert into raw.erased_users select {hash_of('user_id')}, $now from temp.erased"
        f" where not {is_erased('user_id')}",
        {"now": happened_at},
    )
    columns_of = _tables(connection)
    mark = {"attributes": f"'{ERASED_ROW}'"}
    for table in ("events", "users"):
        _empty(connection, f"raw.{table}", columns_of["raw", table], mark)
    _update_naming(connection, "raw.malformed_lines", "line", f"line = '{ERASED_LINE}'", user_ids)
    refused = {"reject_column": "'user_id'", "reject_reason": f"'{REASON}'"}
    for (schema, table), columns in columns_of.items():
        if schema == "raw":
            continue
        if table in _PARSED:
            _empty(connection, f"{schema}.{table}", columns, refused)
        elif table == "rejected_rows":
            values = f"value = null, row_text = '{ERASED_ROW}', reason = '{REASON}'"
            values += ", column_name = 'user_id'"
            _update_naming(connection, f"{schema}.{table}", "row_text", values, user_ids)
        elif "user_id" in columns:
            connection.execute(
                f'delete from "{schema}"."{table}" where user_id in (select user_id from'
                " temp.erased)"
            )
        elif "user_number" in columns:
            # Baskets: whose they were shows in the order of all ids, but no longer which are of the
            # erased. Nothing reads them until the next night fills the table anew.
            connection.execute(f'delete from "{schema}"."{table}"')
    connection.execute("drop table temp.erased")


def _update_naming(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    column: str,
    values: str,
    user_ids: Sequence[str],
) -> None:
    """Texts that name one of the users get other values, in SQL."""
    query = f"update {table} set {values} where {_IN_TEXTS[column]}"
    for user_id in user_ids:
        connection.execute(query, _parameters(query, user_id))


def _parameters(query: str, user_id: str) -> dict[str, str]:
    """$user_id, and $named: how texts name the user. DuckDB wants those that a query has."""
    spellings = {
        user_id,
        # In CSV, in JSON, and in JSON of programs that write ASCII alone, some with \/ for /.
        user_id.replace('"', '""'),
        json.dumps(user_id, ensure_ascii=False)[1:-1],
        json.dumps(user_id)[1:-1],
        json.dumps(user_id)[1:-1].replace("/", "\\/"),
    }
    named = f"(^|{_NO_WORD})({'|'.join(map(re.escape, sorted(spellings)))})({_NO_WORD}|$)"
    parameters = {"user_id": user_id, "named": named}
    return {name: value for name, value in parameters.items() if f"${name}" in query}


def _tables(connection: duckdb.DuckDBPyConnection) -> dict[tuple[str, str], list[str]]:
    """Columns of all tables of the file."""
    rows = connection.execute(
        "select columns.schema_name, columns.table_name, list(column_name order by column_index)"
        " from duckdb_columns() as columns"
        " inner join duckdb_tables() as tables using (database_oid, schema_oid, table_oid)"
        " where not tables.internal and not tables.temporary group by all order by all"
    ).fetchall()
    return {(schema, table): columns for schema, table, columns in rows}


def _empty(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    columns: Sequence[str],
    values: Mapping[str, str],
) -> None:
    """Rows of the users keep where they are from; of the rest only these values, in SQL."""
    emptied = ", ".join(
        f'"{column}" = {values.get(column, "null")}'
        for column in columns
        if column not in _KEPT_COLUMNS
    )
    connection.execute(
        f"update {table} set {emptied} where user_id in (select user_id from temp.erased)"
    )


def _counted_again(
    connection: duckdb.DuckDBPyConnection, version: versions.Version
) -> versions.Version:
    """A kept version whose rows were deleted: its counts and hashes are those of what is left."""
    found = versions.version_fingerprints(connection, version.version)
    return versions.note_contents(connection, version, found)


def _reports_about(home: Path, user_ids: Sequence[str]) -> list[Path]:
    """Reports with one of the users among their examples."""
    names = [f"Customer {escape(user_id)} " for user_id in user_ids]
    return [
        path
        for path in sorted((home / "reports").glob("*.html"))
        if any(name in path.read_text(encoding="utf-8") for name in names)
    ]


def compact(path: Path) -> None:
    """Write the warehouse anew, in place: a DuckDB file keeps the bytes of what was deleted.

    Args:
        path: The database file, which no connection of any process has open.

    Raises:
        PublishError: if there is no room for a second copy, or the file is in use. The file stays
            as it is then.
    """
    fresh = path.with_name(f".{path.name}.compacting")
    fresh.unlink(missing_ok=True)
    # Where a run that was killed had rows for which it had no memory.
    shutil.rmtree(path.with_name(f"{path.name}.tmp"), ignore_errors=True)
    try:
        with duckdb.connect() as connection:
            connection.execute(f"attach {path_literal(path)} as old")
            connection.execute("checkpoint old")
            connection.execute(f"attach {path_literal(fresh)} as fresh")
            connection.execute("copy from database old to fresh")
            connection.execute("detach old")
            connection.execute("checkpoint fresh")
            connection.execute("detach fresh")
        with fresh.open("rb") as stream:
            os.fsync(stream.fileno())
        fresh.replace(path)
    except (duckdb.Error, OSError) as error:
        raise PublishError(
            f"{path} could not be written anew, so bytes of the erased rows may be left in it: "
            f"{str(error).splitlines()[0]}. Free space for a second copy, end other runs, and run "
            "erase_users again."
        ) from error
    finally:
        fresh.unlink(missing_ok=True)


def certify(
    connection: duckdb.DuckDBPyConnection,
    user_ids: Sequence[str],
    kept: Kept,
    *,
    happened_at: datetime,
) -> dict[str, list[Place]]:
    """Look for the users everywhere; write what was found, per user, if it is nothing.

    An embedded Redis is saved before that.

    A certificate is a row per place in raw.erasure_certificates and a file in
    `home/erasures/<hash>.json`. It names the user by the keyed hash.

    Raises:
        PublishError: naming the first place where something is left, or if Redis cannot be saved.
            Nothing is certified then.
    """
    create_tables(connection)
    places = {
        user_id: [
            *_left_in_tables(connection, user_id),
            *_left_in_files(connection, kept.published_dir, user_id),
            *_left_in_redis(kept.redis_url, user_id),
        ]
        for user_id in user_ids
    }
    certificates: dict[str, list[Place]] = {}
    for user_id, found in places.items():
        certificates[user_id] = [Place(*each) for each in found]
        for each in certificates[user_id]:
            if each.n_left:
                raise PublishError(
                    f"{each.place} still holds {each.n_left:,} rows of a user who was to be erased "
                    f"({each.query}). Run daily_recommendations and erase_users again; if it stays,"
                    " report it."
                )
    if kept.is_embedded:
        # Of a memory that was just seen without them. A server that is killed reads the last dump.
        EmbeddedRedis(kept.home).save()
        for found_of_user in certificates.values():
            found_of_user.append(Place("file redis/dump.rdb", "SAVE after each HEXISTS was 0", 0))
    folder = kept.home / "erasures"
    folder.mkdir(parents=True, exist_ok=True)
    for user_id, found_of_user in certificates.items():
        ((user_hash,),) = connection.execute(
            f"select {hash_of('$user_id::varchar')}", {"user_id": user_id}
        ).fetchall()
        content = {
            "user_hash": user_hash,
            "erased_at": happened_at.isoformat(),
            "places": [asdict(each) for each in found_of_user],
        }
        path = folder / f"{user_hash[:16]}.json"
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        connection.executemany(
            "insert into raw.erasure_certificates values (?, ?, ?, ?, ?)",
            [
                (happened_at, user_hash, each.place, each.query, each.n_left)
                for each in found_of_user
            ],
        )
    return certificates


_Found = tuple[str, str, int]


def _left_in_tables(connection: duckdb.DuckDBPyConnection, user_id: str) -> list[_Found]:
    """What is named for ids of users, and what keeps landed text, is asked in every table.

    No other column: a quantity, an order or a count of threads may be the same number as a user.
    """
    found = []
    for schema, table, columns in connection.execute(
        "select schema_name, table_name, list(column_name order by column_index)"
        " from duckdb_columns() where not internal and data_type = 'VARCHAR'"
        " and (schema_name, table_name) in (select (schema_name, table_name) from duckdb_tables())"
        " group by all order by all"
    ).fetchall():
        condition = " or ".join(
            _IN_TEXTS.get(column, f'"{column}" = $user_id')
            for column in columns
            if column in _IN_TEXTS or column.endswith("user_id")
        )
        if not condition:
            continue
        query = f'select count(*) from "{schema}"."{table}" where {condition}'
        ((n_left,),) = connection.execute(query, _parameters(query, user_id)).fetchall()
        found.append((f"warehouse {schema}.{table}", query, n_left))
    return found


def _left_in_redis(redis_url: str | None, user_id: str) -> list[_Found]:
    if redis_url is None:
        return []
    return [
        (f"Redis {name}", f"HEXISTS {name} $user_id", n_left)
        for name, n_left in redis_load.count_lists(redis_url=redis_url, user_id=user_id).items()
    ]


def _left_in_files(
    connection: duckdb.DuckDBPyConnection, published_dir: Path, user_id: str
) -> list[_Found]:
    found = []
    for path in sorted(published_dir.glob("versions/*/*.parquet")):
        described = connection.execute(f"describe from {path_literal(path)}").fetchall()
        if "user_id" not in {row[0] for row in described}:
            continue
        name = path.relative_to(published_dir)
        query = f"select count(*) from '{name}' where user_id = $user_id"
        ((n_left,),) = connection.execute(
            f"select count(*) from {path_literal(path)} where user_id = $user_id",
            {"user_id": user_id},
        ).fetchall()
        found.append((f"file {name}", query, n_left))
    for path in sorted(published_dir.glob(f"versions/*/{files.SNAPSHOT}")):
        name = path.relative_to(published_dir)
        with duckdb.connect(str(path), read_only=True) as snapshot:
            found += [
                (f"file {name}, {place.removeprefix('warehouse ')}", query, n_left)
                for place, query, n_left in _left_in_tables(snapshot, user_id)
            ]
    return found
