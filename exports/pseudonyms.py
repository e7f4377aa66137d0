"""Customers' ids as keyed hashes: what the warehouse holds in their place, and how it is asked.

Belongs here: the key, the hash in Python and in SQL, and that one home has one key. Does not belong
here: replacing what arrives (`orchestration/landing/raw_tables.py`).

The hash is HMAC-SHA-256 (RFC 2104), the first 32 of its 64 hexadecimal digits; 128 bits do not meet
by chance for any shop. The HMAC's key is the SHA-256 of what is configured, so that SQL can make it
too. The key is in the environment, and nowhere else; the warehouse holds a check value of it.
"""

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from exports.errors import PseudonymError

if TYPE_CHECKING:
    import duckdb

KEY, KEY_FILE = "RECMART_PSEUDONYM_KEY", "RECMART_PSEUDONYM_KEY_FILE"
# Of a connection, see `use_key`.
VARIABLE = "getvariable('pseudonym_key')"
_DIGITS = 32
_LEAST_CHARACTERS = 32
_BLOCK_BYTES = 64
# Whose hash is the check value: nobody's id.
_CHECKED = "\0recmart"


def key_from(environment: Mapping[str, str]) -> str | None:
    """The key that the environment gives, or names a file of; None for clear ids.

    Raises:
        PseudonymError: if it gives both, or the key is too short or cannot be read.
    """
    given, path = environment.get(KEY), environment.get(KEY_FILE)
    if given and path:
        raise PseudonymError(f"{KEY} and {KEY_FILE} are both set: unset one of them.")
    if path:
        try:
            given = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise PseudonymError(
                f"The file that {KEY_FILE} names cannot be read ({type(error).__name__}): expected "
                "is a text file with the key, which the user of the pipeline may read."
            ) from None
    elif not given:
        return None
    if len(given) < _LEAST_CHARACTERS:
        raise PseudonymError(
            f"The key of {KEY} or {KEY_FILE} has {len(given)} characters; expected are at least "
            f"{_LEAST_CHARACTERS}, drawn at random: openssl rand -hex 32"
        )
    return given


def pseudonym(text: str, key: str) -> str:
    """What stands for an id: 32 hexadecimal digits."""
    digest = hmac.digest(hashlib.sha256(key.encode()).digest(), text.encode(), "sha256")
    return digest.hex()[:_DIGITS]


def check_value(key: str) -> str:
    """Tells keys apart without giving them away."""
    return pseudonym(_CHECKED, key)


def pseudonym_sql(text: str, key: str = VARIABLE) -> str:
    """The same in DuckDB's SQL, from the SQL of text and key; NULL of NULL."""

    def padded(byte: int) -> str:
        zeros = f"unhex(repeat('00', {_BLOCK_BYTES - 32}))"
        return f"xor((unhex(sha256({key})) || {zeros})::bit, repeat('{byte:08b}', 64)::bit)::blob"

    inner = f"unhex(sha256({padded(0x36)} || encode({text})))"
    return f"left(sha256({padded(0x5C)} || {inner}), {_DIGITS})"


def create_macro(connection: "duckdb.DuckDBPyConnection") -> None:
    """serving.pseudonym(user_id, key), for analysts who know a customer's id and have the key."""
    connection.execute(
        "create or replace macro serving.pseudonym(user_id, key) as "
        f"({pseudonym_sql('user_id::varchar', 'key')})"
    )


def create_table(connection: "duckdb.DuckDBPyConnection") -> None:
    """Create raw.pseudonym_check, without a row where ids are clear, if it is not there."""
    connection.execute(
        "create schema if not exists raw;"
        "create table if not exists raw.pseudonym_check (check_value varchar)"
    )


def found_check(connection: "duckdb.DuckDBPyConnection") -> str | None:
    """The check value that a warehouse holds; None if its ids are clear."""
    ((found,),) = connection.execute("select max(check_value) from raw.pseudonym_check").fetchall()
    return None if found is None else str(found)


def use_key(connection: "duckdb.DuckDBPyConnection", key: str | None) -> None:
    """Let this connection make pseudonyms, if there is a key; a warehouse has one for all time.

    Args:
        connection: The warehouse, with the tables that landing files are loaded into.
        key: None for clear ids.

    Raises:
        PseudonymError: if the warehouse has clear ids, or those of another key.
    """
    found = found_check(connection)
    if key is not None and found is None:
        if connection.execute("from raw.landing_files limit 1").fetchall():
            raise PseudonymError(
                f"This warehouse was filled with clear ids, and {KEY} is set: one customer would "
                "be two. Set RECMART_HOME to a new folder and load the files again there, then "
                f"delete the old one and its backups; or unset {KEY}."
            )
        found = check_value(key)
        connection.execute("insert into raw.pseudonym_check values (?)", [found])
    require_key(found, key, place="This warehouse")
    connection.execute("set variable pseudonym_key = (select $key::varchar)", {"key": key})


def is_on(connection: "duckdb.DuckDBPyConnection") -> bool:
    """Whether this connection makes pseudonyms."""
    return bool(connection.execute(f"select {VARIABLE} is not null").fetchall()[0][0])


def require_key(found: str | None, key: str | None, *, place: str) -> None:
    """Raise PseudonymError unless the ids of a place are those that the key makes.

    Args:
        found: The check value that the place holds; None for clear ids.
        key: None for clear ids.
        place: For the message.
    """
    if found is None and key is not None:
        raise PseudonymError(f"{place} holds clear ids: ask without a key (unset {KEY}).")
    if found is not None and key is None:
        raise PseudonymError(
            f"{place} holds pseudonyms in place of ids: set {KEY} (or {KEY_FILE}) to the key that "
            "they were made with; a Reader takes it as pseudonym_key."
        )
    if found is not None and key is not None and not hmac.compare_digest(found, check_value(key)):
        raise PseudonymError(
            f"{place} holds pseudonyms of another key: set {KEY} (or {KEY_FILE}) to the one that "
            "they were made with. A new key needs a new RECMART_HOME."
        )
