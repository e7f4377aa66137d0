"""Frames as warehouse tables: asset key [schema, table] is DuckDB's schema.table."""

from typing import Any

import dagster as dg
import polars as pl

from ml_assets.assets import failed_if_missing
from ml_assets.warehouse import Warehouse, read_table


class WarehouseIOManager(dg.IOManager):
    """Writes a frame as `create or replace table ... as select`, reads it back by column name.

    Columns are matched by name and a frame without columns is refused, so that a step cannot
    turn green and leave an empty table behind.
    """

    def __init__(self, warehouse: Warehouse) -> None:
        """Write to and read from this warehouse."""
        self._warehouse = warehouse

    def handle_output(self, context: dg.OutputContext, obj: pl.DataFrame) -> None:
        """Replace the asset's table in one transaction."""
        schema, table = context.asset_key.path
        if not obj.columns:
            raise ValueError(f"{schema}.{table} was given a frame without columns")
        frame = obj.to_arrow()
        with self._warehouse.connect() as connection:
            connection.execute(f"create schema if not exists {schema}")
            connection.register("frame", frame)
            connection.execute(f"create or replace table {schema}.{table} as from frame")
        context.add_output_metadata({"dagster/row_count": len(obj)})

    def load_input(self, context: dg.InputContext) -> pl.DataFrame:
        """Read the table; only the columns that the input's metadata names, if it does."""
        schema, table = context.asset_key.path
        definition: dict[str, Any] = dict(context.definition_metadata or {})
        with self._warehouse.connect() as connection, failed_if_missing():
            return read_table(connection, f"{schema}.{table}", definition.get("columns"))
