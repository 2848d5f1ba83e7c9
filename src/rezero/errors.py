"""Errors that a user can mend, told apart from faults of the program."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["MissingDataError", "TooManyError", "UsageError", "near"]


class UsageError(ValueError):
    """A request that cannot be carried out as it was made: one line that says what was expected, what came, what to do.

    The command line prints it without a traceback and exits with code 2; nothing has been written by then.
    """


class MissingDataError(UsageError):
    """A data set that is in none of the places where it is looked for."""


class TooManyError(UsageError):
    """More singular values are asked for than can be had.

    Args:
        message: What is said.
        shape: ``(m, n)``, the Jacobian's.
        most: How many can be had.
    """

    def __init__(self, message: str, shape: tuple[int, int], most: int) -> None:
        super().__init__(message)
        self.shape, self.most = shape, most


def near(name: str, known: Iterable[str], *, count: int = 1) -> str:
    """Return a remark on the known names that may have been meant, or nothing.

    Args:
        name: What was asked for.
        known: What there is.
        count: How many are named.

    Returns:
        Text that follows the name in a message.

    Example:
        >>> near("resnet5", ["resnet50", "resnet50d", "vit"], count=2)
        " (did you mean 'resnet50' or 'resnet50d'?)"
    """
    alike = get_close_matches(name, sorted(known), n=count)
    if count > 1 and name:
        alike = [each for each in sorted(known) if each.startswith(name)][:count] or alike
    return f" (did you mean {' or '.join(map(repr, alike))}?)" if alike else ""
