"""Memory that a study would not get is named in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from rezero.errors import UsageError
from rezero.lab.settings import Settings

__all__ = ["check_memory", "memory_named"]


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
