"""Dagster's event log in SQLite files as ever, with connections that are kept open.

Dagster makes a new engine for every read and write of its log, and with it compiles every statement
anew and opens the file again: a third of the time is left when it does not, and events are a
quarter of what a small run takes. `dagster.yaml` names this class; files and tables are Dagster's
own, so an instance without it reads them as well. Nor does each event wait for the disk: what a
power cut can cost is the last events, not the file (SQLite's documentation of `synchronous` in WAL
mode); a process that is killed loses none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from dagster._core.event_api import EventHandlerFn
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorageWatchdog
from dagster._core.storage.sql import create_engine
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._serdes import ConfigurableClassData
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from watchdog.events import FileSystemEvent
from watchdog.observers import Observer

# The run that writes and the index across runs; the UI looks at a few runs by turns.
_MOST_OPEN = 8


class KeptOpenEventLog(SqliteEventLogStorage):
    """One engine a file, for the files used last."""

    _obs: Any

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engines: dict[str, Engine] = {}
        super().__init__(base_dir, inst_data)

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:
        """Of an instance.

        Args:
            inst_data: What Dagster makes it from again in another process.
            config_value: `base_dir`, the folder of the instance: the files are where Dagster's own
                class puts them.
        """
        return cls(str(Path(config_value["base_dir"]) / "history" / "runs"), inst_data)

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        # One user at a time, as in the class this is made from: threads share a connection.
        with self._db_lock, self._engine(shard).connect() as connection, connection.begin():
            yield connection

    def _engine(self, shard: str) -> Engine:
        engine = self._engines.pop(shard, None)
        if engine is not None and not Path(self.path_for_shard(shard)).exists():
            # Wiped: what is open is a file without a name.
            engine.dispose()
            engine = None
        if engine is None:
            engine = create_engine(
                self.conn_string_for_shard(shard),
                connect_args={
                    "timeout": SQLITE_BUSY_TIMEOUT_SECONDS,
                    "check_same_thread": False,
                },
            )
            event.listen(engine, "connect", _wait_for_no_disk)
            self._initdb(engine)
        self._engines[shard] = engine
        if len(self._engines) > _MOST_OPEN:
            self._engines.pop(next(iter(self._engines))).dispose()
        return engine

    def watch(self, run_id: str, cursor: str | None, callback: EventHandlerFn) -> None:
        """Tell the UI of each new event of a run."""
        if self._obs is None:
            self._obs = Observer()
            self._obs.start()
        watchdog = _Watchdog(self, run_id, callback, cursor)
        watch = self._obs.schedule(watchdog, self._base_dir, recursive=True)
        self._watchers[run_id][callback] = (watchdog, watch)

    def dispose(self) -> None:
        """Close all files."""
        super().dispose()
        for engine in self._engines.values():
            engine.dispose()
        self._engines.clear()


class _Watchdog(SqliteEventLogStorageWatchdog):
    """Looks where events are first: SQLite moves them from the write-ahead log now and then.

    Dagster's own looks at the file alone, which is written whenever it is closed.
    """

    @property
    def patterns(self) -> list[str]:
        """The files of the run."""
        return [self._log_path, f"{self._log_path}-wal"]

    def on_modified(self, event: FileSystemEvent) -> None:
        """Tell of what is new, whichever of the files it is in."""
        self._process_log()


def _wait_for_no_disk(connection: Any, _: Any) -> None:
    connection.execute("pragma synchronous = normal")
