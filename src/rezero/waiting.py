"""What the command line shows while something takes its time, other than a study."""

import time
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

EVERY = 10.0  # seconds between two lines of what is no terminal


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
    """Show how much of a measurement is done: a bar on a terminal, elsewhere a line each ten seconds.

    Args:
        name: What is measured.

    Yields:
        A function to be told the share that is done, from 0 to 1, and what is done next.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(name, console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=1.0)
        yield lambda share, doing: bar.update(task, completed=share, description=f"{name}: {doing}")


def _lines(name: str, console: Console) -> Callable[[float, str], None]:
    said = time.monotonic()

    def tell(share: float, doing: str) -> None:
        nonlocal said
        if time.monotonic() - said >= EVERY:
            said = time.monotonic()
            console.print(f"{name}: {share:.0%} done, {doing}", soft_wrap=True, highlight=False, markup=False)

    return tell
