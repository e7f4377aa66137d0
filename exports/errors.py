"""What can go wrong while publishing and reading, each as a sentence that says what to do.

Belongs here: the exception classes of `exports`. Does not belong here: their wording, which stands
where the facts are known.
"""

from urllib.parse import urlsplit, urlunsplit


class PublishError(Exception):
    """A version cannot be staged, written or switched to. The last published version stays live."""


class RedisLoadError(PublishError):
    """Redis did not take a version. `recmart:current` is as it was."""


class RedisServerError(PublishError):
    """The embedded Redis cannot be found, started or stopped."""


class ReaderError(Exception):
    """Neither Redis nor the snapshot could answer."""


def without_password(url: str) -> str:
    """The URL as it may be shown: user and password, and what follows the '?', left out."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
