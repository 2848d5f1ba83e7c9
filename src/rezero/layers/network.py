"""What layers and networks of every family have in common: checks, gates by name, and a fresh start."""

from numbers import Real

import torch
from torch import Tensor, nn

from rezero.gate import Gate, gate_dtype
from rezero.kernels.fusing import is_autocast
from rezero.layers.residuals import RESIDUALS

__all__ = [
    "build_gate",
    "check_dropout",
    "check_ff_mult",
    "check_heads",
    "check_input",
    "check_residual",
    "check_sizes",
    "check_whole",
    "reset_children",
    "reset_xavier",
]


def check_whole(**numbers: int) -> None:
    """Refuse what is no whole number.

    Args:
        **numbers: Name of the argument to its value.

    Raises:
        TypeError: If one is no whole number.
    """
    for name, number in numbers.items():
        if isinstance(number, bool) or not (isinstance(number, int) or hasattr(number, "__index__")):
            raise TypeError(f"{name} must be a whole number: got {number!r}")


def check_sizes(**sizes: int) -> None:
    """Refuse a size below 1.

    Args:
        **sizes: Name of the argument to its value.

    Raises:
        TypeError: If one is no whole number.
        ValueError: If one is below 1.
    """
    check_whole(**sizes)
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1: got {size}")


def check_heads(dim: int, num_heads: int) -> None:
    """Refuse a width that does not divide into heads.

    Args:
        dim: Width.
        num_heads: Number of heads.

    Raises:
        TypeError: If one is no whole number.
        ValueError: If ``dim`` is no positive multiple of ``num_heads``.
    """
    check_whole(dim=dim, num_heads=num_heads)
    if num_heads < 1 or dim < 1 or dim % num_heads:
        raise ValueError(f"dim must be a positive multiple of num_heads: got {dim} and {num_heads}")


def check_dropout(dropout: float) -> None:
    """Refuse what is no probability.

    Args:
        dropout: Probability of dropping an entry.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not from 0 to 1.
    """
    if not isinstance(dropout, Real) or isinstance(dropout, bool):
        raise TypeError(f"dropout must be a probability from 0 to 1: got {dropout!r}")
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must be a probability from 0 to 1: got {dropout}")


def check_ff_mult(ff_mult: int) -> None:
    """Refuse a negative width; 0 stands for no feed-forward branch.

    Args:
        ff_mult: Width inside, in units of the width outside.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is negative.
    """
    check_whole(ff_mult=ff_mult)
    if ff_mult < 0:
        raise ValueError(f"ff_mult must be at least 0, which leaves the feed-forward branch out: got {ff_mult}")


def check_residual(residual: str) -> None:
    """Refuse a residual formula that does not exist.

    Args:
        residual: Name of the formula.

    Raises:
        ValueError: If it is no key of ``RESIDUALS``.
    """
    if residual not in RESIDUALS:
        raise ValueError(f"no residual formula is called {residual!r}: choose from {', '.join(RESIDUALS)}")


def check_input(name: str, tensor: Tensor, axes: str, width: int, weight: Tensor) -> None:
    """Refuse a tensor that the weights can't take.

    Args:
        name: What the caller calls it.
        tensor: The tensor.
        axes: Its axes, as ``"(B, T, D)"``, or ``"(*, D)"`` where their number is free.
        width: Size of the last one.
        weight: A weight, whose dtype and device it has to have; under autocast its dtype may be another.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If its shape, dtype or device does not fit.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor {axes}: got {type(tensor).__name__}")
    letters = axes.strip("()").split(", ")
    fits = tensor.ndim >= len(letters) - 1 if letters[0] == "*" else tensor.ndim == len(letters)
    if not fits or tensor.shape[-1] != width:
        raise ValueError(f"{name} must be {axes} with {letters[-1]} = {width}: got {tuple(tensor.shape)}")
    if tensor.device != weight.device:
        raise ValueError(
            f"{name} is on {tensor.device}, the layer's weights are on {weight.device}: move one of them with .to()"
        )
    if tensor.dtype != weight.dtype and not (tensor.is_floating_point() and is_autocast(tensor)):
        raise ValueError(
            f"{name} is {tensor.dtype}, the layer's weights are {weight.dtype}: convert one of them with .to(), or run "
            "both under torch.autocast"
        )


def build_gate(gate: str, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Gate:
    """Build a gate that starts at zero.

    Args:
        gate: ``"tanh"`` for ``tanh(alpha)``, ``"linear"`` for ``alpha`` itself.
        device: Device of ``alpha``.
        dtype: Dtype of the weights beside it; the gate is kept at least float32.

    Returns:
        The gate.

    Raises:
        ValueError: If it is another name.
    """
    if gate not in ("tanh", "linear"):
        raise ValueError(f"gate must be 'tanh' or 'linear': got {gate!r}")
    return Gate(activation="tanh" if gate == "tanh" else None, device=device, dtype=gate_dtype(dtype))


def reset_children(model: nn.Module) -> None:
    """Reset every module inside a model, each after those inside it, so that the outermost has the last word.

    Args:
        model: The model; its own ``reset_parameters`` is not called.
    """
    for module in reversed(list(model.modules())):
        reset = getattr(module, "reset_parameters", None)
        if module is not model and reset is not None:
            reset()


def reset_xavier(model: nn.Module) -> None:
    """Reset every module inside a model, then draw its linear maps Xavier-uniform, with biases of zero.

    Args:
        model: The model; its own ``reset_parameters`` is not called.
    """
    reset_children(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
