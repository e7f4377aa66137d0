"""dbt with the project as it was parsed last: `recmart-dbt build`, with dbt's own arguments.

dbt parses everything anew whenever the warehouse's path or a `--vars` differs from the last time,
which are seconds for every other home and every day of a backtest. Nothing that is parsed depends
on either, but for the name of the file: they are read when a query is compiled. Whether the parsed
project is that of the files is for `dbt_assets.py` to see to.

https://docs.getdbt.com/reference/programmatic-invocations#reusing-objects
"""

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from orchestration.processes import end_process

if TYPE_CHECKING:
    from dbt.contracts.graph.manifest import Manifest

PROJECT = Path(__file__).resolve().parents[1] / "dbt_project"
PARSED = PROJECT / "target" / "partial_parse.msgpack"
# DuckDB names a database by its file, `ml_assets.warehouse.Warehouse` the file.
DATABASE = "warehouse"


def main() -> NoReturn:
    """Run dbt and end the process: with 1 for nodes that failed, 2 for anything else."""
    # Before dbt is imported. To look for cycles takes a thirtieth of the time, and what stays in
    # them until the end a tenth of the memory of a small shop.
    gc.disable()
    # Its locks live until the process ends, of which Python would warn whoever reads the console.
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
    from dbt.adapters.duckdb.connections import DuckDBConnectionManager

    code = _run()
    DuckDBConnectionManager.close_all_connections()
    end_process(code)


def _run() -> int:
    from dbt.cli.main import dbtRunner

    manifest = _stored()
    if manifest is None:
        parse()
        manifest = _stored()
    # Where it could not be parsed or kept there is none, and dbt parses for itself.
    outcome = dbtRunner(manifest=manifest).invoke(sys.argv[1:])
    if outcome.exception is not None:
        print(outcome.exception, file=sys.stderr)
        return 2
    return 0 if outcome.success else 1


def _stored() -> "Manifest | None":
    """The project as it was parsed last, None if that was not as the line runs it."""
    from dbt.contracts.graph.manifest import Manifest

    manifest = Manifest.from_msgpack(PARSED.read_bytes())
    if not is_ours(manifest):
        return None
    # What macros see as `graph`; not among what is stored.
    manifest.build_flat_graph()
    return manifest


def parse() -> None:
    """Parse the whole project, as the line runs it, for this run and those to come."""
    from dbt.cli.main import dbtRunner

    warehouse = os.environ.pop("RECMART_WAREHOUSE", None)
    project, target = str(PROJECT), str(PARSED.parent)
    folders = ["--project-dir", project, "--profiles-dir", project, "--target-path", target]
    dbtRunner().invoke(["parse", "--quiet", "--no-partial-parse", *folders])
    if warehouse is not None:
        os.environ["RECMART_WAREHOUSE"] = warehouse


def is_ours(manifest: "Manifest") -> bool:
    """Whether it was parsed as the line runs it, and not by hand on another file or from elsewhere.

    Seeds are looked for where their project was, seen from where dbt was called.
    """
    from dbt.contracts.graph.nodes import SeedNode

    nodes = manifest.nodes.values()
    roots = {node.root_path for node in nodes if isinstance(node, SeedNode)}
    return {node.database for node in nodes} == {DATABASE} and roots == {str(PROJECT)}


if __name__ == "__main__":
    main()
