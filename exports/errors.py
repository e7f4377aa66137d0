"""What can go wrong while publishing and reading, each as a sentence that says what to do.

Belongs here: the exception classes of `exports`. Does not belong here: their wording, which stands
where the facts are known.
"""

import re
from urllib.parse import urlsplit


class PublishError(Exception):
    """A version cannot be staged, written or switched to. The last published version stays live."""


class RedisLoadError(PublishError):
    """Redis did not take a version. `recmart:current` is as it was."""


class RedisAwayError(RedisLoadError):
    """Redis does not answer, or not yet: the same again may succeed a little later."""


class RedisServerError(PublishError):
    """The embedded Redis cannot be found, started or stopped."""


class SettingError(PublishError):
    """A value of the environment makes no sense."""


class PseudonymError(Exception):
    """The key of pseudonyms is missing, unusable, or not the one that ids were replaced with."""


class ReaderError(Exception):
    """Neither Redis nor the snapshot could answer."""


def without_password(url: str) -> str:
    """The URL as it may be shown: user and password, and what follows the '?', left out."""
    # Not by urllib: for it a / # or ? in the password is the end of the host.
    found = re.match(r"(\w+://)?(.*@)?([^?#]*)", url, re.DOTALL)
    assert found is not None
    scheme, secret, host = found.groups("")
    # Behind a '?', what follows the @ may be the end of a password.
    return scheme + ("..." if "?" in secret else host)


def check_redis_address(url: str) -> None:
    """See that a URL can be one of Redis, and that urllib finds the host in it.

    Raises:
        ValueError: if not, with a sentence that may be shown.
    """
    try:
        parts = urlsplit(url)
        # A port that is no number raises when it is asked for.
        is_address = parts.scheme in {"redis", "rediss", "unix"} and parts.port != 0
    except ValueError:
        is_address = False
    else:
        is_address &= "@" not in parts.path + parts.query + parts.fragment
    if not is_address:
        # Outside the `except`: what urllib says quotes a piece of the password.
        raise ValueError(
            f"{without_password(url)} is not a Redis address: expected is redis://host:6379/0, "
            "rediss://user:password@host:6379/0 or unix:///path/to/socket, where user and password "
            "have % / ? # and @ percent-encoded: %25 %2F %3F %23 %40"
        )


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
