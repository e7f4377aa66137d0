"""How a process of the line begins and ends."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def imported_at_once() -> Iterator[None]:
    """Around imports: nobody looks for garbage before all is there, nor at it afterwards.

    With Dagster come half a million objects that stay. To go through them for cycles time and again
    takes a fifth of the time of importing them.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def end_process(code: int) -> NoReturn:
    """End with this exit code, and without Python taking itself apart.

    It takes most of a second for what nobody needs any more, and DuckDB's bindings print pages
    about leaked references while it does. What has to be closed is for the caller to close.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
