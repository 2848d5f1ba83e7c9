"""How a module's output is added to its skip: in one operation, where nobody looks at the parts."""

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from rezero.functional import gated_linear_residual, gated_residual
from rezero.gate import Gate
from rezero.in_weight import can_scale, scaled_output
from rezero.kernels import mlp
from rezero.kernels.linear import is_small

__all__ = ["add_branch", "add_linear", "add_mlp", "add_sequence", "is_plain", "probability"]


def add_branch(x: Tensor, f: Tensor, dropout: nn.Module, alpha: Tensor) -> Tensor:
    """Add a branch to its skip: ``x + alpha * dropout(f)``.

    Args:
        x: The skip, ``(*, D)``.
        f: The branch, ``(*, D)``.
        dropout: What it passes through.
        alpha: The gate, ``(1,)`` or ``(D,)``.

    Returns:
        ``(*, D)``.
    """
    p = probability(dropout)
    return gated_residual(x, dropout(f), alpha) if p is None else gated_residual(x, f, alpha, dropout=p)


def add_linear(x: Tensor, h: Tensor, linear: nn.Linear, dropout: nn.Module, alpha: Tensor) -> Tensor:
    """Add the end of a branch to its skip: ``x + alpha * dropout(linear(h))``.

    It is one operation (`rezero.functional.gated_linear_residual`) where nobody looks at, or has exchanged, what either
    module returns.

    Args:
        x: The skip, ``(*, D)``.
        h: What goes into the linear map, ``(*, K)``.
        linear: The map, ``K`` to ``D``.
        dropout: What its output passes through.
        alpha: The gate, ``(1,)`` or ``(D,)``.

    Returns:
        ``(*, D)``.
    """
    p = probability(dropout)
    if p is not None and type(linear) is nn.Linear and is_plain(linear):
        return gated_linear_residual(x, h, linear.weight, linear.bias, alpha, dropout=p)
    return add_branch(x, linear(h), dropout, alpha)


def add_mlp(
    x: Tensor, first: nn.Module, activation: object, last: nn.Module, dropouts: Iterable[nn.Module], alpha: Tensor
) -> Tensor | None:
    """Add a branch ``last(relu(first(x)))`` to its skip, in one operation.

    Args:
        x: The skip and the branch's input, ``(*, D)``.
        first: What the branch begins with.
        activation: What follows it.
        last: What the branch ends with.
        dropouts: What else its numbers pass through.
        alpha: The gate, ``(1,)`` or ``(D,)``.

    Returns:
        ``x + alpha * last(relu(first(x)))``; None, with nothing run, where these are no linear maps and no ReLU, a
        dropout drops something, somebody looks at a part, or the operation does not serve.
    """
    if type(first) is not nn.Linear or type(last) is not nn.Linear or is_small(x, first.out_features):
        return None
    relu = activation is F.relu or (type(activation) is nn.ReLU and is_plain(activation))
    if not (relu and is_plain(first) and is_plain(last)):
        return None
    given = (x, first.weight, first.bias, last.weight, last.bias, alpha)
    if any(probability(each) != 0 for each in dropouts) or not mlp.serves(*given):
        return None
    return mlp.gated_mlp_residual(*given)


def add_sequence(x: Tensor, branch: nn.Sequential, dropout: nn.Module, gate: Gate) -> Tensor | None:
    """Add a branch whose last layer can take the gate into its product or its weights.

    Args:
        x: The skip and the branch's input, ``(*, D)``.
        branch: The branch.
        dropout: What its output passes through.
        gate: The gate, of one scale or ``D``.

    Returns:
        ``x + alpha * dropout(branch(x))``; None, with nothing run, where the branch has to be run as it is.
    """
    if not branch._modules:
        return None
    layers: list[Any] = list(branch._modules.values())
    while type(layers[-1]) is nn.Sequential and layers[-1]._modules and is_plain(layers[-1]):
        layers[-1:] = layers[-1]._modules.values()
    first, last = layers[:-1], layers[-1]
    kind = type(last)
    if kind is nn.Linear and is_small(x, last.in_features):
        return None
    p = probability(dropout)
    if p is None or not is_plain(branch):
        return None
    linear = kind is nn.Linear and last.out_features == x.shape[-1]
    if not ((linear or (p == 0 and can_scale(kind))) and is_plain(last)):
        return None
    h: Any = x
    alpha = gate.scale
    drops = [each for each in first if type(each) is nn.Dropout]
    if linear and p == 0 and len(first) == 2 + len(drops):
        begin, activation = (each for each in first if type(each) is not nn.Dropout)
        y = add_mlp(x, begin, activation, last, drops, alpha)
        if y is not None:
            return y
    for layer in first:
        h = layer(h)
    if linear:
        if isinstance(h, Tensor) and h.shape == (*x.shape[:-1], last.in_features):
            return gated_linear_residual(x, h, last.weight, last.bias, alpha, dropout=p)
        return add_branch(x, last(h), dropout, alpha)
    f = scaled_output(kind, last, h, alpha, tuple(alpha.shape))
    return add_branch(x, last(h), dropout, alpha) if f is None or f.shape != x.shape else x + f


def probability(dropout: nn.Module) -> float | None:
    """Return with which probability a dropout zeroes a number now; None if it is another module, or hooked."""
    if not (isinstance(dropout, nn.Dropout) and type(dropout) is nn.Dropout and is_plain(dropout)):
        return None
    return dropout.p if dropout.training else 0.0


def is_plain(module: nn.Module) -> bool:
    """Tell whether calling a module does what its class says and no more: it has no hook and no ``forward`` of its own.

    Args:
        module: The module.

    Returns:
        Whether that is so.
    """
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return not (any(hooks) or torch_modules._has_any_global_hook() or "forward" in vars(module))
