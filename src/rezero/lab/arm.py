"""The arms of a study: variants of one model that differ in their residual formula."""

from collections.abc import Collection

from rezero.errors import UsageError, near

__all__ = ["parse_arms"]


def parse_arms(text: str, known: Collection[str]) -> tuple[str, ...]:
    """Read a list of arms such as ``"rezero,pre-norm"``.

    Args:
        text: Names separated by commas.
        known: The arms that the task defines.

    Returns:
        The names, in the order given.

    Raises:
        UsageError: If the list is empty, or a name is unknown or given twice.

    Example:
        >>> parse_arms("rezero, plain", ["plain", "rezero"])
        ('rezero', 'plain')
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UsageError(f"expected at least one arm, got {text!r}; choose from {', '.join(known)}")
    for name in names:
        if name not in known:
            raise UsageError(
                f"no arm of this task is called {name!r}{near(name, known)}; choose from {', '.join(known)}"
            )
        if names.count(name) > 1:
            raise UsageError(f"expected each arm once, got {name!r} {names.count(name)} times")
    return names
