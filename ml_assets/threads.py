"""All cores for compiled loops: blocks of rows, each worked on by one thread.

Why not numba's own threads: a kernel that calls BLAS between its loops would have both libraries
start threads, and compiling for them takes seconds more. The kernels here release the interpreter
lock instead. A row's result must not depend on its block, so that neither the number of threads
nor the block size changes a bit of any result.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from queue import SimpleQueue
from typing import TypeVar

from threadpoolctl import ThreadpoolController

Scratch = TypeVar("Scratch")

# Users of a block where nothing speaks for another number: few enough that all cores get their
# share of a few thousand, many enough that handing them out costs nothing.
ROWS_PER_BLOCK = 512


def n_threads() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _libraries() -> ThreadpoolController:
    # Looking for them reads the process's memory map, which takes longer than a small block.
    return ThreadpoolController()


def over_blocks(
    work: Callable[[int, int, Scratch], None],
    n_rows: int,
    *,
    rows_per_block: int = ROWS_PER_BLOCK,
    scratch: Callable[[], Scratch],
) -> Iterator[int]:
    """Call `work(start, stop, scratch)` for consecutive blocks of rows, on all cores.

    Args:
        work: Writes its results into arrays of its own rows. Should release the interpreter lock.
        n_rows: Rows in all.
        rows_per_block: Rows of a block.
        scratch: Makes the memory that one thread needs; made once a thread, used again.

    Yields:
        After each block, in order, the number of rows done. Nothing runs unless it is iterated.
    """
    n_workers = n_threads()
    free: SimpleQueue[Scratch] = SimpleQueue()
    for _ in range(n_workers):
        free.put(scratch())

    def run(start: int) -> int:
        own = free.get()
        stop = min(start + rows_per_block, n_rows)
        try:
            work(start, stop, own)
        finally:
            free.put(own)
        return stop

    # One BLAS thread in each of ours: with more they would wait for each other.
    with _libraries().limit(limits=1, user_api="blas"), ThreadPoolExecutor(n_workers) as pool:
        yield from pool.map(run, range(0, n_rows, rows_per_block))


def run_over_blocks(
    work: Callable[[int, int, None], None], n_rows: int, *, rows_per_block: int = ROWS_PER_BLOCK
) -> None:
    """Call `work` for all blocks and wait: for work that needs no scratch memory."""
    for _ in over_blocks(work, n_rows, rows_per_block=rows_per_block, scratch=lambda: None):
        pass
