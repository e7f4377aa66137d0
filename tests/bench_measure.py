"""How the benchmarks measure, and what a figure is before it is on a page.

Rivals are run in turn, A B C A B C, so that whatever else the machine does meets all of them, and
the median counts. Nothing here knows what is measured.
"""

import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestration.settings import REPOSITORY

GIB = 1 << 30
_LIBRARIES = (
    "duckdb",
    "polars",
    "pyarrow",
    "numpy",
    "scipy",
    "numba",
    "implicit",
    "faiss-cpu",
    "dagster",
    "dbt-core",
    "redis",
)


@dataclass(frozen=True)
class Row:
    """One figure. `notes` has a value for each of the section's `columns`."""

    what: str
    seconds: float
    peak_bytes: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """A stage beside its rivals.

    Attributes:
        title: A heading.
        text: What was measured on what.
        rows: The figures.
        beside: The row whose seconds are 1.0 in the column of ratios; None for no such column.
        columns: Names of the rows' notes.
        memory: What the column of memory is.
    """

    title: str
    text: str
    rows: tuple[Row, ...]
    beside: str | None
    columns: tuple[str, ...] = ()
    memory: str = "memory on top, GiB"

    def seconds(self, what: str) -> float:
        """Of the row of that name."""
        return next(row.seconds for row in self.rows if row.what == what)

    def ratio(self, what: str, beside: str) -> float:
        """How many times as long the one takes as the other."""
        return self.seconds(what) / self.seconds(beside)


@dataclass(frozen=True)
class Timing:
    """Median seconds of some runs, the most memory one took on top, and the last run's result."""

    seconds: float
    extra_bytes: int
    result: Any

    def row(self, what: str, *notes: str) -> Row:
        """As a figure of a section."""
        return Row(what, self.seconds, self.extra_bytes, notes)


def in_turn(rivals: Mapping[str, Callable[[], Any]], *, n_runs: int) -> dict[str, Timing]:
    """Run all rivals, then all again."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    extra = dict.fromkeys(rivals, 0)
    results: dict[str, Any] = {}
    for _ in range(n_runs):
        for name, run in rivals.items():
            results.pop(name, None)
            before = resident_bytes(os.getpid())
            with peak_of(lambda: resident_bytes(os.getpid())) as peak:
                started = time.perf_counter()
                results[name] = run()
                seconds[name].append(time.perf_counter() - started)
            extra[name] = max(extra[name], peak() - before)
    return {
        name: Timing(statistics.median(each), extra[name], results[name])
        for name, each in seconds.items()
    }


@contextmanager
def peak_of(look: Callable[[], int], every_seconds: float = 0.02) -> Iterator[Callable[[], int]]:
    """The largest of what `look` sees while the block runs; to be asked after it."""
    seen = [look()]
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(every_seconds):
            seen[0] = max(seen[0], look())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: seen[0]
    finally:
        seen[0] = max(seen[0], look())
        finished.set()
        watcher.join()


@dataclass(frozen=True)
class Measured:
    """A finished command.

    Attributes:
        seconds: On the wall.
        cpu_seconds: Of all cores, as far as its processes have ended with it.
        peak_bytes: The most memory that its processes held together.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def measure(command: list[str], environment: Mapping[str, str], log: Path) -> Measured:
    """Run a command to its end.

    Raises:
        SystemExit: with the end of its output, if it fails.
    """
    with log.open("w") as output:
        started, cpu_before = time.monotonic(), _cpu_of_children()
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=output, stderr=output, cwd=REPOSITORY
        )
        with peak_of(lambda: sum(map(resident_bytes, family(process.pid))), 0.1) as peak:
            code = process.wait()
            seconds = time.monotonic() - started
    if code:
        sys.exit(f"{' '.join(command)} failed:\n" + log.read_text()[-3000:])
    return Measured(seconds, _cpu_of_children() - cpu_before, peak())


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def family(pid: int) -> list[int]:
    """The process and all its descendants that are alive."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    members, waiting = [], [pid]
    while waiting:
        members.append(waiting.pop())
        waiting += children.get(members[-1], [])
    return members


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def machine() -> str:
    """Processor, cores, memory, versions and the BLAS library's kernel, as a sentence each."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    blas = ", ".join(
        f"{each['internal_api']} {each['version']} ({each.get('architecture', 'unknown')} kernels)"
        for each in _blas()
    )
    libraries = ", ".join(f"{name} {found}" for name in _LIBRARIES if (found := _version(name)))
    return (
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB of memory,"
        f" {platform.system()}. Python {platform.python_version()}, {libraries}. numpy's matrix"
        f" products: {blas}."
    )


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        # Rivals are installed for benchmarks alone.
        return None


def blas_kernels() -> str:
    """The kernels that numpy's OpenBLAS has chosen; empty for another library."""
    return next((str(each["architecture"]) for each in _blas() if "architecture" in each), "")


def _blas() -> list[dict[str, Any]]:
    # Only libraries that are loaded are seen.
    import numpy  # noqa: F401
    from threadpoolctl import threadpool_info

    return [each for each in threadpool_info() if each["user_api"] == "blas"]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def as_markdown(section: Section) -> str:
    """A heading, the text and a table."""
    has_memory = any(row.peak_bytes is not None for row in section.rows)
    header = ["", "seconds"]
    header += ["ratio"] * (section.beside is not None)
    header += [section.memory] * has_memory
    header += section.columns
    lines = [f"## {section.title}", "", section.text, "", _line(header), "|---" * len(header) + "|"]
    for row in section.rows:
        cells = [row.what, f"{row.seconds:.2f}"]
        if section.beside is not None:
            cells.append(f"{row.seconds / section.seconds(section.beside):.2f}")
        if has_memory:
            cells.append("" if row.peak_bytes is None else f"{row.peak_bytes / GIB:.2f}")
        lines.append(_line([*cells, *row.notes]))
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
