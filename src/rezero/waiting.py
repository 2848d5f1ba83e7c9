"""What the command line shows while something takes its time, other than a study."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

__all__ = ["busy", "bytes_bar", "share_bar"]


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


@contextmanager
def share_bar(name: str) -> Iterator[Callable[[float, str], None]]:
    """Show how much of a measurement is done, where that is a terminal.

    Args:
        name: What is measured.

    Yields:
        A function to be told the share that is done, from 0 to 1, and what is done next.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(name, total=1.0)
        yield lambda share, doing: bar.update(task, completed=share, description=f"{name}: {doing}")
