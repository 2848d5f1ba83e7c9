"""What the command line shows while something takes its time, other than a study."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

__all__ = ["busy", "bytes_bar"]


@contextmanager
def busy(doing: str) -> Iterator[None]:
    """Say what is being done, as long as that takes.

    Args:
        doing: What.

    Yields:
        Nothing.
    """
    with Console(stderr=True).status(doing):
        yield


@contextmanager
def bytes_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a download.

    Args:
        name: What is downloaded.

    Yields:
        A function to be told the bytes that are there and the bytes in all, None if that is not known.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda there, total: bar.update(task, completed=there, total=total)
