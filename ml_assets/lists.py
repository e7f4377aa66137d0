"""The tables with everybody's lists: which users are scored again, and how the rows get there.

Users are scored and written in parts, so memory does not grow with them. All tables change in one
transaction: what the lists were made from always stands beside the lists that were made from it.
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import polars as pl

from ml_assets.frames import CANDIDATES, LIST_TABLES, RECOMMENDATIONS, RULE_LEDGER, SCORED_USERS
from ml_assets.recommend import (
    Hybrid,
    Lists,
    candidate_frame,
    null_for_nan,
    propose,
    recommend,
)
from ml_assets.rule_set import RuleSet, hashes_of
from ml_assets.scoring import Progress
from ml_assets.signal_matrix import SignalMatrix, available_items
from ml_assets.touched import (
    Touched,
    inputs_hashes,
    model_hash,
    touched_users,
)
from ml_assets.warehouse import transaction

_BY_USER = {
    "candidates": CANDIDATES,
    "recommendations": RECOMMENDATIONS,
    "rule_ledger": RULE_LEDGER,
    "scored_users": SCORED_USERS,
}


@dataclass(frozen=True)
class ListsReport:
    """What was done. n_rows is by table."""

    touched: Touched
    n_users: int
    n_scored: int
    n_rows: dict[str, int]


def make_lists(
    connection: duckdb.DuckDBPyConnection,
    *,
    matrix: SignalMatrix,
    hybrid: Hybrid,
    users: pl.DataFrame,
    products: pl.DataFrame,
    popularity: pl.DataFrame,
    settings: Mapping[str, Any],
    progress: Progress,
    rules: RuleSet | None = None,
) -> ListsReport:
    """Bring ml.candidates and ml.recommendations up to date; see `touched.py` for who is scored.

    Args:
        connection: The warehouse, for writing, outside a transaction.
        matrix: Signals of today, of all users.
        hybrid: The models, over all users.
        users: USERS.
        products: PRODUCTS.
        popularity: POPULARITY.
        settings: `candidates`, `top_n`, `block_bytes`, `users_per_part`, and whatever else lists
            can depend on.
        progress: Told whom it will score, and how far it is.
        rules: Of all users of the matrix.
    """
    hashes = inputs_hashes(matrix)
    of_rules = (
        np.zeros(len(hashes), np.int64)
        if rules is None
        else rules.digests(hashes_of(matrix.product_ids))
    )
    hash_of_models = model_hash(
        hybrid, matrix.product_ids, settings=json.dumps(dict(settings), sort_keys=True)
    )
    touched = touched_users(
        matrix,
        hybrid,
        products,
        hash_of_models=hash_of_models,
        hashes=hashes,
        hashes_of_rules=of_rules,
        top_n=settings["top_n"],
        before=_read_scored(connection),
    )
    progress(str(touched))
    rows = np.flatnonzero(touched.is_touched)
    catalogue = products.select(
        "product_id", "title", "is_available", model_hash=pl.lit(hash_of_models)
    ).sort("product_id")
    eligible = available_items(products, matrix.product_ids)
    # Once in the order of the matrix: else every part would look its users up among all.
    users = matrix.user_ids.to_frame().join(users, on="user_id", how="left", maintain_order="left")
    # Ended before the transaction, so that nobody writes into what an error rolls back.
    with transaction(connection), ThreadPoolExecutor(1) as writer:
        is_from_scratch = len(rows) == len(matrix.user_ids)
        _make_room(connection, matrix.user_ids, touched, is_from_scratch=is_from_scratch)
        _replace(connection, "scored_products", catalogue)
        written = None
        for start in range(0, len(rows), settings["users_per_part"]):
            part = rows[start : start + settings["users_per_part"]]
            own_matrix, own_hybrid = matrix.for_users(part), hybrid.for_users(part)
            own_rules = rules and rules.for_users(part)
            proposed = propose(
                own_hybrid,
                k=settings["candidates"],
                exclude=own_rules.hidden if own_rules else own_matrix.bought,
                eligible=eligible,
                block_bytes=settings["block_bytes"],
                progress=lambda _: None,
            )
            recommendations, ledger = recommend(
                proposed,
                matrix=own_matrix,
                hybrid=own_hybrid,
                users=users[part],
                products=products,
                popularity=popularity,
                top_n=settings["top_n"],
                rules=own_rules,
            )
            frames = {
                "candidates": candidate_frame(proposed, own_matrix),
                "scored_users": _user_frame(
                    own_matrix.user_ids, hashes[part], of_rules[part], own_hybrid, proposed
                ),
                "recommendations": recommendations,
                "rule_ledger": ledger,
            }
            # One part is written while the next is made, no more of them: they take memory.
            if written is not None:
                written.result()
            written = writer.submit(_append, connection, frames)
            progress(f"scored {start + len(part):,} of {len(rows):,} users")
        if written is not None:
            written.result()
    return ListsReport(
        touched=touched,
        n_users=len(matrix.user_ids),
        n_scored=len(rows),
        n_rows={table: _count(connection, f"ml.{table}") for table in LIST_TABLES},
    )


def _user_frame(
    user_ids: pl.Series,
    hashes: np.ndarray,
    hashes_of_rules: np.ndarray,
    hybrid: Hybrid,
    lists: Lists,
) -> pl.DataFrame:
    """SCORED_USERS: what each list was made from, and the scale of each model's scores."""
    frame = pl.DataFrame(
        {"user_id": user_ids, "inputs_hash": hashes, "rules_hash": hashes_of_rules}
    )
    named = (("cf", hybrid.cf), ("content", hybrid.content))
    for i, (name, model) in enumerate((name, model) for name, model in named if model is not None):
        for what, values in (("mean", lists.mean), ("inverse_deviation", lists.inverse_deviation)):
            known = np.where(model.knows_user, values[i], np.nan)
            frame = frame.with_columns(null_for_nan(known).alias(f"{name}_{what}"))
    return frame.match_to_schema(SCORED_USERS, missing_columns="insert")


@dataclass(frozen=True)
class _ScoredTables:
    """The tables of the run before, as `touched.Scored` wants them."""

    connection: duckdb.DuckDBPyConnection
    model_hash: str

    def users(self) -> pl.DataFrame:
        return self.connection.sql(
            "select user_id, inputs_hash, rules_hash from ml.scored_users"
        ).pl()

    def products(self) -> pl.DataFrame:
        return self.connection.sql(
            "select product_id, title, is_available from ml.scored_products"
        ).pl()

    def users_with_filled_places(self, sources: list[str]) -> pl.Series:
        return self._ids(
            "select distinct user_id from ml.recommendations where list_contains($them, source)",
            sources,
        )

    def users_with_full_lists(self, top_n: int) -> pl.Series:
        return self._ids("select user_id from ml.recommendations where rank = $them", top_n)

    def users_who_were_proposed(self, product_ids: pl.Series) -> pl.Series:
        return self._ids(
            "select user_id from ml.candidates where product_id in (select unnest($them))"
            " union"
            " select user_id from ml.recommendations where product_id in (select unnest($them))",
            product_ids.to_list(),
        )

    def users_who_read_of(self, product_ids: pl.Series) -> pl.Series:
        return self._ids(
            "select distinct user_id from ml.recommendations"
            " where because_product_id in (select unnest($them))",
            product_ids.to_list(),
        )

    def _ids(self, sql: str, them: Any) -> pl.Series:
        if them == []:
            return pl.Series("user_id", [], dtype=pl.String)
        return self.connection.sql(sql, params={"them": them}).pl()["user_id"]


def _read_scored(connection: duckdb.DuckDBPyConnection) -> _ScoredTables | None:
    connection.execute("create schema if not exists ml")
    found = connection.execute(
        "select table_name, list(column_name order by column_name)"
        " from information_schema.columns"
        " where table_schema = 'ml' and list_contains($tables, table_name) group by table_name",
        {"tables": list(LIST_TABLES)},
    ).fetchall()
    columns = dict(found)
    # Tables of another release are made from scratch.
    if len(columns) < len(LIST_TABLES) or any(
        columns[table] != sorted(schema) for table, schema in _BY_USER.items()
    ):
        return None
    hashes = connection.execute("select distinct model_hash from ml.scored_products").fetchall()
    return _ScoredTables(connection, hashes[0][0]) if len(hashes) == 1 else None


def _make_room(
    connection: duckdb.DuckDBPyConnection,
    user_ids: pl.Series,
    touched: Touched,
    *,
    is_from_scratch: bool,
) -> None:
    """Delete the rows of users who are touched or gone."""
    if is_from_scratch:
        for table, schema in _BY_USER.items():
            _create_empty(connection, table, pl.DataFrame(schema=schema))
        return
    kept = pl.DataFrame({"user_id": user_ids.filter(pl.Series(~touched.is_touched))})
    connection.register("kept", kept.to_arrow())
    for table in _BY_USER:
        connection.execute(
            f"delete from ml.{table} where user_id not in (select user_id from kept)"
        )


def _append(connection: duckdb.DuckDBPyConnection, frames: Mapping[str, pl.DataFrame]) -> None:
    for table, frame in frames.items():
        # Found by DuckDB under its name. What is registered stays in memory as long as the
        # transaction lasts, all parts of it.
        part = frame.to_arrow()
        connection.execute(f"insert into ml.{table} by name from part")
        del part


def _create_empty(connection: duckdb.DuckDBPyConnection, table: str, frame: pl.DataFrame) -> None:
    connection.register("whole", frame.to_arrow())
    rows = connection.table("whole")
    columns = ", ".join(
        f'"{name}" {kind}' for name, kind in zip(rows.columns, rows.types, strict=True)
    )
    # Not "as" the frame: where a table is created as one without rows, nobody sees the many that
    # the same transaction appends until the file is checkpointed, and a process that is killed
    # before loses them (DuckDB 2.0.0).
    connection.execute(f"create or replace table ml.{table} ({columns})")


def _replace(connection: duckdb.DuckDBPyConnection, table: str, frame: pl.DataFrame) -> None:
    connection.register("whole", frame.to_arrow())
    connection.execute(f"create or replace table ml.{table} as from whole")


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    return int(connection.execute(f"select count(*) from {table}").fetchall()[0][0])
