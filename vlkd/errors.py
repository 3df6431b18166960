"""The one error type that reaches a user as a single line instead of a traceback."""


class UserError(Exception):
    """Input that the user can mend: one line naming the file, key or class, what was expected, what to do."""
