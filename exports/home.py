"""The folder of the line, RECMART_HOME: where it is, and who may read what is written there.

Belongs here: what also programs need that run beside the line. Does not belong here: all else that
the environment says of the line (`orchestration/settings.py`).
"""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def home_of_line() -> Path:
    """RECMART_HOME; without it the folder `var` beside the code, wherever one stands."""
    return Path(os.environ.get("RECMART_HOME") or REPOSITORY / "var").resolve()


def keep_private() -> None:
    """Let what this process writes be read by its user and group alone, whatever its umask is.

    Customers' ids are in the warehouse, in what is published and in the logs. A folder that is
    there already keeps its rights.
    """
    os.umask(os.umask(0o077) | 0o027)
