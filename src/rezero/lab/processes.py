"""The processes that train one model together, and their device: Accelerate, told exactly what it should be."""

import itertools
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from rezero.errors import UsageError
from rezero.lab.settings import Settings

__all__ = ["add_gradients_", "agree", "open_processes", "share_", "world_size"]

T = TypeVar("T")
_groups = itertools.count()  # of this process; the others count alike, for they do the same studies
_NUMBERS, _ADDRESS = ("WORLD_SIZE", "RANK", "LOCAL_RANK"), ("MASTER_ADDR", "MASTER_PORT")  # what torchrun sets


def world_size() -> int:
    """Return how many processes torchrun has started to train together, 1 if it has not.

    Returns:
        The number.

    Raises:
        UsageError: If the variables that torchrun sets are incomplete, or not the numbers that they should be.
    """
    given = {name: text for name in (*_NUMBERS, *_ADDRESS) if (text := os.environ.get(name))}
    if given.get("WORLD_SIZE", "1") == "1" and "LOCAL_RANK" not in given:
        return 1
    advice = f"start the processes with torchrun, or unset {' and '.join(given)}"
    if missing := [name for name in (*_NUMBERS, *_ADDRESS) if name not in given]:
        raise UsageError(f"expected all the variables that torchrun sets, got no {' and no '.join(missing)}: {advice}")
    numbers = {name: int(given[name]) if given[name].isdecimal() else -1 for name in _NUMBERS}
    if not -1 < numbers["RANK"] < numbers["WORLD_SIZE"] or numbers["LOCAL_RANK"] < 0:
        shown = ", ".join(f"{name}={given[name]}" for name in _NUMBERS)
        raise UsageError(f"expected numbers from torchrun, a RANK from 0 and below WORLD_SIZE, got {shown}: {advice}")
    return numbers["WORLD_SIZE"]


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
    precision = "bf16" if settings.precision == "bf16" else "no"
    with nullcontext() if settings.processes == 1 else _ended_by_ctrl_c():
        if settings.processes == world_size() > 1 and not dist.is_initialized():
            _join(device)
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
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


def _join(device: torch.device) -> None:
    # In a store that all groups share, a process that is ahead would find the addresses of the group before.
    store = PrefixStore(f"rezero-{next(_groups)}", _meeting_point())
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=size)


@cache
def _meeting_point() -> Store:
    store: Store = next(rendezvous("env://", timeout=default_pg_timeout))[0]
    return store


@contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    # The processes wait for one another in C++, which hears no KeyboardInterrupt: one that lost the others to an early
    # Ctrl-C would wait until torchrun kills it, for half a minute.
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


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


def share_(tensors: Iterable[Tensor], accelerator: Accelerator) -> None:
    """Give every process the first one's values.

    Args:
        tensors: As many and of the same shapes in every process.
        accelerator: The processes.
    """
    if accelerator.num_processes > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def add_gradients_(model: nn.Module, accelerator: Accelerator) -> None:
    """Replace each gradient by its sum over the processes.

    They are added as one vector, always in the order of the parameters, for with three processes or more the place of a
    number decides in which order its terms are added up. DistributedDataParallel builds its buckets anew after its
    first step, so that a run that goes on from a checkpoint would leave the path of one that was never stopped.

    Args:
        model: The same in every process, its gradients those of the process's part of the batch.
        accelerator: The processes.
    """
    if accelerator.num_processes == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if not gradients:
        return
    joined = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(joined)
    for gradient, part in zip(gradients, joined.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
