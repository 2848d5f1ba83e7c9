"""Errors that a user can mend, told apart from faults of the program."""

__all__ = ["UsageError"]


class UsageError(ValueError):
    """A request that cannot be carried out as it was made: one line that says what was expected, what came, what to do.

    The command line prints it without a traceback and exits with code 2; nothing has been written by then.
    """
