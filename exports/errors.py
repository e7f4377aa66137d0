"""What can go wrong while publishing and reading, each as a sentence that says what to do.

Belongs here: the exception classes of `exports`. Does not belong here: their wording, which stands
where the facts are known.
"""

import re
from urllib.parse import urlsplit, urlunsplit


class PublishError(Exception):
    """A version cannot be staged, written or switched to. The last published version stays live."""


class RedisLoadError(PublishError):
    """Redis did not take a version. `recmart:current` is as it was."""


class RedisAwayError(RedisLoadError):
    """Redis does not answer, or not yet: the same again may succeed a little later."""


class RedisServerError(PublishError):
    """The embedded Redis cannot be found, started or stopped."""


class ReaderError(Exception):
    """Neither Redis nor the snapshot could answer."""


def without_password(url: str) -> str:
    """The URL as it may be shown: user and password, and what follows the '?', left out."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def redis_remedy(text: str) -> str | None:
    """What to do about an error of Redis or TLS that loader and reader can both meet.

    Args:
        text: The error's words; of a missing right those of Redis 6 or 7.

    Returns:
        A sentence, or None for any other error.
    """
    said = text.lower()
    if "no permissions" in said:
        command = re.search(r"run the '([^']+)' command", said)
        right = f"+{command[1]}" if command else "~recmart:*"
        return (
            f"Its user lacks the right {right}: grant it with ACL SETUSER; docs/redis.md lists "
            "all that a publisher and a reader need."
        )
    if "certificate verify failed" in said:
        return (
            "Its certificate is not trusted: name the file of the authority that signed it "
            "(?ssl_ca_certs=/path/ca.pem at the end of the URL, or SSL_CERT_FILE in the "
            "environment), and the host for which it was made."
        )
    return None
