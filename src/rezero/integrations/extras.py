"""The error of a library that is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["needs"]


@contextmanager
def needs(library: str, *, extra: str) -> Iterator[None]:
    """Say which extra to install, where an import fails.

    Args:
        library: What is imported, as its users call it.
        extra: The extra of this package that brings it.

    Yields:
        Nothing.

    Raises:
        ImportError: If the import fails.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{library} can't be imported ({error}): pip install 'rezero-torch[{extra}]'") from error
