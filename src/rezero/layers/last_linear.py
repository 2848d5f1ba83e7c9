"""The last linear map of a residual branch, with its gate and the addition."""

from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from rezero.functional import gated_linear_residual, gated_residual

__all__ = ["add_linear", "is_plain"]


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
    if type(dropout) is nn.Dropout and type(linear) is nn.Linear and is_plain(dropout) and is_plain(linear):
        return gated_linear_residual(
            x, h, linear.weight, linear.bias, alpha, dropout=dropout.p if dropout.training else 0.0
        )
    return gated_residual(x, dropout(linear(h)), alpha)


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
