"""Where the Triton kernels serve: on a GPU, unless something wants to see every operation."""

import functools
import importlib.util
import warnings

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

__all__ = ["are_plain", "can_fuse", "is_autocast"]

_DEVICES = {"cuda"}
_DTYPES = {torch.float16, torch.bfloat16, torch.float32}


def can_fuse(*given: Tensor | None) -> bool:
    """Tell whether the Triton kernels may take these tensors.

    Under `torch.compile` they need not: Inductor fuses the plain operations with what stands around them.

    Args:
        *given: The tensors; None for one that is not there.

    Returns:
        Whether all are plain tensors of one GPU, nobody watches, and Triton works there.
    """
    tensors = [each for each in given if each is not None]
    return (
        tensors[0].device.type in _DEVICES
        and not torch.compiler.is_compiling()
        and all(each.device == tensors[0].device for each in tensors)
        and ((kinds := {each.dtype for each in tensors}) <= _DTYPES or kinds == {torch.float64})
        and are_plain(*tensors)
        and forward_ad._current_level < 0
        and _works(tensors[0].device)
    )


def are_plain(*tensors: Tensor) -> bool:
    """Tell whether these are tensors of no class of somebody's own, and nothing wants to see every operation."""
    return all(type(each) in {Tensor, nn.Parameter} for each in tensors) and not _is_watched()


def is_autocast(tensor: Tensor) -> bool:
    """Tell whether autocast chooses the dtypes of operations on a tensor."""
    return tensor.device.type != "meta" and torch.is_autocast_enabled(tensor.device.type)


def _is_watched() -> bool:
    """Tell whether something wants to see every operation: torch.func, a mode of functions, jit's tracer."""
    # There is no public way to ask.
    return bool(
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_function_stack()
        or torch._C._get_tracing_state()
    )


@functools.cache
def _works(device: torch.device) -> bool:
    """Tell whether Triton runs there, after one warning if it is installed and does not."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        from rezero.kernels import triton_gate

        x, alpha = torch.zeros(2, device=device), torch.zeros(1, device=device)
        with torch.cuda.device_of(x):
            triton_gate.forward(x, x, alpha, None, None, 0.0)
    except Exception as error:  # from a compiler that is not there to a GPU that is too old
        warnings.warn(
            f"the gate runs in plain operations, which is slower, for want of its Triton kernels: {error}; Triton "
            "needs a C compiler (on Debian: apt install gcc) and a GPU that it knows",
            stacklevel=2,
        )
        return False
    return True
