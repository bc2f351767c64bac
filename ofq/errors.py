"""Exceptions that are shown to users without a stack trace, with their exit codes."""

import errno
from collections.abc import Sequence

PERMANENT_ERRNOS = frozenset(
    {
        errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR,
        errno.EEXIST,
    }
)  # fmt: skip
"""OS errors that a retry cannot fix. All others, such as a full disk, are treated as transient."""

_SHOWN = 3


class UserError(ValueError):
    """A mistake that the user can fix.

    Only its message is shown, without a stack trace, so it says where the mistake is, what was
    given, and what is allowed.
    """

    exit_code = 2


class TryAgain(Exception):
    """Raised when a run can't continue now, without being at fault; the same command resumes it."""

    exit_code = 75  # BSD's EX_TEMPFAIL


class RunFailed(Exception):
    """Raised when a run can't be trained to completion; the same command would fail again."""

    exit_code = 3


def some(names: Sequence[str]) -> str:
    """Return the first few names and the number of the others, for a message."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
