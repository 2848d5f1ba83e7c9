"""The error of a library that is not installed, or does not load."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["advice", "needs"]


@contextmanager
def needs(library: str, *, extra: str) -> Iterator[None]:
    """Say what to install, where an import fails: an extra, or a torchvision that fits torch.

    Args:
        library: What is imported, as its users call it.
        extra: The extra of this package that brings it.

    Yields:
        Nothing.

    Raises:
        ImportError: If the import fails.
        RuntimeError: Any other of the library, as it is.
    """
    try:
        yield
    except (ImportError, RuntimeError) as error:
        mismatch, wanted = advice(error)
        if mismatch:  # whose traces lead through modules that are in order
            raise ImportError(f"{library} can't be imported ({mismatch}): {wanted}") from None
        if not isinstance(error, ImportError):
            raise
        raise ImportError(f"{library} can't be imported ({error}): pip install 'rezero-torch[{extra}]'") from error


def advice(error: BaseException) -> tuple[str, str]:
    """Find a torchvision that was built for another torch behind an error.

    Args:
        error: Any error; what it came from is looked at too.

    Returns:
        The words of that and what to do, or nothing twice.
    """
    cause: BaseException | None = error
    while cause is not None:
        if "torchvision::" in str(cause):
            return " ".join(str(cause).split()), "install torchvision and torch from the same release and build"
        cause = cause.__cause__ or cause.__context__
    return "", ""
