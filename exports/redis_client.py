"""Connections to Redis for the loader, and what their errors mean.

Belongs here: connecting, sending, counting replies, turning every refusal into a sentence. Does not
belong here: what is sent (`redis_commands.py`) and why (`redis_load.py`).
"""

import selectors
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from exports.errors import (
    RedisAwayError,
    RedisLoadError,
    check_redis_address,
    redis_remedy,
    without_password,
)

# A server that takes nothing for so long is stopped or swapping.
_STALL_SECONDS = 30.0
_PIECE_BYTES = 1 << 18

_OPTIONS: dict[str, Any] = {
    # Protocol 2: replies are lines of one kind each, so that counting them needs no parser.
    "protocol": 2,
    "single_connection_client": True,
    "socket_connect_timeout": 5.0,
    "socket_timeout": _STALL_SECONDS,
    # The step is what is retried, since a server that came back may have lost keys.
    "retry": Retry(NoBackoff(), 0),
}

_REMEDIES = {
    "OOM": "Its memory is full: raise maxmemory, or keep fewer versions.",
    "NOAUTH": "It wants a password: set REDIS_URL to redis://user:password@host:port/0.",
    "WRONGPASS": "User or password is wrong: correct them in REDIS_URL.",
    "READONLY": "It is a replica: set REDIS_URL to the primary.",
    "MISCONF": "It cannot save to its disk and therefore refuses writes: free disk space there.",
    "LOADING": "It is still reading its data from disk: run again in a minute.",
    "WRONGTYPE": "A key of another type is in the way: nothing else may use the prefix recmart:.",
    "MASTERDOWN": "It is a replica that has lost its primary: set REDIS_URL to the primary.",
    "TRYAGAIN": "It is part of a cluster that moves its keys: set REDIS_URL to a single server.",
    **dict.fromkeys(
        ("MOVED", "ASK", "CROSSSLOT", "CLUSTERDOWN"),
        "It is part of a cluster: set REDIS_URL to a single server.",
    ),
}
# What passes by itself.
_AWAY = {"LOADING", "MASTERDOWN", "TRYAGAIN"}


@contextmanager
def connected(redis_url: str) -> Iterator[redis.Redis]:
    """One connection, closed at the end; every error of the library becomes our sentence."""
    try:
        check_redis_address(redis_url)
        client = redis.Redis.from_url(redis_url, **_OPTIONS)
    except ValueError as error:
        raise RedisLoadError(f"REDIS_URL cannot be used: {error}.") from error
    except (redis.RedisError, OSError) as error:
        raise explained(error, redis_url) from error
    try:
        yield client
    except (redis.RedisError, OSError) as error:
        raise explained(error, redis_url) from error
    finally:
        client.close()


def explained(error: Exception | str, redis_url: str) -> RedisLoadError:
    """An error of redis-py, or an error reply as it came, as a sentence that says what to do."""
    text = str(error)
    where = f"Redis at {without_password(redis_url)}"
    # redis-py cuts the codes that it knows off the text.
    code = getattr(error, "status_code", None) or text.split(" ", 1)[0]
    if isinstance(error, redis.AuthenticationError) and code not in _REMEDIES:
        code = "NOAUTH" if "required" in text.lower() else "WRONGPASS"
    if remedy := redis_remedy(text):
        return RedisLoadError(f"{where} cannot be used: {text}. {remedy}")
    if code in _REMEDIES:
        kind = RedisAwayError if code in _AWAY else RedisLoadError
        return kind(f"{where} refused: {text}. {_REMEDIES[code]}")
    if isinstance(error, (redis.ConnectionError, redis.TimeoutError, OSError)):
        return RedisAwayError(
            f"{where} does not answer ({text}). Start it, or set REDIS_URL to one that runs "
            f"(rediss:// where it speaks TLS, redis:// where not), and run again."
        )
    return RedisLoadError(f"{where} refused: {text}.")


class Stream:
    """One socket to Redis: sends bytes of the protocol as they are and counts the replies.

    The redis-py connection does the opening (TLS, login, database number). One thread writes and
    reads in turn, since an SSL socket does not bear two.
    """

    def __init__(self, redis_url: str) -> None:
        self._url = redis_url
        self._client = redis.Redis.from_url(redis_url, **_OPTIONS)
        connection = self._client.connection
        assert connection is not None
        connection.connect()
        # Private to redis-py, and the only way to send bytes while replies come in.
        opened: object = connection._sock
        assert isinstance(opened, socket.socket)
        self._socket: socket.socket = opened
        self._socket.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._replies = _Replies(redis_url)
        self._n_awaited = 0

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._selector.close()
        self._client.close()

    def send(self, commands: memoryview, n_replies: int) -> None:
        """Send commands, and read what replies are there by then. The memory is free afterwards.

        Raises:
            RedisLoadError: at the first reply that is an error.
        """
        self._n_awaited += n_replies
        n_sent = 0
        while n_sent < len(commands):
            self._wait(selectors.EVENT_READ | selectors.EVENT_WRITE)
            self._receive()
            n_sent += self._send(commands[n_sent : n_sent + _PIECE_BYTES])

    def finish(self) -> None:
        """Wait for the replies to everything that was sent.

        Raises:
            RedisLoadError: at the first reply that is an error.
        """
        while self._replies.n < self._n_awaited:
            self._wait(selectors.EVENT_READ)
            self._receive()

    def _wait(self, events: int) -> None:
        self._selector.modify(self._socket, events)
        if not self._selector.select(_STALL_SECONDS):
            raise TimeoutError(f"nothing taken or answered for {_STALL_SECONDS:.0f} s")

    def _send(self, piece: memoryview) -> int:
        try:
            return self._socket.send(piece) if piece else 0
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    def _receive(self) -> None:
        # Until nothing is left: TLS may hold decrypted bytes that the selector cannot see.
        while True:
            try:
                received = self._socket.recv(_PIECE_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            if not received:
                raise ConnectionResetError("the server closed the connection")
            self._replies.add(received)


class _Replies:
    """Counts replies of one line each: :number, or -error."""

    def __init__(self, redis_url: str) -> None:
        self.n = 0
        self._url = redis_url
        self._rest = b""

    def add(self, received: bytes) -> None:
        lines, end, self._rest = (self._rest + received).rpartition(b"\r\n")
        if not end:
            return
        self.n += lines.count(b"\r\n") + 1
        if b"-" in lines:
            error = next(line for line in lines.split(b"\r\n") if line.startswith(b"-"))
            raise explained(error[1:].decode(errors="replace"), self._url)
