"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
    """A mistake the user can mend.

    Its message is all that is shown, without a stack trace, so it says where the mistake is,
    what was given, and what is allowed.
    """
