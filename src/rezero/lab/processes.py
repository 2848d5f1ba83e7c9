"""The processes that train one model together, and their device: Accelerate, told exactly what it should be."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

from rezero.errors import UsageError
from rezero.lab.settings import Settings

__all__ = ["agree", "open_processes"]

T = TypeVar("T")


@contextmanager
def open_processes(settings: Settings) -> Iterator[Accelerator]:
    """Join the other processes, if there are any, on the settings' device, threads and precision.

    Args:
        settings: Device, threads, processes and precision.

    Yields:
        The accelerator.

    Raises:
        UsageError: If the processes are not as many as the settings say.
    """
    threads = torch.get_num_threads()
    device = torch.device(settings.device)
    if device.index is not None:
        os.environ["ACCELERATE_TORCH_DEVICE"] = settings.device
    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier study may have had another precision
    accelerator = Accelerator(
        cpu=device.type == "cpu", mixed_precision="bf16" if settings.precision == "bf16" else "no"
    )
    torch.set_num_threads(settings.threads)  # after Accelerate, which sets them too
    deterministic = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        # Accelerate falls back to one process without a word.
        if accelerator.num_processes != settings.processes or accelerator.device.type != device.type:
            raise UsageError(
                f"expected {settings.processes} processes on {device.type}, got {accelerator.num_processes} on "
                f"{accelerator.device.type}: start them with torchrun --nproc-per-node {settings.processes}"
            )
        yield accelerator
    finally:
        torch.backends.cudnn.deterministic = deterministic
        torch.set_num_threads(threads)
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
        accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)


def agree(accelerator: Accelerator, value: T) -> T:
    """Return the first process's value in every process.

    Args:
        accelerator: The processes.
        value: Looked at in the first process only.

    Returns:
        The value.
    """
    if accelerator.num_processes == 1:
        return value
    shared = [value]
    broadcast_object_list(shared)
    return shared[0]
