"""dbt with the project as it was parsed last: `recmart-dbt build`, with dbt's own arguments.

dbt parses everything anew whenever the warehouse's path or a `--vars` differs from the last time,
which are seconds for every other home and every day of a backtest. Nothing that is parsed depends
on either: they are read when a query is compiled. Whether the parsed project is that of the files
is for `dbt_assets.py` to see to.

https://docs.getdbt.com/reference/programmatic-invocations#reusing-objects
"""

import sys
from pathlib import Path

from dbt.cli.main import dbtRunner
from dbt.contracts.graph.manifest import Manifest

PARSED = Path(__file__).resolve().parents[1] / "dbt_project" / "target" / "partial_parse.msgpack"


def main() -> int:
    """Run dbt.

    Returns:
        dbt's exit code: 1 for nodes that failed, 2 for anything else.
    """
    manifest = Manifest.from_msgpack(PARSED.read_bytes())
    # What macros see as `graph`; not among what is stored.
    manifest.build_flat_graph()
    outcome = dbtRunner(manifest=manifest).invoke(sys.argv[1:])
    if outcome.exception is not None:
        print(outcome.exception, file=sys.stderr)
        return 2
    return 0 if outcome.success else 1


if __name__ == "__main__":
    sys.exit(main())
