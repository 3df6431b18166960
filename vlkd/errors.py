"""The one error type that reaches a user as a single line instead of a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Input that the user can mend: one line naming the file, key or class, what was expected, what to do."""

    def __str__(self) -> str:
        text = super().__str__()
        # torch makes the traceback in a DataLoader's worker process the message, ours its last line.
        return text.strip().rpartition("UserError: ")[2] if text.startswith("Caught UserError in") else text


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raises the UserError that another error was made of: libraries that call us wrap ours in their own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise cause from None
