"""How a process of the line ends."""

import os
import sys
from typing import NoReturn


def end_process(code: int) -> NoReturn:
    """End with this exit code, and without Python taking itself apart.

    It takes most of a second for what nobody needs any more, and DuckDB's bindings print pages
    about leaked references while it does. What has to be closed is for the caller to close.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
