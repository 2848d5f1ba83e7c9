"""Memory: what a study would not get is said in one line, and what a trial took at its peak is measured."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn

from rezero.errors import UsageError
from rezero.lab.settings import Settings

__all__ = ["check_memory", "memory_named", "peak_memory", "peak_of_process"]


def check_memory(model: nn.Module, settings: Settings) -> None:
    """Refuse a model whose weights and gradients alone are more than the device can hold.

    Args:
        model: The model, on the meta device.
        settings: The study's settings.

    Raises:
        UsageError: If the device has not that much memory.
    """
    needed = sum(parameter.nbytes for parameter in model.parameters())
    with memory_named(settings):
        torch.empty(min(2 * needed, 1 << 62), dtype=torch.uint8, device=settings.device)  # let go untouched


@contextmanager
def memory_named(settings: Settings) -> Iterator[None]:
    """Turn what torch raises where memory runs out into one line.

    Args:
        settings: The study's settings.

    Yields:
        Nothing.

    Raises:
        UsageError: If memory runs out in the block.
    """  # noqa: DOC501 - what is about something else passes through
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        named = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not named and "can't allocate memory" not in str(error):  # what the CPU's allocator says
            raise
        raise UsageError(
            f"{settings.device} has not the memory for depth {settings.depth}, width {settings.width} and batch-size "
            f"{settings.batch_size}: make them smaller, or compute a batch in more parts with --accumulate"
        ) from error


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], float | None]]:
    """Measure the most memory that was held since the block began.

    Args:
        device: A CUDA device is asked what tensors took there; for the CPU, Linux what the whole process held, Python
            and libraries among it.

    Yields:
        Returns the number of bytes so far; None where nobody knows.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: float(torch.cuda.max_memory_allocated(device))
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    yield peak_of_process


def peak_of_process() -> float | None:
    """Return the most bytes that this process has held.

    Returns:
        The number; None where the system does not say.
    """
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii")):
            return 1024.0 * int(found[1])
    return None
