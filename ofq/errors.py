"""The one exception that stands for a user's mistake."""

from collections.abc import Sequence

_SHOWN = 3


class UserError(ValueError):
    """A mistake the user can mend.

    Its message is all that is shown, without a stack trace, so it says where the mistake is,
    what was given, and what is allowed.
    """


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are, for a message."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
