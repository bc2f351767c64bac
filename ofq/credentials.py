"""Credentials in URIs: where they may not stand, and how they are kept out of what is printed."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast
from urllib.parse import unquote

from ofq.errors import UserError

_HIDDEN = "***"
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD")
_URI = "MLFLOW_TRACKING_URI"

# greedy up to the last @, since a password may hold one; a name alone is a secret only in HTTP,
# where it may be a token
_USERINFO = re.compile(
    r"(?:(?<=http://)|(?<=https://)|(?<=://)(?=[^\s'\"<>]*:[^\s'\"<>]*@))[^\s'\"<>]*@"
)
_PARAMETER = re.compile(r"(?<=[?&])(\w*(?:password|passwd|token|secret))=[^&\s'\"]+", re.I)


def refuse_credentials(uri: str, source: str) -> None:
    """Make sure that a tracking URI names no password.

    Args:
        uri: The URI.
        source: Where it stood, for the error.

    Raises:
        UserError: It does.
    """
    if _without_credentials(uri) != uri:
        raise UserError(
            f"{source} holds credentials, which would end up in logs and backups; leave them out, "
            "and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for a tracking server, "
            "or MLFLOW_TRACKING_URI (with no 'tracking_uri' in config/config.yaml) for a database"
        )


def redact(text: str) -> str:
    """Text without the credentials of its URIs, and without those that the environment holds."""
    for secret in _secrets():
        text = text.replace(secret, _HIDDEN)
    return _without_credentials(text)


@contextmanager
def redacted_output() -> Iterator[None]:
    """Redact all that is printed or logged: libraries put whole URIs into their messages."""
    import sys

    out, err = _Redacted(sys.stdout), _Redacted(sys.stderr)
    with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
        yield


class _Redacted:
    """A text stream that redacts what is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(redact(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _without_credentials(text: str) -> str:
    return _PARAMETER.sub(rf"\1={_HIDDEN}", _USERINFO.sub(f"{_HIDDEN}@", text))


def _secrets() -> list[str]:
    """The passwords and tokens in the environment, as they are and percent-decoded."""
    found = [os.environ.get(name, "") for name in _SECRETS]
    userinfo = os.environ.get(_URI, "").partition("://")[2].rpartition("@")[0]
    found.append(userinfo.partition(":")[2])
    return sorted({s for secret in found if secret for s in (secret, unquote(secret))})
