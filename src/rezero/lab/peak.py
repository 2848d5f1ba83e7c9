"""The most memory that was held: what a trial takes."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["peak_memory", "peak_of_process"]


@contextmanager
def peak_memory(device: "torch.device") -> Iterator[Callable[[], float | None]]:
    """Measure the most memory that was held since the block began.

    Args:
        device: A CUDA device is asked what tensors took there; for the CPU, Linux what the whole process held, Python
            and libraries among it.

    Yields:
        Returns the number of bytes so far; None where nobody knows.
    """
    if device.type == "cuda":
        import torch

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
