"""Exceptions whose message is all that a user is shown, and what the process exits with."""

import errno
from collections.abc import Sequence

PERMANENT_ERRNOS = frozenset(
    {
        errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR,
        errno.EEXIST,
    }
)  # fmt: skip
"""What a file system says of mistakes; all else, such as a full disk, may pass."""

_SHOWN = 3


class UserError(ValueError):
    """A mistake the user can mend.

    Its message is all that is shown, without a stack trace, so it says where the mistake is,
    what was given, and what is allowed.
    """

    exit_code = 2


class TryAgain(Exception):
    """Nothing is wrong with a run, but it can't go on now; the same command goes on later."""

    exit_code = 75  # BSD's EX_TEMPFAIL


class RunFailed(Exception):
    """A run can't be trained to its end; the same command would fail again."""

    exit_code = 3


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are, for a message."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
